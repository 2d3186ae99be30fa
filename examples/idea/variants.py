"""Variants of IDEA that `compare` can compare, and presets, each a question that a few of them answer."""

from typing import Any

from examples.preset import MISSING, SFM, STRENGTHS, TIMED_SCORES, Preset, Row

USUAL = ("baseline", "full")  # compared where nothing else is asked

REACHES = (1, 2, 4, 8)

# A variant replaces these settings of the command line. Variants that come to the same run share it.
VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {"captions": "off", "aggregation": False},
    "captions": {"captions": "required", "aggregation": False},
    "cda": {"captions": "off"},
    "full": {"captions": "required"},
    "full-shuffled": {"captions": "required", "shuffled_captions": True},
    "full-shifted": {"captions": "required", "reference": "shifted"},
    "full-separate": {"captions": "required", "offsets": "separate"},
    "full-diagonal": {"captions": "required", "offsets": "diagonal"},
    "full-single": {"captions": "required", "supervision": "single"},
    "full+sfm": {"captions": "required", "masks": "given"},
    **{f"reach-{reach}": {"captions": "required", "max_offset": (float(reach), float(reach))} for reach in REACHES},
}

COLUMNS = STRENGTHS

PRESETS: dict[str, Preset] = {
    "modules": Preset(
        "Modules",
        "What does each module add?",
        (Row("baseline", "baseline"), Row("IMFE", "captions"), Row("CDA", "cda"), Row("IMFE + CDA", "full")),
        TIMED_SCORES,
    ),
    "text": Preset(
        "Captions",
        "Is it what the captions say that helps?",
        (Row("off", "cda"), Row("shuffled captions", "full-shuffled"), Row("on", "full")),
        ("mAP", "R1", "mAP by F"),
        axis="captions",
    ),
    "readings": Preset(
        "Readings",
        "Does it matter how the places are found?",
        (
            Row("ours", "full"),
            Row("off the centre, as the code", "full-shifted"),
            Row("offsets per modality", "full-separate"),
            Row("offsets per modality along a diagonal", "full-diagonal"),
        ),
        TIMED_SCORES,
    ),
    "reach": Preset(
        "Reach",
        "How many patches should a place move at most?",
        tuple(Row(str(reach), f"reach-{reach}") for reach in REACHES),
        TIMED_SCORES,
        axis="patches",
        sweep=True,
    ),
    "sfm": SFM,
    "missing": MISSING,
}
