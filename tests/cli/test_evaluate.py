"""`ssept evaluate` and `ssept compare`."""

import csv
import shutil

import pytest
from support.command_line import numbers, rows_of, train
from support.factories import write_events

from ssept_ext import SASREC, SASRecDataSet
from ssept_ext.cli import app as cli
from ssept_ext.cli import evaluate as evaluate_command
from ssept_ext.cli.report import measure
from ssept_ext.evaluation import (
    ItemNeighbours,
    Popularity,
    compare_ranks,
    evaluate_ranks,
    metric_intervals,
)
from ssept_ext.evaluation.options import EvaluationOptions
from ssept_ext.evaluation.sampled import evaluate, evaluate_popularity

pytestmark = pytest.mark.usefixtures("_one_thread")


def ranks_of(run, data, k=20, **options):
    return evaluate_ranks(SASREC.from_pretrained(run), SASRecDataSet(data), k, **options)


@pytest.fixture
def other(data, capsys):
    """The folder of another run on the same data."""
    assert train(data, "--seed", "1", "--model", "sasrec", out="other") == 0
    capsys.readouterr()
    return "other"


def test_evaluate_prints_metrics_among_all_items_with_intervals(run, data, capsys):
    assert cli.main(["evaluate", run]) == 0

    head, _, names, *rows = capsys.readouterr().out.splitlines()
    ranks = ranks_of(run, data)
    found, metrics = metric_intervals(ranks, seed=0), ranks.metrics([1, 5, 10, 20])
    assert head == (
        "test item of 20 users, ranked among all 30 items but those of the input, with 95 % intervals over users"
    )
    assert names.split() == ["k", "HR", "NDCG", "MRR", "coverage"]
    expected = [
        f"SSEPT {k} {found[f'HR@{k}']} {found[f'NDCG@{k}']} {found[f'MRR@{k}']} {metrics.coverage[k]:.4f}"
        for k in (1, 5, 10, 20)
    ]
    assert [" ".join(row.split()) for row in rows] == [*expected, f"SSEPT all {found['MRR']}"]


def test_evaluate_takes_cut_offs_part_ties_and_seed(run, data, capsys):
    options = ["-k", "7", "3", "7", "--part", "valid", "--ties", "mean", "--seed", "5"]

    assert cli.main(["evaluate", run, *options]) == 0

    head, _, _, *rows = capsys.readouterr().out.splitlines()
    found = metric_intervals(ranks_of(run, data, split="valid", ties="mean"), [3, 7], seed=5)
    assert head.startswith("valid item of 20 users")
    assert [row.split()[1] for row in rows] == ["3", "7", "all"]
    assert str(found["HR@3"]) in rows[0]
    assert str(found["NDCG@7"]) in rows[1]


def test_evaluate_resamples_with_the_seed_of_the_run(data, capsys):
    assert train(data, "--seed", "3") == 0
    outputs = []
    for options in ([], ["--seed", "3"], ["--seed", "4"]):
        capsys.readouterr()
        cli.main(["evaluate", "run", *options])
        outputs.append(capsys.readouterr().out)

    assert outputs[0] == outputs[1] != outputs[2]


def test_evaluate_prints_baselines_beside_the_model(run, data, capsys):
    assert cli.main(["evaluate", run, "--baselines", "-k", "5"]) == 0

    _, _, _, *rows = capsys.readouterr().out.splitlines()
    dataset = SASRecDataSet(data)
    rankers = {"popularity": Popularity(dataset), "neighbours": ItemNeighbours(dataset)}
    for name, ranker in (rankers | {"SSEPT": SASREC.from_pretrained(run)}).items():
        found = metric_intervals(evaluate_ranks(ranker, dataset), [5], seed=0)
        assert f"{name} 5 {found['HR@5']} {found['NDCG@5']}" in " ".join(rows.pop(0).split())
        assert rows.pop(0).split()[:2] == [name, "all"]
    assert rows == []


@pytest.mark.parametrize("days", [None, "0.0002"])
def test_evaluate_has_recent_popularity_where_there_are_times(data, capsys, days):
    lines = data.read_text().splitlines()
    data.write_text("".join(f"{line} {i * 17 % 50}\n" for i, line in enumerate(lines)))
    assert train(data) == 0
    capsys.readouterr()

    options = [] if days is None else ["--recent-days", days]
    assert cli.main(["evaluate", "run", "--baselines", "-k", "5", *options]) == 0

    (row, _) = (line for line in capsys.readouterr().out.splitlines() if "recent" in line)
    dataset = SASRecDataSet(data)
    recent = Popularity(dataset, **({"last_days": 0.0002} if days else {"last_share": 0.1}))
    found = metric_intervals(evaluate_ranks(recent, dataset), [5], seed=0)
    assert f"recent popularity 5 {found['HR@5']}" in " ".join(row.split())


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_evaluate_writes_the_rank_of_each_user(run, data, tmp_path, suffix):
    assert cli.main(["evaluate", run, "--ranks", f"ranks.{suffix}"]) == 0

    ranks_of(run, data).save(tmp_path / f"expected.{suffix}")
    written, expected = (tmp_path / f"{name}.{suffix}" for name in ("ranks", "expected"))
    assert written.read_bytes() == expected.read_bytes()
    if suffix == "csv":
        with written.open() as file:
            assert [row["user"] for row in csv.DictReader(file)][:3] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sampled", "-k", "3"], "-k is for the ranking of all items, not for --sampled"),
        (["--sampled", "--part", "valid"], "--part is for the ranking of all items, not for --sa"),
        (
            ["--sampled", "--targets", "all"],
            "--targets is for the ranking of all items, not for --sa",
        ),
        (["--sampled", "--ranks", "x.csv"], "--ranks is for the ranking of all items, not for --s"),
        (["--max-users", "all"], "--max-users is for --sampled"),
        (["--exclude", "all"], "--exclude is for --sampled"),
        (["--sampled", "--baselines"], "--baselines is for the ranking of all items, not for"),
        (["--recent-days", "7"], "--recent-days is for --baselines"),
        (["--baselines", "--recent-days", "7"], "recent popularity needs times of events"),
        (["--ranks", "ranks.txt"], "--ranks: ranks.txt: the name of the file must end in"),
        (["--ranks", "no/ranks.csv"], "--ranks: no is not a folder that can be written to"),
        (["-k", "0"], "-k: must be an integer of at least 1, got '0'"),
        (["--part", "train"], "--part: invalid choice: 'train'"),
    ],
)
def test_flags_of_evaluate_that_do_not_fit_are_one_line(run, capsys, options, message):
    assert cli.main(["evaluate", run, *options]) == 2

    output, error = capsys.readouterr()
    assert output == ""
    assert error.count("\n") == 1
    assert message in error


def test_compare_prints_both_runs_and_the_difference_of_the_same_users(run, other, data, capsys):
    options = ["-k", "5", "--part", "valid", "--seed", "2"]

    assert cli.main(["compare", run, other, *options]) == 0

    head, _, names, *rows = capsys.readouterr().out.splitlines()
    ranks = [ranks_of(folder, data, split="valid") for folder in (run, other)]
    found = compare_ranks(*ranks, [5], seed=2)
    assert head.startswith("valid item of 20 users, ranked among all 30 items")
    assert names.split() == ["run", "other", "difference"]
    assert [row.split()[0] for row in rows] == ["HR@5", "NDCG@5", "MRR@5", "MRR"]
    for row, (first, second, difference) in zip(rows, found.values(), strict=True):
        values = row.replace("[", "").replace("]", "").replace(",", "")
        assert numbers(values) == pytest.approx([first, second, *difference], abs=5e-5)
    assert found["MRR"].difference.low < found["MRR"].difference.high


def test_compare_pairs_users_of_data_that_were_prepared_from_shuffled_rows(tmp_path, capsys):
    lines = [f"u{u},i{(7 * u + 3 * t) % 30},{t}\n" for u in range(20) for t in range(u % 5 + 4)]
    for name, order in (("a", lines), ("b", lines[::-1])):
        (tmp_path / f"{name}.csv").write_text("user,item,timestamp\n" + "".join(order))
        argv = [f"{name}.csv", "--out", f"{name}.txt", "--min-user-events", "1"]
        assert cli.main(["prepare", *argv, "--min-item-events", "1"]) == 0
        assert train(f"{name}.txt", out=name) == 0
    capsys.readouterr()

    assert cli.main(["compare", "a", "b"]) == 0

    assert "test item of 20 users" in capsys.readouterr().out


def test_compare_refuses_runs_on_other_data(run, tmp_path, capsys):
    assert train(write_events(tmp_path / "more.txt", range(1, 22)), out="more") == 0
    capsys.readouterr()

    assert cli.main(["compare", run, "more"]) == 2

    output, error = capsys.readouterr()
    assert output == ""
    assert "run and more cannot be compared by user: " in error
    assert "more.txt of 21 users" in error


def test_compare_refuses_runs_of_other_splits(data, tmp_path, capsys):
    lines = data.read_text().splitlines()
    data.write_text("".join(f"{line} {i * 17 % 50}\n" for i, line in enumerate(lines)))
    for out, options in (("last", []), ("time", ["--split", "time", "--valid-share", "0.3"])):
        assert train(data, *options, out=out) == 0
    capsys.readouterr()

    assert cli.main(["compare", "last", "time"]) == 2

    error = capsys.readouterr().err
    assert "last and time cannot be compared by user: events.txt of 20 users" in error
    assert "got the same events split otherwise into training and validation" in error


def test_compare_takes_the_data_of_both_from_another_place(run, other, data, tmp_path, capsys):
    shutil.move(data, tmp_path / "moved.txt")

    assert cli.main(["compare", run, other]) == 2
    assert cli.main(["compare", run, other, "--data", "moved.txt"]) == 0


@pytest.mark.parametrize("validation", ["full", "sampled"])
def test_evaluate_repeats_the_figures_of_the_run_from_anywhere(
    data, tmp_path, capsys, monkeypatch, validation
):
    train(data.name, "--seed", "3", "--validation", validation)
    table = rows_of(capsys.readouterr().out)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    options = ["--sampled"] if validation == "sampled" else ["--baselines", "-k", "10"]
    assert cli.main(["evaluate", "../run", *options]) == 0

    output = capsys.readouterr().out
    if validation == "sampled":
        assert rows_of(output) == table
    else:
        rows = {
            name: row
            for row in output.splitlines()[3:]
            for name in [row.split()[0]]
            if " 10 " in row
        }
        for row in table:
            name, *_, hr, ndcg = row.split()
            assert rows[name].split()[2:6:3] == [hr, ndcg]


def test_evaluate_with_another_seed_draws_other_negatives(run, data, capsys):
    cli.main(["evaluate", run, "--sampled", "--seed", "11"])

    _, row = rows_of(capsys.readouterr().out)
    expected = evaluate(SASREC.from_pretrained(run), SASRecDataSet(data), seed=11)
    assert numbers(row)[2:] == pytest.approx(expected[::-1], abs=5e-5)


@pytest.mark.parametrize(
    "options",
    [{"exclude": "all"}, {"ties": "optimistic"}, {"ties": "mean"}, {"max_users": 3}],
    ids=str,
)
def test_evaluate_among_samples_takes_the_options_of_the_function(run, data, capsys, options):
    ((name, value),) = options.items()

    cli.main(["evaluate", run, "--sampled", f"--{name.replace('_', '-')}", str(value)])

    rows = [numbers(row) for row in rows_of(capsys.readouterr().out)]
    dataset, model = SASRecDataSet(data), SASREC.from_pretrained(run)
    popularity = evaluate_popularity(dataset, 0, 5, **options)
    assert popularity != evaluate_popularity(dataset, 0, 5)
    assert rows[0][2:] == pytest.approx(popularity[::-1], abs=5e-5)
    assert rows[1][2:] == pytest.approx(evaluate(model, dataset, 0, **options)[::-1], abs=5e-5)


def test_evaluate_among_samples_can_measure_all_users(run, monkeypatch):
    chosen = []
    monkeypatch.setattr(
        evaluate_command, "measure", lambda *given: chosen.append(given[-1]) or measure(*given)
    )

    cli.main(["evaluate", run, "--sampled", "--max-users", "all"])

    assert chosen == [EvaluationOptions(max_users=None)]


def test_a_wrong_number_of_users_is_refused_with_what_is_right(run, capsys):
    assert cli.main(["evaluate", run, "--max-users", "0"]) == 2

    message = "argument --max-users: must be an integer of at least 1, or all, got '0'"
    assert message in capsys.readouterr().err


def test_evaluate_on_other_data(run, tmp_path, capsys):
    (tmp_path / "other.csv").write_text("".join(f"1,{item}\n" for item in (5, 6, 7, 8)))

    code = cli.main(["evaluate", run, "--data", "other.csv", "--col-sep", ",", "--sampled"])

    assert code == 0
    assert numbers(rows_of(capsys.readouterr().out)[1])[0] in (0, 1)  # one user
