"""The state of an optimizer, which an update starts from."""

import pytest
import torch
from safetensors.torch import save_file

from ssept_ext.checkpoint import load_optimizer, save_optimizer
from ssept_ext.checkpoint.training_state import OPTIMIZER_FILE


def test_what_was_saved_comes_back(tmp_path):
    state = {"table.step": torch.tensor(3.0), "table.exp_avg": torch.randn(5, 2).double()}

    save_optimizer(state, tmp_path)

    loaded = load_optimizer(tmp_path)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], x) for name, x in state.items())


def test_a_folder_without_a_state_has_none(tmp_path):
    assert load_optimizer(tmp_path) is None


def test_another_file_of_tensors_is_named(tmp_path):
    save_file({"table.step": torch.tensor(3.0)}, tmp_path / OPTIMIZER_FILE)

    with pytest.raises(ValueError, match=f"{OPTIMIZER_FILE} is not the state of an optimizer"):
        load_optimizer(tmp_path)
