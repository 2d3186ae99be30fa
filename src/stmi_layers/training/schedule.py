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
    """Identities per batch, the P of the P x K sampler."""
    images_per_identity: int = 4
    """Images per identity in a batch, the K of the P x K sampler."""
    optimizer: Optimizer = "adamw"
    """Optimizer. AdamW subtracts the weight decay from the weights; Adam and SGD (momentum 0.9) add it to the
    gradient."""
    learning_rate: float = 2e-3
    """Learning rate of the parameter group "new", and of every group without a rate of its own."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Learning rates of parameter groups, by the names of the model's `parameter_groups()`."""
    weight_decay: float = 0.05
    """Weight decay of the optimizer."""
    no_decay: tuple[str, ...] = ()
    """Parameter groups without weight decay."""
    warmup_epochs: float = 4.0
    """Epochs in which the learning rate rises linearly; afterwards it falls along a cosine to a tenth."""
    clip_norm: float | None = 1.0
    """Largest norm of the gradient; larger gradients are scaled down to it. None turns clipping off."""
    feature_weights: Mapping[str, float] = field(default_factory=dict)
    """Weights of the losses by name of the model's feature; 1 for a feature that is not named."""
    term_weights: Mapping[str, float] = field(default_factory=dict)
    """Weights of the model's own terms of the objective by name; 1 for a term that is not named."""
    identity_weight: float = 1.0
    """Weight of the identity cross-entropy; the triplet loss has weight 1."""
    smoothing: float = 0.1
    """Label smoothing: share of the target of the cross-entropy that is spread evenly over all identities."""
    margin: float | None = None
    """Margin of the triplet loss; None for the soft margin."""
    modality_dropout: float = 0.0
    """Probability in training that a modality of a sample is treated as missing; at least one modality stays."""
    flip: float = 0.5
    """Probability of flipping a training sample horizontally."""
    padding: float = 10 / (256 * 128) ** 0.5
    """Black border from which the training crop is taken, as a share of sqrt(height * width); the default is 10 pixels
    at 256 x 128."""
    erasing: float = 0.0
    """Probability of random erasing per modality in training; the public benchmarks use 0.5."""
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
    """Settings of the computer: where and how a run is computed. They change results by rounding at most."""

    device: str = "auto"
    """Device: cpu, cuda, cuda:1, ...; "auto" takes CUDA if torch finds it, otherwise the CPU."""
    amp: bool = True
    """Run the model in bfloat16 autocast on CUDA devices that support it."""
    workers: int = 0
    """Number of processes that load images; 0 loads in the training process. The result does not depend on it."""
    threads: int = 0
    """Number of CPU threads; 0 leaves the choice to torch. Runs are reproducible for an equal number of threads."""
    cache: bool = True
    """Keep decoded training images in memory: modalities * 3 * height * width bytes per sample, 2.9 GB for 10,000
    samples of three modalities at 256 x 128.
    Off when `workers` is above 0, because every worker would keep a copy."""
    evaluate_every: int = 10
    """Epochs between evaluations; the last epoch is always evaluated, and it is the result."""
    quiet: bool = False
    """Show no progress bar and print nothing."""

    def __post_init__(self) -> None:
        check_positive(evaluate_every=self.evaluate_every)
        if min(self.workers, self.threads) < 0:
            raise ValueError(f"workers and threads must not be negative; received {self.workers} and {self.threads}")


def check_not_negative(name: str, value: float) -> None:
    """Refuse a negative `value`, infinity and NaN."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and at least 0; received {value}")
