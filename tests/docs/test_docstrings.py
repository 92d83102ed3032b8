"""Examples in docstrings run, and print what they say."""

import doctest
import importlib
import inspect
import io
import pkgutil

import pytest

import ssept_ext
import ssept_ext.ops

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(ssept_ext.__path__, "ssept_ext.")
    if module.name not in ("ssept_ext._C", "ssept_ext.__main__")
)
PUBLIC = [
    getattr(package, name) for package in (ssept_ext, ssept_ext.ops) for name in package.__all__
]


def run_examples(module):
    """The number of examples in a module, and a report of those that fail."""
    report = io.StringIO()
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test, out=report.write)
    return runner.summarize(verbose=False).attempted, report.getvalue()


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name.startswith("ssept_ext"):
            raise
        pytest.skip(f"{error.name} is not installed")

    _, report = run_examples(module)

    assert report == ""


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda thing: thing.__name__)
def test_a_public_name_has_an_example(thing):
    assert doctest.DocTestParser().get_examples(inspect.getdoc(thing))


def test_an_example_that_prints_something_else_is_found(tmp_path, monkeypatch):
    (tmp_path / "wrong.py").write_text('"""Wrong.\n\n>>> 1 + 1\n3\n"""\n')
    monkeypatch.syspath_prepend(tmp_path)

    count, report = run_examples(importlib.import_module("wrong"))

    assert count == 1
    assert "Expected:\n    3\nGot:\n    2" in report
