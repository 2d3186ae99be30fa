"""Device and precision of a run."""

import torch


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is CUDA when there is one, else the CPU.

    Raises:
        ValueError: when `name` asks for CUDA and torch finds no such device.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device must be cpu or auto where torch finds no CUDA device; received {name!r}")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def half_precision(device: torch.device, amp: bool) -> bool:
    """Return True where the model runs in bfloat16 autocast: on a CUDA device with native bfloat16, if `amp`."""
    return amp and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
