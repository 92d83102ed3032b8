"""Dropout is a function of (seed, site, row, column), the same bits everywhere."""

import pytest
import torch

from ssept_ext.ops.dropout import dropout, dropout_keep, philox4x32_10

# Known answers of Philox4x32-10, published with the Random123 library: counter, key, result.
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text):
    return tuple(torch.tensor(int(word, 16)) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_published_known_answers(counter, key, result):
    assert philox4x32_10(words(counter), words(key)) == words(result)


def test_the_kept_share_is_one_minus_p():
    keep = dropout_keep(torch.arange(1000), 1001, 0.3, torch.tensor([5]), 0)
    # Five standard deviations of a binomial of a million draws.
    assert abs(keep.double().mean() - 0.7) < 5 * (0.3 * 0.7 / keep.numel()) ** 0.5


def test_kept_elements_are_scaled_to_keep_the_mean():
    x = torch.ones(50, 7)
    y = dropout(x, 0.25, torch.tensor([1]), 0)
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}


def test_an_element_is_kept_or_not_whatever_rows_and_columns_surround_it():
    seed = torch.tensor([2**62 + 12345])
    whole = dropout_keep(torch.arange(9), 11, 0.5, seed, 3)
    part = dropout_keep(torch.tensor([4, 2]), 6, 0.5, seed, 3)
    assert torch.equal(part, whole[[4, 2], :6])


@pytest.mark.parametrize("change", ["seed", "site"])
def test_another_seed_or_site_gives_an_independent_mask(change):
    rows = torch.arange(500)
    seed, site = torch.tensor([7]), 1
    first = dropout_keep(rows, 64, 0.5, seed, site)
    seed, site = (seed + (1 << 40), site) if change == "seed" else (seed, 2)
    second = dropout_keep(rows, 64, 0.5, seed, site)
    assert abs((first == second).double().mean() - 0.5) < 5 * 0.5 / first.numel() ** 0.5


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_a_probability_outside_0_to_1_is_refused(p):
    with pytest.raises(ValueError, match=rf"dropout_p must be in \[0, 1\), got {p}"):
        dropout(torch.ones(2, 2), p, torch.tensor([1]), 0)


@pytest.mark.parametrize("seed", [None, torch.tensor([1.0]), torch.tensor([1, 2])])
def test_a_missing_or_malformed_seed_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be an int64 tensor of one element"):
        dropout(torch.ones(2, 2), 0.5, seed, 0)
