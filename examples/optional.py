"""Import of optional libraries, with errors that say what to install."""

import importlib
import sys
from importlib.util import find_spec
from typing import Any

# Modules of the extra `examples` of pyproject.toml.
NEEDED = ("PIL", "numpy", "tyro", "tqdm", "tensorboard", "matplotlib", "scipy", "sklearn")
# Libraries that import torchvision themselves.
_WITH_TORCHVISION = ("open_clip", "timm", "transformers")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept: list[Any] = []  # a collected library would take its declarations along


def import_torchvision() -> None:
    """Import torchvision, also beside a torch build that it was not compiled for.

    A CUDA build of torchvision beside a CPU build of torch fails to import, because two compiled operators are not
    declared. Declaring them is enough for the import; calling them still raises torchvision's own error.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        import torch

        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(name + _SCHEMA)
        _kept.append(library)
        importlib.import_module("torchvision")


def import_library(name: str, extra: str) -> Any:
    """Import a library of pretrained models or figures.

    Args:
        name: module to import.
        extra: extra of this package that installs it.

    Raises:
        ImportError: when it cannot be imported; the message names the extra.
    """
    try:
        if name in _WITH_TORCHVISION:
            import_torchvision()
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} cannot be imported; from a clone: pip install '.[{extra}]'") from error


def check_examples() -> None:
    """Refuse to start a command without the libraries of the extra `examples`, naming all that are missing.

    Raises:
        SystemExit: in a command, with the message in a line.
        ImportError: elsewhere.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if not missing:
        return
    message = f"{', '.join(missing)} cannot be imported; install what the examples need: pip install -e '.[examples]'"
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.startswith("examples."):  # started by python -m
        sys.exit(f"error: {message}")
    raise ImportError(message)
