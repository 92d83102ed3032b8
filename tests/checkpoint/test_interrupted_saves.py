"""A save that is killed, fails, or meets a reader leaves a whole checkpoint."""

import os
import random
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.checkpoints import (
    knowing,
    make_sasrec,
    make_ssept,
    named,
    names,
)
from support.processes import program

from ssept_ext import SASREC, SSEPT
from ssept_ext.checkpoint import model
from ssept_ext.checkpoint.model import CONFIG_FILE, save_checkpoint

KILLS = 50


def save_two_models(folder):
    """Of two shapes and classes, one of them with raw ids."""
    for saved in (knowing(make_ssept()), make_sasrec(item_num=33)):
        save_checkpoint(saved, folder)


def save_models_for_ever(folder):
    torch.set_num_threads(1)
    sys.stdout.write(
        "ready\n"
    )  # in one piece, even where output is not buffered, as another process writes too
    sys.stdout.flush()
    while True:
        save_two_models(folder)


def serve(folder):
    """For each line of stdin fork a process that saves, say which one, and say so when it is dead."""
    torch.set_num_threads(1)
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            save_models_for_ever(folder)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        os.waitpid(child, 0)
        print("dead", flush=True)


def test_a_process_killed_while_it_saves_leaves_a_checkpoint_that_loads(tmp_path):
    folder, rng = tmp_path / "model", random.Random(0)
    start = time.monotonic()
    save_two_models(folder)
    seconds = time.monotonic() - start  # of disks as they are
    # One process imports torch and forks those that are killed: 50 imports would take minutes.
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    found, interrupted = [], 0
    command = program(f"from test_interrupted_saves import serve; serve({str(folder)!r})")
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **pipes) as server:
        try:
            for _ in range(KILLS):
                server.stdin.write("\n")
                server.stdin.flush()
                before = (folder / CONFIG_FILE).read_text()
                child, ready = sorted(server.stdout.readline().strip() for _ in range(2))
                time.sleep(rng.uniform(0, 3 * seconds))
                os.kill(int(child), 9)
                assert (ready, server.stdout.readline()) == ("ready", "dead\n")
                if (folder / CONFIG_FILE).read_text() == before:  # too early: the machine is busy
                    seconds *= 1.2
                interrupted += any(name.startswith(".") for name in names(folder))
                found.append(SASREC.from_pretrained(folder))
        finally:
            os.killpg(server.pid, 9)
    assert {type(m) for m in found} == {SASREC, SSEPT}
    assert all((m.known is not None) == (type(m) is SSEPT) for m in found)
    assert interrupted > 0  # or nobody was killed at a bad moment
    save_checkpoint(make_sasrec(), folder)
    assert names(folder) == [CONFIG_FILE, named(folder).name]


def test_a_checkpoint_can_be_read_while_another_process_saves(folder, monkeypatch):
    """The other process saves between the reading of the config and that of the files it names."""
    honest, others = model.read_json, [make_sasrec(item_num=33)]

    def read(*arguments):
        config = honest(*arguments)
        if others:
            save_checkpoint(others.pop(), folder)
        return config

    monkeypatch.setattr(model, "read_json", read)

    assert SASREC.from_pretrained(folder).item_num == 33


def test_two_saves_into_one_folder_wait_for_each_other(tmp_path):
    with ThreadPoolExecutor() as pool:
        saves = [
            pool.submit(save_checkpoint, make(), tmp_path)
            for make in [make_sasrec, make_ssept] * 10
        ]
    for save in saves:
        save.result()

    SASREC.from_pretrained(tmp_path)
    assert names(tmp_path) == [CONFIG_FILE, named(tmp_path).name]


def test_a_disk_that_is_full_is_an_error_that_names_the_file(folder):
    before, limits = names(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"cannot write .*/model.safetensors: .*[Ff]ile too large"
        ):
            save_checkpoint(make_ssept(), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert names(folder) == before
    SASREC.from_pretrained(folder)


def test_a_failed_save_leaves_the_old_checkpoint_whole(folder, monkeypatch):
    expected = SASREC.from_pretrained(folder).state_dict()

    before = names(folder)

    def fail(tensors, path, header):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("ssept_ext.utils.tensor_files.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(make_ssept(), folder)

    got = SASREC.from_pretrained(folder).state_dict()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert names(folder) == before
