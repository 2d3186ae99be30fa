#!/usr/bin/env bash
# Package: onnxruntime 1.32.0 (with onnx 1.23.2)
# Guess: attention with a mask bears static quantisation to 8 bits as attention without a mask does, all the better if
#   the samples for calibration lack a modality now and then, as those in use will.
# Seen: by default quantize_static also gives 256 levels to the input of the softmax. If one of the samples for
#   calibration has a masked key, the levels reach down to the number that stands for it, and the scores of all other
#   keys become one level: attention is uniform, also in samples without a masked key. With -10000, and with the lowest
#   float32 that transformers writes, the cosine with the outputs in float32 falls below 0.5. No warning names it. All is
#   well with -30, with complete samples for calibration, and with op_types_to_quantize=["MatMul"].
# For us: --int8 quantises matrix products alone, and scales activations at run time; the guide for tools warns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
import logging

import numpy as np
import onnx
import onnxruntime
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array
from onnxruntime.quantization import CalibrationDataReader, quantize_static

logging.disable()  # advice to simplify the graph first
random = np.random.default_rng(0)
TOKENS, DIM = 16, 32  # 8 tokens of each of two modalities
MAPS = [from_array((random.standard_normal((DIM, DIM)) / 3).astype(np.float32), name) for name in ("q", "k", "v")]


def write(masked: float) -> None:
    """Write attention to float.onnx; `masked` is added to the scores of keys that are left out."""
    nodes = [make_node("MatMul", ["tokens", name], [name + "s"]) for name in ("q", "k", "v")]
    nodes += [make_node("Transpose", ["ks"], ["turned"], perm=[0, 2, 1]), make_node("MatMul", ["qs", "turned"], ["dots"])]
    nodes += [make_node("Mul", ["dots", "scale"], ["scores"]), make_node("Where", ["keep", "zero", "masked"], ["bias"])]
    nodes += [make_node("Add", ["scores", "bias"], ["logits"]), make_node("Softmax", ["logits"], ["weights"])]
    nodes += [make_node("MatMul", ["weights", "vs"], ["output"])]
    numbers = {"scale": DIM**-0.5, "zero": 0, "masked": masked}
    constants = [*MAPS, *(from_array(np.float32(value), name) for name, value in numbers.items())]
    real, logical, shape = onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL, [1, TOKENS, DIM]
    inputs = [make_tensor_value_info("tokens", real, shape), make_tensor_value_info("keep", logical, [1, 1, TOKENS])]
    outputs = [make_tensor_value_info("output", real, shape), make_tensor_value_info("weights", real, [1, TOKENS, TOKENS])]
    graph = make_graph(nodes, "attention", inputs, outputs, constants)
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 20)], ir_version=10), "float.onnx")


def samples(num: int, lacking: bool) -> list[dict[str, np.ndarray]]:
    """Return samples of which every other one may lack the second modality."""
    keep = [np.arange(TOKENS)[None, None] < (8 if lacking and number % 2 else TOKENS) for number in range(num)]
    return [{"tokens": random.standard_normal((1, TOKENS, DIM)).astype(np.float32), "keep": mask} for mask in keep]


class Calibration(CalibrationDataReader):
    """Complete samples, and one that may lack a modality."""

    def __init__(self, lacking: bool) -> None:
        self.left = [*samples(14, False), *samples(2, lacking)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


def run(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the outputs of the test samples, normalised, and the largest weight of each query."""
    session = onnxruntime.InferenceSession(path)
    results = [session.run(["output", "weights"], sample) for sample in test]
    output = np.stack([output.ravel() for output, _ in results])
    return output / np.linalg.norm(output, axis=1, keepdims=True), np.stack([weights.max(-1) for _, weights in results])


test = samples(20, lacking=True)
for masked in (-30.0, -1e4, float(np.finfo(np.float32).min)):
    write(masked)
    right, sharp = run("float.onnx")
    print(f"added to masked scores: {masked:.2g}; largest weight in float32: {sharp[::2].mean():.2f}")
    for lacking, kinds in ((True, None), (False, None), (True, ["MatMul"])):
        quantize_static("float.onnx", "eight.onnx", Calibration(lacking), op_types_to_quantize=kinds)
        output, largest = run("eight.onnx")
        whole, part = ((output * right).sum(1)[first::2].mean() for first in (0, 1))
        print(f"    {'one masked sample' if lacking else 'no masks'} in calibration, {kinds or 'all operators'}: largest weight "
              f"{largest[::2].mean():.2f}, cosine {whole:.3f}, with an absent modality {part:.3f}")
        if masked < -30 and lacking and not kinds:
            assert max(whole, part) < 0.5 and np.allclose(largest[::2], 1 / TOKENS, atol=0.01)
        else:
            assert min(whole, part) > 0.99
END
