"""A training run: its model, losses and optimizer, how they start, and what a checkpoint holds of them."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from examples.stmi.build import build_model, build_tokenizer
from examples.stmi.checkpoint import load_weights
from examples.stmi.data import MultiModalDataset
from examples.stmi.evaluate import choose_device
from examples.stmi.model import STMI, STMILoss
from examples.stmi.pretrained import load_pretrained, pretrained_towers
from examples.stmi.settings import Settings
from examples.stmi.text import Tokenizer
from stmi_layers.backbones import parameter_groups


@dataclass
class Run:
    """What changes during training, and all it takes to continue."""

    settings: Settings
    tokenizer: Tokenizer | None
    model: STMI
    loss: STMILoss
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    loaded: str = ""
    """What became of the pretrained weights, when the run started from some."""

    def state(self) -> dict[str, Any]:
        return {
            "settings": self.settings.to_dict(),
            "words": self.words(),
            "model": self.model.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        if self.words() != state["words"]:
            raise ValueError("the checkpoint was made with captions of other words; restore those, or train anew")
        load_weights(self.model, state["model"], "model")
        load_weights(self.loss, state["loss"], "loss")
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.history = state["epoch"], state["history"]

    def words(self) -> list[str] | None:
        return None if self.tokenizer is None else list(self.tokenizer.words)


def start(settings: Settings, dataset: MultiModalDataset, *, pretrained: bool = True) -> Run:
    """A run before its first epoch; equal settings and data give equal weights."""
    torch.manual_seed(settings.seed)
    captions = [item.caption or "" for item in dataset.items]
    tokenizer = build_tokenizer(settings, captions)
    if tokenizer is not None and (overflow := tokenizer.describe_overflow(captions)):
        warnings.warn(overflow, stacklevel=2)
    device = choose_device(settings.device)
    model = build_model(settings, tokenizer)
    loaded = load_towers(settings, model) if pretrained else ""
    model.to(device)
    widths = model.feature_widths(len(settings.modalities))
    loss = STMILoss(widths, len(dataset.identities), identity_weight=settings.identity_weight).to(device)
    optimizer = torch.optim.AdamW(optimizer_groups(settings, model, loss), weight_decay=settings.weight_decay)
    return Run(settings, tokenizer, model, loss, optimizer, loaded=loaded)


def load_towers(settings: Settings, model: STMI) -> str:
    """Fill pretrained towers from the file, and say what became of it."""
    if settings.weights is None:
        if towers := pretrained_towers(model):
            warnings.warn(
                f"{' and '.join(towers)} of {settings.architecture} {'starts' if len(towers) == 1 else 'start'} "
                "from random weights, for want of --weights",
                stacklevel=3,
            )
        return ""
    reports = load_pretrained(
        model, settings.weights, old_grid=settings.weights_grid, trust_pickle=settings.trust_pickle
    )
    return "\n".join(f"{tower}: {report}" for tower, report in reports.items())


def optimizer_groups(settings: Settings, model: STMI, loss: nn.Module) -> list[dict[str, Any]]:
    """New modules, backbone and modulation strengths, each with its own learning rate; a frozen tower is in none."""
    groups = parameter_groups(model, backbone=model.get_submodule("backbone"))
    new, backbone, strengths = (
        [parameter for parameter in parameters if parameter.requires_grad]
        for parameters in ([*groups["rest"], *loss.parameters()], groups["backbone"], groups["strengths"])
    )
    return [
        {"params": new, "initial_lr": settings.learning_rate},
        {"params": backbone, "initial_lr": settings.backbone_learning_rate},
        {"params": strengths, "initial_lr": settings.strength_learning_rate, "weight_decay": 0.0},
    ]
