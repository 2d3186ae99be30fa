"""Everything that defines a run, in one flat record: the command line, the checkpoint and the comparison share it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from examples.stmi.model import Fusion
from examples.towers.clip_text import Overflow

Masks = Literal["given", "ones", "empty", "eroded", "dilated", "shuffled", "blank", "blank+given", "none"]
Descriptor = Literal["auto", "G", "U", "T", "G+U", "G+T", "U+T", "all"]
RecipeName = Literal[
    "rgbnt201", "rgbnt100", "msvr310", "rgbnt201-research-code", "rgbnt100-research-code", "msvr310-research-code"
]
# Settings that change where and how a run is computed, and not what comes out.
FREE = {
    "recipe",
    "out",
    "device",
    "amp",
    "workers",
    "threads",
    "evaluate_every",
    "cache",
    "checkpointing",
    "trust_pickle",
}


@dataclass(frozen=True)
class Settings:
    """Train STMI, or a part of it, and evaluate what it retrieves."""

    data: Path
    """The set, in any layout that `python -m examples.prepare.inspect` recognises."""
    out: Path
    """Where checkpoint, metrics, logs and pictures go."""
    recipe: RecipeName | None = None
    """Take the values of a benchmark's recipe (examples/stmi/recipes) wherever the command line gives none."""
    modalities: tuple[str, ...] = ("RGB", "NI", "TI")
    """Folders to read, one image of each per sample."""
    query_cameras: tuple[int, ...] = ()
    """Cameras of the test split that query; the others are the gallery. Without it every image is both."""
    match: str | None = None
    """Column in which a match equals the query: identity by default, or one of DATA/items.csv."""
    drop: str | None = None
    """Column in which it must not equal it as well: camera by default, scene on MSVR310, or one of DATA/items.csv."""
    missing_modality: Literal["error", "absent", "skip"] = "error"
    """What to do about an image missing in some modality: train without this modality of the sample, or without the
    sample."""
    damaged: Literal["error", "skip"] = "error"
    """What to do about files that cannot be decoded; skipped ones are named."""
    captions: Literal["off", "required", "optional"] = "off"
    """Text prior from DATA/text/*.json; "optional" puts a learned vector where a caption is missing, and leaves that
    sample out of the loss on T."""
    text_encoder: Literal["words", "clip"] = "words"
    """What reads the captions: a small transformer learned here, or the frozen text tower of `architecture`."""
    caption_overflow: Overflow = "truncate"
    """Captions beyond the 77 tokens of CLIP: cut, or read in pieces whose features are averaged."""
    text_projection: bool = True
    """Learn a linear map behind the frozen text tower; without it the loss on T trains only its own classifier."""
    shuffled_captions: bool = False
    """Give every image the caption of another one, the same in every epoch: what is left is not what captions say."""

    image_size: tuple[int, int] = (64, 64)
    """Height and width the images are resized to."""
    masks: Masks = "given"
    """What steers the attention: the masks given, all-ones or empty ones, the given ones eroded or dilated by a 16th of
    the shorter side, those of other images, nothing; "blank" gives the network no mask and paints the background of
    its input grey, "blank+given" does both."""
    backbone: Literal["vit", "cnn", "open_clip", "timm"] = "vit"
    """A small vision transformer with SFM; a small convolutional network to compare with, which no mask steers; or the
    `architecture` of open_clip or timm with SFM in all its blocks."""
    architecture: str = "ViT-B-16-quickgelu"
    """Name of the model of open_clip or timm, the "-quickgelu" one for OpenAI's weights."""
    weights: Path | None = None
    """Pretrained weights of `architecture`: OpenAI's archive, or a safetensors or torch file of open_clip or timm."""
    weights_grid: tuple[int, int] | None = None
    """Rows and columns of patches of the images those weights were trained with; by default a square."""
    random_weights: bool = False
    """Start `architecture` from random weights, to try a run out: without --weights it has to be asked for."""
    trust_pickle: bool = False
    """Read a torch file that holds more than tensors, which can run any code in it."""
    projected: bool = True
    """CLIP's projection on every token: 512 wide for ViT-B/16, where the tokens themselves have 768."""
    camera_embedding: tuple[int, ...] = ()
    """The cameras of the training split, views on MSVR310, to learn an embedding for each, on the class token of a
    pretrained backbone; any other camera gets their mean. Without it there are no such embeddings."""
    checkpointing: bool = False
    """Recompute the blocks of a pretrained backbone in the backward pass: less memory for more time."""
    patch_size: int = 8
    """Side of a patch in pixels; a pretrained backbone brings its own."""
    dim: int = 128
    """Width of all tokens; a pretrained backbone brings its own."""
    depth: int = 2
    """Blocks of the small vision transformer."""
    stem_width: int = 64
    """Channels after the first convolution of the stem of the small vision transformer."""
    stem_depth: int = 1
    """Convolutions of that stem at each of its scales."""
    num_heads: int = 4
    """Heads of every attention outside a pretrained backbone."""
    strength: float = 0.5
    """Initial alpha and beta of SFM. From scratch there is no pretrained attention to be gentle with."""
    foreground_threshold: float = 0.5
    """Share of a patch that the mask has to cover for it to count as foreground; 1 keeps mixed patches out."""
    per_head: bool = False
    """Learn alpha and beta per head instead of per block."""
    shared_strengths: bool = False
    """Learn one alpha and beta for all blocks together."""
    modulated_blocks: Literal["all", "early", "late"] = "all"
    """Blocks in which SFM acts: all, the early half, or the late half; the attention of the others is plain."""
    perturbation: float = 0.0
    """Probability, in training, that a background token counts as foreground."""
    reallocation: bool = True
    """STR and everything behind it; without it the descriptor is G."""
    fusion: Fusion = "hypergraph"
    """How the semantic tokens interact: CHI, or what Table 4 puts in its place."""
    num_tokens: int = 4
    """K, semantic tokens per modality."""
    similarity: Literal["cosine", "euclidean"] = "cosine"
    """How semantic tokens are compared to build the hypergraph."""
    threshold: float = 0.5
    """Least cosine, or greatest Euclidean distance, at which two semantic tokens share a hyperedge."""

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
    optimizer: Literal["adamw", "adam"] = "adamw"
    """Adam adds the weight decay to the gradient, AdamW takes it off the weights."""
    weight_decay: float = 0.05
    """Of the optimizer; the strengths have none."""
    warmup_epochs: float = 4.0
    """Epochs in which the learning rate rises; then it falls along a cosine to a tenth."""
    identity_weight: float = 1.0
    """Of the cross-entropy against the triplet loss."""
    padding: float = 10 / (256 * 128) ** 0.5
    """Border from which the training crop is taken, as a share of sqrt(height * width); 10 pixels at 256 x 128."""
    erasing: float = 0.0
    """Probability of random erasing per modality; the public benchmarks use 0.5."""

    descriptor: Descriptor = "auto"
    """What the headline metrics and the retrieval picture use: "auto" is U, or G without STR; "G+T" is both joined."""
    evaluate_every: int = 10
    """Epochs between evaluations; the last epoch is always evaluated, and it is the result."""
    seed: int = 0
    """Of the weights, the sampler and the augmentation."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; "auto" takes CUDA when there is one."""
    amp: bool = True
    """bfloat16 autocast on CUDA devices that have it."""
    workers: int = 0
    """Processes that load images; the result does not depend on their number."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch. Runs are reproducible for an equal number of threads."""
    cache: bool = True
    """Keep decoded images in memory: modalities * 3 * height * width bytes per sample, 5.6 GB for RGBNT100. With
    `workers`, each of which would keep its own, none are kept."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.evaluate_every) < 1:
            received = f"epochs={self.epochs}, evaluate_every={self.evaluate_every}"
            raise ValueError(f"epochs and evaluate_every must be at least 1; received {received}")
        if self.per_head and self.shared_strengths:
            raise ValueError("per_head and shared_strengths exclude each other; received both")

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
        paths = {name: Path(values[name]) for name in ("data", "out", "weights") if values.get(name) is not None}
        return cls(**{**values, **tuples, **paths})

    def differences(self, other: "Settings") -> list[str]:
        """What differs, one line per field; where a run writes and how it is computed does not count.

        Paths differ when they lead to different places, however they are written.
        """
        names = [field.name for field in dataclasses.fields(self) if field.name not in FREE]
        pairs = {name: (getattr(other, name), getattr(self, name)) for name in names}
        return [f"{name}: {old} -> {new}" for name, (old, new) in pairs.items() if _place(old) != _place(new)]


def _place(value: object) -> object:
    return value.resolve() if isinstance(value, Path) else value
