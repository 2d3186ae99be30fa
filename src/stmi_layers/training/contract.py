"""The contract between a model and training: what a model receives, what it returns, what it tells about itself.

Whatever keeps it is trained by `fit`, evaluated by `evaluate` and described by `describe`; nothing has to be inherited.
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
        cameras: numbers of the cameras in the training split, rising; empty where the set numbers none.
        views: numbers of the viewpoints in the training split, rising; empty where the set numbers none.
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
        images: values in [0, 1], not normalised: the tower knows its mean and deviation. Absent ones are 0.
        masks: True = foreground; None where the set is read without masks.
        present: True where the modality of the sample is there; None where all are, which is known on the host.
        labels: identities as 0 ... n-1.
        cameras: number of the camera, -1 where there is none.
        views: number of the viewpoint, -1 where there is none.
        scenes: number of the scene, -1 where there is none.
        texts: what `ReIDModel.encode` made of the captions; None for a model that reads none.
        has_text: True where the sample has a caption.
        indices: places of the samples in their dataset.
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
        features: descriptors by name, (batch width) each: what is supervised, and what can be retrieved with.
        terms: scalars by name that the model adds to the objective, such as alignment or reconstruction; {} in
            evaluation. A term that compares the samples of a batch takes its rows through
            [`whole_batch`][stmi_layers.training.distributed.whole_batch], so that it sees those of all processes; one
            that averages over samples of which some take no part, takes its mean through
            [`whole_mean`][stmi_layers.training.distributed.whole_mean].
        rows: by name of a feature, True for the rows that are supervised, (batch); a name left out means all.
    """

    features: dict[str, Tensor]
    terms: Mapping[str, Tensor] = {}
    rows: Mapping[str, Tensor] = {}


@runtime_checkable
class ReIDModel(Protocol):
    """Protocol of a model that can be trained and evaluated: an `nn.Module` with these members.

    Attributes:
        widths: width of every feature in `Outputs.features`, by name, in the order they are reported in.
        headline: name of the descriptor that is scored first: a feature, several joined as in "first+second", or "all".
    """

    widths: dict[str, int]
    headline: str

    def __call__(self, batch: Batch, /) -> Outputs:
        """Features of the samples; in training mode also the terms of the objective."""
        ...

    def encode(self, captions: Sequence[tuple[str, ...]], /) -> Tensor | None:
        """Captions as a tensor with a row per sample, on the CPU, or None for a model that reads none.

        Called once for all samples of a dataset, before its first epoch, in evaluation mode and without gradient: the
        place for a tokenizer, and for a frozen text tower. The captions of a sample are (): none, one string: of all
        its modalities together, or one string per modality, "" where it is missing.
        """
        ...

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All parameters by group, each with a learning rate of its own in `Schedule.rates`, "new" with the default.

        Frozen parameters may be among them; they are passed over.
        """
        ...

    def watch(self) -> dict[str, float]:
        """Numbers worth a curve over the epochs, such as strengths or gates; {} where there are none."""
        ...
