"""`fit`: from events under raw ids to a trained model."""

import threading
from types import SimpleNamespace

import pytest
import torch
from support.interactions import of_rows
from support.raw_ids import HISTORIES, NUM_ITEMS, SIZES, interactions, rows

from ssept_ext import SASREC, SSEPT
from ssept_ext.checkpoint.training_state import load_training, save_training
from ssept_ext.training import recipe

pytestmark = pytest.mark.usefixtures("_one_thread")


def fit(**options):
    return SSEPT.fit(interactions(), **(SIZES | {"num_epochs": 2} | options))


def test_fit_is_reproducible_and_leaves_torch_s_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()

    first, second, other = fit(seed=1), fit(seed=1), fit(seed=2)

    assert torch.equal(torch.get_rng_state(), before)
    weights = [m.item_embedding_layer.weight for m in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def in_threads(*functions):
    """Call the functions at the same time and return their results."""
    results, start = [None] * len(functions), threading.Barrier(len(functions))

    def run(index):
        start.wait()
        results[index] = functions[index]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_fits_in_three_threads_are_each_what_one_alone_is():
    random = {"dropout_rate": 0.5, "sse_user_prob": 0.5, "num_epochs": 30}
    alone = fit(**random).state_dict()

    models = in_threads(*[lambda: fit(**random)] * 3)

    for model in models:
        assert all(torch.equal(model.state_dict()[name], alone[name]) for name in alone)


@pytest.mark.parametrize("seed", [-1, 10**20, 1.5, "x"])
def test_a_seed_that_no_generator_takes_is_named(seed):
    with pytest.raises(ValueError, match="^seed must be"):
        fit(seed=seed)


def test_a_seed_of_fit_draws_the_parameters_that_it_draws_for_torch(monkeypatch):
    class Derived(SSEPT):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            draws = [
                torch.rand(2),
                torch.randn(2),
                torch.randint(9, (2,)),
                torch.randint(3, 9, (2,)),
                torch.rand(2, generator=torch.Generator().manual_seed(8)),
            ]
            self.register_buffer("extra", torch.stack([*draws, torch.randperm(2)]))

    monkeypatch.setattr(recipe.Recipe, "train", lambda *_, **__: None)

    model = Derived.fit(interactions(), **SIZES, seed=5)

    torch.manual_seed(5)
    for name, x in Derived(**vars(model.config)).state_dict().items():
        assert torch.equal(model.state_dict()[name], x)


def test_fit_makes_the_same_model_whatever_the_default_device():
    expected = fit().state_dict()

    with torch.device("meta"):  # like no other: nothing on it fits the CPU's tensors
        made = fit(device="cpu").state_dict()

    assert all(torch.equal(made[name], expected[name]) for name in expected)


def test_ctrl_c_in_fit_is_raised():
    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(callbacks=[interrupt])


def test_fit_takes_the_arguments_of_model_sampler_and_training(monkeypatch):
    calls = {}

    class Sampler(recipe.WarpSampler):
        def __init__(self, histories, users, items, batch_size, maxlen, n_workers, **options):
            calls["histories"], calls["n_workers"] = histories, n_workers
            super().__init__(histories, users, items, batch_size, maxlen, n_workers, **options)

    def start_run(model, dataset, sampler, loop, training, callbacks, generator):
        calls["settings"] = sampler.settings
        calls["options"] = vars(loop) | vars(training) | {"callbacks": callbacks}
        return SimpleNamespace(history={}, optimizer_state=dict)

    def train_run(run, dataset, verbose, checkpoint, callbacks):
        calls["options"] |= {"verbose": verbose, "checkpoint": checkpoint}

    monkeypatch.setattr(recipe, "WarpSampler", Sampler)
    monkeypatch.setattr(recipe, "start_run", start_run)
    monkeypatch.setattr(recipe, "train_run", train_run)

    events = interactions(HISTORIES | {"dora": ["i11", "i7", "i8", "i9", "i10", "i0", "i6"]})
    loop = {
        "num_epochs": 3,
        "batch_size": 5,
        "learning_rate": 0.01,
        "val_epoch": 2,
        "eval_batch_size": 7,
    }
    training = {
        "loss": "bpr",
        "gbce_t": 0.5,
        "adam_betas": (0.8, 0.9),
        "schedule": "constant",
        "warmup_steps": 3,
        "max_grad_norm": 1.0,
        "precision": "tf32",
        "logq_correction": "negatives",
        "table_optimizer": "rowwise_adagrad",
        "validation": "sampled",
        "patience": 2,
        "restore_best": True,
    }
    run = {"verbose": False, "checkpoint": "folder", "callbacks": [print]}
    sampler = {
        "num_negatives": 2,
        "negatives_per": "sequence",
        "popularity_exponent": 0.25,
        "window_sampling_prob": 0.5,
    }
    model = SSEPT.fit(
        events,
        seq_max_len=4,
        embedding_dim=4,
        user_embedding_dim=4,
        item_embedding_dim=6,
        dropout_rate=0.25,
        sse_user_prob=0.5,
        seed=4,
        n_workers=2,
        backend="reference",
        **loop,
        **training,
        **run,
        **sampler,
    )

    config = model.config
    assert (config.user_num, config.item_num, config.seq_max_len) == (4, NUM_ITEMS, 4)
    assert (config.item_dim, config.user_dim, config.conv_dims) == (6, 4, (10, 10))
    assert (config.dropout_rate, config.sse_user_prob, model.backend) == (0.25, 0.5, "reference")
    assert calls["options"] == {**loop, **training, **run}
    assert calls["settings"] == {"batch_size": 5, "maxlen": 4, "seed": 4, **sampler}
    assert calls["n_workers"] == 2
    assert calls["histories"].to_dict() == events.to_dataset().user_train


def test_a_checkpoint_of_before_there_was_full_validation_is_taken_up_where_nothing_validates(
    tmp_path,
):
    options = SIZES | {"num_epochs": 1, "checkpoint": tmp_path}
    model = SSEPT.fit(interactions(HISTORIES), **options)
    state = load_training(tmp_path)
    state.settings.pop("validation", None)
    save_training(state, tmp_path)

    again = SSEPT.fit(interactions(HISTORIES), **options)

    assert torch.equal(again.item_embedding_layer.weight, model.item_embedding_layer.weight)


@pytest.mark.parametrize(("hold_out", "left"), [(True, 2), (False, 0)])
def test_the_last_two_events_are_trained_on_only_without_hold_out(monkeypatch, hold_out, left):
    seen = {}

    def train(self, model, dataset, *args, **options):
        seen.update(dataset.user_train)

    monkeypatch.setattr(recipe.Recipe, "train", train)

    events = interactions(HISTORIES | {"dora": [f"i{i}" for i in range(5)]})
    SSEPT.fit(events, hold_out=hold_out, **SIZES)

    all_events = events.to_dataset().User
    assert seen == {u: row[: len(row) - left * (len(row) > 2)] for u, row in all_events.items()}


def test_fit_learns_what_comes_next():
    """Everybody walks along the same ring of items."""
    ring = {f"u{u}": [f"i{(u + step) % 10}" for step in range(9)] for u in range(10)}
    training = {"num_epochs": 150, "learning_rate": 0.01, "batch_size": 10, "hold_out": False}
    sizes = SIZES | {"embedding_dim": 16, "dropout_rate": 0.0}
    model = SASREC.fit(interactions(ring), **training, **sizes)

    frame = model.recommend({"zoe": ["i4", "i5", "i6"]}, k=1)

    assert rows(frame)[0][1] == "i7"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"colour": 1}, TypeError, 'SSEPT has no option "colour"; there are seq_max_len'),
        ({"item_num": 1}, TypeError, "item_num comes from the data and cannot be given"),
        ({"hold_out": "no"}, ValueError, r"hold_out must be True or False, got 'no'"),
        ({"hold_out": False, "val_epoch": 1}, ValueError, "val_epoch must be 0 without hold_out"),
        ({"dropout_rate": 1}, ValueError, "dropout_rate must be in"),
        ({"gbce_t": 2}, ValueError, "gbce_t must be in"),
        ({"bf16": True, "precision": "tf32"}, ValueError, "bf16=True contradicts precision"),
    ],
)
def test_a_wrong_argument_of_fit_is_named(options, error, message):
    with pytest.raises(error, match=message):
        fit(**options)


SATED = {"ann": ["i1", "i2"], "bob": ["i1", "i2", "i3"]}


def test_the_softmax_over_all_items_is_trained_on_users_who_have_seen_them_all(recwarn):
    SSEPT.fit(
        interactions(SATED), **SIZES, num_epochs=1, hold_out=False, val_epoch=0, loss="softmax"
    )

    assert not [w for w in recwarn if "left out" in str(w.message)]


def test_sampled_losses_leave_users_out_who_have_seen_all_items():
    with pytest.warns(UserWarning, match="1 of 2 users are left out of training"):
        model = SSEPT.fit(interactions(SATED), **SIZES, num_epochs=1, hold_out=False, val_epoch=0)

    assert rows(model.recommend(users=["ann"], k=1))[0][1] == "i3"


def test_fit_wants_interactions():
    with pytest.raises(TypeError, match=r"must be Interactions, such as .* makes, got dict"):
        SSEPT.fit({"anna": ["i1"]})


def timed(num_users=12):
    """Users with an event at each of the times 0 to 9, along a ring of items."""
    rows = ((f"u{u}", f"i{(u + t) % 20}", t) for u in range(num_users) for t in range(10))
    return of_rows(*rows)


def test_a_split_by_time_works_in_one_call_with_validation_and_patience():
    seen, events = [], timed()

    model = SASREC.fit(
        events,
        split="time",
        **SIZES | {"num_epochs": 9, "learning_rate": 1e-9},
        val_epoch=1,
        patience=2,
        callbacks=[lambda progress: seen.append(progress.epochs[-1].val_ndcg)],
    )

    assert len(seen) == 3  # equal to the first, twice
    data = events.to_dataset(split="time")
    assert data.moments == (8, 9) == model.trained_on.split_by_time
    assert model.trained_on.training == data.histories("train").digest()
    assert seen[-1] == model.evaluate_full(data, [10], split="valid").ndcg[10]
    assert model.evaluate_full(data, [10], targets="successive").num_events == 12


def test_a_split_may_be_at_moments_of_one_s_own():
    model = SASREC.fit(timed(), split=(5, 7), **SIZES | {"num_epochs": 1})

    assert model.trained_on.split_by_time == (5, 7)
    assert model.trained_on.training == timed().to_dataset(split=(5, 7)).histories("train").digest()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "week"}, "split must be 'last', 'time', or the two moments .*, got 'week'"),
        ({"split": (5,)}, r"split must be .*, got \(5,\)"),
        ({"split": (7, 5)}, "valid_from must not be after test_from = 5, got 7"),
        ({"split": "time", "hold_out": False}, "split must be 'last' without hold_out, got 'time'"),
    ],
)
def test_a_split_that_is_none_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        SASREC.fit(timed(), **options, **SIZES)


def test_a_split_by_time_needs_times():
    with pytest.raises(ValueError, match="a split by time needs times of events"):
        SASREC.fit(interactions(HISTORIES), split="time", **SIZES)
