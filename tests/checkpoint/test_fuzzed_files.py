"""A bit flipped in a file, or its end cut off: an error that names the file, or exactly what was saved."""

import dataclasses
import warnings
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.checkpoints import make_sasrec
from support.raw_ids import SIZES, interactions

from ssept_ext import SASREC, SSEPT, IdMap
from ssept_ext.checkpoint.model import save_checkpoint
from ssept_ext.checkpoint.training_state import (
    OPTIMIZER_FILE,
    TRAINING_FILE,
    load_optimizer,
    load_training,
    save_optimizer,
)
from ssept_ext.cli.runs import RUN_FILE, read_run_file, write_run_file
from ssept_ext.data.id_map import load_id_maps, save_id_maps

pytestmark = pytest.mark.usefixtures("_one_thread")

DAMAGE = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(-1, 7))
"""Where in the file, as a share of its length, and which bit; -1 to cut the file off there."""

fuzzed = settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def damaged(content, damage):
    share, bit = damage
    place = int(share * len(content))
    if bit < 0:
        return content[:place]
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def flat(value):
    """Any result, in a form that can be compared."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, IdMap):
        return value.type, value.raw.tolist()
    if isinstance(value, dict):
        return {name: flat(x) for name, x in value.items()}
    if isinstance(value, (tuple, list)):
        return [flat(x) for x in value]
    if isinstance(value, torch.nn.Module):
        known = value.known and [value.known.user_ids, value.known.item_ids, value.known.popularity]
        histories = value.known and value.known.histories
        return flat([asdict(value.config), value.trained_on, value.state_dict(), known, histories])
    if dataclasses.is_dataclass(value):
        return flat(vars(value))
    return value


def check(path, load, damage):
    """Damage the file, and load what it is part of."""
    content, expected = path.read_bytes(), flat(load())
    path.write_bytes(damaged(content, damage))
    try:
        assert flat(load()) == expected
    except (ValueError, OSError) as error:
        assert path.name in str(error)  # noqa: PT017
    finally:
        path.write_bytes(content)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints that hold all kinds of files between them."""
    root, models = tmp_path_factory.mktemp("saved"), []
    for name in ("whole", "counts"):
        models.append(SSEPT.fit(interactions(), **SIZES, num_epochs=1, num_neg_test=1))
        save_checkpoint(models[-1], root / name, histories=name == "whole")
    return root


@pytest.mark.parametrize(
    ("folder", "stem"),
    [("whole", stem) for stem in ("config", "model", "ids", "histories")] + [("counts", "counts")],
)
@fuzzed
@given(damage=DAMAGE)
def test_damage_to_a_model_is_noticed(saved, folder, stem, damage):
    (path,) = (saved / folder).glob(f"{stem}*")
    check(path, lambda: SASREC.from_pretrained(saved / folder), damage)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    SASREC.fit(interactions(), **SIZES, num_epochs=1, num_neg_test=1, checkpoint=folder)
    return folder


@fuzzed
@given(damage=DAMAGE)
def test_damage_to_a_training_state_is_noticed(training, damage):
    check(training / TRAINING_FILE, lambda: load_training(training), damage)


@fuzzed
@given(damage=DAMAGE)
def test_damage_to_the_state_of_an_optimizer_is_noticed(tmp_path, damage):
    save_optimizer({"table.step": torch.tensor(3.0), "table.exp_avg": torch.ones(5, 2)}, tmp_path)
    check(tmp_path / OPTIMIZER_FILE, lambda: load_optimizer(tmp_path), damage)


@fuzzed
@given(damage=DAMAGE)
def test_damage_to_the_options_of_a_run_is_noticed(tmp_path, damage):
    source = {"filename": "/data/events.txt", "col_sep": " "}
    write_run_file(tmp_path, source, {"model": "ssept", "seed": 0, "adam_betas": (0.9, 0.98)})

    check(tmp_path / RUN_FILE, lambda: read_run_file(tmp_path), damage)


@fuzzed
@given(damage=DAMAGE)
def test_damage_to_raw_ids_is_noticed(tmp_path, damage):
    path = tmp_path / "events.txt.ids.json"
    save_id_maps(path, IdMap(["ann", "bob"], "user"), IdMap(range(30), "item"), "0123456789abcdef")

    check(path, lambda: load_id_maps(path, "0123456789abcdef"), damage)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    path = tmp_path_factory.mktemp("foreign") / "model.pt"
    torch.save(make_sasrec().state_dict(), path)
    return path


@fuzzed
@given(damage=DAMAGE)
def test_a_file_of_recommenders_that_cannot_be_read_is_named(foreign, damage):
    content = foreign.read_bytes()
    path = foreign.with_name("damaged.pt")
    path.write_bytes(damaged(content, damage))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about what it finds
        try:
            assert SASREC.from_recommenders(path, attention_num_heads=1).seq_max_len == 5
        except ValueError as error:
            assert path.name in str(error)  # noqa: PT017
