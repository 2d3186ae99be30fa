"""Settings of a run, one record per purpose, and their restoring from a checkpoint."""

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.methods import METHODS, Method, load_method
from examples.recipe import Recipe, changed, read
from examples.towers.tower import Tower
from stmi_layers.training import Data, Facts, Machine, Schedule
from stmi_layers.training.settings import from_dict

RECORDS = ("data", "schedule", "machine", "tower", "own")
# Settings outside `Machine` that change how a run is computed, but not its result.
FREE = ("checkpointing", "trust_pickle")


@dataclass(frozen=True)
class Run:
    """Settings of a run.

    Attributes:
        method: name of the method.
        data: settings of the set and of the protocol.
        schedule: settings of optimisation and augmentation.
        machine: settings of the computer.
        tower: settings of the image tower; None for a method without one.
        own: settings of the method.
        recipe: name of the recipe; None without recipe.
    """

    method: str
    data: Data
    schedule: Schedule
    machine: Machine
    tower: Tower | None
    own: Any
    recipe: str | None = None

    def records(self) -> dict[str, Any]:
        """Return the records by name."""
        return {name: getattr(self, name) for name in RECORDS if getattr(self, name) is not None}

    def build(self, facts: Facts) -> Any:
        """Build the model, with random weights."""
        build, tower = load_method(self.method).build, () if self.tower is None else (self.tower,)
        return build(self.own, facts, *tower)

    def changed(self, values: Mapping[str, Any]) -> "Run":
        """Return the run with other values, by the names that recipes and variants use.

        Raises:
            ValueError: when no record has a field of that name.
        """
        for name in values:
            read(self.records(), name)
        return dataclasses.replace(self, **{name: changed(record, values) for name, record in self.records().items()})

    def quiet(self) -> "Run":
        """Return the run without output."""
        return self.changed({"quiet": True})

    def keep(self, facts: Facts) -> dict[str, Any]:
        """Return the entries of a checkpoint that `restore` needs besides weights and schedule."""
        kept = {name: record for name, record in self.records().items() if name not in ("machine", "schedule")}
        return {"run": {"method": self.method}, **kept, "facts": facts}


def default_run(method: Method, data: Data, recipe: str | None = None) -> Run:
    """Return the default settings of a method, or those of its recipe."""
    tower = Tower() if method.reads_tower else None
    run = Run(method.name, data, Schedule(), Machine(), tower, method.settings(), recipe)
    return run.changed(values_of(method.default | (method.recipes[recipe] if recipe else {})))


def values_of(recipe: Recipe) -> dict[str, Any]:
    """Return the values of a recipe by setting."""
    return {name: value for name, (value, _, _) in recipe.items()}


def run_of(records: Mapping[str, Any]) -> Run:
    """Restore the run whose records a checkpoint or settings.json holds as plain values.

    Raises:
        ValueError: when a record or a field is absent, unknown or of a wrong type, or the method is a custom package
            that is not imported; the message names it.
    """
    if absent := sorted({"run", "data", "schedule", "own", "facts"} - records.keys()):
        raise ValueError(f"the run must hold its records; received one without {', '.join(absent)}: train again")
    if wrong := [name for name, record in records.items() if not isinstance(record, Mapping)]:
        raise ValueError(f"the run must hold its records as fields and values; received another {', '.join(wrong)}")
    known = load_method(_named_method(records["run"]))
    if known.reads_tower != ("tower" in records):
        raise ValueError(f"the run must {'hold' if known.reads_tower else 'not hold'} a tower; train again")
    return Run(
        known.name,
        from_dict(Data, records["data"]),
        from_dict(Schedule, records["schedule"]),
        Machine(),
        from_dict(Tower, records["tower"]) if known.reads_tower else None,
        from_dict(known.settings, records["own"]),
    )


def _named_method(record: Mapping[str, Any]) -> str:
    """Return the method that a run names, if it is built in or imported already: a file never chooses code to run."""
    name = record.get("method")
    if not isinstance(name, str) or len(record) > 1:
        raise ValueError(f"the run must name its method alone, as text; received {dict(record)}: train again")
    if name not in METHODS and f"{name}.settings" not in sys.modules:
        raise ValueError(
            f"method must be stated for a package of your own, because a file chooses no code to run; the run names "
            f"{name!r}. If you know that package, add --method {name}"
        )
    return name


def settings_of(run: Run) -> dict[str, Any]:
    """Return every setting that may change a result, by its name in recipes."""
    settings: dict[str, Any] = {"method": run.method}
    for name, record in run.records().items():
        for field, value in vars(record).items() if name != "machine" else ():
            if isinstance(value, Mapping):
                settings |= {f"{field}.{entry}": part for entry, part in value.items()}
            elif field not in FREE:
                settings[field] = value
    return settings


def run_differences(old: Run, new: Run) -> list[str]:
    """List the settings in which two runs differ, a line each; paths differ when they lead to different places."""
    before, after = settings_of(old), settings_of(new)
    pairs = {name: (before.get(name), after.get(name)) for name in (before | after)}
    return [f"{name}: {one} -> {other}" for name, (one, other) in pairs.items() if _place(one) != _place(other)]


def _place(value: object) -> object:
    return value.resolve() if isinstance(value, Path) else value


def deviations(run: Run) -> list[str]:
    """List settings of a run that differ from its recipe, a line each; nothing for a run without recipe."""
    if run.recipe is None:
        return []
    pure = settings_of(default_run(load_method(run.method), run.data, run.recipe))
    return [
        f"differs from recipe {run.recipe}: {name} is {value}, not {pure.get(name)}"
        for name, value in settings_of(run).items()
        if name not in ("root", "weights", "weights_grid") and value != pure.get(name)
    ]
