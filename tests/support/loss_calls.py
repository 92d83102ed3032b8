"""Arguments of `sampled_loss`, and what it computes in plain PyTorch."""

import math
from dataclasses import dataclass, replace

import torch
from support.samples import (
    Ragged,
    outputs_and_gradients,
    random_ids,
)

from ssept_ext.network import losses
from ssept_ext.ops import reference

ITEM_NUM, USER_NUM = 23, 7
RAGGED_BATCH = Ragged("ragged", (5, 1, 17, 9, 2))
OPTIONS = {  # loss, beta, with log_q, corrects_positive
    "bce": ("bce", 1.0, False, True),
    "gbce": ("bce", 0.4, False, True),
    "bpr": ("bpr", 1.0, False, True),
    "bpr, negatives corrected": ("bpr", 1.0, True, False),
    "sampled softmax": ("sampled_softmax", 1.0, False, True),
    "corrected": ("sampled_softmax", 1.0, True, True),
    "negatives corrected": ("sampled_softmax", 1.0, True, False),
}


@dataclass(frozen=True)
class Sizes:
    num_negatives: int
    item_width: int
    user_width: int


SIZES = [
    Sizes(num_negatives=1, item_width=50, user_width=50),
    Sizes(num_negatives=2, item_width=7, user_width=3),
    Sizes(num_negatives=3, item_width=100, user_width=0),
    Sizes(num_negatives=70, item_width=16, user_width=9),
]


@dataclass(frozen=True)
class Arguments:
    hidden: torch.Tensor
    item_weight: torch.Tensor
    user_weight: torch.Tensor | None
    positives: torch.Tensor
    negatives: torch.Tensor
    users: torch.Tensor | None
    cu_seqlens: torch.Tensor
    loss: str
    beta: float
    log_q: torch.Tensor | None
    corrects_positive: bool

    def to(self, *args):
        """Converts floats, log_q to float32 at least, and moves all tensors."""
        device = args[0] if isinstance(args[0], str) else None
        dtype = None if device else args[0]
        tensors = {n: x for n, x in vars(self).items() if isinstance(x, torch.Tensor)}
        moved = {
            n: x.to(dtype) if dtype and x.is_floating_point() else x.to(device)
            for n, x in tensors.items()
        }
        if dtype and self.log_q is not None:
            moved["log_q"] = self.log_q.to(torch.promote_types(dtype, torch.float32))
        return replace(self, **moved)

    def results(self, op):
        """The loss, and its gradients for hidden, item_weight and, if there are users, user_weight."""
        return outputs_and_gradients(op, vars(self).values())


def arguments(
    ragged=RAGGED_BATCH, sizes=SIZES[1], options=OPTIONS["negatives corrected"], dtype=torch.float64
):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    n, b = ragged.num_tokens, len(ragged.lengths)
    with_users = sizes.user_width > 0
    loss, beta, with_log_q, corrects_positive = options
    return Arguments(
        hidden=normal(n, sizes.item_width + sizes.user_width),
        # Small logits: beyond 20, torch's softplus(x) is x.
        item_weight=normal(ITEM_NUM + 1, sizes.item_width) / sizes.item_width**0.5,
        user_weight=normal(USER_NUM + 1, sizes.user_width) / sizes.user_width
        if with_users
        else None,
        positives=random_ids(generator, (n,), ITEM_NUM, padding=0.2),
        negatives=random_ids(generator, (n, sizes.num_negatives), ITEM_NUM, padding=0.5),
        users=random_ids(generator, (b,), USER_NUM, padding=0.2) if with_users else None,
        cu_seqlens=ragged.cu_seqlens(),
        loss=loss,
        beta=beta,
        log_q=normal(ITEM_NUM + 1) if with_log_q else None,
        corrects_positive=corrects_positive,
    ).to(dtype)


def of_logits(logits_of):
    """The op as `losses` define it, on logits from `logits_of`."""

    def op(hidden, items, users, positives, negatives, u, cu_seqlens, loss, beta, log_q, both):
        scored = torch.cat([positives[:, None], negatives], 1)
        logits = logits_of(hidden, items, users, scored, u, cu_seqlens)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        targets = torch.where(torch.arange(len(positives)) < cu_seqlens[-1], positives, 0)
        q = None if log_q is None else log_q.detach()[scored]
        if loss == "sampled_softmax":
            return losses.sampled_softmax(wide, targets, q, "all" if both else "negatives")
        if q is not None:
            assert not both
            num_drawn = q[:, 1:] + math.log(negatives.shape[1])
            wide = torch.cat([wide[:, :1], wide[:, 1:] - num_drawn], 1)
        match loss:
            case "bce" if beta == 1:
                return losses.bce(wide, targets)
            case "bce":
                t = (beta - 1) / (negatives.shape[1] / (ITEM_NUM - 1) - 1)
                return losses.gbce(wide, targets, ITEM_NUM, t)
            case "bpr":
                return losses.bpr(wide, targets)
        raise ValueError(loss)

    return op


def in_plain_pytorch(hidden, item_weight, user_weight, items, users, cu_seqlens):
    """Logits as one would write them without thinking of precision; for batches without spare capacity."""
    vectors = item_weight[items]
    if users is not None:
        user = user_weight[users] * user_weight.shape[1] ** 0.5 * (users != 0)[:, None]
        user = user.repeat_interleave(cu_seqlens.diff(), 0)
        vectors = torch.cat([vectors, user[:, None].expand(-1, items.shape[1], -1)], -1)
    return (vectors * hidden[:, None]).sum(-1) * (items != 0)


definition = of_logits(reference.sampled_logits)
