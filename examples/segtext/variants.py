"""Variants of retrieval by image, caption and mask for `compare`, and presets: questions that variants answer."""

from typing import Any

from examples.preset import MISSING, SCORES, Preset, Row, watched

USUAL = ("baseline", "full")  # compared by default


def without(*terms: str) -> dict[str, Any]:
    """Return settings that leave terms out."""
    return {f"term_weights.{term}": 0.0 for term in terms}


NO_MASKS, NO_TEXT = {"guide": "none", **without("coupling", "mask")}, {"captions": "off"}

# Settings that a variant replaces on the command line. Variants with equal settings share a run.
VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": NO_MASKS | NO_TEXT,
    "masks": NO_TEXT,
    "text": NO_MASKS,
    "full": {},
    "full-predicted": {"guide": "predicted"},
    "full-unguided": {"guide": "none"},
    "full-without-coupling": without("coupling"),
    "full-without-alignment": {"captions": "required", **without("alignment")},
    "full-without-identity-tokens": without("token_identity"),
    "full-one-scale": {"scales": (1,)},
    "captions-shuffled": {"captions": "required", "shuffled_captions": True},
    "masks-shuffled": {"masks": "shuffled"},
}

COLUMNS = {"temperature": watched("temperature", digits=3), "mask weight": watched("mask_weight", digits=2)}

PRESETS: dict[str, Preset] = {
    "modules": Preset(
        "Modules",
        "What do masks and captions add to images?",
        (Row("images", "baseline"), Row("+ masks", "masks"), Row("+ captions", "text"), Row("+ both", "full")),
        (*SCORES, "CPU minutes"),
    ),
    "guide": Preset(
        "Guide",
        "Under which mask should an image be read?",
        (Row("none", "full-unguided"), Row("predicted", "full-predicted"), Row("given", "full")),
        (*SCORES, "mask weight"),
        axis="mask",
    ),
    "terms": Preset(
        "Terms",
        "What does the full model lose without one of its terms?",
        (
            Row("all", "full"),
            Row("no alignment", "full-without-alignment"),
            Row("no identity tokens", "full-without-identity-tokens"),
            Row("no coupling", "full-without-coupling"),
            Row("one scale", "full-one-scale"),
        ),
        SCORES,
    ),
    "content": Preset(
        "Content",
        "Is it the content of captions and masks that helps?",
        (
            Row("unchanged", "full"),
            Row("shuffled captions", "captions-shuffled"),
            Row("shuffled masks", "masks-shuffled"),
        ),
        SCORES,
    ),
    "missing": MISSING,
}
