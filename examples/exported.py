"""A model as a function of tensors alone, its files, and the comparison of a file with the model."""

import json
import logging
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import UserError

from examples.optional import import_library
from examples.run import Run
from stmi_layers.training import Batch, Facts, load_split, protocol_for, score
from stmi_layers.training.evaluation import concatenate
from stmi_layers.training.files import write_whole
from stmi_layers.training.shards import fingerprint

FORMAT = "stmi-layers-export-1"
LARGEST = 2**31 - 2**24  # bytes of one ONNX file
BOUND = 2e-4  # of a descriptor of length 1, in any of its values
Example = dict[str, Tensor]
Runner = Callable[[Example], list[np.ndarray]]


class Serving(nn.Module):
    """A model that takes tensors and returns descriptors of length 1, the headline first.

    Args:
        model: keeps the contract of training.
        run: its settings; they say whether it was trained with masks, and whether it embeds cameras.
        texts: take encoded captions as inputs.

    Attributes:
        inputs: names of the inputs, in order.
        outputs: names of the descriptors, in order.
    """

    def __init__(self, model: Any, run: Run, *, texts: bool = False) -> None:
        super().__init__()
        self.model = model
        silent = model.encode([()])
        if texts and silent is None:
            raise ValueError("texts must be left out for a model that reads no captions (--texts)")
        self.silent = None if silent is None or texts else nn.Buffer(silent)
        names = ["images"] + ([] if run.data.masks in ("none", "blank") else ["masks"]) + ["present"]
        names += ["cameras"] if run.tower is not None and run.tower.camera_embedding else []
        self.inputs = names + (["texts", "has_text"] if texts else [])
        self.outputs = [model.headline, *(name for name in model.widths if name != model.headline)]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Descriptors by the order of `outputs`."""
        given = dict(zip(self.inputs, inputs, strict=True))
        images = given["images"]
        count = images.shape[0]
        nowhere = torch.full((count,), -1, dtype=torch.int64, device=images.device)
        texts, has_text = given.get("texts"), given.get("has_text")
        if self.silent is not None:
            texts = self.silent.expand(count, *self.silent.shape[1:])
        if has_text is None:
            has_text = torch.zeros(count, dtype=torch.bool, device=images.device)
        cameras = given.get("cameras", nowhere)
        batch = Batch(
            images=images,
            masks=given.get("masks"),
            present=given["present"],
            labels=nowhere,
            cameras=cameras,
            views=nowhere,
            scenes=nowhere,
            texts=texts,
            has_text=has_text,
            indices=nowhere,
        )
        features = {name: F.normalize(value.float(), dim=-1) for name, value in self.model(batch).features.items()}
        joined = list(features) if self.model.headline == "all" else self.model.headline.split("+")
        return tuple(features[name] if name in features else concatenate(features, joined) for name in self.outputs)


def examples_of(serving: Serving, facts: Facts) -> list[Example]:
    """Batches of 3, 1, 2 and 5 random samples; in all but the second, some modalities are absent."""
    return [example_of(serving, facts, count, seed) for seed, count in enumerate((3, 1, 2, 5))]


def example_of(serving: Serving, facts: Facts, count: int, seed: int) -> Example:
    """Random samples, of which the first has all modalities and others lack some."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, len(facts.modalities))
    height, width = facts.image_size
    present = torch.rand(shape, generator=generator) < 0.5
    present[0] = True
    present[:, -1] |= ~present.any(dim=1)
    masks = torch.zeros(*shape, height, width, dtype=torch.bool)
    masks[..., height // 8 : -(height // 8), width // 4 : -(width // 4)] = True
    example = {
        "images": torch.rand(*shape, 3, height, width, generator=generator),
        "masks": masks,
        "present": present,
        "cameras": torch.tensor([-1, *facts.cameras])[torch.arange(count) % (1 + len(facts.cameras))],
        "has_text": torch.arange(count) % 2 == 0,
    }
    if "texts" in serving.inputs:
        words = " ".join(facts.words[:3])
        example["texts"] = serving.model.encode([(words,) if index % 2 == 0 else () for index in range(count)])
    return {name: example[name] for name in serving.inputs}


def metadata_of(serving: Serving, loaded: Any, checkpoint: Path) -> dict[str, Any]:
    """Metadata that a program needs to use the file."""
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
    """The model as a graph whose batch is dynamic.

    Raises:
        ValueError: when the graph can take only the batch it was traced with.
    """
    count = torch.export.Dim("batch", min=1, max=1 << 16)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself
            return torch.export.export(serving, tuple(example.values()), dynamic_shapes=(({0: count},) * len(example),))
    except (UserError, RuntimeError) as error:
        reason = next((line for line in str(error).splitlines() if "specialized" in line), str(error)[:300])
        raise ValueError(f"the model must take any number of samples; its graph does not: {reason.strip()}") from error


def write_pt2(serving: Serving, example: Example, out: Path, metadata: Mapping[str, Any]) -> None:
    """Write torch.export's file, with the metadata inside."""
    program = program_of(serving, example)
    with write_whole(out) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})  # pyright: ignore[reportArgumentType]


def open_pt2(out: Path) -> Runner:
    """A function that runs a file of torch.export. Such a module has no modes: `eval()` on it raises."""
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
    """A function that runs an ONNX file in onnxruntime."""
    runtime = import_library("onnxruntime", "export")
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    return lambda example: session.run(None, {name: value.numpy() for name, value in example.items()})


def open_openvino(out: Path) -> Runner:
    """A function that runs an ONNX file, or one of OpenVINO's own, in OpenVINO; its CPU default may be bfloat16."""
    openvino = import_library("openvino", "export")
    compiled = openvino.Core().compile_model(str(out), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(example: Example) -> list[np.ndarray]:
        result = compiled({name: value.numpy() for name, value in example.items()})
        return [result[index] for index in range(len(compiled.outputs))]

    return run


def check_numbers(serving: Serving, some: list[Example], run: Runner, *, bound: float | None = BOUND) -> dict[str, Any]:
    """Compare a file with the model on batches of other sizes than it was traced with.

    Raises:
        ValueError: when a descriptor differs by more than `bound`.
    """
    worst, cosine = 0.0, 1.0
    for example in some:
        with torch.no_grad():
            expected = serving(*example.values())
        for name, one, other in zip(serving.outputs, expected, run(example), strict=True):
            got = torch.from_numpy(np.array(other))
            worst = max(worst, float((one - got).abs().max()))
            cosine = min(cosine, float((one * got).sum(dim=-1).min()))
            if bound is not None and not worst <= bound:
                raise ValueError(
                    f"the file must give the descriptors of the model within {bound:g}; {name} differs by {worst:.2g} "
                    f"at a batch of {len(one)}"
                )
    sizes = ", ".join(str(len(example["images"])) for example in some)
    return {"batches compared": sizes, "largest difference": f"{worst:.1e}", "least cosine": f"{cosine:.6f}"}


def write_test_vector(serving: Serving, example: Example, out: Path, metadata: Mapping[str, Any]) -> None:
    """Write inputs and the descriptors of the model beside the file, for a test where it is deployed."""
    with torch.no_grad():
        expected = dict(zip(serving.outputs, serving(*example.values()), strict=True))
    arrays = {f"input {name}": value.numpy() for name, value in example.items()}
    arrays |= {f"output {name}": value.numpy() for name, value in expected.items()}
    with write_whole(out.with_name(f"{out.name}.test.npz")) as file:
        np.savez_compressed(file, fingerprint=np.array(metadata["fingerprint"]), **arrays)  # pyright: ignore[reportArgumentType]


def score_file(serving: Serving, loaded: Any, out: Path) -> dict[str, Any]:
    """Scores of the file and of the model on the test split of the run; captions count where they are inputs."""
    run = loaded.run
    dataset = load_split(run.data, "test", seed=run.schedule.seed)
    protocol = protocol_for(dataset.items, run.data)
    with torch.no_grad():
        dataset.encode_captions(loaded.model.encode)
    rows: dict[str, list[Tensor]] = {"model": [], "file": []}
    run_file = open_pt2(out) if out.suffix == ".pt2" else open_onnx(out)
    for index in range(len(dataset)):
        sample = dataset[index]
        parts = {"images": sample.images, "masks": sample.masks, "present": sample.present, "texts": sample.text}
        parts["cameras"] = torch.tensor(sample.camera if sample.camera >= 0 else sample.view)
        parts["has_text"] = torch.tensor(sample.has_text)
        example = {name: parts[name][None] for name in serving.inputs}
        with torch.no_grad():
            rows["model"].append(serving(*example.values())[0])
        rows["file"].append(torch.from_numpy(run_file(example)[0]))
    metrics = score({name: torch.cat(values) for name, values in rows.items()}, dataset.items, protocol)
    return {f"mAP of the {name}": f"{100 * value.mAP:.2f}" for name, value in metrics.items()}


def has_openvino() -> bool:
    """Tell whether OpenVINO is installed."""
    return find_spec("openvino") is not None
