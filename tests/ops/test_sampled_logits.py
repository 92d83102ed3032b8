"""`sampled_logits`, forward and backward, in every implementation."""

from dataclasses import dataclass, replace

import pytest
import torch
from support.implementations import ALL
from support.samples import (
    RAGGED,
    Ragged,
    amid_traps,
    ragged_id,
    random_ids,
    senseless_offsets,
    with_offsets_amid_traps,
)
from support.tolerances import HALF_TYPES, assert_close

from ssept_ext import ops
from ssept_ext.ops import reference

every_implementation = pytest.mark.parametrize("implementation", ALL, indirect=True)
every_kernel = pytest.mark.parametrize("implementation", ALL[1:], indirect=True)

ITEM_NUM, USER_NUM = 23, 7
RAGGED_BATCH = Ragged("ragged", (5, 1, 17, 9, 2))


@dataclass(frozen=True)
class Sizes:
    num_items: int
    item_width: int
    user_width: int


SIZES = [
    Sizes(num_items=1, item_width=50, user_width=50),
    Sizes(num_items=2, item_width=7, user_width=3),
    Sizes(num_items=3, item_width=100, user_width=0),
    Sizes(num_items=70, item_width=16, user_width=9),
    Sizes(num_items=5, item_width=70, user_width=33),
    Sizes(num_items=0, item_width=4, user_width=4),
]


@dataclass(frozen=True)
class Arguments:
    hidden: torch.Tensor
    item_weight: torch.Tensor
    user_weight: torch.Tensor | None
    items: torch.Tensor
    users: torch.Tensor | None
    cu_seqlens: torch.Tensor

    def to(self, *args):
        """Converts floats, and moves all."""
        device = args[0] if isinstance(args[0], str) else None
        moved = {
            k: v if v is None else v.to(*args) if v.is_floating_point() else v.to(device)
            for k, v in vars(self).items()
        }
        return Arguments(**moved)

    def call(self, op):
        return op(*vars(self).values())

    def gradients(self, op, grad_logits):
        """Logits, and the gradients of hidden, item_weight and, if there are users, user_weight."""
        leaves = {
            k: v.detach().clone().requires_grad_()
            for k, v in vars(self).items()
            if v is not None and v.is_floating_point()
        }
        logits = replace(self, **leaves).call(op)
        return logits, *torch.autograd.grad(logits, list(leaves.values()), grad_logits)


def arguments(ragged=RAGGED_BATCH, sizes=SIZES[1], dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    n, b = ragged.num_tokens, len(ragged.lengths)
    with_users = sizes.user_width > 0
    return Arguments(
        hidden=normal(n, sizes.item_width + sizes.user_width),
        item_weight=normal(ITEM_NUM + 1, sizes.item_width),
        user_weight=normal(USER_NUM + 1, sizes.user_width) if with_users else None,
        items=random_ids(generator, (n, sizes.num_items), ITEM_NUM, padding=0.2),
        users=random_ids(generator, (b,), USER_NUM, padding=0.2) if with_users else None,
        cu_seqlens=ragged.cu_seqlens(),
    )


def by_plain_loops(a):
    logits = torch.zeros(a.items.shape, dtype=a.hidden.dtype)
    item_width = a.item_weight.shape[1]
    for b in range(len(a.cu_seqlens) - 1):
        for n in range(a.cu_seqlens[b], a.cu_seqlens[b + 1]):
            for k, item in enumerate(a.items[n].tolist()):
                if item == 0:
                    continue
                logits[n, k] = a.hidden[n, :item_width] @ a.item_weight[item]
                if a.users is not None and a.users[b] != 0:
                    user = a.user_weight[a.users[b]]
                    logits[n, k] += a.hidden[n, item_width:] @ user * len(user) ** 0.5
    return logits


def in_plain_pytorch(hidden, item_weight, user_weight, items, users, cu_seqlens):
    """As one would write it without thinking of precision; for batches without spare capacity."""
    vectors = item_weight[items]
    if users is not None:
        user = user_weight[users] * user_weight.shape[1] ** 0.5 * (users != 0)[:, None]
        user = user.repeat_interleave(cu_seqlens.diff(), 0)
        vectors = torch.cat([vectors, user[:, None].expand(-1, items.shape[1], -1)], -1)
    return (vectors * hidden[:, None]).sum(-1) * (items != 0)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("ragged", RAGGED, ids=ragged_id)
@every_implementation
def test_logits_are_the_dot_products_of_the_definition(implementation, ragged, sizes):
    a = arguments(ragged, sizes)
    logits = a.to(implementation.device).call(implementation.op("sampled_logits"))
    assert_close(logits, by_plain_loops(a))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("ragged", RAGGED, ids=ragged_id)
@every_kernel
def test_gradients_match_the_reference(implementation, ragged, sizes):
    a = arguments(ragged, sizes)
    grad_logits = torch.randn(a.items.shape, dtype=torch.float64)
    actual = a.to(implementation.device).gradients(
        implementation.op("sampled_logits"), grad_logits.to(implementation.device)
    )
    exact = a.gradients(reference.sampled_logits, grad_logits)
    for x, y in zip(actual, exact, strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES], ids=str)
@pytest.mark.parametrize("sizes", SIZES[:5], ids=str)
@every_implementation
def test_each_type_is_as_exact_as_the_policy_asks(implementation, sizes, dtype):
    a = arguments(sizes=sizes, dtype=dtype)
    grad_logits = torch.randn(a.items.shape).to(dtype)
    exact = a.to(torch.float64).gradients(reference.sampled_logits, grad_logits.double())
    plain = a.gradients(in_plain_pytorch, grad_logits)
    actual = a.to(implementation.device).gradients(
        implementation.op("sampled_logits"), grad_logits.to(implementation.device)
    )
    for x, y, z in zip(actual, exact, plain, strict=True):
        assert x.dtype == dtype
        assert_close(x, y, z)


@every_implementation
def test_padding_scores_exactly_zero_and_row_zero_of_a_table_is_never_used(implementation):
    a = arguments(Ragged("spare", (3, 2), spare=2)).to(implementation.device)
    a.users[0] = 0
    a.item_weight[0] = torch.nan
    a.user_weight[0] = torch.nan
    a.hidden[5:] = torch.nan
    a.items[1, 0] = 0
    logits, grad_hidden, grad_item, grad_user = a.gradients(
        implementation.op("sampled_logits"), torch.ones_like(a.items, dtype=torch.float64)
    )
    assert (logits[a.items == 0] == 0).all()
    assert (logits[5:] == 0).all()
    assert torch.isfinite(logits).all()
    for unused in (grad_hidden[5:], grad_item[0], grad_user[0]):
        assert (unused == 0).all()


@pytest.mark.parametrize(
    ("name", "id_"), [("items", ITEM_NUM + 1), ("items", -1), ("users", USER_NUM + 1)]
)
@every_implementation
def test_an_id_outside_its_table_is_an_index_error_that_names_it(implementation, name, id_):
    a = arguments().to(implementation.device)
    getattr(a, name).view(-1)[1] = id_
    rows = {"items": ITEM_NUM + 1, "users": USER_NUM + 1}[name]
    op = implementation.op("sampled_logits")
    match = f"{name} has id {id_}, outside its table of {rows} rows"
    if not implementation.is_cuda_kernel:
        with pytest.raises(IndexError, match=match):
            a.call(op)
        return
    logits = a.call(op)  # counts as padding, and is reported when somebody asks
    with pytest.raises(IndexError, match=match):
        implementation.raise_pending_errors()
    implementation.raise_pending_errors()  # once only
    getattr(a, name).view(-1)[1] = 0
    assert torch.equal(logits, a.call(op))


@every_kernel
def test_backward_does_not_follow_an_id_outside_its_table(implementation):
    a = arguments(sizes=SIZES[0], dtype=torch.float32).to(implementation.device)
    grad = torch.ones(a.items.shape, device=implementation.device)
    a.items[0, 0] = 10**9
    a.users[0] = 10**9
    backward = implementation.op("sampled_logits_backward")
    if implementation.is_cuda_kernel:
        grad_hidden, _, grad_user = backward(grad, *vars(a).values(), None)
        with pytest.raises(IndexError):
            implementation.raise_pending_errors()
        assert (grad_hidden[0] == 0).all()
        assert (grad_user[0] == 0).all()
    else:
        with pytest.raises(IndexError):
            backward(grad, *vars(a).values(), None)


@every_kernel
def test_the_gradient_of_a_user_is_the_sum_over_the_users_sequences(implementation):
    a = arguments().to(implementation.device)
    op = implementation.op("sampled_logits")
    grad = torch.randn(a.items.shape, dtype=torch.float64, device=implementation.device)
    apart = replace(a, users=torch.arange(1, 6, device=implementation.device))
    shared = replace(a, users=torch.tensor([6, 0, 6, 2, 6], device=implementation.device))
    by_sequence = apart.gradients(op, grad)[3][1:6]
    grad_user = shared.gradients(op, grad)[3]
    assert_close(grad_user[6], by_sequence[[0, 2, 4]].sum(0))
    assert_close(grad_user[2], by_sequence[3])
    assert (grad_user[[0, 1, 3, 4, 5, 7]] == 0).all()


@every_kernel
def test_inputs_need_not_be_contiguous(implementation):
    a = arguments().to(implementation.device)
    strided = Arguments(
        *(
            None if x is None else torch.stack([x, torch.zeros_like(x)], -1)[..., 0]
            for x in vars(a).values()
        )
    )
    assert not strided.hidden.is_contiguous()
    op = implementation.op("sampled_logits")
    grad = torch.randn(a.items.shape[::-1], dtype=torch.float64, device=a.hidden.device).t()
    for x, y in zip(strided.gradients(op, grad), a.gradients(op, grad.contiguous()), strict=True):
        assert_close(x, y)


WRONG = [
    ("hidden must have (size 10|shape)", lambda a: {"hidden": a.hidden[:, 1:]}),
    ("hidden must have (size 34|shape)", lambda a: {"hidden": a.hidden[1:]}),
    ("item_weight must have 2 dimensions", lambda a: {"item_weight": a.item_weight[0]}),
    ("items must have 2 dimensions", lambda a: {"items": a.items[:, 0]}),
    ("users must have (size 5|shape)", lambda a: {"users": a.users[1:]}),
    ("user_weight and users must be given together", lambda a: {"users": None}),
    ("cu_seqlens must be [iI]nt", lambda a: {"cu_seqlens": a.cu_seqlens.long()}),
    ("item_weight.*[fF]loat", lambda a: {"item_weight": a.item_weight.float()}),
    ("must be (int64|Long)", lambda a: {"items": a.items.int()}),
]


@pytest.mark.parametrize(("match", "change"), WRONG, ids=[match for match, _ in WRONG])
@every_implementation
def test_a_wrong_shape_or_type_is_a_value_error(implementation, match, change):
    a = arguments().to(implementation.device)
    with pytest.raises(ValueError, match=match):
        replace(a, **change(a)).call(implementation.op("sampled_logits"))


@pytest.mark.parametrize("implementation", ["reference", "native"], indirect=True)
@pytest.mark.parametrize(
    "wrong", [[0, 5, 3, 20, 30, 34], [1, 5, 6, 23, 32, 34], [0, 5, 6, 23, 32, 99]]
)
def test_offsets_that_do_not_describe_the_tokens_are_a_value_error(implementation, wrong):
    a = replace(arguments(), cu_seqlens=torch.tensor(wrong, dtype=torch.int32))
    with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to at most 34"):
        a.call(implementation.op("sampled_logits"))


@senseless_offsets
@pytest.mark.parametrize("implementation", ALL[2:], indirect=True)
def test_senseless_offsets_are_not_followed_out_of_the_tensors(implementation, offsets):
    a = with_offsets_amid_traps(arguments().to(implementation.device), offsets)
    logits = a.call(implementation.op("sampled_logits"))
    backward = implementation.op("sampled_logits_backward")
    grad = amid_traps(torch.ones_like(logits))
    for item_order in (None, a.items.flatten().argsort(stable=True)):
        for x in (logits, *backward(grad, *vars(a).values(), item_order)):
            assert torch.isfinite(x).all()
    implementation.raise_pending_errors()


@every_implementation
def test_gradcheck(implementation):
    a = arguments(Ragged("small", (2, 0, 3), spare=1)).to(implementation.device)
    floats = [a.hidden, a.item_weight, a.user_weight]

    def logits(hidden, item_weight, user_weight):
        changed = replace(a, hidden=hidden, item_weight=item_weight, user_weight=user_weight)
        return changed.call(implementation.op("sampled_logits"))

    assert torch.autograd.gradcheck(logits, [x.requires_grad_() for x in floats])


@pytest.mark.parametrize("sizes", SIZES[1:3], ids=str)
@every_kernel
def test_opcheck(implementation, sizes):
    a = arguments(sizes=sizes, dtype=torch.float32).to(implementation.device)
    leaves = [
        x if x is None or not x.is_floating_point() else x.requires_grad_()
        for x in vars(a).values()
    ]
    op = getattr(torch.ops, implementation.namespace).sampled_logits.default
    torch.library.opcheck(op, tuple(leaves))


def test_compiling_for_changing_lengths_makes_at_most_two_graphs():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ops.sampled_logits, backend=counter, fullgraph=True, dynamic=True)
    for lengths in [(5, 3), (4, 9), (1, 12), (7, 7), (2, 30)]:
        a = arguments(Ragged("", lengths))
        assert_close(compiled(*vars(a).values()), by_plain_loops(a))
    assert counter.frame_count <= 2


@every_kernel
def test_gradients_of_tables_are_the_same_bits_every_time(implementation):
    a = arguments(Ragged("long", (200, 100)), SIZES[3], torch.float32).to(implementation.device)
    grad = torch.randn(a.items.shape).to(implementation.device)
    op = implementation.op("sampled_logits")
    torch.use_deterministic_algorithms(True)
    try:
        first = a.gradients(op, grad)
        torch.set_num_threads(1)
        second = a.gradients(op, grad)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(2)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("implementation", ALL[2:], indirect=True)
def test_summing_in_a_fixed_order_gives_the_atomics_gradient(implementation):
    a = arguments(Ragged("spare", (140, 3), spare=4), SIZES[0]).to(implementation.device)
    a.items[10:110] = 5  # popular: more entries than a warp looks at in one go
    grad = torch.randn(a.items.shape, dtype=torch.float64).to(implementation.device)
    backward = implementation.op("sampled_logits_backward")
    by_atomics = backward(grad, *vars(a).values(), None)
    in_order = backward(grad, *vars(a).values(), a.items.flatten().argsort(stable=True))
    for x, y in zip(in_order, by_atomics, strict=True):
        assert_close(x, y)
