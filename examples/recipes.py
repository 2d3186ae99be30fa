"""Print the values of a method's recipes as tables: `python -m examples.recipes stmi`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from examples import cli
from examples.methods import load_method
from examples.recipe import Recipe, Value
from stmi_layers.training.files import write_text


@dataclass(frozen=True)
class Arguments:
    """Method, and file of the tables."""

    method: tyro.conf.Positional[str]
    """Name of the method."""
    out: Path | None = None
    """Markdown file to write, such as docs/tables/recipes.md; printed by default."""


def table(recipes: dict[str, Recipe], settings: Sequence[str]) -> str:
    """Format a table with a row per setting: its value in each recipe, its source and its reason."""
    lines = ["| setting | " + " | ".join(recipes) + " | whose | why |", "|---" * (len(recipes) + 3) + "|"]
    for setting in settings:
        values = [recipe[setting] for recipe in recipes.values()]
        cells = " | ".join(f"`{show(value)}`" for value in values)
        whose = ", ".join(dict.fromkeys(value.source for value in values))
        why = "; ".join(dict.fromkeys(value.why for value in values))
        lines.append(f"| `{cli.flag(setting)}` | {cells} | {whose} | {why} |")
    return "\n".join(lines)


def show(entry: Value) -> str:
    """Format a value as it would be typed; a switch is on or off."""
    value = entry.value
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.3g}"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def tables(recipes: dict[str, Recipe]) -> list[str]:
    """Format tables of recipe values: different between benchmarks, common, and changed in the research code."""
    own = {name: recipe for name, recipe in recipes.items() if not name.endswith("-research-code")}
    research = {name: recipe for name, recipe in recipes.items() if name not in own}
    common, *_ = own.values()
    differ = [name for name in common if len({str(recipe[name].value) for recipe in own.values()}) > 1]
    same = [name for name in common if name not in differ]
    parts = ["What differs between the benchmarks:", table(own, differ), "What does not:"] if differ else []
    first = next(iter(own))
    parts += [table({first: common}, same).replace(f"| {first} |", "| value |", 1)]
    if research:
        beneath = {name: own[name.removesuffix("-research-code")] for name in research}
        otherwise = {key: None for name in research for key in common if research[name][key] != beneath[name][key]}
        parts += ["What the recipes after the research code set otherwise:", table(research, list(otherwise))]
    return parts


def main(arguments: Arguments) -> None:
    """Print or write the tables of a method."""
    parts = [
        *tables(load_method(arguments.method).recipes),
        f"Made by `python -m examples.recipes {arguments.method}`.",
    ]
    text = "\n\n".join(parts) + "\n"
    if arguments.out is None:
        print(text, end="")
        return
    write_text(arguments.out, text)
    print(arguments.out)


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__, prog="python -m examples.recipes")
