"""Variants of NEXT that `compare` can compare, and presets, each a question that a few of them answer."""

from typing import Any

from examples.preset import MISSING, SCORES, STRENGTHS, Preset, Row

USUAL = ("baseline", "full")  # compared where nothing else is asked

# A variant replaces these settings of the command line. Variants that come to the same run share it.
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

# What a run of NEXT says of itself.
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
        "Is it what the captions say that helps, and does it help that experts draw sentences of their own?",
        (
            Row("off", "captions-off"),
            Row("shuffled captions", "captions-shuffled"),
            Row("whole captions", "captions-whole"),
            Row("sentences of its own", "captions-on"),
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
