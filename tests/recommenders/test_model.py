"""SASREC and SSEPT with the attributes, the printing and the devices of recommenders."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.factories import perturbed, tiny_model
from support.padded import padded_inputs
from support.recommenders_models import model_of, train
from support.tolerances import relative_error

from ssept_ext import Interactions, distributed, models
from ssept_ext.evaluation import draw_candidates
from ssept_ext.recommenders.model import SASREC, LayerNormalization, pad_sequences
from ssept_ext.recommenders.ssept import SSEPT
from ssept_ext.recommenders.util import SASRecDataSet

pytestmark = pytest.mark.usefixtures("_one_thread")

KINDS = pytest.mark.parametrize("kind", [SASREC, SSEPT])


def test_padding_and_truncating_are_at_either_end():
    rows = [[1, 2], np.array([3, 4, 5, 6]), []]

    assert pad_sequences(rows, 3).tolist() == [[0, 1, 2], [4, 5, 6], [0, 0, 0]]
    assert pad_sequences(rows, 3, "post", "post", 9).tolist() == [[1, 2, 9], [3, 4, 5], [9, 9, 9]]
    assert pad_sequences(rows, maxlen=3, truncating="post").tolist()[1] == [3, 4, 5]


@pytest.mark.parametrize("name", ["padding", "truncating"])
def test_another_side_is_an_error(name):
    with pytest.raises(ValueError, match=f"{name} must be .* got 'left'"):
        pad_sequences([[1]], 3, **{name: "left"})


def test_every_argument_is_an_attribute():
    model = SSEPT(item_num=9, user_num=7, embedding_dim=4, user_embedding_dim=2, conv_dims=[3, 6])

    assert (model.item_num, model.user_num, model.seq_max_len, model.num_blocks) == (9, 7, 100, 2)
    assert (model.embedding_dim, model.item_embedding_dim, model.user_embedding_dim) == (4, 4, 2)
    assert (model.hidden_units, model.conv_dims, model.attention_dim) == (6, [3, 6], 100)
    assert (model.attention_num_heads, model.num_neg_test) == (1, 100)
    assert (model.dropout_rate, model.l2_reg) == (0.5, 0.0)


@pytest.mark.parametrize("name", ["num_blocks", "embedding_dim", "seq_max_len", "conv_dims"])
def test_a_size_cannot_be_assigned(name):
    with pytest.raises(AttributeError, match=name):
        setattr(tiny_model(SASREC), name, 3)


def test_an_assigned_number_of_negatives_is_drawn(dataset):
    model = model_of(SASREC, dataset, num_neg_test=9)

    model.num_neg_test = 1

    assert model.evaluate(dataset, seed=0)[1] == 1.0  # two candidates are among the best ten
    with pytest.raises(ValueError, match="num_neg_test must be .* got 0"):
        model.num_neg_test = 0


@pytest.mark.parametrize("assign", ["dropout_rate", "dropout_layer.p"])
def test_assigned_dropout_drops(assign):
    model = perturbed(tiny_model(SSEPT, dropout_rate=0.0))
    without = model(padded_inputs())[0]

    if assign == "dropout_rate":
        model.dropout_rate = 0.5
    else:
        model.dropout_layer.p = 0.5

    assert model.dropout_rate == model.dropout_layer.p == 0.5
    assert not torch.equal(model(padded_inputs())[0], without)
    assert torch.equal(model(padded_inputs(), training=False)[0], without)


def test_l2_reg_may_be_assigned(dataset):
    model = model_of(SASREC, dataset)
    before = model.positional_embedding_layer.weight.detach().clone()

    model.l2_reg = 1e6  # Adam then goes downhill for the table alone
    train(model, dataset, learning_rate=1e-3, batch_size=12)

    shrunk = model.positional_embedding_layer.weight.detach().abs() - before.abs()
    assert (shrunk < 0).double().mean() > 0.9


def test_keywords_of_the_other_model_are_ignored():
    model = SASREC(item_num=9, user_num=7, user_embedding_dim=10, item_embedding_dim=4)

    assert not hasattr(model, "user_num")


def test_unknown_keywords_are_ignored_with_a_warning():
    class Mine(SASREC):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.colour = kwargs.get("colour")

    with pytest.warns(UserWarning, match="Mine ignores colour, as recommenders does"):
        assert Mine(item_num=9, colour="blue").colour == "blue"


@pytest.mark.parametrize("changes", [{}, {"architecture": "original"}])
@KINDS
def test_a_forward_pass_by_hand_computes_the_same(kind, changes):
    model = perturbed(tiny_model(kind, num_blocks=2, attention_num_heads=2, **changes)).double()
    x = {name: torch.as_tensor(ids) for name, ids in padded_inputs().items()}
    mask = (x["input_seq"] != 0).double().unsqueeze(-1)

    def score(hidden, ids):
        return (torch.cat([model.item_embedding_layer(ids), *user], 2) * hidden).sum(-1)

    items, columns = model.embedding(x["input_seq"])
    user = []
    if kind is SSEPT:
        vectors = model.user_embedding_layer(x["users"]) * model.user_embedding_dim**0.5
        user = [vectors.expand(-1, 6, -1)]
    hidden = model.dropout_layer(torch.cat([items, *user], 2) + columns) * mask
    encoded = model.encoder(hidden, training=True, mask=mask)
    normalised = model.layer_normalization(encoded)

    positive, negative, is_target = model(x)
    here = is_target.view(3, 6) == 1
    assert (encoded[mask[..., 0] == 0] == 0).all()
    for logits, name in ((positive, "positive"), (negative, "negative")):
        assert relative_error(score(normalised, x[name])[here], logits.view(3, 6)[here]) < 1e-12


def test_another_epsilon_is_an_error():
    with pytest.raises(ValueError, match="epsilon must be 1e-8, got 1e-05"):
        LayerNormalization(6, 4, 1e-5)


def test_the_encoder_drops_in_training_only():
    model = perturbed(tiny_model(SSEPT, dropout_rate=0.5))
    x, mask = torch.randn(2, 6, 8), torch.ones(2, 6, 1)

    assert not torch.equal(model.encoder(x, True, mask), model.encoder(x, True, mask))
    assert torch.equal(model.encoder(x, False, mask), model.encoder(x, False, mask))
    model.eval()
    assert torch.equal(model.encoder(x, True, mask), model.encoder(x, True, mask))


def test_hidden_states_of_fewer_columns_are_an_error():
    model, x = tiny_model(SASREC), torch.zeros(2, 5, 4)

    with pytest.raises(ValueError, match="x must have seq_max_len 6 columns, got 5"):
        model.layer_normalization(x)
    with pytest.raises(ValueError, match="x must have seq_max_len 6 columns, got 5"):
        model.encoder(x, False, torch.ones(2, 5, 1))


def test_each_epoch_prints_a_line(dataset, capsys):
    model = model_of(SASREC, dataset, num_neg_test=3)

    history = train(model, dataset, num_epochs=2, val_epoch=2, verbose=True)

    out, err = capsys.readouterr()
    first, second, last = out.splitlines()
    ndcg, hr = history["val_ndcg"][0], history["val_hr"][0]
    assert first == f"Epoch 1: loss={history['loss'][0]:.4f}"
    assert second.startswith(f"Epoch 2: loss={history['loss'][1]:.4f}, val_NDCG@10={ndcg:.4f}, ")
    assert f"val_HR@10={hr:.4f}, time=" in second
    assert last.startswith("Training complete. Total time: ")
    assert err == ""


def test_nothing_is_printed_if_not_verbose(dataset, capsys):
    train(model_of(SASREC, dataset), dataset)

    assert capsys.readouterr().out == ""


def test_only_one_process_prints_and_all_have_the_same_callbacks(dataset, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        models.SASREC,
        "train_model",
        lambda *_, callbacks: asked.append(len(callbacks)) or {"seconds": [1.0]},
    )

    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        train(model_of(SASREC, dataset), dataset, verbose=True)

    assert asked == [1, 1]
    assert capsys.readouterr().out == "Training complete. Total time: 1.0s\n"


def test_no_epochs_are_an_empty_history(dataset):
    history = train(model_of(SASREC, dataset), dataset, num_epochs=0)

    assert history == {"loss": [], "seconds": [], "val_ndcg": [], "val_hr": []}


def test_training_moves_the_model_to_the_gpu(dataset, monkeypatch):
    moves = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(SASREC, "to", lambda model, device: moves.append(device))

    train(model_of(SASREC, dataset), dataset)
    train(model_of(SASREC, dataset), dataset, num_epochs=0)

    assert moves == ["cuda", "cuda"]


def test_the_call_of_the_tensorflow_release_is_told_what_to_call(dataset):
    model = model_of(SASREC, dataset)

    with pytest.raises(TypeError, match=r"call model\.train_model\(dataset, sampler, num_epochs"):
        model.train(dataset, None, num_epochs=1, batch_size=2, lr=0.001, val_epoch=5)
    assert model.train(False).training is False
    assert model.train().training is True


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_stays_what_it_was(dataset, mode):
    model = model_of(SSEPT, dataset).train(mode)

    model.predict({"user": [1], "input_seq": [[1, 2]], "candidate": [[3]]})
    model.evaluate(dataset, seed=0)
    train(model, dataset)

    assert model.training is mode


def test_an_epoch_of_few_users_has_one_step(dataset):
    (loss,) = train(model_of(SSEPT, dataset), dataset, batch_size=1000)["loss"]

    assert loss > 0


def test_all_held_out_events_for_validation_are_inputs_of_the_test(dataset):
    dataset.split(valid_size=2, test_size=1, min_interactions=4)
    user = dataset.users_with("test")[0]

    drawn = draw_candidates(dataset, "test", num_neg_test=3, seed=0)

    expected = [*dataset.user_train[user], *dataset.user_valid[user]]
    assert drawn.inputs.of([user]).items.tolist() == expected
    assert len(dataset.user_valid[user]) == 2


def test_training_and_evaluation_take_any_object_with_the_attributes(dataset):
    class Frozen:
        usernum, itemnum = dataset.usernum, dataset.itemnum
        user_train, user_valid = dataset.user_train, dataset.user_valid
        user_test = dataset.user_test

    model = model_of(SSEPT, dataset)

    assert len(train(model, Frozen(), val_epoch=1)["val_ndcg"]) == 1
    assert model.evaluate(Frozen(), seed=3) == model.evaluate(dataset, seed=3)
    assert model.evaluate_valid(Frozen(), seed=3) == model.evaluate_valid(dataset, seed=3)


@KINDS
def test_fit_and_raw_ids_work(kind):
    frame = pa.table({"user": ["ann"] * 4 + ["bob"] * 3, "item": [*"abcd", *"bda"]})
    events = Interactions.from_dataframe(frame, timestamp=None)

    options = {"seq_max_len": 4, "embedding_dim": 4, "num_epochs": 1, "val_epoch": 0}
    model = kind.fit(events, verbose=False, **options)

    assert type(model) is kind
    assert len(model.recommend(users=["bob"], k=1)) == 1


@KINDS
def test_a_saved_model_is_loaded_as_what_it_was(tmp_path, kind):
    model = tiny_model(kind)

    model.save_pretrained(tmp_path)

    assert type(kind.from_pretrained(tmp_path)) is kind
    plain = getattr(models, kind.__name__).from_pretrained(tmp_path)
    assert torch.equal(plain.item_embedding_layer.weight, model.item_embedding_layer.weight)


def test_a_data_set_of_either_kind_is_taken(tmp_path):
    path = tmp_path / "events.txt"
    path.write_text("".join(f"{u} {(u * i) % 11 + 1}\n" for u in range(1, 9) for i in range(1, 7)))
    data = SASRecDataSet(filename=path)
    data.split()

    assert len(train(model_of(SSEPT, data), data)["loss"]) == 1
