"""The experiments of the paper as settings, each value marked with who says so.

A recipe stands beneath the command line: `--recipe rgbnt201 --epochs 10` is the recipe with other epochs.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import tyro

from examples.stmi.recipes.msvr310 import MSVR310
from examples.stmi.recipes.research_code import RESEARCH_CODE, RESEARCH_CODE_VEHICLES
from examples.stmi.recipes.rgbnt100 import RGBNT100
from examples.stmi.recipes.rgbnt201 import RGBNT201
from examples.stmi.recipes.value import Recipe
from examples.stmi.settings import FREE, RecipeName, Settings

SomeSettings = TypeVar("SomeSettings", bound=Settings)

RECIPES: dict[RecipeName, Recipe] = {
    "rgbnt201": RGBNT201,
    "rgbnt100": RGBNT100,
    "msvr310": MSVR310,
    "rgbnt201-research-code": RGBNT201 | RESEARCH_CODE,
    "rgbnt100-research-code": RGBNT100 | RESEARCH_CODE_VEHICLES,
    "msvr310-research-code": MSVR310 | RESEARCH_CODE_VEHICLES,
}


def with_recipe(settings: SomeSettings, name: RecipeName) -> SomeSettings:
    """`settings` with all values of a recipe in place of theirs."""
    values = {setting: value for setting, (value, _, _) in RECIPES[name].items()}
    return replace(settings, recipe=name, **values)


def recipe_arguments(arguments_type: type[SomeSettings], line: Sequence[str]) -> SomeSettings | None:
    """What options have that are not on the command line; None when that names no recipe."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", default="")
    name = parser.parse_known_args(line)[0].recipe
    if name not in RECIPES:
        return None  # what is no recipe is refused with all other values, by name and choices
    return with_recipe(arguments_type(data=tyro.MISSING, out=tyro.MISSING), name)


def deviations(settings: Settings) -> list[str]:
    """What a run does otherwise than the recipe it names, a line each; nothing for a run without recipe."""
    if settings.recipe is None:
        return []
    pure = with_recipe(Settings(Path(), Path()), settings.recipe)
    places = {"data", "weights", "weights_grid"} | FREE
    return [
        f"otherwise than recipe {settings.recipe}: {name} is {getattr(settings, name)}, not {value}"
        for name, value in vars(pure).items()
        if name not in places and value != getattr(settings, name)
    ]
