"""Item and user tables that are trained by the rows a batch reads."""

import copy

import pytest
import torch
from support.factories import model_for, perturbed, random_batch, tiny_model
from support.ring import PaddedSampler
from support.tolerances import assert_close

from ssept_ext import SASREC, SSEPT, WarpSampler
from ssept_ext.data.packed import number_rows
from ssept_ext.data.synthetic import synthetic
from ssept_ext.training import table_rows
from ssept_ext.training.cuda_graph import growing_step
from ssept_ext.training.loop import train_model
from ssept_ext.training.options import TrainingOptions
from ssept_ext.training.step import eager_step, make_optimizer

pytestmark = pytest.mark.usefixtures("_one_thread")

ROW_WISE = ("lazy_adam", "rowwise_adagrad")
one_table_or_two = pytest.mark.parametrize("tied", [True, False], ids=["one table", "two"])
WITH_SSE = {"sse_user_prob": 0.5, "sse_item_prob": 0.3, "sse_joint": True}
BETAS, EPS, RATE, L2 = (0.9, 0.98), 1e-7, 0.01, 0.1


@pytest.fixture(scope="module")
def dataset():
    return synthetic(num_users=40, min_events=4, max_events=12)


def make_model(dataset, kind=SSEPT, **arguments):
    torch.manual_seed(0)
    return model_for(dataset, kind, dropout_rate=0.2, **arguments).double()


def make_sampler(dataset, **arguments):
    sizes = (dataset.usernum, dataset.itemnum)
    return WarpSampler(dataset.user_train, *sizes, batch_size=8, maxlen=6, seed=3, **arguments)


def train(model, dataset, sampler=None, num_epochs=2, **options):
    torch.manual_seed(1)
    settings = {"learning_rate": RATE, "verbose": False, "adam_betas": BETAS, **options}
    with make_sampler(dataset) as own:
        train_model(model, dataset, sampler or own, num_epochs, batch_size=8, **settings)
    return model.state_dict()


def assert_same_bits(actual, expected):
    for name, x in expected.items():
        assert torch.equal(actual[name], x), name


@pytest.fixture
def _large_tables(monkeypatch):
    monkeypatch.setattr(table_rows, "_LARGE_TABLES", 0)


@one_table_or_two
@pytest.mark.parametrize("kind", [SSEPT, SASREC])
@pytest.mark.parametrize("loss", ["bce", "gbce", "bpr", "sampled_softmax"])
def test_the_loss_of_gathered_rows_is_that_of_the_tables(loss, kind, tied):
    model = perturbed(tiny_model(kind, tie_item_embeddings=tied)).double()
    batch = number_rows(random_batch(4, 1, 5, num_negatives=3))
    log_probs = torch.randn(21, dtype=torch.float64)
    rows = table_rows.RowsOfWholeTables(model)
    gathered = rows.gather(batch)

    of_rows = log_probs[batch.numbers.item_ids]
    actual = model.training_loss(gathered, loss, negative_log_probs=of_rows)
    actual.backward()
    rows.collect(gathered)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}

    model.zero_grad()
    expected = model.training_loss(batch, loss, negative_log_probs=log_probs)
    expected.backward()
    assert torch.equal(actual, expected)
    assert_same_bits(gradients, {name: p.grad for name, p in model.named_parameters()})


@pytest.mark.usefixtures("_large_tables")
@one_table_or_two
@pytest.mark.parametrize(
    "options",
    [{}, {"max_grad_norm": 0.01}, {"loss": "sampled_softmax"}, {"loss": "softmax"}],
    ids=str,
)
def test_adam_of_large_tables_is_that_of_small_ones(dataset, options, tied, monkeypatch):
    model = make_model(dataset, l2_reg=L2, tie_item_embeddings=tied, **WITH_SSE)
    gathered = train(copy.deepcopy(model), dataset, **options)

    monkeypatch.setattr(table_rows, "_LARGE_TABLES", float("inf"))
    assert_same_bits(gathered, train(model, dataset, **options))


@pytest.mark.usefixtures("_large_tables")
@pytest.mark.parametrize("how", ["adam", *ROW_WISE])
def test_a_sampler_that_cannot_number_rows_makes_no_difference(dataset, how):
    model = make_model(dataset)
    expected = train(copy.deepcopy(model), dataset, table_optimizer=how)

    with make_sampler(dataset) as sampler:
        actual = train(model, dataset, PaddedSampler(sampler), table_optimizer=how)

    assert_same_bits(actual, expected)


class Bilinear(SASREC):
    """Adds a score of its own, which it reads from the item table itself."""

    def training_loss(self, batch, *args, **options):
        vectors = self.item_embedding_layer.weight
        own = (vectors[batch.items] * vectors[batch.positives]).sum()
        return super().training_loss(batch, *args, **options) - 0.01 * own


@pytest.mark.usefixtures("_large_tables")
def test_adam_also_takes_gradients_of_a_subclass_that_reads_whole_tables(dataset, monkeypatch):
    model = make_model(dataset, Bilinear)
    gathered = train(copy.deepcopy(model), dataset)

    monkeypatch.setattr(table_rows, "_LARGE_TABLES", float("inf"))
    expected = train(model, dataset)
    for name, x in expected.items():
        assert_close(gathered[name], x)


@pytest.mark.usefixtures("_large_tables")
@pytest.mark.parametrize(
    ("is_capturable", "kind"), [(True, "RowsOfWholeTables"), (False, "NoneType")]
)
def test_rows_are_not_gathered_for_steps_that_run_methods_of_a_user(dataset, is_capturable, kind):
    model, options = make_model(dataset), TrainingOptions()
    model.is_capturable = is_capturable

    rows = table_rows.table_rows(model, options, make_optimizer(model, RATE, options))

    assert type(rows).__name__ == kind


@pytest.mark.parametrize("how", ROW_WISE)
def test_a_subclass_that_reads_whole_tables_is_refused_where_only_rows_are_trained(dataset, how):
    with pytest.raises(RuntimeError, match=f"table_optimizer must be 'adam' .* got '{how}'"):
        train(make_model(dataset, Bilinear), dataset, table_optimizer=how)


def by_hand(model, dataset, how, max_grad_norm=None):
    """Train with the gradients of whole tables, in a loop over the rows of each batch."""
    others = [p for name, p in model.named_parameters() if name not in model.lookup_tables()]
    decayed = [model.positional_embedding_layer.weight]
    plain = [p for p in others if p is not decayed[0]]
    groups = [{"params": decayed, "weight_decay": L2}, {"params": plain}]
    adam = torch.optim.Adam(groups, lr=RATE, betas=BETAS, eps=EPS)
    first = {name: torch.zeros_like(x) for name, x in model.lookup_tables().items()}
    second = {name: torch.zeros_like(x) for name, x in model.lookup_tables().items()}
    seeds = torch.Generator().manual_seed(1)
    num_steps = 2 * (dataset.num_users // 8)
    with make_sampler(dataset) as sampler, sampler.replacing(model.sse):
        for step in range(1, num_steps + 1):
            batch = sampler.next_packed()
            model.zero_grad()
            model.training_loss(
                batch, seed=torch.randint(2**63 - 1, (1,), generator=seeds)
            ).backward()
            if max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
            adam.step()
            items = (batch.items, batch.positives, batch.negatives)
            read = {
                "item_embedding_layer.weight": items,
                "user_embedding_layer.weight": (batch.users,),
                "output_embedding_layer.weight": items,
            }
            for name, table in model.lookup_tables().items():
                ids = {i for x in read[name] for i in x.flatten().tolist()} - {0}
                for i in ids:
                    row = table.data[i]
                    g = table.grad[i] + L2 * row
                    m, v = first[name][i], second[name][i]
                    if how == "lazy_adam":
                        m += (1 - BETAS[0]) * (g - m)
                        v += (1 - BETAS[1]) * (g * g - v)
                        unbiased = (v / (1 - BETAS[1] ** step)).sqrt()
                        row -= RATE / (1 - BETAS[0] ** step) * m / (unbiased + EPS)
                    else:
                        v += g.square().mean()
                        row -= RATE * g / (v.sqrt() + EPS)
    return model.state_dict()


@one_table_or_two
@pytest.mark.parametrize("max_grad_norm", [None, 0.01])
@pytest.mark.parametrize("how", ROW_WISE)
def test_row_wise_optimizers_change_the_rows_of_a_batch_alone(dataset, how, max_grad_norm, tied):
    model = make_model(dataset, l2_reg=L2, tie_item_embeddings=tied, **WITH_SSE)
    expected = by_hand(copy.deepcopy(model).train(), dataset, how, max_grad_norm)

    actual = train(model, dataset, table_optimizer=how, max_grad_norm=max_grad_norm)

    for name, x in expected.items():
        assert_close(actual[name], x)


@pytest.mark.usefixtures("_large_tables")
@one_table_or_two
@pytest.mark.parametrize("how", ["adam", *ROW_WISE])
def test_a_training_goes_on_from_its_checkpoint_bit_for_bit(dataset, how, tied, tmp_path):
    model = make_model(dataset, tie_item_embeddings=tied)
    expected = train(copy.deepcopy(model), dataset, num_epochs=3, table_optimizer=how)

    for num_epochs in (1, 3):
        actual = train(
            copy.deepcopy(model),
            dataset,
            None,
            num_epochs,
            table_optimizer=how,
            checkpoint=tmp_path,
        )

    assert_same_bits(actual, expected)


@pytest.mark.parametrize("how", ROW_WISE)
def test_softmax_over_all_items_refuses_to_train_rows(how):
    with pytest.raises(ValueError, match=f'table_optimizer must be "adam" .* got "{how}"'):
        TrainingOptions(loss="softmax", table_optimizer=how)


@one_table_or_two
@pytest.mark.parametrize("kind", [SSEPT, SASREC])
@pytest.mark.parametrize("how", ROW_WISE)
def test_steps_on_buffers_of_fixed_size_are_those_on_the_batches(how, kind, tied):
    """As a CUDA graph needs them: lists of rows, too, have spare capacity."""
    batches = [
        number_rows(random_batch(*n, seq_max_len=5)) for n in [(2, 1), (5, 5), (1, 0), (5, 3)]
    ]
    trained = []
    for is_padded in (False, True):
        torch.manual_seed(0)
        model = tiny_model(kind, seq_max_len=5, l2_reg=L2, tie_item_embeddings=tied).double()
        options = TrainingOptions(table_optimizer=how)
        adam = make_optimizer(model, RATE, options)
        rows = table_rows.table_rows(model, options, adam)
        step = eager_step(adam, lambda batch, seed, m=model: m.training_loss(batch), rows=rows)
        if is_padded:
            step = growing_step(step, adam, model.device, 5, table_sizes=rows.sizes())
        losses = [step(batch, torch.tensor([3])).clone() for batch in batches]
        trained.append((torch.stack(losses), model.state_dict()))

    (losses, expected), (padded_losses, actual) = trained
    assert_close(padded_losses, losses)
    for name, x in expected.items():
        assert_close(actual[name], x)


def test_adam_of_many_rows_warns_of_its_cost_once(dataset, monkeypatch):
    monkeypatch.setattr(table_rows, "_MANY_ROWS", dataset.itemnum)

    with pytest.warns(UserWarning, match='moves all .* table_optimizer="lazy_adam"') as warnings:
        train(make_model(dataset), dataset)

    assert len(warnings) == 1
