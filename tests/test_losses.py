import pytest
import torch

from ssept_ext import losses


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
