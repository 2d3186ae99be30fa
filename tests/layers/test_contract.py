"""Contract of the layers, checked on every layer."""

import copy
import functools
import inspect
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import stmi_layers
from captures import for_any_size
from case import DIM, Case, Drawn, Fixed, Inputs
from cases import CASES
from processes import in_processes


def every_case(condition: Callable[[Case], object] = lambda case: True) -> pytest.MarkDecorator:
    chosen = {name: case for name, case in CASES.items() if condition(case)}
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen)


every_learning_case = every_case(lambda case: case.state)


def example(case: Case, device: str = "cpu", dtype: torch.dtype = torch.float32, batch: int = 4) -> Inputs:
    return convert(case.inputs(Fixed(), batch), device, dtype)


def convert(inputs: Inputs, device: str, dtype: torch.dtype) -> Inputs:
    return tuple(item.to(device, dtype if item.is_floating_point() else item.dtype) for item in inputs)


def scalar(output: Tensor) -> Tensor:
    """A sum in which every entry counts differently, so that gradients do not cancel by symmetry."""
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype, device=output.device)
    return (output * weights.reshape(output.shape)).sum()


def gradients(layer: nn.Module, output: Tensor) -> dict[str, Tensor]:
    parameters = {name: value for name, value in layer.named_parameters() if value.requires_grad}
    if not parameters:  # buffers alone
        return {}
    return dict(zip(parameters, torch.autograd.grad(scalar(output), list(parameters.values())), strict=True))


def test_every_layer_has_a_case():
    public = {name for name, item in vars(stmi_layers).items() if inspect.isclass(item) and issubclass(item, nn.Module)}
    assert {type(case.build("cpu", torch.float32)).__name__ for case in CASES.values()} == public


@every_case()
@settings(max_examples=settings().max_examples * 2 // 5)
@given(data=st.data())
def test_shapes(case, data):
    inputs = case.inputs(Drawn(data.draw), data.draw(st.integers(1, 3)))
    output = case.build("cpu", torch.float32).eval()(*inputs)
    assert output.shape == case.shape(*inputs)
    assert output.isfinite().all()


@every_case(lambda case: case.per_sample)
@settings(max_examples=settings().max_examples * 2 // 5)
@given(data=st.data())
def test_samples_do_not_see_each_other(case, data):
    batch = data.draw(st.integers(2, 3))
    inputs = case.inputs(Drawn(data.draw), batch)
    layer = case.build("cpu", torch.float32).eval()
    output = layer(*inputs)
    for index in range(batch):
        alone = layer(*(item[index : index + 1] for item in inputs))
        torch.testing.assert_close(output[index : index + 1], alone)
        others = torch.tensor([other for other in range(batch) if other != index])
        broken = (item.index_fill(0, others, torch.nan if item.is_floating_point() else 0) for item in inputs)
        torch.testing.assert_close(layer(*broken)[index : index + 1], alone)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_case()
def test_dtype_is_kept(case, dtype, device):
    layer, inputs = case.build(device, dtype).eval(), example(case, device, dtype)
    assert all(value.dtype == dtype for value in layer.state_dict().values() if value.is_floating_point())
    output = layer(*inputs)
    half = dtype.itemsize == 2
    kept = dtype if case.state else inputs[0].dtype
    assert output.dtype == (case.half_result if half and case.half_result else kept)
    if not case.state:
        return
    assert all(gradient.isfinite().all() for gradient in gradients(layer, output).values())

    exact = copy.deepcopy(layer).double()(*convert(inputs, device, torch.float64))
    error = (output.double() - exact).abs().max() / exact.abs().max()
    assert error < 16 * torch.finfo(dtype).eps


@every_learning_case
def test_autocast(case, device):
    layer, inputs = case.build(device, torch.float32).eval(), example(case, device)
    expected = layer(*inputs)
    with torch.autocast(device, dtype=torch.bfloat16):
        output = layer(*inputs)
    assert (output.float() - expected).abs().max() < 0.05 * expected.abs().max()
    assert all(gradient.isfinite().all() for gradient in gradients(layer, output.float()).values())


@every_learning_case
def test_every_parameter_gets_a_gradient(case, device):
    layer = case.build(device, torch.float32)
    for name, gradient in gradients(layer, layer(*example(case, device))).items():
        assert gradient.isfinite().all(), name
        assert gradient.any(), name


@every_case()
def test_evaluation_is_deterministic_and_leaves_the_layer_alone(case, device):
    layer, inputs = case.build(device, torch.float32).eval(), example(case, device)
    state = copy.deepcopy(layer.state_dict())
    assert torch.equal(layer(*inputs), layer(*inputs))
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())


@every_case()
def test_inputs_stay_untouched(case, device):
    layer, inputs = case.build(device, torch.float32), example(case, device)
    for item in inputs:
        item.requires_grad_(item.is_floating_point())
    before = [(item.detach().clone(), item._version) for item in inputs]
    output = layer(*inputs)
    if output.requires_grad:
        scalar(output).backward()
    for item, (values, version) in zip(inputs, before, strict=True):
        assert torch.equal(item, values)
        assert item._version == version
    if case.detached:
        assert all(item.grad is None for item in inputs)
        return
    assert all(item.grad is not None and item.grad.isfinite().all() for item in inputs if item.requires_grad)


@every_case()
def test_state_dict_names(case):
    assert sorted(case.build("cpu", torch.float32).state_dict()) == sorted(case.state)


@every_learning_case
def test_meta_layer_comes_to_life_by_reset_parameters(case, device):
    layer = case.build("meta", torch.float32)
    inputs = example(case, "meta")
    assert layer(*inputs).shape == case.shape(*inputs)
    layer = layer.to_empty(device=device)  # filled with NaN, see conftest.py
    built = case.build(device, torch.float32)
    for item in (layer, built):
        torch.manual_seed(1)
        item.reset_parameters()
    assert all(torch.equal(value, built.state_dict()[name]) for name, value in layer.state_dict().items())
    assert all(value.isfinite().all() for value in layer.state_dict().values())


@every_case()
def test_pickle_and_deepcopy(case):
    layer, inputs = case.build("cpu", torch.float32).eval(), example(case)
    for twin in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert torch.equal(twin(*inputs), layer(*inputs))


@every_case()
def test_repr_can_be_pasted_back(case):
    layer, inputs = case.build("cpu", torch.float32).eval(), example(case)
    twin = eval(f"stmi_layers.{type(layer).__name__}({layer.extra_repr()})").eval()
    assert repr(twin) == repr(layer)
    layer.load_state_dict(twin.state_dict(), strict=True)
    assert torch.equal(layer(*inputs), twin(*inputs))


@every_case(lambda case: case.twin)
def test_layer_is_its_function(case):
    layer, inputs = case.build("cpu", torch.float32).eval(), example(case)
    torch.testing.assert_close(layer(*inputs), case.twin(layer, *inputs))


@every_case(lambda case: case.width)
def test_another_width_is_refused_by_name(case):
    narrow = (item[..., :-1] if item.shape[-1] == DIM else item for item in example(case))
    with pytest.raises(ValueError, match=re.escape(case.width)):
        case.build("cpu", torch.float32).eval()(*narrow)


@every_learning_case
def test_activation_checkpointing_changes_no_gradient(case):
    layer, inputs = case.build("cpu", torch.float32), example(case)
    torch.manual_seed(1)
    expected = gradients(layer, layer(*inputs))
    torch.manual_seed(1)
    actual = gradients(layer, checkpoint(layer, *inputs, use_reentrant=False))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@every_learning_case
def test_functional_call_and_grad(case):
    layer, inputs = case.build("cpu", torch.float32).eval(), example(case)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return scalar(torch.func.functional_call(layer, parameters, inputs))

    actual = torch.func.grad(loss)(dict(layer.named_parameters()))
    expected = gradients(layer, layer(*inputs))
    torch.testing.assert_close({name: actual[name] for name in expected}, expected)


@every_case()
def test_compile_to_one_graph(case):
    layer, inputs = case.build("cpu", torch.float32).eval(), example(case)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    torch.testing.assert_close(compiled(*inputs), layer(*inputs))
    # Masks are data: other values need no other graph.
    others = tuple(item.roll(1) for item in inputs)
    torch.testing.assert_close(compiled(*others), layer(*others))
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_inductor_trains_attention():
    case = CASES["SegmentationModulatedAttention"]
    layer, inputs = case.build("cpu", torch.float32).eval(), example(case)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(gradients(layer, compiled(*inputs)), gradients(layer, layer(*inputs)))


@every_case(lambda case: case.random)
def test_randomness_is_drawn_anew_in_training(case):
    layer, inputs = case.build("cpu", torch.float32), example(case)
    torch._dynamo.reset()
    for function in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        assert not torch.equal(function(*inputs), function(*inputs))


@functools.cache
@for_any_size()
def exported(case: Case) -> tuple[nn.Module, torch.export.ExportedProgram]:
    """A layer and its graph, captured once for all tests of it."""
    layer, inputs = case.build("cpu", torch.float32).eval(), example(case)
    batch = torch.export.Dim("batch", min=2, max=4096)
    return layer, torch.export.export(layer, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))


@every_case()
def test_export_with_a_dynamic_batch(case):
    layer, program = exported(case)
    others = example(case, batch=3)
    torch.testing.assert_close(program.module()(*others), layer(*others))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        "SegmentationModulatedAttention",
        "CrossModalHypergraph",
        "TokenPermutation",
        "CrossModalReconstruction",
        "MaskedAggregation with a bound",
        "DeformableReadout, shared",
        "DeformableReadout, separate",
        "CaptionPrompts",
        "TextInversion",
        "SegmentationGuidedPooling",
        "ImageTextAlignment",
        "TokenIdentityLoss",
        "AsymmetricAdapter",
        "ParallelAdapter",
        "ResidualPrompts",
    ],
)
def test_onnx(name):
    pytest.importorskip("onnxscript")
    evaluator = pytest.importorskip("onnx.reference")
    case = CASES[name]
    layer, captured = exported(case)
    program = torch.onnx.export(captured, dynamo=True, verbose=False)
    others = example(case, batch=3)
    assert program is not None
    session = evaluator.ReferenceEvaluator(program.model_proto)
    (output,) = session.run(None, dict(zip(session.input_names, (item.numpy() for item in others), strict=True)))
    torch.testing.assert_close(torch.from_numpy(output), layer(*others))


def _one_of_two(results: str) -> None:
    case = CASES["SegmentationModulatedAttention"]
    torch.manual_seed(0)
    layer, inputs = case.build("cpu", torch.float32).eval(), example(case)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    parallel = DistributedDataParallel(layer)
    try:
        parallel(*(item[2 * rank : 2 * rank + 2] for item in inputs)).square().sum().backward()
        if rank == 0:
            torch.save({name: value.grad for name, value in layer.named_parameters()}, results)
    finally:
        del parallel  # the last to let go of a group of gloo may wait for ever
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_average_their_gradients(tmp_path: Path):
    in_processes(_one_of_two, f"{tmp_path}/gradients.pt")
    case = CASES["SegmentationModulatedAttention"]
    torch.manual_seed(0)
    layer, inputs = case.build("cpu", torch.float32).eval(), example(case)
    (layer(*inputs).square().sum() / 2).backward()
    expected = {name: value.grad for name, value in layer.named_parameters()}
    torch.testing.assert_close(torch.load(tmp_path / "gradients.pt"), expected)
