"""Variants of Signal for `compare`, and presets: questions that some of the variants answer."""

from typing import Any

from examples.preset import MISSING, SFM, STRENGTHS, TIMED_SCORES, Preset, Row, watched

USUAL = ("baseline", "sim", "sim+gam", "full")  # compared by default

NO_GAM, NO_LAM = {"term_weights.GAM": 0.0}, {"term_weights.LAM": 0.0}

# Settings that a variant replaces on the command line. Variants with equal settings share a run.
VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {"interaction": False} | NO_GAM | NO_LAM,
    "sim": NO_GAM | NO_LAM,
    "sim+gam": NO_LAM,
    "sim+lam": NO_GAM,
    "full": {},
    "full-zeroed": {"unselected": "zeroed"},
    "full-random-selection": {"learned_selection": False},
    "full-first-anchor": {"anchor": "first"},
    "full-all-negatives": {"negatives": "all"},
    "full-released-points": {"points": "released", "offset_channels": 1},
    "full+sfm": {"masks": "given"},
    **{f"keep-{share:g}": {"keep": share} for share in (0.125, 0.25, 0.5, 0.75, 1.0)},
}

COLUMNS = STRENGTHS | {"temperature": watched("temperature", digits=3)}

PRESETS: dict[str, Preset] = {
    "modules": Preset(
        "Modules",
        "What does each module add?",
        (Row("baseline", "baseline"), Row("SIM", "sim"), Row("SIM + GAM", "sim+gam"), Row("SIM + GAM + LAM", "full")),
        TIMED_SCORES,
    ),
    "readings": Preset(
        "Readings",
        "Does it matter where our layers differ from the research code?",
        (
            Row("ours", "full"),
            Row("unselected patches are read", "full-zeroed"),
            Row("random selection", "full-random-selection"),
            Row("one anchor", "full-first-anchor"),
            Row("own identity as negatives", "full-all-negatives"),
            Row("positions of the code", "full-released-points"),
        ),
        (*TIMED_SCORES, "temperature"),
    ),
    "keep": Preset(
        "Selected patches",
        "What share of the patches should a class token select?",
        tuple(Row(f"{share:g}", f"keep-{share:g}") for share in (0.125, 0.25, 0.5, 0.75, 1.0)),
        TIMED_SCORES,
        axis="share",
        sweep=True,
    ),
    "sfm": SFM,
    "missing": MISSING,
}
