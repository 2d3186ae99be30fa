"""Start from a released checkpoint: `python -m examples.released METHOD SET FILE --out runs/NAME`.

METHOD is signal, demo, topreid, editor, idea or mambapro; SET is the data set that FILE was trained on. The result is a
checkpoint before the first epoch, to evaluate, extract, export, or train further.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from examples import cli
from examples.methods import load_method
from examples.released.carry import Imported, carried_of, facts_of_release, fill, settle
from examples.run import Run, default_run, settings_of
from examples.towers.releases.tensors import read_release
from stmi_layers.training import facts_of, load_split
from stmi_layers.training.checkpoint import check_room, save_checkpoint
from stmi_layers.training.files import write_text
from stmi_layers.training.messages import printable


@dataclass(frozen=True)
class Arguments:
    """Released file, and folder of its checkpoint."""

    method: tyro.conf.Positional[str]
    """Method of the file."""
    trained_on: tyro.conf.Positional[Literal["rgbnt201", "rgbnt100", "msvr310"]]
    """Data set that the file was trained on, which determines sizes and settings."""
    file: tyro.conf.Positional[Path]
    """Released weights: a torch or safetensors file."""
    out: Path
    """Folder of the run, for checkpoint.pt and released.txt."""
    data: Path | None = None
    """Set to train on or to evaluate, in any layout; without it, a later evaluation needs --data."""
    cameras: tuple[int, ...] = ()
    """Numbers of the cameras, or views, of the camera embeddings in the file, in their order; by default those of the
    training split of --data, or 1, 2, 3 ... without --data."""
    camera_scale: float | None = None
    """Factor of the camera embeddings in the configuration of the release; by default 1 for CLIP and 3 for ViT, as in
    the released configurations."""
    architecture: str | None = None
    """Name of a tower of open_clip or timm, if it is not ViT-B/16."""
    trust_pickle: bool = False
    """Read a torch file that holds more than tensors; such a file can run any code on your machine."""


def import_file(arguments: Arguments) -> Imported:
    """Read and convert the file, and write the checkpoint and the report."""
    checkpoint = arguments.out / "checkpoint.pt"
    if checkpoint.exists():
        raise FileExistsError(f"{arguments.out} holds a run already: choose another --out")
    release = read_release(arguments.file, trust_pickle=arguments.trust_pickle)
    known, recipe, carried = carried_of(arguments.method, arguments.trained_on, release)
    if arguments.camera_scale is not None:
        scaled = {name: tower._replace(scale=arguments.camera_scale) for name, tower in carried.towers.items()}
        carried = carried._replace(towers=scaled)
    changes: dict[str, Any] = {} if arguments.architecture is None else {"architecture": arguments.architecture}
    run = settle(known, recipe, carried, arguments.data or Path("unknown"), changes)
    facts = facts_of_release(run, carried, arguments.cameras)
    if arguments.data is not None:
        facts = facts_of(load_split(run.data, "train", seed=run.schedule.seed), run.data.modalities)
    imported = fill(run, facts, carried, release)
    arguments.out.mkdir(parents=True, exist_ok=True)
    check_room(arguments.out, imported.state.model, imported.state.objective)
    save_checkpoint(checkpoint, imported.state.checkpoint())
    imported.report.append(f"cameras of the embeddings: {facts.cameras or facts.views or 'none'}")
    if arguments.data is not None:
        imported.report.append(f"train on: {shlex.join(training_command(run, arguments.out))}")
    write_text(arguments.out / "released.txt", "\n".join(map(printable, imported.report)) + "\n")
    return imported


def training_command(run: Run, out: Path) -> list[str]:
    """Return the command that continues the run: its recipe, and flags for all settings that differ from the recipe."""
    pure = settings_of(default_run(load_method(run.method), run.data, run.recipe))
    words = ["python", "-m", "examples.train", run.method, "--data", str(run.data.root), "--out", str(out), "--resume"]
    words += [] if run.recipe is None else ["--recipe", run.recipe]
    for name, value in settings_of(run).items():
        if name == "root" or value == pure[name]:
            continue
        flag = cli.flag(name)
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words


def main(arguments: Arguments) -> Imported:
    """Import a file, and print the report and the next command."""
    imported = import_file(arguments)
    for line in imported.report:
        print(printable(line if len(line) < 200 else f"{line[:160]} ... (all in released.txt)"))
    print(arguments.out / "checkpoint.pt", arguments.out / "released.txt", sep="\n")
    return imported


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__, prog="python -m examples.released")
