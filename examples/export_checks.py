"""Comparison of an exported file with its model: numbers, scores, and a test vector for the place of deployment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from examples.exported import Runner, open_onnx, open_pt2
from examples.serving import Example, Serving
from stmi_layers.training import load_split, protocol_for, score
from stmi_layers.training.files import write_whole

BOUND = 2e-4  # largest difference of any value of a descriptor of length 1


def check_numbers(serving: Serving, some: list[Example], run: Runner, *, bound: float | None = BOUND) -> dict[str, Any]:
    """Compare a file with the model on batches of other sizes than the traced batch.

    Descriptors that are 0, such as that of a missing caption, are left out of the least cosine.

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
            there = one.any(dim=-1)
            cosine = min([cosine, *(one * got).sum(dim=-1)[there].tolist()])
            if bound is not None and not worst <= bound:
                raise ValueError(
                    f"the file must give the descriptors of the model within {bound:g}; {name} differs by {worst:.2g} "
                    f"at a batch of {len(one)}"
                )
    sizes = ", ".join(str(len(example["images"])) for example in some)
    return {"batches compared": sizes, "largest difference": f"{worst:.1e}", "least cosine": f"{cosine:.6f}"}


def write_test_vector(serving: Serving, example: Example, out: Path, metadata: Mapping[str, Any]) -> None:
    """Write inputs and the descriptors of the model beside the file, as a test for the place of deployment."""
    with torch.no_grad():
        expected = dict(zip(serving.outputs, serving(*example.values()), strict=True))
    arrays = {f"input {name}": value.numpy() for name, value in example.items()}
    arrays |= {f"output {name}": value.numpy() for name, value in expected.items()}
    with write_whole(out.with_name(f"{out.name}.test.npz")) as file:
        np.savez_compressed(file, fingerprint=np.array(metadata["fingerprint"]), **arrays)  # pyright: ignore[reportArgumentType]


def score_file(serving: Serving, loaded: Any, out: Path) -> dict[str, Any]:
    """Score the file and the model on the test split of the run; captions are used if they are inputs."""
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
