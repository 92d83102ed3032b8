"""Training on the kernels follows the reference's loss curve, step by step, with dropout."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.tolerances import assert_close, relative_error

from ssept_ext import SSEPT, SASRecDataSet, WarpSampler
from ssept_ext.training.loop import train_model

pytestmark = pytest.mark.usefixtures("_one_thread")

ML_1M = Path(__file__).parents[2] / ".." / "shared" / "data" / "ml-1m.txt.gz"
NUM_STEPS, SEQ_MAX_LEN, BATCH_SIZE = 50, 50, 32


def synthetic():
    """Histories of 2 to 80 events, popular items first."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 81, 60).tolist()
    histories = {
        user: (1 + 200 * rng.random(length) ** 2).astype(int).tolist()
        for user, length in enumerate(lengths, 1)
    }
    dataset = SASRecDataSet(histories=histories, hold_out=False)
    dataset.itemnum = 200
    return dataset


def movielens():
    dataset = SASRecDataSet(ML_1M)
    dataset.split()
    return dataset


def loss_curve(dataset, backend, dtype):
    """(NUM_STEPS,) float64; dropout's seeds are the same for every backend and type."""
    torch.manual_seed(0)
    model = SSEPT(
        item_num=dataset.itemnum,
        user_num=dataset.usernum,
        seq_max_len=SEQ_MAX_LEN,
        embedding_dim=25,
        attention_num_heads=2,
        conv_dims=[50, 50],
        dropout_rate=0.2,
        backend=backend,
    ).to(dtype)
    with WarpSampler(
        dataset.user_train, dataset.usernum, dataset.itemnum, BATCH_SIZE, SEQ_MAX_LEN, seed=0
    ) as sampler:
        torch.manual_seed(1)
        history = train_model(
            model,
            dataset,
            sampler,
            num_epochs=NUM_STEPS,
            batch_size=len(dataset.user_train),  # one step an epoch
            learning_rate=0.001,
            verbose=False,
        )
    return torch.tensor(history["loss"], dtype=torch.float64)


@pytest.mark.parametrize(
    "make_dataset",
    [
        synthetic,
        pytest.param(
            movielens,
            marks=pytest.mark.skipif(
                not ML_1M.exists(), reason="needs MovieLens-1M beside the checkout"
            ),
        ),
    ],
)
def test_the_loss_of_every_step_is_the_references_to_rounding(make_dataset):
    dataset = make_dataset()
    exact = loss_curve(dataset, "reference", torch.float64)
    # Of the whole curve: which of its steps drifts furthest, and how far, is chance.
    plain_drift = relative_error(loss_curve(dataset, "reference", torch.float32), exact)

    assert exact[-1] < 0.9 * exact[0]
    drift = relative_error(loss_curve(dataset, "native", torch.float32), exact)
    assert drift <= 2 * plain_drift
    assert_close(loss_curve(dataset, "native", torch.float64), exact)
