"""Variants of TOP-ReID that `compare` can compare, and presets, each a question that a few of them answer."""

from typing import Any

from examples.preset import MISSING, SFM, STRENGTHS, TIMED_SCORES, Preset, Row

USUAL = ("baseline", "tpm", "full")  # compared where nothing else is asked

# A variant replaces these settings of the command line. Variants that come to the same run share it.
VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {"permutation": False, "reconstruction": "none"},
    "tpm": {"reconstruction": "none"},
    "full": {},
    "full-without-filling": {"reconstruction": "loss"},
    "full-shared-tower": {"towers": "shared"},
    "full+sfm": {"masks": "given"},
}

COLUMNS = STRENGTHS

PRESETS: dict[str, Preset] = {
    "modules": Preset(
        "Modules",
        "What does each module add?",
        (Row("baseline", "baseline"), Row("TPM", "tpm"), Row("TPM + CRM", "full")),
        TIMED_SCORES,
    ),
    "towers": Preset(
        "Towers",
        "Is a tower per modality worth its weights?",
        (Row("one for all", "full-shared-tower"), Row("one per modality", "full")),
        TIMED_SCORES,
    ),
    "sfm": SFM,
    "missing": MISSING,
    "missing-without-filling": Preset(
        "Missing modalities, not filled in",
        "How well does it retrieve when CRM fills in nothing?",
        (Row("", "full-without-filling"),),
        axis="there at test time",
        subsets=True,
    ),
}
