"""Scores of a model that another thread trains."""

import threading

import pytest
import torch
from support.factories import model_for

from ssept_ext import WarpSampler
from ssept_ext.data.synthetic import synthetic

pytestmark = pytest.mark.usefixtures("_one_thread")

DATA = synthetic(num_users=40)


def train(meanwhile=None):
    """Train with dropout and SSE while another thread scores again and again; returns the parameters."""
    torch.manual_seed(0)
    model = model_for(DATA, dropout_rate=0.5, sse_item_prob=0.5, num_neg_test=5)
    over, scored = threading.Event(), threading.Event()

    def score():
        while not over.is_set():
            meanwhile(model)
            scored.set()

    thread = threading.Thread(target=score)
    if meanwhile is not None:
        thread.start()
        assert scored.wait(60)
    try:
        with WarpSampler(DATA.user_train, DATA.usernum, DATA.itemnum, 10, 6, seed=1) as sampler:
            model.train_model(DATA, sampler, num_epochs=15, batch_size=10, verbose=False)
    finally:
        over.set()
    if meanwhile is not None:
        thread.join()
    return model.state_dict()


@pytest.mark.parametrize(
    "meanwhile",
    [lambda model: model.recommend(DATA, k=1), lambda model: model.evaluate(DATA, seed=0)],
    ids=["recommend", "evaluate"],
)
def test_a_training_does_not_notice_that_another_thread_scores(meanwhile):
    alone, watched = train(), train(meanwhile)

    assert all(torch.equal(alone[name], watched[name]) for name in alone)
