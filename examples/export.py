"""Write a trained model as one file for other programs: `python -m examples.export --checkpoint C --out model.onnx`.

The file takes images in [0, 1], masks and the presence of modalities, for any number of samples at a time, and returns
descriptors of length 1. Its metadata describe the preprocessing of images. The command compares the file with the
model before it ends.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from examples import cli
from examples.export_checks import check_numbers, score_file, write_test_vector
from examples.exported import has_openvino, metadata_of, open_onnx, open_openvino, open_pt2, write_onnx, write_pt2
from examples.quantised import quantise_onnx
from examples.restore import Computer, load_model
from examples.serving import Example, Serving, examples_of
from stmi_layers.training.files import scratch_beside


@dataclass(frozen=True)
class Arguments:
    """Model to export, and the file to write."""

    checkpoint: Path
    """The checkpoint.pt of a run."""
    out: Path | None = None
    """File to write; model.onnx or model.pt2 beside the checkpoint by default."""
    format: Literal["onnx", "pt2"] = "onnx"
    """Format: ONNX for other runtimes, or the format of torch.export (pt2)."""
    texts: bool = False
    """Take encoded captions as inputs; without them a model that reads captions treats all captions as missing."""
    int8: bool = False
    """Quantise the weights of matrix products in ONNX to 8 bits; the command prints how far descriptors move."""
    score: bool = False
    """Score the file and the model on the test split of the run."""
    machine: tyro.conf.OmitArgPrefixes[Computer] = field(default_factory=Computer)


def main(arguments: Arguments) -> dict[str, Any]:
    """Export, check, and report how close the file is to the model."""
    if arguments.int8 and arguments.format != "onnx":
        raise ValueError("int8 must go with format='onnx'; received format='pt2' (--int8, --format)")
    loaded = load_model(arguments.checkpoint, machine=arguments.machine.machine(quiet=True))
    out = arguments.out or arguments.checkpoint.parent / f"model.{arguments.format}"
    report = export(loaded, out, arguments)
    for line, value in report.items():
        print(f"{line}: {value}")
    return report


def export(loaded: Any, out: Path, arguments: Arguments) -> dict[str, Any]:
    """Write a file, compare it with the model, and move it into place only if both agree."""
    model = loaded.model
    was_training, device = model.training, next(model.parameters()).device
    serving = Serving(model.cpu().eval(), loaded.run, texts=arguments.texts)
    vector = out.with_name(f"{out.name}.test.npz")
    try:
        some = examples_of(serving, loaded.facts)
        metadata = metadata_of(serving, loaded, arguments.checkpoint)
        with scratch_beside(out) as scratch:
            new = scratch / out.name
            if arguments.format == "pt2":
                write_pt2(serving, some[0], new, metadata)
                report = check_numbers(serving, some, open_pt2(new))
            else:
                report = _export_onnx(serving, some, new, metadata, int8=arguments.int8)
            write_test_vector(serving, some[1], new, metadata)
            if arguments.score:
                report |= score_file(serving, loaded, new)
            # Weights of an older export, which some runtimes would read instead of the new weights.
            out.with_name(f"{out.name}.data").unlink(missing_ok=True)
            new.with_name(vector.name).replace(vector)
            new.replace(out)
    finally:
        model.train(was_training).to(device)
    return {"written": str(out), "test vector": str(vector), **report}


def _export_onnx(
    serving: Serving, some: list[Example], out: Path, metadata: dict[str, Any], *, int8: bool
) -> dict[str, Any]:
    write_onnx(serving, some[0], out, metadata)
    report = check_numbers(serving, some, open_onnx(out))
    if has_openvino():
        found = check_numbers(serving, some, open_openvino(out))
        report["largest difference in OpenVINO"] = found["largest difference"]
    if int8:
        quantise_onnx(out, json.dumps(metadata))
        report = {f"before int8, {name}": value for name, value in report.items()}
        report |= check_numbers(serving, some, open_onnx(out), bound=None)
    return report


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__, prog="python -m examples.export")
