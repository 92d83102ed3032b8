"""The rows of tables that a batch reads, found by the sampler's threads."""

from dataclasses import replace

import pytest
import torch
from support.small_sampler import HISTORIES, NUM_ITEMS, make

from ssept_ext.data.packed import number_rows
from ssept_ext.data.sse import SSE

# Tables that are larger than what the sampler draws from.
SSE_OF_MORE = SSE(0.5, 0.5, target_prob=0.5, user_num=500, item_num=4000)


def assert_numbers_are_those_of_the_ids(batch):
    rows, ids = batch.numbers, batch
    assert torch.equal(rows.user_ids[rows.users], ids.users)
    for name in ("items", "positives", "negatives"):
        assert torch.equal(rows.item_ids[getattr(rows, name)], getattr(ids, name))
    of_items = torch.cat([ids.items, ids.positives, ids.negatives.flatten()])
    for distinct, of_batch in ((rows.item_ids, of_items), (rows.user_ids, ids.users)):
        assert distinct.tolist() == sorted({0, *of_batch.tolist()})


@pytest.mark.parametrize("negatives_per", ["event", "sequence", "batch"])
@pytest.mark.parametrize("num_negatives", [1, 3])
@pytest.mark.parametrize("sse", [SSE(), SSE_OF_MORE], ids=["", "replaced"])
def test_batches_have_the_rows_that_they_read(source, sse, num_negatives, negatives_per):
    with (
        make(num_negatives=num_negatives, negatives_per=negatives_per, n_workers=2) as sampler,
        sampler.replacing(sse),
        sampler.numbering_rows(),
    ):
        for _ in range(20):
            batch = sampler.next_packed()
            assert_numbers_are_those_of_the_ids(batch)
            assert_numbers_are_those_of_the_ids(number_rows(replace(batch, numbers=None)))


def test_only_batches_of_the_context_have_numbers_and_ids_stay_the_same(source):
    with make() as plain:
        expected = [plain.next_packed().items for _ in range(3)]

    with make() as sampler:
        before = sampler.next_packed()
        with sampler.numbering_rows():
            numbered = sampler.next_packed()
        after = sampler.next_packed()

    assert before.numbers is None
    assert numbered.numbers is not None
    assert after.numbers is None
    for batch, items in zip((before, numbered, after), expected, strict=True):
        assert torch.equal(batch.items, items)


def test_numbers_start_anew_with_each_batch(source):
    """Batches reuse memory."""
    with make(HISTORIES, NUM_ITEMS, batch_size=1) as sampler, sampler.numbering_rows():
        for _ in range(30):
            assert_numbers_are_those_of_the_ids(sampler.next_packed())
