"""Files of an exported model: writing them, their metadata, and running them."""

import json
import logging
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._dynamo.exc import UserError

from examples.optional import import_library
from examples.serving import Example, Serving
from stmi_layers.training.files import write_whole
from stmi_layers.training.shards import fingerprint

FORMAT = "stmi-layers-export-1"
LARGEST = 2**31 - 2**24  # largest size of one ONNX file in bytes
Runner = Callable[[Example], list[np.ndarray]]


def metadata_of(serving: Serving, loaded: Any, checkpoint: Path) -> dict[str, Any]:
    """Collect the metadata that a program needs to use the file."""
    data = loaded.run.data
    height, width = data.image_size
    return {
        "format": FORMAT,
        "method": loaded.run.method,
        "checkpoint": checkpoint.name,
        "fingerprint": fingerprint(loaded.model),
        "inputs": serving.inputs,
        "outputs": serving.outputs,
        "modalities": list(data.modalities),
        "preprocessing": {
            "size": [height, width],
            "resize": "bilinear with antialiasing, as Pillow does; masks nearest",
            "channels": "RGB; an image with one channel becomes three equal ones",
            "scale": 1 / 255,
            "mean": [0.0, 0.0, 0.0],
            "std": [1.0, 1.0, 1.0],
            "note": "images are in [0, 1]; the mean and deviation of the tower are applied inside the model",
            "ranges": {name: bounds if bounds == "image" else list(bounds) for name, bounds in data.ranges.items()},
        },
    }


def program_of(serving: Serving, example: Example) -> torch.export.ExportedProgram:
    """Export the model as a graph with a dynamic batch size.

    Raises:
        ValueError: when the graph can take only the batch it was traced with.
    """
    count = torch.export.Dim("batch", min=1, max=1 << 16)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of torch about its own code
            return torch.export.export(serving, tuple(example.values()), dynamic_shapes=(({0: count},) * len(example),))
    except (UserError, RuntimeError) as error:
        reason = next((line for line in str(error).splitlines() if "specialized" in line), str(error)[:300])
        raise ValueError(f"the model must take any number of samples; its graph does not: {reason.strip()}") from error


def write_pt2(serving: Serving, example: Example, out: Path, metadata: Mapping[str, Any]) -> None:
    """Write a file of torch.export, with the metadata inside."""
    program = program_of(serving, example)
    with write_whole(out) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})  # pyright: ignore[reportArgumentType]


def open_pt2(out: Path) -> Runner:
    """Return a function that runs a file of torch.export. Such a module has no modes, and its `eval()` raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.export.load(out).module()

    def run(example: Example) -> list[np.ndarray]:
        with torch.no_grad():
            return [one.numpy() for one in model(*example.values())]

    return run


def write_onnx(serving: Serving, example: Example, out: Path, metadata: Mapping[str, Any]) -> None:
    """Write one ONNX file, weights included, with the metadata inside.

    Raises:
        ValueError: when the graph is static, or the file would have 2 GB or more.
    """
    import_library("onnxscript", "export")
    size = sum(value.numel() * value.element_size() for value in serving.state_dict().values())
    if size > LARGEST:
        raise ValueError(f"out must hold less than 2 GB as one ONNX file; the model has {size / 1e9:.1f} GB: use pt2")
    program = program_of(serving, example)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    names: dict[str, Any] = {"input_names": serving.inputs, "output_names": serving.outputs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    assert written is not None
    proto = written.model_proto
    for value in proto.graph.input:
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise ValueError(f"the graph must take any number of samples; its input {value.name} has a fixed number")
    entry = proto.metadata_props.add()
    entry.key, entry.value = "stmi-layers", json.dumps(metadata)
    with write_whole(out) as file:
        file.write(proto.SerializeToString())


def open_onnx(out: Path) -> Runner:
    """Return a function that runs an ONNX file in onnxruntime."""
    runtime = import_library("onnxruntime", "export")
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    return lambda example: session.run(None, {name: value.numpy() for name, value in example.items()})


def open_openvino(out: Path) -> Runner:
    """Return a function that runs an ONNX or OpenVINO file in OpenVINO, in float32: the default may be bfloat16."""
    openvino = import_library("openvino", "export")
    compiled = openvino.Core().compile_model(str(out), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(example: Example) -> list[np.ndarray]:
        result = compiled({name: value.numpy() for name, value in example.items()})
        return [result[index] for index in range(len(compiled.outputs))]

    return run


def has_openvino() -> bool:
    """Tell whether OpenVINO is installed."""
    return find_spec("openvino") is not None
