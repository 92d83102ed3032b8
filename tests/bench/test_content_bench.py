"""Movies that were held out of training are found by their content."""

import gzip
import importlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
content = importlib.import_module("content")

pytestmark = pytest.mark.usefixtures("_one_thread")


@pytest.mark.skipif(
    not (content.DATA / "ml-100k.items.tsv.gz").is_file(),
    reason="needs ML-100K beside the checkout",
)
def test_new_movies_are_found_better_than_by_chance_and_by_popularity_of_their_genres():
    training = {"num_epochs": 12, "embedding_dim": 32, "seq_max_len": 30}

    found = content.held_out(content.Movies(content.DATA), 0, training)

    of_model, (median, _) = (
        found.pop(f"SASREC, added items{what}") for what in ("", ", among all")
    )
    assert median < 0.25 * 1682
    # Three trainings had 3.4 to 4.7 times the hit rate of chance, and 2 to 2.9 times that of the genres.
    assert of_model[1] > 2 * found["chance"][1]
    assert of_model[1] > 1.5 * found["popularity of genres"][1]
    assert all(of_model[0] > ndcg for ndcg, _ in found.values())


def test_equal_scores_are_in_all_orders():
    ndcg, hr = content.hits(np.array([[1.0, 1, 0], [2, 1, 1]]))

    assert hr == 1
    assert ndcg == pytest.approx(((1 + 1 / math.log2(3)) / 2 + 1) / 2)
    assert content.hits(np.zeros((1, 40)))[1] == pytest.approx(10 / 40)


def test_the_tables_have_a_row_for_each_ranking(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    events = [
        f"{user}\t{item}\t3\t{user + 50 * t}\n"
        for user in range(1, 31)
        for t, item in enumerate(rng.permutation(40)[:20] + 1)
    ]
    movies = [
        f"{item}\tFilm {item}\t{1990 + item % 7}\t{'AB'[item % 2]}\n" for item in range(1, 41)
    ]
    for name, lines in (
        ("ml-100k.u.data.gz", events),
        ("ml-100k.items.tsv.gz", ["id\ttitle\tyear\tclass\n", *movies]),
    ):
        with gzip.open(tmp_path / name, "wt") as file:
            file.writelines(lines)
    monkeypatch.setattr(content, "NUM_NEW", 20)
    sizes = ["--seeds", "2", "--epochs", "1", "--embedding-dim", "4", "--seq-max-len", "6"]

    content.main(["--data", str(tmp_path), *sizes])

    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows[1] == "| chance | 0.2272 ± 0.0000 | 0.5000 ± 0.0000 |"
    assert [row.split(" | ")[0][2:] for row in rows[2:]] == [
        "popularity of genres",
        "the user's genres",
        "SASREC, added items",
        "among all movies",
        "SASREC, added items",
        "all movies known, full ranking",
        "SASREC without features",
        "SASREC with features",
    ]
