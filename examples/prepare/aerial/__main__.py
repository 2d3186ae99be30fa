"""Build the aerial sets from a clone of their public source: `python -m examples.prepare.aerial CLONE OUT`."""

from pathlib import Path
from typing import Annotated

import tyro

from examples.cli import errors_as_a_line, wrap
from examples.prepare.aerial.build import build
from examples.prepare.aerial.source import COMMIT, SOURCE


def main(clone: Annotated[Path, tyro.conf.Positional], out: Annotated[Path, tyro.conf.Positional]) -> None:
    """Build the aerial sets.

    Args:
        clone: Clone of the source.
        out: Folder of the sets, which must not exist or be empty.
    """
    for name, count in build(clone, out).items():
        print(f"{out / name}: {count} identities")


if __name__ == "__main__":
    with errors_as_a_line():
        tyro.cli(
            main,
            prog="python -m examples.prepare.aerial",
            description=wrap(
                "Build naip_places and naip_parcels, real images of two modalities, from a clone of "
                f"{SOURCE} (CC BY 4.0). The published tables used commit {COMMIT}.\n\n"
                "Needs: pip install -e '.[aerial]'"
            ),
        )
