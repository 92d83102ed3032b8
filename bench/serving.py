"""Benchmark a request: how long a live history takes, by the size of the catalogue, and how many `ssept serve` answers.

Latencies are compared with reading the vectors of the items once, and the server, asked by clients on the same cores
that each wait for an answer before they ask again, with one caller of `recommend` in this process.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import torch
from measure import Options, heading, options_from, parser, print_table, print_title
from workload import DIM

from ssept_ext import SSEPT

SEQ_MAX_LEN, K = 200, 10
NUM_CLIENTS = 32


@dataclass(frozen=True)
class Latencies:
    """Of calls one after another."""

    seconds: Sequence[float]

    def at(self, quantile: float) -> float:
        return float(np.quantile(self.seconds, quantile))


def model_of(num_items: int, quick: bool, num_users: int = 10) -> SSEPT:
    torch.manual_seed(0)
    return SSEPT(
        item_num=num_items,
        user_num=num_users,
        seq_max_len=20 if quick else SEQ_MAX_LEN,
        embedding_dim=DIM,
        conv_dims=[2 * DIM, 2 * DIM],
    )


def histories(num_items: int, count: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [
        rng.integers(1, num_items + 1, rng.integers(1, SEQ_MAX_LEN)).tolist() for _ in range(count)
    ]


def timed(call: Any, arguments: Sequence[Any]) -> Latencies:
    seconds = []
    for argument in arguments:
        start = time.perf_counter()
        call(argument)
        seconds.append(time.perf_counter() - start)
    return Latencies(seconds)


def recommend_times(model: SSEPT, count: int) -> Latencies:
    asked = histories(model.item_num, count + 5)
    return Latencies(timed(lambda items: model.recommend({1: items}, k=K), asked).seconds[5:])


def in_process(sizes: Sequence[int], count: int, options: Options) -> None:
    rows = []
    for num_items in sizes:
        exact = model_of(num_items, options.quick)
        for name, model in (("float32", exact), ("int8", exact.compress("int8"))):
            table = exact.item_embedding_layer.weight.detach()
            if model.compressed is not None:
                table = model.compressed.vectors.view(torch.float32)
            reads = timed(lambda _, table=table: table.sum(), range(count))
            found = recommend_times(model, count)
            row = [f"{num_items:,}", name, f"{found.at(0.5) / reads.at(0.5):.1f}"]
            row.append(f"{found.at(0.99) / found.at(0.5):.1f}")
            if options.verbose:
                row += [f"{1e3 * found.at(q):.2f}" for q in (0.5, 0.99)]
            rows.append(row)
    heading(f"One live history of up to {SEQ_MAX_LEN} events, k={K}, d={DIM}+{DIM}, by `recommend`")
    columns = ["items", "vectors", "median / reading them", "p99 / median"]
    print_table(columns + (["median, ms", "p99, ms"] if options.verbose else []), rows)


class Client(asyncio.Protocol):
    """Asks on one connection, and again as soon as it has the answer."""

    def __init__(self, bodies: Sequence[bytes], until: float) -> None:
        head = b"POST /recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        self._requests = cycle(
            head + b"content-length: %d\r\n\r\n" % len(body) + body for body in bodies
        )
        self._until, self._answer = until, b""
        self.seconds: list[float] = []
        self.errors = 0
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._start = time.perf_counter()
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, end, body = self._answer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if not end or length is None or len(body) < int(length[1]):
            return
        now, self._answer = time.perf_counter(), b""
        self.seconds.append(now - self._start)
        self.errors += not head.startswith(b"HTTP/1.1 200 ")
        if now < self._until:
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.errors += time.perf_counter() < self._until  # the server has ended it
        self.closed.set_result(None)


async def ask_on(
    port: int, bodies: Sequence[bytes], num_clients: int, until: float
) -> list[Client]:
    """Ask until it is time to stop, on one thread: clients take time from the server, which has the same cores."""
    loop = asyncio.get_running_loop()
    clients: list[Client] = []
    for i in range(num_clients):
        client = Client(bodies[i:] + bodies[:i], until)
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)
        clients.append(client)
    await asyncio.gather(*(client.closed for client in clients))
    return clients


def start_server(folder: str, ports: Any) -> None:
    """Serve the model of a folder at a free port, which is told."""
    import uvicorn

    from ssept_ext.service.app import ServiceSettings, make_app

    class Server(uvicorn.Server):
        async def startup(self, *arguments: Any, **options: Any) -> None:
            await super().startup(*arguments, **options)
            ports.put(self.servers[0].sockets[0].getsockname()[1])

    app = make_app(ServiceSettings(folder, watch_seconds=0))
    Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False, http="h11")).run()


def over_http(num_items: int, seconds: float, options: Options) -> None:
    model = model_of(num_items, options.quick)
    alone = recommend_times(model, 10 if options.quick else 200)
    asked = histories(num_items, 500)
    bodies = [json.dumps({"history": items, "k": K}).encode() for items in asked]
    spawn = multiprocessing.get_context("spawn")
    ports = spawn.Queue()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        server = spawn.Process(target=start_server, args=(folder, ports))
        server.start()
        try:
            port = ports.get(timeout=120)
            for duration in (seconds / 10, seconds):  # the first warms up
                until = time.perf_counter() + duration
                found = asyncio.run(ask_on(port, bodies, NUM_CLIENTS, until))
        finally:
            with suppress(ProcessLookupError):
                server.terminate()
            server.join()
    latencies = Latencies([s for client in found for s in client.seconds])
    rate = len(latencies.seconds) / seconds
    heading(f"`ssept serve`, {num_items:,} items, {NUM_CLIENTS} clients for {seconds:g} s")
    row = [f"{rate * alone.at(0.5):.2f}", str(sum(client.errors for client in found))]
    if options.verbose:
        row += [f"{rate:.0f}", *(f"{1e3 * latencies.at(q):.1f}" for q in (0.5, 0.99))]
    columns = ["requests for each that one caller of `recommend` gets answered", "errors"]
    print_table(columns + (["a second", "median, ms", "p99, ms"] if options.verbose else []), [row])


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(parser(__doc__).parse_args(argv))
    print_title(__doc__, options)
    sizes = (100, 1000) if options.quick else (3_416, 100_000, 1_000_000)
    in_process(sizes, 10 if options.quick else 200, options)
    over_http(500 if options.quick else 100_000, 1.0 if options.quick else 60.0, options)


if __name__ == "__main__":
    main()
