"""`--item-features`: runs that know their items by a file of features."""

import json
from pathlib import Path

import pytest
import torch
from support.command_line import before_batch, ctrl_c, train

from ssept_ext import SASREC, ItemFeatures
from ssept_ext.cli import app as cli

pytestmark = pytest.mark.usefixtures("_one_thread")

PREPARE = ["--min-user-events", "1", "--min-item-events", "1"]


@pytest.fixture
def events(write):
    rows = [f"u{u},i{(3 * u + t) % 20},{10 * t + u}" for u in range(12) for t in range(8)]
    path = write("events.csv", "\n".join(["user,item,timestamp", *rows]))
    assert cli.main(["prepare", str(path), "--out", "events.safetensors", *PREPARE]) == 0
    return "events.safetensors"


@pytest.fixture
def features(write):
    """Of items that had events, and of another one."""
    rows = [f"i{i},{'red' if i % 2 else 'blue'} thing,.{i}" for i in range(21)]
    return str(write("items.csv", "\n".join(["sku,title,price", *rows])))


def test_a_run_knows_its_items_by_the_file(events, features, capsys):
    assert train(events, "--item-features", features) == 0

    model = SASREC.from_pretrained("run")
    expected = ItemFeatures.read(features).rows_of(model.known.item_ids)
    assert torch.equal(model.content.features[1:], torch.from_numpy(expected))
    assert model.content.projection.any()
    options = json.loads(Path("run/run.json").read_text())["options"]
    assert (options["item_features"], "item_feature_dim" in options) == (features, False)
    assert cli.main(["predict", "run", "--users", "u3", "-k", "3"]) == 0
    assert cli.main(["evaluate", "run"]) == 0


def test_an_interrupted_run_is_resumed_without_the_file(events, write, features, monkeypatch):
    assert train(events, "--item-features", features, out="other") == 0
    with monkeypatch.context() as patch:
        before_batch(patch, 1, ctrl_c)
        assert train(events, "--item-features", features) == 130
    write("items.csv", "")

    assert cli.main(["resume", "run", "--device", "cpu"]) == 0

    resumed, whole = (SASREC.from_pretrained(folder).state_dict() for folder in ("run", "other"))
    assert all(torch.equal(x, resumed[name]) for name, x in whole.items())


def test_an_update_reads_the_features_of_new_items(events, features, write, capsys):
    assert train(events, "--item-features", features) == 0
    week = write("week.csv", "user,item,timestamp\nu1,i20,999\nnew,i20,999\nnew,i3,1000\n")
    update = ["update", "run", "--data", str(week), "--device", "cpu"]

    assert cli.main([*update, "--item-features", features]) == 0

    model = SASREC.from_pretrained("run")
    assert model.known.item_ids.raw.tolist()[-1] == "i20"
    assert torch.equal(
        model.content.features[-1], torch.from_numpy(ItemFeatures.read(features).matrix[20])
    )


def test_integer_ids_of_a_file_are_texts_where_the_run_s_are(write, events):
    rows = [f"u1,{t},{t}" for t in (7, 8, 9, 7)] + ["u2,x,3", "u2,7,4", "u2,8,5"]
    path = write("texts.csv", "\n".join(["user,item,timestamp", *rows]))
    assert cli.main(["prepare", str(path), "--out", "texts.safetensors", *PREPARE]) == 0
    integers = str(write("items.csv", "id,title\n7,red\n8,blue\n9,red\n"))

    with pytest.warns(UserWarning, match="item_features lack 1 of 4 items, such as 'x'"):
        assert train("texts.safetensors", "--item-features", integers) == 0


def test_numbers_of_items_are_their_ids_where_there_are_no_others(data, write):
    features = str(write("items.csv", "id,colour\n" + "".join(f"{i},c{i}\n" for i in range(1, 31))))

    assert train(data, "--item-features", features) == 0

    assert SASREC.from_pretrained("run").content.features[1:].any(1).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sku,title\nx,red\n", "item_features have none of the 20 items, such as 'i0'"),
        ("sku\ni1\n", "must have a column 'sku' of ids and others"),
        ("sku,year\ni1,1995.5\n", "items.csv, column 'year': numbers are features as they are"),
    ],
)
def test_a_file_that_is_of_no_use_is_named(events, write, content, message, capsys):
    features = str(write("items.csv", content))

    assert train(events, "--item-features", features) == 2

    assert message in capsys.readouterr().err


def test_an_update_with_features_of_another_width_is_refused(events, features, write, capsys):
    assert train(events, "--item-features", features) == 0
    week = str(write("week.csv", "user,item,timestamp\nu1,i20,999\n"))
    other = str(write("other.csv", "sku,title\ni20,red\n"))

    assert cli.main(["update", "run", "--data", week, "--item-features", other]) == 2

    error = capsys.readouterr().err
    assert "other.csv: item_features must have 513 columns, as the model has, got 512" in error
