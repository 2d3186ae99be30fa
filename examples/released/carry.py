"""Conversion of a released file to our model: settings, weights and heads, and a report on every tensor."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from examples.methods import Method, load_method
from examples.run import Run, default_run
from examples.towers.releases.tensors import Carried, Release, State
from examples.towers.releases.towers import tower_state
from stmi_layers.backbones.positions import GRID_NAME
from stmi_layers.training import Data, Facts
from stmi_layers.training.messages import shorten
from stmi_layers.training.run import Run as TrainingRun
from stmi_layers.training.run import start_run

METHODS = ("signal", "demo", "topreid", "editor", "idea", "mambapro")


@dataclass
class Imported:
    """A run before its first epoch, filled from a released file.

    Attributes:
        run: settings of the run.
        facts: facts of the training set that the model was built from.
        state: model, objective and optimizer.
        report: lines that account for every tensor.
    """

    run: Run
    facts: Facts
    state: TrainingRun
    report: list[str]


def carried_of(method: str, trained_on: str, release: Release) -> tuple[Method, str, Carried]:
    """Return the method, the recipe that fits its release, and the file in the names of the method's model.

    Raises:
        ValueError: when the method has no conversion, or the file does not fit it.
    """
    if method not in METHODS:
        raise ValueError(f"METHOD must be one of {', '.join(METHODS)}; received {method!r}")
    known = load_method(method)
    recipe = f"{trained_on}-research-code"
    recipe = recipe if recipe in known.recipes else trained_on
    carried = known.part("released").carry(release, default_run(known, Data(Path()), recipe).own)
    release.refuse_rest()
    return known, recipe, carried


def settle(known: Method, recipe: str, carried: Carried, root: Path, changes: Mapping[str, Any]) -> Run:
    """Return the settings of the recipe, overridden by those of the file and by the changes."""
    return default_run(known, Data(root), recipe).changed({**carried.settings, **changes})


def facts_of_release(run: Run, carried: Carried, cameras: tuple[int, ...] = ()) -> Facts:
    """Infer the facts of the training set from the file: identities from classifiers, cameras from embeddings.

    Raises:
        ValueError: when there are not as many cameras as embeddings.
    """
    (tower, *_), (head, *_) = carried.towers.values(), carried.heads.values()
    embeddings = 0 if tower.cameras is None else len(tower.cameras)
    if cameras and len(cameras) != embeddings:
        raise ValueError(f"cameras must be {embeddings} numbers, one per embedding of the file; received {cameras}")
    # A model reads captions if the facts have words; the text tower of a release does not use the words.
    words = ("image",) if any(name.startswith("text_encoder.") for name in carried.model) else ()
    numbers = cameras or tuple(range(1, embeddings + 1))
    return Facts(run.data.modalities, run.data.image_size, len(head["classifier.weight"]), numbers, words=words)


def fill(run: Run, facts: Facts, carried: Carried, release: Release) -> Imported:
    """Build model and heads, and fill them with the released weights.

    Raises:
        ValueError: when a tensor of the model gets no value, or a value of another shape; the message names the tensor.
    """
    torch.manual_seed(run.schedule.seed)
    model = run.build(facts)
    state = dict(carried.model)
    for name, tower in carried.towers.items():
        backbone = model.get_submodule(name)
        state |= {f"{name}.{key}": value for key, value in tower_state(tower, backbone, release.where).items()}
    heads = {
        f"losses.{feature}.head.{name}": value
        for feature, head in carried.heads.items()
        for name, value in head.items()
    }
    lines, new = [], dict(carried.kept)
    identities = len(next(iter(carried.heads.values()))["classifier.weight"])
    if identities != facts.num_identities:
        reason = f"of {identities} identities, where the training set has {facts.num_identities}"
        heads = {name: value for name, value in heads.items() if not name.endswith("classifier.weight")}
        state = {name: value for name, value in state.items() if name not in carried.identities}
        new |= dict.fromkeys((*carried.identities, *_classifiers(carried)), reason)
    training = start_run(model, facts.num_identities, run.schedule, run.keep(facts))
    loaded = _load(model, state, new, release) + _load(training.objective, heads, new, release)
    lines.append(f"{release.where}: {loaded} tensors of model and heads filled")
    lines += [f"left out ({reason}): {', '.join(names)}" for reason, names in release.left.items()]
    lines += [f"kept as it starts ({reason}): {name}" for name, reason in new.items()]
    lines += [f"note: {note}" for note in carried.notes]
    return Imported(run, facts, training, lines)


def _classifiers(carried: Carried) -> list[str]:
    return [f"losses.{feature}.head.classifier.weight" for feature in carried.heads]


def _load(module: nn.Module, state: State, kept: Mapping[str, str], release: Release) -> int:
    """Fill a module, and return how many of its tensors were filled."""
    own = module.state_dict()
    missing = [
        name for name in own if name not in state and not name.startswith(tuple(kept)) and not name.endswith(GRID_NAME)
    ]
    unknown = [f"{name}{_source(release, state[name])}" for name in state if name not in own]
    wrong = [
        f"{name} is {tuple(value.shape)}{_source(release, value)} and {tuple(own[name].shape)} in the model"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    problems = [f"nothing for {shorten(missing)}"] if missing else []
    problems += [f"no place for {shorten(unknown)}"] if unknown else []
    problems += [f"other shapes: {shorten(wrong)}"] if wrong else []
    if problems:
        raise ValueError(f"{release.where} does not fit the model: {'; '.join(problems)}")
    module.load_state_dict({**own, **state})
    return len(state)


def _source(release: Release, value: Tensor) -> str:
    """Return the released name of a tensor that was taken unchanged."""
    name = release.names.get(id(value))
    return "" if name is None else f" in {name}"
