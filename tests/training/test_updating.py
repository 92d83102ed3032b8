"""`update`: a trained model learns new events, users and items."""

import pytest
import torch
from support.interactions import of_rows

from ssept_ext import SASREC, SSEPT
from ssept_ext.training import TrainingInterrupted
from ssept_ext.training.run import Run
from ssept_ext.training.updating import MOST_EPOCHS

pytestmark = pytest.mark.usefixtures("_one_thread")

NUM_USERS, NUM_ITEMS, LENGTH = 16, 12, 5
SIZES = {"seq_max_len": 4, "embedding_dim": 4, "num_blocks": 1}
TRAINING = {"num_epochs": 8, "batch_size": 4, "num_negatives": 2, "verbose": False}


def events(users, start=0, length=LENGTH, num_items=NUM_ITEMS):
    """Users who walk along a ring of items; user u starts at item u."""
    return of_rows(
        *(
            (f"u{u}", f"i{(u + t) % num_items}", 100 * t + u)
            for u in users
            for t in range(start, start + length)
        )
    )


WEEK = of_rows(
    ("u3", "i9", 2001),
    ("u3", "novelty", 2002),
    ("u3", "i1", 2003),
    ("u5", "i2", 2001),
    ("stranger", "i4", 2004),
    ("stranger", "novelty", 2005),
    ("stranger", "i5", 2006),
    ("stranger", "i6", 2007),
)
"""8 events: of two known users, a new one and a new item. 6 of them are for training."""


@pytest.fixture(params=[SSEPT, SASREC])
def kind(request):
    return request.param


def fitted(kind=SASREC, hold_out=True, **options):
    return kind.fit(events(range(NUM_USERS)), hold_out=hold_out, **SIZES, **TRAINING, **options)


def update(model, given=WEEK, **options):
    return model.update(given, **(TRAINING | options))


def parameters_of(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def assert_same_bits(model, expected):
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], x) for name, x in expected.items())


def test_a_user_and_an_item_that_did_not_exist_before_are_recommended_to_and_recommended(kind):
    model = fitted(kind)

    report = update(model)

    assert (report.new_events, report.new_users, report.new_items) == (8, 1, 1)
    frame = model.recommend(users=["stranger", "u0"], k=NUM_ITEMS + 1)
    assert "novelty" in set(frame["item"][frame["user"] == "u0"])
    seen = {"i4", "novelty", "i5", "i6"}
    assert not seen & set(frame["item"][frame["user"] == "stranger"])
    assert (
        model.known.of(4).tolist()
        == model.known.item_ids.encode(
            ["i3", "i4", "i5", "i6", "i7", "i9", "novelty", "i1"]
        ).tolist()
    )


def test_an_updated_model_is_saved_and_loaded_as_any_other(kind, tmp_path):
    model = fitted(kind)
    update(model)

    model.save_pretrained(tmp_path)

    loaded = kind.from_pretrained(tmp_path)
    assert_same_bits(loaded, model.state_dict())
    assert loaded.known.item_ids.raw.tolist()[-1] == "novelty"
    data = loaded.known.to_dataset()
    assert loaded.evaluate_full(data).mrr == model.evaluate_full(data).mrr
    assert update(loaded).steps == 0  # it knows all events already


def test_training_changes_old_and_new_rows(kind):
    model = fitted(kind)
    before = parameters_of(model)["item_embedding_layer.weight"]

    update(model)

    after = model.item_embedding_layer.weight
    assert not torch.equal(after[: len(before)], before)
    assert not torch.equal(after[-1], before[1:].mean(0))


@pytest.mark.parametrize("table_optimizer", ["adam", "lazy_adam"])
def test_a_model_with_two_tables_of_items_is_updated_and_saved(table_optimizer, tmp_path):
    model = fitted(tie_item_embeddings=False, table_optimizer=table_optimizer)
    before = parameters_of(model)["output_embedding_layer.weight"]

    report = update(model, table_optimizer=table_optimizer)

    after = model.output_table()
    assert (report.new_items, len(after)) == (1, NUM_ITEMS + 2)
    assert not torch.equal(after[: len(before)], before)
    assert not torch.equal(after, model.item_table())
    frame = model.recommend(users=["u0"], k=NUM_ITEMS + 1)
    assert "novelty" in set(frame["item"])
    model.save_pretrained(tmp_path)
    assert_same_bits(SASREC.from_pretrained(tmp_path), model.state_dict())


def test_an_update_costs_the_share_of_a_training_that_its_events_are():
    model = fitted()

    report = update(model, num_epochs=40)

    # 16 users with 3 training events each, and 6 new ones; 4 batches hold 17 users but one
    assert report.steps == 18  # 40 * 4 * 6 / 54
    assert len(report.history["loss"]) <= MOST_EPOCHS


@pytest.mark.parametrize(("replay", "users"), [(0.0, 3), (1.0, 6), (2.0, 9), (100.0, 17)])
def test_users_with_new_events_are_trained_on_with_some_of_the_others(replay, users, monkeypatch):
    model, seen = fitted(), set()
    honest = Run.take_step

    def take_step(run, batch):
        seen.update(batch.users.tolist())
        return honest(run, batch)

    monkeypatch.setattr(Run, "take_step", take_step)

    report = update(model, replay=replay, num_epochs=200)

    assert report.trained_users == len(seen) == users
    assert seen >= {4, 6, 17}


def test_the_learning_rate_is_a_part_of_the_training_s_and_falls_without_a_second_warm_up(
    monkeypatch,
):
    model, rates = fitted(), []
    honest = Run.take_step

    def take_step(run, batch):
        loss = honest(run, batch)
        rates.append(run.optimizer.param_groups[0]["lr"])
        return loss

    monkeypatch.setattr(Run, "take_step", take_step)

    update(model, learning_rate=0.04, learning_rate_factor=0.5, num_epochs=100)

    assert rates[0] == 0.02
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.004


def test_the_same_call_makes_the_same_model(kind):
    models = [fitted(kind), fitted(kind)]

    for model in models:
        update(model, seed=3)

    assert_same_bits(models[0], models[1].state_dict())


def test_an_error_on_the_way_leaves_the_model_as_it_was(kind):
    model = fitted(kind)
    before, known = parameters_of(model), model.known

    def fail(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update(model, callbacks=[fail])

    assert_same_bits(model, before)
    assert model.known is known
    assert model.item_num == NUM_ITEMS
    assert "novelty" not in set(model.recommend(users=["u0"], k=99)["item"])


def test_a_last_step_that_diverges_leaves_the_model_as_it_was(kind):
    model = fitted(kind)
    before = parameters_of(model)

    with pytest.raises(FloatingPointError, match="is not finite after .* learning_rate_factor"):
        update(model, num_epochs=1, batch_size=64, learning_rate_factor=1e45)

    assert_same_bits(model, before)
    assert model.item_num == NUM_ITEMS


def test_an_interrupted_update_goes_on_from_its_checkpoint(kind, tmp_path):
    whole, model = fitted(kind), fitted(kind)
    update(whole, num_epochs=40)
    before, epochs = parameters_of(model), []

    def count(progress):
        epochs.append(len(progress.epochs))

    def stop(progress):
        if len(progress.epochs) == 2:
            raise TrainingInterrupted("", 15)

    with pytest.raises(SystemExit):
        update(model, num_epochs=40, checkpoint=tmp_path, callbacks=[stop])
    assert_same_bits(model, before)
    left = update(model, num_epochs=40, checkpoint=tmp_path, callbacks=[count])

    assert_same_bits(model, whole.state_dict())
    assert [epochs[0], len(epochs)] == [2, len(left.history["loss"]) - 1]


@pytest.mark.parametrize(
    ("table_optimizer", "moment"),
    [
        ("adam", "exp_avg_sq"),
        ("lazy_adam", "exp_avg_sq"),
        ("rowwise_adagrad", "sum_of_squares"),
    ],
)
@pytest.mark.parametrize("table", ["item", "output"])
def test_the_optimizer_goes_on_for_old_rows(table, table_optimizer, moment):
    model = fitted(table_optimizer=table_optimizer, tie_item_embeddings=table == "item")
    before = dict(model.optimizer_state)
    rare = of_rows(("u7", "i1", 3000), ("u7", "i2", 3001), ("u7", "held out", 3002))

    report = update(
        model, rare, table_optimizer=table_optimizer, learning_rate_factor=1e-30, replay=0
    )

    after, name = model.optimizer_state, f"{table}_embedding_layer.weight.{moment}"
    steps = [name for name in before if name.endswith("step")]
    assert {after[name].item() - before[name].item() for name in steps} == {report.steps}
    assert len(after[name]) == len(before[name]) + 1
    least = 0.979**report.steps * before[name]  # beta2 is .98
    assert (after[name][: len(least)] >= least).all()


def test_a_model_without_a_state_of_the_optimizer_starts_a_new_one(tmp_path):
    fitted().save_pretrained(tmp_path)
    model = SASREC.from_pretrained(tmp_path)

    report = update(model)

    assert model.optimizer_state["item_embedding_layer.weight.step"] == report.steps


@pytest.mark.parametrize("shape", [(99, 4), (14, 5), ()])
def test_a_state_of_another_model_is_refused(shape):
    model, name = fitted(), "item_embedding_layer.weight.exp_avg"
    model.optimizer_state[name] = torch.zeros(shape)

    with pytest.raises(ValueError, match=f"of another model: {name} has shape"):
        update(model)


def test_known_events_alone_change_nothing(kind):
    model = fitted(kind)
    before = parameters_of(model)

    report = update(model, events(range(3)))

    assert (report.new_events, report.known_events, report.steps) == (0, 3 * LENGTH, 0)
    assert_same_bits(model, before)


def test_events_from_which_nothing_can_be_learned_are_known_afterwards():
    model = fitted()

    report = update(model, of_rows(("stranger", "i3", 2000)))

    assert (report.steps, report.trained_users, report.new_users) == (0, 0, 1)
    assert model.known.of(NUM_USERS + 1).tolist() == model.known.item_ids.encode(["i3"]).tolist()
    assert model.trained_on.events == NUM_USERS * LENGTH + 1


@pytest.mark.parametrize("hold_out", [True, False])
def test_events_are_held_out_as_they_were(hold_out):
    model = fitted(hold_out=hold_out)

    update(model)

    data = model.known.to_dataset(hold_out=hold_out)
    assert model.trained_on.training == data.histories("train").digest()


def test_events_are_held_out_by_time_if_they_were(tmp_path):
    model = fitted(split=(200, 400))
    model.save_pretrained(tmp_path)
    model = SASREC.from_pretrained(tmp_path)

    report = update(model, events(range(4), start=5, length=10))

    data = model.known.to_dataset()
    data.split_by_time(*model.trained_on.split_by_time)
    shares = [len(data.histories(part).items) / 120 for part in ("train", "valid", "test")]
    assert shares == pytest.approx([2 / 5, 2 / 5, 1 / 5], abs=0.05)  # as they were of 80 events
    assert model.trained_on.training == data.histories("train").digest()
    assert report.steps > 0


def test_a_model_that_reads_times_is_updated():
    model = fitted(SSEPT, time_bias=True)

    assert update(model).steps > 0

    assert model.known.events(17)[1].tolist() == [2004, 2005, 2006, 2007]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"replay": -1}, ValueError, "replay must be"),
        ({"learning_rate_factor": 0}, ValueError, "learning_rate_factor must be"),
        ({"new_items": "zero"}, ValueError, "new_items must be one of .*neighbours"),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"embedding_dim": 8}, TypeError, "embedding_dim is the model's, which has 4"),
        ({"val_epoch": 2}, TypeError, "val_epoch is not an option of update"),
        ({"warmup_steps": 2}, TypeError, "warmup_steps is not an option of update"),
        ({"item_num": 2}, TypeError, "item_num comes from the data"),
        ({"colour": 2}, TypeError, 'has no option "colour"'),
        ({"given": [("u1", "i2", 3)]}, TypeError, "interactions must be Interactions"),
    ],
)
def test_arguments_that_do_not_fit_are_named(options, error, message):
    with pytest.raises(error, match=message):
        update(fitted(), **options)


def test_a_model_without_raw_ids_is_refused():
    model = SASREC(item_num=12, **SIZES, conv_dims=[4, 4])

    with pytest.raises(ValueError, match="the model knows no raw ids"):
        update(model)


def test_a_model_whose_tables_are_spread_over_processes_is_refused():
    class Spread(SASREC):
        def item_part(self, num_items): ...
        def shards(self): ...

    model = Spread(item_num=12, **SIZES, conv_dims=[4, 4])

    with pytest.raises(ValueError, match="spread over processes cannot grow"):
        update(model)
