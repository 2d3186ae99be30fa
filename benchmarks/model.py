"""Whole networks: ViT-B/16 with and without SFM, and STMI against the three plain ViT passes that it contains."""

import copy
import functools
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.attention import as_written
from benchmarks.runner import Comparison, Contender, Outputs, Target
from examples.towers.vit import VisionTransformer
from stmi_layers import (
    CrossModalHypergraph,
    GlobalCrossAttention,
    ReIDLoss,
    SemanticTokenReallocation,
)

Features = Callable[[], list[Tensor]]
SIZE, DIM, HEADS, MODALITIES, IDENTITIES = (256, 128), 768, 12, 3, 171


def comparisons(device: str) -> Iterator[Comparison]:
    """Compare a training step of the backbone, then forward pass and training step of STMI."""
    problem = Problem(device, samples=2 if device == "cpu" else 64)
    expected = functools.cache(problem.training_step(with_attention(as_written, problem.modulated)).call)
    contenders = {"ViT": problem.training_step(problem.plain)}
    contenders["ours"] = problem.training_step(problem.modulated, expected)
    contenders["as written"] = problem.training_step(with_attention(as_written, problem.modulated), turns=1)
    yield Comparison("SFM ViT-B/16 at 256 x 128, training step", contenders, (Target("time", 1.01),))
    problem = Problem(device, samples=4 if device == "cpu" else 64)
    expected = functools.cache(problem.forward(with_attention(as_written, problem.whole)).call)
    limits = {"forward": 1.02, "training step": 1.02 if device == "cpu" else 1.06}
    for name, wrap in (("forward", problem.forward), ("training step", problem.training_step)):
        # The features of the forward pass are checked; the training step computes the loss of the same features.
        contenders = {
            "three ViT passes": wrap(problem.plain),
            "ours": wrap(problem.whole, expected if wrap == problem.forward else None),
        }
        yield Comparison(
            f"STMI, ViT-B/16, M = 3, {name}", contenders, (Target("time", limits[name]), Target("memory", 1.01))
        )


def with_attention(attention: Callable[..., Tensor], features: Features) -> Features:
    """Return the same features from a backbone with another attention."""

    def run() -> list[Tensor]:
        with mock.patch("stmi_layers.attention.modulated_attention", attention):
            return features()

    return run


class STMI(nn.Module):
    """Backbone, STR, CHI and readout, composed of the public layers (eq. 1-18)."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        first = SemanticTokenReallocation(DIM)
        self.backbone = backbone
        self.reallocations = nn.ModuleList(copy.deepcopy(first) for _ in range(MODALITIES))
        self.interaction = CrossModalHypergraph(DIM, MODALITIES * first.num_tokens)
        self.readout = GlobalCrossAttention(DIM)

    def forward(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return G and U, (batch modalities dim)."""
        patches, classes = self.backbone(images, masks)
        semantic = [read(tokens) for read, tokens in zip(self.reallocations, patches.unbind(dim=1), strict=True)]
        tokens = self.interaction(torch.stack(semantic, dim=1))
        return classes, self.readout(classes, tokens.flatten(1, 2))


class Problem:
    """Images, masks and networks; SFM changes no weight of the backbone."""

    def __init__(self, device: str, samples: int) -> None:
        torch.manual_seed(0)
        self.warm_up = device != "cpu"  # on a CPU nothing is compiled, and a call takes seconds
        self.images = torch.randn(samples, MODALITIES, 3, *SIZE, device=device)
        self.masks = torch.zeros(samples, MODALITIES, *SIZE, dtype=torch.bool, device=device)
        self.masks[..., 32:224, 32:96] = True
        self.labels = torch.arange(samples, device=device) // 2
        backbone = VisionTransformer(SIZE, patch_size=16, dim=DIM, depth=12, num_heads=HEADS, mlp_ratio=4.0)
        backbone.stem = nn.Sequential(nn.Conv2d(3, DIM, 16, stride=16))
        self.backbone = backbone.to(device)
        self.stmi = STMI(self.backbone).to(device)
        self.losses = nn.ModuleList(ReIDLoss(MODALITIES * DIM, IDENTITIES) for _ in range(2)).to(device)
        # Gradients are allocated beforehand, because they belong to the model, not to the step.
        for parameter in (*self.stmi.parameters(), *self.losses.parameters()):
            parameter.grad = torch.zeros_like(parameter)

    def plain(self) -> list[Tensor]:
        return [self.backbone(self.images)[1]]

    def modulated(self) -> list[Tensor]:
        return [self.backbone(self.images, self.masks)[1]]

    def whole(self) -> list[Tensor]:
        return list(self.stmi(self.images, self.masks))

    def forward(self, features: Features, expected: Callable[[], Outputs] | None = None) -> Contender:
        return Contender(functools.partial(self._forward, features), expected, warm_up=self.warm_up)

    @torch.no_grad()
    def _forward(self, features: Features) -> Outputs:
        return tuple(features())

    def training_step(
        self, features: Features, expected: Callable[[], Outputs] | None = None, turns: int | None = None
    ) -> Contender:
        return Contender(functools.partial(self._step, features), expected, turns=turns, warm_up=self.warm_up)

    def _step(self, features: Features) -> Outputs:
        """Run forward, loss and backward; an optimizer would cost all contenders the same."""
        found = features()
        pairs = zip(self.losses, found, strict=False)
        loss = torch.stack([criterion(feature.flatten(1), self.labels) for criterion, feature in pairs]).sum()
        loss.backward()
        return (loss.detach(), *(feature.detach() for feature in found))
