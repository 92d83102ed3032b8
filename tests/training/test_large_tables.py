"""Tables with their rows spread over two and over four processes, against models that hold them whole."""

import re
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support.checkpoints import named
from support.factories import perturbed, tiny_model
from support.processes import processes
from support.raw_ids import SIZES, interactions, rows

from ssept_ext import SASREC, SSEPT, WarpSampler, distributed
from ssept_ext.data.packed import pack
from ssept_ext.data.synthetic import synthetic

pytest.importorskip("torchrec")

pytestmark = pytest.mark.usefixtures("_one_thread")

ROOT = Path(__file__).resolve().parents[2]

SHAPE = {"item_num": 480, "user_num": 41, "ffn_dim": 8}  # as of the data
WIDTHS = {"item_embedding_dim": 6, "user_embedding_dim": 4}  # one is no multiple of 4

# Arguments of the model, of the sampler and of the training.
CASES = {
    "bce, with SSE": (
        {**WIDTHS, "sse_user_prob": 0.5, "sse_item_prob": 0.3, "sse_joint": True},
        {"num_negatives": 2},
        {},
    ),
    "gbce, by a schedule": (WIDTHS, {}, {"loss": "gbce", "schedule": "cosine", "warmup_steps": 2}),
    "sampled softmax by popularity, clipped": (
        WIDTHS,
        {"num_negatives": 3, "popularity_exponent": 0.75},
        {"loss": "sampled_softmax", "max_grad_norm": 0.01},
    ),
    "SASREC, bpr, with items that are not in the data": (
        {"kind": SASREC, "embedding_dim": 6, "item_num": 900},
        {},
        {"loss": "bpr"},
    ),
    "bce, with negatives that a sequence shares": (
        WIDTHS,
        {"num_negatives": 5, "negatives_per": "sequence"},
        {},
    ),
    "bfloat16": (WIDTHS, {}, {"precision": "bf16"}),
}


EVENTS = {f"user {u}": [f"i{i}" for i in range(u, u + 6)] for u in range(12)}
ASKED = {"user 3": ["i3"], "a stranger": ["i1", "i2"]}


def make_dataset():
    return synthetic(num_users=41, min_events=4, max_events=20)


def make_model(case):
    """A model with whole tables, of values that are far from 0, as their gradients are then."""
    torch.manual_seed(0)
    model = perturbed(tiny_model(**{**SHAPE, **CASES[case][0]}))
    with torch.no_grad():
        for table in model.lookup_tables().values():
            table[0] = 0
    return model


def sharded_class(case):
    from ssept_ext.large_tables import ShardedSASREC, ShardedSSEPT

    return ShardedSASREC if "SASREC" in case else ShardedSSEPT


def train(model, case):
    """Two epochs of two steps."""
    _, sampler_arguments, options = CASES[case]
    dataset = make_dataset()
    sizes = (dataset.usernum, dataset.itemnum, 20, 6)
    torch.manual_seed(1)
    with WarpSampler(dataset.user_train, *sizes, seed=3, **sampler_arguments) as sampler:
        history = model.train_model(
            dataset,
            sampler,
            2,
            20,
            0.1,
            verbose=False,
            table_optimizer="rowwise_adagrad",
            **options,
        )
    return history["loss"]


def figures(model):
    """All that a model says of users and items, which must be the same to the last bit."""
    dataset = make_dataset()
    found = {
        "test": model.evaluate(dataset, seed=0, eval_batch_size=3),
        "valid": model.evaluate_valid(dataset, seed=5),
        "full": astuple(model.evaluate_full(dataset, ks=(1, 10, 100))),
        "full, with seen items": astuple(model.evaluate_full(dataset, exclude_seen=False)),
        "user_state": model.user_state([3, 5], user=7).tolist(),
    }
    for name, options in {
        "best": {"k": 7},
        "all": {"k": 10**6, "users": [3, 9], "exclude_seen": False},
        "among some": {"candidates": [1, 100, 200, 2, 480], "k": 4},
    }.items():
        items, scores = model.recommend(dataset, **options)
        found[name] = (items.tolist(), scores.tolist())
    with torch.no_grad():
        seq = torch.tensor([[0, 0, 3, 5, 7, 480]])
        inputs = {"input_seq": seq, "candidate": torch.tensor([[480, 1, 7, 1]]), "user": [[9]]}
        found["predict"] = model.predict(inputs).tolist()
        batch = pack(torch.tensor([9]), seq, seq.roll(1), seq.roll(2))
        found["logits"] = model.sampled_logits(batch, training=False).tolist()
    return found


def message_of(error, function):
    with pytest.raises(error) as caught:
        function()
    return str(caught.value)


def work(folder):
    """What each process does, and keeps for the tests to look at."""
    torch.set_num_threads(1)
    folder, results = Path(folder), {"losses": {}, "figures": {}}
    with distributed.process_group(torch.device("cpu"), 60):
        rank = dist.get_rank()
        for case in CASES:
            start, end = folder / f"{case} before", folder / f"{case} after"
            if rank == 0:
                make_model(case).save_pretrained(start)
            dist.barrier()
            model = sharded_class(case).from_pretrained(start)
            model.save_pretrained(folder / f"{case} again")
            results["losses"][case] = train(model, case)
            results["figures"][case] = figures(model)
            model.save_pretrained(end)
        (folder / "foreign").mkdir(exist_ok=True)
        (folder / "foreign" / "config.json").write_text("{}")
        dist.barrier()
        results["foreign"] = message_of(
            FileExistsError, lambda: model.save_pretrained(folder / "foreign")
        )
        fresh = sharded_class("").fit(
            interactions(EVENTS), **SIZES, table_optimizer="rowwise_adagrad", num_epochs=1
        )
        fresh.save_pretrained(folder / "fitted")
        results["other users"] = message_of(
            ValueError, lambda: model.recommend({1: [3], 2: [4]}, users=[1 + rank % 2])
        )
        torch.manual_seed(rank)
        results["fresh"] = tiny_model(sharded_class(""), **SHAPE, **WIDTHS).state_dict()
        results["fitted"] = rows(fresh.recommend(ASKED, k=3))
    torch.save(results, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of three processes, which cannot share the 481 rows of the items evenly."""
    folder = tmp_path_factory.mktemp("sharded")
    code = f"import test_large_tables as t; t.work({str(folder)!r})"
    with processes(3, code, folder) as started:
        assert [process.wait(timeout=240) for process in started] == [0, 0, 0]
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(3)]


@pytest.mark.parametrize("case", CASES)
def test_training_is_that_of_whole_tables(results, case):
    folder, everywhere = results
    model = make_model(case)
    before = {name: x.clone() for name, x in model.state_dict().items()}

    losses = train(model, case)

    trained = SASREC.from_pretrained(folder / f"{case} after").state_dict()
    rounds = case == "bfloat16"  # otherwise in parts of a batch: the parameters are soon far apart
    for result in everywhere:
        assert result["losses"][case] == pytest.approx(losses, rel=1e-3 if rounds else 1e-5)
    for name, x in model.state_dict().items():
        if not rounds:
            torch.testing.assert_close(trained[name], x, rtol=1e-3, atol=1e-3, msg=name)
        if name in model.lookup_tables():
            assert not torch.equal(trained[name], before[name]), name


@pytest.mark.parametrize("case", CASES)
def test_figures_are_those_of_one_process_with_the_same_tables(results, case):
    folder, everywhere = results
    kind = SASREC if "SASREC" in case else SSEPT

    expected = figures(kind.from_pretrained(folder / f"{case} after"))

    for result in everywhere:
        assert result["figures"][case] == expected


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_saved_as_one_process_saves_it(results, case):
    folder, _ = results

    before, again = folder / f"{case} before", folder / f"{case} again"

    assert (again / "config.json").read_bytes() == (before / "config.json").read_bytes()
    assert named(again).read_bytes() == named(before).read_bytes()


def test_a_folder_that_cannot_be_written_is_an_error_in_all_processes(results):
    _, everywhere = results

    assert {result["foreign"] for result in everywhere} == {everywhere[0]["foreign"]}
    assert "is not of a checkpoint that this version can replace" in everywhere[0]["foreign"]


def test_processes_that_ask_for_other_users_are_told_so(results):
    _, everywhere = results

    for result in everywhere:
        assert result["other users"].startswith("histories must be the same in every process, got")


def test_a_new_model_is_the_same_in_all_processes(results):
    _, everywhere = results

    for name, x in everywhere[0]["fresh"].items():
        assert all(torch.equal(result["fresh"][name], x) for result in everywhere), name


def test_unknown_users_of_a_fitted_model_get_the_mean_of_all(results):
    folder, everywhere = results

    expected = rows(SSEPT.from_pretrained(folder / "fitted").recommend(ASKED, k=3))

    for result in everywhere:
        for found, wanted in zip(result["fitted"], expected, strict=True):
            assert found[:2] == wanted[:2]
            assert found[2] == pytest.approx(wanted[2], rel=1e-5)


def test_the_script_of_the_documentation_runs(tmp_path):
    page = (ROOT / "docs" / "large_tables.md").read_text()
    script = re.search("```python\n(# Under torchrun.*?)```", page, re.S)[1]
    lines = [f"{u},{'abcdefghi'[(u + t) % 9]},{t}\n" for u in range(20) for t in range(6)]
    (tmp_path / "events.csv").write_text("".join(["user,item,timestamp\n", *lines]))
    code = script.replace("num_epochs=20", "num_epochs=1")
    assert code != script

    with processes(2, code, tmp_path) as started:
        assert [process.wait(timeout=240) for process in started] == [0, 0]
        answers = [process.output for process in started]

    assert answers[0] == answers[1]
    assert "FullMetrics(num_users=20" in answers[0]
    assert SSEPT.from_pretrained(tmp_path / "model").item_num == 9


@pytest.fixture
def _alone():
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded(**arguments):
    from ssept_ext.large_tables import ShardedSSEPT

    return tiny_model(ShardedSSEPT, **{**SHAPE, **WIDTHS, **arguments})


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize(("init", "limit"), [("uniform", 0.05), ("xavier", (6 / (481 + 6)) ** 0.5)])
def test_tables_start_as_those_of_a_model_with_whole_ones(tmp_path, init, limit):
    sharded(embedding_init=init).save_pretrained(tmp_path)

    state = SSEPT.from_pretrained(tmp_path).state_dict()

    table = state["item_embedding_layer.weight"]
    assert table[0].eq(0).all()
    assert 0.9 * limit < table.abs().max() <= limit
    assert table[1:].std() == pytest.approx(limit / 3**0.5, rel=0.1)
    assert not torch.equal(table[1:42, :4], state["user_embedding_layer.weight"][1:])
    assert state["encoder.enc_layers.0.mha.Q.weight"].std() > 0.1


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ({}, {}, 'table_optimizer must be "rowwise_adagrad" for sharded tables, got "adam"'),
        ({}, {"table_optimizer": "lazy_adam"}, '"rowwise_adagrad" for sharded .* got "lazy_adam"'),
        (
            {"l2_reg": 0.1},
            {"table_optimizer": "rowwise_adagrad"},
            "l2_reg must be 0 for sharded tables, .*, got 0.1",
        ),
    ],
)
def test_what_sharded_tables_cannot_do_is_refused(arguments, options, message):
    model, dataset = sharded(**arguments), make_dataset()

    with (
        WarpSampler(dataset.user_train, dataset.usernum, dataset.itemnum, 20, 6) as sampler,
        pytest.raises(ValueError, match=message),
    ):
        model.train_model(dataset, sampler, verbose=False, **options)


@pytest.mark.usefixtures("_alone")
def test_a_second_table_of_items_is_refused():
    with pytest.raises(ValueError, match="tie_item_embeddings must be True for tables .*False"):
        sharded(tie_item_embeddings=False)


@pytest.mark.usefixtures("_alone")
def test_a_model_that_is_not_where_its_tables_are_is_refused():
    model, dataset = sharded().to("meta"), make_dataset()

    with (
        WarpSampler(dataset.user_train, dataset.usernum, dataset.itemnum, 20, 6) as sampler,
        pytest.raises(ValueError, match="device must be cpu, .*, got meta"),
    ):
        model.train_model(dataset, sampler, table_optimizer="rowwise_adagrad")


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize(
    ("method", "arguments"),
    [("item_vectors", ()), ("similar_items", ([3],)), ("state_dict_for_recommenders", ())],
)
def test_methods_that_need_whole_tables_say_so(method, arguments):
    with pytest.raises(RuntimeError, match="the item table is spread over 1 processes, and this"):
        getattr(sharded(), method)(*arguments)


@pytest.mark.usefixtures("_alone")
def test_gradients_are_not_lost_silently():
    seq = torch.tensor([[0, 0, 3, 5, 7, 480]])
    batch = pack(torch.tensor([9]), seq, seq.roll(1), seq.roll(2))

    with pytest.raises(RuntimeError, match="sharded tables have gradients only in train_model"):
        sharded().training_loss(batch)


@pytest.mark.usefixtures("_alone")
def test_a_folder_of_another_class_is_refused(tmp_path):
    from ssept_ext.large_tables import ShardedSASREC, ShardedSSEPT

    make_model("SASREC, bpr, with items that are not in the data").save_pretrained(tmp_path)

    assert isinstance(ShardedSASREC.from_pretrained(tmp_path), ShardedSASREC)
    with pytest.raises(ValueError, match="holds a SASREC, not a SSEPT"):
        ShardedSSEPT.from_pretrained(tmp_path)


@pytest.mark.usefixtures("_alone")
def test_a_model_in_half_precision_is_widened(tmp_path):
    model = make_model("bce, with SSE").half()
    model.save_pretrained(tmp_path)
    from ssept_ext.large_tables import ShardedSSEPT

    wide = ShardedSSEPT.from_pretrained(tmp_path)

    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    first, rows_of_items = wide.shards()["item_embedding_layer.weight"]
    assert first == 0
    np.testing.assert_array_equal(
        rows_of_items.numpy(), model.item_embedding_layer.weight.detach().float().numpy()
    )


@pytest.mark.usefixtures("_alone")
def test_a_process_without_rows_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 4)

    with pytest.raises(ValueError, match="user_num must leave rows for each of 4 processes, got 4"):
        sharded(user_num=4)


def test_without_a_process_group_no_table_is_made():
    with pytest.raises(RuntimeError, match="sharded tables need a process group: start the"):
        sharded()
