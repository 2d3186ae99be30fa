"""Scores of trained runs without each of their modalities in turn: the cost of a missing modality at test time."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from examples.comparison_table import column_of
from examples.preset import Column, Result, Row
from examples.robustness import score_under
from examples.run import Run


def without_each(run: Run, checkpoints: Sequence[Path], results: Sequence[Result]) -> list[Result]:
    """Add to the results of a row, one per checkpoint, the scores without each modality under "without"."""
    names = run.data.modalities
    if len(names) < 2:
        raise ValueError(f"modalities must be at least two for one to be missing; received {', '.join(names)}")
    kept = {name: tuple(other for other in names if other != name) for name in names}
    return [
        result
        | {
            "without": {
                name: score_under(checkpoint, Row("", "", "", keep), run.machine) for name, keep in kept.items()
            }
        }
        for checkpoint, result in zip(checkpoints, results, strict=True)
    ]


def missing_rule(run: Run) -> str:
    """Describe training and test of a table of these columns."""
    dropout = run.schedule.modality_dropout
    trained = f"each modality dropped with probability {dropout:g}" if dropout else "all modalities"
    return (
        f"Runs trained with {trained}, scored by mAP with all, and again without the one that the column names: it is "
        "missing in every query and every gallery entry."
    )


def missing_columns(modalities: Sequence[str]) -> Mapping[str, Column]:
    """Return the columns of the mAP with all modalities and without each modality."""
    whole = column_of("mAP", {})
    return {"mAP": whole, **{f"mAP without {name}": _without(whole, name) for name in modalities}}


def _without(column: Column, name: str) -> Column:
    return Column(lambda run: column.value(run["without"][name]), column.digits)
