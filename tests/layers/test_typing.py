"""Argument checks of public functions: their messages, and where the checks are skipped."""

import copy
import inspect
import os
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import AnnotationError, Bool, Float, TypeCheckError, jaxtyped
from torch import Tensor, nn

from stmi_layers import typed
from stmi_layers._acceptance import Acceptance


@typed
def blend(
    left: Float[Tensor, "batch dim"],
    right: Float[Tensor, "batch dim"],
    keep: Bool[Tensor, " batch"] | None = None,
    *,
    share: float = 0.5,
) -> Float[Tensor, "batch dim"]:
    """Mix two tensors."""
    mixed = share * left + (1 - share) * right
    return mixed if keep is None else torch.where(keep[:, None], left, mixed)


@typed
def transpose(tensor: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    return tensor.T


class Blend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor([0.25]))

    @typed
    def forward(
        self, left: Float[Tensor, "batch dim"], right: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch dim"]:
        return self.share * left + (1 - self.share) * right


def pair(batch: int = 3, dim: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, dim), torch.randn(batch, dim)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"left": torch.zeros(3)}, r"(?s)parameter 'left'.*Actual value: f32\[3\].*batch dim"),
        ({"right": torch.zeros(3, 5)}, r"(?s)parameter 'right'.*f32\[3,5\].*dim=4"),
        ({"right": torch.zeros(2, 4)}, r"(?s)parameter 'right'.*f32\[2,4\].*batch=3"),
        ({"left": torch.zeros(3, 4, dtype=torch.int64)}, r"(?s)parameter 'left'.*i64\[3,4\]"),
        ({"keep": torch.ones(3)}, r"(?s)parameter 'keep'.*Bool"),
        ({"keep": torch.ones(2, dtype=torch.bool)}, r"(?s)parameter 'keep'.*bool\[2\]"),
        ({"left": [0.0]}, "parameter 'left'"),
        ({"share": "half"}, "parameter 'share'"),
    ],
)
def test_message_names_the_argument(arguments, message):
    left, right = pair()
    with pytest.raises(TypeCheckError, match=message):
        blend(**{"left": left, "right": right, **arguments})


def test_message_names_the_method():
    with pytest.raises(TypeCheckError, match=r"(?s)Blend\.forward.*parameter 'right'"):
        Blend()(torch.zeros(3, 4), torch.zeros(3))


def test_result_is_checked():
    with pytest.raises(TypeCheckError, match=r"(?s)return value of .*transpose"):
        transpose(torch.zeros(2, 3))


def test_devices_must_agree():
    left, right = pair()
    message = "blend: all tensors must be on one device; received left on cpu, right on meta"
    with pytest.raises(ValueError, match=message):
        blend(left, right.to("meta"))
    with pytest.raises(ValueError, match=message):
        blend(right=right.to("meta"), left=left)
    with pytest.raises(ValueError, match=r"Blend\.forward: .* left on meta, right on cpu"):
        Blend()(left.to("meta"), right)
    assert blend(left.to("meta"), right.to("meta"), None).device.type == "meta"


def test_a_function_of_the_package_is_checked_once_per_call_from_outside():
    """Inside a layer nothing is checked again; a typed function of others is, wherever it is called."""

    def double(tensor: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        return tensor + tensor

    def of_package(function):
        function.__module__ = "stmi_layers.made_up"
        return typed(function)

    inner = of_package(double)
    with pytest.raises(TypeCheckError, match="parameter 'tensor'"):
        inner(torch.zeros(3))

    def outer(tensor: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        return inner(tensor)

    assert of_package(outer)(torch.ones(3)).tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(TypeCheckError, match="parameter 'tensor'"):
        inner(torch.zeros(3))  # the state is left with the call

    def foreign(tensor: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        return transpose(tensor)

    with pytest.raises(TypeCheckError, match="transpose"):
        of_package(foreign)(torch.ones(3))
    with pytest.raises(TypeCheckError, match="parameter 'tensor'"):
        inner(torch.zeros(3))  # also when the call ended with an error


def test_int_serves_as_float():
    left, right = pair()
    assert torch.equal(blend(left, right, share=1), left)


def test_signature_and_docstring_survive():
    assert blend.__doc__ == "Mix two tensors."
    assert list(inspect.signature(blend).parameters) == ["left", "right", "keep", "share"]


def test_compile_captures_one_clean_graph():
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]):
        graphs.append(graph)
        return graph

    left, right = pair()
    module = Blend()
    for function in (blend, module):
        compiled = torch.compile(function, fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(left, right), function(left, right))
    assert len(graphs) == 2
    called = {node.target.__name__ for graph in graphs for node in graph.graph.nodes if node.op == "call_function"}
    assert called <= {"mul", "add", "sub", "rsub"}


@pytest.mark.parametrize("strict", [True, False])
def test_export_with_a_dynamic_batch(strict):
    module = Blend()
    batch = torch.export.Dim("batch", max=4096)
    program = torch.export.export(module, pair(), dynamic_shapes=({0: batch}, {0: batch}), strict=strict)
    left, right = pair(batch=5)
    torch.testing.assert_close(program.module()(left, right), module(left, right))


def test_function_transforms():
    left, right = pair()
    stacked = torch.randn(2, 3, 4)
    mapped = torch.func.vmap(blend, in_dims=(0, None))(stacked, right)
    torch.testing.assert_close(mapped, torch.stack([blend(item, right) for item in stacked]))
    gradient = torch.func.grad(lambda tensor: blend(tensor, right).sum())(left)
    torch.testing.assert_close(gradient, torch.full_like(left, 0.5))
    with pytest.raises(TypeCheckError, match="parameter 'left'"):
        torch.func.vmap(blend, in_dims=(0, None))(left, right)


def test_functions_and_modules_travel():
    left, right = pair()
    assert pickle.loads(pickle.dumps(blend)) is blend
    module = Blend()
    for twin in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        torch.testing.assert_close(twin(left, right), module(left, right))


def test_jaxtyping_disable_switches_the_shapes_off():
    program = """
import torch
from stmi_layers import token_foreground
mask = torch.ones(1, 4, 4, dtype=torch.bool)
assert token_foreground(mask, (2, 2)).all()
assert token_foreground(mask.long(), [2, 2]).all()  # neither the dtype nor the list is allowed
"""
    with pytest.raises(TypeCheckError, match="parameter 'mask'"):
        exec(program)
    environment = {**os.environ, "JAXTYPING_DISABLE": "1"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


ANNOTATIONS = [
    Float[Tensor, "a b"],
    Float[Tensor, "b a"] | Bool[Tensor, ""],
    Bool[Tensor, " a"] | Float[Tensor, "a b"],
    Float[Tensor, "#a 2*b"],
    Float[Tensor, "*rest b"],
    Float[Tensor, "... 3"],
]
shapes = st.lists(st.integers(1, 3), max_size=3)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.bool, torch.int64])


@given(st.lists(st.tuples(st.sampled_from(ANNOTATIONS), shapes, dtypes), min_size=1, max_size=3))
def test_a_call_is_accepted_at_once_only_when_the_checks_pass(arguments):
    values = [torch.zeros(shape, dtype=dtype) for _, shape, dtype in arguments]
    names = ("x", "y", "z")[: len(values)]

    def function(*values: Tensor) -> None: ...

    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation)
        for name, (annotation, *_) in zip(names, arguments, strict=True)
    ]
    function.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    accepted = Acceptance(function).arguments(tuple(values), {}, {})
    with jaxtyped("context"):
        try:
            right = all(
                isinstance(value, annotation) for value, (annotation, *_) in zip(values, arguments, strict=True)
            )
        except AnnotationError:  # arithmetic on the size of an axis that comes later
            right = False
    assert accepted == right
