"""Entrants of a comparison of methods: every method, a plain concatenation, and a small convolutional network."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from examples import cli
from examples.compare import Offer
from examples.methods import METHODS, load_method
from examples.run import Run, default_run
from stmi_layers._checks import check_choice
from stmi_layers.training import Data, Facts

Inputs = Literal["images", "masks", "captions", "masks+captions"]
# Settings that `inputs` or each method sets.
OWN = ("masks", "captions", "rates", "no_decay", "feature_weights", "term_weights")


class Entrant(NamedTuple):
    """A method or a baseline.

    Attributes:
        method: name of the method whose code the entrant runs.
        changes: settings that differ from the method's defaults.
        masked: value of the setting `masks` when masks are an input.
        reads_captions: False for a baseline without captions; None asks the model.
    """

    method: str
    changes: Mapping[str, Any] = {}
    masked: str = "given"
    reads_captions: bool | None = None


def entrants() -> dict[str, Entrant]:
    """Return all methods and both baselines, by name."""
    plain = Offer("stmi").variants
    return {
        **{name: Entrant(name) for name in METHODS},
        "concatenation": Entrant("stmi", plain["baseline"], reads_captions=False),
        # No mask steers a convolutional network: its background is painted grey.
        "cnn": Entrant("stmi", plain["cnn"], masked="blank", reads_captions=False),
    }


def rows_of(shared: Mapping[str, Any], names: Sequence[str], inputs: Iterable[Inputs]) -> dict[str, Run]:
    """Return the runs of a comparison by label; a model that reads no captions gets no run with captions.

    Args:
        shared: records data, schedule, machine and tower from the command line.
        names: names of the entrants; () takes all of them.
        inputs: inputs of the models, a row per entry.

    Raises:
        ValueError: when a name is unknown, no row is left, or a record sets what each method sets itself.
    """
    known = entrants()
    for name in names:
        check_choice("methods", name, tuple(known))
    rows: dict[str, Run] = {}
    for name in names or known:
        for each in inputs:
            run = run_with(shared, known[name], each)
            if run.data.captions == "off" or _reads_captions(run, known[name]):
                rows[name if each == "images" else f"{name} + {each.replace('+', ' + ')}"] = run
    if not rows:
        raise ValueError(f"inputs must suit at least one of the methods; received {', '.join(inputs)}")
    return rows


def run_with(shared: Mapping[str, Any], entrant: Entrant, inputs: Inputs) -> Run:
    """Return the run of an entrant: its own changes, over the shared settings, over the method's defaults."""
    data = Data(shared["data"].root)
    given: dict[str, Any] = {}
    for name, default in (("data", data), ("schedule", type(shared["schedule"])()), ("tower", type(shared["tower"])())):
        given |= {one: value for one, value in vars(shared[name]).items() if value != getattr(default, one)}
    if refused := [cli.flag(name) for name in given if name in OWN]:
        raise ValueError(f"masks and captions are set by --inputs, and each method sets the rest; received {refused}")
    run = dataclasses.replace(default_run(load_method(entrant.method), data), machine=shared["machine"])
    masks = entrant.masked if "masks" in inputs else "none"
    captions = "required" if "captions" in inputs else "off"
    return run.changed({**given, **entrant.changes, "masks": masks, "captions": captions})


def _reads_captions(run: Run, entrant: Entrant) -> bool:
    """Tell whether the model of a run reads captions."""
    if entrant.reads_captions is not None:
        return entrant.reads_captions
    facts = Facts(run.data.modalities, run.data.image_size, num_identities=2, cameras=(1,), words=("word",))
    return run.build(facts).encode([("word",)]) is not None
