"""The synthetic data set: reproducible, and knowing the user helps."""

from itertools import pairwise

import pytest
import torch

from ssept_ext import SASREC, SSEPT, WarpSampler
from ssept_ext.data.synthetic import synthetic
from ssept_ext.evaluation.sampled import evaluate_popularity


def test_the_seed_makes_it_reproducible():
    assert synthetic(num_users=50, seed=3).User == synthetic(num_users=50, seed=3).User
    assert synthetic(num_users=50, seed=3).User != synthetic(num_users=50, seed=4).User


def test_sizes_are_as_asked():
    data = synthetic(num_users=300, num_clusters=4, num_tastes=3, items_per_taste=5, max_events=90)
    assert sorted(data.User) == list(range(1, 301))
    assert data.Items <= set(range(1, 61))
    assert {len(history) for history in data.User.values()} == set(range(80, 91))
    assert len(data.user_test[1]) == 1


def test_clusters_follow_the_cycle_and_items_the_users_taste_as_often_as_asked():
    data = synthetic(num_users=400, num_clusters=5, num_tastes=4, items_per_taste=1, loyalty=1.0)
    # Wholly loyal users with one item for each cluster and taste: five items a user, of a fixed order.
    followers = {}
    for history in data.User.values():
        assert len(set(history)) <= 5
        for item, following in pairwise(history):
            followers.setdefault(item, []).append(following)
    for following in followers.values():
        most_common = max(following.count(item) for item in set(following))
        assert 0.78 < most_common / len(following) < 0.90  # 0.8, and 0.2 / 5 by chance


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_users", 0),
        ("num_clusters", 1),
        ("min_events", 2),
        ("max_events", 79),
        ("regularity", 1.1),
        ("loyalty", float("nan")),
        ("seed", -1),
        ("num_users", 10**20),
    ],
)
def test_an_argument_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
        synthetic(**{name: value})


@pytest.mark.parametrize("name", ["num_users", "max_events", "num_clusters", "items_per_taste"])
def test_a_data_set_beyond_the_largest_id_is_refused_before_memory_is_taken(name):
    with pytest.raises(ValueError, match=rf"{name}.* must be at most {2**31 - 1}, got"):
        synthetic(**{name: 10**9 + 1} | ({"num_users": 3} if name == "max_events" else {}))


def ndcg_after_training(cls, data, **arguments):
    torch.manual_seed(0)
    model = cls(
        item_num=data.itemnum,
        seq_max_len=2,
        num_blocks=1,
        embedding_dim=32,
        dropout_rate=0.1,
        **arguments,
    )
    sampler = WarpSampler(
        data.user_train,
        data.usernum,
        data.itemnum,
        batch_size=128,
        maxlen=2,
        seed=0,
        window_sampling_prob=1.0,
    )
    with sampler:
        model.train_model(
            dataset=data, sampler=sampler, num_epochs=150, learning_rate=0.005, verbose=False
        )
    return model.evaluate(data, seed=1)[0]


def test_knowing_the_user_beats_not_knowing_and_both_beat_popularity():
    data = synthetic()
    popularity, _ = evaluate_popularity(data, seed=1)
    sasrec = ndcg_after_training(SASREC, data, conv_dims=[32, 32])
    ssept = ndcg_after_training(
        SSEPT, data, user_num=data.usernum, user_embedding_dim=16, conv_dims=[48, 48]
    )
    assert sasrec > popularity + 0.25
    assert ssept > sasrec + 0.04
