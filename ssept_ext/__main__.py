"""The entry point of the command `ssept`, which `python -m ssept_ext` runs too."""

import os
import signal
import sys
import warnings
from types import FrameType


def main() -> int:
    """Run the command line of this process, and return its exit code; see `ssept_ext.cli.main`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored
        signal.signal(signal.SIGINT, _interrupt)
    warnings.formatwarning = _format_warning
    from ssept_ext.cli import app

    return app.main()


def _format_warning(message: Warning | str, *_: object, **__: object) -> str:
    return f"ssept: warning: {' '.join(str(message).split())}\n"


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but end the process during an import: an exception may let torch's abort."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"ssept: interrupted\n")
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
