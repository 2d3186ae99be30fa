"""Write the values of all recipes as tables: `python -m examples.stmi.recipes --out docs/tables/recipes.md`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples import cli as command
from examples.stmi.recipes import RECIPES
from examples.stmi.recipes.research_code import RESEARCH_CODE_VEHICLES
from examples.stmi.recipes.value import Value
from examples.stmi.settings import RecipeName

BENCHMARKS: tuple[RecipeName, ...] = ("rgbnt201", "rgbnt100", "msvr310")


@dataclass(frozen=True)
class Arguments:
    """Where the tables go."""

    out: Path = Path("docs/tables/recipes.md")
    """A Markdown file."""


def table(names: Sequence[RecipeName], settings: Sequence[str]) -> str:
    """A row per setting: its value in each recipe, once where all agree; whose it is, and why."""
    lines = ["| setting | " + " | ".join(names) + " | whose | why |", "|---" * (len(names) + 3) + "|"]
    for setting in settings:
        values = [RECIPES[name][setting] for name in names]
        cells = " | ".join(f"`{show(value)}`" for value in values)
        whose = ", ".join(dict.fromkeys(value.source for value in values))
        why = "; ".join(dict.fromkeys(value.why for value in values))
        lines.append(f"| `--{setting.replace('_', '-')}` | {cells} | {whose} | {why} |")
    return "\n".join(lines)


def show(entry: Value) -> str:
    """As it would be typed, except that what is a switch is on or off."""
    value = entry.value
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.3g}"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def main(arguments: Arguments) -> None:
    first = RECIPES["rgbnt201"]
    own = [name for name in first if len({str(RECIPES[recipe][name].value) for recipe in BENCHMARKS}) > 1]
    research: list[RecipeName] = [name for name in RECIPES if name not in BENCHMARKS]
    parts = [
        "What differs between the benchmarks:",
        table(BENCHMARKS, own),
        "What does not:",
        table(BENCHMARKS[:1], [name for name in first if name not in own]).replace("| rgbnt201 |", "| value |", 1),
        "What the recipes after the research code set otherwise:",
        table(research, list(RESEARCH_CODE_VEHICLES)),
        "Made by `python -m examples.stmi.recipes`.",
    ]
    arguments.out.write_text("\n\n".join(parts) + "\n")
    print(arguments.out)


if __name__ == "__main__":
    command.run(main, Arguments, __doc__)
