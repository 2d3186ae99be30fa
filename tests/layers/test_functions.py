"""Contract of every public function: batches, layouts, dtypes, autocast, graphs, transforms, gradients."""

import inspect
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import stmi_layers
from captures import for_any_size
from case import Drawn, Fixed, FunctionCase, Inputs
from cases import FUNCTIONS

HALF = (torch.float16, torch.bfloat16)


def every_function(condition: Callable[[FunctionCase], object] = lambda case: True) -> pytest.MarkDecorator:
    chosen = {name: case for name, case in FUNCTIONS.items() if condition(case)}
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen)


in_graphs = every_function(lambda case: case.graph)


def example(case: FunctionCase, device: str = "cpu", dtype: torch.dtype = torch.float32, batch: int = 4) -> Inputs:
    return convert(case.inputs(Fixed(), batch), device, dtype)


def convert(inputs: Inputs, device: str, dtype: torch.dtype) -> Inputs:
    return tuple(item.to(device, dtype if item.is_floating_point() else item.dtype) for item in inputs)


def expected_dtype(case: FunctionCase, inputs: Inputs) -> torch.dtype:
    if case.dtype is None or not case.dtype.is_floating_point:
        return case.dtype or inputs[0].dtype
    floating = [item.dtype for item in inputs if item.is_floating_point()]
    return torch.promote_types(case.dtype, floating[0]) if floating else case.dtype


def test_every_public_function_has_a_case():
    public = {name for name, item in vars(stmi_layers).items() if inspect.isfunction(item)}
    tables = {"modality_subsets", "reference_positions"}  # from sizes alone: there is no batch
    assert set(FUNCTIONS) >= public - tables - {"typed"}


@every_function(lambda case: case.per_sample)
@given(data=st.data())
def test_samples_do_not_see_each_other(case, data):
    batch = data.draw(st.integers(2, 3))
    inputs = case.inputs(Drawn(data.draw), batch)
    output = case.call(*inputs)
    for index in range(batch):
        alone = (item if n in case.shared else item[index : index + 1] for n, item in enumerate(inputs))
        torch.testing.assert_close(case.call(*alone), output[index : index + 1], equal_nan=True)


@every_function(lambda case: case.empty)
def test_an_empty_batch(case):
    output, some = case.call(*example(case, batch=0)), case.call(*example(case))
    assert output.dtype == some.dtype
    assert output.dim() == some.dim()
    assert output.numel() == 0 or not output.any()


@every_function()
def test_memory_layout_does_not_matter(case):
    inputs = example(case)
    strided = tuple(torch.stack([item, item], dim=-1)[..., 0] for item in inputs)
    assert not any(item.is_contiguous() for item in strided if item.numel() > 1)
    turned = tuple(item.mT.contiguous().mT if item.dim() > 1 else item for item in inputs)
    expected = case.call(*inputs)
    for others in (strided, turned):
        torch.testing.assert_close(case.call(*others), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
@every_function()
def test_dtype_of_the_result_and_its_error(case, dtype, device):
    inputs = example(case, device, dtype)
    output = case.call(*inputs)
    assert output.dtype == expected_dtype(case, inputs)
    exact = case.call(*convert(inputs, device, torch.float64))
    if not output.is_floating_point():
        assert (output != exact).double().mean() <= (0.2 if dtype in HALF else 0)
        return
    error = (output.double() - exact).abs().max() / exact.abs().max()
    assert error <= 16 * torch.finfo(dtype).eps


@every_function()
def test_autocast_is_close(case, device):
    inputs = example(case, device)
    expected = case.call(*inputs)
    with torch.autocast(device, dtype=torch.bfloat16):
        output = case.call(*inputs)
    torch.testing.assert_close(
        output.double(), expected.double(), rtol=0, atol=0.05 * expected.double().abs().max().item()
    )


class Function(nn.Module):
    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.call(*inputs)


@in_graphs
def test_compiles_to_one_graph(case):
    torch._dynamo.reset()
    compiled = torch.compile(Function(case.call), fullgraph=True, backend="aot_eager")
    inputs = example(case)
    torch.testing.assert_close(compiled(*inputs), case.call(*inputs))


@in_graphs
@for_any_size()
def test_exports_with_a_dynamic_batch(case):
    batch = torch.export.Dim("batch", min=2, max=4096)
    inputs, others = example(case), example(case, batch=3)
    shapes = tuple({} if n in case.shared else {0: batch} for n in range(len(inputs)))
    program = torch.export.export(Function(case.call), inputs, dynamic_shapes=(shapes,))
    assert "stmi_layers" not in str(program.graph)
    torch.testing.assert_close(program.module()(*others), case.call(*others))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch has no rule for its own attention
@in_graphs
def test_vmap(case):
    inputs = example(case)
    axes = tuple(None if n in case.shared or not item.is_floating_point() else 0 for n, item in enumerate(inputs))
    if set(axes) == {None}:
        axes = (0,) * len(inputs)
    stacked = tuple(
        item if axis is None else torch.stack([item, item.flip(0)]) for item, axis in zip(inputs, axes, strict=True)
    )
    actual = torch.func.vmap(case.call, in_dims=axes)(*stacked)
    for index in (0, 1):
        alone = (item if axis is None else item[index] for item, axis in zip(stacked, axes, strict=True))
        torch.testing.assert_close(actual[index], case.call(*alone))


@every_function(lambda case: case.smooth)
def test_gradients_are_those_of_finite_differences(case):
    inputs = example(case, dtype=torch.float64, batch=3)
    leaves = tuple(item.requires_grad_(item.is_floating_point()) for item in inputs)
    # Large inputs along one random direction, which the error of a wrong gradient is almost never orthogonal to.
    large = sum(item.numel() for item in leaves if item.requires_grad) > 200
    assert torch.autograd.gradcheck(case.call, leaves, fast_mode=large)
