"""Every benchmark runs, and the baseline that it measures against computes what the model computes."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ssept_ext import SSEPT

# The benchmarks are scripts in a folder, not a package. Appended, so as to hide nothing.
sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
measure = importlib.import_module("measure")
run_all = importlib.import_module("all")
eager = importlib.import_module("baselines.eager")

QUICK = measure.Options(quick=True, device=torch.device("cpu"), verbose=False)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("script", run_all.SCRIPTS)
def test_benchmark_compares_ours_with_others_and_with_a_floor(script, capsys):
    importlib.import_module(script.removesuffix(".py")).main(["--quick"])

    output = capsys.readouterr().out
    assert "time / ours" in output
    assert "Ours takes" in output
    assert " ms" not in output  # times of a CPU are shown on demand only


@pytest.mark.usefixtures("_one_thread")
def test_verbose_shows_times(capsys):
    importlib.import_module("sampler").main(["--quick", "--verbose"])

    assert " ms" in capsys.readouterr().out


@pytest.mark.usefixtures("_one_thread")
def test_large_tables_are_drawn_over_their_sizes(tmp_path, capsys):
    pytest.importorskip("torchrec")

    importlib.import_module("large_tables").main(["--quick", "--plot", str(tmp_path / "times.png")])

    assert len(re.findall("TorchRec's rowwise Adagrad +[0-9]", capsys.readouterr().out)) == 2
    assert (tmp_path / "times.png").stat().st_size > 1000


@pytest.mark.usefixtures("_one_thread")
def test_catalogues_are_drawn_over_their_sizes(tmp_path, capsys):
    importlib.import_module("catalogue").main(["--quick", "--plot", str(tmp_path / "times.png")])

    output = capsys.readouterr().out
    assert len(re.findall(r"  ours +[0-9.]+ +1\.000\n", output)) == 2
    assert len(re.findall(r"  ours, int8 +[0-9.]+ +(1\.000|0\.9[0-9]+)\n", output)) == 2
    assert (tmp_path / "times.png").stat().st_size > 1000


@pytest.mark.usefixtures("_one_thread")
def test_what_grows_with_the_data_is_measured_from_raw_text_to_recommending(tmp_path, capsys):
    large_data = importlib.import_module("large_data")

    large_data.main(["--quick", "--scratch", str(tmp_path)])

    output = capsys.readouterr().out
    assert "2,000 events, 100 users, 500 items" in output
    for stage in large_data.STAGES:
        assert re.search(rf"  {stage.label} +[0-9.]+ +[0-9.]+ +[0-9.]+\n", output)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_one_thread")
def test_profile_names_the_ops_of_our_step(capsys):
    importlib.import_module("train_step").main(["--quick", "--profile"])

    assert "ssept_ext::multi_head_attention" in capsys.readouterr().out


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Let `all` find its scripts in an empty folder, which is returned."""
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    monkeypatch.setattr(run_all, "SCRIPTS", ("first.py", "second.py"))
    (tmp_path / "first.py").write_text("print('a table')")
    (tmp_path / "second.py").write_text("print('another')")
    return tmp_path


def test_all_shows_and_files_output_by_date_and_kind_of_machine(scripts, capsys):
    run_all.main([])

    (results,) = (scripts / "results").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-[a-z0-9-]+-\d+-cores\.txt", results.name)
    assert results.read_text() == "a table\nanother\n"
    assert capsys.readouterr().out == "a table\nanother\n"


def test_all_files_nothing_where_a_benchmark_fails(scripts):
    (scripts / "first.py").write_text("raise SystemExit(1)")

    with pytest.raises(SystemExit, match="failed: first.py"):
        run_all.main([])

    assert not (scripts / "results").exists()


def test_ratios_compare_within_a_round():
    times = measure.Times(
        {"ours": np.array([1.0, 10.0, 2.0]), "other": np.array([3.0, 30.0, 6.0])}, {}
    )

    assert times.ratio("other") == measure.Quartiles(3.0, 3.0, 3.0)


def test_floors_are_scaled_from_what_was_run(monkeypatch):
    monkeypatch.setattr(measure, "_seconds", lambda *_: 1.0)

    times = measure.side_by_side({"ours": print}, {"half": measure.Floor(print, 0.5)}, QUICK)

    assert times.ratio("ours", to="half").median == 2


def test_on_a_cpu_a_call_by_graph_is_a_plain_call(monkeypatch):
    calls = []
    monkeypatch.setattr(measure, "_seconds", lambda run, *_: run() or 0.25)

    assert measure.seconds_by_graph(lambda: calls.append(1), QUICK) == 0.25
    assert calls == [1, 1]  # to warm up, and timed


def test_peak_memory_counts_what_a_step_needs_at_once():
    def step():
        for _ in range(3):
            torch.ones(16 * 2**20)  # 64 MiB, gone after each turn

    assert measure.peak_extra_memory(step, QUICK) == pytest.approx(64 * 2**20, rel=0.1)


@pytest.fixture
def models():
    """Ours and the baseline with the same parameters, none at its initial value."""
    ours = SSEPT(
        item_num=30,
        user_num=9,
        seq_max_len=7,
        num_blocks=2,
        attention_num_heads=2,
        item_embedding_dim=6,
        user_embedding_dim=4,
        conv_dims=[5, 10],
    ).double()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter)
    baseline = eager.EagerSSEPT(ours.config).double()
    baseline.load_state_dict(ours.state_dict())
    return ours.eval(), baseline.eval()


def padded_ids(shape, largest):
    """Rows of 0 to T events, left-padded."""
    ids = torch.randint(1, largest + 1, shape)
    lengths = torch.arange(shape[0]) % (shape[1] + 1)
    return torch.where(torch.arange(shape[1]) >= shape[1] - lengths[:, None], ids, 0)


def test_baseline_has_our_logits_and_loss(models):
    ours, baseline = models
    users = torch.randint(1, 10, (16, 1))
    seq, pos, neg = (padded_ids((16, 7), 30) for _ in range(3))

    ours_logits = ours({"users": users, "input_seq": seq, "positive": pos, "negative": neg})
    logits = baseline(users, seq, pos, neg)

    real = seq.flatten() != 0
    for a, b in zip(logits, ours_logits[:2], strict=True):
        torch.testing.assert_close(a[real], b.flatten()[real], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        baseline.loss(users, seq, pos, neg), ours.loss_function(*ours_logits), rtol=1e-10, atol=0
    )


def test_baseline_has_our_scores(models):
    ours, baseline = models
    seq = padded_ids((16, 7), 30)
    seq = seq[seq[:, -1] != 0]
    users, candidates = torch.randint(1, 10, (14, 1)), torch.randint(1, 31, (14, 5))

    scores = baseline.predict(users, seq, candidates)

    ours_scores = ours.predict({"user": users, "input_seq": seq, "candidate": candidates})
    torch.testing.assert_close(scores, ours_scores, rtol=1e-10, atol=1e-10)


def test_baseline_sampler_gives_next_items_and_unseen_negatives():
    histories = {1: [3, 1, 4], 2: [2], 4: [5, 9, 2, 6]}

    users, seq, pos, neg = eager.draw_batch(histories, 4, 10, 50, 3, np.random.RandomState(0))

    assert set(users.tolist()) == {1, 4}
    for user, *rows in zip(users.tolist(), seq.tolist(), pos.tolist(), neg.tolist(), strict=True):
        history = histories[user]
        events, targets, negatives = ([i for i in row if i] for row in rows)
        assert events == history[:-1]
        assert targets == history[1:]
        assert not set(negatives) & set(history)


@pytest.mark.usefixtures("_one_thread")
def test_a_served_model_answers_clients_without_an_error(capsys):
    pytest.importorskip("fastapi")

    importlib.import_module("serving").main(["--quick"])

    output = capsys.readouterr().out
    assert re.search(r"  1,000 +float32 +[0-9.]+ +[0-9.]+\n", output)
    assert re.search(r"  1,000 +int8 +[0-9.]+ +[0-9.]+\n", output)
    assert re.search(r"  [0-9.]+ +0\n", output)
