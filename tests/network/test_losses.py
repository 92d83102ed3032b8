import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssept_ext.network import losses


def test_bce_is_the_mean_over_targets_of_the_textbook_formula():
    logits = torch.randn(6, 4, dtype=torch.float64)
    positives = torch.tensor([3, 0, 1, 2, 0, 9])
    expected = sum(
        -torch.log(torch.sigmoid(row[0])) - torch.log(1 - torch.sigmoid(row[1:])).sum()
        for row, positive in zip(logits, positives, strict=True)
        if positive != 0
    )
    assert losses.bce(logits, positives).item() == pytest.approx(expected.item() / 4, rel=1e-12)


def test_bce_is_finite_for_logits_that_overflow_a_sigmoid():
    assert losses.bce(torch.tensor([[-1e4, 1e4]]), torch.tensor([1])).item() == pytest.approx(2e4)


def test_bce_without_any_target_is_zero_with_zero_gradient():
    logits = torch.randn(3, 2, requires_grad=True)
    loss = losses.bce(logits, torch.zeros(3, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_bce_of_half_precision_logits_is_summed_in_float32():
    logits = torch.zeros(70000, 2, dtype=torch.float16)  # more targets than float16 can count
    loss = losses.bce(logits, torch.ones(70000, dtype=torch.int64))
    assert loss.item() == pytest.approx(2 * torch.log(torch.tensor(2.0)).item(), rel=1e-5)


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


POSITIVES = torch.tensor([3, 0, 1, 2, 0, 9])


def mean_of_rows(logits, row_loss):
    rows = [row_loss(row) for row, i in zip(logits, POSITIVES, strict=True) if i != 0]
    return torch.stack(rows).mean()


@pytest.mark.parametrize("t", [0.0, 0.5, 0.75, 1.0])
def test_gbce_is_the_papers_formula(t):
    logits, item_num = double(6, 4), 20
    alpha = 3 / 19
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)

    def row_loss(row):
        positive = torch.sigmoid(row[0]) ** beta
        return -(torch.log(positive) + torch.log(1 - torch.sigmoid(row[1:])).sum())

    torch.testing.assert_close(
        losses.gbce(logits, POSITIVES, item_num, t),
        mean_of_rows(logits, row_loss),
        rtol=1e-12,
        atol=0,
    )


def test_gbce_without_calibration_is_bce():
    logits = double(6, 4)
    torch.testing.assert_close(
        losses.gbce(logits, POSITIVES, 20, 0.0), losses.bce(logits, POSITIVES), rtol=1e-12, atol=0
    )


def test_bpr_is_the_papers_formula():
    logits = double(6, 4)
    expected = mean_of_rows(logits, lambda row: -torch.log(torch.sigmoid(row[0] - row[1:])).mean())
    torch.testing.assert_close(losses.bpr(logits, POSITIVES), expected, rtol=1e-12, atol=0)


def test_sampled_softmax_is_the_cross_entropy_of_the_positive():
    logits = double(6, 4)
    expected = mean_of_rows(logits, lambda row: -torch.log(row.exp()[0] / row.exp().sum()))
    torch.testing.assert_close(
        losses.sampled_softmax(logits, POSITIVES), expected, rtol=1e-12, atol=0
    )


def test_sampled_softmax_divides_by_how_often_an_item_is_drawn():
    logits, q = double(6, 4), torch.rand(6, 4, dtype=torch.float64) + 0.1
    weights = logits.exp() / q
    rows = -torch.log(weights[:, 0] / weights.sum(1))
    expected = rows[POSITIVES != 0].mean()
    torch.testing.assert_close(
        losses.sampled_softmax(logits, POSITIVES, q.log()), expected, rtol=1e-12, atol=0
    )


def test_correcting_only_the_negatives_has_the_gradient_of_the_paper():
    """Khrylchenko et al. 2025: the usual loss without the positive in the sum, times 1 - P(positive), held fixed."""
    logits, q = double(6, 4).requires_grad_(), torch.rand(6, 4, dtype=torch.float64) / 4

    def row_loss(rows):
        row, q = rows
        others = (row[1:].exp() / q[1:]).mean()
        surprise = (others / (row[0].exp() + others)).detach()
        return surprise * (others.log() - row[0])

    loss = losses.sampled_softmax(logits, POSITIVES, q.log(), "negatives")

    rows = list(zip(logits, q, strict=True))
    expected = torch.stack([row_loss(rows[i]) for i in range(6) if POSITIVES[i] != 0]).mean()
    (got,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(got, *torch.autograd.grad(expected, logits), rtol=1e-10, atol=1e-14)


def test_negatives_corrected_alone_estimate_the_softmax_over_the_catalogue():
    scores, q = double(21), torch.arange(1.0, 22, dtype=torch.float64) / 231
    exact = scores.logsumexp(0) - scores[4]
    others = torch.tensor([item for item in range(21) if item != 4])
    drawn = others[torch.multinomial(q[others], 200_000, replacement=True)]
    items = torch.cat([torch.tensor([4]), drawn])[None]
    share = (q / q[others].sum()).log()

    loss, usual = (
        losses.sampled_softmax(scores[items], torch.tensor([4]), share[items], corrected)
        for corrected in ("negatives", "all")
    )

    assert loss.item() == pytest.approx(exact.item(), abs=0.01)
    assert abs(usual.item() - exact.item()) > 1


def catalogue(num_tokens=11, num_items=23, width=5, dtype=torch.float64):
    """Hidden states, a table and targets, some of them none."""
    hidden = torch.randn(num_tokens, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(num_items + 1, width, dtype=dtype, requires_grad=True)
    return (
        hidden,
        weight,
        torch.randint(num_items + 1, (num_tokens,)) * (torch.arange(num_tokens) % 4 > 0),
    )


def naive_softmax(hidden, weight, positives):
    rows = positives != 0
    logits = hidden.double() @ weight[1:].double().T
    return F.cross_entropy(logits[rows], positives[rows] - 1)


@pytest.mark.parametrize(
    ("backend", "tile"),
    [("native", None), *(("reference", x) for x in [(2048, 2048), (4, 7), (11, 23), (1, 1)])],
)
def test_softmax_over_the_catalogue_and_its_gradients(backend, tile, monkeypatch):
    monkeypatch.setattr(losses, "TILE", tile)
    hidden, weight, positives = catalogue()

    loss = losses.softmax(hidden, weight, positives, backend)
    expected = naive_softmax(hidden, weight, positives)

    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    for got, exact in zip(gradients, torch.autograd.grad(expected, (hidden, weight)), strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-10, atol=1e-14)
    assert not gradients[1][0].any()


def test_softmax_gradients_by_finite_differences(monkeypatch):
    monkeypatch.setattr(losses, "TILE", (4, 7))
    hidden, weight, positives = catalogue()
    for backend in ("native", "reference"):

        def loss(h, w, backend=backend):
            return losses.softmax(h, w, positives, backend)

        assert torch.autograd.gradcheck(loss, (hidden, weight))


def test_softmax_of_many_tokens_does_not_depend_on_the_number_of_threads():
    hidden, weight, positives = catalogue(3000, 600, 4, torch.float32)

    def gradients(threads):
        torch.set_num_threads(threads)
        loss = losses.softmax(hidden, weight, positives, "native")
        return loss, *torch.autograd.grad(loss, (hidden, weight))

    before = torch.get_num_threads()
    try:
        assert all(map(torch.equal, gradients(1), gradients(3)))
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(gradients(before)[0].double(), naive_softmax(hidden, weight, positives))


def test_softmax_of_many_items_goes_tile_by_tile(monkeypatch):
    hidden, weight, positives = catalogue()
    monkeypatch.setattr(losses, "MOST_SHARED_ITEMS", len(weight) - 2)
    monkeypatch.setattr(losses.ops, "shared_loss", None)
    losses.softmax(hidden, weight, positives, "native")


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_softmax_is_finite_for_logits_that_overflow_exp(backend):
    hidden, weight = torch.tensor([[1e4]]), torch.tensor([[0.0], [1.0], [-1.0]])
    assert losses.softmax(hidden, weight, torch.tensor([2]), backend).item() == pytest.approx(2e4)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_softmax_without_any_target_is_zero_with_zero_gradient(backend):
    hidden, weight, positives = catalogue()
    loss = losses.softmax(hidden, weight, positives * 0, backend)
    assert loss.item() == 0
    assert not any(x.any() for x in torch.autograd.grad(loss, (hidden, weight)))


def test_softmax_under_autocast_has_bfloat16_products_and_float32_sums():
    hidden, weight, positives = catalogue(300, 200, 16, torch.float32)
    exact = naive_softmax(hidden, weight, positives)
    with torch.autocast("cpu", torch.bfloat16):
        loss = losses.softmax(hidden, weight, positives)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)
    for got, want in zip(gradients, torch.autograd.grad(exact, (hidden, weight)), strict=True):
        assert got.dtype == torch.float32
        assert (got - want).norm() < 0.02 * want.norm()


def test_softmax_never_holds_all_logits(monkeypatch):
    """Tokens times items would be 64 MiB; a tile is 64 KiB."""
    monkeypatch.setattr(losses, "TILE", (128, 128))
    hidden, weight, positives = catalogue(4096, 4096, 4, torch.float32)
    largest = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            largest.extend(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))
            return out

    with Watch():
        losses.softmax(hidden, weight, positives, "reference").backward()

    assert max(largest) <= 4 * 4097
