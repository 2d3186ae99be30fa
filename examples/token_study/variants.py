"""Variants of the study, mostly with one change each, and the preset that compares them."""

from typing import Any

from examples.preset import Preset, Row, watched
from examples.stmi.variants import COLUMNS as OF_STMI

JOINED = {"query_in_token": "left out", "edges_by": "normed"}

VARIANTS: dict[str, dict[str, Any]] = {
    "stmi": {},
    "without-heads": {"reallocation": False},
    "without-chi": {"fusion": "none"},
    "layer-scale": {"residual_scale": 0.1},
    "tower-batch-norm": {"tower_norm": "batch"},
    "little-triplet": {"identity_weight": 100.0},
    "normed-features": {"feature_norm": True},
    "small-queries": {"query_scale": 0.02},
    "normed-queries": {"query_scale": 0.02, "query_in_token": "normed"},
    "no-queries": {"query_in_token": "left out"},
    "diverse-tokens": {"diversity": "tokens"},
    "diverse-deviations": {"diversity": "deviations"},
    "rate-x10": {"rates.heads": 2e-2},
    "rate-x0.1": {"rates.heads": 2e-4},
    "median-threshold": {"median_threshold": True},
    "normed-edges": {"edges_by": "normed"},
    "normed-patches": {"patch_norm": True},
    "long": {"epochs": 24},
    "long-without-heads": {"epochs": 24, "reallocation": False},
    "joined": {**JOINED, "tower_norm": "batch"},
    "joined-features": {**JOINED, "feature_norm": True},
    "joined-features-without-chi": {**JOINED, "feature_norm": True, "fusion": "none"},
}

COLUMNS = OF_STMI | {
    "patches vary %": watched("varies/patches", digits=2),
    "class varies %": watched("varies/class", digits=3),
    "tokens vary %": watched("varies/semantic", digits=3),
    "entropy %": watched("entropy"),
    "U adds %": watched("read", digits=1),
}

SHOWN = (
    "mAP by U",
    "mAP by G",
    "patches vary %",
    "class varies %",
    "tokens vary %",
    "entropy %",
    "U adds %",
    "edge size",
)

PRESETS = {
    "cures": Preset(
        "Tokens that tell images apart",
        "What lets semantic tokens tell images apart?",
        tuple(Row(name, name) for name in VARIANTS),
        SHOWN,
        (("mAP by U", "mAP by G"),),
    )
}
