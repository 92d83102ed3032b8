"""Optional dependencies, which extras of this package install."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, extra: str) -> Any:
    """Import an optional dependency.

    Raises
    ------
    ImportError
        If it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is missing: pip install 'ssept_ext[{extra}]'") from error
