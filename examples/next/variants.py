"""Variants of NEXT for `compare`, and presets: questions that some of the variants answer."""

from typing import Any

from examples.preset import MISSING, SCORES, STRENGTHS, Preset, Row

USUAL = ("baseline", "full")  # compared by default

# Settings that a variant replaces on the command line. Variants with equal settings share a run.
VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {"experts": "none"},
    "semantic": {"experts": "semantic"},
    "structural": {"experts": "structural"},
    "full": {},
    "full-with-sfm": {"masks": "given"},
    "captions-on": {"captions": "required"},
    "captions-off": {"captions": "off"},
    "captions-shuffled": {"captions": "required", "shuffled_captions": True},
    "captions-whole": {"captions": "required", "sentence_share": 1.0},
    **{f"experts-{count}": {"num_experts": count} for count in (1, 2, 4, 8)},
}

# Columns of numbers that a run of NEXT records.
COLUMNS = STRENGTHS

PRESETS: dict[str, Preset] = {
    "modules": Preset(
        "Modules",
        "What does each kind of experts add?",
        (Row("baseline", "baseline"), Row("TMSE", "semantic"), Row("CSSE", "structural"), Row("both", "full")),
        columns=(*SCORES, "CPU minutes"),
    ),
    "text": Preset(
        "Captions",
        "Does the content of the captions help, and does it help that each expert draws its own sentences?",
        (
            Row("off", "captions-off"),
            Row("shuffled captions", "captions-shuffled"),
            Row("whole captions", "captions-whole"),
            Row("own sentences", "captions-on"),
        ),
        columns=("mAP", "R1", "mAP by semantic", "mAP by structural"),
        axis="captions",
    ),
    "experts": Preset(
        "Experts",
        "How many experts of each kind?",
        tuple(Row(str(count), f"experts-{count}") for count in (1, 2, 4, 8)),
        columns=(*SCORES, "CPU minutes"),
        axis="experts",
        sweep=True,
    ),
    "missing": MISSING,
}
