"""The command `serve`: a web server that answers from a trained model."""

from __future__ import annotations

import argparse
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

from ssept_ext.cli.options import add_device, add_run, add_table, choose_device, filled, number
from ssept_ext.utils.optional import require
from ssept_ext.utils.options import NOT_NEGATIVE, Range

_DRAIN_SECONDS = 30
"""How long requests may take to be answered once the server was told to end."""
_KEEP_ALIVE_SECONDS = 20
_BACKLOG = 2048
_WORKER_SECONDS = 60
"""After how long without a sign of life a worker is replaced: a large model takes some time to load."""


def serve(options: argparse.Namespace) -> int:
    """Answer requests for recommendations over HTTP, until SIGTERM or Ctrl-C."""
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        require(module, "serve")
    uvicorn = require("uvicorn", "serve")
    with ExitStack() as stack:
        if options.workers > 1:  # before prometheus_client is imported, which looks for it then
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ssept-serve-"))
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        from ssept_ext.service.app import ServiceSettings, make_app
        from ssept_ext.service.current_model import CurrentModel

        device = choose_device(options)
        settings = ServiceSettings(
            str(Path(options.run).resolve()),
            options.backend,
            str(device),
            options.threads or max(1, (os.cpu_count() or 1) // options.workers),
            options.watch,
            options.table,
        )
        current = CurrentModel(settings.folder, settings.backend, device, settings.table)
        http = {
            "host": options.host,
            "port": options.port,
            "timeout_graceful_shutdown": _DRAIN_SECONDS,
            "timeout_keep_alive": _KEEP_ALIVE_SECONDS,
            "backlog": _BACKLOG,
            "access_log": False,
            "http": "h11",  # not httptools, which takes headers of any size
        }
        if options.workers == 1:
            uvicorn.run(make_app(settings, current), **http)
            return 0
        del current  # each worker loads its own
        settings.to_environment()
        app = "ssept_ext.service.app:app_from_environment"
        http["timeout_worker_healthcheck"] = _WORKER_SECONDS
        uvicorn.run(app, factory=True, workers=options.workers, **http)
    return 0


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `serve`."""
    add_run(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", type=filled, help="address to listen at; 0.0.0.0 for all"
    )
    parser.add_argument(
        "--port", default=8000, help="port to listen at", **number(int, Range(0, 65535))
    )
    parser.add_argument(
        "--workers",
        default=1,
        help="processes that answer, each with the model",
        **number(int, Range(1, 1024)),
    )
    parser.add_argument(
        "--threads",
        help="threads of each process for one batch (default: the cores, shared by the workers)",
        **number(int, Range(1, 1024)),
    )
    parser.add_argument(
        "--watch",
        default=5.0,
        help="seconds after which to look again for a new model in the folder; 0 for never",
        **number(float, NOT_NEGATIVE),
    )
    add_table(parser)
    add_device(parser)
