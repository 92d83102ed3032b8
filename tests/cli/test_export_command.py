"""`ssept export`: the files of `ssept_ext.serving.export`, and a folder of `ssept_ext.serving.triton`."""

import pytest
import torch

from ssept_ext import SSEPT, cli
from ssept_ext.cli import export
from ssept_ext.data.id_map import load_id_maps
from ssept_ext.serving.export import INPUTS, INPUTS_OF_TOP_K


@pytest.fixture
def written(monkeypatch):
    """What would be written, which takes seconds: the function, the path and `top_k`."""
    calls = []

    def stub(name):
        def write(model, path, top_k):
            assert isinstance(model, SSEPT)
            calls.append((name, path, top_k))

        return write

    for name in ("export_onnx", "export_aoti"):
        monkeypatch.setattr(export, name, stub(name))
    monkeypatch.setattr(export, "export_triton", lambda *of: calls.append(of[1:]) or "the version")
    return calls


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--out", "a.onnx"], ("export_onnx", "a.onnx", True)),
        (["--out", "a.onnx", "--format", "onnx", "--scores"], ("export_onnx", "a.onnx", False)),
        (["--out", "a.pt2", "--format", "aoti"], ("export_aoti", "a.pt2", True)),
        (["--triton", "models"], ("models", "ssept")),
        (["--triton", "models", "--name", "shop"], ("models", "shop")),
    ],
)
def test_flags_say_what_is_written(run, written, flags, expected, capsys):
    assert cli.main(["export", run, *flags]) == 0

    assert written == [expected]
    assert capsys.readouterr().out == (
        "the version\n" if flags[0] == "--triton" else f"{flags[1]}\n"
    )


@pytest.mark.parametrize(("flags", "inputs"), [([], INPUTS_OF_TOP_K), (["--scores"], INPUTS)])
def test_a_program_is_what_torch_loads(run, flags, inputs):
    assert cli.main(["export", run, "--format", "program", "--out", "a.pt2", *flags]) == 0

    signature = torch.export.load("a.pt2").graph_signature
    assert signature.user_inputs == inputs


def test_raw_ids_are_written_in_the_order_of_their_indices(raw_run, written, capsys):
    model = SSEPT.from_pretrained(raw_run)
    assert cli.main(["export", raw_run, "--out", "a.onnx", "--ids", "ids.json"]) == 0

    assert capsys.readouterr().out == "a.onnx\nids.json\n"
    assert load_id_maps("ids.json") == (model.known.user_ids, model.known.item_ids)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give one of --out and --triton"),
        (["--out", "a.onnx", "--triton", "models"], "give one of --out and --triton"),
        (["--triton", "models", "--format", "onnx"], "--format is for --out"),
        (["--triton", "models", "--scores"], "--scores is for --out"),
        (["--out", "a.onnx", "--name", "shop"], "--name is for --triton"),
        (["--out", "a.onnx", "--ids", "ids.json"], "--ids: run has no raw ids"),
        (["--out", "no-folder/a.onnx"], "no-folder is not a folder"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(run, written, flags, message, capsys):
    assert cli.main(["export", run, *flags]) == 2

    assert message in capsys.readouterr().err
    assert not written
