"""`ssept update`: a run learns a file of new events, or is as it was."""

import json
import signal

import pytest
from support.command_line import before_batch, ctrl_c, rows_of, train, weights_of

from ssept_ext import SASREC
from ssept_ext.checkpoint import load_optimizer
from ssept_ext.cli import app as cli
from ssept_ext.cli import update as command

pytestmark = pytest.mark.usefixtures("_one_thread")

PREPARE = ["--min-user-events", "1", "--min-item-events", "1"]


def write_csv(path, rows):
    path.write_text("user,item,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    return path


def rows_of_days(days, num_users=12):
    """Every user has an event each day, and goes on along a ring of 20 items."""
    return [
        (f"user-{u}", f"item-{(3 * u + d) % 20}", 1000 * d + u)
        for d in days
        for u in range(num_users)
    ]


NEW = (
    ("stranger", "item-3", 9001),
    ("stranger", "novelty", 9002),
    ("stranger", "item-4", 9003),
    ("stranger", "item-5", 9004),
    ("user-2", "novelty", 9005),
)


def update(*options):
    return cli.main(["update", "run", "--data", "week.csv", "--device", "cpu", *options])


@pytest.fixture
def old(tmp_path):
    csv = write_csv(tmp_path / "old.csv", rows_of_days(range(8)))
    assert cli.main(["prepare", str(csv), "--out", "old.safetensors", *PREPARE]) == 0
    return tmp_path / "old.safetensors"


@pytest.fixture
def week(tmp_path):
    """Of which the model knows the rows of the first two days."""
    return write_csv(tmp_path / "week.csv", [*rows_of_days([6, 7], 3), *NEW])


@pytest.fixture
def folder(old, week, tmp_path, capsys):
    """A run that has not seen the week."""
    assert train(old, epochs="40") == 0
    capsys.readouterr()
    return tmp_path / "run"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_new_users_and_items_are_known_to_the_run_and_its_earlier_data_are_not_needed(
    folder, old, capsys
):
    old.unlink()

    assert update() == 0

    events, grown, trained = capsys.readouterr().out.splitlines()
    assert events == "events   5 new, 6 known already"
    assert grown == "grown    by 1 users and 1 items"
    assert trained.startswith("trained  ")
    assert cli.main(["predict", "run", "--users", "stranger", "user-0", "-k", "21"]) == 0
    assert "novelty" in capsys.readouterr().out
    assert cli.main(["evaluate", "run"]) == 0
    assert rows_of(capsys.readouterr().out)[-1].startswith("SSEPT")


def test_the_run_has_the_optimizer_s_state_of_the_larger_tables(folder):
    before = load_optimizer("run")["item_embedding_layer.weight.step"].item()

    update()

    state = load_optimizer("run")
    assert len(state["item_embedding_layer.weight.exp_avg"]) == 22
    assert state["item_embedding_layer.weight.step"].item() > before


def test_a_run_is_updated_again_and_again(folder, tmp_path, capsys):
    update()
    write_csv(tmp_path / "week.csv", [("stranger", "item-9", 9100), ("other", "item-9", 9101)])
    capsys.readouterr()

    assert update() == 0

    assert "events   2 new\n" in capsys.readouterr().out
    known = SASREC.from_pretrained("run").known
    assert known.user_ids.raw.tolist()[-2:] == ["stranger", "other"]
    assert len(known.of(13)) == 5


def test_a_file_that_the_model_knows_already_changes_nothing(folder, capsys):
    update()
    capsys.readouterr()
    before = contents(folder)

    assert update() == 0

    assert capsys.readouterr().out == "run knows all 11 events: nothing to do\n"
    assert contents(folder) == before


def test_an_interrupted_update_leaves_the_run_as_it_was_and_goes_on(
    folder, tmp_path, capsys, monkeypatch
):
    before = contents(folder)
    (tmp_path / "whole").mkdir()
    for name, content in before.items():
        (tmp_path / "whole" / name).write_bytes(content)
    with monkeypatch.context() as patch:
        before_batch(patch, 1, ctrl_c)
        assert update() == 128 + signal.SIGINT

    assert contents(folder) == before
    assert "the model in run is as before; the same command goes on" in capsys.readouterr().err
    assert update() == 0
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []
    cli.main(["update", "whole", "--data", "week.csv", "--device", "cpu"])
    assert weights_of(folder).name == weights_of(tmp_path / "whole").name


def test_another_file_starts_another_update(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        before_batch(patch, 1, ctrl_c)
        update()
    write_csv(tmp_path / "week.csv", NEW[:4])

    assert update() == 0

    assert [path.name for path in folder.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("step", ["save_checkpoint", "write_run_file", "save_optimizer"])
def test_a_run_is_usable_wherever_an_update_was_killed(folder, monkeypatch, capsys, step):
    def die(*_):
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr(command, step, die)
        with pytest.raises(SystemExit):
            update()

    assert cli.main(["evaluate", "run"]) == 0
    assert cli.main(["predict", "run", "--users", "user-2"]) == 0
    assert update() == 0


def test_a_run_that_was_split_by_time_is_split_later_in_the_same_shares(old, week, capsys):
    train(old, "--split", "time", "--valid-share", "0.25", "--test-share", "0.25")
    with open("run/run.json") as file:
        before = json.load(file)["data"]["split_by_time"]
    capsys.readouterr()

    assert update() == 0

    with open("run/run.json") as file:
        data = json.load(file)["data"]
    expected = SASREC.from_pretrained("run").known.to_dataset()
    counts = expected.split_by_time(valid_share=0.25, test_share=0.25)
    assert data["split_by_time"] == [counts.valid_from, counts.test_from]
    assert data["split_by_time"] > before
    output = capsys.readouterr().out
    assert f"split by time: {counts}" in output
    more = counts.train_events - 48  # of 96 events
    assert f"events   5 new, 6 known already; {more} more are for training\n" in output
    assert cli.main(["evaluate", "run"]) == 0


def test_the_shares_of_the_parts_may_be_given(old, week, capsys):
    train(old, "--split", "time")

    update("--valid-share", "0.3", "--test-share", "0.2")

    counts = SASREC.from_pretrained("run").known.to_dataset()
    assert f"{counts.split_by_time(valid_share=0.3, test_share=0.2)}" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["safetensors", "txt"])
def test_prepared_files_are_read_with_their_raw_ids(folder, suffix, capsys):
    cli.main(["prepare", "week.csv", "--out", f"week.{suffix}", *PREPARE])
    if suffix == "txt":  # has no times, so the model must know none either
        cli.main(["prepare", "old.csv", "--out", "old.txt", *PREPARE])
        train("old.txt", out="plain")
    run = "plain" if suffix == "txt" else "run"
    capsys.readouterr()

    assert cli.main(["update", run, "--data", f"week.{suffix}", "--device", "cpu"]) == 0

    assert "grown    by 1 users and 1 items" in capsys.readouterr().out


def test_options_are_those_of_the_function(folder, monkeypatch):
    seen = {}
    honest = command.update_to

    def update_to(*arguments, **options):
        seen.update(vars(arguments[5]), seed=options["seed"])
        return honest(*arguments, **options)

    monkeypatch.setattr(command, "update_to", update_to)

    update("--replay", "2", "--new-items", "mean", "--learning-rate-factor", ".5", "--seed", "7")

    assert seen == {"replay": 2, "new_items": "mean", "learning_rate_factor": 0.5, "seed": 7}


def test_columns_may_have_other_names(folder, week, capsys):
    week.write_text(week.read_text().replace("user,item,timestamp", "who,what,when"))

    names = ["--user-col", "who", "--item-col", "what", "--time-col", "when"]

    assert update(*names) == 0
    assert "events   5 new" in capsys.readouterr().out


def test_ids_that_are_integers_in_this_file_only_are_text_to_the_model(folder, week):
    write_csv(week, [*NEW, ("7", "item-1", 9200)])
    update()
    write_csv(week, [("7", "1234", 9300)])

    assert update() == 0

    known = SASREC.from_pretrained("run").known
    assert known.user_ids.raw.tolist()[-1] == "7"
    assert known.item_ids.decode(known.of(14)).tolist() == ["item-1", "1234"]


def test_integers_are_not_of_a_model_with_texts_of_them(tmp_path, week, capsys):
    write_csv(
        tmp_path / "numbers.csv", [(u, (u + i) % 30, u + i) for u in range(30) for i in range(5)]
    )
    cli.main(["prepare", "numbers.csv", "--out", "numbers.safetensors", *PREPARE])
    train("numbers.safetensors")

    assert update() == 2

    assert "user ids must be of type int64, as those known, got str" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", [], "week.csv is empty"),
        ("user,item,timestamp\n", [], "week.csv: it holds no events"),
        ("who,what,when\na,b,1\n", [], "does not name the columns 'user', 'item', 'timestamp'"),
        ("user,item\nuser-1,item-1\n", ["--time-col", ""], "events must have times"),
        ("user,item,timestamp\na,b,3\n", [], "none of the 1 users and 1 items"),
        ("user,item,timestamp\nuser-1,item-1,9\n", ["--valid-share", ".2"], "--valid-share is for"),
        ("user,item,timestamp\nuser-1,item-1,9\n", ["--replay", "-1"], "--replay: must be"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(folder, week, capsys, content, options, message):
    week.write_text(content)
    before = contents(folder)

    assert update(*options) == 2

    output, error = capsys.readouterr()
    assert (output, error.count("\n")) == ("", 1)
    assert message in error
    assert contents(folder) == before


def test_a_run_without_raw_ids_is_refused(data, week, capsys):
    train(data)

    assert update() == 2

    assert "run, week.csv: the model knows no raw ids" in capsys.readouterr().err


def test_a_training_that_is_not_over_is_finished_first(old, week, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        before_batch(patch, 1, ctrl_c)
        train(old)

    assert update() == 2

    assert "the training of run is not over: ssept resume run" in capsys.readouterr().err


def test_an_exported_model_is_no_run(tmp_path, week, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.pt2").touch()

    assert update() == 2

    assert "run is not a run folder" in capsys.readouterr().err
