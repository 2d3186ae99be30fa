"""Commands of the examples: an expected error is one line and status 1, any other error keeps its traceback."""

import errno
import runpy
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples import cli as command

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Arguments:
    number: int = 1


def fail_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def main(arguments: Arguments) -> None:
        assert arguments.number == 3
        raise error

    monkeypatch.setattr(sys, "argv", ["command", "--number", "3"])
    command.run(main, Arguments, "Fails.")


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, FileExistsError, FloatingPointError])
def test_an_expected_error_is_one_line(kind: type[Exception], monkeypatch) -> None:
    with pytest.raises(SystemExit, match=r"^error: say what to do$"):
        fail_with(kind("say what to do"), monkeypatch)


@pytest.mark.parametrize("kind", [TypeError, RuntimeError, PermissionError, ZeroDivisionError])
def test_any_other_keeps_its_traceback(kind: type[Exception], monkeypatch) -> None:
    with pytest.raises(kind, match="a fault"):
        fail_with(kind("a fault"), monkeypatch)


def test_a_file_that_may_not_be_used_is_one_line(tmp_path: Path, monkeypatch) -> None:
    """Whatever command finds it out, and wherever; an error without a file is a fault of the program."""
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "x\x1b[2J"))
    with pytest.raises(SystemExit, match=r"^error: .*/x\\x1b\[2J: Permission denied$"):
        fail_with(error, monkeypatch)
    with pytest.raises(OSError, match="no file at all"):
        fail_with(OSError("no file at all"), monkeypatch)


def test_what_main_returns_is_not_the_exit_status(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["command"])
    assert command.run(lambda arguments: arguments.number, Arguments, None) is None


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        ("train", ["stmi", "--data", "{}/nothing", "--out", "{}/out"], "root must be "),
        ("train", [], "METHOD must come first: "),
        ("train", ["best", "--data", "{}", "--out", "{}/out"], "METHOD must be one of stmi"),
        ("evaluate", ["--checkpoint", "{}/nothing.pt"], "no checkpoint at "),
        ("compare", ["stmi", "--data", "{}", "--out", "{}/out", "--variants", "none"], "variants must be among "),
        ("figures", ["--checkpoint", "{}/nothing.pt"], "no checkpoint at "),
        ("robustness", ["--checkpoint", "{}/nothing.pt"], "no checkpoint at "),
        ("prepare.inspect", ["{}/nothing"], "root must be "),
        ("prepare.trivial_baselines", ["--data", "{}/nothing"], "root must be "),
        ("prepare.masks", ["{}/nothing", "--method", "classical"], "root must be "),
        ("prepare.synthetic", ["--out", "{}"], ".* is not empty and is not a synthetic set"),
    ],
)
def test_every_command_says_so_in_a_line(module: str, options: Sequence[str], message: str, tmp_path, monkeypatch):
    (tmp_path / "some.txt").touch()
    monkeypatch.setattr(sys, "argv", [module, *(option.format(tmp_path) for option in options)])
    # A second import under the name __main__ is what `python -m` does.
    for imported in (f"examples.{module}", f"examples.{module}.__main__"):
        monkeypatch.delitem(sys.modules, imported, raising=False)
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        runpy.run_module(f"examples.{module}", run_name="__main__", alter_sys=True)


def test_the_line_goes_to_the_standard_error_with_status_1(tmp_path) -> None:
    line = [sys.executable, "-m", "examples.evaluate", "--checkpoint", str(tmp_path / "nothing.pt")]
    finished = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert finished.stderr.startswith("error: no checkpoint at ")
    assert finished.stderr.count("\n") == 1


def test_settings_in_a_message_of_the_library_are_followed_by_their_flags(monkeypatch) -> None:
    message = "add them, or pass missing_modality='skip', or masks='ones'"
    with pytest.raises(SystemExit, match=r"masks='ones' \(--masks, --missing-modality\)$"):
        fail_with(ValueError(message), monkeypatch)
    with pytest.raises(SystemExit, match=r"give a file by --weights$"):
        fail_with(ValueError("give a file by --weights"), monkeypatch)
