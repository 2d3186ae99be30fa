"""Compiled graphs: one graph for every batch, and no forward pass that makes the host wait for the device."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

import stmi_layers as sl
from captures import for_any_size
from case import Fixed, Inputs
from cases import CASES
from stmi_layers.kernels.widened import widened_attention

DIM = 8
every_layer = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def tensors(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(shape).to(device, dtype)


def flags(*shape: int, device: str = "cpu") -> Tensor:
    return torch.rand(shape, device=device) < 0.5


def attend(tokens: Tensor, foreground: Tensor) -> Tensor:
    heads = tokens[:, None].expand(-1, 2, -1, -1)
    strengths = tokens.new_full((2,), 0.1), tokens.new_full((1,), 0.2)
    return sl.modulated_attention(heads, heads, heads, foreground, *strengths, implementation="dense")


def foreground_of(mask: Tensor) -> Tensor:
    return sl.token_foreground(mask, (4, 2), threshold=0.5)


def triplet(features: Tensor, labels: Tensor) -> Tensor:
    return sl.batch_hard_triplet(features, labels)


# Functions of the library that a forward pass may call, with their inputs for a batch and a number of tokens.
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], Callable[[int, int, str], Inputs]]] = {
    "modulated_attention": (
        attend,
        lambda b, n, device: (tensors(b, n, DIM, device=device), flags(b, n, device=device)),
    ),
    "token_foreground": (foreground_of, lambda b, n, device: (tensors(b, 16, 8, device=device).sigmoid(),)),
    "similarity_incidence": (
        lambda nodes, present: sl.similarity_incidence(nodes, 0.3, present=present),
        lambda b, n, device: (tensors(b, n, DIM, device=device), flags(b, n, device=device)),
    ),
    "hypergraph_conv": (
        sl.hypergraph_conv,
        lambda b, n, device: (tensors(b, n, DIM, device=device), flags(b, n, n, device=device)),
    ),
    "batch_hard_triplet": (
        triplet,
        lambda b, n, device: (tensors(b * n, DIM, device=device), torch.arange(b * n, device=device) // 2),
    ),
}
every_function = pytest.mark.parametrize(("function", "inputs"), FUNCTIONS.values(), ids=FUNCTIONS)


def compiled(function: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], CompileCounterWithBackend]:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    return torch.compile(function, fullgraph=True, dynamic=True, backend=counter), counter


@every_layer
@for_any_size()
def test_a_layer_is_compiled_once_for_all_batches_and_masks(case):
    layer = case.build("cpu", torch.float32).eval()
    fast, counter = compiled(layer)
    for batch in (11, 7):  # 11 is the size of no other axis: torch takes equal sizes for one
        inputs = case.inputs(Fixed(), batch)
        for values in (inputs, tuple(item.roll(1) for item in inputs)):
            torch.testing.assert_close(fast(*values), layer(*values))
    assert counter.frame_count == 1


@every_function
@for_any_size()
def test_a_function_is_compiled_once_for_all_sizes(function, inputs):
    fast, counter = compiled(function)
    for batch, tokens in ((4, 9), (3, 17), (5, 12)):
        values = inputs(batch, tokens, "cpu")
        torch.testing.assert_close(fast(*values), function(*values))
    assert counter.frame_count == 1


@pytest.mark.parametrize("backward", [False, True])
@for_any_size()
def test_the_block_of_a_vision_transformer_is_compiled_once_for_all_numbers_of_tokens(backward):
    layer = sl.SegmentationModulatedAttention(DIM, 2)
    fast, counter = compiled(layer)
    for batch, tokens in ((4, 9), (3, 17), (5, 12)):
        inputs = tensors(batch, tokens, DIM).requires_grad_(backward), flags(batch, tokens)
        actual, expected = fast(*inputs), layer(*inputs)
        torch.testing.assert_close(actual, expected)
        if backward:
            parameters = list(layer.parameters())
            actual = torch.autograd.grad(actual.square().sum(), parameters)
            torch.testing.assert_close(actual, torch.autograd.grad(expected.square().sum(), parameters))
    assert counter.frame_count == 1


def test_automatic_dynamic_shapes_settle_after_the_second_size():
    layer = sl.SemanticTokenReallocation(DIM, 3, num_heads=2).eval()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    fast = torch.compile(layer, fullgraph=True, backend=counter)
    for batch, patches in ((4, 9), (3, 17), (5, 12), (6, 30)):
        values = tensors(batch, patches, DIM), tensors(batch, DIM)
        torch.testing.assert_close(fast(*values), layer(*values))
    assert counter.frame_count == 2


class NoWaiting(TorchDispatchMode):
    """Refuses the operations whose result, or its size, the host has to fetch from the device."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "bincount")

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.name().removeprefix("aten::").partition(".")[0]
        if name.startswith(self.WAITING) or torch.Tag.data_dependent_output in function.tags:
            raise AssertionError(f"{name} makes the host wait for the device")
        return function(*arguments, **(options or {}))


@pytest.fixture
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """Layers take the form of a GPU: on a CPU they may count foreground and kept tokens, which the host has at hand."""
    monkeypatch.setattr("stmi_layers.attention.implementation_for", lambda *_: widened_attention)
    monkeypatch.setattr("stmi_layers.reconstruction._may_count", lambda flags: False)
    monkeypatch.setattr("stmi_layers.masked_aggregation._may_count", lambda keep: False)


@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize("training", [False, True])
@every_layer
def test_no_layer_makes_the_host_wait(case, training):
    layer, inputs = case.build("cpu", torch.float32).train(training), case.inputs(Fixed(), 4)
    with NoWaiting():
        output = layer(*inputs)
        if output.requires_grad:
            output.square().sum().backward()


@pytest.mark.usefixtures("_as_on_a_gpu")
@every_function
def test_no_function_makes_the_host_wait(function, inputs):
    with NoWaiting():
        function(*inputs(2, 6, "cpu"))


def test_waiting_is_noticed():
    for wait in (Tensor.item, Tensor.nonzero, bool, lambda flag: flag[flag]):
        with NoWaiting(), pytest.raises(AssertionError, match="makes the host wait"):
            wait(torch.tensor(True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("training", [False, True])
@every_layer
def test_no_layer_synchronises_a_gpu(case, training):
    layer = case.build("cuda", torch.float32).train(training)
    inputs = tuple(item.cuda() for item in case.inputs(Fixed(), 4))
    layer(*inputs)  # the first call may load and build what the GPU runs
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = layer(*inputs)
        if output.requires_grad:
            output.square().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
