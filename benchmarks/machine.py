"""Description of the machine of a measurement."""

import platform
from pathlib import Path

import torch

from stmi_layers.kernels import native


def describe(device: str) -> dict[str, str | int]:
    """Describe processor, threads and versions, without the name of the computer."""
    found: dict[str, str | int] = {
        "device": "CPU" if device == "cpu" else torch.cuda.get_device_name(device),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device == "cpu":
        found["native kernel"] = "built" if native.is_built() else "not built"
    else:
        found["cuda"] = str(torch.version.cuda)
    return found


def processor() -> str:
    """Return the name of the processor, if the system tells it, and the vector instructions that torch uses."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
