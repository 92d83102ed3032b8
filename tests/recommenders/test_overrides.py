"""Subclasses and hooks of a user: training and evaluation call them, and what nothing would call is refused."""

import pytest
import torch
from support.factories import perturbed
from support.recommenders_models import model_of, sampler, train

from ssept_ext.recommenders.model import SASREC, Encoder, LayerNormalization
from ssept_ext.recommenders.ssept import SSEPT
from ssept_ext.training import cuda_graph

pytestmark = pytest.mark.usefixtures("_one_thread")


class WithPrice(SASREC):
    """Replaces the layers by wider ones, as SSEPT does in recommenders."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        width, sizes = self.embedding_dim + 2, [5, self.embedding_dim + 2]
        self.prices = torch.nn.Embedding(21, 2, padding_idx=0)
        self.encoder = Encoder(
            2, self.seq_max_len, width, width, num_heads=2, conv_dims=sizes, dropout_rate=0.0
        )
        self.layer_normalization = LayerNormalization(self.seq_max_len, width, 1e-08)
        self._init_weights()

    def forward(self, x, training=True):
        mask = (x["input_seq"] != 0).unsqueeze(-1)
        hidden = torch.cat([self.embedding(x["input_seq"])[0], self.prices(x["input_seq"])], 2)
        hidden = self.layer_normalization(self.encoder(hidden * mask, training, mask))
        logits = [
            (torch.cat([self.item_embedding_layer(x[name]), self.prices(x[name])], 2) * hidden)
            .sum(-1)
            .view(-1, 1)
            for name in ("positive", "negative")
        ]
        return *logits, (x["positive"] != 0).float().view(-1)


def test_a_subclass_may_replace_the_layers(dataset):
    model = model_of(WithPrice, dataset)
    model.prices = torch.nn.Embedding(dataset.itemnum + 1, 2)
    before = {name: x.clone() for name, x in model.state_dict().items()}

    train(model, dataset)

    kept = [name for name, x in model.state_dict().items() if torch.equal(x, before[name])]
    # A bias of keys adds the same to all scores of a query: its gradient is 0.
    keys = [f"encoder.enc_layers.{i}.mha.K.bias" for i in range(2)]
    assert kept == ["positional_embedding_layer.weight", *keys]


@pytest.mark.cuda
def test_training_a_subclass_runs_on_the_gpu(dataset):
    model = model_of(Halved, dataset)

    train(model, dataset, num_epochs=2)

    assert model.device.type == "cuda"
    assert model.calls >= 4


class Halved(SSEPT):
    """Overrides all that training calls, and computes the same as without."""

    calls = 0

    def create_combined_dataset(self, u, seq, pos, neg):
        self.calls += 1
        return super().create_combined_dataset(u, seq, pos, neg)

    def forward(self, x, training=True):
        self.calls += 1
        assert training
        assert x["input_seq"].shape[1] == 6
        return super().forward(x, training)

    def loss_function(self, pos_logits, neg_logits, istarget):
        self.calls += 1
        return super().loss_function(pos_logits, neg_logits, istarget)


def test_overrides_are_called_and_see_the_batches_that_training_would_take(dataset):
    torch.manual_seed(0)
    plain = model_of(SSEPT, dataset)
    torch.manual_seed(0)
    overriding = model_of(Halved, dataset)

    expected = train(plain, dataset, num_epochs=2)
    history = train(overriding, dataset, num_epochs=2)

    assert overriding.calls == 3 * 2 * 2  # methods, epochs, steps
    assert history["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_overrides_draw_the_dropout_of_the_seed(dataset):
    model = model_of(Halved, dataset, dropout_rate=0.5)
    with sampler(dataset) as batches:
        batch = batches.next_packed()
    before = torch.get_rng_state()

    first, again, other = (
        model.training_loss(batch, seed=torch.tensor([seed])).item() for seed in (7, 7, 8)
    )

    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["forward", "loss_function"])
def test_one_override_is_enough_and_may_be_assigned_to_a_model(dataset, name):
    model = model_of(SSEPT, dataset)
    plain, calls = getattr(model, name), []

    setattr(model, name, lambda *args, **options: calls.append(1) or plain(*args, **options))
    train(model, dataset)

    assert len(calls) == 2


def test_training_calls_a_hook_of_the_model(dataset):
    model, calls = model_of(SSEPT, dataset), []
    model.register_forward_hook(lambda *_: calls.append(1))

    train(model, dataset)

    assert len(calls) == 2


def test_only_recommenders_loss_can_be_overridden(dataset):
    with pytest.raises(ValueError, match='loss must be "bce" where Halved .* got "bpr"'):
        train(model_of(Halved, dataset), dataset, loss="bpr")


def test_a_loss_of_its_own_has_one_negative(dataset):
    with (
        sampler(dataset, num_negatives=4) as batches,
        pytest.raises(ValueError, match="num_negatives of the sampler must be 1 .*, got 4"),
    ):
        model_of(Halved, dataset).train_model(dataset, batches, 1, 6, verbose=False)


class Backwards(SSEPT):
    """Ranks the other way round."""

    def predict(self, inputs):
        assert inputs["user"].shape[1] == 1
        assert inputs["input_seq"].shape[1] == 6
        return -super().predict(inputs)


def test_evaluation_calls_an_overridden_predict(dataset):
    torch.manual_seed(0)
    plain = perturbed(model_of(SSEPT, dataset, num_neg_test=20))
    backwards = model_of(Backwards, dataset, num_neg_test=20)
    backwards.load_state_dict(plain.state_dict())

    hr, backwards_hr = (m.evaluate(dataset, seed=0)[1] for m in (plain, backwards))

    assert hr != backwards_hr
    for rank in (backwards.evaluate_full, backwards.recommend):
        with pytest.raises(TypeError, match="Backwards overrides predict, which rankings of the"):
            rank(dataset)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("embedding", "Mine overrides embedding, which forward does not call: override these"),
        ("evaluate_valid", "Mine overrides evaluate_valid, which train_model does not call"),
    ],
)
def test_an_override_that_nothing_calls_is_refused(name, message):
    with pytest.raises(TypeError, match=message):
        type("Mine", (SASREC,), {name: lambda self, *args: None})


def test_an_override_is_allowed_beside_those_of_its_callers():
    overrides = {name: lambda self, *args: None for name in ("embedding", "forward", "predict")}

    type("Mine", (SASREC,), overrides)


def test_steps_that_run_overrides_are_not_captured(dataset, monkeypatch):
    monkeypatch.setattr(cuda_graph, "growing_step", lambda *_, **__: "captured")

    def kind_of_step(model):
        return cuda_graph.training_step(None, None, torch.device("cuda"), 6, capture=model)

    assert kind_of_step(model_of(SSEPT, dataset).is_capturable) == "captured"
    assert kind_of_step(model_of(Halved, dataset).is_capturable) != "captured"
