"""Variants of DeMo for `compare`, and presets: questions that some of the variants answer."""

from typing import Any

from examples.preset import MISSING, SCORES, STRENGTHS, Preset, Row

USUAL = ("baseline", "full")  # compared by default

# Settings that a variant replaces on the command line. Variants with equal settings share a run.
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

# Columns of numbers that a run of DeMo records.
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
