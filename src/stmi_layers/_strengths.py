"""Loading of checkpoints into attentions with strengths, which the checkpoints of plain attention do not hold."""

from torch import Tensor, nn


def keep_strengths(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Let a checkpoint without strengths load with `strict=True`: `alpha` and `beta` keep their values.

    A hook before the loading of `module`. A checkpoint without anything of the module stays as it is, so that the
    strengths are reported as missing together with all other parameters.
    """
    if any(name.startswith(prefix) for name in state_dict):
        for name in ("alpha", "beta"):
            strength = getattr(module, name)
            if strength is not None:
                state_dict.setdefault(f"{prefix}{name}", strength.detach())
