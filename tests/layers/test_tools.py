"""Layers under other tools: tracing, FLOP counters, adapters, quantisation, import hooks."""

import copy
import io
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import stmi_layers as sl
from case import Fixed
from cases import CASES
from stmi_layers.kernels.flops import attention_backward_flops, attention_flops

TRACED = [name for name, case in CASES.items() if case.state and name not in ("IdentityHead", "ReIDLoss")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRACED)
def test_a_trace_holds_operators_of_torch_alone(name):
    case = CASES[name]
    layer, inputs = case.build("cpu", torch.float32).eval(), case.inputs(Fixed(), 4)
    traced = torch.jit.trace(layer, inputs)
    assert "stmi_layers::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(*inputs), layer(*inputs))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in TRACED if "Alignment" not in name])  # losses stay at home
def test_the_older_exporter_of_onnx_gives_files_that_run(name):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    case, file = CASES[name], io.BytesIO()
    layer, inputs = case.build("cpu", torch.float32).eval(), case.inputs(Fixed(), 4)
    torch.onnx.export(layer, tuple(inputs), file, dynamo=False)
    session = runtime.InferenceSession(file.getvalue())
    given = zip(session.get_inputs(), tensors_of(inputs, all_kinds=True), strict=True)
    found = session.run(None, {one.name: value.numpy() for one, value in given})
    for one, other in zip(found, tensors_of(layer(*inputs), all_kinds=True), strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-3, atol=1e-4)


def test_tiles_count_as_many_flops_as_the_dense_form(monkeypatch: pytest.MonkeyPatch):
    heads, foreground = torch.randn(2, 4, 65, 16, requires_grad=True), torch.rand(2, 65) < 0.4
    strength = torch.tensor([0.1], requires_grad=True)

    def counted(implementation: str) -> tuple[int, int]:
        with FlopCounterMode(display=False) as forward:  # entered before anything of ours ran
            result = sl.modulated_attention(
                heads, heads, heads, foreground, strength, strength, implementation=implementation
            )
        with FlopCounterMode(display=False) as backward:
            result.sum().backward()
        return forward.get_total_flops(), backward.get_total_flops()

    product = 2 * 2 * 4 * 65 * 65 * 16
    assert counted("dense") == (2 * product, 4 * product)
    assert counted("tiled") == (2 * product, 5 * product)  # the logits once more
    shape = heads.shape
    assert attention_flops(shape, shape, shape) == 2 * product
    assert attention_backward_flops(shape, shape, shape, shape) == 5 * product


class Adapter(nn.Module):
    """LoRA around a linear layer, with the attributes of the original."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.weight, self.bias = base, base.weight, base.bias
        self.change = nn.Linear(base.in_features, base.out_features, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.base(features) + self.change(features)


def linear_of(layer: object) -> list[str]:
    """Paths of the linear layers that are no part of torch's own attention, which reads the weights of its own."""
    if not isinstance(layer, nn.Module):
        return []
    inside = {
        id(part) for module in layer.modules() if isinstance(module, nn.MultiheadAttention) for part in module.modules()
    }
    return [path for path, part in layer.named_modules() if type(part) is nn.Linear and id(part) not in inside]


LINEAR = [name for name, case in CASES.items() if linear_of(case.build("cpu", torch.float32))]


def tensors_of(result: object, *, all_kinds: bool = False) -> list[Tensor]:
    """All floating tensors of a result, or all there are, in order."""
    if isinstance(result, Tensor):
        return [result] if all_kinds or result.is_floating_point() else []
    parts = result.values() if isinstance(result, dict) else result if isinstance(result, tuple | list) else ()
    return [tensor for part in parts for tensor in tensors_of(part, all_kinds=all_kinds)]


@pytest.mark.parametrize("name", LINEAR)
def test_adapters_and_hooks_on_every_linear_layer_act(name):
    """As if their change had been added to the weight; a hook sees the layer called."""
    original, inputs = CASES[name].build("cpu", torch.float32).eval(), CASES[name].inputs(Fixed(), 4)
    for path in linear_of(original):
        layer, merged = copy.deepcopy(original), copy.deepcopy(original)
        called: list[bool] = []
        hook = layer.get_submodule(path).register_forward_hook(lambda *_, called=called: called.append(True))
        expected = tensors_of(original(*inputs))
        for one, other in zip(tensors_of(layer(*inputs)), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert called, path
        hook.remove()
        adapter = Adapter(layer.get_submodule(path))
        layer.set_submodule(path, adapter)
        after = tensors_of(layer(*inputs))
        with torch.no_grad():
            merged.get_parameter(f"{path}.weight").add_(adapter.change.weight)
        for one, other in zip(after, tensors_of(merged(*inputs)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert max((one - other).abs().max() for one, other in zip(after, expected, strict=True)) > 1e-6, path
        total = sum(part.square().sum() for part in after if part.requires_grad)
        (gradient,) = torch.autograd.grad(total, adapter.change.weight)
        assert gradient.any(), path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in LINEAR if name != "TokenSelection"])  # its gates are 0 and 1
def test_dynamic_quantisation_of_the_linear_layers(name):
    layer, inputs = CASES[name].build("cpu", torch.float32).eval(), CASES[name].inputs(Fixed(), 4)
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(layer), {nn.Linear}, dtype=torch.qint8)
    assert any("quantized" in type(module).__module__ for module in quantised.modules())
    with torch.no_grad():
        pairs = zip(tensors_of(quantised(*inputs)), tensors_of(layer(*inputs)), strict=True)
        changes = [float((one - other).abs().max() / other.abs().max().clamp(min=1e-3)) for one, other in pairs]
    assert 0 < max(changes) < 0.08


NORMED = {
    "reallocation": (lambda: sl.SemanticTokenReallocation(64, 4, num_heads=4), [(64, 128, 64)]),
    "readout": (lambda: sl.GlobalCrossAttention(64, num_heads=4), [(64, 3, 64), (64, 128, 64)]),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", NORMED)
def test_norms_sum_their_gradients_in_float32(name, autocast):
    """In bfloat16 on a CPU, torch's own sums stop at 256 terms."""
    build, shapes = NORMED[name]
    layer, inputs = build(), [torch.randn(shape) for shape in shapes]

    def gradients(dtype: torch.dtype) -> dict[str, Tensor]:
        twin = copy.deepcopy(layer) if autocast else copy.deepcopy(layer).to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and dtype is torch.bfloat16):
            output = twin(*(item.to(dtype) for item in inputs))
        weight = 0.5 + torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
        (output.float() * weight).sum().backward()
        return {name: value.grad.float() for name, value in twin.named_parameters() if "norm" in name}

    exact, seen = gradients(torch.float32), gradients(torch.bfloat16)
    for parameter, gradient in exact.items():
        assert (seen[parameter] - gradient).norm() <= 0.05 * gradient.norm(), parameter


@pytest.mark.slow
@pytest.mark.parametrize(
    "hook",
    [
        "from beartype.claw import beartype_package; beartype_package('stmi_layers')",
        "from jaxtyping import install_import_hook; install_import_hook('stmi_layers', 'beartype.beartype')",
    ],
    ids=["beartype", "jaxtyping"],
)
def test_the_package_runs_under_type_checking_import_hooks(hook):
    program = f"""
import warnings
warnings.simplefilter("ignore")
{hook}
import torch, stmi_layers as sl, stmi_layers.backbones
print(sl.SegmentationModulatedAttention(8, 2)(torch.randn(2, 9, 8), torch.rand(2, 9) > 0.5).shape)
from torch import nn
print(stmi_layers.backbones.modulate(nn.MultiheadAttention(8, 2)).alpha.shape)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
