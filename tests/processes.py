"""Other processes for tests. They are spawned: one forked from a process that has run torch can wait for ever."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes

CONTEXT = multiprocessing.get_context("spawn")


def in_processes(work: Callable[..., None], *arguments: Any, count: int = 2, patience: float = 300) -> None:
    """Run `work` in processes that are told about each other as torchrun does; an error in one is raised here.

    Processes that have not ended within `patience` seconds are killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = start_processes(_enter, (common, work, arguments), count, join=False, start_method="spawn")
    assert started is not None
    until = time.monotonic() + patience
    while not started.join(timeout=5):
        if time.monotonic() > until:
            for process in started.processes:
                process.kill()
                process.join()
            raise TimeoutError(f"{count} processes did not end within {patience} s")


def _enter(number: int, common: dict[str, str], work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(common, RANK=str(number), LOCAL_RANK=str(number))
    torch.set_num_threads(1)
    work(*arguments)
