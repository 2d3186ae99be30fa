"""Comparison of several ways to compute something: checked, then timed in turns, so that load hits all alike."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Outputs = tuple[Tensor, ...]
Clock = Callable[[], float]
MEBIBYTE = 2**20
BLOCK_SECONDS = 0.02  # short calls are repeated until a block takes this long


@dataclass(frozen=True)
class Contender:
    """One way to compute something.

    Args:
        call: function that computes the results and returns those to check.
        expected: function that returns the right results; None for a floor, which computes less.
        tolerance: largest relative error of a result, as a ratio of Euclidean norms.
        turns: largest number of timed turns; slow references need only a few.
        warm_up: whether to call it once beforehand; a first call may compile or fill caches.
        mebibytes: function that measures the memory in MiB, instead of the memory that torch holds during a call.
    """

    call: Callable[[], Outputs]
    expected: Callable[[], Outputs] | None = None
    tolerance: float = 1e-4
    turns: int | None = None
    warm_up: bool = True
    mebibytes: Callable[[], float] | None = None


@dataclass(frozen=True)
class Target:
    """Limit of the contender "ours": at most `limit`.

    `quantity` is "time", "memory" or "error", each as a ratio to the contender `against`; "MiB", which is absolute; or
    "µs", the additional time of a call compared with `against`.
    """

    quantity: str
    limit: float

    def measured(self, ours: "Measured", against: "Measured") -> float:
        """Return the measurement to compare with the limit."""
        match self.quantity:
            case "time":
                return ours.ratio
            case "memory":
                return ours.mebibytes / against.mebibytes
            case "MiB":
                return ours.mebibytes
            case "µs":
                return 1000 * (ours.milliseconds - against.milliseconds)
            case "error" if ours.error is not None and against.error is not None:
                return ours.error / against.error
        raise ValueError(
            f"a target has a quantity of time, memory, MiB, µs or error, both contenders checked; received {self}"
        )


@dataclass(frozen=True)
class Comparison:
    """Contenders, the first of which is `against`, and the targets of "ours"; plots read `sweep`."""

    name: str
    contenders: Mapping[str, Contender]
    targets: tuple[Target, ...] = ()
    threads: int | None = None
    sweep: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def against(self) -> str:
        return next(iter(self.contenders))


@dataclass(frozen=True)
class Measured:
    """Result of one contender: median milliseconds, time relative to `against` (quartiles of turns), MiB, error."""

    milliseconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    mebibytes: float
    error: float | None


def run(
    comparison: Comparison, device: str, *, seconds: float, turns: int, clock: Clock = time.perf_counter
) -> dict[str, Measured]:
    """Check, then measure every contender.

    Args:
        comparison: comparison to run.
        device: device of its tensors.
        seconds: time in seconds after which no further turn begins; at least three turns are done.
        turns: largest number of turns.
        clock: clock of a turn; `time.process_time` leaves out the time in which other programs run.

    Raises:
        AssertionError: when a contender computes a wrong result.
    """
    with threads(comparison.threads):
        first = {name: first_call(name, contender, device) for name, contender in comparison.contenders.items()}
        repeats = {name: max(1, int(BLOCK_SECONDS / of_call.seconds)) for name, of_call in first.items()}
        times = interleave(comparison.contenders, repeats, device, seconds, turns, clock)
    base = times[comparison.against]
    return {name: _summary(own, base, first[name]) for name, own in times.items()}


class FirstCall(NamedTuple):
    """Results of the call before the timed calls."""

    error: float | None
    mebibytes: float
    seconds: float


def first_call(name: str, contender: Contender, device: str) -> FirstCall:
    """Measure the memory and check the results."""
    held = contender.mebibytes() if contender.mebibytes is not None else None
    if contender.warm_up:
        contender.call()
    outputs, mebibytes, seconds = peak_memory(contender.call, device)
    mebibytes = mebibytes if held is None else held
    error = None
    if contender.expected is not None:
        error = relative_error(outputs, contender.expected())
        if not error <= contender.tolerance:
            raise AssertionError(
                f"{name} is wrong: its relative error is {error:.1e}, allowed is {contender.tolerance:.1e}"
            )
    return FirstCall(error, mebibytes, seconds)


def relative_error(outputs: Outputs, expected: Outputs) -> float:
    """Return the relative error of the worst result; a fast wrong answer is not worth timing."""
    pairs = zip(outputs, expected, strict=True)
    errors = [(actual.double() - exact).norm() / exact.norm() for actual, exact in pairs]
    return torch.stack(errors).max().item()  # torch's max does not overlook NaN


def interleave(
    contenders: Mapping[str, Contender],
    repeats: Mapping[str, int],
    device: str,
    seconds: float,
    turns: int,
    clock: Clock,
) -> dict[str, list[float]]:
    """Return the seconds per call of every turn, in which all contenders run one after the other."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    began = time.perf_counter()
    for turn in range(turns):
        if turn >= 3 and time.perf_counter() - began > seconds:
            break
        for name, contender in contenders.items():
            if contender.turns is None or turn < contender.turns:
                # The call before the timed calls brings caches and allocator into the contender's own state.
                if repeats[name] > 1:
                    contender.call()
                times[name].append(_timed(contender.call, repeats[name], device, clock))
    return times


def _timed(call: Callable[[], object], repeats: int, device: str, clock: Clock) -> float:
    synchronize(device)
    began = clock()
    for _ in range(repeats):
        call()
    synchronize(device)
    return (clock() - began) / repeats


def _summary(times: list[float], base: list[float], first: FirstCall) -> Measured:
    # Slow contenders take part only in the first turns.
    ratios = [own / other for own, other in zip(times, base, strict=False)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Measured(1000 * statistics.median(times), middle, low, high, first.mebibytes, first.error)


def peak_memory(call: Callable[[], Outputs], device: str) -> tuple[Outputs, float, float]:
    """Return the result of a call, its peak memory in MiB beyond what torch held before, and its seconds."""
    if device != "cpu":
        synchronize(device)
        began = time.perf_counter()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        outputs = call()
        synchronize(device)
        return outputs, (torch.cuda.max_memory_allocated(device) - before) / MEBIBYTE, time.perf_counter() - began
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        began = time.perf_counter()
        outputs = call()
        duration = time.perf_counter() - began
    held = highest = 0
    for size in _allocations(recorded):
        held += size
        highest = max(highest, held)
    return outputs, highest / MEBIBYTE, duration


def _allocations(recorded: profile) -> list[int]:
    """Return bytes allocated (above 0) and freed (below 0), in order; only this part of the profiler shows them."""
    profiler: Any = recorded.profiler
    events = profiler.kineto_results.events()
    ordered = sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns())
    return [event.nbytes() for event in ordered]


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Compute with `count` threads inside the block; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
