"""The contract between a model and training: what a model receives, what it returns, what it tells about itself.

A model that keeps the contract is trained by `fit`, evaluated by `evaluate` and described by `describe`. It need not
inherit from any class.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn


class Facts(NamedTuple):
    """Facts of the training set that a model may be built from; a checkpoint keeps them.

    Attributes:
        modalities: names of the modalities, in the order of the images.
        image_size: height and width of the images in pixels.
        num_identities: number of identities in the training split.
        cameras: numbers of the cameras in the training split, ascending; empty if the set has no camera numbers.
        views: numbers of the viewpoints in the training split, ascending; empty if the set has no viewpoint numbers.
        words: words of the training captions, most frequent first, ties in alphabetical order; empty without captions.
    """

    modalities: tuple[str, ...]
    image_size: tuple[int, int]
    num_identities: int
    cameras: tuple[int, ...] = ()
    views: tuple[int, ...] = ()
    words: tuple[str, ...] = ()


class Batch(NamedTuple):
    """Samples stacked along the first axis.

    Attributes:
        images: values in [0, 1]; the model normalises them by the mean and deviation of its tower. Absent images are 0.
        masks: True = foreground; None where the set is read without masks.
        present: True where a sample has the modality; None if all samples have all modalities.
        labels: identities as 0 ... n-1.
        cameras: number of the camera, -1 where there is none.
        views: number of the viewpoint, -1 where there is none.
        scenes: number of the scene, -1 where there is none.
        texts: captions as encoded by `ReIDModel.encode`; None for a model that reads no captions.
        has_text: True where the sample has a caption.
        indices: indices of the samples in their dataset.
    """

    images: Float[Tensor, "batch modalities 3 height width"]
    masks: Bool[Tensor, "batch modalities height width"] | None
    present: Bool[Tensor, "batch modalities"] | None
    labels: Int[Tensor, " batch"]
    cameras: Int[Tensor, " batch"]
    views: Int[Tensor, " batch"]
    scenes: Int[Tensor, " batch"]
    texts: Shaped[Tensor, "batch ..."] | None
    has_text: Bool[Tensor, " batch"]
    indices: Int[Tensor, " batch"]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """Return the same batch with all its tensors on `device`."""
        there = {name: part for name, part in self._asdict().items() if part is not None}
        return self._replace(**{name: part.to(device, non_blocking=non_blocking) for name, part in there.items()})


class Outputs(NamedTuple):
    """Result of a forward pass.

    Attributes:
        features: descriptors by name, (batch width) each. Training supervises them, and retrieval can use each.
        terms: scalars by name that the model adds to the objective, such as alignment or reconstruction; {} in
            evaluation. A term that compares the samples of a batch takes its rows through
            [`whole_batch`][stmi_layers.training.distributed.whole_batch], so that it sees the rows of all processes. A
            term that averages over only some of the samples takes its mean through
            [`whole_mean`][stmi_layers.training.distributed.whole_mean].
        rows: supervised rows by name of the feature, Bool (batch). Without an entry all rows are supervised.
    """

    features: dict[str, Tensor]
    terms: Mapping[str, Tensor] = {}
    rows: Mapping[str, Tensor] = {}


@runtime_checkable
class ReIDModel(Protocol):
    """Protocol of a model that can be trained and evaluated: an `nn.Module` with these members.

    Attributes:
        widths: width of every feature in `Outputs.features`, by name, in the order they are reported in.
        headline: name of the descriptor that stands for the model in reports: a feature, several joined as in
            "first+second", or "all".
    """

    widths: dict[str, int]
    headline: str

    def __call__(self, batch: Batch, /) -> Outputs:
        """Return the features of the samples; in training mode also the terms of the objective."""
        ...

    def encode(self, captions: Sequence[tuple[str, ...]], /) -> Tensor | None:
        """Encode captions as a tensor on the CPU with a row per sample; None for a model that reads no captions.

        Called once per dataset, before its first epoch, in evaluation mode and without gradient: the place for a
        tokenizer and for a frozen text tower. The captions of a sample are () without any, one string for all its
        modalities together, or one string per modality, "" where it is missing.
        """
        ...

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return all parameters by group.

        `Schedule.rates` sets the learning rate of a group; groups without an entry, such as "new", have the default.
        Frozen parameters may be listed; the optimizer skips them.
        """
        ...

    def watch(self) -> dict[str, float]:
        """Return numbers to plot over the epochs, such as strengths or gates; {} if the model has no such numbers."""
        ...
