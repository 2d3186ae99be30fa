"""What `compare` can compare: variants of the settings, and presets, each a question that a few of them answer."""

from itertools import combinations
from typing import Any, NamedTuple

BASELINE = {"masks": "none", "reallocation": False}

# A variant replaces these settings of the command line. Variants that come to the same run share it.
VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": BASELINE,
    "sfm": {"reallocation": False},
    "sfm+str": {"fusion": "none"},
    "full": {},
    "full-without-sfm": {"masks": "none"},
    "full-concatenation": {"fusion": "concatenation"},
    "full-mlp": {"fusion": "mlp"},
    "full-self-attention": {"fusion": "self-attention"},
    "sfm-ones": {"reallocation": False, "masks": "ones"},
    "sfm-shuffled": {"reallocation": False, "masks": "shuffled"},
    "blank": {"reallocation": False, "masks": "blank"},
    "blank+sfm": {"reallocation": False, "masks": "blank+given"},
    "cnn": {"reallocation": False, "backbone": "cnn", "masks": "none"},
    "cnn-blank": {"reallocation": False, "backbone": "cnn", "masks": "blank"},
    "strengths-shared": {"shared_strengths": True},
    "strengths-per-head": {"per_head": True},
    "blocks-early": {"modulated_blocks": "early"},
    "blocks-late": {"modulated_blocks": "late"},
    "captions-on": {"captions": "required"},
    "captions-off": {"captions": "off"},
    "captions-shuffled": {"captions": "required", "shuffled_captions": True},
    **{f"masks-{masks}": {"masks": masks} for masks in ("eroded", "dilated", "shuffled", "empty", "ones")},
    **{f"perturbation-{p:g}": {"perturbation": p} for p in (0.0, 0.01, 0.05, 0.1, 0.3)},
    **{f"tokens-{count}": {"num_tokens": count} for count in (1, 2, 4, 8, 16)},
    **{f"threshold-{cosine:g}": {"threshold": cosine} for cosine in (-1.0, 0.0, 0.3, 0.5, 0.7, 0.9, 1.1)},
}


class Row(NamedTuple):
    """A line of a table: a variant, as it is or under other conditions at test time."""

    label: str
    variant: str
    masks: str = ""
    """Masks of the test images, "" for those of the training."""
    keep: tuple[str, ...] = ()
    """Modalities that are there at test time, () for all."""


class Preset(NamedTuple):
    """A question, the rows that answer it, and what the table and the panels of the figure show of them."""

    title: str
    asks: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...] = ("mAP", "R1", "R5", "R10", "mAP by G", "alpha", "beta")
    panels: tuple[tuple[str, ...], ...] = (("mAP", "mAP by G"),)
    axis: str = "variant"
    """Name of the first column, and of the axis of the figure."""
    sweep: bool = False
    """Labels are numbers: lines instead of bars."""


def _sweep(kind: str, *values: float) -> tuple[Row, ...]:
    return tuple(Row(f"{value:g}", f"{kind}-{value:g}") for value in values)


QUALITIES = ("eroded", "dilated", "shuffled", "empty", "ones")

PRESETS: dict[str, Preset] = {
    "modules": Preset(
        "Modules",
        "What does each module add (Table 3)?",
        (Row("baseline", "baseline"), Row("SFM", "sfm"), Row("SFM + STR", "sfm+str"), Row("SFM + STR + CHI", "full")),
        columns=("mAP", "R1", "R5", "R10", "mAP by G", "alpha", "beta", "CPU minutes"),
    ),
    "fusion": Preset(
        "Fusion",
        "What should the semantic tokens interact by (Table 4)?",
        (
            Row("concatenation", "full-concatenation"),
            Row("no interaction", "sfm+str"),
            Row("MLP", "full-mlp"),
            Row("self-attention", "full-self-attention"),
            Row("CHI", "full"),
        ),
        columns=("mAP", "R1", "R5", "R10", "mAP by G", "CPU minutes"),
    ),
    "sfm": Preset(
        "Strengths of SFM",
        "Where should SFM act, and what should share a pair of strengths (Table 5)?",
        (
            Row("one pair for all blocks", "strengths-shared"),
            Row("early blocks", "blocks-early"),
            Row("late blocks", "blocks-late"),
            Row("a pair per head", "strengths-per-head"),
            Row("a pair per block", "full"),
        ),
    ),
    "perturbation": Preset(
        "Perturbation",
        "Does it help to take background for foreground at random in training (Figure 5)?",
        _sweep("perturbation", 0.0, 0.01, 0.05, 0.1, 0.3),
        axis="probability",
        sweep=True,
    ),
    "tokens": Preset(
        "Semantic tokens",
        "How many semantic tokens per modality (Figure 5)?",
        _sweep("tokens", 1, 2, 4, 8),
        columns=("mAP", "R1", "R5", "R10", "mAP by G", "edge size", "nodes", "CPU minutes"),
        axis="tokens per modality",
        sweep=True,
    ),
    "threshold": Preset(
        "Similarity threshold",
        "From which cosine similarity on should two semantic tokens share a hyperedge?",
        _sweep("threshold", -1.0, 0.0, 0.5, 0.7, 0.9, 1.1),
        columns=("mAP", "R1", "mAP by G", "edge size", "nodes", "isolated %", "cross-modal %"),
        panels=(("mAP", "mAP by G"), ("edge size",), ("isolated %", "cross-modal %")),
        axis="threshold",
        sweep=True,
    ),
    "text": Preset(
        "Text prior",
        "Is it what the captions say that helps?",
        (Row("off", "captions-off"), Row("shuffled captions", "captions-shuffled"), Row("on", "captions-on")),
        columns=("mAP", "R1", "mAP by G", "mAP by T", "mAP by all"),
        panels=(("mAP", "mAP by G", "mAP by T", "mAP by all"),),
        axis="text prior",
    ),
    # Its rows depend on the modalities of the set: see `rows_of`.
    "missing": Preset(
        "Missing modalities",
        "How well does the full model retrieve when modalities are missing at test time only?",
        (),
        columns=("mAP", "R1", "R5", "R10", "mAP by G"),
        axis="there at test time",
    ),
    "masks": Preset(
        "Mask quality at test time",
        "How good must the masks be when the full model was trained with exact ones?",
        (Row("exact", "full", masks="given"), *(Row(quality, "full", masks=quality) for quality in QUALITIES)),
        columns=("mAP", "R1", "R5", "R10", "mAP by G", "foreground %"),
        axis="masks at test time",
    ),
    "masks-trained": Preset(
        "Mask quality in training and at test time",
        "How good must the masks be when the full model is trained with the same kind?",
        (Row("exact", "full"), *(Row(quality, f"masks-{quality}") for quality in QUALITIES)),
        axis="masks",
    ),
}


def rows_of(name: str, modalities: tuple[str, ...]) -> tuple[Row, ...]:
    """The rows of a preset; of "missing" all subsets of the modalities but the empty one, the largest first."""
    if name != "missing":
        return PRESETS[name].rows
    sizes = range(len(modalities), 0, -1)
    subsets = [subset for size in sizes for subset in combinations(modalities, size)]
    return tuple(Row(" + ".join(subset), "full", keep=subset) for subset in subsets)
