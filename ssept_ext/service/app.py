"""The server's routes."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ssept_ext._extension import Backend
from ssept_ext.network.compressed import ItemDtype
from ssept_ext.service.answers import RequestError, recommend_all, similar
from ssept_ext.service.batching import Batcher, OverloadedError
from ssept_ext.service.current_model import CurrentModel
from ssept_ext.service.limits import LimitBody
from ssept_ext.service.metrics import CountRequests, Metrics
from ssept_ext.service.schemas import (
    Health,
    ModelInfo,
    RecommendAnswer,
    RecommendRequest,
    SimilarAnswer,
    SimilarRequest,
    problems,
)

SETTINGS_VARIABLE = "SSEPT_SERVE"
"""Tells workers, which import this module anew, their settings."""

_MAX_DETAIL = 1000
"""Characters of an answer that refuses a request."""

Answers = list[RecommendAnswer | Exception]


@dataclass(frozen=True)
class ServiceSettings:
    """What each worker of a server is told."""

    folder: str
    backend: Backend = "auto"
    device: str = "cpu"
    threads: int | None = None
    """Of torch; None leaves it what it is."""
    watch_seconds: float = 5.0
    """How often to look whether the folder has changed; 0 never does."""
    table: ItemDtype | None = None
    """What to compress the item vectors to: see `ssept_ext.ranking.compressing.compress`."""

    def to_environment(self) -> None:
        """Leave the settings for `app_from_environment` in processes that this one starts."""
        os.environ[SETTINGS_VARIABLE] = json.dumps(asdict(self))


def app_from_environment() -> FastAPI:
    """Make the app of a worker, which ends when the process that started it does, however that ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return make_app(ServiceSettings(**json.loads(os.environ[SETTINGS_VARIABLE])))


def make_app(settings: ServiceSettings, current: CurrentModel | None = None) -> FastAPI:
    """Make the ASGI app that answers from the model in a folder, or from one that is loaded already.

    While it runs, the garbage collector leaves out (`gc.freeze`) what was there when it started.

    Raises
    ------
    OSError, ValueError
        If the folder holds no model that can be loaded.

    Examples
    --------
    >>> import tempfile
    >>> from fastapi.testclient import TestClient
    >>> from ssept_ext import SASREC
    >>> model = SASREC(item_num=9, seq_max_len=4, embedding_dim=4, conv_dims=[4, 4])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save_pretrained(folder)
    ...     app = make_app(ServiceSettings(folder))
    >>> with TestClient(app) as client:
    ...     answer = client.post("/recommend", json={"history": [3, 5], "k": 2})
    >>> answer.status_code, len(answer.json()["items"])
    (200, 2)
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if current is None:
        device = torch.device(settings.device)
        current = CurrentModel(settings.folder, settings.backend, device, settings.table)
    metrics = Metrics()
    service = _Service(current, metrics, settings.watch_seconds)
    app = FastAPI(
        title="ssept_ext",
        description="Recommendations of a sequential model",
        lifespan=service.lifespan,
    )
    app.add_middleware(LimitBody)
    app.add_middleware(CountRequests, metrics=metrics)
    app.exception_handler(RequestValidationError)(_refuse_form)
    app.exception_handler(HTTPException)(_refuse_http)
    refusals = problems(400, 408, 413, 422, 503)
    app.post("/recommend", response_model=RecommendAnswer, responses=refusals)(service.recommend)
    app.post("/similar", response_model=SimilarAnswer, responses=refusals | problems(404))(
        service.similar
    )
    app.get("/health", response_model=Health)(service.health)
    app.get("/metrics", response_class=Response)(service.figures)
    return app


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


class _Service:
    """What the routes share."""

    def __init__(self, current: CurrentModel, metrics: Metrics, watch_seconds: float) -> None:
        self._current, self._metrics, self._watch_seconds = current, metrics, watch_seconds
        self._batcher: Batcher[RecommendRequest, RecommendAnswer]

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self._batcher = Batcher(self._recommend_all)
        watching = asyncio.create_task(self._watch())
        # Each full collection would look through what lives as long as the server, torch above all.
        gc.collect()
        gc.freeze()
        yield
        gc.unfreeze()
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await self._batcher.close()

    async def recommend(self, request: RecommendRequest) -> Response:
        """Recommend the best items for one user or history."""
        try:
            answer = await self._batcher.ask(request)
        except RequestError as error:
            return _problem(422, _text(error))
        except OverloadedError:
            return _problem(503, "too many requests wait already", {"retry-after": "1"})
        self._metrics.unknown_items.inc(answer.unknown_items)
        return _json(answer)

    async def similar(self, request: SimilarRequest) -> Response:
        """Return the items that are most similar to one."""
        try:
            answer = await self._batcher.call(similar, self._current.loaded.model, request)
        except KeyError as error:
            return _problem(404, _text(error))
        except RequestError as error:
            return _problem(422, _text(error))
        return _json(answer)

    async def health(self) -> Response:
        """Tell whether the server answers, from which model, and whether its folder could be loaded."""
        loaded, error = self._current.loaded, self._current.error
        model = ModelInfo(
            kind=type(loaded.model).__name__,
            num_items=loaded.model.item_num,
            num_users=getattr(loaded.model, "user_num", None),
            loaded_at=loaded.at,
        )
        return _json(Health(status="stale" if error else "ok", error=error, model=model))

    async def figures(self) -> Response:
        """Return the server's figures in Prometheus's format."""
        self._metrics.loaded.set(self._current.loaded.at.timestamp())
        self._metrics.failed_loads.set(self._current.failures)
        return Response(self._metrics.text(), media_type=CONTENT_TYPE_LATEST)

    def _recommend_all(self, requests: Sequence[RecommendRequest]) -> Answers:
        self._metrics.batches.observe(len(requests))
        return recommend_all(self._current.loaded.model, requests)

    async def _watch(self) -> None:
        if not self._watch_seconds:
            return
        log, told = logging.getLogger("uvicorn.error"), self._current.error
        while True:
            await asyncio.sleep(self._watch_seconds)
            if await asyncio.to_thread(self._current.refresh):
                log.info("the model was loaded again")
            if self._current.error not in (None, told):
                log.error(
                    "the folder cannot be loaded, the earlier model answers: %s",
                    self._current.error,
                )
            told = self._current.error


async def _refuse_form(_: Request, error: Exception) -> Response:
    """Name what is wrong, without the values, which JSON may not be able to hold."""
    assert isinstance(error, RequestValidationError)
    found = []
    for each in error.errors():
        fields = [str(part) for part in each["loc"][1:] if each["type"] != "json_invalid"]
        found.append(f"{'.'.join(fields) or 'body'}: {each['msg']}")
    return _problem(422, "; ".join(found)[:_MAX_DETAIL])


async def _refuse_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _problem(error.status_code, str(error.detail), dict(error.headers or {}))


def _text(error: BaseException) -> str:
    return str(error.args[0]) if error.args else type(error).__name__


def _problem(code: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    return _encoded({"detail": detail}, code, headers)


def _json(answer: BaseModel) -> Response:
    return _encoded(answer.model_dump(mode="json"))


def _encoded(content: Any, code: int = 200, headers: dict[str, str] | None = None) -> Response:
    """As ASCII: an id may hold what UTF-8 cannot."""
    body = json.dumps(content, allow_nan=False).encode()
    return Response(body, code, headers, media_type="application/json")
