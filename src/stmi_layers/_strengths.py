"""Loading of checkpoints of plain attention, which hold no strengths, into modulated attention."""

from torch import Tensor, nn


def keep_strengths(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Let a checkpoint without strengths load with `strict=True`: `alpha` and `beta` keep their values.

    The function is a pre-hook of `load_state_dict`. A checkpoint without any parameter of `module` stays unchanged, so
    that the strengths are reported as missing together with all other parameters.
    """
    if any(name.startswith(prefix) for name in state_dict):
        for name in ("alpha", "beta"):
            strength = getattr(module, name)
            if strength is not None:
                state_dict.setdefault(f"{prefix}{name}", strength.detach())
