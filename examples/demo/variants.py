"""Variants of DeMo that `compare` can compare, and presets, each a question that a few of them answer."""

from typing import Any

from examples.preset import MISSING, SCORES, STRENGTHS, Preset, Row

USUAL = ("baseline", "full")  # compared where nothing else is asked

# A variant replaces these settings of the command line. Variants that come to the same run share it.
VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {"pooling": False, "fusion": "none"},
    "pooling": {"fusion": "none"},
    "subsets": {"fusion": "subsets"},
    "full": {},
    "full-without-pooling": {"pooling": False},
    "full-with-sfm": {"masks": "given"},
    "full-ends": {"subsets": "ends"},
    "full-drop": {"incomplete": "drop"},
    "full-single": {"supervision": "single"},
}

# What a run of DeMo says of itself.
COLUMNS = STRENGTHS

PRESETS: dict[str, Preset] = {
    "modules": Preset(
        "Modules",
        "What does each module add?",
        (Row("baseline", "baseline"), Row("PIFE", "pooling"), Row("PIFE + HDM", "subsets"), Row("all", "full")),
        columns=(*SCORES, "CPU minutes"),
    ),
    "sfm": Preset(
        "DeMo with SFM",
        "Does SFM in the tower help DeMo?",
        (Row("plain attention", "full"), Row("SFM", "full-with-sfm")),
        columns=(*SCORES, "alpha", "beta"),
    ),
    "missing": MISSING,
}
