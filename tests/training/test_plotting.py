"""What is drawn of the logs of trainings."""

import sys

import pytest
from matplotlib.figure import Figure

from ssept_ext.training.plotting import plot_curves

HEADER = "epoch,step,seconds,loss,val_ndcg,val_hr\n"


@pytest.fixture
def figures(monkeypatch):
    """The figures that would have been saved."""
    figures = []
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path, **_: (figures.append(self), path.touch())
    )
    return figures


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(f"{HEADER}1,4,0.5,1.25,,\n2,8,1.5,1.0,0.25,0.5\n3,12,2.5,0.75,,\n")
    return path


@pytest.mark.parametrize(
    ("over", "places"), [("epoch", [1, 2, 3]), ("step", [4, 8, 12]), ("seconds", [0.5, 1.5, 2.5])]
)
def test_each_training_is_a_curve_of_loss_and_one_of_ndcg(log, tmp_path, figures, over, places):
    other = tmp_path / "other.csv"
    other.write_text(f"{HEADER}1,4,0.5,3.0,,\n")

    plot_curves({"first": log, "second": other}, tmp_path / "curves.png", over)

    loss, ndcg = figures[0].axes
    assert [list(line.get_xdata()) for line in loss.lines] == [places, places[:1]]
    assert [list(line.get_ydata()) for line in loss.lines] == [[1.25, 1.0, 0.75], [3.0]]
    assert [list(line.get_xdata()) for line in ndcg.lines] == [places[1:2], []]
    assert [list(line.get_ydata()) for line in ndcg.lines] == [[0.25], []]
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["first", "second"]


def test_the_axis_says_what_validations_ranked_among(log, tmp_path, figures):
    full = tmp_path / "full.csv"
    full.write_text(
        "epoch,step,seconds,loss,val_ndcg,val_hr,validation\n1,4,0.5,3.0,0.1,0.2,full\n"
    )

    plot_curves({"first": log, "second": full}, tmp_path / "curves.png")

    assert figures[0].axes[1].get_ylabel() == "validation NDCG@10, full, sampled"


def test_many_trainings_can_be_told_apart(log, tmp_path, figures):
    plot_curves({str(run): log for run in range(15)}, tmp_path / "curves.png", "epoch")

    looks = [(line.get_color(), line.get_marker()) for line in figures[0].axes[1].lines]
    assert len(set(looks)) == 15


def test_many_trainings_leave_the_curves_their_room(log, tmp_path, monkeypatch):
    heights = []

    def measure(self, path, **_):
        self.draw_without_rendering()  # the layout is done in drawing
        heights.append(self.axes[0].get_window_extent().height)
        path.touch()

    monkeypatch.setattr(Figure, "savefig", measure)

    for number in (1, 12):
        plot_curves({str(run): log for run in range(number)}, tmp_path / "curves.png", "epoch")

    assert heights[1] == pytest.approx(heights[0], rel=0.1)


@pytest.mark.parametrize(
    ("name", "start"), [("curves.png", b"\x89PNG"), ("curves", b"\x89PNG"), ("c.pdf", b"%PDF")]
)
def test_the_suffix_says_what_kind_of_picture_it_is(log, tmp_path, name, start):
    plot_curves({"first": log}, tmp_path / name)

    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no epoch yet"),
        (HEADER, "has no epoch yet"),
        ("a,b\n1,2\n", r"is damaged, or no log of a training: KeyError\('loss'\)"),
        (f"{HEADER}1,4,0.5,high,,\n", "is damaged, or no log of a training: ValueError"),
        (f"{HEADER}1,4\n", "is damaged, or no log of a training"),
        (f"{HEADER}{'1' * 200_000}\n", "is damaged, or no log of a training: Error"),
    ],
)
def test_a_log_without_curves_is_named(tmp_path, text, message):
    path = tmp_path / "metrics.csv"
    path.write_text(text)

    with pytest.raises(ValueError, match=f"metrics.csv {message}"):
        plot_curves({"first": path}, tmp_path / "curves.png")

    assert not (tmp_path / "curves.png").exists()


def test_matplotlib_that_is_missing_is_named_with_its_extra(log, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    with pytest.raises(ImportError, match=r"pip install 'ssept_ext\[plot\]'"):
        plot_curves({"first": log}, tmp_path / "curves.png")
