"""A server loads the model once and forks its workers, as `gunicorn --preload` does."""

import os
import signal
import subprocess

import torch
from support.processes import program

from ssept_ext import SSEPT


def recommend_in_a_forked_child():
    """Run by the test in a process of its own, which has not forked yet."""
    torch.set_num_threads(2)
    sizes = {"seq_max_len": 50, "embedding_dim": 32, "conv_dims": [64, 64]}
    model = SSEPT(item_num=20_000, user_num=50, **sizes)
    histories = {user: list(range(1, 60)) for user in range(1, 51)}
    model.recommend(histories, k=3)  # starts threads
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # where it hangs, it ends
        model.recommend(histories, k=3)
        os._exit(0 if torch.get_num_threads() == 1 else 3)
    assert os.waitpid(pid, 0)[1] == 0
    assert torch.get_num_threads() == 2


def test_a_forked_child_recommends_with_one_thread(tmp_path):
    command = program("import test_forked_child as t; t.recommend_in_a_forked_child()")

    done = subprocess.run(command, cwd=tmp_path, check=False, timeout=120)

    assert done.returncode == 0
