"""What a training shows on stderr."""

import pytest
from support.ring import Interrupted, Stub, make_sampler, train

pytestmark = pytest.mark.usefixtures("_one_thread")


def test_the_progress_bar_shows_loss_speed_and_validation(dataset, capfd):
    history = train(Stub(), dataset, num_epochs=1, val_epoch=1, verbose=True)

    error = capfd.readouterr().err
    assert "epoch 1/1" in error
    assert f"loss {history['loss'][0]:.4f}" in error
    assert "samples/s" in error
    assert f"valid NDCG@10 {history['val_ndcg'][0]:.4f}, HR@10 {history['val_hr'][0]:.4f}" in error


def test_verbose_false_is_silent(dataset, capfd):
    sampler = Interrupted(make_sampler(dataset), after=5, error=KeyboardInterrupt())

    train(Stub(), dataset, sampler, num_epochs=3, val_epoch=1, verbose=False)

    assert capfd.readouterr() == ("", "")
