"""Fetching archives from a server on this machine that breaks connections and corrupts bytes."""

import hashlib
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from ssept_ext import SASRecDataSet
from ssept_ext.cli import main, prepare
from ssept_ext.data.sources import movielens as module
from ssept_ext.data.sources.movielens import ATTEMPTS, MOVIELENS_MD5, download

DATA = bytes(range(256)) * 4096  # 1 MiB


class Server(ThreadingHTTPServer):
    """Serves DATA as ml-1m.zip, as `faults` says: one for each request, the last for all others."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.data = DATA
        self.faults = ["none"]
        self.requests = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        fault = server.faults[min(len(server.requests), len(server.faults) - 1)]
        wanted = self.headers.get("Range")
        server.requests.append(wanted)
        if fault in ("404", "503"):
            self.send_error(int(fault))
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if fault == "no ranges":
            start = 0
        if start >= len(server.data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = server.data[start:]
        self.send_response(206 if start else 200)
        if start:
            if fault == "wrong range":
                start, body = start + 1, body[1:]
            last = len(server.data) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{last + 1}")
        if fault != "no length":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "corrupt":
            body = body[:1000] + bytes([body[1000] ^ 1]) + body[1001:]
        self.wfile.write(body[: len(body) // 3] if fault in ("cut", "no length") else body)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("pooch")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        monkeypatch.setitem(MOVIELENS_MD5, "ml-1m", hashlib.md5(DATA).hexdigest())
        waits = []
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=waits.append))
        server.waits = waits
        yield server
        server.shutdown()
        thread.join()


def whole_chunks(size):
    return size - size % module._CHUNK


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_is_fetched_once(server, tmp_path):
    for _ in range(2):
        assert download("ml-1m", tmp_path, server.url) == tmp_path / "ml-1m.zip"

    assert (tmp_path / "ml-1m.zip").read_bytes() == DATA
    assert names(tmp_path) == ["ml-1m.zip"]
    assert server.requests == [None]


def test_a_broken_connection_is_taken_up_where_it_broke(server, tmp_path):
    server.faults = ["cut", "cut", "none"]

    download("ml-1m", tmp_path, server.url)

    first = whole_chunks(len(DATA) // 3)
    second = first + whole_chunks((len(DATA) - first) // 3)
    assert server.requests == [None, f"bytes={first}-", f"bytes={second}-"]
    assert (tmp_path / "ml-1m.zip").read_bytes() == DATA
    assert names(tmp_path) == ["ml-1m.zip"]


def test_a_connection_may_break_often_if_bytes_arrive_in_between(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 1000)
    server.faults = ["cut"] * (ATTEMPTS + 2) + ["none"]

    download("ml-1m", tmp_path, server.url)

    assert len(server.requests) == ATTEMPTS + 3
    assert (tmp_path / "ml-1m.zip").read_bytes() == DATA


def test_a_later_call_goes_on_from_the_part_that_an_earlier_one_left(server, tmp_path):
    (tmp_path / "ml-1m.zip.part").write_bytes(DATA[:777])

    download("ml-1m", tmp_path, server.url)

    assert server.requests == ["bytes=777-"]
    assert (tmp_path / "ml-1m.zip").read_bytes() == DATA


def test_a_part_that_is_whole_already_is_taken(server, tmp_path):
    (tmp_path / "ml-1m.zip.part").write_bytes(DATA)

    download("ml-1m", tmp_path, server.url)

    assert server.requests == [f"bytes={len(DATA)}-"]
    assert (tmp_path / "ml-1m.zip").read_bytes() == DATA


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "ml-1m.zip.part").write_bytes(DATA + b"more")

    download("ml-1m", tmp_path, server.url)

    assert server.requests == [f"bytes={len(DATA) + 4}-", None]
    assert (tmp_path / "ml-1m.zip").read_bytes() == DATA


@pytest.mark.parametrize("fault", ["no ranges", "wrong range"])
def test_a_server_that_does_not_go_on_is_read_from_the_beginning(server, tmp_path, fault):
    server.faults = ["cut", fault, "no ranges"]

    download("ml-1m", tmp_path, server.url)

    assert (tmp_path / "ml-1m.zip").read_bytes() == DATA


def test_a_connection_that_keeps_breaking_is_an_error_that_keeps_what_arrived(server, tmp_path):
    server.faults = ["cut", "503"]

    with pytest.raises(
        OSError, match=r"ml-1m\.zip: .*; 327,680 bytes are kept in .*ml-1m\.zip\.part"
    ):
        download("ml-1m", tmp_path, server.url)

    assert len(server.requests) == ATTEMPTS
    assert server.waits == [1, 2, 4, 8]
    assert names(tmp_path) == ["ml-1m.zip.part"]
    assert (tmp_path / "ml-1m.zip.part").read_bytes() == DATA[:327_680]


def test_a_server_without_the_file_is_an_error_at_once(server, tmp_path):
    server.faults = ["404"]

    with pytest.raises(OSError, match="404"):
        download("ml-1m", tmp_path, server.url)

    assert len(server.requests) == 1
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "fault", ["corrupt", "no length"], ids=["a flipped bit", "an unnoticed end"]
)
def test_a_file_with_a_wrong_sum_never_gets_its_name(server, tmp_path, fault):
    server.faults = [fault]

    with pytest.raises(ValueError, match=r"hash of downloaded file \(ml-1m\.zip\) does not match"):
        download("ml-1m", tmp_path, server.url)

    assert names(tmp_path) == []


def test_a_part_that_was_corrupted_is_not_taken_up_again(server, tmp_path):
    (tmp_path / "ml-1m.zip.part").write_bytes(b"x" + DATA[1:777])
    with pytest.raises(ValueError, match="does not match"):
        download("ml-1m", tmp_path, server.url)

    download("ml-1m", tmp_path, server.url)

    assert (tmp_path / "ml-1m.zip").read_bytes() == DATA


def test_an_archive_that_was_damaged_later_is_fetched_again(server, tmp_path):
    (tmp_path / "ml-1m.zip").write_bytes(DATA[:-1])

    download("ml-1m", tmp_path, server.url)

    assert (tmp_path / "ml-1m.zip").read_bytes() == DATA


def test_a_server_that_is_not_there_is_an_error(server, tmp_path):
    with pytest.raises(OSError, match="0 bytes are kept"):
        download("ml-1m", tmp_path, "http://127.0.0.1:1")


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="name must be one of ml-100k, .*got 'ml-2m'"):
        download("ml-2m", tmp_path)


def test_prepare_fetches_what_it_reads(server, tmp_path, monkeypatch):
    archive = tmp_path / "made.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("ml-1m/ratings.dat", "5::7::3::20\n5::8::4::10\n")
    server.data = archive.read_bytes()
    server.faults = ["cut", "none"]
    monkeypatch.setitem(MOVIELENS_MD5, "ml-1m", hashlib.md5(server.data).hexdigest())
    monkeypatch.setattr(prepare, "download", lambda *given: download(*given, url=server.url))
    folders = ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out.txt")]
    limits = ["--min-user-events", "1", "--min-item-events", "1"]

    assert main(["prepare", "--download", "ml-1m", *folders, *limits]) == 0

    assert SASRecDataSet(tmp_path / "out.txt").User == {1: [2, 1]}
    assert names(tmp_path / "cache") == ["ml-1m.zip"]
