"""Draw all pictures of the pages of the layers: python -m docs.figures.layers"""

from importlib import import_module
from pathlib import Path

ASSETS = Path(__file__).parents[2] / "assets" / "layers"
NAMES = (
    "pipeline",
    "foreground",
    "attention",
    "reallocation",
    "hypergraph",
    "fusion",
    "multiscale",
    "selection",
    "deformable",
    "deformable_readout",
    "text_inversion",
    "adapters",
    "losses",
    "mask_losses",
    "alignment",
    "text_alignment",
    "metrics",
    "backbones",
)


def draw(name: str) -> str:
    return import_module(f"docs.figures.layers.{name}").draw()


if __name__ == "__main__":
    for name in NAMES:
        (ASSETS / f"{name}.svg").write_text(draw(name))
