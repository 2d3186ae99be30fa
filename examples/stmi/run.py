"""A training run: its model, losses and optimizer, how they start, and what a checkpoint holds of them."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from examples.stmi.build import build_model, build_tokenizer
from examples.stmi.evaluate import choose_device
from examples.stmi.model import STMI, STMILoss
from examples.stmi.settings import Settings
from examples.towers.pretrained import PretrainedBackbone, load_pretrained, pretrained_towers
from examples.towers.text import Tokenizer
from stmi_layers.backbones import parameter_groups
from stmi_layers.training.checkpoint import load_weights
from stmi_layers.training.dataset import MultiModalDataset

# Backbones that are filled from a file.
PRETRAINED = ("open_clip", "timm")


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
    if pretrained:
        check_weights(settings)
    check_cameras(settings, dataset)
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
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    optimizer = kind(optimizer_groups(settings, model, loss), weight_decay=settings.weight_decay)
    return Run(settings, tokenizer, model, loss, optimizer, loaded=loaded)


def check_weights(settings: Settings) -> None:
    """Refuse to start pretrained towers from nothing, unless that is asked for.

    Raises:
        ValueError: when there are no weights, and --random-weights does not ask for random ones, or does so besides.
        FileNotFoundError: when there is no file of weights.
    """
    by_clip = settings.text_encoder == "clip" and settings.captions != "off"
    if settings.weights is not None and settings.random_weights:
        raise ValueError(f"choose one of --weights and --random-weights; received both, --weights {settings.weights}")
    if settings.weights is not None and not settings.weights.is_file():
        raise FileNotFoundError(f"--weights must be a file; {settings.weights} is none")
    if settings.weights is None and not settings.random_weights and (settings.backbone in PRETRAINED or by_clip):
        raise ValueError(
            f"{settings.architecture} needs pretrained weights: give their file by --weights, or ask for random ones "
            "by --random-weights, which is good for trying a run out and for no result"
        )


def check_cameras(settings: Settings, dataset: MultiModalDataset) -> None:
    """An embedding of a camera that is in no training image would never learn, one left out would be a mean.

    Raises:
        ValueError: when the cameras with an embedding are not those of the training split.
    """
    there = sorted({item.camera for item in dataset.items})
    if settings.camera_embedding and sorted(settings.camera_embedding) != there:
        raise ValueError(
            f"camera_embedding must name the cameras of the training split, {' '.join(map(str, there))}; received "
            f"{' '.join(map(str, settings.camera_embedding))} (--camera-embedding)"
        )


def load_towers(settings: Settings, model: STMI) -> str:
    """Fill pretrained towers from the file, and say what became of it."""
    if settings.weights is None:
        towers = pretrained_towers(model)
        start = "starts" if len(towers) == 1 else "start"
        what = f"{' and '.join(towers)} of {settings.architecture} {start} from random weights"
        return f"{what} (--random-weights)" if towers else ""
    reports = load_pretrained(
        model, settings.weights, old_grid=settings.weights_grid, trust_pickle=settings.trust_pickle
    )
    return "\n".join(f"{tower}: {report}" for tower, report in reports.items())


def optimizer_groups(settings: Settings, model: STMI, loss: nn.Module) -> list[dict[str, Any]]:
    """New modules, backbone and modulation strengths, each with its own learning rate; a frozen tower is in none."""
    # Embeddings of cameras are around a pretrained tower: they are new.
    backbone = model.get_submodule("backbone")
    if isinstance(backbone, PretrainedBackbone):
        backbone = backbone.get_submodule("tokens.tower")
    groups = parameter_groups(model, backbone=backbone)
    new, pretrained, strengths = (
        [parameter for parameter in parameters if parameter.requires_grad]
        for parameters in ([*groups["rest"], *loss.parameters()], groups["backbone"], groups["strengths"])
    )
    return [
        {"params": new, "initial_lr": settings.learning_rate},
        {"params": pretrained, "initial_lr": settings.backbone_learning_rate},
        {"params": strengths, "initial_lr": settings.strength_learning_rate, "weight_decay": 0.0},
    ]
