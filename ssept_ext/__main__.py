"""Runs the command `ssept` as `python -m ssept_ext`."""

import sys

from ssept_ext.cli import main

sys.exit(main())
