"""The fixture of tests that draw by both implementations."""

import pytest
from support.sources import needs_native

from ssept_ext import _extension


@pytest.fixture(params=["numpy", pytest.param("native", marks=needs_native)])
def source(request, monkeypatch):
    """Draw by either implementation."""
    if request.param == "numpy":
        monkeypatch.setattr(_extension, "native", None)
    return request.param
