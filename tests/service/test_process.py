"""The command `ssept serve` as a process: it answers, follows its folder, and ends when it is told to."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

pytest.importorskip("fastapi")

from support.served import fitted

from ssept_ext.cli import main

MAIN = "import sys; from ssept_ext.cli import main; sys.exit(main(sys.argv[1:]))"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def ask(port, path, body=None):
    """The answer as JSON; an HTTPError for any status but 200."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def listens(port):
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def server(folder, *options):
    """A port and the process that answers there."""
    port = free_port()
    command = ["serve", str(folder), "--port", str(port), "--device", "cpu", *options]
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *command],
        cwd=folder,  # not the checkout, so as to import the installed package
        stderr=subprocess.PIPE,
        text=True,
    )

    def answers():
        assert process.poll() is None, process.stderr.read()
        try:
            return ask(port, "/health")
        except (OSError, urllib.error.URLError):
            return False

    try:
        wait_until(answers)
        yield port, process
    finally:
        process.kill()
        process.wait()


def test_a_server_swaps_models_without_a_lost_request_and_ends_at_sigterm(tmp_path):
    fitted().save_pretrained(tmp_path)
    with server(tmp_path, "--watch", "0.1") as (port, process):

        def ask_on(_):
            return [ask(port, "/recommend", {"user": "anna"}) for _ in range(60)]

        with ThreadPoolExecutor(4) as pool:
            asked = pool.map(ask_on, range(4))
            loaded = ask(port, "/health")["model"]["loaded_at"]
            other = fitted()
            other.item_embedding_layer.weight.data.neg_()
            other.save_pretrained(tmp_path)
            wait_until(lambda: ask(port, "/health")["model"]["loaded_at"] != loaded)
            assert all(answer["items"] for answers in asked for answer in answers)
        (tmp_path / "config.json").write_text("{")
        wait_until(lambda: ask(port, "/health")["status"] == "stale")
        assert ask(port, "/recommend", {"user": "anna"})["items"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) in (0, -signal.SIGTERM)


def test_workers_add_up_their_figures_and_end_with_the_server(tmp_path):
    fitted().save_pretrained(tmp_path)
    with server(tmp_path, "--workers", "2") as (port, process):
        for _ in range(20):
            ask(port, "/recommend", {"user": "anna"})
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
            figures = response.read().decode()
        process.kill()
        wait_until(lambda: not listens(port))  # the workers end, too
    assert 'ssept_requests_total{route="/recommend",status="200"} 20.0' in figures


def test_headers_without_end_are_refused_before_they_fill_the_memory(tmp_path):
    fitted().save_pretrained(tmp_path)
    with server(tmp_path) as (port, _):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n")
            with pytest.raises(ConnectionError):
                client.sendall(b"x: %s\r\n" % (b"a" * 100_000_000))
        assert ask(port, "/health")["status"] == "ok"


def test_a_folder_without_a_model_is_an_error_in_one_line(tmp_path, capsys):
    assert main(["serve", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.json" in line


def test_a_missing_package_is_named_with_its_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)

    assert main(["serve", str(tmp_path)]) == 2
    assert "pip install 'ssept_ext[serve]'" in capsys.readouterr().err


def test_a_port_in_use_is_an_error(tmp_path):
    fitted().save_pretrained(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-c", MAIN, "serve", str(tmp_path), "--port", port],
            cwd=tmp_path,
            env=os.environ,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode != 0
    assert "address already in use" in done.stderr
