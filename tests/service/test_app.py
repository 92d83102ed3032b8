"""What the server answers."""

import asyncio
import json
from contextlib import suppress
from uuid import UUID

import narwhals as nw
import pytest
import torch
from support.raw_ids import SIZES

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient
from support.served import fitted, served

from ssept_ext import SASREC, SSEPT, Interactions
from ssept_ext.service.app import ServiceSettings, make_app
from ssept_ext.service.limits import MAX_BODY, LimitBody
from ssept_ext.service.metrics import CountRequests, Metrics
from ssept_ext.service.schemas import MAX_HISTORY, MAX_K


@pytest.fixture(scope="module")
def model():
    return fitted()


@pytest.fixture(scope="module")
def client(model, tmp_path_factory):
    with served(model, tmp_path_factory.mktemp("model")) as client:
        yield client


def ranked(frame):
    frame = nw.from_native(frame)
    return list(zip(frame["item"].to_list(), frame["score"].to_list(), strict=True))


def answered(response):
    assert response.status_code == 200, response.text
    return [(found["item"], found["score"]) for found in response.json()["items"]]


def test_a_stored_user_gets_what_recommend_returns(model, client):
    response = client.post("/recommend", json={"user": "anna", "k": 5})

    assert answered(response) == ranked(model.recommend(users=["anna"], k=5))
    assert response.json()["known_user"] is True


def test_a_history_replaces_the_stored_one(model, client):
    asked = {"user": "anna", "history": ["i7", "i8"], "k": 3}

    response = client.post("/recommend", json=asked)

    assert answered(response) == ranked(model.recommend({"anna": ["i7", "i8"]}, k=3))


def test_candidates_and_seen_items_are_as_asked(model, client):
    asked = {"user": "anna", "candidates": ["i1", "i3", "i9"], "exclude_seen": False}

    response = client.post("/recommend", json=asked)

    options = {"candidates": ["i1", "i3", "i9"], "exclude_seen": False}
    assert answered(response) == ranked(model.recommend(users=["anna"], **options))


def test_a_user_without_events_gets_popular_items_without_scores(model, client):
    response = client.post("/recommend", json={"user": "nobody", "k": 2})

    expected = nw.from_native(model.recommend({"nobody": []}, k=2))["item"].to_list()
    assert answered(response) == [(item, None) for item in expected]
    assert response.json()["known_user"] is False


def test_unknown_items_are_counted(client):
    asked = {"history": ["i1", "gone", "lost"], "candidates": ["i2", "none"]}

    assert client.post("/recommend", json=asked).json()["unknown_items"] == 3


def test_similar_items_are_those_of_the_model(model, client):
    response = client.post("/similar", json={"item": "i3", "k": 4})

    found = nw.from_native(model.similar_items(["i3"], k=4))
    assert [item for item, _ in answered(response)] == found["similar_item"].to_list()


def test_an_unknown_item_has_no_similar_ones(client):
    response = client.post("/similar", json={"item": "gone"})

    assert response.status_code == 404
    assert response.json() == {"detail": "item is unknown to the model"}


@pytest.mark.parametrize(
    ("route", "asked", "detail"),
    [
        ("/recommend", {"k": 0}, "k: Input should be greater than or equal to 1"),
        ("/recommend", {"k": MAX_K + 1}, f"less than or equal to {MAX_K}"),
        ("/recommend", {"k": "10"}, "k: Input should be a valid integer"),
        ("/recommend", {"user": 7}, "user ids must be str, as in training, got 7"),
        ("/recommend", {"user": True}, "user.int: Input should be a valid integer"),
        ("/recommend", {"history": ["i1", 2]}, "item ids must be str, as in training, got 2"),
        ("/recommend", {"history": ["i1"] * (MAX_HISTORY + 1)}, f"at most {MAX_HISTORY} items"),
        ("/recommend", {"candidates": []}, "at least 1 item"),
        ("/recommend", {"candidates": ["gone"]}, "candidates must hold an item"),
        ("/recommend", {"user": "anna", "at": 7}, "at must be None for a model without time_bias"),
        ("/recommend", {"at": 2**63}, "at.constrained-int: Input should be less than"),
        ("/recommend", {"history_times": [1]}, "history_times must come with a history"),
        ("/recommend", {"history": ["i1"], "history_times": [1, 2]}, "must be 1 times"),
        ("/recommend", {"useer": "anna"}, "useer: Extra inputs are not permitted"),
        ("/recommend", [], "Input should be a valid dictionary"),
        ("/similar", {}, "item: Field required"),
        ("/similar", {"item": 5}, "item ids must be str"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_with_the_reason(client, route, asked, detail):
    response = client.post(route, json=asked)

    assert response.status_code == 422
    assert detail in response.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b'{"k": NaN}',
        b'{"k": 1e999}',
        b'{"user": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"at": 1e300}',
        b'{"at": "9999-12-31T23:59:59-23:59"}',
        b'{"at": 99999999999999999999999}',
        b"[" * 100_000,
        b'{"k": ' + b"9" * 5000 + b"}",
        b'{"history": ["i1"], "history_times": [99999999999999999999999]}',
    ],
)
def test_a_senseless_body_is_no_error_of_the_server(client, body):
    response = client.post("/recommend", content=body)

    assert response.status_code in (200, 400, 422)
    assert not json.loads(response.content).get("detail", "").startswith("1:")  # a place, no field


def test_a_body_beyond_the_limit_is_refused(client):
    response = client.post("/recommend", content=b" " * (MAX_BODY + 1))

    assert response.status_code == 413
    assert str(MAX_BODY) in response.json()["detail"]


def test_a_body_in_chunks_beyond_the_limit_is_refused(client):
    chunks = (b" " * (MAX_BODY // 4) for _ in range(5))

    assert client.post("/recommend", content=chunks).status_code == 413


def test_a_model_without_raw_ids_takes_indices(tmp_path):
    torch.manual_seed(0)
    model = SASREC(item_num=9, seq_max_len=4, embedding_dim=4, conv_dims=[4, 4])
    with served(model, tmp_path) as client:
        response = client.post("/recommend", json={"history": [3, 5, 99], "k": 4})
        without = client.post("/recommend", json={"user": 1})
        only_unknown = client.post("/recommend", json={"history": [99]})

    expected = model.recommend({1: [3, 5]}, k=4)
    assert [item for item, _ in answered(response)] == expected.items[0].tolist()
    assert response.json()["unknown_items"] == 1
    assert "history must be given" in without.json()["detail"]
    assert only_unknown.status_code == 422


def test_uuids_are_strings(tmp_path):
    histories = {
        UUID(int=1): [UUID(int=7), UUID(int=8)],
        UUID(int=2): [UUID(int=9), UUID(int=7)],
    }
    with served(fitted(histories), tmp_path) as client:
        response = client.post("/recommend", json={"user": str(UUID(int=1))})
        wrong = client.post("/recommend", json={"user": "anna"})

    assert [item for item, _ in answered(response)] == [str(UUID(int=9))]
    assert wrong.status_code == 422


def test_users_without_stored_histories_must_bring_one(tmp_path, model):
    model.save_pretrained(tmp_path, histories=False)
    with TestClient(make_app(ServiceSettings(str(tmp_path), watch_seconds=0))) as client:
        response = client.post("/recommend", json={"user": "anna"})

    assert response.status_code == 422
    assert "the model was saved without any" in response.json()["detail"]


def test_items_may_be_ranked_by_compressed_vectors(tmp_path, model):
    model.save_pretrained(tmp_path)
    settings = ServiceSettings(str(tmp_path), watch_seconds=0, table="int8")
    with TestClient(make_app(settings)) as client:
        response = client.post("/recommend", json={"user": "anna", "k": 5})
        similar = client.post("/similar", json={"item": "i7", "k": 5})

    compressed = model.compress("int8")
    assert answered(response) == ranked(compressed.recommend(users=["anna"], k=5))
    expected = nw.from_native(compressed.similar_items(["i7"], k=5))
    assert [item for item, _ in answered(similar)] == expected["similar_item"].to_list()


def test_a_model_with_a_time_bias_is_asked_for_a_time(tmp_path):
    pa = pytest.importorskip("pyarrow")
    columns = {"user": ["ann", "ann", "bob"], "item": ["a", "b", "c"], "timestamp": [10, 20, 30]}
    events = Interactions.from_dataframe(pa.table(columns))
    model = SSEPT.fit(events, **SIZES, num_epochs=1, hold_out=False, time_bias=True)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=2.0 if "time_bias" in name else 0.2)
    history = {"history": ["a", "b"], "history_times": [10, 20]}
    with served(model, tmp_path) as client:
        by_default = client.post("/recommend", json=history)
        later = client.post("/recommend", json=history | {"at": 50_000})
        early = client.post("/recommend", json=history | {"at": 5})
        as_date = client.post("/recommend", json=history | {"at": "1970-01-01T13:53:20Z"})

    times = {"history_times": {"x": [10, 20]}}
    assert answered(later) == ranked(model.recommend({"x": ["a", "b"]}, **times, at=50_000))
    assert answered(later) == answered(as_date) != answered(by_default)
    assert "at must not be before the newest event" in early.json()["detail"]


def test_figures_count_requests_by_route_and_status(tmp_path, model):
    with served(model, tmp_path) as client:
        client.post("/recommend", json={"user": "anna"})
        client.post("/recommend", json={"k": 0})
        client.get("/nowhere")
        figures = client.get("/metrics").text

    assert 'ssept_requests_total{route="/recommend",status="200"} 1.0' in figures
    assert 'ssept_requests_total{route="/recommend",status="422"} 1.0' in figures
    assert 'ssept_requests_total{route="none",status="404"} 1.0' in figures
    assert "ssept_batch_size_count 1.0" in figures


def answer_of(app):
    """What an ASGI app under `CountRequests` answers to a client that goes away, and the counts."""
    metrics, sent = Metrics(), []

    async def send(message):
        sent.append(message)

    async def gone():
        return {"type": "http.disconnect"}

    with suppress(ZeroDivisionError):
        asyncio.run(CountRequests(app, metrics)({"type": "http", "headers": []}, gone, send))
    return sent, metrics.text().decode()


async def failing(scope, receive, send):
    raise ZeroDivisionError


def test_an_error_counts_as_one():
    assert 'ssept_requests_total{route="none",status="500"} 1.0' in answer_of(failing)[1]


def test_a_client_that_goes_away_is_no_error():
    sent, figures = answer_of(LimitBody(failing))

    assert sent == []
    assert 'ssept_requests_total{route="none",status="none"} 1.0' in figures


def test_openapi_describes_the_routes(client):
    paths = client.get("/openapi.json").json()["paths"]

    assert set(paths) == {"/recommend", "/similar", "/health", "/metrics"}
