"""Methods by name. A method is a package with `settings.py`, `model.py` and optionally `recipes.py`, `variants.py`.

- `settings.Settings`: a frozen dataclass of the method's own settings;
- `model.build(settings, facts, tower)`: builds a model that keeps `stmi_layers.training.ReIDModel`; a method with its
  own towers has no argument `tower`, and its command has no flags of a tower;
- `recipes.RECIPES`: recipes by name, and `recipes.DEFAULT`, the defaults of a run without recipe;
- `variants.VARIANTS`, `variants.PRESETS` and `variants.COLUMNS`: variants, questions and columns of `examples.compare`.

A package of your own needs no entry here: `python -m examples.train my_package` finds it where Python does.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import Any, NamedTuple

from examples.recipe import Recipe

METHODS: dict[str, str] = {
    "stmi": "examples.stmi",
    "signal": "examples.signal_reid",
    "demo": "examples.demo",
    "next": "examples.next",
    "editor": "examples.editor",
    "topreid": "examples.topreid",
    "idea": "examples.idea",
    "mambapro": "examples.mambapro",
    "segtext": "examples.segtext",
}


class Method(NamedTuple):
    """A method, of which only settings and recipes are imported.

    Attributes:
        name: name on the command line.
        package: dotted name of its package.
        settings: dataclass of its own settings.
        default: defaults of a run without recipe.
        recipes: recipes by name.
    """

    name: str
    package: str
    settings: type[Any]
    default: Recipe
    recipes: dict[str, Recipe]

    @property
    def build(self) -> Callable[..., Any]:
        """The function that builds the model, which imports the model."""
        return import_module(f"{self.package}.model").build

    @property
    def reads_tower(self) -> bool:
        """Tell whether the model is built on a tower of `examples.towers`."""
        return "tower" in signature(self.build).parameters

    def part(self, module: str) -> Any:
        """Import a module of the method; None if the method has no module of that name."""
        return _import_if_there(f"{self.package}.{module}")


def load_method(name: str) -> Method:
    """Import the settings and recipes of a method.

    Args:
        name: a name in `METHODS`, or the dotted name of a package.

    Raises:
        ValueError: when there is no such method.
    """
    package = METHODS.get(name, name)
    settings = _import_if_there(f"{package}.settings")
    if settings is None:
        raise ValueError(
            f"METHOD must be one of {', '.join(METHODS)}, or a package with settings.py and model.py that Python "
            f"finds; received {name!r}"
        )
    recipes = _import_if_there(f"{package}.recipes")
    return Method(name, package, settings.Settings, getattr(recipes, "DEFAULT", {}), getattr(recipes, "RECIPES", {}))


def _import_if_there(module: str) -> Any:
    try:
        if module not in sys.modules and find_spec(module) is None:
            return None
    except (ModuleNotFoundError, ValueError):  # the parent is missing or not a package, or the name is like "a..b"
        return None
    return import_module(module)
