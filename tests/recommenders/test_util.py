"""SASRecDataSet as recommenders' tests and notebook use it."""

import pytest

from ssept_ext.recommenders.util import SASRecDataSet, as_dataset


@pytest.fixture
def filename(tmp_path):
    """Users with 5, 3 and 2 events."""
    histories = {1: range(101, 106), 2: range(201, 204), 3: range(301, 303)}
    path = tmp_path / "events.txt"
    path.write_text("\n".join(f"{u}\t{i}" for u, items in histories.items() for i in items))
    return str(path)


def test_without_a_file_it_is_empty_and_cannot_be_split():
    data = SASRecDataSet()

    assert (data.usernum, data.itemnum, data.with_time, data.filename) == (0, 0, None, None)
    assert data.User == data.user_train == data.user_valid == data.user_test == {}
    assert data.Items == set()
    with pytest.raises(ValueError, match="Filename is required"):
        data.split()


def test_a_file_may_be_named_later(filename):
    data = SASRecDataSet(col_sep="\t")

    data.filename = filename

    assert data.split()["num_users"] == 3
    assert data.user_test == {1: [105], 2: [203], 3: []}


def test_unknown_keywords_are_ignored_with_a_warning(filename):
    with pytest.warns(UserWarning, match="SASRecDataSet ignores colour, as recommenders does"):
        data = SASRecDataSet(filename=filename, col_sep="\t", colour="blue")

    assert data.usernum == 3


def test_histories_are_taken_instead_of_a_file():
    data = SASRecDataSet(histories={1: [3, 4, 5]}, hold_out=False)

    assert data.user_train == {1: [3, 4, 5]}
    assert data.split()["users_with_splits"] == 1
    assert data.user_train == {1: [3]}


@pytest.mark.parametrize(("line", "with_time"), [("1 2", False), ("1 2 3", True)])
def test_with_time_says_whether_there_is_a_third_column(tmp_path, line, with_time):
    (tmp_path / "events.txt").write_text(line)

    assert SASRecDataSet(filename=tmp_path / "events.txt").with_time is with_time


def test_split_counts(filename):
    data = SASRecDataSet(filename=filename, col_sep="\t")

    assert data.split() == {
        "num_users": 3,
        "num_items": 302,
        "users_with_splits": 2,
        "users_train_only": 1,
        "valid_size": 1,
        "test_size": 1,
        "min_interactions": 3,
    }


def test_split_takes_sizes(filename):
    data = SASRecDataSet(filename=filename, col_sep="\t")

    stats = data.split(valid_size=2, test_size=1, min_interactions=4)

    assert (stats["valid_size"], stats["min_interactions"], stats["users_with_splits"]) == (2, 4, 1)
    assert data.user_train == {1: [101, 102], 2: [201, 202, 203], 3: [301, 302]}
    assert data.user_valid == {1: [103, 104], 2: [], 3: []}
    assert data.user_test == {1: [105], 2: [], 3: []}


def test_split_again_splits_the_same_events(filename):
    data = SASRecDataSet(filename=filename, col_sep="\t")
    data.split(valid_size=2, test_size=1, min_interactions=4)
    data.user_test[1].append(9)

    data.split()

    assert data.User[1] == [101, 102, 103, 104, 105]
    assert data.user_test == {1: [105], 2: [203], 3: []}


def test_items_are_those_of_all_events(filename):
    assert len(SASRecDataSet(filename=filename, col_sep="\t").Items) == 10


def test_split_prints_a_line_for_each_count(filename, capsys):
    SASRecDataSet(filename=filename, col_sep="\t").split(verbose=True)

    assert capsys.readouterr().out.splitlines() == [
        "Split complete:",
        "  Total users: 3",
        "  Total items: 302",
        "  Users with train/valid/test: 2",
        "  Users with train only: 1",
        "  Valid size per user: 1",
        "  Test size per user: 1",
    ]


def test_a_user_without_events_has_an_empty_list_in_user_only(filename):
    data = SASRecDataSet(filename=filename, col_sep="\t")

    assert data.User[99] == []
    with pytest.raises(KeyError):
        data.user_train[99]


def test_any_object_with_the_attributes_is_a_data_set():
    class Frozen:
        usernum, itemnum = 2, 9
        user_train, user_valid, user_test = {1: [3, 4], 2: [5]}, {1: [6]}, {1: [7]}

    data = as_dataset(Frozen())

    assert (data.usernum, data.itemnum, data.num_users) == (2, 9, 2)
    assert data.histories("train", [2, 1]).items.tolist() == [5, 3, 4]
    assert data.users_with("valid").tolist() == [1]
