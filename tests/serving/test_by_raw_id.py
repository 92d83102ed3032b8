"""`recommend` under raw ids: nobody and nothing raises an index error."""

import math
from uuid import UUID

import narwhals as nw
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from support.raw_ids import HISTORIES, NUM_ITEMS, SIZES, frame_columns, interactions, rows

from ssept_ext import SASREC, SSEPT

FRAME = pd.DataFrame({"user": ["anna"], "item": ["i1"]})


def polars_series(ids):
    return pytest.importorskip("polars").Series(ids)


def score(model, history, user_vector, item):
    """By the definition, on a copy with one user of this vector; history and item in numbers."""
    arguments = dict(vars(model.config))
    kind = type(model)
    if kind is SSEPT:
        arguments["user_num"] = 1
    alone = kind(**arguments).double()
    state = model.state_dict()
    if kind is SSEPT:
        state["user_embedding_layer.weight"] = torch.stack([user_vector * 0, user_vector])
    alone.load_state_dict(state)
    seq = ([0] * 4 + list(history))[-4:]
    inputs = {"user": np.array([1]), "input_seq": np.array([seq]), "candidate": np.array([[item]])}
    return alone.predict(inputs).item()


def expected(model, history, user_vector, k):
    """Rows (item, score) of all unseen items by a full sort."""
    ids = model.known.item_ids
    numbers = ids.encode(history)
    unseen = [item for item in range(1, NUM_ITEMS + 1) if item not in numbers]
    scored = [(score(model, numbers, user_vector, item), item) for item in unseen]
    return [(ids.raw[item - 1], value) for value, item in sorted(scored, reverse=True)][:k]


def user_vector(model, user=None):
    if model.user_embedding_layer is None:
        return None
    table = model.user_embedding_layer.weight.detach()
    return table[1:].mean(0) if user is None else table[model.known.user_ids.encode([user])[0]]


def assert_recommended(frame, user, wanted):
    got = [row for row in rows(frame) if row[0] == user]
    assert [(item, rank) for _, item, _, rank in got] == [
        (item, rank) for rank, (item, _) in enumerate(wanted, 1)
    ]
    np.testing.assert_allclose([row[2] for row in got], [value for _, value in wanted], rtol=1e-9)


def test_known_users_get_the_best_of_predict_by_what_the_model_knows_of_them(model):
    frame = model.recommend(users=["cleo", "anna"], k=3)

    assert nw.from_native(frame).columns == ["user", "item", "score", "rank"]
    assert [row[0] for row in rows(frame)] == ["cleo"] * 3 + ["anna"] * 3
    for user in ("cleo", "anna"):
        wanted = expected(model, HISTORIES[user], user_vector(model, user), 3)
        assert_recommended(frame, user, wanted)


def test_everybody_known_is_asked_for_where_nobody_is_named(model):
    frame = model.recommend(k=2)

    # dora has seen everything
    assert [row[0] for row in rows(frame)] == ["anna"] * 2 + ["bert"] * 2 + ["cleo"] * 2


def test_a_live_history_takes_the_place_of_what_the_model_knows(model):
    frame = model.recommend({"anna": ["i7"]}, users=["anna", "cleo"], k=4)

    assert_recommended(frame, "anna", expected(model, ["i7"], user_vector(model, "anna"), 4))
    assert_recommended(frame, "cleo", rows_of(model.recommend(users=["cleo"], k=4)))


def test_an_unknown_user_with_a_history_is_served_by_the_mean_user(model):
    frame = model.recommend({"zoe": ["i7", "i2"]}, k=5)

    assert_recommended(frame, "zoe", expected(model, ["i7", "i2"], user_vector(model), 5))


def test_a_user_without_events_gets_the_most_popular_items_without_scores(model):
    frame = model.recommend({"anna": []}, users=["zoe", "bert", "anna"], k=4)

    # i1 has 4 events, i2 to i5 have 2, and were seen in this order: i3, i1, i4, i2, i5
    for user in ("zoe", "anna"):
        got = [row for row in rows(frame) if row[0] == user]
        assert [(item, rank) for _, item, _, rank in got] == [
            *(("i1", 1), ("i3", 2), ("i4", 3), ("i2", 4)),
        ]
        assert all(math.isnan(row[2]) for row in got)
    assert_recommended(frame, "bert", rows_of(model.recommend(users=["bert"], k=4)))


def rows_of(frame):
    return [(item, value) for _, item, value, _ in rows(frame)]


def test_candidates_restrict_what_is_recommended(model):
    everything = rows_of(model.recommend(users=["bert"], k=NUM_ITEMS))
    wanted = [row for row in everything if row[0] in ("i9", "i0", "i8")]

    # i2 was seen
    frame = model.recommend(users=["bert", "zoe"], candidates=["i9", "i2", "i0", "i8", "i9"])

    assert_recommended(frame, "bert", wanted)
    assert [row[1] for row in rows(frame) if row[0] == "zoe"] == ["i2", "i0", "i8", "i9"]


def test_candidates_by_number_are_the_best_of_these():
    torch.manual_seed(1)
    model = SASREC(item_num=500, seq_max_len=4, embedding_dim=4, num_blocks=1, conv_dims=[4, 4])
    histories = {u: torch.randint(1, 501, (9,)).tolist() for u in range(1, 9)}
    candidates = torch.randperm(500)[:200].add(1).tolist()

    items, scores = model.recommend(histories, k=150, candidates=candidates)

    everything = model.recommend(histories, k=500)
    for row, user in enumerate(histories):
        inside = np.isin(everything.items[row], candidates)
        np.testing.assert_array_equal(items[row], everything.items[row][inside][:150])
        np.testing.assert_array_equal(scores[row], everything.scores[row][inside][:150])
        assert not set(histories[user]) & set(items[row])


def test_seen_items_come_back_where_they_are_not_excluded(model):
    frame = model.recommend(users=["dora"], k=NUM_ITEMS, exclude_seen=False)

    assert sorted(row[1] for row in rows(frame)) == sorted(HISTORIES["dora"])


def test_the_column_of_scores_can_be_left_out(model):
    frame = model.recommend(users=["anna", "zoe"], k=2, with_scores=False)

    assert nw.from_native(frame).columns == ["user", "item", "rank"]


def test_unknown_items_are_dropped_with_their_count(model):
    with pytest.warns(
        UserWarning, match="dropped 3 of 5 events, .* not among the 12 that the model"
    ):
        frame = model.recommend({"zoe": ["i7", "new", "i2"], "anna": ["new", "newer"]}, k=5)

    assert_recommended(frame, "zoe", expected(model, ["i7", "i2"], user_vector(model), 5))
    assert next(row[1] for row in rows(frame) if row[0] == "anna") == "i1"  # the most popular
    with pytest.warns(UserWarning, match="dropped 1 of 2 candidates"):
        frame = model.recommend(users=["anna"], candidates=["i9", "new"])
    assert [row[1] for row in rows(frame)] == ["i9"]


@pytest.mark.parametrize(
    "column",
    [
        tuple,
        np.array,
        iter,
        pd.Series,
        polars_series,
        pa.array,
        lambda ids: pa.chunked_array([ids]),
    ],
)
def test_ids_may_be_in_any_kind_of_column(model, column):
    expected = rows(
        model.recommend({"zoe": ["i7", "i2"]}, ["zoe", "bert"], candidates=["i9", "i0"])
    )

    asked = {"users": column(["zoe", "bert"]), "candidates": column(["i9", "i0"])}
    frame = model.recommend({"zoe": column(["i7", "i2"])}, **asked)

    assert rows(frame) == expected
    assert rows(model.similar_items(column(["i3"]), 2)) == rows(model.similar_items(["i3"], 2))
    np.testing.assert_array_equal(
        model.user_state(column(["i7", "i2"])), model.user_state(["i7", "i2"])
    )


def test_a_boolean_is_no_id_where_ids_are_integers():
    histories = {user: [user + item for item in range(4)] for user in range(8)}
    model = SASREC.fit(interactions(histories), **SIZES, num_epochs=1)

    for asked in ({"users": [True]}, {"histories": {9: [True]}}, {"candidates": [True]}):
        with pytest.raises(TypeError, match="ids must be int64, .* got True of type bool"):
            model.recommend(**asked)


def test_an_unknown_user_beyond_int64_keeps_the_id():
    histories = {user: [user + item for item in range(4)] for user in range(8)}
    model = SASREC.fit(interactions(histories), **SIZES, num_epochs=1)

    frame = model.recommend(users=[3, 2**70], k=1)

    assert [row[0] for row in rows(frame)] == [3, 2**70]


def test_nobody_gets_no_rows(model):
    frame = model.recommend(users=[])

    assert nw.from_native(frame).columns == ["user", "item", "score", "rank"]
    assert len(frame) == 0


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
@pytest.mark.parametrize("make", [str, int, lambda x: UUID(int=int(x))], ids=["str", "int", "uuid"])
def test_any_ids_in_a_frame_of_the_first_library_there_is(monkeypatch, library, make):
    installed = ("pandas", "polars", "pyarrow")[("pandas", "polars", "pyarrow").index(library) :]
    monkeypatch.setattr("ssept_ext.data.frames.find_spec", lambda name: name in installed or None)
    histories = {make(u): [make(u + i) for i in range(4)] for u in range(8)}
    model = SASREC.fit(interactions(histories), **SIZES, num_epochs=1)

    for frame in (
        model.recommend({make(99): [make(3)]}, users=[make(2), make(99), make(98)], k=2),
        model.similar_items([make(2)], k=2),
    ):
        assert type(frame).__module__.split(".")[0] == library
        column = nw.from_native(frame)[frame_columns(frame)[1]].to_list()
        ids = model.known.item_ids.raw.tolist()
        assert {str(value) for value in column} <= {str(value) for value in ids}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"users": [7]}, TypeError, "user ids must be str, as in training, got 7 of type int"),
        ({"users": "anna"}, TypeError, "users must be a sequence of ids, got str 'anna'"),
        ({"users": 7}, TypeError, "users must be a sequence of ids, got int 7"),
        ({"users": {"anna": ["i1"]}}, TypeError, "users must be a sequence of ids, got dict"),
        ({"users": FRAME}, TypeError, "users must be a sequence of ids, got DataFrame"),
        (
            {"users": [["anna"]]},
            TypeError,
            r"user ids must be str, .*, got \['anna'\] of type list",
        ),
        ({"users": [None]}, TypeError, "user ids must be str, as in training, got None"),
        ({"histories": {"anna": [7]}}, TypeError, "item ids must be str, as in training, got 7"),
        ({"histories": {"anna": "i1"}}, TypeError, r"histories\['anna'\] must be .* got str 'i1'"),
        ({"histories": {"anna": None}}, TypeError, r"histories\['anna'\] must be .* NoneType None"),
        ({"histories": {7: ["i1"]}, "users": ["anna"]}, TypeError, "user ids must be str.* got 7"),
        ({"histories": ["i1"]}, TypeError, "histories must map each user to .* got list"),
        ({"histories": FRAME}, TypeError, "histories must map each user to .* got DataFrame"),
        ({"histories": FRAME["user"]}, TypeError, "histories must map each user to .* got Series"),
        ({"candidates": {"anna": ["i1"]}}, TypeError, "candidates, the same for all .* got dict"),
        ({"candidates": "i1"}, TypeError, "candidates, .* must be a sequence of ids, got str 'i1'"),
        ({"candidates": FRAME}, TypeError, "candidates, .* must be a sequence of ids, got DataF"),
        ({"histories": {"anna": {"i1"}}}, TypeError, r"histories\['anna'\] must be .* got set"),
        ({"users": {"anna"}}, TypeError, "users must be a sequence of ids, got set"),
        ({"exclude_seen": "no"}, ValueError, "exclude_seen must be True or False, got 'no'"),
        ({"with_scores": 0}, ValueError, "with_scores must be True or False, got 0"),
        ({"candidates": []}, ValueError, "candidates must hold an item that the model knows"),
        ({"k": 0}, ValueError, "k must be an integer of at least 1, got 0"),
        ({"k": 0, "users": ["zoe"]}, ValueError, "k must be an integer of at least 1, got 0"),
    ],
)
def test_bad_input_is_named(model, arguments, error, message):
    with pytest.raises(error, match=message):
        model.recommend(**arguments)


def test_a_model_without_raw_ids_needs_histories_and_says_so():
    model = SASREC(item_num=3, embedding_dim=4, conv_dims=[4, 4])

    with pytest.raises(ValueError, match="histories must be given, .* train with SASREC.fit"):
        model.recommend(users=["anna"])
    with pytest.raises(ValueError, match="with_scores must be True for ids that are indices"):
        model.recommend({1: [1]}, with_scores=False)


def test_a_data_set_has_numbers_also_for_a_model_of_raw_ids(model):
    found = model.recommend(interactions().to_dataset(), [1, 3], k=2)

    wanted = rows(model.recommend(users=["anna", "cleo"], k=2))
    assert model.known.item_ids.decode(found.items).ravel().tolist() == [row[1] for row in wanted]


def test_a_model_that_was_saved_serves_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)

    loaded = type(model).from_pretrained(tmp_path)

    asked = {"users": ["anna", "zoe"], "k": 3}
    np.testing.assert_equal(rows(loaded.recommend(**asked)), rows(model.recommend(**asked)))
    assert rows(loaded.similar_items(["i3"])) == rows(model.similar_items(["i3"]))


@pytest.fixture
def without_histories(model, tmp_path):
    """The model, saved without histories and read again."""
    model.save_pretrained(tmp_path, histories=False)
    return type(model).from_pretrained(tmp_path)


def test_a_model_saved_without_histories_serves_those_that_are_passed(model, without_histories):
    passed = {"anna": ["i7"], "zoe": ["i2", "i3"]}

    assert rows(without_histories.recommend(passed)) == rows(model.recommend(passed))


def test_a_model_saved_without_histories_wants_one_of_each_user_it_knows(without_histories):
    for asked in ({"users": ["cleo"]}, {"histories": {"anna": ["i7"]}, "users": ["anna", "cleo"]}):
        with pytest.raises(ValueError, match="histories must be given with one of user 'cleo'"):
            without_histories.recommend(**asked)
    with pytest.raises(ValueError, match="histories must be given with one of user 'anna'"):
        without_histories.recommend()


def test_a_model_saved_without_histories_knows_what_is_popular(model, without_histories):
    asked = {"histories": {"anna": []}, "users": ["anna", "zoe"], "k": 4}

    np.testing.assert_equal(
        rows(without_histories.recommend(**asked)), rows(model.recommend(**asked))
    )
