"""Commands: what every program of the example does between its arguments and its exit status."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import tyro

Arguments = TypeVar("Arguments")
# Whose message says all there is to know. Any other error is a fault of the program.
EXPECTED = (ValueError, FileNotFoundError, FileExistsError, FloatingPointError)


@contextmanager
def errors_as_a_line() -> Iterator[None]:
    """End with `error: MESSAGE` on the standard error and status 1 for an expected error.

    Any other keeps its traceback.
    """
    try:
        yield
    except EXPECTED as error:
        sys.exit(f"error: {error}")
    except ImportError as error:
        # Python's own names the module; one raised by hand says what to install.
        if error.name is not None:
            raise
        sys.exit(f"error: {error}")


def run(
    main: Callable[[Arguments], object],
    arguments_type: type[Arguments],
    description: str | None,
    *,
    prog: str | None = None,
    default: Arguments | None = None,
) -> None:
    """Read the command line into `arguments_type` and hand it to `main`.

    Args:
        main: what the command does.
        arguments_type: a dataclass whose fields are the options.
        description: shown by `--help`.
        prog: the name of the command in messages; the file by default.
        default: what options have that are not given, where it is not what their type says.
    """
    with errors_as_a_line():
        options: dict[str, Any] = {"prog": prog, "description": description}
        if default is not None:
            options["default"] = default
        main(tyro.cli(arguments_type, **options))
