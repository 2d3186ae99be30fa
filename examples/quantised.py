"""Dynamic quantisation of an ONNX file or a PyTorch model to 8 bits."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from examples.optional import import_library

# torch reads the weights of these layers without calling their modules, and a quantised module has no such weights.
WHOLE = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def quantise_onnx(path: Path, metadata: str) -> None:
    """Replace an ONNX file by a file with 8-bit weights of matrix products; activations are scaled at run time."""
    import_library("onnxruntime", "export")
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        small = Path(folder) / "int8.onnx"
        quantize_dynamic(str(path), str(small), weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
        model = onnx.load(str(small))
        del model.metadata_props[:]
        entry = model.metadata_props.add()
        entry.key, entry.value = "stmi-layers", metadata
        onnx.save(model, str(small))
        small.replace(path)


def quantise(model: nn.Module, *example: Any) -> nn.Module:
    """Return a copy of a model whose linear layers have 8-bit weights, for the CPU.

    Only layers that the model calls are quantised.

    Args:
        model: any module; it is run once in evaluation mode.
        example: arguments of its forward pass.
    """
    called: set[nn.Module] = set()
    copied = copy.deepcopy(model).eval()
    linear = [module for module in copied.modules() if type(module) is nn.Linear]
    held = {one for module in copied.modules() if isinstance(module, WHOLE) for one in module.modules()}
    hooks = [module.register_forward_hook(lambda module, *_: called.add(module)) for module in linear]
    with torch.no_grad():
        copied(*example)
    for hook in hooks:
        hook.remove()
    kinds: Any = torch.ao.quantization
    names = {name for name, module in copied.named_modules() if module in called - held}
    settings = dict.fromkeys(names, kinds.default_dynamic_qconfig)
    return kinds.quantize_dynamic(copied, settings, dtype=torch.qint8)
