"""What the sampler does beyond its limits, between threads, and in forked children."""

import gc
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.sources import needs_native

from ssept_ext import WarpSampler
from ssept_ext.sampling.draw import DrawSettings, NativeSource, sampling_table

NUM_ITEMS = 9
HISTORIES = {1: [4, 9, 2, 7, 1, 4], 2: [8, 6, 3]}


def make(num_items=NUM_ITEMS, **arguments):
    arguments = {"batch_size": 16, "maxlen": 5, "seed": 7, **arguments}
    return WarpSampler(HISTORIES, 2, num_items, **arguments)


def batches(count):
    with make() as sampler:
        return [sampler.next_batch() for _ in range(count)]


def as_bytes(batch):
    return b"".join(np.ascontiguousarray(x).tobytes() for x in batch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_workers": 300_000}, "n_workers must be at most 1024, got 300000"),
        (
            {"num_negatives": 2**62},
            "num_negatives must be at most 1000000, got 4611686018427387904",
        ),
        (
            {"batch_size": 2**22 + 1, "maxlen": 1024},
            r"batch_size \* maxlen \* num_negatives must be at most 2147483647, got 4194305 \* 1024 \* 1",
        ),
        (
            {"batch_size": 2**12, "num_negatives": 10**6, "negatives_per": "sequence"},
            r"batch_size \* num_negatives must be at most 2147483647, got 4096 \* 1000000",
        ),
        (
            {"batch_size": 2**22 + 1, "maxlen": 1024, "negatives_per": "batch"},
            r"batch_size \* maxlen must be at most 2147483647, got 4194305 \* 1024",
        ),
        ({"num_items": 2**31}, "itemnum must be at most 2147483647, got 2147483648"),
        ({"num_items": True}, "itemnum must be an integer of at least 1, got True"),
        ({"popularity_exponent": "1"}, r"popularity_exponent must be in \[0, 2\], got '1'"),
    ],
)
def test_a_size_beyond_its_limit_is_named_with_the_limit(source, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


@needs_native
def test_the_extension_itself_refuses_sizes_that_overflow():
    table = sampling_table(HISTORIES, 2, NUM_ITEMS)
    for sizes in [(2**22 + 1, 1024, 1), (2**40, 2**40, 1), (1, 1, 2**62), (0, 1, 1), (1, -1, 1)]:
        with pytest.raises(ValueError, match=r"must be in 1\.\.2147483647, got"):
            NativeSource(table, DrawSettings((1, 2), *sizes, 0.0), 0, 1)
    settings = DrawSettings((1, 2), 2**12, 1, 2**20, 0.0, negatives_per="sequence")
    with pytest.raises(ValueError, match=r"must be in 1\.\.2147483647, got"):
        NativeSource(table, settings, 0, 1)
    with pytest.raises(ValueError, match="num_threads must be at least 1"):
        NativeSource(table, DrawSettings((1, 2), 1, 1, 1, 0.0), 0, 0)


@needs_native
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory by RLIMIT_AS")
def test_where_threads_cannot_be_started_the_others_are_ended_and_their_number_is_told(tmp_path):
    program = """
import os, resource
from ssept_ext import WarpSampler
before = len(os.listdir("/proc/self/task"))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))  # for less than 1024 stacks
try:
    WarpSampler({1: [1, 2, 3]}, 1, 9, n_workers=1024)
except RuntimeError as error:
    print(error)
print(len(os.listdir("/proc/self/task")) - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )

    message, more_threads = done.stdout.splitlines()
    assert re.match(r"n_workers is 1024, but only \d+ threads could be started: ", message)
    assert more_threads == "0"


def test_a_seek_too_far_leaves_the_sampler_as_it_was(source):
    expected = batches(2)
    with make() as sampler:
        got = [sampler.next_batch()]
        with pytest.raises(
            ValueError, match=r"index must be at most 9223372036854775807, got 18446"
        ):
            sampler.seek(2**64)
        got.append(sampler.next_batch())
        assert [*map(as_bytes, got)] == [*map(as_bytes, expected)]
        sampler.seek(2**63 - 1)
        assert sampler.next_batch()[0].shape == (16,)


def test_many_threads_draw_every_batch_once_and_close_it_together(source):
    expected = batches(40)
    with ThreadPoolExecutor(4) as pool:
        sampler = make(n_workers=2)
        got = list(pool.map(lambda _: sampler.next_batch(), range(40)))
        assert sampler.tell() == 40
        list(pool.map(lambda _: sampler.close(), range(4)))

    assert sorted(map(as_bytes, got)) == sorted(map(as_bytes, expected))


def test_a_forked_child_cannot_use_its_parents_sampler_and_ends(source):
    with make(n_workers=2) as sampler:
        kept = sampler.next_packed()
        child = os.fork()
        if child == 0:
            try:
                for use in (sampler.next_batch, sampler.next_packed, lambda: sampler.seek(5)):
                    with pytest.raises(RuntimeError, match="before this process was forked"):
                        use()
                sampler.close()
                del sampler, kept, use
                gc.collect()
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert wait_for(child) == 0
        assert sampler.next_batch()[0].shape == (16,)


def wait_for(child):
    """Return the exit code of a process; -1 after 20 seconds."""
    for _ in range(2000):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid == child:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1
