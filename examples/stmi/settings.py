"""Everything that defines a run, in one flat record: the command line, the checkpoint and the comparison share it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from examples.stmi.cnn import ConvolutionalBackbone
from examples.stmi.model import STMI, Backbone, Fusion, build_stmi
from examples.stmi.text import CaptionEncoder, Vocabulary
from examples.stmi.vit import VisionTransformer

Masks = Literal["given", "ones", "shuffled", "blank", "none"]


@dataclass(frozen=True)
class Settings:
    """Train STMI, or a part of it, and evaluate what it retrieves."""

    data: Path
    """Folder set: DATA/train/RGB/000028_cam1_0_02.jpg, the same names in the other modalities and in mask/."""
    out: Path
    """Where checkpoint, metrics, logs and pictures go."""
    modalities: tuple[str, ...] = ("RGB", "NI", "TI")
    """Folders to read, one image of each per sample."""
    query_cameras: tuple[int, ...] = ()
    """Cameras of the test split that query; the others are the gallery. Without it every image is both."""
    missing_modality: Literal["error", "absent"] = "error"
    """What to do about an image missing in some modality folder."""
    damaged: Literal["error", "skip"] = "error"
    """What to do about files that cannot be decoded; skipped ones are named."""
    captions: Literal["off", "required", "optional"] = "off"
    """Text prior from DATA/text/*.json; "optional" marks a missing caption with a token of its own."""

    image_size: tuple[int, int] = (64, 64)
    """Height and width the images are resized to."""
    masks: Masks = "given"
    """What steers the attention: the masks given, all-ones masks, those of other images, nothing; "blank" gives the
    network no mask and paints the background of its input grey."""
    backbone: Literal["vit", "cnn"] = "vit"
    """The vision transformer with SFM, or a small convolutional network to compare with, which no mask steers."""
    patch_size: int = 8
    """Side of a patch in pixels."""
    dim: int = 128
    """Width of all tokens."""
    depth: int = 2
    """Blocks of the vision transformer."""
    stem_width: int = 64
    """Channels after the first convolution of the stem."""
    num_heads: int = 4
    """Heads of every attention."""
    strength: float = 0.5
    """Initial alpha and beta of SFM. From scratch there is no pretrained attention to be gentle with."""
    foreground_threshold: float = 0.5
    """Share of a patch that the mask has to cover for it to count as foreground; 1 keeps mixed patches out."""
    per_head: bool = False
    """Learn alpha and beta per head instead of per block."""
    perturbation: float = 0.0
    """Probability, in training, that a background token counts as foreground."""
    reallocation: bool = True
    """STR and everything behind it; without it the descriptor is G."""
    fusion: Fusion = "hypergraph"
    """How the semantic tokens interact: CHI, or what Table 4 puts in its place."""
    num_tokens: int = 4
    """K, semantic tokens per modality."""
    threshold: float = 0.5
    """Cosine similarity from which on two semantic tokens share a hyperedge."""

    epochs: int = 30
    """Passes over the training images."""
    identities_per_batch: int = 16
    """P of the P x K sampler."""
    images_per_identity: int = 4
    """K of the P x K sampler."""
    learning_rate: float = 2e-3
    """Of everything that is neither backbone nor strength."""
    backbone_learning_rate: float = 2e-3
    """Of the backbone without the strengths; 3.5e-6 is the paper's for a pretrained one."""
    strength_learning_rate: float = 1e-2
    """Of alpha and beta, which are two numbers per block and need larger steps."""
    weight_decay: float = 0.05
    """Of AdamW; the strengths have none."""
    warmup_epochs: float = 4.0
    """Epochs in which the learning rate rises; then it falls along a cosine to a tenth."""
    identity_weight: float = 1.0
    """Of the cross-entropy against the triplet loss."""
    padding: float = 10 / (256 * 128) ** 0.5
    """Border from which the training crop is taken, as a share of sqrt(height * width); 10 pixels at 256 x 128."""
    erasing: float = 0.0
    """Probability of random erasing per modality; the public benchmarks use 0.5."""

    descriptor: Literal["auto", "G", "U", "T", "all"] = "auto"
    """What the headline metrics and the retrieval picture use: "auto" is U, or G without STR."""
    evaluate_every: int = 10
    """Epochs between evaluations; the last epoch is always evaluated, and it is the result."""
    seed: int = 0
    """Of the weights, the sampler and the augmentation."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; "auto" takes CUDA when there is one."""
    amp: bool = True
    """bfloat16 autocast on CUDA devices that have it."""
    workers: int = 0
    """Loader processes; the result does not depend on their number."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch. Runs are reproducible for an equal number of threads."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.evaluate_every) < 1:
            received = f"epochs={self.epochs}, evaluate_every={self.evaluate_every}"
            raise ValueError(f"epochs and evaluate_every must be at least 1; received {received}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they go into the checkpoint and into settings.json."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Settings":
        """The inverse of `to_dict`; lists, as JSON has them, become tuples again.

        Raises:
            ValueError: when there are settings this version does not know.
        """
        unknown = sorted(values.keys() - {field.name for field in dataclasses.fields(Settings)})
        if unknown:
            raise ValueError(f"the run is of another version of this trainer: it sets {unknown}; train anew")
        tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **tuples, "data": Path(values["data"]), "out": Path(values["out"])})

    def differences(self, other: "Settings") -> list[str]:
        """What differs, one line per field; where a run writes and how it is computed does not count."""
        free = {"out", "device", "amp", "workers", "threads", "evaluate_every"}
        return [
            f"{field.name}: {getattr(other, field.name)} -> {getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if field.name not in free and getattr(self, field.name) != getattr(other, field.name)
        ]


def build_model(settings: Settings, vocabulary: Vocabulary | None) -> STMI:
    """The model that `settings` describe; `vocabulary` is None when there are no captions."""
    backbone: Backbone
    if settings.backbone == "cnn":
        backbone = ConvolutionalBackbone(settings.image_size, dim=settings.dim)
    else:
        backbone = VisionTransformer(
            settings.image_size,
            patch_size=settings.patch_size,
            dim=settings.dim,
            depth=settings.depth,
            num_heads=settings.num_heads,
            stem_width=settings.stem_width,
            strength=settings.strength,
            foreground_threshold=settings.foreground_threshold,
            per_head=settings.per_head,
            perturbation=settings.perturbation,
        )
    text_encoder = None
    if vocabulary is not None:
        text_encoder = CaptionEncoder(len(vocabulary), vocabulary.length, settings.dim, num_heads=settings.num_heads)
    return build_stmi(
        backbone,
        len(settings.modalities),
        reallocation=settings.reallocation,
        fusion=settings.fusion,
        num_tokens=settings.num_tokens,
        num_heads=settings.num_heads,
        threshold=settings.threshold,
        text_encoder=text_encoder,
    )
