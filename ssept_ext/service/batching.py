"""Requests that arrive while others are being scored are scored together afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")

MAX_BATCH = 256
MAX_WAITING = 2048


class OverloadedError(Exception):
    """More requests wait than the server will ever answer in time."""


class Batcher(Generic[Request, Answer]):
    """Answers requests by calls of a function with all that wait, on a thread of its own.

    Nobody waits for a batch to fill: a request that finds the thread idle is answered alone.
    """

    def __init__(self, answer: Callable[[Sequence[Request]], Sequence[Answer | Exception]]) -> None:
        """Take a function that returns an answer or an error for each request."""
        self._answer = answer
        self._waiting: list[tuple[Request, asyncio.Future[Answer]]] = []
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "scoring")
        self._task = asyncio.create_task(self._run())

    async def ask(self, request: Request) -> Answer:
        """Return the answer to one request, or raise its error.

        Raises
        ------
        OverloadedError
            If `MAX_WAITING` others wait already.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise OverloadedError
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        self._arrived.set()
        return await future

    async def call(self, function: Callable[..., Any], *arguments: object) -> Any:
        """Call a function on the same thread, after the batch that is being answered."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def close(self) -> None:
        """Stop; there must be no request left."""
        self._task.cancel()
        self._thread.shutdown(wait=True)

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                requests, futures = zip(*batch, strict=True)
                try:
                    answers = await self.call(self._answer, requests)
                except Exception as error:  # a bug, which must not end this loop
                    answers = [error] * len(batch)
                for future, answer in zip(futures, answers, strict=True):
                    _settle(future, answer)


def _settle(future: asyncio.Future[Answer], answer: Answer | Exception) -> None:
    if future.done():  # whoever asked has gone
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
