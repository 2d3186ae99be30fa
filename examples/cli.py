"""Command line of the examples: flags from the settings records of a run, and expected errors in one line."""

import argparse
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field, fields, is_dataclass, make_dataclass
from functools import cache
from pathlib import Path
from shutil import get_terminal_size
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from examples.optional import check_examples

check_examples()

import tyro  # noqa: E402
from docstring_parser import parse_from_object  # noqa: E402

from stmi_layers.training.messages import printable  # noqa: E402

Arguments = TypeVar("Arguments")
# Errors whose message tells the user everything. Any other error is a fault of the program.
EXPECTED = (ValueError, FileNotFoundError, FileExistsError, BlockingIOError, FloatingPointError)


@contextmanager
def errors_as_a_line() -> Iterator[None]:
    """End with `error: MESSAGE (FLAGS)` on the standard error and status 1 for an expected error.

    Any other error keeps its traceback.
    """
    try:
        yield
    except EXPECTED as error:
        sys.exit(f"error: {printable_lines(with_flags(str(error)))}")
    except OSError as error:
        # A file that cannot be read or written, wherever the error was raised.
        if error.filename is None or error.strerror is None:
            raise
        sys.exit(f"error: {printable(os.fsdecode(error.filename))}: {error.strerror}")
    except ImportError as error:
        # An error of Python's import names the module; our own errors say what to install.
        if error.name is not None:
            raise
        sys.exit(f"error: {printable_lines(str(error))}")


def printable_lines(text: str) -> str:
    r"""Escape everything in a text that a terminal would obey, except line ends.

    Examples:
        >>> printable_lines("a\x1b[2J\nb")
        'a\\x1b[2J\nb'
    """
    return "\n".join(map(printable, text.split("\n")))


def with_flags(message: str) -> str:
    """Append the flags of the settings that a message names; messages of the library know settings, not flags.

    Examples:
        >>> with_flags("pass missing_modality='absent' to do without them")
        "pass missing_modality='absent' to do without them (--missing-modality)"
    """
    from examples.towers.tower import Tower
    from stmi_layers.training import Data, Machine, Schedule

    settings = [one.name for record in (Data, Schedule, Machine, Tower) for one in fields(record)]
    # A single word is a setting only if a value follows.
    named = [name for name in settings if re.search(rf"\b{name}\b" if "_" in name else rf"\b{name}=", message)]
    new = [one for one in map(flag, named) if one not in message]
    return f"{message} ({', '.join(new)})" if new else message


def flag(setting: str) -> str:
    """Return the flag of a setting, given its name in recipes.

    Examples:
        >>> flag("warmup_epochs"), flag("rates.backbone")
        ('--warmup-epochs', '--backbone-learning-rate')
    """
    whole, _, entry = setting.partition(".")
    return f"--{entry}-learning-rate" if whole == "rates" else f"--{whole.replace('_', '-')}"


def run(
    main: Callable[[Arguments], object],
    arguments_type: type[Arguments],
    description: str | None,
    *,
    prog: str | None = None,
) -> None:
    """Parse the command line into `arguments_type` and pass the result to `main`.

    Args:
        main: function that does the work of the command.
        arguments_type: dataclass whose fields are the options.
        description: text shown by `--help`.
        prog: name of the command in messages; the file by default.
    """
    with errors_as_a_line():
        main(parse(arguments_type, description, prog=prog))


def parse(kind: Any, description: str | None, **options: Any) -> Any:
    """Parse a command line by `tyro.cli`, with help texts wrapped at the width of the terminal."""
    _join_lines(kind)
    return tyro.cli(kind, description=description and wrap(description), **options)


def wrap(description: str) -> str:
    """Wrap a description at the width of the terminal; later lines of a paragraph are indented.

    tyro joins lines that begin with a letter, and sets two blank lines before a paragraph that begins otherwise.
    """
    width, shown = min(get_terminal_size().columns, 120) - 1, ""
    fill = textwrap.TextWrapper(width, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False).fill
    for paragraph in description.strip().split("\n\n"):
        if not paragraph.startswith(" "):  # indented paragraphs are commands, a line each
            items = re.split(r"\n(?=- )", paragraph)
            paragraph = "\n".join(map(fill, map(" ".join, map(str.split, items))))
        shown += ("\n\n" if paragraph[:1].isalpha() else "\n") + paragraph
    return shown.strip()


def _join_lines(kind: Any) -> None:
    """Store the docstring of every field of a record as one line; tyro would keep the line ends of the source."""
    texts = {name: text for ancestor in reversed(kind.__mro__) for name, text in _texts(ancestor).items()}
    for one in fields(kind):
        if one.name in texts and "help" not in one.metadata:
            one.metadata = MappingProxyType({**one.metadata, "help": texts[one.name]})
    for nested in get_type_hints(kind).values():
        if is_dataclass(nested):
            _join_lines(nested)


@cache
def _texts(kind: type) -> dict[str, str]:
    documented = parse_from_object(kind).params if is_dataclass(kind) else []
    texts = {one.arg_name: " ".join((one.description or "").split()) for one in documented}
    return {name: text[0].upper() + text[1:] for name, text in texts.items() if text}


def run_method(
    main: Callable[[Any, Arguments], object], own: Callable[..., Arguments], command: str, description: str | None
) -> None:
    """Parse `METHOD` and the flags of a run, and pass the run and the command's options to `main`.

    Args:
        main: function that does the work of the command.
        own: dataclass of the command's own options, of which `out` has no default.
        command: name of the command in messages.
        description: text shown by `--help`.
    """
    with errors_as_a_line():
        asked, options = parse_run(sys.argv[1:], own, command, description)
        main(asked, options)


def parse_run(line: Sequence[str], own: Callable[..., Arguments], command: str, description: str | None) -> Any:
    """Return the run and the command's own options of a command line whose first word is the method.

    Other flags take precedence over a recipe, whatever their order.
    """
    from examples.methods import METHODS, load_method
    from examples.run import Data, default_run

    if not line or line[0].startswith("-"):
        known = f"METHOD is one of {', '.join(METHODS)}, or a package of your own"
        if {"-h", "--help"} & {*line}:
            about = f"{description}\n\n{known}.\n\nFlags of a method: {command} METHOD --help"
            print(f"usage: {command} METHOD [flags]\n\n{wrap(about)}")
            raise SystemExit(0)
        received = line[0] if line else "nothing"
        raise ValueError(f"METHOD must come first: {command} METHOD [flags]; {known}; received {received}")
    method, name = load_method(line[0]), _recipe_in(line[1:])
    default = default_run(method, Data(tyro.MISSING), name if name in method.recipes else None)
    shown = [name for name in default.records() if name != "own"]
    groups = {record: _group(getattr(default, record), record) for record in shown}
    groups[method.name.rpartition(".")[2]] = (type(default.own), default.own)
    recipe = make_dataclass("Recipe", [("recipe", _recipe_type(tuple(method.recipes)), None)], frozen=True)
    groups = {command.rpartition(".")[2]: (own, own(out=tyro.MISSING)), "from_recipe": (recipe, recipe()), **groups}
    found = _flags(line[1:], groups, f"{command} {line[0]}", description)
    options, chosen, data, schedule, machine, *tower, settings = found
    records = (_record(default.data, data), _record(default.schedule, schedule), machine, *(tower or [None]), settings)
    return default.__class__(default.method, *records, recipe=chosen.recipe), options  # pyright: ignore[reportCallIssue]


def parse_shared(
    line: Sequence[str], own: Callable[..., Arguments], command: str, description: str | None
) -> tuple[dict[str, Any], Any]:
    """Parse the records that runs of several methods share (data, schedule, machine, tower), and the options."""
    from examples.towers.tower import Tower
    from stmi_layers.training import Data, Machine, Schedule

    records = {"data": Data(tyro.MISSING), "schedule": Schedule(), "machine": Machine(), "tower": Tower()}
    groups = {name: _group(record, name) for name, record in records.items()}
    options, *values = _flags(line, {"comparison": (own, own(out=tyro.MISSING)), **groups}, command, description)
    shown = dict(zip(records, values, strict=True))
    return {name: _record(record, shown[name]) for name, record in records.items()}, options


def _flags(line: Sequence[str], groups: dict[str, tuple[Any, Any]], command: str, description: str | None) -> list[Any]:
    """Parse a command line into the values of groups of flags; a group is a type and its default."""
    flat = tyro.conf.OmitArgPrefixes
    kind: Any = make_dataclass("Flags", [(name, flat[group]) for name, (group, _) in groups.items()], frozen=True)
    values = kind(*(value for _, value in groups.values()))
    return list(vars(parse(kind, description, args=line, default=values, prog=command)).values())


def _recipe_in(line: Sequence[str]) -> str:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", default="")
    return parser.parse_known_args(line)[0].recipe


def _recipe_type(names: tuple[str, ...]) -> Any:
    help_text = "Recipe in recipes.py of the method: its values replace the defaults; flags take precedence."
    return Annotated[Literal[names] | None if names else None, tyro.conf.arg(help=help_text)]


def _group(record: Any, name: str) -> tuple[Any, Any]:
    """Return a record as tyro shows it: `root` becomes --data, and every entry of `rates` gets its own flag."""
    kind, values = type(record), vars(record)
    if name == "data":
        renamed = [("root", Annotated[Path, tyro.conf.arg(name="data")])]
        shown = make_dataclass(kind.__name__, renamed, bases=(kind,), frozen=True)
        return shown, shown(**values)
    if name != "schedule":
        return kind, record
    own: list[Any] = [("rates", tyro.conf.Suppress[dict[str, float]], field(default_factory=dict))]
    for group, rate in record.rates.items():
        name = flag(f"rates.{group}").removeprefix("--")
        option = tyro.conf.arg(name=name, help=f"Learning rate of the parameter group {group}.")
        own.append((f"rate_of_{group}", Annotated[float, option], rate))
    shown = make_dataclass(kind.__name__, own, bases=(kind,), frozen=True)
    return shown, shown(**values)


def _record(default: Any, shown: Any) -> Any:
    """Return the record that `_group` prepared for tyro."""
    values = {one.name: getattr(shown, one.name) for one in fields(default)}
    rates = {group: getattr(shown, f"rate_of_{group}") for group in getattr(default, "rates", {})}
    return type(default)(**values | ({"rates": rates} if rates else {}))
