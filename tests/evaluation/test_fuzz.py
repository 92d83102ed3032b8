"""Any data and any arguments: what is drawn and measured is what a few lines of Python say, or an error names it."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.evaluation import Stub, make_dataset

from ssept_ext.evaluation.candidates import draw_candidates
from ssept_ext.evaluation.full import evaluate_full
from ssept_ext.evaluation.sampled import (
    evaluate,
    evaluate_popularity,
    evaluate_repeated,
    rank_candidates,
)

FUZZ = settings(max_examples=150)

NUM_ITEMS = 9
HISTORIES = st.dictionaries(
    st.integers(1, 20) | st.just(2**31 - 1),
    st.lists(st.integers(1, NUM_ITEMS), min_size=1, max_size=14),
    min_size=1,
    max_size=8,
)
DRAWS = st.fixed_dictionaries(
    {
        "split": st.sampled_from(["valid", "test"]),
        "exclude": st.sampled_from(["train", "all"]),
        "seed": st.integers(0, 2**70),
        "max_users": st.none() | st.integers(1, 10),
    }
)
TIES = st.sampled_from(["pessimistic", "optimistic", "mean"])


def outcome_of(call):
    """What a call returns, or the message of its error."""
    try:
        return call(), None
    except (ValueError, TypeError) as error:
        return None, str(error)


def by_remainder(users, items):
    """Scores with many ties."""
    return (items * 7 + users) % 4


def of_ranks(ranks, gain):
    """The mean over users of the mean over the ranks of each."""
    return np.mean([np.mean([gain(rank) for rank in of_user]) for of_user in ranks])


def ranks_among(target, others, ties):
    """All ranks that ties leave open, from 0, of a score among others."""
    best, worst = sum(s > target for s in others), sum(s >= target for s in others)
    return {"pessimistic": [worst], "optimistic": [best], "mean": range(best, worst + 1)}[ties]


def ndcg_at(k):
    return lambda rank: (rank < k) / math.log2(rank + 2)


def hit_at(k):
    return lambda rank: float(rank < k)


def held_out(dataset, split):
    """(history, answer, items of the history and the other held-out one) of each user who can be measured."""
    for user, train in sorted(dataset.user_train.items()):
        valid, test = dataset.user_valid[user], dataset.user_test[user]
        if train and test:
            history, (answer,) = (train, valid) if split == "valid" else (train + valid, test)
            yield user, history, answer, {"train": set(train), "all": {*train, *valid, *test}}


@FUZZ
@given(HISTORIES, DRAWS, st.integers(1, 3 * NUM_ITEMS))
def test_what_is_drawn_fits_the_arguments(histories, options, num_neg_test):
    dataset = make_dataset(histories, NUM_ITEMS)
    measurable = {
        user: (history, answer, seen[options["exclude"]] | {answer})
        for user, history, answer, seen in held_out(dataset, options["split"])
    }
    some_left = [user for user, (*_, seen) in measurable.items() if len(seen) < NUM_ITEMS]

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        drawn, error = outcome_of(
            lambda: draw_candidates(dataset, num_neg_test=num_neg_test, **options)
        )
    if error:
        assert "no user" in error
        assert len(some_left) < max(len(measurable), 1)
        return

    said = "".join(str(warning.message) for warning in warned)
    users = drawn.inputs.users.tolist()
    limit = options["max_users"] or len(measurable)
    left_out = min(limit, len(measurable)) - len(users)
    assert users == sorted(set(users) & set(some_left))
    assert 0 <= left_out <= len(measurable) - len(some_left)
    assert ("are left out" in said) == (left_out > 0)
    assert drawn.inputs.to_dict() == {user: measurable[user][0] for user in users}
    few = 0
    for user, (answer, *negatives) in zip(users, drawn.candidates.tolist(), strict=True):
        _, expected, seen = measurable[user]
        assert answer == expected
        assert len(negatives) == num_neg_test
        assert set(negatives) <= set(range(1, NUM_ITEMS + 1)) - seen
        few += NUM_ITEMS - len(seen) < num_neg_test
    assert ("their negatives repeat" in said) == (few > 0)
    assert f"but {few} of" in said or not few


@pytest.mark.filterwarnings("ignore::UserWarning")
@FUZZ
@given(HISTORIES, DRAWS, TIES, st.integers(1, 30), st.integers(1, 9))
def test_sampled_metrics_are_those_of_a_loop(histories, options, ties, num_neg_test, batch_size):
    dataset = make_dataset(histories, NUM_ITEMS)
    model = Stub(
        lambda batch, items: by_remainder(batch.users[:, None], items).double(),
        item_num=NUM_ITEMS,
        num_neg_test=num_neg_test,
    )
    drawn, error = outcome_of(
        lambda: draw_candidates(dataset, num_neg_test=num_neg_test, **options)
    )
    if error:
        assert outcome_of(lambda: evaluate(model, dataset, ties=ties, **options)) == (None, error)
        return
    events = [item for items in dataset.user_train.values() for item in items]
    popularity = np.bincount(events, minlength=NUM_ITEMS + 1)

    rows = list(zip(drawn.inputs.users.tolist(), drawn.candidates.tolist(), strict=True))
    by_model, by_popularity = (
        [
            ranks_among(score(user, row[0]), [score(user, i) for i in row[1:]], ties)
            for user, row in rows
        ]
        for score in (by_remainder, lambda _, item: popularity[item])
    )
    expected = pytest.approx((of_ranks(by_model, ndcg_at(10)), of_ranks(by_model, hit_at(10))))
    assert evaluate(model, dataset, eval_batch_size=batch_size, ties=ties, **options) == expected
    assert rank_candidates(model, drawn, batch_size, ties) == expected
    assert evaluate_popularity(dataset, num_neg_test=num_neg_test, ties=ties, **options) == (
        pytest.approx((of_ranks(by_popularity, ndcg_at(10)), of_ranks(by_popularity, hit_at(10))))
    )
    seed = options.pop("seed")
    first, second = (evaluate(model, dataset, s, ties=ties, **options) for s in (seed, seed + 1))
    repeated = evaluate_repeated(model, dataset, 2, seed, ties=ties, **options)
    assert repeated.ndcg_mean == pytest.approx((first[0] + second[0]) / 2)
    assert repeated.hr_std == pytest.approx(abs(first[1] - second[1]) / math.sqrt(2))


class Remainders(SimpleNamespace):
    """A model whose scores by vectors are small integers, with many ties."""

    device = torch.device("cpu")
    user_embedding_layer = None
    compressed = None
    training = False
    item_num = NUM_ITEMS
    seq_max_len = 4

    def __init__(self):
        weight = torch.zeros(NUM_ITEMS + 1, 4)
        scores = SimpleNamespace(scale=lambda rows: None, backend="auto")
        super().__init__(output_table=lambda: weight, scores=scores)
        for item in range(1, NUM_ITEMS + 1):
            weight[item] = torch.tensor([by_remainder(user, item) for user in range(4)])

    def eval(self): ...
    def train(self, mode): ...

    def user_vectors(self, users, mean):
        return None

    def encode_last(self, batch, user_vectors):
        return torch.eye(4)[batch.users % 4], torch.zeros(len(batch.users))


@FUZZ
@given(
    HISTORIES,
    st.sampled_from(["valid", "test"]),
    TIES,
    st.booleans(),
    st.lists(st.integers(1, 12) | st.just(2**62), min_size=1, max_size=3),
)
def test_metrics_over_the_catalogue_are_those_of_a_loop(histories, split, ties, exclude_seen, ks):
    dataset = make_dataset(histories, NUM_ITEMS)
    ranks = []
    for user, history, answer, _ in held_out(dataset, split):
        hidden = {answer} | (set(history) if exclude_seen else set())
        others = [by_remainder(user, i) for i in range(1, NUM_ITEMS + 1) if i not in hidden]
        ranks.append(ranks_among(by_remainder(user, answer), others, ties))
    if not ranks:
        with pytest.raises(ValueError, match="no user"):
            evaluate_full(Remainders(), dataset, ks, split=split)
        return

    metrics = evaluate_full(Remainders(), dataset, ks, exclude_seen, split, 3, ties)

    assert metrics.num_users == len(ranks)
    for k in ks:
        assert metrics.hr[k] == pytest.approx(of_ranks(ranks, hit_at(k)))
        assert metrics.ndcg[k] == pytest.approx(of_ranks(ranks, ndcg_at(k)))
        assert metrics.map[k] == pytest.approx(of_ranks(ranks, lambda r, k=k: (r < k) / (r + 1)))
    assert metrics.mrr == pytest.approx(of_ranks(ranks, lambda rank: 1 / (rank + 1)))


ANYTHING = (
    st.integers(-(10**25), 10**25)
    | st.sampled_from([2**31, 2**62, 2**63 - 1, 2**64])
    | st.floats()
    | st.text(max_size=3)
    | st.none()
    | st.booleans()
    | st.lists(st.integers(0, 3), max_size=2)
    | st.sampled_from([np.int64(2), np.float64(2), torch.tensor(2), torch.ones(2), {}, b"test"])
)


@pytest.mark.filterwarnings("ignore::UserWarning")
@FUZZ
@given(
    st.sampled_from(
        ["seed", "eval_batch_size", "exclude", "split", "ties", "max_users", "ks", "exclude_seen"]
    ),
    ANYTHING,
)
def test_a_senseless_argument_is_named(name, value):
    dataset = make_dataset({1: [1, 2, 3, 4], 2: [4, 3, 2, 1]}, NUM_ITEMS)
    full = Remainders()
    sampled = Stub(lambda batch, items: items.double(), item_num=NUM_ITEMS, num_neg_test=3)
    calls = [lambda: evaluate_full(full, dataset, **{name: value})]
    if name in ("seed", "exclude", "max_users"):
        calls = []
    if name not in ("ks", "exclude_seen"):
        calls.append(lambda: evaluate(sampled, dataset, **{name: value}))

    for call in calls:
        _, error = outcome_of(call)
        assert error is None or name in error
