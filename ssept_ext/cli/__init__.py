"""The command line, `ssept`."""

from ssept_ext.cli.app import main

__all__ = [
    "main",
]
