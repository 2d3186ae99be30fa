"""Cost of a trained model: parameters, and time and memory to describe an item.

python -m examples.cost --checkpoint runs/NAME/checkpoint.pt
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from torch.profiler import ProfilerActivity, profile

from examples import cli
from examples.restore import Computer, restore
from stmi_layers.training import Machine, collate
from stmi_layers.training.files import write_text

# Items per batch, and timed passes over the batch.
ITEMS, PASSES = 32, 5
Cost = dict[str, float]


@dataclass(frozen=True)
class Arguments:
    """Cost of a trained model."""

    checkpoint: Path
    """The checkpoint.pt of a run."""
    machine: tyro.conf.OmitArgPrefixes[Computer] = field(default_factory=Computer)


def cost_of(checkpoint: Path, machine: Machine) -> Cost:
    """Return the result of `measure`; it is kept in cost.json beside the checkpoint and measured once."""
    kept = checkpoint.parent / "cost.json"
    try:
        found = json.loads(kept.read_text())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.keys() < {"parameters", "milliseconds", "megabytes"}:
        found = measure(checkpoint, machine)
        write_text(kept, json.dumps(found, indent=2) + "\n")
    return found


@torch.no_grad()
def measure(checkpoint: Path, machine: Machine) -> Cost:
    """Measure the cost of describing items that are in memory, in a batch of 32, and count the parameters.

    Returns:
        `parameters`; `milliseconds` per item, the median of five passes, on a CPU the processor time of all threads;
        `megabytes` per item, the peak of torch's memory beyond weights and inputs; and `items`, the size of the batch.
    """
    trained = restore(checkpoint, machine=machine)
    dataset, model, device = trained.dataset, trained.model, trained.device
    batch = collate([dataset[index] for index in range(min(ITEMS, len(dataset)))]).to(device)
    items = len(batch.images)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    model(batch)
    seconds = []
    for _ in range(PASSES):
        began = clock()
        model(batch)
        if device.type != "cpu":
            torch.cuda.synchronize(device)
        seconds.append(clock() - began)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "milliseconds": 1000 * statistics.median(seconds) / items,
        "megabytes": peak_bytes(lambda: model(batch), device) / items / 1e6,
        "items": items,
    }


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Measure the peak of torch's memory during a call, in bytes, beyond the memory held before."""
    if device.type != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = call()
    del result
    profiler: Any = recorded.profiler  # the only place that shows single allocations
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def main(arguments: Arguments) -> Cost:
    """Print the cost of a trained model."""
    cost = measure(arguments.checkpoint, arguments.machine.machine(quiet=True))
    print(f"parameters {cost['parameters']:,}")
    print(f"per item, {cost['items']} at once: {cost['milliseconds']:.2f} ms, {cost['megabytes']:.2f} MB")
    return cost


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__, prog="python -m examples.cost")
