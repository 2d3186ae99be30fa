"""Settings of the optimisation and of the computer, one record each."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from stmi_layers._checks import check_choice, check_positive, check_probability
from stmi_layers.training.transforms import Augmentation

Optimizer = Literal["adamw", "adam", "sgd"]


@dataclass(frozen=True)
class Schedule:
    """Settings of the optimisation: batches, objective, optimizer, learning rates and augmentation."""

    epochs: int = 30
    """Passes over the training images."""
    identities_per_batch: int = 16
    """P of the P x K sampler."""
    images_per_identity: int = 4
    """K of the P x K sampler."""
    optimizer: Optimizer = "adamw"
    """Adam and SGD, which has a momentum of 0.9, add the weight decay to the gradient; AdamW takes it off the
    weights."""
    learning_rate: float = 2e-3
    """Learning rate of the parameter group "new", and of every group without a rate of its own."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Learning rates of parameter groups, by the names of the model's `parameter_groups()`."""
    weight_decay: float = 0.05
    """Weight decay of the optimizer."""
    no_decay: tuple[str, ...] = ()
    """Parameter groups without weight decay."""
    warmup_epochs: float = 4.0
    """Epochs in which the learning rate rises; then it falls along a cosine to a tenth."""
    clip_norm: float | None = 1.0
    """Largest norm of the gradient, to which larger gradients are scaled down; None leaves gradients as they are."""
    feature_weights: Mapping[str, float] = field(default_factory=dict)
    """Factors of the losses on features, by the names of the model's features; 1 where none is given."""
    term_weights: Mapping[str, float] = field(default_factory=dict)
    """Factors of the terms that the model adds to the objective, by their names; 1 where none is given."""
    identity_weight: float = 1.0
    """Factor of the cross-entropy of identities, against the triplet loss."""
    smoothing: float = 0.1
    """Share of the target of the cross-entropy that is spread evenly over all identities."""
    margin: float | None = None
    """Margin of the triplet loss; None for the soft margin."""
    modality_dropout: float = 0.0
    """Probability, in training, that a modality of a sample is treated as missing; one always stays."""
    flip: float = 0.5
    """Probability of mirroring a sample left and right."""
    padding: float = 10 / (256 * 128) ** 0.5
    """Border from which the training crop is taken, as a share of sqrt(height * width); 10 pixels at 256 x 128."""
    erasing: float = 0.0
    """Probability of random erasing per modality; the public benchmarks use 0.5."""
    seed: int = 0
    """Seed of the sampler, the augmentation, and what the model draws in training."""

    def __post_init__(self) -> None:
        check_positive(
            epochs=self.epochs,
            identities_per_batch=self.identities_per_batch,
            images_per_identity=self.images_per_identity,
        )
        check_choice("optimizer", self.optimizer, get_args(Optimizer))
        for name in ("modality_dropout", "flip", "erasing"):
            check_probability(name, getattr(self, name))
        check_not_negative("learning_rate", self.learning_rate)
        check_not_negative("warmup_epochs", self.warmup_epochs)
        check_not_negative("weight_decay", self.weight_decay)
        for name in ("rates", "feature_weights", "term_weights"):
            for key, value in getattr(self, name).items():
                check_not_negative(f"{name}[{key!r}]", value)
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, or None for no clipping; received {self.clip_norm}")

    def augmentation(self) -> Augmentation:
        """The augmentation of the training images."""
        return Augmentation(flip=self.flip, padding=self.padding, erasing=self.erasing)


@dataclass(frozen=True)
class Machine:
    """Settings of the computer: where and how a run is computed, and not what comes out."""

    device: str = "auto"
    """cpu, cuda, cuda:1, ...; "auto" takes CUDA when there is one."""
    amp: bool = True
    """bfloat16 autocast on CUDA devices that have it."""
    workers: int = 0
    """Processes that load images; the result does not depend on their number."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch. Runs are reproducible for an equal number of threads."""
    cache: bool = True
    """Keep decoded training images in memory: modalities * 3 * height * width bytes per sample, 5.6 GB for RGBNT100.
    With `workers`, each of which would keep its own, none are kept."""
    evaluate_every: int = 10
    """Epochs between evaluations; the last epoch is always evaluated, and it is the result."""
    quiet: bool = False
    """Show no progress and print nothing."""

    def __post_init__(self) -> None:
        check_positive(evaluate_every=self.evaluate_every)
        if min(self.workers, self.threads) < 0:
            raise ValueError(f"workers and threads must not be negative; received {self.workers} and {self.threads}")


def check_not_negative(name: str, value: float) -> None:
    """Refuse a negative `value`, infinity and NaN."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and at least 0; received {value}")
