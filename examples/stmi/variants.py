"""Variants of STMI for `compare`, and presets: questions that some of the variants answer."""

from typing import Any

from examples.preset import STRENGTHS, Preset, Row, watched

BASELINE = {"masks": "none", "reallocation": False}

USUAL = ("baseline", "sfm", "sfm+str", "full")  # compared by default

# Settings that a variant replaces on the command line. Variants with equal settings share a run.
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


# Columns of numbers that a run of STMI records. Strengths are means over the blocks in which SFM acts.
COLUMNS = STRENGTHS | {
    "edge size": watched("hypergraph/mean_edge_size", digits=2),
    "nodes": watched("hypergraph/nodes", digits=0),
    "isolated %": watched("hypergraph/isolated_share", percent=True),
    "cross-modal %": watched("hypergraph/cross_modal_share", percent=True),
}


def _sweep(kind: str, *values: float) -> tuple[Row, ...]:
    return tuple(Row(f"{value:g}", f"{kind}-{value:g}") for value in values)


def _ask(
    title: str,
    asks: str,
    rows: tuple[Row, ...],
    *,
    columns: tuple[str, ...] = ("mAP", "R1", "R5", "R10", "mAP by G", "alpha", "beta"),
    panels: tuple[tuple[str, ...], ...] = (("mAP", "mAP by G"),),
    **options: Any,
) -> Preset:
    return Preset(title, asks, rows, columns, panels, **options)


STEPS = (("baseline", "baseline"), ("SFM", "sfm"), ("SFM + STR", "sfm+str"), ("SFM + STR + CHI", "full"))
QUALITIES = ("eroded", "dilated", "shuffled", "empty", "ones")

PRESETS: dict[str, Preset] = {
    "modules": _ask(
        "Modules",
        "What does each module add (Table 3)?",
        tuple(Row(label, name) for label, name in STEPS),
        columns=("mAP", "R1", "R5", "R10", "mAP by G", "alpha", "beta", "CPU minutes"),
    ),
    "fusion": _ask(
        "Interaction of the semantic tokens",
        "How should the semantic tokens interact (Table 4)?",
        (
            Row("concatenation", "full-concatenation"),
            Row("no interaction", "sfm+str"),
            Row("MLP", "full-mlp"),
            Row("self-attention", "full-self-attention"),
            Row("CHI", "full"),
        ),
        columns=("mAP", "R1", "R5", "R10", "mAP by G", "CPU minutes"),
    ),
    "sfm": _ask(
        "Strengths of SFM",
        "Where should SFM act, and which parts should share a pair of strengths (Table 5)?",
        (
            Row("one pair for all blocks", "strengths-shared"),
            Row("early blocks", "blocks-early"),
            Row("late blocks", "blocks-late"),
            Row("a pair per head", "strengths-per-head"),
            Row("a pair per block", "full"),
        ),
    ),
    "perturbation": _ask(
        "Perturbation",
        "Does it help in training to treat background as foreground at random (Figure 5)?",
        _sweep("perturbation", 0.0, 0.01, 0.05, 0.1, 0.3),
        axis="probability",
        sweep=True,
    ),
    "tokens": _ask(
        "Semantic tokens",
        "How many semantic tokens per modality (Figure 5)?",
        _sweep("tokens", 1, 2, 4, 8),
        columns=("mAP", "R1", "R5", "R10", "mAP by G", "edge size", "nodes", "CPU minutes"),
        axis="tokens per modality",
        sweep=True,
    ),
    "threshold": _ask(
        "Similarity threshold",
        "Above which cosine similarity should two semantic tokens share a hyperedge?",
        _sweep("threshold", -1.0, 0.0, 0.5, 0.7, 0.9, 1.1),
        columns=("mAP", "R1", "mAP by G", "edge size", "nodes", "isolated %", "cross-modal %"),
        panels=(("mAP", "mAP by G"), ("edge size",), ("isolated %", "cross-modal %")),
        axis="threshold",
        sweep=True,
    ),
    "text": _ask(
        "Text prior",
        "Is it the content of the captions that helps?",
        (Row("off", "captions-off"), Row("shuffled captions", "captions-shuffled"), Row("on", "captions-on")),
        columns=("mAP", "R1", "mAP by G", "mAP by T", "mAP by all"),
        panels=(("mAP", "mAP by G", "mAP by T", "mAP by all"),),
        axis="text prior",
    ),
    "binding": _ask(
        "Binding identities",
        "What does each module add for identities whose parts are all shared, and for other identities?",
        tuple(Row(label, name, groups="kind") for label, name in STEPS),
        columns=("mAP", "mAP of plain", "mAP of binding"),
        panels=(("mAP of plain", "mAP of binding"),),
    ),
    "missing": _ask(
        "Missing modalities",
        "How well does the full model retrieve when modalities are missing at test time only?",
        (Row("", "full"),),
        columns=("mAP", "R1", "R5", "R10", "mAP by G"),
        axis="present at test time",
        subsets=True,
    ),
    "masks": _ask(
        "Mask quality at test time",
        "How good must the masks be when the full model was trained with exact masks?",
        (Row("exact", "full", masks="given"), *(Row(quality, "full", masks=quality) for quality in QUALITIES)),
        columns=("mAP", "R1", "R5", "R10", "mAP by G", "foreground %"),
        axis="masks at test time",
    ),
    "masks-trained": _ask(
        "Mask quality in training and at test time",
        "How good must the masks be when the full model is trained with the same kind of masks?",
        (Row("exact", "full"), *(Row(quality, f"masks-{quality}") for quality in QUALITIES)),
        axis="masks",
    ),
}
