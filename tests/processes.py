"""Processes for tests, forked from a process that has imported torch and computed nothing.

A process forked after torch has run can wait for ever, and a spawned process spends seconds on importing torch.
"""

import itertools
import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.multiprocessing.spawn import start_processes

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
CONTEXT = multiprocessing.get_context(METHOD)
if METHOD == "forkserver":
    CONTEXT.set_forkserver_preload(["torch.distributed", "stmi_layers.training", "torch.utils.data"])


def in_processes(work: Callable[..., None], *arguments: Any, count: int = 2, patience: float = 900) -> None:
    """Run `work` in processes that are told about each other as torchrun does; an error in one is raised here.

    Processes that have not ended within `patience` seconds are killed. Their store is in this process, as in torchrun:
    its port is never free for another program.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {**os.environ, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    common["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    started = start_processes(_enter, (common, work, arguments), count, join=False, start_method=METHOD)
    assert started is not None
    until = time.monotonic() + patience
    while not started.join(timeout=5):
        if time.monotonic() > until:
            for process in started.processes:
                process.kill()
                process.join()
            raise TimeoutError(f"{count} processes did not end within {patience} s")


def start(work: Callable[..., None], *arguments: Any, says: Path) -> BaseProcess:
    """Start `work` in a process of its own, which writes its output and its errors into the file `says`.

    The server that forks it was started earlier, with the variables of the environment at that time.
    """
    process = CONTEXT.Process(target=_saying, args=(dict(os.environ), str(says), work, arguments))
    process.start()
    return process


def said(work: Callable[..., None], *arguments: Any, says: Path) -> str:
    """What `work` says in a process of its own, until its end."""
    process = start(work, *arguments, says=says)
    process.join()
    return says.read_text()


def waiting(work: Callable[..., Any], call: int) -> Callable[..., Any]:
    """Return `work` that waits at its call number `call` to be killed, so that the kill is never too late."""
    calls = itertools.count(1)

    def wait_or_work(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            time.sleep(300)
        return work(*arguments, **options)

    return wait_or_work


def as_command(module: str, *arguments: object) -> None:
    """Do what `python -m module arguments` does."""
    sys.argv = [module, *map(str, arguments)]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _saying(variables: dict[str, str], says: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(variables)
    with open(says, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(1)
    work(*arguments)


def _enter(number: int, common: dict[str, str], work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(common, RANK=str(number), LOCAL_RANK=str(number))
    torch.set_num_threads(1)
    work(*arguments)
