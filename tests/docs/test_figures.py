"""The figures in README and docs are those of the files in bench/results."""

import runpy
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULT = "bench/results/2026-11-26-amd-epyc-2-cores.txt"
STEPS = "bench/results/2026-11-29-amd-epyc-zen-4-2-cores-train-step.txt"
PAGE = "docs/performance.md"


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Runs the script of a copy of the pages in this process; returns what it printed, and its message if it failed."""

    def run(root, *arguments):
        script = root / "docs/figures.py"
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [str(script), *arguments])
            patch.setattr(sys, "dont_write_bytecode", True)
            patch.syspath_prepend(script.parent)
            try:
                runpy.run_path(str(script), run_name="__main__")
                why = None
            except SystemExit as end:
                why = end.code
            finally:
                for module in ("papers", "results"):  # another copy has its own
                    sys.modules.pop(module, None)
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out, why

    return run


@pytest.fixture
def copy(tmp_path):
    """The pages and the results, to change."""
    shutil.copy(ROOT / "README.md", tmp_path)
    for folder in ("docs", "bench/results"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def replace(path, before, after):
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))


def test_pages_have_the_figures_of_the_result_files(run_script):
    assert run_script(ROOT, "--check") == ("", None)


def test_a_figure_that_was_changed_by_hand_is_found_and_put_right(copy, run_script):
    replace(copy / PAGE, "| training step | 6.7 ×", "| training step | 9.4 ×")

    _, why = run_script(copy, "--check")
    written, _ = run_script(copy)

    assert "performance.md" in why
    assert written == f"wrote {PAGE}\n"
    assert (copy / PAGE).read_text() == (ROOT / PAGE).read_text()


def test_a_new_result_reaches_tables_and_sentences(copy, run_script):
    replace(copy / STEPS, "eager baseline                        6.71", "eager baseline  12.34")
    replace(copy / RESULT, "Ours needs 49 MiB", "Ours needs 50 MiB")

    run_script(copy)

    page = (copy / PAGE).read_text()
    assert "| training step | 12.3 ×" in page
    assert "<!-- figures: recommend-mib -->50<!-- end --> MiB" in page


def test_a_result_that_is_no_longer_there_is_an_error(copy, run_script):
    replace(copy / "bench/results/reproduce-2026-11-26.md", "| sasrec-seed-0,bf16=true |", "| x |")

    with pytest.raises(ValueError, match="expected 1, got 0"):
        run_script(copy, "--check")


def test_a_marker_without_an_end_is_an_error(copy, run_script):
    replace(copy / PAGE, "49<!-- end -->", "49")

    with pytest.raises(ValueError, match="<!-- end -->"):
        run_script(copy, "--check")


def test_a_figure_at_the_start_of_a_line_is_an_error_because_it_ends_the_paragraph(
    copy, run_script
):
    replace(copy / PAGE, " <!-- figures: recommend-mib", "\n<!-- figures: recommend-mib")

    with pytest.raises(ValueError, match="must not begin with the figure"):
        run_script(copy, "--check")
