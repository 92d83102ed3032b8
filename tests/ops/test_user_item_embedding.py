"""`user_item_embedding`, forward and backward, in every implementation."""

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

every_kernel = pytest.mark.parametrize("implementation", ALL[1:], indirect=True)
every_implementation = pytest.mark.parametrize("implementation", ALL, indirect=True)

ITEM_NUM, USER_NUM, SEQ_MAX_LEN = 23, 7, 20
RAGGED_BATCH = Ragged("ragged", (5, 1, 17, 9, 2))


@dataclass(frozen=True)
class Arguments:
    item_weight: torch.Tensor
    user_weight: torch.Tensor | None
    position_weight: torch.Tensor
    items: torch.Tensor
    users: torch.Tensor | None
    positions: torch.Tensor
    cu_seqlens: torch.Tensor
    dropout_p: float = 0.0
    seed: torch.Tensor | None = None
    site: int = 0

    def to(self, device):
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return replace(self, **moved)

    def call(self, op):
        return op(*vars(self).values())


def arguments(ragged=RAGGED_BATCH, item_width=7, user_width=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    n, b = ragged.num_tokens, len(ragged.lengths)
    return Arguments(
        item_weight=normal(ITEM_NUM + 1, item_width),
        user_weight=normal(USER_NUM + 1, user_width) if user_width else None,
        position_weight=normal(SEQ_MAX_LEN, item_width + user_width),
        items=random_ids(generator, (n,), ITEM_NUM, padding=0.1),
        users=random_ids(generator, (b,), USER_NUM, padding=0.2) if user_width else None,
        positions=torch.randint(SEQ_MAX_LEN, (n,), generator=generator),
        cu_seqlens=ragged.cu_seqlens(),
    )


def by_plain_loops(a):
    x = torch.zeros(len(a.items), a.position_weight.shape[1], dtype=a.item_weight.dtype)
    item_width = a.item_weight.shape[1]
    for b in range(len(a.cu_seqlens) - 1):
        for n in range(a.cu_seqlens[b], a.cu_seqlens[b + 1]):
            if a.items[n] != 0:
                x[n, :item_width] = a.item_weight[a.items[n]] * item_width**0.5
            if a.users is not None and a.users[b] != 0:
                user = a.user_weight[a.users[b]]
                x[n, item_width:] = user * len(user) ** 0.5
            x[n] += a.position_weight[a.positions[n]]
    return x


@pytest.mark.parametrize(("item_width", "user_width"), [(7, 3), (50, 50), (12, 0)])
@pytest.mark.parametrize("ragged", RAGGED, ids=ragged_id)
@every_implementation
def test_embeddings_are_scaled_concatenated_and_placed(
    implementation, ragged, item_width, user_width
):
    a = arguments(ragged, item_width, user_width)
    x = a.to(implementation.device).call(implementation.op("user_item_embedding"))
    assert_close(x, by_plain_loops(a))


@every_implementation
def test_gradcheck_with_dropout(implementation):
    a = replace(
        arguments(Ragged("small", (2, 0, 3), spare=1)), dropout_p=0.3, seed=torch.tensor([9])
    ).to(implementation.device)

    def embed(item_weight, user_weight, position_weight):
        changed = replace(
            a, item_weight=item_weight, user_weight=user_weight, position_weight=position_weight
        )
        return changed.call(implementation.op("user_item_embedding"))

    weights = [a.item_weight, a.user_weight, a.position_weight]
    assert torch.autograd.gradcheck(embed, [w.requires_grad_() for w in weights])


@every_implementation
def test_row_zero_is_never_used_and_spare_capacity_is_zero(implementation):
    a = arguments(Ragged("spare", (3, 2), spare=2)).to(implementation.device)
    a.item_weight[0] = torch.nan
    a.user_weight[0] = torch.nan
    a.items[1] = a.users[0] = 0
    a.items[5:] = a.positions[5:] = 10**6  # ids of spare tokens are not looked at
    leaves = [w.requires_grad_() for w in (a.item_weight, a.user_weight)]
    x = a.call(implementation.op("user_item_embedding"))
    grad_item, grad_user = torch.autograd.grad(x.sum(), leaves)
    assert torch.isfinite(x).all()
    for unused in (x[5:], grad_item[0], grad_user[0]):
        assert (unused == 0).all()


@pytest.mark.parametrize(
    ("name", "id_", "rows"),
    [("items", 24, 24), ("items", -1, 24), ("users", 8, 8), ("positions", 20, 20)],
)
@every_implementation
def test_an_id_outside_its_table_is_an_index_error_that_names_it(implementation, name, id_, rows):
    a = arguments().to(implementation.device)
    getattr(a, name)[1] = id_
    op = implementation.op("user_item_embedding")
    match = f"{name} has id {id_}, outside its table of {rows} rows"
    if not implementation.is_cuda_kernel:
        with pytest.raises(IndexError, match=match):
            a.call(op)
        return
    x = a.call(op)  # counts as 0, and is reported when somebody asks
    with pytest.raises(IndexError, match=match):
        implementation.raise_pending_errors()
    implementation.raise_pending_errors()  # once only
    getattr(a, name)[1] = 0
    assert torch.equal(x, a.call(op))


WRONG = [
    ("position_weight must have", lambda a: {"position_weight": a.position_weight[:, 1:]}),
    ("item_weight must have 2 dimensions", lambda a: {"item_weight": a.item_weight[0]}),
    ("positions must have", lambda a: {"positions": a.positions[1:]}),
    ("users must have", lambda a: {"users": a.users[1:]}),
    ("given together", lambda a: {"users": None}),
    ("user_weight.*[fF]loat", lambda a: {"user_weight": a.user_weight.float()}),
    ("must be (int64|Long)", lambda a: {"items": a.items.int()}),
]


@pytest.mark.parametrize(("match", "change"), WRONG, ids=[match for match, _ in WRONG])
@every_implementation
def test_a_wrong_shape_or_type_is_a_value_error(implementation, match, change):
    a = arguments().to(implementation.device)
    with pytest.raises(ValueError, match=match):
        replace(a, **change(a)).call(implementation.op("user_item_embedding"))


def gradients(a, op, grad):
    """Output, and the gradients of the tables."""
    names = [
        k for k in ("item_weight", "user_weight", "position_weight") if getattr(a, k) is not None
    ]
    leaves = {k: getattr(a, k).detach().clone().requires_grad_() for k in names}
    x = replace(a, **leaves).call(op)
    return x, *torch.autograd.grad(x, list(leaves.values()), grad)


def in_plain_pytorch(*args):
    """As one would write it without thinking of precision; for batches without spare capacity."""
    item_weight, user_weight, position_weight, items, users, positions, cu_seqlens, *_ = args
    x = item_weight[items] * item_weight.shape[1] ** 0.5 * (items != 0)[:, None]
    if users is not None:
        user = user_weight[users] * user_weight.shape[1] ** 0.5 * (users != 0)[:, None]
        x = torch.cat([x, user.repeat_interleave(cu_seqlens.diff(), 0)], 1)
    return x + position_weight[positions]


def converted(a, dtype):
    floats = {k: getattr(a, k) for k in ("item_weight", "user_weight", "position_weight")}
    return replace(a, **{k: v if v is None else v.to(dtype) for k, v in floats.items()})


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize(("item_width", "user_width"), [(7, 3), (50, 50), (12, 0)])
@pytest.mark.parametrize("ragged", RAGGED, ids=ragged_id)
@every_kernel
def test_output_and_gradients_match_the_reference(
    implementation, ragged, item_width, user_width, dropout_p
):
    a = arguments(ragged, item_width, user_width)
    a = replace(a, dropout_p=dropout_p, seed=torch.tensor([-(3**39)]), site=2**31 + 5)
    grad = torch.randn(ragged.num_tokens, item_width + user_width, dtype=torch.float64)
    device = implementation.device
    actual = gradients(a.to(device), implementation.op("user_item_embedding"), grad.to(device))
    exact = gradients(a, reference.user_item_embedding, grad)
    for x, y in zip(actual, exact, strict=True):
        assert_close(x, y)


# Rows by 1, 2 and 4 elements at a time, and wider than a warp's one look.
@pytest.mark.parametrize("widths", [(7, 3), (50, 50), (64, 0), (300, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES], ids=str)
@every_implementation
def test_each_type_is_as_exact_as_the_policy_asks(implementation, dtype, widths):
    a = converted(arguments(RAGGED_BATCH, *widths), dtype)
    grad = torch.randn(RAGGED_BATCH.num_tokens, sum(widths)).to(dtype)
    exact = gradients(converted(a, torch.float64), reference.user_item_embedding, grad.double())
    plain = gradients(a, in_plain_pytorch, grad)
    device = implementation.device
    actual = gradients(a.to(device), implementation.op("user_item_embedding"), grad.to(device))
    for x, y, z in zip(actual, exact, plain, strict=True):
        assert x.dtype == dtype
        assert_close(x, y, z)


@every_kernel
def test_inputs_need_not_be_contiguous(implementation):
    a = arguments().to(implementation.device)
    op = implementation.op("user_item_embedding")
    strided = {
        k: torch.stack([v, torch.zeros_like(v)], -1)[..., 0]
        for k, v in vars(a).items()
        if isinstance(v, torch.Tensor)
    }
    assert torch.equal(replace(a, **strided).call(op), a.call(op))


@senseless_offsets
@pytest.mark.parametrize("implementation", ALL[2:], indirect=True)
def test_senseless_offsets_are_not_followed_out_of_the_tensors(implementation, offsets):
    a = with_offsets_amid_traps(arguments().to(implementation.device), offsets)
    out = a.call(implementation.op("user_item_embedding"))
    backward = implementation.op("user_item_embedding_backward")
    grad = amid_traps(torch.ones_like(out))
    for item_order in (None, a.items.argsort(stable=True)):
        for x in (out, *backward(grad, *vars(a).values(), item_order)):
            assert torch.isfinite(x).all()
    implementation.raise_pending_errors()


@every_kernel
def test_backward_does_not_follow_an_id_outside_its_table(implementation):
    a = arguments().to(implementation.device)
    backward = implementation.op("user_item_embedding_backward")
    grad = torch.ones(RAGGED_BATCH.num_tokens, 10, dtype=torch.float64, device=a.items.device)
    if implementation.is_cuda_kernel:
        a.items[0] = a.users[0] = 0
        exact = backward(grad, *vars(a).values(), None)
        a.items[0] = a.users[0] = 10**9
        for item_order in (None, a.items.argsort(stable=True)):
            actual = backward(grad, *vars(a).values(), item_order)
            with pytest.raises(IndexError):
                implementation.raise_pending_errors()
            for x, y in zip(actual, exact, strict=True):
                assert_close(x, y)
    else:
        a.items[0] = 10**9
        with pytest.raises(IndexError, match="items has id 1000000000"):
            backward(grad, *vars(a).values(), None)


@every_kernel
def test_the_gradient_of_a_user_is_the_sum_over_the_users_sequences(implementation):
    a = arguments().to(implementation.device)
    op = implementation.op("user_item_embedding")
    grad = torch.randn(RAGGED_BATCH.num_tokens, 10, dtype=torch.float64, device=a.items.device)
    apart = replace(a, users=torch.arange(1, 6, device=a.items.device))
    shared = replace(a, users=torch.tensor([6, 0, 6, 2, 6], device=a.items.device))
    by_sequence = gradients(apart, op, grad)[2][1:6]
    grad_user = gradients(shared, op, grad)[2]
    assert_close(grad_user[6], by_sequence[[0, 2, 4]].sum(0))
    assert_close(grad_user[2], by_sequence[3])
    assert (grad_user[[0, 1, 3, 4, 5, 7]] == 0).all()


@every_kernel
def test_opcheck(implementation):
    a = replace(arguments(dtype=torch.float32), dropout_p=0.3, seed=torch.tensor([4]))
    a = a.to(implementation.device)
    leaves = [
        x.requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for x in vars(a).values()
    ]
    op = getattr(torch.ops, implementation.namespace).user_item_embedding.default
    torch.library.opcheck(op, tuple(leaves))


@pytest.mark.parametrize("implementation", ALL[2:], indirect=True)
def test_summing_in_a_fixed_order_gives_the_atomics_gradient(implementation):
    a = arguments(Ragged("spare", (40, 3), spare=4), 50, 50)
    a = replace(a, dropout_p=0.3, seed=torch.tensor([4])).to(implementation.device)
    grad = torch.randn(47, 100, dtype=torch.float64).to(implementation.device)
    backward = implementation.op("user_item_embedding_backward")
    by_atomics = backward(grad, *vars(a).values(), None)
    in_order = backward(grad, *vars(a).values(), a.items.argsort(stable=True))
    for x, y in zip(in_order, by_atomics, strict=True):
        assert_close(x, y)


@every_kernel
def test_gradients_of_tables_are_the_same_bits_every_time(implementation):
    a = arguments(Ragged("long", (2000, 1000)), 50, 50, torch.float32)
    a = replace(a, dropout_p=0.3, seed=torch.tensor([4])).to(implementation.device)
    op = implementation.op("user_item_embedding")
    grad = torch.randn(3000, 100).to(implementation.device)
    torch.use_deterministic_algorithms(True)
    try:
        first = gradients(a, op, grad)
        torch.set_num_threads(1)
        second = gradients(a, op, grad)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(2)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ragged", RAGGED, ids=ragged_id)
@every_kernel
def test_what_is_given_is_added_to_the_gradients_of_tables(implementation, ragged, dtype, in_order):
    a = arguments(ragged, dtype=dtype).to(implementation.device)
    n, width = len(a.items), a.position_weight.shape[1]
    grad = torch.randn(n, width).to(dtype).to(implementation.device)
    more = [torch.randn_like(x) for x in (a.item_weight, a.user_weight)]
    order = a.items.argsort(stable=True) if in_order else None
    backward = implementation.op("user_item_embedding_backward")

    with_more = backward(grad, *vars(a).values(), order, *more)

    without = backward(grad, *vars(a).values(), order)
    for x, y, z in zip(with_more, without, (*more, 0), strict=True):
        assert_close(x, y + z)


def test_the_tables_that_come_with_an_embedding_add_to_its_gradients():
    a = arguments()
    for t in (tables := [a.item_weight, a.user_weight, a.position_weight]):
        t.requires_grad_()
    expected = ops.user_item_embedding(*vars(a).values(), backend="native")
    by_autograd = torch.autograd.grad(
        expected.sum() + a.item_weight.square().sum() + a.user_weight.sum(), tables
    )

    x, item_weight, user_weight = ops.user_item_embedding_and_tables(
        *vars(a).values(), backend="native"
    )

    loss = x.sum() + item_weight.square().sum() + user_weight.sum()
    assert torch.equal(x, expected)
    for x, y in zip(torch.autograd.grad(loss, tables), by_autograd, strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_gradient_of_the_tables_alone_or_of_the_embedding_alone_is_enough(backend):
    a = arguments(user_width=0)
    a.item_weight.requires_grad_()
    x, table, users = ops.user_item_embedding_and_tables(*vars(a).values(), backend=backend)
    assert users is None
    for used, expected in ((x, ops.user_item_embedding(*vars(a).values())), (table, a.item_weight)):
        given = torch.randn_like(used)
        (actual,) = torch.autograd.grad(used, a.item_weight, given, retain_graph=True)
        assert_close(actual, torch.autograd.grad(expected, a.item_weight, given)[0])


def test_the_embedding_with_tables_has_no_second_derivatives():
    a = arguments()
    a.item_weight.requires_grad_()
    x, *_ = ops.user_item_embedding_and_tables(*vars(a).values(), backend="native")
    (grad,) = torch.autograd.grad(x.square().sum(), a.item_weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="user_item_embedding has no second derivatives"):
        grad.sum().backward()
