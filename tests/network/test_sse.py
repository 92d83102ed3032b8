"""SSE: which ids are replaced, by what, and where the model uses it."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from support.factories import tiny_model

from ssept_ext import SASREC, SSEPT, PackedBatch
from ssept_ext.network.sse import SSE, replace_ids
from ssept_ext.ops import reference

NUM_USERS, NUM_ITEMS = 9, 50
SEED = torch.tensor([2**40 + 17])


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


def random_words(row, site):
    """Four words of 32 random bits, as numbers."""
    counter = tuple(torch.tensor(x) for x in (row, 0, 0, site))
    key = (SEED[0] & 0xFFFFFFFF, SEED[0] >> 32)
    return [int(word) for word in reference.philox4x32_10(counter, key)]


def scaled(word, largest):
    return 1 + int(word / 2**32 * largest)


def replaced_by_a_loop(batch, sse):
    """Users, items and positives, sequence by sequence from the newest event on, as the authors' sampler goes."""
    users, items, positives = (x.tolist() for x in (batch.users, batch.items, batch.positives))
    bounds = batch.cu_seqlens.tolist()
    for b, (first, end) in enumerate(pairwise(bounds)):
        hit, drawn, *_ = random_words(b, 0xFFFFFFFE)
        if hit < sse.user_prob * 2**32:
            users[b] = scaled(drawn, NUM_USERS)
        following = None  # what the event before has as its target
        for n in reversed(range(first, end)):
            words = random_words(n, 0xFFFFFFFF)
            target = positives[n] if following is None else following
            following = None
            if words[0] < sse.item_prob * 2**32:
                items[n] = scaled(words[1], NUM_ITEMS)
                if sse.joint:
                    target = scaled(words[2], NUM_ITEMS)
                    following = items[n]
            if not sse.joint and words[2] < sse.target_prob * 2**32:
                target = scaled(words[3], NUM_ITEMS)
            positives[n] = target
    return users, items, positives


@pytest.mark.parametrize(
    "sse",
    [
        SSE(user_prob=0.5),
        SSE(item_prob=0.5),
        SSE(target_prob=0.5),
        SSE(0.9, 0.3, 0.6),
        SSE(item_prob=0.5, joint=True),
        SSE(0.9, 1.0, joint=True),
    ],
    ids=str,
)
def test_ids_are_replaced_as_by_a_plain_loop(sse):
    batch = make_batch(lengths=(5, 1, 0, 7, 3) * 8)

    got = replace_ids(batch, sse, NUM_USERS, NUM_ITEMS, SEED)

    expected = replaced_by_a_loop(batch, sse)
    assert (got.users.tolist(), got.items.tolist(), got.positives.tolist()) == expected
    assert expected != tuple(x.tolist() for x in (batch.users, batch.items, batch.positives))
    assert got.negatives is batch.negatives


def test_joint_replacement_gives_the_event_before_the_replaced_input_as_its_target():
    batch = make_batch(lengths=(400,))

    got = replace_ids(batch, SSE(item_prob=0.3, joint=True), 0, 2**31 - 1, SEED)

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
    sse = SSE(0.2, 0.3, 0.0 if joint else 0.4, joint)

    got = replace_ids(batch, sse, NUM_USERS, NUM_ITEMS, SEED)

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

    got = replace_ids(batch, SSE(item_prob=1.0, joint=True), NUM_USERS, NUM_ITEMS, SEED)

    same = (got.items == got.positives).double().mean().item()
    assert same == pytest.approx(1 / NUM_ITEMS, abs=0.01)


@pytest.mark.parametrize("joint", [False, True])
def test_no_user_and_no_target_stay(joint):
    batch = make_batch()
    batch = replace(batch, users=batch.users * 0, positives=batch.positives * 0)

    got = replace_ids(batch, SSE(1.0, 1.0, 0.0 if joint else 1.0, joint), 9, NUM_ITEMS, SEED)

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
    sse = SSE(0.5, 0.5, joint=True)

    got = replace_ids(padded, sse, NUM_USERS, NUM_ITEMS, SEED)

    expected = replace_ids(batch, sse, NUM_USERS, NUM_ITEMS, SEED)
    assert torch.equal(got.items[:-6], expected.items)
    assert torch.equal(got.positives[:-6], expected.positives)


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
    replaced = replace_ids(batch, SSE(0.5, 0.3, 0.4), NUM_USERS, NUM_ITEMS, seed)

    torch.manual_seed(5)
    logits = model.sampled_logits(batch)

    assert not torch.equal(logits, plain.sampled_logits(batch))
    assert torch.equal(logits, plain.sampled_logits(replaced))  # the user drawn scores, too


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
