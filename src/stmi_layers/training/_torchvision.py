"""Import of torchvision that also works beside a torch build it was not compiled for.

A CUDA build of torchvision beside a CPU build of torch fails to import, because two compiled operators are not
declared. Declaring them is enough for the import; calling them still raises torchvision's own error.
"""

from importlib import import_module

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept: list[torch.library.Library] = []  # a collected library would take its declarations along


def import_torchvision() -> None:
    """Import torchvision; if its operator `nms` is not declared, declare `nms` and `qnms` and import again."""
    try:
        import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(name + _SCHEMA)
        _kept.append(library)
        import_module("torchvision")


import_torchvision()

from torchvision import tv_tensors as tv_tensors  # noqa: E402
from torchvision.transforms import v2 as v2  # noqa: E402
