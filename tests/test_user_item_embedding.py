"""`user_item_embedding`, forward and backward, in every implementation."""

from dataclasses import dataclass, replace

import pytest
import torch
from implementations import ALL
from samples import RAGGED, Ragged, ragged_id, random_ids
from tolerances import assert_close

every_implementation = pytest.mark.parametrize("implementation", ALL[:1], indirect=True)

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
    x = a.call(implementation.op("user_item_embedding"))
    assert_close(x, by_plain_loops(a))


@every_implementation
def test_gradcheck_with_dropout(implementation):
    a = arguments(Ragged("small", (2, 0, 3), spare=1))

    def embed(item_weight, user_weight, position_weight):
        changed = replace(
            a,
            item_weight=item_weight,
            user_weight=user_weight,
            position_weight=position_weight,
            dropout_p=0.3,
            seed=torch.tensor([9]),
        )
        return changed.call(implementation.op("user_item_embedding"))

    weights = [a.item_weight, a.user_weight, a.position_weight]
    assert torch.autograd.gradcheck(embed, [w.requires_grad_() for w in weights])


@every_implementation
def test_row_zero_is_never_used_and_spare_capacity_is_zero(implementation):
    a = arguments(Ragged("spare", (3, 2), spare=2))
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
    a = arguments()
    getattr(a, name)[1] = id_
    with pytest.raises(IndexError, match=f"{name} has id {id_}, outside its table of {rows} rows"):
        a.call(implementation.op("user_item_embedding"))


WRONG = [
    ("position_weight must have", lambda a: {"position_weight": a.position_weight[:, 1:]}),
    ("item_weight must have 2 dimensions", lambda a: {"item_weight": a.item_weight[0]}),
    ("positions must have", lambda a: {"positions": a.positions[1:]}),
    ("users must have", lambda a: {"users": a.users[1:]}),
    ("given together", lambda a: {"users": None}),
    ("user_weight.*[fF]loat", lambda a: {"user_weight": a.user_weight.float()}),
    ("must be int64", lambda a: {"items": a.items.int()}),
]


@pytest.mark.parametrize(("match", "change"), WRONG, ids=[match for match, _ in WRONG])
@every_implementation
def test_a_wrong_shape_or_type_is_a_value_error(implementation, match, change):
    with pytest.raises(ValueError, match=match):
        replace(arguments(), **change(arguments())).call(implementation.op("user_item_embedding"))
