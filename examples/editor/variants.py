"""Variants of EDITOR for `compare`, and presets: questions that some of the variants answer."""

from typing import Any

from examples.preset import MISSING, SCORES, STRENGTHS, Preset, Row, watched

USUAL = ("baseline", "full")  # compared by default

# Settings that a variant replaces on the command line. Variants with equal settings share a run.
VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {"aggregation": False},
    "selection": {"term_weights.BCC": 0.0, "term_weights.OCFR": 0.0},
    "selection+bcc": {"term_weights.OCFR": 0.0},
    "full": {},
    "full-with-sfm": {"masks": "given"},
    "full-zero": {"centre_start": "zero"},
    "full-single": {"supervision": "single"},
    **{f"keep-{count}": {"keep_per_head": count} for count in (1, 2, 4, 8, 16)},
}

# Columns of numbers that a run of EDITOR records.
COLUMNS = STRENGTHS | {"kept patches": watched("kept")}

PRESETS: dict[str, Preset] = {
    "modules": Preset(
        "Modules",
        "What does each module add?",
        (
            Row("baseline", "baseline"),
            Row("SFTS + HMA", "selection"),
            Row("SFTS + HMA + BCC", "selection+bcc"),
            Row("SFTS + HMA + BCC + OCFR", "full"),
        ),
        columns=(*SCORES, "kept patches", "CPU minutes"),
    ),
    "keep": Preset(
        "Kept patches",
        "How many patches should a head select?",
        tuple(Row(str(count), f"keep-{count}") for count in (1, 2, 4, 8)),
        columns=(*SCORES, "kept patches"),
        axis="patches per head",
        sweep=True,
    ),
    "sfm": Preset(
        "EDITOR with SFM",
        "Does SFM in the tower help EDITOR?",
        (Row("plain attention", "full"), Row("SFM", "full-with-sfm")),
        columns=(*SCORES, "kept patches", "alpha", "beta"),
    ),
    "missing": MISSING,
}
