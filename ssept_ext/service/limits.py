"""Refuses requests that are too large or too slow, before anything looks at them."""

from __future__ import annotations

import asyncio

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 8 << 20
"""Bytes of a request."""
BODY_SECONDS = 10.0
"""How long a request may take to arrive."""


class _TooLargeError(Exception):
    pass


class _GoneError(Exception):
    pass


class LimitBody:
    """ASGI middleware that reads the whole body first: 413 if it is too large, 408 if it takes too long."""

    def __init__(self, app: ASGIApp, seconds: float = BODY_SECONDS) -> None:
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(_read(scope, receive), self._seconds)
        except _TooLargeError:
            await _refuse(413, f"the request has more than {MAX_BODY} bytes", scope, receive, send)
            return
        except asyncio.TimeoutError:
            reason = f"the request did not arrive within {self._seconds:g} seconds"
            await _refuse(408, reason, scope, receive, send)
            return
        except _GoneError:
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, replay, send)


async def _read(scope: Scope, receive: Receive) -> bytes:
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > MAX_BODY:
        raise _TooLargeError
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _GoneError
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY:
            raise _TooLargeError
    return bytes(body)


async def _refuse(code: int, reason: str, scope: Scope, receive: Receive, send: Send) -> None:
    # What is left of the body would be taken for the next request.
    answer = JSONResponse({"detail": reason}, code, {"connection": "close"})
    await answer(scope, receive, send)
