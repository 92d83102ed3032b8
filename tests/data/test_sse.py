"""SSE: which ids are replaced, by what, and where the model uses it."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from support.factories import tiny_model

from ssept_ext import SASREC, SSEPT, PackedBatch, _extension
from ssept_ext.data.packed import Tables, number_rows
from ssept_ext.data.sse import SSE, replace_ids
from ssept_ext.utils.philox import philox_key

NUM_USERS, NUM_ITEMS = 9, 50
SEED = 2**40 + 17


@pytest.fixture(params=["native", "numpy"], autouse=True)
def implementation(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(SSE, "native", lambda _: None)
    elif _extension.native is None:
        pytest.skip("needs the compiled extension")


def sse_of(user_prob=0.0, item_prob=0.0, target_prob=0.0, joint=False, **sizes):
    sizes = {"user_num": NUM_USERS, "item_num": NUM_ITEMS} | sizes
    return SSE(user_prob, item_prob, target_prob, joint, **sizes)


def make_batch(lengths=(5, 1, 0, 7, 3), num_negatives=1):
    """Sequences of these lengths in which every target is the next item, as the sampler makes them."""
    generator = torch.Generator().manual_seed(0)
    events = [
        torch.randint(1, NUM_ITEMS + 1, (length + 1,), generator=generator) for length in lengths
    ]
    items = torch.cat([row[:-1] for row in events])
    return PackedBatch(
        users=torch.randint(1, NUM_USERS + 1, (len(lengths),), generator=generator),
        items=items,
        positions=torch.cat([torch.arange(10 - length, 10) for length in lengths]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_seqlen=max(lengths),
        positives=torch.cat([row[1:] for row in events]),
        negatives=torch.randint(1, NUM_ITEMS + 1, (len(items), num_negatives), generator=generator),
    )


def halves(number, domain):
    """Two random numbers in [0, 1) that belong to a user (domain 1), an input (2) or a target (3)."""
    key = np.array(philox_key(SEED), np.uint64)
    stream = np.random.Philox(key=key, counter=[0, 0, domain, 0])
    word = int(stream.random_raw(number + 1)[-1])
    return word // 2**32 / 2**32, word % 2**32 / 2**32


def scaled(uniform, largest):
    return 1 + int(uniform * largest)


def replaced_by_a_loop(batch, sse):
    """Users, items and positives, sequence by sequence from the newest event on, as the authors' sampler goes."""
    users, items, positives = (x.tolist() for x in (batch.users, batch.items, batch.positives))
    bounds = batch.cu_seqlens.tolist()
    for b, (first, end) in enumerate(pairwise(bounds)):
        hit, drawn = halves(b, 1)
        if hit < sse.user_prob:
            users[b] = scaled(drawn, NUM_USERS)
        following = None  # what the event before has as its target
        for n in reversed(range(first, end)):
            hit, drawn = halves(n, 2)
            target = positives[n] if following is None else following
            following = None
            target_hit, target_drawn = halves(n, 3)
            if hit < sse.item_prob:
                items[n] = scaled(drawn, NUM_ITEMS)
                if sse.joint:
                    target = scaled(target_drawn, NUM_ITEMS)
                    following = items[n]
            if not sse.joint and target_hit < sse.target_prob:
                target = scaled(target_drawn, NUM_ITEMS)
            positives[n] = target
    return users, items, positives


@pytest.mark.parametrize(
    "sse",
    [
        sse_of(user_prob=0.5),
        sse_of(item_prob=0.5),
        sse_of(target_prob=0.5),
        sse_of(0.9, 0.3, 0.6),
        sse_of(item_prob=0.5, joint=True),
        sse_of(0.9, 1.0, joint=True),
    ],
    ids=str,
)
def test_ids_are_replaced_as_by_a_plain_loop(sse):
    batch = make_batch(lengths=(5, 1, 0, 7, 3) * 8)

    got = replace_ids(batch, sse, SEED)

    expected = replaced_by_a_loop(batch, sse)
    assert (got.users.tolist(), got.items.tolist(), got.positives.tolist()) == expected
    assert expected != tuple(x.tolist() for x in (batch.users, batch.items, batch.positives))
    assert got.negatives is batch.negatives
    assert got.ids_replaced


def test_joint_replacement_gives_the_event_before_the_replaced_input_as_its_target():
    batch = make_batch(lengths=(400,))

    got = replace_ids(batch, sse_of(item_prob=0.3, joint=True, item_num=2**31 - 1), SEED)

    hit = got.items > NUM_ITEMS  # what is drawn is almost surely a new item
    before = hit[1:] & ~hit[:-1]
    assert before.sum() > 50
    assert torch.equal(got.positives[:-1][before], got.items[1:][before])
    assert (got.positives[hit] > NUM_ITEMS).all()
    untouched = ~hit[:-1] & ~hit[1:]
    assert torch.equal(got.positives[:-1][untouched], batch.positives[:-1][untouched])


@pytest.mark.parametrize("joint", [False, True])
def test_replacing_is_as_frequent_as_asked_and_uniform(joint):
    batch = make_batch(lengths=(1,) * 40_000)
    batch = replace(batch, users=torch.full_like(batch.users, NUM_USERS + 1))
    batch = replace(
        batch, **{name: torch.full((40_000,), NUM_ITEMS + 1) for name in ("items", "positives")}
    )
    sse = sse_of(0.2, 0.3, 0.0 if joint else 0.4, joint)

    got = replace_ids(batch, sse, SEED)

    for drawn, largest, probability in (
        (got.users, NUM_USERS, 0.2),
        (got.items, NUM_ITEMS, 0.3),
        (got.positives, NUM_ITEMS, 0.3 if joint else 0.4),
    ):
        counts = drawn.bincount(minlength=largest + 2)
        assert counts[0] == 0
        expected = 40_000 * torch.tensor([probability / largest] * largest + [1 - probability])
        statistic = ((counts[1:] - expected) ** 2 / expected).sum().item()
        assert statistic < largest + 5 * (2 * largest) ** 0.5


def test_joint_replacements_of_input_and_target_are_independent():
    batch = make_batch(lengths=(1,) * 5000)

    got = replace_ids(batch, sse_of(item_prob=1.0, joint=True), SEED)

    same = (got.items == got.positives).double().mean().item()
    assert same == pytest.approx(1 / NUM_ITEMS, abs=0.01)


@pytest.mark.parametrize("joint", [False, True])
def test_no_user_and_no_target_stay(joint):
    batch = make_batch()
    batch = replace(batch, users=batch.users * 0, positives=batch.positives * 0)

    got = replace_ids(batch, sse_of(1.0, 1.0, 0.0 if joint else 1.0, joint), SEED)

    assert not got.users.any()
    assert not got.positives.any()
    assert (got.items > 0).all()


def test_spare_capacity_changes_nothing_about_the_tokens():
    batch = make_batch()
    spare = torch.full((6,), 7)
    padded = replace(
        batch,
        items=torch.cat([batch.items, spare]),
        positives=torch.cat([batch.positives, spare]),
    )
    sse = sse_of(0.5, 0.5, joint=True)

    got = replace_ids(padded, sse, SEED)

    expected = replace_ids(batch, sse, SEED)
    assert torch.equal(got.items, torch.cat([expected.items, spare]))
    assert torch.equal(got.positives, torch.cat([expected.positives, spare]))


def test_a_batch_is_replaced_in_a_copy():
    batch = make_batch()
    before = [x.clone() for x in (batch.users, batch.items, batch.positives)]

    replace_ids(batch, sse_of(1.0, 1.0, joint=True), SEED)

    assert all(map(torch.equal, (batch.users, batch.items, batch.positives), before))


def test_a_seed_may_be_negative():
    batch, sse = make_batch(), sse_of(1.0, 1.0, joint=True)

    assert not torch.equal(replace_ids(batch, sse, -1).items, replace_ids(batch, sse, 1).items)


@pytest.mark.parametrize(
    "offsets", [[0, 5, 6, 6, 13, 17], [1, 5, 6, 6, 13, 16], [0, 6, 5, 6, 13, 16], [0, 5, 16], []]
)
def test_offsets_that_do_not_fit_the_tokens_are_refused(offsets):
    batch = replace(make_batch(), cu_seqlens=torch.tensor(offsets, dtype=torch.int32))

    with pytest.raises(ValueError, match="cu_seqlens must be 6 offsets .* from 0 to at most 16"):
        replace_ids(batch, sse_of(0.5, 0.5, joint=True), SEED)


def make_model(kind=SSEPT, **arguments):
    sizes = {"item_num": NUM_ITEMS, "user_num": NUM_USERS, "seq_max_len": 10}
    model = tiny_model(kind, **sizes, embedding_dim=6, user_embedding_dim=4, **arguments)
    torch.nn.init.normal_(model.item_embedding_layer.weight)  # or all logits are nearly equal
    return model


PROBABILITIES = {"sse_user_prob": 0.5, "sse_item_prob": 0.3, "sse_target_prob": 0.4}


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_the_model_trains_on_the_replaced_batch(backend):
    batch = make_batch()
    model = make_model(backend=backend, **PROBABILITIES)
    plain = make_model(backend=backend)
    plain.load_state_dict(model.state_dict())
    torch.manual_seed(5)
    seed = torch.randint(2**63 - 1, (1,))
    replaced = replace_ids(batch, sse_of(0.5, 0.3, 0.4), int(seed))

    torch.manual_seed(5)
    logits = model.sampled_logits(batch)

    assert not torch.equal(logits, plain.sampled_logits(batch))
    assert torch.equal(logits, plain.sampled_logits(replaced))  # the user drawn scores, too
    assert torch.equal(logits, model.sampled_logits(replaced))  # and nothing is replaced twice


def test_backends_replace_the_same_ids():
    batch = make_batch()
    logits = []
    for backend in ("reference", "auto"):
        torch.manual_seed(3)
        model = make_model(backend=backend, **PROBABILITIES)
        logits.append(model.sampled_logits(batch))

    torch.testing.assert_close(*logits)


@pytest.mark.parametrize("mode", ["eval", "training=False", "score"])
def test_nothing_is_replaced_outside_training(mode):
    batch = make_batch(lengths=(5, 1, 7))
    model = make_model(sse_user_prob=1.0, sse_item_prob=1.0, sse_target_prob=1.0)
    plain = make_model()
    plain.load_state_dict(model.state_dict())

    if mode == "score":
        candidates = torch.randint(1, NUM_ITEMS + 1, (3, 4))
        got, expected = model.score(batch, candidates), plain.score(batch, candidates)
    elif mode == "eval":
        got, expected = model.eval().sampled_logits(batch), plain.sampled_logits(batch)
    else:
        got, expected = model.sampled_logits(batch, training=False), plain.sampled_logits(batch)

    assert torch.equal(got, expected)


def test_sasrec_replaces_items_and_has_no_users():
    model = make_model(SASREC, sse_item_prob=1.0, sse_joint=True)
    batch = make_batch()

    assert not torch.equal(model.sampled_logits(batch), model.sampled_logits(batch, training=False))
    with pytest.raises(TypeError, match='SASREC has no argument "sse_user_prob"'):
        make_model(SASREC, sse_user_prob=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sse_user_prob": 1.1}, r"sse_user_prob must be in \[0, 1\], got 1.1"),
        ({"sse_item_prob": -0.1}, r"sse_item_prob must be in \[0, 1\], got -0.1"),
        ({"sse_target_prob": float("nan")}, r"sse_target_prob must be in \[0, 1\], got nan"),
        (
            {"sse_item_prob": 0.1, "sse_target_prob": 0.1, "sse_joint": True},
            "sse_target_prob must be 0 with sse_joint, .* got 0.1",
        ),
    ],
)
def test_a_wrong_probability_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_model(**arguments)


def test_rows_of_a_batch_are_those_of_its_replaced_ids():
    sse = SSE(item_prob=1.0, item_num=NUM_ITEMS)
    numbered = number_rows(make_batch())

    rows = number_rows(replace_ids(numbered, sse, SEED))

    assert torch.equal(rows.numbers.item_ids[rows.numbers.items], rows.items)
    gathered = replace(numbered, tables=Tables(torch.zeros(1, 1)))
    with pytest.raises(ValueError, match="ids replaced before it is given tables"):
        replace_ids(gathered, sse, SEED)
