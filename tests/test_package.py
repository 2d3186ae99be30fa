"""What an import brings along, and what the public names promise."""

import subprocess
import sys
from pathlib import Path

import pytest

import stmi_layers

PUBLIC = {name: value for name, value in vars(stmi_layers).items() if callable(value)}


def test_import_loads_nothing_but_the_dependencies():
    code = "import sys, torch; before = set(sys.modules); import stmi_layers; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in run.stdout.split()} - set(sys.stdlib_module_names)
    # jaxtyping loads numpy where it finds it, and wadler_lindig to print shapes.
    assert loaded <= {"stmi_layers", "einops", "jaxtyping", "beartype", "numpy", "wadler_lindig"}


def test_public_names():
    assert sorted(PUBLIC) == [
        "CrossModalHypergraph",
        "GlobalCrossAttention",
        "HypergraphConv",
        "IdentityHead",
        "MaskPerturbation",
        "ReIDLoss",
        "ReIDMetrics",
        "SegmentationModulatedAttention",
        "SemanticTokenReallocation",
        "batch_hard_triplet",
        "hypergraph_conv",
        "incidence_statistics",
        "modulate_logits",
        "modulated_attention",
        "perturb_background",
        "rank_gallery",
        "reid_metrics",
        "similarity_incidence",
        "token_foreground",
    ]


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - {"ReIDMetrics"}))
def test_public_name_is_documented_with_an_example(name: str):
    documentation = PUBLIC[name].__doc__ or ""
    assert "Args:" in documentation
    assert ">>> " in documentation


def test_package_is_marked_as_typed():
    assert (Path(stmi_layers.__file__).parent / "py.typed").is_file()
