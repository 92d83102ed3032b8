"""Skips what needs the extra `serve` where it is missing."""

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx2")
