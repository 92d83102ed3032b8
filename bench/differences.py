"""How large is what differs on purpose from recommenders: a Markdown table, on synthetic data.

What recommenders computes is computed here by the eager baseline, with recommenders' masks, loss and ranking.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from baselines import eager
from torch import Tensor
from torch.nn import functional as F

from ssept_ext import SSEPT, WarpSampler
from ssept_ext.data.dataset import SASRecDataSet
from ssept_ext.data.synthetic import synthetic

SEQ_MAX_LEN = 20
DIM = 16


class MaskedBySums(eager.Attention):
    """Takes a row for padding if its features add up to exactly 0, as recommenders does, and counts the queries."""

    num_queries = num_dropped = 0

    def forward(self, queries: Tensor, keys: Tensor, real: Tensor) -> Tensor:
        is_query = queries.sum(-1) != 0
        self.num_queries += int(real.sum())
        self.num_dropped += int((real & ~is_query).sum())
        return super().forward(queries, keys, keys.sum(-1) != 0) * is_query.unsqueeze(-1)


def in_recommenders(model: SSEPT) -> eager.EagerSSEPT:
    """The same parameters, with recommenders' masks."""
    there = eager.EagerSSEPT(model.config)
    there.load_state_dict(model.state_dict())
    for block in there.encoder["enc_layers"]:
        block.mha.__class__ = MaskedBySums
    return there.eval()


def make_model(dataset: SASRecDataSet, **options: float) -> SSEPT:
    torch.manual_seed(0)
    return SSEPT(
        item_num=dataset.itemnum,
        user_num=dataset.usernum,
        seq_max_len=SEQ_MAX_LEN,
        embedding_dim=DIM,
        conv_dims=[2 * DIM, 2 * DIM],
        dropout_rate=0.2,
        **options,
    )


def make_sampler(dataset: SASRecDataSet) -> WarpSampler:
    sizes = (dataset.usernum, dataset.itemnum, 64, SEQ_MAX_LEN)
    return WarpSampler(dataset.histories("train"), *sizes, seed=0)


def train(model: SSEPT, dataset: SASRecDataSet, num_epochs: int) -> None:
    with make_sampler(dataset) as sampler:
        model.train_model(dataset, sampler, num_epochs, 64, verbose=False)


def with_decay_of_every_weight(dataset: SASRecDataSet, num_epochs: int, l2_reg: float) -> SSEPT:
    """A model trained with recommenders' optimizer."""
    model = make_model(dataset)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001, eps=1e-7, weight_decay=l2_reg)
    with make_sampler(dataset) as sampler:
        for _ in range(num_epochs * (dataset.num_users // 64)):
            optimizer.zero_grad()
            model.training_loss(sampler.next_packed()).backward()
            optimizer.step()
    return model.eval()


def dropped(there: eager.EagerSSEPT) -> str:
    shares = [
        block.mha.num_dropped / block.mha.num_queries for block in there.encoder["enc_layers"]
    ]
    return " and ".join(f"{share:.1%}" for share in shares)


def masks(dataset: SASRecDataSet, num_epochs: int) -> Iterator[tuple[str, str, str]]:
    with make_sampler(dataset) as sampler:
        users, seq, pos, neg = map(torch.from_numpy, sampler.next_batch())
    inputs = {"user": users, "input_seq": seq, "candidate": torch.arange(1, 101).expand(64, -1)}
    model = make_model(dataset)
    for state in ("fresh model", f"after {num_epochs} epochs"):
        there = in_recommenders(model)
        with torch.no_grad():
            there(users[:, None], seq, pos, neg)
        yield f"tokens that do not attend, in blocks 1 and 2, {state}", dropped(there), "none"
        scores = there.predict(users[:, None], seq, inputs["candidate"])
        error = (scores - model.predict(inputs)).norm(dim=1) / scores.norm(dim=1)
        yield f"error of a user's scores by this, {state}", f"up to {error.max():.1%}", "none"
        train(model, dataset, num_epochs)


def saturation() -> Iterator[tuple[str, str, str]]:
    logit = torch.tensor([20.0], requires_grad=True)
    (-torch.log(1 - torch.sigmoid(logit) + 1e-24)).backward()
    assert logit.grad is not None
    theirs, there = logit.grad.item(), float(-np.log(1e-24))
    logit.grad = None
    F.softplus(logit).backward()
    what = "loss and gradient of a negative with the logit 20, in float32"
    yield what, f"{there:.1f}, {theirs:.1f}", f"20.0, {logit.grad.item():.1f}"


def evaluation(dataset: SASRecDataSet, num_epochs: int, draws: int) -> Iterator[tuple[str, ...]]:
    model = make_model(dataset, num_neg_test=100)
    train(model, dataset, num_epochs)
    there = eager.EagerSSEPT(model.config)
    there.load_state_dict(model.state_dict())
    theirs = [eager.evaluate(there, dataset, seed, 100)[0] for seed in range(draws)]
    ours = [model.evaluate(dataset, seed)[0] for seed in range(draws)]
    what = f"NDCG@10 of one model, {dataset.itemnum} items, mean of {draws} draws of 100 negatives"
    yield what, f"{np.mean(theirs):.3f}", f"{np.mean(ours):.3f}"
    constant = make_model(dataset)
    for parameter in constant.parameters():
        torch.nn.init.zeros_(parameter)
    there.load_state_dict(constant.state_dict())
    hr = (eager.evaluate(there, dataset, 0, 100)[1], constant.evaluate(dataset, seed=0)[1])
    yield "HR@10 of constant scores", f"{hr[0]:.1f}", f"{hr[1]:.1f}"


def regularisation(dataset: SASRecDataSet, num_epochs: int) -> Iterator[tuple[str, str, str]]:
    for l2_reg in (1e-4, 1e-3):
        there = with_decay_of_every_weight(dataset, num_epochs, l2_reg)
        here = make_model(dataset, l2_reg=l2_reg)
        train(here, dataset, num_epochs)
        ndcg = [model.evaluate(dataset, seed=0)[0] for model in (there, here)]
        yield f"NDCG@10 with l2_reg = {l2_reg:g}", f"{ndcg[0]:.3f}", f"{ndcg[1]:.3f}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a test that it runs")
    quick = parser.parse_args(argv).quick
    dataset = synthetic(num_users=70 if quick else 1000, min_events=15, max_events=40)
    num_epochs, draws = (1, 2) if quick else (60, 10)
    print("| | recommenders | here |\n|---|---|---|")
    for rows in (
        masks(dataset, num_epochs),
        saturation(),
        evaluation(dataset, num_epochs, draws),
        regularisation(dataset, num_epochs),
    ):
        for row in rows:
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
