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
    "selection",
    "deformable",
    "alignment",
    "losses",
    "metrics",
    "backbones",
    "pooling",
    "subset_readout",
    "experts",
    "expert_readout",
    "deformable_readout",
    "text_inversion",
    "token_permutation",
    "reconstruction",
    "rollout",
    "masked_aggregation",
    "consistency",
    "multiscale",
    "text_alignment",
    "mask_losses",
    "adapters",
)


def draw(name: str) -> str:
    return import_module(f"docs.figures.layers.{name}").draw()


if __name__ == "__main__":
    for name in NAMES:
        (ASSETS / f"{name}.svg").write_text(draw(name))
