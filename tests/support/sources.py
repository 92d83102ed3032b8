"""What draws the sampler's batches: NumPy or the extension."""

import pytest

from ssept_ext import _extension

needs_native = pytest.mark.skipif(_extension.native is None, reason="the extension is not built")
