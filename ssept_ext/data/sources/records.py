"""Reading events from lines that are JSON objects or Python dicts."""

from __future__ import annotations

import ast
import json
from array import array
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from ssept_ext.data.id_map import IdMap
from ssept_ext.data.sources.columns import Codes, RawEvents, warn_of_lookalikes
from ssept_ext.data.sources.opening import bad_line


def read_records(
    stream: BinaryIO, source: str, keys: tuple[str, str, str], parse_time: Callable[[Any], int]
) -> RawEvents:
    """Read events from lines that are JSON objects, or Python dicts as in the files of UCSD.

    `keys` are those of the user and the item, whose values are strings, and of the time, which `parse_time` converts to
    an integer of 64 bits or refuses by a ValueError or TypeError. A ValueError names `source` and the bad line.
    """
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    columns = array("q"), array("q"), array("q")
    for number, line in enumerate(stream, 1):
        if line.isspace():
            continue
        try:
            record = parse_record(line)
            user, item, time = (record[key] for key in keys)
            if not (user and item and isinstance(user, str) and isinstance(item, str)):
                raise ValueError(f"{keys[0]} and {keys[1]} must be strings that are not empty")
            columns[2].append(parse_time(time))
        except KeyError as error:
            raise bad_line(source, number, f"{error.args[0]} is missing", line) from None
        except (ValueError, TypeError) as error:
            raise bad_line(source, number, str(error), line) from None
        columns[0].append(users.setdefault(user, len(users)))
        columns[1].append(items.setdefault(item, len(items)))
    if not users:
        raise ValueError(f"{source} is empty")
    warn_of_lookalikes(users, keys[0])
    warn_of_lookalikes(items, keys[1])
    user_codes, item_codes, times = (np.frombuffer(column, np.int64) for column in columns)
    return RawEvents(
        Codes(user_codes, IdMap(list(users), keys[0])),
        Codes(item_codes, IdMap(list(items), keys[1])),
        times,
    )


def parse_record(line: bytes) -> dict[str, Any]:
    """A JSON object or, as some files of UCSD have it, a Python dict; nothing is executed."""
    text = line.decode().strip("\ufeff \t\r\n")
    parse = ast.literal_eval if text.startswith(("{'", "{u'")) else json.loads
    try:
        record = parse(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise ValueError("neither a JSON object nor a Python dict")
    return record
