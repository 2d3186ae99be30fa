"""Make one foreground mask per item, by SAM 2, SAM 3, or a fallback without weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from examples import cli as command
from examples.prepare.masks.files import read_note
from examples.prepare.masks.make import Settings, build, check, plan, run
from examples.prepare.masks.report import rank_doubtful, read_entries, table, write_report
from examples.prepare.masks.sheet import draw_sheet
from stmi_layers.training.files import locked
from stmi_layers.training.layouts import find_set


def main(settings: Settings) -> dict[str, Any]:
    """Make missing masks; write `<folder>_report.json`, and `<folder>_doubtful.png` if masks are doubtful."""
    check(settings)
    home = settings.data if settings.data.is_dir() else settings.data.parent  # the data is a manifest
    if settings.out is not None and settings.out.resolve() == home.resolve():
        settings = replace(settings, out=None)  # the folder of the data set, however it is spelled
    out = settings.out or home
    find_set(settings.data, settings.modalities)  # refuses folders that are not a set
    with locked(out, ".masks.lock"):
        return _make(settings, out)


def _make(settings: Settings, out: Path) -> dict[str, Any]:
    segmenter, method = build(settings)
    print(f"masks by {method}")
    tasks = plan(settings, method)
    given = sum(task.state == "given" for task in tasks)
    lost = sum(task.state == "made" and task.path.is_file() and read_note(task.path) is None for task in tasks)
    if given:
        print(f"{given} masks were made elsewhere and are kept; --overwrite all would replace and lose them")
    if lost:
        print(f"{lost} masks that were made elsewhere are replaced because of --overwrite all")
    run(tasks, segmenter, method, settings)
    if tasks[0].item.layout == "manifest":
        print(f"masks lie in {settings.folder}/: name them in the column {settings.folder} of the manifest")
    entries = read_entries(tasks, settings)
    report = write_report(out / f"{settings.folder}_report.json", entries, settings, method)
    print(table(report))
    sheet = out / f"{settings.folder}_doubtful.png"
    worst = rank_doubtful(entries)[: settings.sheet]
    if worst:
        drawn = draw_sheet(sheet, worst, f"Doubtful masks, by {method}", settings)
        print(f"figure of the {len(worst)} most doubtful masks: {drawn}")
    else:
        sheet.unlink(missing_ok=True)
    return report


if __name__ == "__main__":
    command.run(main, Settings, __doc__, prog="python -m examples.prepare.masks")
