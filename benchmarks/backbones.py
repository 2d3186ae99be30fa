"""Vision transformers of timm with SFM, from images and masks to tokens, against the same networks without SFM."""

import copy
import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.attention import as_written
from benchmarks.runner import Comparison, Contender, Outputs, Target
from examples.optional import import_library
from stmi_layers.backbones import TokenBackbone, modulate
from stmi_layers.kernels import native

SIZE = (256, 128)
# Limits: forward pass of one image, forward pass of eight, training step of eight.
LIMITS = {"vit_small_patch16_224": (1.04, 1.03, 1.03), "vit_base_patch16_224": (1.02, 1.01, 1.01)}
NAMES = {"vit_small_patch16_224": "ViT-S/16", "vit_base_patch16_224": "ViT-B/16"}


def comparisons(device: str) -> Iterator[Comparison]:
    """Compare forward passes and training steps."""
    for architecture, (single, forward, step) in LIMITS.items():
        pair = Pair(architecture, device)
        for batch, limit in ((1, single), (8, forward)):
            yield pair.comparison(f"forward, batch {batch}", batch, Pair.forward, limit, threads=1)
        yield pair.comparison("training step, batch 8", 8, Pair.step, step, threads=1)


class Pair:
    """A network, and a copy with SFM in a `TokenBackbone`."""

    def __init__(self, architecture: str, device: str, *, compiled: bool = False) -> None:
        timm = import_library("timm", "timm")
        torch.manual_seed(0)
        plain = timm.create_model(architecture, img_size=SIZE, num_classes=0).to(device)
        ours = TokenBackbone(modulate(copy.deepcopy(plain)))
        self.modules: dict[str, Any] = {"plain": plain, "ours": ours}
        if device == "cpu" and not compiled and native.is_built():
            self.modules["native"] = TokenBackbone(modulate(copy.deepcopy(plain), implementation="native"))
        self.name, self.device = NAMES[architecture], device
        self.plain: Any = plain.forward_features
        self.ours: Any = ours
        if compiled:
            self.plain, self.ours = (torch.compile(part, dynamic=False) for part in (self.plain, ours))

    def comparison(
        self, what: str, batch: int, run: Callable[..., Outputs], limit: float, *, threads: int
    ) -> Comparison:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch, 3, *SIZE, generator=generator).to(self.device)
        masks = torch.zeros(batch, *SIZE, dtype=torch.bool, device=self.device)
        masks[:, 32:224, 32:96] = True
        calls: dict[str, Callable[[], Tensor]] = {
            self.name: lambda: self.plain(images),
            "ours": lambda: _joined(self.ours(images, masks)),
        }
        if "native" in self.modules:
            calls["ours, native"] = lambda: _joined(self.modules["native"](images, masks))
        # The features of forward passes are checked; the training step computes the same features.
        expected = functools.cache(lambda: self._expected(images, masks)) if run is Pair.forward else None
        contenders = {
            name: Contender(partial(run, self, call), None if name == self.name else expected)
            for name, call in calls.items()
        }
        return Comparison(f"SFM {self.name} at 256 x 128, {what}", contenders, (Target("time", limit),), threads)

    def _expected(self, images: Tensor, masks: Tensor) -> Outputs:
        """Return the tokens when attention computes its equations as written."""

        def attention(*arguments: Tensor, scale: float, implementation: str) -> Tensor:
            return as_written(*arguments)  # it has the same scale

        with mock.patch("stmi_layers.backbones.mixin.modulated_attention", attention):
            return self.forward(lambda: _joined(self.modules["ours"](images, masks)))

    def forward(self, call: Callable[[], Tensor]) -> Outputs:
        self._train(False)
        with torch.inference_mode():
            return (call(),)

    def step(self, call: Callable[[], Tensor]) -> Outputs:
        self._train(True)
        loss = call().square().mean()
        loss.backward()
        return (loss.detach(),)

    def _train(self, mode: bool) -> None:
        for module in self.modules.values():
            if module.training != mode:
                module.train(mode)


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])
