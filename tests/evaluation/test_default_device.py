"""torch.set_default_device says where users' tensors are made: it must not reach into ours."""

import numpy as np
import pytest
import torch
from support.factories import model_for
from support.raw_ids import SIZES, interactions, rows

from ssept_ext import SASREC, SSEPT, WarpSampler
from ssept_ext.data.synthetic import synthetic
from ssept_ext.serving.export import export_program

pytestmark = pytest.mark.usefixtures("_one_thread")

DATA = synthetic(num_users=20)


def train(model, folder, **options):
    with WarpSampler(DATA.user_train, DATA.usernum, DATA.itemnum, 10, 6, seed=1) as sampler:
        sizes = {"num_epochs": 1, "batch_size": 10, "val_epoch": 1, "restore_best": True}
        checkpoint = folder / f"{options}"
        return model.train_model(
            DATA, sampler, **sizes, **options, verbose=False, checkpoint=checkpoint
        )


CALLS = {
    "train_model": lambda model, folder: train(model, folder),
    "full validation": lambda model, folder: train(model, folder, validation="full"),
    "softmax": lambda model, folder: train(model, folder, loss="softmax", max_grad_norm=1.0),
    "evaluate": lambda model, folder: model.evaluate(DATA),
    "evaluate_full": lambda model, folder: model.evaluate_full(DATA, ties="mean"),
    "recommend": lambda model, folder: model.recommend(DATA, k=3, candidates=[1, 2, 3, 4]),
    "similar_items": lambda model, folder: model.similar_items([1, 2]),
    "predict": lambda model, folder: model.predict(
        {"user": [1, 2], "input_seq": np.ones((2, 3), int), "candidate": [[1, 2], [3, 4]]}
    ),
    "forward": lambda model, folder: model(
        {
            name: torch.ones(2, 1 if name == "users" else 3, dtype=torch.int64, device="cpu")
            for name in ("users", "input_seq", "positive", "negative")
        }
    ),
    "training_loss": lambda model, folder: model.training_loss(
        WarpSampler(DATA.user_train, DATA.usernum, DATA.itemnum, 10, 6).next_packed()
    ),
    "save_pretrained": lambda model, folder: model.save_pretrained(folder),
    "export": lambda model, folder: export_program(model),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_model_on_the_cpu_works_whatever_the_default_device(call, tmp_path):
    model = model_for(DATA, dropout_rate=0.5, sse_item_prob=0.1, num_neg_test=5)

    # A device like no other: nothing can be read from it, and nothing on it fits the CPU's tensors.
    with torch.device("meta"):
        CALLS[call](model, tmp_path)


def test_raw_ids_are_served_whatever_the_default_device(tmp_path):
    model = SSEPT.fit(interactions(), **SIZES, num_epochs=1)

    with torch.device("meta"):
        model.save_pretrained(tmp_path)
        loaded = SSEPT.from_pretrained(tmp_path)
        frame = loaded.recommend(users=["anna", "dora"], k=2)

    assert rows(frame) == rows(model.recommend(users=["anna", "dora"], k=2))


def test_a_saved_model_loads_onto_the_device_that_is_asked_for(tmp_path):
    model = model_for(DATA)
    model.save_pretrained(tmp_path)

    with torch.device("meta"):
        loaded = SASREC.from_pretrained(tmp_path)

    assert torch.equal(loaded.item_embedding_layer.weight, model.item_embedding_layer.weight)
