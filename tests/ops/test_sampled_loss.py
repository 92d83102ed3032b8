"""`sampled_loss`, forward and backward, in every implementation, against the losses of `sampled_logits`."""

import math
from dataclasses import replace

import pytest
import torch
from support.implementations import ALL
from support.loss_calls import (
    ITEM_NUM,
    OPTIONS,
    SIZES,
    USER_NUM,
    Sizes,
    arguments,
    definition,
    in_plain_pytorch,
    of_logits,
)
from support.samples import (
    RAGGED,
    Ragged,
    amid_traps,
    outputs_and_gradients,
    ragged_id,
    senseless_offsets,
    with_offsets_amid_traps,
)
from support.tolerances import HALF_TYPES, assert_close

from ssept_ext import ops

every_implementation = pytest.mark.parametrize("implementation", ALL, indirect=True)
every_kernel = pytest.mark.parametrize("implementation", ALL[1:], indirect=True)
every_loss = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@every_loss
@pytest.mark.parametrize("ragged", RAGGED, ids=ragged_id)
@every_implementation
def test_loss_and_gradients_are_those_of_the_definition(implementation, ragged, options):
    a = arguments(ragged, options=options)
    actual = a.to(implementation.device).results(implementation.op("sampled_loss"))
    for x, y in zip(actual, a.results(definition), strict=True):
        assert_close(x, torch.where(y.abs() < 1e-14, 0, y))  # but for the rounding of float64


@every_loss
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@every_implementation
def test_any_number_of_negatives_and_any_width_will_do(implementation, sizes, options):
    a = arguments(sizes=sizes, options=options)
    actual = a.to(implementation.device).results(implementation.op("sampled_loss"))
    for x, y in zip(actual, a.results(definition), strict=True):
        assert_close(x, torch.where(y.abs() < 1e-14, 0, y))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES], ids=str)
@every_loss
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@every_implementation
def test_each_type_is_as_exact_as_the_policy_asks(implementation, sizes, options, dtype):
    a = arguments(sizes=sizes, options=options, dtype=dtype)
    exact = a.to(torch.float64).results(definition)
    plain = a.results(of_logits(in_plain_pytorch))
    loss, *gradients = a.to(implementation.device).results(implementation.op("sampled_loss"))
    assert loss.dtype == torch.float32
    assert_close(loss, exact[0], plain[0], tf32=dtype != torch.float32)
    for x, y, z in zip(gradients, exact[1:], plain[1:], strict=True):
        assert x.dtype == dtype
        assert_close(x, y, z)


@pytest.mark.parametrize("loss", ["bce", "sampled_softmax"])
@every_kernel
def test_loss_and_gradient_are_exact_at_every_size_of_a_logit(implementation, loss):
    """One token, whose hidden state is 1, with item 1 as the positive, and item 2, whose logit is 0, as a negative."""
    op = implementation.op("sampled_loss")
    ids = torch.tensor([1]), torch.tensor([[2]] if loss == "sampled_softmax" else [[]]).long()
    offsets = torch.tensor([0, 1], dtype=torch.int32)

    def results(logit, dtype):
        given = torch.ones(1, 1, dtype=dtype), torch.tensor([[9.0], [logit], [0.0]], dtype=dtype)
        tensors = (*given, None, *ids, None, offsets)
        moved = [x if x is None else x.to(implementation.device) for x in tensors]
        return outputs_and_gradients(lambda *args: op(*args, loss, 1.0, None, True), moved)

    for logit in [*torch.linspace(-80, 80, 161).tolist(), -1e4, 1e4]:
        value, _, grad_item = results(logit, torch.float32)
        exact = torch.tensor(-logit, dtype=torch.float64)
        softplus = torch.logaddexp(exact, torch.zeros(()))
        assert value.item() == pytest.approx(softplus.item(), rel=4e-7, abs=1e-7)
        assert grad_item[1].item() == pytest.approx(-exact.sigmoid().item(), rel=4e-7, abs=1e-7)


@every_loss
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("of_positive", [True, False])
@every_implementation
def test_a_logit_that_is_not_finite_shows_in_the_loss(implementation, of_positive, value, options):
    a = arguments(Ragged("", (2, 3)), options=options, dtype=torch.float32)
    a.positives[:] = 5
    a.negatives[:] = 6
    a.hidden[1, 0] = 1
    a.item_weight[5 if of_positive else 6, 0] = value
    a.hidden[[0, 2, 3, 4], 0] = 0  # where 0 times infinity would be NaN
    a = replace(a, positives=a.positives * (torch.arange(5) == 1))

    actual, *_ = a.to(implementation.device).results(implementation.op("sampled_loss"))

    torch.testing.assert_close(actual.cpu(), a.results(definition)[0], equal_nan=True)


@every_loss
@every_implementation
def test_a_token_without_a_target_counts_for_nothing(implementation, options):
    a = arguments(Ragged("spare", (3, 2), spare=2), options=options).to(implementation.device)
    a.positives[:] = torch.tensor([4, 0, 5, 6, 0, 7, 8])
    a.hidden[5:] = torch.nan
    a.item_weight[0] = torch.nan
    a.user_weight[0] = torch.nan
    op = implementation.op("sampled_loss")
    loss, grad_hidden, grad_item, grad_user = a.results(op)

    a.hidden[[1, 4]] += 1
    a.negatives[[1, 4]] = 3

    assert torch.equal(loss, a.results(op)[0])
    for unused in (grad_hidden[[1, 4, 5, 6]], grad_item[0], grad_user[0]):
        assert (unused == 0).all()


@every_loss
@every_implementation
def test_without_any_target_loss_and_gradients_are_zero(implementation, options):
    a = arguments(options=options).to(implementation.device)
    a.positives[:] = 0
    assert not any(x.any() for x in a.results(implementation.op("sampled_loss")))


@every_implementation
def test_gradients_are_multiplied_by_what_comes_in(implementation):
    a = arguments().to(implementation.device)
    op = implementation.op("sampled_loss")
    grad = torch.tensor(-3.0, dtype=torch.float64, device=a.hidden.device)
    actual = outputs_and_gradients(op, vars(a).values(), grad)
    for x, y in zip(actual[1:], a.results(op)[1:], strict=True):
        assert_close(x, -3 * y)


@every_kernel
def test_the_mean_of_more_tokens_than_a_block_adds_up_at_once(implementation):
    tokens = 4500
    a = arguments(Ragged("long", (tokens,)), Sizes(1, 1, 0), dtype=torch.float32)
    loss, *_ = a.to(implementation.device).results(implementation.op("sampled_loss"))
    assert_close(loss, a.to(torch.float64).results(definition)[0])


@pytest.mark.parametrize(
    ("name", "id_"),
    [("positives", ITEM_NUM + 1), ("negatives", -1), ("users", USER_NUM + 1)],
)
@every_implementation
def test_an_id_outside_its_table_is_an_index_error_that_names_it(implementation, name, id_):
    a = arguments().to(implementation.device)
    getattr(a, name).view(-1)[1] = id_
    rows = (USER_NUM if name == "users" else ITEM_NUM) + 1
    op = implementation.op("sampled_loss")
    match = f"{name} has id {id_}, outside its table of {rows} rows"
    if not implementation.is_cuda_kernel:
        with pytest.raises(IndexError, match=match):
            a.results(op)
        return
    results = a.results(op)  # counts as padding, and is reported when somebody asks
    with pytest.raises(IndexError, match=match):
        implementation.raise_pending_errors()
    getattr(a, name).view(-1)[1] = 0
    for x, y in zip(results, a.results(op), strict=True):
        assert_close(x, y)
    implementation.raise_pending_errors()


@every_kernel
def test_backward_does_not_follow_an_id_outside_its_table(implementation):
    a = arguments(sizes=SIZES[0], dtype=torch.float32).to(implementation.device)
    items = torch.cat([a.positives[:, None], a.negatives], 1)
    for ids in (items[0], a.users):
        ids[0] = 10**9
    one = torch.ones((), device=a.hidden.device)
    tensors = (a.hidden, a.item_weight, a.user_weight, items, a.users, a.cu_seqlens)
    backward = implementation.op("sampled_loss_backward")

    def gradients():
        return backward(torch.ones_like(a.hidden[:, :2]), *tensors, None, one, one)

    if not implementation.is_cuda_kernel:
        with pytest.raises(IndexError):
            gradients()
        return
    grad_hidden, _, grad_user = gradients()
    with pytest.raises(IndexError):
        implementation.raise_pending_errors()
    assert (grad_hidden[0] == 0).all()
    assert torch.isfinite(grad_user).all()


@every_kernel
def test_inputs_need_not_be_contiguous(implementation):
    a = arguments().to(implementation.device)
    strided = replace(
        a,
        **{
            n: torch.stack([x, torch.zeros_like(x)], -1)[..., 0]
            for n, x in vars(a).items()
            if isinstance(x, torch.Tensor)
        },
    )
    assert not strided.hidden.is_contiguous()
    op = implementation.op("sampled_loss")
    for x, y in zip(strided.results(op), a.results(op), strict=True):
        assert_close(x, y)


WRONG = [
    ("hidden must have (size 10|shape)", lambda a: {"hidden": a.hidden[:, 1:]}),
    ("positives must have (size 34|shape)", lambda a: {"positives": a.positives[1:]}),
    ("positives must (be int64|be Long)", lambda a: {"positives": a.positives.int()}),
    ("negatives must have 2 dimensions", lambda a: {"negatives": a.negatives[:, 0]}),
    ("negatives must (be int64|be Long)", lambda a: {"negatives": a.negatives.int()}),
    ("user_weight and users must be given together", lambda a: {"users": None}),
    ("log_q must have (size 24|shape)", lambda a: {"log_q": a.log_q[1:]}),
    ("log_q must be (torch.float64|Double)", lambda a: {"log_q": a.log_q.float()}),
    ("loss must be bce, bpr or sampled_softmax, got hinge", lambda a: {"loss": "hinge"}),
    ("beta must be finite, got nan", lambda a: {"beta": math.nan}),
]


@pytest.mark.parametrize(("match", "change"), WRONG, ids=[match for match, _ in WRONG])
@every_implementation
def test_a_wrong_argument_is_a_value_error(implementation, match, change):
    a = arguments().to(implementation.device)
    with pytest.raises(ValueError, match=match):
        replace(a, **change(a)).results(implementation.op("sampled_loss"))


@senseless_offsets
@pytest.mark.parametrize("implementation", ALL[2:], indirect=True)
def test_senseless_offsets_are_not_followed_out_of_the_tensors(implementation, offsets):
    a = with_offsets_amid_traps(arguments().to(implementation.device), offsets)
    a = replace(a, log_q=amid_traps(a.log_q))
    loss, *gradients = a.results(implementation.op("sampled_loss"))
    assert all(torch.isfinite(x).all() for x in (loss, *gradients))
    implementation.raise_pending_errors()


@every_loss
@every_implementation
def test_gradcheck(implementation, options):
    a = arguments(Ragged("small", (2, 0, 3), spare=1), options=options).to(implementation.device)
    floats = [a.hidden, a.item_weight, a.user_weight]
    others = list(vars(a).values())[3:]

    def loss(*tables):
        return implementation.op("sampled_loss")(*tables, *others)

    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in floats])


@pytest.mark.parametrize("sizes", SIZES[1:3], ids=str)
@every_kernel
def test_opcheck(implementation, sizes):
    a = arguments(sizes=sizes, dtype=torch.float32).to(implementation.device)
    for x in (a.hidden, a.item_weight, a.user_weight):
        if x is not None:
            x.requires_grad_()
    op = getattr(torch.ops, implementation.namespace).sampled_loss.default
    torch.library.opcheck(op, tuple(vars(a).values()))


def test_compiling_for_changing_lengths_makes_at_most_two_graphs():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ops.sampled_loss, backend=counter, fullgraph=True, dynamic=True)
    for lengths in [(5, 4), (4, 9), (1, 12), (7, 7), (2, 30)]:
        given = vars(arguments(Ragged("", lengths)))
        assert_close(compiled(**given), definition(*given.values()))
    assert counter.frame_count <= 2


@every_kernel
def test_results_are_the_same_bits_every_time(implementation):
    a = arguments(Ragged("long", (200, 100)), SIZES[3], dtype=torch.float32)
    a = a.to(implementation.device)
    op = implementation.op("sampled_loss")
    torch.use_deterministic_algorithms(True)
    try:
        first = a.results(op)
        torch.set_num_threads(1)
        second = a.results(op)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(2)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("implementation", ALL[2:], indirect=True)
def test_summing_in_a_fixed_order_gives_the_atomics_gradient(implementation):
    a = arguments(Ragged("spare", (140, 3), spare=4)).to(implementation.device)
    a.positives[10:110] = 5  # popular: more entries than a warp looks at in one go
    factors = [torch.tensor(x, dtype=torch.float64, device=a.hidden.device) for x in (3.0, 0.5)]
    grad_logits = torch.randn(147, 3, dtype=torch.float64).to(a.hidden.device)
    items = torch.cat([a.positives[:, None], a.negatives], 1)
    given = (a.hidden, a.item_weight, a.user_weight, items, a.users, a.cu_seqlens)
    backward = implementation.op("sampled_loss_backward")
    order = items.flatten().argsort(stable=True)
    in_order = backward(grad_logits, *given, order, *factors)
    for x, y in zip(in_order, backward(grad_logits, *given, None, *factors), strict=True):
        assert_close(x, y)
