"""Variants of IDEA for `compare`, and presets: questions that some of the variants answer."""

from typing import Any

from examples.preset import MISSING, SFM, STRENGTHS, TIMED_SCORES, Preset, Row

USUAL = ("baseline", "full")  # compared by default

REACHES = (1, 2, 4, 8)

# Settings that a variant replaces on the command line. Variants with equal settings share a run.
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
        "Is it the content of the captions that helps?",
        (Row("off", "cda"), Row("shuffled captions", "full-shuffled"), Row("on", "full")),
        ("mAP", "R1", "mAP by F"),
        axis="captions",
    ),
    "readings": Preset(
        "Readings",
        "Does it matter how the sampling places are found?",
        (
            Row("ours", "full"),
            Row("off the centre, as in the code", "full-shifted"),
            Row("offsets per modality", "full-separate"),
            Row("offsets per modality along a diagonal", "full-diagonal"),
        ),
        TIMED_SCORES,
    ),
    "reach": Preset(
        "Reach",
        "How far should a sampling place move at most, in patches?",
        tuple(Row(str(reach), f"reach-{reach}") for reach in REACHES),
        TIMED_SCORES,
        axis="patches",
        sweep=True,
    ),
    "sfm": SFM,
    "missing": MISSING,
}
