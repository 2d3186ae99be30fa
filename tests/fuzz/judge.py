"""Judgement of one variant: made from its seed, passed to the commands, and judged by messages and values read."""

import contextlib
import io
import os
import re
import signal
import socket
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from examples import evaluate
from examples.cli import errors_as_a_line
from examples.prepare.inspect import inspect
from examples.restore import Computer
from examples.train import train
from sets import tiny
from stmi_layers.training import Item
from stmi_layers.training.splits import read_split

from . import folders, indices, pixels, states, texts
from .truth import MODALITIES, Variant, differences, write_base

SETS: dict[str, Callable[[Variant, Random], None]] = {
    "images": pixels.an_image,
    "deep": pixels.deep_images,
    "masks": pixels.a_mask,
    "damage": pixels.damage,
    "captions": texts.captions,
    "columns": texts.columns,
    "manifest": texts.manifest,
    "folders": folders.folders,
}
FILES: dict[str, Callable[[Variant, Random], str | None]] = {
    "checkpoint": states.checkpoint,
    "weights": states.weights,
    "index": indices.index,
}
KINDS = (*SETS, *FILES)
# Of how many variants of a set one is trained on.
TRAINED = 6


class Verdict(NamedTuple):
    """Seed, what was changed, what came of it, and the fault, None where all is as it should be."""

    seed: int
    what: str
    outcome: str
    fault: str | None


class _Said(NamedTuple):
    """What a command wrote, warned of, and refused; the fault is an error that no command may end in."""

    text: str
    refusal: str | None
    fault: str | None

    def names(self, names: Sequence[str]) -> bool:
        said = f"{self.text}\n{self.refusal or ''}"
        return any(name in said for name in names)


def judge(seed: int, *, kinds: Sequence[str] = KINDS, seconds: int = 300) -> Verdict:
    """Make the variant of a seed and find out whether every command does right by it."""
    random, kind = Random(seed), kinds[seed % len(kinds)]
    if kind in ("checkpoint", "index"):
        indices.described()  # once, and outside the time of a variant
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, _alone(Path(folder), seconds) as connections:
        root = Path(folder) / "set"
        root.mkdir()
        variant = Variant(root, {})
        try:
            if kind in FILES:
                outcome, fault = _judge_file(variant, FILES[kind], random)
            else:
                variant = write_base(root)
                SETS[kind](variant, random)
                outcome, fault = _judge_set(variant, train_too=seed // len(kinds) % TRAINED == 0)
        except Exception:  # of the fuzzer itself
            outcome, fault = "broken", traceback.format_exc()
        if connections:
            fault = f"a connection to {connections[0]}"
    return Verdict(seed, f"{kind}: {variant.what}", outcome, fault)


def _judge_file(
    variant: Variant, use: Callable[[Variant, Random], str | None], random: Random
) -> tuple[str, str | None]:
    found: list[str | None] = []
    said = _run(lambda: found.append(use(variant, random)))
    if said.fault or found:
        return "used", said.fault or found[0]
    return "refused", _unnamed("the refusal", said, variant)


def _judge_set(variant: Variant, *, train_too: bool) -> tuple[str, str | None]:
    out, items, status = variant.root.with_name("out"), list[Item](), 0

    def look() -> None:
        nonlocal status
        try:
            inspect(variant.root, out=out / "inspect", ranges=variant.ranges, workers=1, limit=100)
        except SystemExit as end:
            status = int(end.code or 0)

    before = _listing(variant.root)
    looked = _run(look)
    read = _run(
        lambda: items.extend(
            read_split(
                variant.root,
                "train",
                MODALITIES,
                captions="optional",
                missing_modality="absent",
                ranges=variant.ranges,
            )
        )
    )
    for name, said in (("inspect", looked), ("read_split", read)):
        if said.fault:
            return "ended", f"{name}: {said.fault}"
    if _listing(variant.root) != before:
        return "ended", "reading has written into the set"
    if looked.refusal is not None:
        return "refused", _unnamed("the refusal of inspect", looked, variant) or (
            None if read.refusal is not None else f"inspect alone refuses: {looked.refusal}"
        )
    if read.refusal is not None:
        fault = _unnamed("the refusal", read, variant)
        silent = not status and not looked.names(variant.names)
        fault = fault or (f"inspect finds nothing, and reading ends: {read.refusal}" if silent else None)
        return "refused", fault or _unnamed("inspect", looked, variant)
    wrong = differences(variant, items)
    if wrong and not (looked.names(variant.names) or read.names(variant.names)):
        return "silent", f"read otherwise than it is, without a word: {', '.join(wrong)}"
    return ("counted" if wrong else "right"), (_train(variant, out) if train_too else None)


def _train(variant: Variant, out: Path) -> str | None:
    """A fault of a training with a tiny budget, and of an evaluation of what it left."""
    changes = {**states.SETTINGS, "ranges": variant.ranges, "missing_modality": "absent", "missing_masks": "ones"}
    said = _run(lambda: train(tiny(variant.root, **changes), out / "run"))
    if said.fault or said.refusal is not None:
        return said.fault and f"train: {said.fault}"
    asked = evaluate.Arguments(out / "run" / "checkpoint.pt", machine=Computer(device="cpu", threads=1))
    said = _run(lambda: evaluate.main(asked))
    return said.fault or (said.refusal and f"what was trained cannot be evaluated: {said.refusal}")


def _run(command: Callable[[], object]) -> _Said:
    """Run a command, and take what it says for data."""
    text = io.StringIO()
    with (
        contextlib.redirect_stdout(text),
        contextlib.redirect_stderr(text),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        refusal = fault = None
        try:
            with errors_as_a_line():
                command()
        except SystemExit as end:
            refusal = str(end.code)
        except Exception:
            fault = traceback.format_exc()
    return _Said("\n".join([text.getvalue(), *(str(one.message) for one in caught)]), refusal, fault)


def _unnamed(what: str, said: _Said, variant: Variant) -> str | None:
    """The fault of a message that does not say what is wrong, or not in a line and a list beneath it."""
    message = said.refusal or said.text
    if not said.names(variant.names):
        return f"{what} names none of {variant.names}: {message[-600:]!r}"
    beneath = (said.refusal or "").split("\n")[1:]
    if not all(line.startswith("  ") for line in beneath) or re.search(r"[\x00-\x09\x0b-\x1f\x7f]", message):
        return f"{what} is no line, or holds what no terminal should obey: {message[-600:]!r}"
    return None


def _listing(root: Path) -> list[str]:
    return sorted(os.path.join(place, name) for place, _, names in os.walk(root) for name in names)


@contextlib.contextmanager
def _alone(folder: Path, seconds: int) -> Iterator[list[str]]:
    """Without network, with caches of its own and an end to every wait; yields the connections that were tried."""
    tried: list[str] = []
    connect, cache = socket.socket.connect, os.environ.get("XDG_CACHE_HOME")

    def refuse(self: socket.socket, address: object) -> None:
        tried.append(str(address))
        raise OSError("the fuzzer has no network")

    def stop(*_: object) -> None:
        raise TimeoutError(f"no end after {seconds} seconds")

    socket.socket.connect = refuse  # pyright: ignore[reportAttributeAccessIssue]
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield tried
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        socket.socket.connect = connect
        os.environ.pop("XDG_CACHE_HOME")
        if cache is not None:
            os.environ["XDG_CACHE_HOME"] = cache
