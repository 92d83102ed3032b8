"""Every code block of README and docs runs, on small data, or is on a list of those that cannot."""

import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from ssept_ext.cli import app as cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

NOT_RUN = {
    "make": "sets up a virtual environment, and runs for minutes",
    "pip install": "builds the extension",
    "torchrun": "starts processes; tests/cli/test_torchrun.py does",
    "# With RecTools": "RecTools is not installed; tests/evaluation/test_ranks.py has what it counts",
    "# With ranx": "neither is ranx",
    "# With MLflow": "they are tested with files of their own in tests/training/test_callbacks.py",
    "# Under torchrun": "the same; tests/training/test_large_tables.py runs it",
    "python bench/gpu_check.py": "builds for a GPU; tests/bench/test_gpu_check.py has its dry run",
    "python build/gpu-check/bench/gpu_check.py": "the same",
    "python bench/peers.py": "needs RecTools; tests/bench/test_peers.py has peers of its own",
    "ssept serve": "answers until it is told to end; tests/service/test_process.py starts it",
    "curl": "asks that server",
    "sed -i": "changes the files of a user; tests/recommenders/test_drop_in.py has the names replaced",
    "ssept prepare --download": "needs the network; tests/data/test_movielens.py has a server of its own",
}
"""Beginnings of commands, and of blocks of Python, that are not run here, and why."""

SMALLER = {
    "ssept train": ["--epochs", "1"],
    "python bench/": ["--quick"],
}
"""Options that are added to commands that begin so, because the last of two wins."""


class Block(NamedTuple):
    language: str
    code: str
    line: int
    """Where it begins in the page, from 0."""


def tokens_of(text):
    markdown_it = pytest.importorskip("markdown_it")
    return markdown_it.MarkdownIt("gfm-like", {"linkify": False}).parse(text)


def blocks_of(text):
    return [
        Block(token.info.strip(), token.content, token.map[0] + 1)
        for token in tokens_of(text)
        if token.type in ("fence", "code_block")
    ]


def commands_of(code):
    """The commands of a block of shell, in words; comments, and lines that go on, as a shell has them."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def begins_with(words, beginning):
    return f"{shlex.join(words)} ".startswith(
        beginning if beginning.endswith("/") else beginning + " "
    )


def reason_not_to_run(words):
    return next((why for start, why in NOT_RUN.items() if begins_with(words, start)), None)


def run_command(words):
    for beginning, options in SMALLER.items():
        if begins_with(words, beginning):
            words = [*words, *options]
    match words:
        case ["ssept", *arguments] | ["python", "-m", "ssept_ext", *arguments]:
            assert cli.main(arguments) == 0
        case ["python", script, *arguments] if script.startswith("bench/"):
            importlib.import_module(Path(script).stem).main(arguments)
        case _:
            pytest.fail(f"{shlex.join(words)} is neither run nor in NOT_RUN")


def run_block(block, page, namespace):
    match block.language:
        case "python":
            if block.code.startswith(tuple(NOT_RUN)):
                return
            # Behind empty lines, so that a traceback has the page's line numbers.
            code = compile("\n" * block.line + block.code, str(page), "exec")
            exec(code, namespace)
        case "sh":
            for words in commands_of(block.code):
                if reason_not_to_run(words) is None:
                    run_command(words)
        case "text":
            pass  # no code
        case language:
            pytest.fail(f"{page}, line {block.line}: nothing runs blocks of {language!r}")


@pytest.fixture
def _small_data(tmp_path, monkeypatch):
    """A folder to run in, with the files that the pages name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "bench")])
    rng = np.random.default_rng(0)
    histories = rng.integers(1, 201, (130, 12))
    lines = [f"{user} {item}\n" for user, row in enumerate(histories, 1) for item in row]
    Path("ml-1m.txt").write_text("".join(lines))
    users = ["anna", "bert", *(f"user-{i}" for i in range(38))]
    events = [
        f"{user},sku-{rng.integers(20)},{1_700_000_000 + rng.integers(10**6)}\n"
        for user in users
        for _ in range(12)
    ]
    Path("events.csv").write_text("".join(["user,item,timestamp\n", *events]))
    later = ["anna,sku-3,1800000000\n", "anna,sku-new,1800000001\n", "eve,sku-1,1800000002\n"]
    skus = [*range(20), 100, "new"]
    items = [f"sku-{i},Item {i},.5\n" for i in skus]
    Path("items.csv").write_text("".join(["item,title,price\n", *items]))
    Path("week.csv").write_text("".join(["user,item,timestamp\n", *later]))


@pytest.mark.filterwarnings("ignore:num_neg_test is 100, but")
@pytest.mark.usefixtures("_small_data", "_one_thread")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_blocks_run_one_after_another(page):
    namespace = {}
    for block in blocks_of(page.read_text()):
        run_block(block, page, namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_names_of_files_lead_to_files(page):
    children = [child for token in tokens_of(page.read_text()) for child in token.children or []]
    links = [
        child.attrs["href"].partition("#")[0] for child in children if child.type == "link_open"
    ]
    named = [child.content for child in children if child.type == "code_inline"]
    paths = [page.parent / link for link in links if link and "://" not in link]
    paths += [
        ROOT / name
        for name in named
        if re.fullmatch(r"(bench|csrc|docs|tests|ssept_ext)/[\w./-]+", name)
    ]

    assert [str(path) for path in paths if "OP" not in path.stem and not path.exists()] == []


def test_every_page_is_in_the_navigation():
    settings = (ROOT / "mkdocs.yml").read_text()
    pages = [page.name for page in sorted((ROOT / "docs").glob("*.md"))]

    assert [page for page in pages if f": {page}\n" not in settings] == []


def test_every_reason_not_to_run_is_one_for_a_command_of_the_pages():
    blocks = [block for page in PAGES for block in blocks_of(page.read_text())]
    commands = [
        words for block in blocks if block.language == "sh" for words in commands_of(block.code)
    ]

    unused = [
        start
        for start in NOT_RUN
        if not any(begins_with(words, start) for words in commands)
        and not any(b.language == "python" and b.code.startswith(start) for b in blocks)
    ]

    assert unused == []


@pytest.mark.parametrize(
    ("page", "what"),
    [
        ("```\nssept info\n```", "nothing runs blocks of ''"),
        ("```ruby\nputs 1\n```", "nothing runs blocks of 'ruby'"),
        ("    ssept info", "nothing runs blocks of ''"),
        (
            "```sh\nssept info\nrm -r runs  # tidy up\n```",
            "rm -r runs is neither run nor in NOT_RUN",
        ),
        ("```sh\nmakefile\n```", "makefile is neither run nor in NOT_RUN"),
    ],
)
def test_a_block_that_is_neither_run_nor_listed_fails(page, what):
    (block,) = blocks_of(page)

    with pytest.raises(pytest.fail.Exception, match=what):
        run_block(block, "page.md", {})


def test_an_error_in_a_block_names_the_line_of_the_page():
    (block,) = blocks_of("# A page\n\n```python\nx = 1\nx.missing\n```\n")

    with pytest.raises(AttributeError) as error:
        run_block(block, "page.md", {})

    assert (str(error.traceback[-1].path), error.traceback[-1].lineno + 1) == ("page.md", 5)


def test_commands_run_small(monkeypatch):
    ran = []
    monkeypatch.setattr(cli, "main", lambda arguments: ran.append(arguments) or 0)

    for words in commands_of(
        "ssept train --epochs 9 \\\n  --out x  # long\n\npython -m ssept_ext info\n"
    ):
        run_command(words)

    assert ran == [["train", "--epochs", "9", "--out", "x", "--epochs", "1"], ["info"]]
