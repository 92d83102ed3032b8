"""The parts of a batch that processes train on."""

from dataclasses import replace

import pytest
import torch
from support.factories import model_for, random_batch

from ssept_ext import WarpSampler, distributed
from ssept_ext.data.packed import number_rows
from ssept_ext.data.sse import SSE, replace_ids
from ssept_ext.data.synthetic import synthetic
from ssept_ext.training import cuda_graph, data_parallel

pytestmark = pytest.mark.usefixtures("_one_thread")


def packed(*lengths):
    torch.manual_seed(0)
    batch = random_batch(*lengths, item_num=30, user_num=9, seq_max_len=100)
    return replace(batch, positives=batch.positives * (torch.rand(sum(lengths)) < 0.8))


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((3, 3, 3, 3), [[3], [3], [3], [3]]),
        ((1, 2, 3, 4, 5, 5), [[1, 2, 3], [4], [5], [5]]),
        ((97, 1, 1, 1, 1), [[97], [1], [1], [1, 1]]),
        ((1, 1, 1, 1, 97), [[1, 1], [1], [1], [97]]),
        ((0, 0, 0, 0), [[0], [0], [0], [0]]),
    ],
)
def test_parts_have_a_sequence_each_and_about_as_many_tokens(lengths, expected):
    parts = [data_parallel.shard(packed(*lengths), process, 4) for process in range(4)]

    assert [part.cu_seqlens.diff().tolist() for part in parts] == expected
    assert [part.max_seqlen for part in parts] == [max(group) for group in expected]
    assert all(part.cu_seqlens[0] == 0 for part in parts)


def test_the_shares_of_parts_are_those_of_their_targets():
    batch = packed(5, 1, 9, 3)

    parts = [data_parallel.shard(batch, process, 3) for process in range(3)]

    targets = int(batch.positives.count_nonzero())
    assert [part.target_share * targets for part in parts] == pytest.approx(
        [int(part.positives.count_nonzero()) for part in parts]
    )
    assert sum(part.target_share for part in parts) == pytest.approx(1)


@pytest.mark.parametrize("sse", [SSE(0.9, 0.5, 0, True, 9, 30), SSE(0.9, 0.5, 0.5, False, 9, 30)])
def test_ids_are_replaced_in_parts_as_in_the_whole_batch(sse):
    batch, seed = packed(5, 1, 9, 3), 7

    parts = [replace_ids(data_parallel.shard(batch, process, 3), sse, seed) for process in range(3)]

    whole = replace_ids(batch, sse, seed)
    for name in ("users", "items", "positives"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(whole, name)), name
        assert not torch.equal(joined, getattr(batch, name)), name


@pytest.mark.parametrize(("per", "rows"), [("sequence", 4), ("batch", 1)])
def test_parts_have_the_negatives_that_their_sequences_share(per, rows):
    batch = replace(packed(5, 1, 9, 3), negatives=torch.arange(1, 1 + 2 * rows).view(rows, 2))
    batch = number_rows(replace(batch, negatives_per=per))

    parts = [data_parallel.shard(batch, process, 3) for process in range(3)]

    joined = torch.cat([part.negatives_of_tokens() for part in parts])
    assert torch.equal(joined, batch.negatives_of_tokens())
    for part in parts:
        assert part.negatives.shape == (len(part.users) if per == "sequence" else 1, 2)
        assert torch.equal(part.numbers.item_ids[part.numbers.negatives], part.negatives)


def test_parts_have_the_times_of_their_tokens():
    times = torch.arange(18)
    batch = replace(packed(5, 1, 9, 3), times=times, target_times=times + 1)

    parts = [data_parallel.shard(batch, process, 3) for process in range(3)]

    assert torch.equal(torch.cat([part.times for part in parts]), times)
    assert torch.equal(torch.cat([part.target_times for part in parts]), times + 1)


def test_every_process_drops_out_by_a_seed_of_its_own():
    dataset = synthetic(num_users=20, min_events=4, max_events=20)
    model = model_for(dataset, dropout_rate=0.5).double()
    sizes = (dataset.usernum, dataset.itemnum, 20, 6)
    with WarpSampler(dataset.user_train, *sizes, seed=3) as sampler:
        part = data_parallel.shard(sampler.next_packed(), 0, 1)

    losses = [
        model.training_loss(replace(part, process=process), seed=torch.tensor([7])).item()
        for process in (0, 0, 1)
    ]

    assert losses[0] == losses[1] != losses[2]


def test_on_a_gpu_shared_steps_are_eager():
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])

    with pytest.warns(UserWarning, match="takes eager steps, because 2 processes share them"):
        step = cuda_graph.training_step(None, optimizer, torch.device("cuda"), 6, num_processes=2)

    assert not isinstance(step, cuda_graph.CudaGraphStep)


def test_other_errors_are_not_taken_for_lost_processes():
    with (
        pytest.raises(RuntimeError, match="shapes do not fit"),
        distributed.raise_if_peer_lost(),
    ):
        raise RuntimeError("shapes do not fit")
