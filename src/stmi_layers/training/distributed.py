"""Training on several processes under torchrun: a step equals that of one process with the whole batch.

With one process every function here is the identity, so that one loop serves both cases. Starting under `torchrun` is
all it takes; there is no setting.
"""

import atexit
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

from stmi_layers.training.device import choose_device
from stmi_layers.training.files import locked
from stmi_layers.training.sampler import IdentitySampler

Result = TypeVar("Result")
RESTARTS = "TORCHELASTIC_RESTART_COUNT"


def join(device: str) -> torch.device:
    """Join the process group of torchrun, once, and return the device of this process.

    Without torchrun there is no group. With `device` "auto" or "cuda" every process takes the GPU of its local rank.
    """
    chosen = choose_device(device)
    if "LOCAL_RANK" not in os.environ:
        return chosen
    if chosen.type == "cuda":
        index = int(os.environ["LOCAL_RANK"]) if chosen.index is None else chosen.index
        chosen = torch.device("cuda", index)
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        from torch.distributed.rendezvous import rendezvous

        # After a restart the store of torchrun still holds the addresses of ended processes.
        store, number, processes = next(rendezvous("env://"))
        store = dist.PrefixStore(f"attempt {os.environ.get(RESTARTS, 0)}", store)  # pyright: ignore[reportPrivateImportUsage]
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=processes)
        atexit.register(_leave)
    return chosen


def _leave() -> None:
    if not dist.is_initialized():
        return
    # The last error keeps its frames, and with them DistributedDataParallel, alive. If that object is the last holder
    # of a gloo group, it and the threads of the group wait for each other, and the failed process never ends.
    for name in ("last_exc", "last_value", "last_traceback"):
        if hasattr(sys, name):
            delattr(sys, name)
    gc.collect()
    dist.destroy_process_group()


def num_processes() -> int:
    """Return the number of processes that train together; 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among the processes that train together, from 0 on."""
    return dist.get_rank() if num_processes() > 1 else 0


def restarted() -> bool:
    """Return True where torchrun has started the processes again after one of them failed."""
    return int(os.environ.get(RESTARTS, 0)) > 0


# --8<-- [start:gather]
class _Gather(torch.autograd.Function):
    """Rows of all processes in the order of their ranks; the gradient of a row is the sum over all processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def whole_batch(rows: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of their ranks, with their gradients.

    With one process the result is `rows` itself. A term of the objective that compares the samples of a batch takes
    its rows through this function. Every process then computes the same value of the term, and the gradients equal
    those of one process with the whole batch. All processes must call this function, with the same number of rows.

    Args:
        rows: tensor with a row per sample of this process, of any further shape and any dtype.
    """
    return rows if num_processes() == 1 else _Gather.apply(rows)


def whole_mean(means: Tensor, counts: Tensor) -> Tensor:
    """Return means over the samples of all processes, computed from the means of each process, with gradients.

    With one process the result is `means` itself. A term of the objective that averages over some of the samples, such
    as samples with two modalities, takes its means through this function, because the number of such samples differs
    between processes. All processes must call this function.

    Args:
        means: means over the samples of this process; 0 for a mean over no sample.
        counts: number of samples behind each mean, in the same shape.
    """
    if num_processes() == 1:
        return means
    sums, totals = whole_batch(torch.stack([means * counts, counts.to(means.dtype)])[None]).sum(dim=0)
    return sums / totals.clamp(min=1)


# --8<-- [end:gather]
# --8<-- [start:share]
class Share(Sampler[list[int]]):
    """Part of every P x K batch that belongs to one process: whole identities, P / `processes` of them.

    Args:
        batches: sampler with the same seed in all processes, so that all draw the same batches.
        rank: number of this process, from 0 on.
        processes: number of processes.

    Raises:
        ValueError: when P is not a multiple of `processes`.
    """

    def __init__(self, batches: IdentitySampler, rank: int, processes: int) -> None:
        if batches.identities_per_batch % processes:
            raise ValueError(
                f"identities_per_batch must be a multiple of the number of processes, {processes}; "
                f"received {batches.identities_per_batch}"
            )
        self.batches, self.rank, self.processes = batches, rank, processes

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            size = len(batch) // self.processes
            yield batch[self.rank * size : (self.rank + 1) * size]


# --8<-- [end:share]
# --8<-- [start:interleave]
def share(count: int) -> list[int]:
    """Return every n-th index below `count` for this process; the last index is repeated to give all equally many."""
    return [min(index, count - 1) for index in range(rank(), count + (-count) % num_processes(), num_processes())]


def interleave(rows: Tensor, count: int, device: torch.device) -> Tensor:
    """Join the rows that each process computed for its `share`, in index order, and return them in all processes.

    Args:
        rows: rows of this process, on the CPU.
        count: number of all rows.
        device: device on which the processes communicate.
    """
    if num_processes() == 1:
        return rows
    own = rows.to(device)
    gathered = [torch.empty_like(own) for _ in range(num_processes())]
    dist.all_gather(gathered, own)
    return torch.stack(gathered, dim=1).flatten(0, 1)[:count].cpu()


# --8<-- [end:interleave]
def by_first(action: Callable[[], Result]) -> Result:
    """Let the first process act, and return its result, or raise its error, in all processes.

    The result has to be picklable and small. All processes wait for the action.
    """
    if num_processes() == 1:
        return action()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = action()
        except (ValueError, OSError, RuntimeError, ArithmeticError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def lock(stack: ExitStack, folder: Path, name: str = ".lock") -> None:
    """Let the first process lock a folder for all processes until the end of the stack.

    After a restart it also waits for the end of the loader processes of the failed run.

    Raises:
        BlockingIOError: in all processes, when another run uses the folder.
        ValueError: when the folder cannot be written to.
    """
    patience = time.monotonic() + (60 if restarted() else 0)

    def enter() -> None:
        while True:
            try:
                stack.enter_context(locked(folder, name))
            except BlockingIOError:
                if time.monotonic() > patience:
                    raise
                time.sleep(0.2)
            else:
                return

    by_first(enter)


def mean_over_processes(values: dict[str, float]) -> dict[str, float]:
    """Average numbers by name over the processes that have them."""
    if num_processes() == 1:
        return values
    of_all: list[dict[str, float]] = [{} for _ in range(num_processes())]
    dist.all_gather_object(of_all, values)
    names = dict.fromkeys(name for one in of_all for name in one)
    there = {name: [one[name] for one in of_all if name in one] for name in names}
    return {name: sum(numbers) / len(numbers) for name, numbers in there.items()}


def share_buffers(module: torch.nn.Module) -> None:
    """Give all processes the buffers of the first, because running statistics that are not synchronised differ."""
    if num_processes() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)
