"""Files have at most 400 lines, and Python functions 80, docstrings aside."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("bench", "csrc", "docs", "ssept_ext", "tests")


def sources(*suffixes):
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))]
    return {str(path.relative_to(ROOT)): path for path in paths if path.suffix in suffixes}


def lines_of(function):
    docstring = function.body[0] if ast.get_docstring(function, clean=False) is not None else None
    lines = function.end_lineno - function.lineno + 1
    return lines if docstring is None else lines - (docstring.end_lineno - docstring.lineno + 1)


def test_no_file_is_too_long_to_be_read_at_once():
    lengths = {
        name: len(path.read_text().splitlines())
        for name, path in sources(".py", ".cpp", ".h", ".cu", ".cuh").items()
    }

    assert len(lengths) > 400, "the search has lost its files"
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


def test_no_function_is_too_long_to_be_read_at_once():
    functions = [
        (name, node)
        for name, path in sources(".py").items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]

    assert len(functions) > 3000, "the search has lost its functions"
    assert [f"{name}:{f.lineno} {f.name}" for name, f in functions if lines_of(f) > 80] == []
