"""The command `export`: a model for other runtimes."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ssept_ext.cli.options import add_run, choose_device, filled, output_file, output_folder
from ssept_ext.data.id_map import save_id_maps
from ssept_ext.models import SASREC
from ssept_ext.serving.export import export_aoti, export_onnx, export_program
from ssept_ext.serving.triton import export_triton
from ssept_ext.utils.files import replace_file


def export(options: argparse.Namespace) -> int:
    """Write a model for other runtimes, with the ranking of all items inside."""
    if (options.out is None) == (options.triton is None):
        raise ValueError("give one of --out and --triton")
    given = [f"--{name}" for name in ("format", "scores", "ids") if getattr(options, name)]
    if options.triton is not None and given:
        raise ValueError(f"{given[0]} is for --out: --triton has a format of its own")
    if options.out is not None and options.name is not None:
        raise ValueError("--name is for --triton")
    device = choose_device(options)
    model = SASREC.from_pretrained(options.run, device=device).eval()
    if options.ids is not None and model.known is None:
        raise ValueError(f"--ids: {options.run} has no raw ids")
    if options.triton is not None:
        print(export_triton(model, options.triton, options.name or "ssept"))
        return 0
    _write(model, options.format or "onnx", options.out, top_k=not options.scores)
    print(options.out)
    if options.ids is not None:
        assert model.known is not None
        save_id_maps(options.ids, model.known.user_ids, model.known.item_ids)
        print(options.ids)
    return 0


def _write(model: SASREC, kind: str, path: str, top_k: bool) -> None:
    if kind == "onnx":
        export_onnx(model, path, top_k)
    elif kind == "aoti":
        export_aoti(model, path, top_k)
    else:
        program = export_program(model, top_k)
        replace_file(Path(path), lambda part: torch.export.save(program, part))


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export`."""
    add_run(parser)
    parser.add_argument(
        "--format",
        choices=["onnx", "program", "aoti"],
        help="an ONNX file, a program for torch.export.load, or a package that AOTInductor compiles for this type of "
        "processor (default: onnx)",
    )
    parser.add_argument(
        "--out", type=output_file, metavar="FILE", help="the file to write (default: none)"
    )
    parser.add_argument(
        "--scores",
        action="store_true",
        help="score the items of an input named candidate, instead of ranking all items",
    )
    parser.add_argument(
        "--ids",
        type=output_file,
        metavar="FILE",
        help="also write the raw ids of users and items, in the order of their indices (default: none)",
    )
    parser.add_argument(
        "--triton",
        type=output_folder,
        metavar="FOLDER",
        help="instead of --out, add a version of the model to a model repository of Triton (default: none)",
    )
    parser.add_argument(
        "--name", type=filled, help="name of the model in the repository (default: ssept)"
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="where the file will run"
    )
    parser.set_defaults(backend="auto")
