"""Variants of TOP-ReID for `compare`, and presets: questions that some of the variants answer."""

from typing import Any

from examples.preset import MISSING, SFM, STRENGTHS, TIMED_SCORES, Preset, Row

USUAL = ("baseline", "tpm", "full")  # compared by default

# Settings that a variant replaces on the command line. Variants with equal settings share a run.
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
        "How well does the model retrieve when CRM fills in nothing?",
        (Row("", "full-without-filling"),),
        axis="present at test time",
        subsets=True,
    ),
}
