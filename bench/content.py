"""Recommend movies of ML-100K that had no event in training, by their titles, years and genres.

    python bench/content.py --seeds 3

300 of 1,682 movies are left out of training, with all their events, and then added by `add_items`. For each user with
an event of such a movie, the last one is to be found among all 300, given the user's events of other movies before it,
if there are at least 5; and then among all movies but those of the history. The rankings beside the model are chance;
the popularity of a movie's genres, which is the mean number of training events of movies that have one; and the user's
genres: the cosine of how often they are in the user's history with the movie's. The last table has the full-ranking
NDCG@10 of the test items when no movie is left out.
"""

from __future__ import annotations

import argparse
import gzip
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from workload import DATA

from ssept_ext import SASREC, Interactions, ItemFeatures, SASRecDataSet
from ssept_ext.data.histories import Histories, IntArray, to_offsets
from ssept_ext.evaluation import EvaluationCandidates, rank_candidates

NUM_NEW, LEAST = 300, 5
AMONG_ALL = "SASREC, added items, among all"

Hits = tuple[float, float]
"""NDCG@10 and HR@10."""


class Movies:
    """The events of ML-100K, and what is known of its movies."""

    def __init__(self, folder: Path) -> None:
        events, items = folder / "ml-100k.u.data.gz", folder / "ml-100k.items.tsv.gz"
        with gzip.open(events) as file:
            raw = np.loadtxt(file, dtype=np.int64)
        self.users, self.items, self.times = raw[:, [0, 1, 3]].T
        self.features = ItemFeatures.from_csv(items)
        with gzip.open(items, "rt") as lines:
            cells = [line.rstrip("\n").split("\t") for line in lines][1:]
        words = {int(movie): genres.split() for movie, _, _, genres in cells}
        names = sorted({genre for genres in words.values() for genre in genres})
        self.genres = np.zeros((max(words) + 1, len(names)))
        """(I + 1, G) 1 where a movie has a genre."""
        for movie, genres in words.items():
            self.genres[movie, [names.index(genre) for genre in genres]] = 1

    def interactions(self, kept: NDArray[np.bool_]) -> Interactions:
        """Some of the events."""
        columns = {
            "user": self.users[kept],
            "item": self.items[kept],
            "timestamp": self.times[kept],
        }
        return Interactions.from_dataframe(pa.table(columns))

    def questions(self, new: IntArray) -> tuple[list[IntArray], IntArray, IntArray]:
        """For each user that can be asked about: the movies before, the new one to be found, and the user."""
        order = np.lexsort((self.times, self.users))
        users, items = self.users[order], self.items[order]
        before, wanted, asked = [], [], []
        for user in np.unique(users):
            seen = items[users == user]
            is_new = np.isin(seen, new)
            if is_new.any():
                last = np.flatnonzero(is_new)[-1]
                history = seen[:last][~is_new[:last]]
                if len(history) >= LEAST:
                    before.append(history)
                    wanted.append(seen[last])
                    asked.append(user)
        return before, np.array(wanted), np.array(asked)


def hits(scores: NDArray[np.floating]) -> Hits:
    """Metrics of the item in column 0, (n, 1 + others); equal scores are in all orders."""
    ndcg = hr = 0.0
    for row in scores:
        best, count = (row > row[0]).sum(), (row == row[0]).sum()
        places = np.arange(best, best + count)
        hr += float((places < 10).mean())
        ndcg += float(np.where(places < 10, 1 / np.log2(places + 2), 0).mean())
    return ndcg / len(scores), hr / len(scores)


def held_out(movies: Movies, seed: int, training: dict[str, Any]) -> dict[str, Hits]:
    """Train without some movies, and rank these; last, the median rank of the one to be found among all, and HR@100."""
    new = np.random.default_rng(seed).choice(np.unique(movies.items), NUM_NEW, replace=False)
    is_old = ~np.isin(movies.items, new)
    options = {"hold_out": False, "seed": seed, "verbose": False, **training}
    model = SASREC.fit(movies.interactions(is_old), item_features=movies.features, **options)
    model.add_items(movies.features)

    before, wanted, asked = movies.questions(new)
    raw = np.stack([np.append(movie, new[new != movie]) for movie in wanted])
    known = model.known
    assert known is not None
    candidates = known.item_ids.encode(raw.ravel()).reshape(raw.shape)
    users = known.user_ids.encode(asked)
    histories = [known.item_ids.encode(history) for history in before]
    inputs = Histories(
        users, to_offsets(np.array([len(x) for x in histories])), np.concatenate(histories)
    )
    whole = [
        np.append(history, to_find)
        for history, to_find in zip(histories, candidates[:, 0], strict=True)
    ]
    everything = SASRecDataSet(histories=dict(zip(users.tolist(), whole, strict=True)))
    everything.split(valid_size=0, test_size=1, min_interactions=2)
    everything.user_ids, everything.item_ids = known.user_ids, known.item_ids
    everything.itemnum = model.item_num
    ranks = model.evaluate_ranks(everything, 100).ranks

    counts = np.bincount(movies.items[is_old], minlength=len(movies.genres))
    in_training = np.isin(np.arange(len(movies.genres)), movies.items[is_old])
    of_genre = (counts @ movies.genres) / (in_training @ movies.genres)
    popularity = movies.genres @ of_genre / np.maximum(movies.genres.sum(1), 1)
    taste = np.stack([movies.genres[history].sum(0) for history in before])
    lengths = np.linalg.norm(movies.genres, axis=1)
    cosines = taste @ (movies.genres / np.maximum(lengths, 1)[:, None]).T
    return {
        "chance": hits(np.zeros(raw.shape)),
        "popularity of genres": hits(popularity[raw]),
        "the user's genres": hits(np.take_along_axis(cosines, raw, 1)),
        "SASREC, added items": rank_candidates(
            model, EvaluationCandidates("test", inputs, candidates)
        ),
        AMONG_ALL: (float(np.median(ranks)) + 1, float((ranks < 100).mean())),
    }


def all_known(movies: Movies, seed: int, training: dict[str, Any]) -> dict[str, float]:
    """Train on all movies, with and without features."""
    events = movies.interactions(np.ones(len(movies.items), np.bool_))
    found = {}
    for name, features in (("without features", None), ("with features", movies.features)):
        model = SASREC.fit(events, item_features=features, seed=seed, verbose=False, **training)
        found[name] = model.evaluate_full(events.to_dataset(), [10]).ndcg[10]
    return found


def spread(values: Sequence[float]) -> str:
    return f"{mean(values):.4f} ± {stdev(values) if len(values) > 1 else 0:.4f}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of ml-100k.u.data.gz")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--embedding-dim", type=int, default=64)
    parser.add_argument("--seq-max-len", type=int, default=50)
    options = parser.parse_args(argv)
    movies = Movies(options.data)
    training = {
        "num_epochs": options.epochs,
        "embedding_dim": options.embedding_dim,
        "seq_max_len": options.seq_max_len,
    }
    start = time.monotonic()

    def over_seeds(measure: Callable[..., dict[str, Any]]) -> dict[str, list[Any]]:
        found = [measure(movies, seed, training) for seed in range(options.seeds)]
        return {name: [each[name] for each in found] for name in found[0]}

    print(f"torch {torch.__version__}, {options.seeds} seeds, {training}\n")
    print(f"| among {NUM_NEW} new movies | NDCG@10 | HR@10 |\n|---|---|---|")
    found = over_seeds(held_out)
    among_all = found.pop(AMONG_ALL)
    for name, rows in found.items():
        ndcg, hr = (spread(values) for values in zip(*rows, strict=True))
        print(f"| {name} | {ndcg} | {hr} |")
    medians, hundred = zip(*among_all, strict=True)
    print("\n| among all movies | median rank | HR@100 |\n|---|---|---|")
    print(f"| SASREC, added items | {mean(medians):.0f} | {spread(hundred)} |")
    print("\n| all movies known, full ranking | NDCG@10 |\n|---|---|")
    for name, values in over_seeds(all_known).items():
        print(f"| SASREC {name} | {spread(values)} |")
    print(f"\n{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
