"""Build the aerial sets from a clone of their public source: `python -m examples.prepare.aerial CLONE OUT`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from examples import cli
from examples.prepare.aerial.build import build
from examples.prepare.aerial.source import COMMIT, SOURCE

DESCRIPTION = f"""\
Build naip_places and naip_parcels, real images of two modalities, from a clone of {SOURCE} (CC BY 4.0). The published
tables used commit {COMMIT}.

Needs: pip install -e '.[aerial]'
"""


@dataclass(frozen=True)
class Arguments:
    """Clone of the source, and folder of the sets."""

    clone: tyro.conf.Positional[Path]
    """Clone of the source."""
    out: tyro.conf.Positional[Path]
    """Folder of the sets, which must not exist or be empty."""


def main(arguments: Arguments) -> None:
    """Build the aerial sets, and print them."""
    for name, count in build(arguments.clone, arguments.out).items():
        print(f"{arguments.out / name}: {count} identities")


if __name__ == "__main__":
    cli.run(main, Arguments, DESCRIPTION, prog="python -m examples.prepare.aerial")
