"""Requests that wait are answered together, each by its own answer or error."""

import asyncio
import threading

import pytest

pytest.importorskip("fastapi")

from ssept_ext.service import batching
from ssept_ext.service.batching import Batcher, OverloadedError


class Doubling:
    """Doubles numbers, one batch at a time, once it may; an error instead of an answer for negative ones."""

    def __init__(self):
        self.batches, self.may_go = [], threading.Event()

    def __call__(self, requests):
        self.may_go.wait(10)
        self.batches.append(list(requests))
        return [ValueError(x) if x < 0 else 2 * x for x in requests]


def asked(requests, doubling, between=lambda: None):
    async def run():
        batcher = Batcher(doubling)
        first = asyncio.create_task(batcher.ask(requests[0]))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(batcher.ask(x)) for x in requests[1:]]
        await asyncio.sleep(0.05)
        between()
        doubling.may_go.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        await batcher.close()
        return found

    return asyncio.run(run())


def test_what_arrives_during_a_batch_is_the_next_one():
    doubling = Doubling()

    assert asked([1, 2, 3], doubling) == [2, 4, 6]
    assert doubling.batches == [[1], [2, 3]]


def test_an_error_is_that_of_one_request():
    first, second, third = asked([1, -2, 3], Doubling())

    assert (first, third) == (2, 6)
    assert isinstance(second, ValueError)


def test_a_bug_in_a_batch_is_not_the_end():
    class Broken(Doubling):
        def __call__(self, requests):
            found = super().__call__(requests)
            if len(self.batches) == 1:
                raise RuntimeError("a bug")
            return found

    first, second = asked([1, 2], Broken())

    assert isinstance(first, RuntimeError)
    assert second == 4


def test_more_than_may_wait_are_refused(monkeypatch):
    monkeypatch.setattr(batching, "MAX_WAITING", 1)

    first, second, third = asked([1, 2, 3], Doubling())

    assert (first, second) == (2, 4)
    assert isinstance(third, OverloadedError)
