"""Every argument of the sampler: it draws batches of that shape, or refuses it and names what it refuses."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssept_ext import WarpSampler, _extension

integers = st.sampled_from(
    [-(2**63), -1, 0, 1, 2, 7, 2**20, 2**31 - 1, 2**31, 2**62, 2**63, 2**64, 10**30, np.int64(3)]
)
floats = st.sampled_from([-math.inf, -1.0, -0.0, 1e-300, 0.5, 1.0, 2.0, math.inf, math.nan])
not_numbers = st.sampled_from([None, True, "3", "sequence", "batch", [1], 2.5, 1j, b"x"])
values = st.one_of(integers, floats, not_numbers)
histories = st.dictionaries(st.integers(1, 5), st.lists(st.integers(1, 9), max_size=6), max_size=4)
hostile_ids = st.one_of(st.sampled_from([0, -1, 2**31, 2**63, 10**30]), not_numbers)
NAMES = {
    "batch_size": 3,
    "maxlen": 4,
    "n_workers": 1,
    "seed": 0,
    "num_negatives": 1,
    "negatives_per": "event",
    "popularity_exponent": 0.0,
    "window_sampling_prob": 0.0,
    "usernum": 5,
    "itemnum": 12,
}


def refusal_of(given_histories, arguments):
    try:
        WarpSampler(given_histories, **arguments).close()
    except ValueError as error:
        return error
    return None


def assert_draws(given_histories, arguments):
    """Two batches of the right shapes."""
    with WarpSampler(given_histories, **arguments) as sampler:
        for users, seq, pos, neg in (sampler.next_batch(), sampler.next_batch()):
            shape = (int(arguments["batch_size"]), int(arguments["maxlen"]))
            assert users.shape == shape[:1]
            assert seq.shape == pos.shape == neg.shape[:2] == shape
            assert np.isin(users, list(given_histories)).all()
            assert ((neg > 0).reshape(*shape, -1) == (seq > 0)[..., None]).all()


# The same arguments on every run. None is as large as its limit allows: that would take the machine's memory.
@pytest.mark.filterwarnings("ignore:.*users are left out")
@pytest.mark.parametrize("native", [True, False])
@settings(max_examples=150)
@given(st.data())
def test_it_draws_or_names_what_it_refuses(native, data):
    given_histories = data.draw(histories)
    if given_histories and data.draw(st.booleans()):
        user = data.draw(st.sampled_from(sorted(given_histories)))
        given_histories[user] = [*given_histories[user], data.draw(hostile_ids)]
    changed = data.draw(st.lists(st.sampled_from(sorted(NAMES)), max_size=2, unique=True))
    arguments = {**NAMES, **{name: data.draw(values) for name in changed}}
    if arguments["itemnum"] in (2**31 - 1, 2**20) and arguments["popularity_exponent"] != 0:
        return
    sizes = [arguments[n] for n in ("batch_size", "maxlen", "num_negatives")]
    if (
        all(isinstance(x, (int, np.integer)) for x in sizes)
        and 10**6 < math.prod(map(int, sizes)) < 2**31
    ):
        return

    with pytest.MonkeyPatch.context() as patch:
        if not native:
            patch.setattr(_extension, "native", None)
        refusal = refusal_of(given_histories, arguments)
        if refusal is None:
            assert_draws(given_histories, arguments)
        else:
            named = (*NAMES, "User", "user", "item", "histories")
            assert any(name in str(refusal) for name in named), refusal
