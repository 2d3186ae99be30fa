"""Objective of training: a re-identification loss per feature, and the terms a model adds."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from stmi_layers._precision import at_least_float32
from stmi_layers.losses import ReIDLoss
from stmi_layers.training.contract import Outputs
from stmi_layers.training.schedule import Schedule


class Objective(nn.Module):
    r"""Weighted sum of the losses on all features and of the model's own terms.

    $$\sum_f \text{feature\_weights}_f \cdot \mathcal{L}_g\big(\text{features}_f[\text{rows}_f]\big)
    + \sum_t \text{term\_weights}_t \cdot \text{terms}_t$$

    $\mathcal{L}_g$ is [`ReIDLoss`][stmi_layers.losses.ReIDLoss], one per feature, whose heads are learned: give the
    parameters of the objective to the optimizer. Everything is computed in at least float32. A feature with fewer than
    two supervised rows has no batch statistic and contributes 0.

    Args:
        widths: width of every feature, by name.
        num_identities: number of identities in the training split.
        schedule: weights, label smoothing and margin.

    Raises:
        ValueError: when a feature has an unusable name, or a weight is given for an unknown feature.
    """

    def __init__(self, widths: Mapping[str, int], num_identities: int, schedule: Schedule) -> None:
        super().__init__()
        unusable = [
            name for name in widths if not name.isidentifier() or name == "all" or hasattr(nn.ModuleDict(), name)
        ]
        if unusable or not widths:
            raise ValueError(
                "widths must name at least one feature, each by a word of letters, digits and underscores that is "
                f'neither "all" nor a method of dict; received {unusable or dict(widths)}'
            )
        refuse_unknown("feature_weights", schedule.feature_weights, widths)
        self.widths, self.feature_weights = dict(widths), dict(schedule.feature_weights)
        self.term_weights = dict(schedule.term_weights)
        self.losses = nn.ModuleDict(
            {
                name: ReIDLoss(
                    width,
                    num_identities,
                    smoothing=schedule.smoothing,
                    margin=schedule.margin,
                    identity_weight=schedule.identity_weight,
                )
                for name, width in widths.items()
            }
        )

    def forward(self, outputs: Outputs, labels: Tensor) -> dict[str, Tensor]:
        """Return the weighted parts of the sum by the names of features and terms; all of them are scalars."""
        parts = {name: self._loss(name, outputs, labels) for name in self.losses}
        return parts | {
            name: self.term_weights.get(name, 1.0) * at_least_float32(term) for name, term in outputs.terms.items()
        }

    def _loss(self, name: str, outputs: Outputs, labels: Tensor) -> Tensor:
        feature, rows = at_least_float32(outputs.features[name]), outputs.rows.get(name)
        if rows is not None:
            feature, labels = feature[rows], labels[rows]
            if len(feature) < 2:
                return 0 * feature.sum()
        return self.feature_weights.get(name, 1.0) * self.losses[name](feature, labels)

    def check(self, outputs: Outputs, batch: int) -> None:
        """Check the outputs for a batch against the contract.

        Raises:
            ValueError: when features, rows or terms differ from `widths`, the contract or `term_weights`.
        """
        expected = {name: (batch, width) for name, width in self.widths.items()}
        received = {name: tuple(feature.shape) for name, feature in outputs.features.items()}
        if received != expected:
            raise ValueError(
                f"features must have the names and shapes of the model's widths, {expected}; received {received}"
            )
        refuse_unknown("rows", outputs.rows, self.widths)
        refuse_unknown("term_weights", self.term_weights, outputs.terms)
        if both := sorted(self.widths.keys() & outputs.terms.keys()):
            raise ValueError(f"terms must not have the names of features; received {both}")
        for name, rows in outputs.rows.items():
            if rows.dtype != torch.bool or tuple(rows.shape) != (batch,):
                raise ValueError(f"rows[{name!r}] must be Bool, ({batch},); received {rows.dtype}, {tuple(rows.shape)}")
        for name, term in outputs.terms.items():
            if term.dim():
                raise ValueError(f"terms[{name!r}] must be a scalar; received shape {tuple(term.shape)}")


def refuse_unknown(what: str, names: Collection[str], known: Collection[str]) -> None:
    """Refuse names that are not `known`.

    Raises:
        ValueError: naming `what`, the unknown names, and the known ones.
    """
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"{what} must be by names among {sorted(known)}; received {unknown}")
