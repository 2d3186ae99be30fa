"""Variants of MambaPro for `compare`, and presets: questions that some of the variants answer.

Prompts need a pretrained tower. With the small vision transformer, variants with and without prompts are the same run.
"""

from typing import Any

from examples.preset import MISSING, SFM, STRENGTHS, TIMED_SCORES, Preset, Row

USUAL = ("baseline", "full")  # compared by default

PLAIN: dict[str, Any] = {"aggregation": "none"}

# Settings that a variant replaces on the command line. Variants with equal settings share a run.
VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {"adapters": False, "num_prompts": 0} | PLAIN,
    "adapters": {"num_prompts": 0} | PLAIN,
    "prompts": {"adapters": False} | PLAIN,
    "adapters+prompts": PLAIN,
    "full": {},
    "full-random-start": {"zero_init": False},
    "full-zero-start": {"zero_init": True},
    "full-trained-tower": {"freeze": False},
    "full-single": {"supervision": "single"},
    "full+sfm": {"masks": "given"},
}

COLUMNS = STRENGTHS

PRESETS: dict[str, Preset] = {
    "modules": Preset(
        "Modules",
        "What does each module add?",
        (
            Row("baseline", "baseline"),
            Row("PFA", "adapters"),
            Row("PFA + SRP", "adapters+prompts"),
            Row("PFA + SRP + readout", "full"),
        ),
        TIMED_SCORES,
    ),
    "start": Preset(
        "Start of the adapters",
        "Should adapters leave the tower as it is at first, or disturb it, as in the research code?",
        (Row("at 0", "full-zero-start"), Row("at random", "full-random-start")),
        TIMED_SCORES,
    ),
    "tower": Preset(
        "Tower",
        "Is a frozen tower with adapters as good as a trained tower?",
        (Row("frozen", "full"), Row("trained", "full-trained-tower")),
        TIMED_SCORES,
    ),
    "sfm": SFM,
    "missing": MISSING,
}
