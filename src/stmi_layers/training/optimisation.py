"""Optimizer, learning rate, clipping, and the refusal of losses that are not finite."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stmi_layers.training.messages import shorten
from stmi_layers.training.objective import refuse_unknown
from stmi_layers.training.record import Item
from stmi_layers.training.schedule import Schedule

NEW = "new"


def build_optimizer(
    model: nn.Module, groups: dict[str, list[nn.Parameter]], objective: nn.Module, schedule: Schedule
) -> torch.optim.Optimizer:
    """Build the optimizer of a run: the groups of the model, those of the objective joined to "new", which is first.

    Args:
        model: the module that is trained.
        groups: its parameters by group, as `ReIDModel.parameter_groups()` returns them.
        objective: module whose parameters join the group "new".
        schedule: kind of optimizer, rates and decay.

    Raises:
        ValueError: when a trainable parameter of `model` is in no group or in several, or `schedule` names an unknown
            group.
    """
    groups = {NEW: [], **groups}
    groups[NEW] = [*groups[NEW], *objective.parameters()]
    check_groups(model, groups)
    refuse_unknown("rates", schedule.rates, groups)
    refuse_unknown("no_decay", schedule.no_decay, groups)
    settings: list[dict[str, Any]] = [
        {
            "params": [parameter for parameter in parameters if parameter.requires_grad],
            "initial_lr": schedule.rates.get(name, schedule.learning_rate),
            **({"weight_decay": 0.0} if name in schedule.no_decay else {}),
        }
        for name, parameters in groups.items()
    ]
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=schedule.learning_rate, momentum=0.9, weight_decay=schedule.weight_decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[schedule.optimizer]
    return kind(settings, weight_decay=schedule.weight_decay)


def check_groups(model: nn.Module, groups: dict[str, list[nn.Parameter]]) -> None:
    """Refuse groups that leave out a trainable parameter of `model`, or hold one twice."""
    counts: dict[int, int] = {}
    for parameters in groups.values():
        for parameter in parameters:
            counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    wrong = {
        name: counts.get(id(parameter), 0)
        for name, parameter in model.named_parameters()
        if counts.get(id(parameter), 0) > 1 or (parameter.requires_grad and id(parameter) not in counts)
    }
    if wrong:
        shown = [f"{name} ({count} times)" for name, count in wrong.items()]
        raise ValueError(
            f"parameter_groups() must hold every trainable parameter of the model once; {len(wrong)} differ: "
            f"{shorten(shown)}"
        )


def rate(progress: float, warmup: float) -> float:
    """Return the factor of the learning rate at `progress` (0 to 1): linear up to `warmup`, then a cosine down to 0.1.

    Examples:
        >>> rate(0.05, warmup=0.1), rate(0.1, warmup=0.1), round(rate(1.0, warmup=0.1), 6)
        (0.5, 1.0, 0.1)
    """
    if progress < warmup or warmup >= 1:
        return progress / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def set_rate(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Give every group its learning rate times `scale`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * scale


def gradient_norm(parameters: Sequence[nn.Parameter], clip_norm: float | None) -> Tensor:
    """Return the norm of the gradient, on its device, and scale gradients down to `clip_norm` where they are longer."""
    return nn.utils.clip_grad_norm_(parameters, math.inf if clip_norm is None else clip_norm)


class Ledger:
    """Losses and gradient norms of the steps of an epoch, read from the device every `every` steps.

    Reading makes the host wait for the device, so that an asynchronous device is read seldom. A weight that becomes
    NaN in between reaches no checkpoint, because the ledger is read before a checkpoint is written.

    Args:
        every: steps between readings.
        items: items of the dataset, for the message.
        kept: text that says what is kept if the run ends here, for the message.
        epoch: number of the epoch, from 1 on, for the message.
    """

    def __init__(self, every: int, items: Sequence[Item], kept: str, epoch: int) -> None:
        self.every, self.items, self.kept, self.epoch = every, items, kept, epoch
        self.losses: list[float] = []
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self._pending: list[tuple[Tensor, list[str]]] = []
        self._scalars: list[Tensor] = []

    def add(self, loss: Tensor, parts: dict[str, Tensor], norm: Tensor, indices: Tensor) -> None:
        """Note a step: its loss, the parts of the loss by name, the gradient's norm, and the indices of its items.

        Raises:
            FloatingPointError: when it is time to read, and a loss or a norm is not finite.
        """
        self._pending.append((indices, list(parts)))
        self._scalars += [value.detach() for value in (loss, norm, *parts.values())]
        if len(self._pending) >= self.every:
            self.read()

    def read(self) -> None:
        """Read what has been noted.

        Raises:
            FloatingPointError: naming the epoch, the step, its items, what is kept, and what to change.
        """
        values = iter(torch.stack([value.float() for value in self._scalars]).tolist() if self._scalars else [])
        for indices, names in self._pending:
            loss, norm = next(values), next(values)
            parts = {name: next(values) for name in names}
            self._refuse_nan(loss, norm, parts, indices)
            self.losses.append(loss)
            for name, value in parts.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1
        self._pending, self._scalars = [], []

    def _refuse_nan(self, loss: float, norm: float, parts: dict[str, float], indices: Tensor) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = f"the norm of the gradient is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        wrong = [name for name, value in parts.items() if not math.isfinite(value)]
        where = f" (in {', '.join(wrong)})" if wrong else ""
        items = [self.items[index].name for index in indices.tolist()]
        raise FloatingPointError(
            f"{what}{where} in epoch {self.epoch}, step {len(self.losses) + 1}, items {shorten(items)}; "
            f"{self.kept}. Lower learning_rate or the rates of the schedule, or check these items"
        )

    def means(self) -> dict[str, float]:
        """Return the mean of every part over the steps that had it."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}
