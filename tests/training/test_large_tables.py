"""Tables with their rows spread over two processes, against a model that holds them whole."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.factories import model_for
from support.processes import two_processes

from ssept_ext import WarpSampler, distributed
from ssept_ext.data.synthetic import synthetic
from ssept_ext.training import data_parallel
from ssept_ext.training.step import eager_step

pytest.importorskip("torchrec")

LEARNING_RATE = 0.5


def make_model():
    dataset = synthetic(num_users=21, min_events=4, max_events=20)
    torch.manual_seed(0)
    model = model_for(
        dataset,
        item_embedding_dim=6,  # no multiple of 4
        user_embedding_dim=4,
        ffn_dim=8,
        sse_user_prob=0.5,
        sse_item_prob=0.3,
        sse_joint=True,
    )
    return model, dataset


def first_batch(dataset):
    sizes = (dataset.usernum, dataset.itemnum, 20, 6)
    with WarpSampler(dataset.user_train, *sizes, seed=3, num_negatives=2) as sampler:
        return sampler.next_packed()


def train_in_whole():
    """A step of SGD on the tables: the loss, all gradients, and the parameters before it."""
    model, dataset = make_model()
    loss = model.training_loss(first_batch(dataset), seed=torch.tensor([7]))
    loss.backward()
    before = {name: p.detach() for name, p in model.named_parameters()}
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}, before


def train_in_shards(folder):
    from ssept_ext.training.large_tables import ShardedTables, without_tables

    torch.set_num_threads(1)
    with distributed.process_group(torch.device("cpu"), 60):
        whole, dataset = make_model()
        state = whole.state_dict()
        tables = ShardedTables(whole.config, optimizer="sgd", learning_rate=LEARNING_RATE)
        drawn = {
            noun: torch.cat([rows.clone() for _, rows in tables.local_rows(noun)])
            for noun in tables.shards
        }
        for noun in tables.shards:
            table = state.pop(f"{noun}_embedding_layer.weight")
            for first, rows in tables.local_rows(noun):
                rows[:, : table.shape[1]] = table[first : first + len(rows)]
        model = without_tables(whole.config)
        fresh = {name: p.detach().clone() for name, p in model.named_parameters()}
        model.load_state_dict(state)
        loss = data_parallel.data_parallel(model, tables.loss(model))
        work = eager_step(torch.optim.SGD(model.parameters(), lr=0.0), loss)
        part = data_parallel.shard(first_batch(dataset), dist.get_rank(), 2)
        value = distributed.average(work(part, torch.tensor([7])))
        torch.save(
            {
                "loss": value,
                "gradients": {name: p.grad.clone() for name, p in model.named_parameters()},
                "rows": {noun: tables.local_rows(noun) for noun in tables.shards},
                "drawn": drawn,
                "fresh": fresh,
            },
            Path(folder) / f"{dist.get_rank()}.pt",
        )
        dist.barrier()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    code = f"import test_large_tables as t; t.train_in_shards({str(folder)!r})"
    with two_processes(code, folder) as processes:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_a_step_on_sharded_tables_is_that_on_whole_ones(results):
    loss, gradients, before = train_in_whole()

    for result in results:
        torch.testing.assert_close(result["loss"], loss)
        for name, gradient in result["gradients"].items():
            torch.testing.assert_close(gradient, gradients[name], msg=name)
    for noun in ("item", "user"):
        name = f"{noun}_embedding_layer.weight"
        width = before[name].shape[1]
        shards = [shard for result in results for shard in result["rows"][noun]]
        assert [first for first, _ in shards] == [0, len(shards[0][1])]
        after = torch.cat([rows for _, rows in shards])[:, :width]
        expected = before[name] - LEARNING_RATE * gradients[name]
        torch.testing.assert_close(after, expected)
        assert not torch.equal(after, before[name])


def test_sharded_tables_and_the_rest_are_drawn_as_the_model_draws_them(results):
    model, _ = make_model()

    for noun in ("item", "user"):
        drawn = [result["drawn"][noun] for result in results]
        rows = torch.cat(drawn)
        assert 0.04 < rows.abs().max() <= 0.05
        assert not torch.equal(drawn[0][:5], drawn[1][:5])
    for name, parameter in results[0]["fresh"].items():
        like = dict(model.named_parameters())[name].detach()
        assert parameter.shape == like.shape
        if like.unique().numel() == 1:  # of layer norms, and biases
            assert torch.equal(parameter, like), name
        else:
            assert parameter.std() == pytest.approx(like.std(), rel=0.5), name


@pytest.mark.parametrize(
    ("changes", "optimizer", "message"),
    [
        ({}, "adamw", "optimizer must be one of .*, got 'adamw'"),
        ({"l2_reg": 0.1}, "sgd", "l2_reg must be 0, .*, got 0.1"),
    ],
)
def test_what_sharded_tables_cannot_do_is_refused(changes, optimizer, message):
    from ssept_ext.training.large_tables import ShardedTables

    model, _ = make_model()
    config = replace(model.config, **changes)

    with pytest.raises(ValueError, match=message):
        ShardedTables(config, optimizer=optimizer, learning_rate=LEARNING_RATE)
