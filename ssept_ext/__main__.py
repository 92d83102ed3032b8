"""`python -m ssept_ext` is the command `ssept`."""

import sys

from ssept_ext.cli import main

sys.exit(main())
