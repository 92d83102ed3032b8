"""Download MovieLens, verify its checksums, and resume after a broken connection."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ssept_ext.utils.optional import require

MOVIELENS_URL = "https://files.grouplens.org/datasets/movielens"

MOVIELENS_MD5 = {
    # As GroupLens publishes them in ml-*.zip.md5.
    "ml-100k": "0e33842e24a9c977be4e0107933c0723",
    "ml-1m": "c4d9eecfca2ab87c1945afe126590906",
    "ml-20m": "cd245b17a1ae2cc31bb14903e1204af3",
    "ml-25m": "6b51fb2759a8657d3bfcbfc42b592ada",
    "ml-32m": "d472be332d4daa821edc399621853b57",
}

ATTEMPTS = 5
"""Number of connections in a row that may break without receiving a byte."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""

_CHUNK = 1 << 16  # a broken connection loses less than this


def download(
    name: str, folder: str | os.PathLike[str] | None = None, url: str = MOVIELENS_URL
) -> Path:
    """Download a MovieLens data set unless it is there already, and return the path of its archive.

    An incomplete download is kept in `NAME.zip.part`, where a later call resumes it. The file gets its
    final name only if its checksum is right, and is deleted otherwise.

    `name` is a key of `MOVIELENS_MD5`; `folder` is the user's cache if None. A ValueError says that the name is unknown
    or the checksum is wrong, an OSError that the server refuses or the connection breaks `ATTEMPTS` times in a row.
    """
    if name not in MOVIELENS_MD5:
        raise ValueError(f"name must be one of {', '.join(MOVIELENS_MD5)}, got {name!r}")
    pooch = require("pooch", "download")
    path = Path(folder or pooch.os_cache("ssept_ext")) / f"{name}.zip"
    return Path(
        pooch.retrieve(
            f"{url}/{name}.zip",
            f"md5:{MOVIELENS_MD5[name]}",
            path.name,
            path.parent,
            downloader=_resuming_downloader(path.with_name(f"{path.name}.part")),
        )
    )


def _resuming_downloader(part: Path) -> Callable[[str, str, Any], None]:
    """Return a downloader for pooch that resumes; pooch's own always starts from the beginning."""

    def fetch(url: str, output_file: str, _: Any) -> None:
        requests = require("requests", "download")
        failures = 0
        while True:
            before = _size(part)
            try:
                _fetch_rest(url, part)
                break
            except requests.RequestException as error:
                status = None if error.response is None else error.response.status_code
                failures = 1 if _size(part) > before else failures + 1
                if failures == ATTEMPTS or (status is not None and status < 500):
                    raise OSError(
                        f"{url}: {error}; {_size(part):,} bytes are kept in {part}, from where the "
                        "next call goes on"
                    ) from error
                time.sleep(2.0 ** (failures - 1))
        part.replace(output_file)

    return fetch


def _fetch_rest(url: str, part: Path) -> None:
    """Append the missing bytes to `part`; start over if the server cannot continue from its end."""
    requests = require("requests", "download")
    start = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        where = response.headers.get("Content-Range", "")
        if response.status_code == 416 and where == f"bytes */{start}":
            return  # it is whole
        if response.status_code == 416 or (
            response.status_code == 206 and not where.startswith(f"bytes {start}-")
        ):
            part.unlink()
            raise requests.ConnectionError(f"the server has no byte {start}, but {where!r}")
        response.raise_for_status()
        if response.status_code != 206:
            start = 0
        length = int(response.headers.get("Content-Length", 0)) or None
        total = None if length is None else start + length
        with (
            part.open("ab" if start else "wb") as file,
            tqdm(
                total=total,
                initial=start,
                desc=part.stem,
                unit="B",
                unit_scale=True,
                disable=None,  # where nobody watches
            ) as bar,
        ):
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and _size(part) < total:
        raise requests.ConnectionError(f"cut off after {_size(part):,} of {total:,} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
