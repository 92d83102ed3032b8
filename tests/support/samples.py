"""The edge cases that every op is tested on, and how an op is asked for its gradients."""

from dataclasses import dataclass, replace

import pytest
import torch


@dataclass(frozen=True)
class Ragged:
    """Lengths of the sequences of a batch, and unused rows behind them."""

    name: str
    lengths: tuple[int, ...]
    spare: int = 0

    @property
    def num_tokens(self):
        return sum(self.lengths) + self.spare

    @property
    def max_seqlen(self):
        return max(self.lengths, default=0)

    def cu_seqlens(self):
        return torch.tensor([0, *self.lengths], dtype=torch.int32).cumsum(0).to(torch.int32)


RAGGED = [
    Ragged("no sequences", ()),
    Ragged("one token", (1,)),
    Ragged("one empty sequence", (0,)),
    Ragged("empty sequences between others", (0, 3, 0, 0, 5, 0)),
    Ragged("ragged", (5, 1, 17, 9, 2)),
    Ragged("all of full length", (16, 16, 16)),
    Ragged("more sequences than a warp has lanes", (1, 0, 2) * 23 + (3,)),
    Ragged("spare capacity", (4, 0, 7), spare=5),
    Ragged("spare capacity only", (), spare=3),
]


SENSELESS_OFFSETS = {  # of 34 tokens
    "begin late": (5, 9, 12, 20, 30, 34),
    "fall": (0, 20, 3, 30, 1, 34),
    "below zero": (-60, -1, 6, 23, 32, 34),
    "beyond the tokens": (0, 5, 6, 23, 32, 90),
    "all beyond the tokens": (60, 70, 75, 80, 85, 90),
    "more than a warp has lanes": (20, *[25] * 70, 34),
    "tokens without a sequence": (34,),
}
"""CUDA kernels cannot have them checked without waiting, and must not follow them out of the tensors."""

senseless_offsets = pytest.mark.parametrize(
    "offsets", SENSELESS_OFFSETS.values(), ids=SENSELESS_OFFSETS
)


def amid_traps(x):
    """The same values in the midst of NaN, or of ids that no table has, so that reading beyond them shows."""
    trap = torch.nan if x.is_floating_point() else 10**9
    margin = 3 * x.numel() + 1000
    room = torch.full((x.numel() + 2 * margin,), trap, dtype=x.dtype, device=x.device)
    return room[margin : margin + x.numel()].view(x.shape).copy_(x)


def with_offsets_amid_traps(arguments, offsets):
    """All tensors of `arguments` amid traps, with `offsets`, and with as many users."""
    device = arguments.cu_seqlens.device
    changes = {"cu_seqlens": torch.tensor(offsets, dtype=torch.int32, device=device)}
    if getattr(arguments, "users", None) is not None:
        changes["users"] = torch.arange(len(offsets) - 1, device=device) % 3
    changed = replace(arguments, **changes)
    tensors = {n: x for n, x in vars(changed).items() if isinstance(x, torch.Tensor)}
    return replace(changed, **{n: amid_traps(x) for n, x in tensors.items()})


def ragged_id(ragged):
    return ragged.name.replace(" ", "-")


def random_ids(generator, shape, largest, padding=0.0):
    """Ids in 1..largest, some of them 0."""
    ids = torch.randint(1, largest + 1, shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < padding, 0, ids)


def outputs_and_gradients(op, arguments, grad=None):
    """All outputs, and the gradients of all floating tensors among the arguments; `grad` is ones if not given."""
    arguments = [
        x.detach().clone().requires_grad_()
        if isinstance(x, torch.Tensor) and x.is_floating_point()
        else x
        for x in arguments
    ]
    out = op(*arguments)
    out = out if isinstance(out, tuple) else (out,)
    leaves = [x for x in arguments if isinstance(x, torch.Tensor) and x.requires_grad]
    grad = torch.ones_like(out[0]) if grad is None else grad
    gradients = torch.autograd.grad(out[0], leaves, grad, allow_unused=True)
    return *out, *(x for x in gradients if x is not None)
