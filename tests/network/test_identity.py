"""A data set's numbers mean to a model what they mean in the data, or there is an error."""

import copy
from dataclasses import replace

import pytest
from support.raw_ids import HISTORIES, SIZES, interactions

from ssept_ext import SASREC, SSEPT, SASRecDataSet, WarpSampler
from ssept_ext.data.fingerprint import Fingerprint
from ssept_ext.evaluation import draw_candidates, evaluate_repeated, rank_candidates
from ssept_ext.network import in_ids_of

pytestmark = pytest.mark.usefixtures("_one_thread")

SHUFFLED = {user: HISTORIES[user] for user in ("dora", "cleo", "bert", "anna")}
"""The same events, whose users and items then get other numbers."""


def fit(kind=SSEPT):
    return kind.fit(interactions(), **SIZES, num_epochs=1, num_neg_test=1)


@pytest.fixture(scope="module")
def model():
    return fit()


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory):
    """A model that has no raw ids, and a fingerprint of data that had some."""
    made = copy.deepcopy(fit())
    made.known = None
    made.save_pretrained(folder := tmp_path_factory.mktemp("forgetful"))
    return SSEPT.from_pretrained(folder)


def plain(histories=HISTORIES):
    """The data set without raw ids, as from a file of numbers."""
    return SASRecDataSet(histories=interactions(histories).to_histories())


def test_a_data_set_of_interactions_keeps_the_raw_ids():
    events = interactions()
    dataset = events.to_dataset()

    assert (dataset.user_ids, dataset.item_ids) == (events.user_ids, events.item_ids)
    assert plain().user_ids is None


def test_the_same_events_in_another_order_are_measured_alike(model):
    first, second = (interactions(h).to_dataset() for h in (HISTORIES, SHUFFLED))
    assert first.User != second.User

    assert model.evaluate(second, seed=0) == model.evaluate(first, seed=0)
    assert model.evaluate_valid(second, seed=0) == model.evaluate_valid(first, seed=0)
    assert model.evaluate_full(second) == model.evaluate_full(first)


def test_repeated_draws_renumber_a_data_set_once(monkeypatch, model):
    times, renumber = [], SASRecDataSet.renumbered
    monkeypatch.setattr(
        SASRecDataSet, "renumbered", lambda *args: times.append(1) or renumber(*args)
    )

    evaluate_repeated(model, interactions(SHUFFLED).to_dataset(), 3, seed=0)

    assert len(times) == 1


def test_a_data_set_is_renumbered_with_its_split_and_the_changes_of_its_user(model):
    shuffled = interactions(SHUFFLED).to_dataset()
    shuffled.user_test[1] = shuffled.user_test[1] * 2  # dora's
    bert = interactions().to_dataset().user_ids.encode(["bert"])[0]

    found = in_ids_of(model, shuffled)

    expected = interactions().to_dataset()
    assert found.user_train == expected.user_train
    assert found.user_valid == expected.user_valid
    assert found.user_test == expected.user_test | {4: expected.user_test[4] * 2}
    assert found.user_ids.decode([bert]) == ["bert"]
    assert in_ids_of(model, expected) is expected


@pytest.mark.parametrize(
    ("histories", "message"),
    [
        (
            HISTORIES | {"anna": ["new", "i1", "i2"]},
            "item 'new' at position 0 is unknown, one of 1",
        ),
        (HISTORIES | {"eve": ["i1", "i2", "i3"]}, "user 'eve' at position 4 is unknown"),
        ({1: ["i1", "i2", "i3"]}, "whose user ids are str, got int64"),
    ],
)
def test_a_data_set_with_unknown_ids_does_not_belong_to_the_model(model, histories, message):
    with pytest.raises(ValueError, match=f"dataset does not belong to the model.*{message}"):
        model.evaluate_full(interactions(histories).to_dataset())


def test_a_model_without_vectors_of_users_takes_new_ones():
    histories = {"eve": ["i1", "i2", "i3"], **SHUFFLED}

    model = fit(SASREC)
    found = in_ids_of(model, interactions(histories).to_dataset())

    assert found.user_ids.raw.tolist() == [*HISTORIES, "eve"]
    assert found.item_ids.decode(found.User[5]).tolist() == histories["eve"]
    assert found.item_ids.decode(found.User[1]).tolist() == histories["anna"]
    assert in_ids_of(model, found) is found


@pytest.mark.parametrize("missing", ["user_ids", "item_ids"])
def test_raw_ids_of_one_kind_alone_are_an_error(model, missing):
    dataset = interactions().to_dataset()
    setattr(dataset, missing, None)

    with pytest.raises(ValueError, match=f"does not belong to the model, .*: {missing} is None"):
        model.evaluate(dataset)


def test_numbers_alone_are_taken_for_the_model_s_if_they_are_of_the_same_events(model):
    assert model.evaluate(plain(), seed=0) == model.evaluate(interactions().to_dataset(), seed=0)

    with pytest.raises(
        ValueError, match="the model belongs to data of 4 users, 19 events .*, got data of"
    ):
        model.evaluate(plain(SHUFFLED), seed=0)


def test_numbers_alone_of_a_model_saved_before_there_were_fingerprints_are_compared_too():
    old = fit()
    old.trained_on = None

    old.evaluate(plain(), seed=0)
    with pytest.raises(ValueError, match="is not the data whose raw ids the model knows"):
        old.evaluate(plain(SHUFFLED), seed=0)


def test_a_model_that_keeps_no_raw_ids_knows_their_digest(forgetful):
    forgetful.evaluate(interactions().to_dataset(), seed=0)
    forgetful.evaluate(plain(), seed=0)

    for other in (interactions(SHUFFLED).to_dataset(), plain(SHUFFLED)):
        with pytest.raises(ValueError, match="the model belongs to data of 4 users"):
            forgetful.evaluate(other, seed=0)


def test_where_there_never_were_raw_ids_numbers_are_the_ids(forgetful):
    forgetful = copy.copy(forgetful)
    forgetful.trained_on = replace(forgetful.trained_on, user_ids=None, item_ids=None)

    other = plain(SHUFFLED)

    assert in_ids_of(forgetful, other) is other


def test_training_and_recommending_refuse_to_renumber_what_was_made_from_the_data(model):
    other = interactions(SHUFFLED).to_dataset()

    with pytest.raises(
        ValueError, match="dataset uses a different numbering of users and items from the model"
    ):
        model.recommend(other)
    with pytest.raises(
        ValueError, match="dataset uses a different numbering of users and items from the model"
    ):
        rank_candidates(model, draw_candidates(other, "test", num_neg_test=1, seed=0))
    with (
        WarpSampler(other.histories("train"), 4, 12, maxlen=4) as sampler,
        pytest.raises(
            ValueError, match="dataset uses a different numbering of users and items from the model"
        ),
    ):
        model.train_model(other, sampler, num_epochs=1, verbose=False)


def test_a_fingerprint_tells_data_from_changed_data():
    first = Fingerprint.of(interactions().to_dataset())
    changes = [
        interactions(SHUFFLED).to_dataset(),
        interactions(HISTORIES | {"cleo": ["i5", "i6"]}).to_dataset(),
        interactions().to_dataset(hold_out=False),
        plain(),
    ]
    edited = interactions().to_dataset()
    edited.user_valid[1] = [5]

    assert Fingerprint.of(interactions().to_dataset()) == first
    assert first not in [Fingerprint.of(dataset) for dataset in (*changes, edited)]
