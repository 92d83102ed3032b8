"""Which files of csrc may include which: an op sees its device's tools, and neither device sees the other."""

import re
from pathlib import PurePath

from support.building import CSRC

MAY_INCLUDE = {
    "common": {"common"},
    "cpu": {"common", "cpu"},
    "cuda": {"common", "cuda"},
    "sampler": {"sampler"},
    "op": {"common", "op"},
    "op on CPU": {"common", "op", "cpu", "op on CPU"},
    "op on CUDA": {"common", "op", "cuda", "op on CUDA"},
    "module": {"common", "cpu"},
}


def room(path):
    folder, *rest = path.parts
    if not rest:
        return "module"
    if folder != "ops":
        return folder
    if path.name in ("params.h", "args.h"):
        return "op"
    return "op on CPU" if path.name.startswith("cpu") else "op on CUDA"


def includes():
    for file in sorted(path for path in CSRC.rglob("*") if path.is_file()):
        for included in re.findall(r'#include "(.*)"', file.read_text()):
            yield file.relative_to(CSRC), PurePath(included)


def test_files_include_only_what_their_place_allows():
    found = list(includes())
    assert len(found) > 100, "the search has lost its files"
    assert [f"{x} in {file}" for file, x in found if room(x) not in MAY_INCLUDE[room(file)]] == []


def test_an_op_includes_no_other_op():
    of_ops = [(file, x) for file, x in includes() if x.parts[0] == "ops"]
    assert [f"{x} in {file}" for file, x in of_ops if x.parent != file.parent] == []
