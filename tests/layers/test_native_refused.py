"""The C++ kernel where it does not run: nothing of it is loaded unasked, and every refusal names a cure."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from attention_problems import problem
from stmi_layers import modulated_attention
from stmi_layers.kernels import dispatch, native
from stmi_layers.kernels.native.__main__ import build

COMMAND = r"python -m stmi_layers\.kernels\.native"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for extensions where nothing was built, and a process that loaded nothing."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(native, "_loaded", False)
    return tmp_path


def attend(*inputs: Tensor) -> Tensor:
    return modulated_attention(*inputs, implementation="native")


def test_the_package_loads_hashes_and_looks_for_nothing():
    program = """
import hashlib, pathlib, torch

def refuse(*_, **__):
    raise AssertionError("this is for the first call of the native form")

torch.ops.load_library = hashlib.sha256 = pathlib.Path.read_bytes = refuse
import stmi_layers, stmi_layers.backbones
from stmi_layers.kernels import native

native.library_path = refuse
heads, strength = torch.randn(1, 2, 5, 4), torch.tensor([0.1])
stmi_layers.modulated_attention(heads, heads, heads, torch.rand(1, 5) < 0.5, strength, strength)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("dtype", native.DTYPES)
@pytest.mark.parametrize("tokens", [1, 129])
def test_auto_never_takes_it(tokens, dtype, monkeypatch):
    def refuse(*_: object) -> Tensor:
        raise AssertionError("the native form was taken")

    monkeypatch.setattr(native, "_loaded", True)
    monkeypatch.setitem(dispatch.FORMS, "native", refuse)
    inputs = [item.requires_grad_(item.is_floating_point()) for item in problem(tokens, dtype=dtype)]
    assert modulated_attention(*inputs).dtype == dtype
    with pytest.raises(AssertionError, match="was taken"):
        attend(*inputs)


@pytest.mark.parametrize("foreground", [True, False])
def test_not_built(foreground):
    inputs = problem(5)
    inputs[3] = inputs[3] if foreground else None
    with pytest.raises(RuntimeError, match=rf"needs its C\+\+ kernel, .* is missing\. Build it once: {COMMAND}"):
        attend(*inputs)
    assert not native.is_built()


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch 2.6 takes a compilation for an export")
def test_not_built_under_compile():
    torch._dynamo.reset()
    with pytest.raises(Exception, match=rf"is missing\. Build it once: {COMMAND}"):
        torch.compile(attend, fullgraph=True, backend="eager")(*problem(5))


def test_of_other_sources_or_another_torch(tmp_path, monkeypatch):
    path = native.library_path()
    path.parent.mkdir()
    sources = tmp_path / "sources"
    sources.mkdir()
    for source in native.SOURCES.glob("*.*"):
        (sources / source.name).write_bytes(source.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(native, "SOURCES", sources)
        assert native.library_path() == path
        (sources / "vectors.h").write_text("// another one", encoding="utf-8")
        native.library_path().touch()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "1.0.0")
        native.library_path().touch()
    assert len(list(path.parent.iterdir())) == 2
    with pytest.raises(RuntimeError, match="is missing"):
        attend(*problem(5))


def test_a_library_that_is_none():
    path = native.library_path()
    path.parent.mkdir()
    path.write_text("no library", encoding="utf-8")
    with pytest.raises(RuntimeError, match=f"could not be loaded: .* Build it again: {COMMAND}"):
        attend(*problem(5))


def test_tensors_that_it_does_not_support():
    with pytest.raises(ValueError, match=r'is for CPU tensors in float16, .* on meta\. Use implementation="auto"'):
        attend(*(item.to("meta") for item in problem(5)))
    with pytest.raises(ValueError, match=r"received query in torch\.float8_e5m2 on cpu"):
        native.check_native(torch.empty(1, 1, 1, 1, dtype=torch.float8_e5m2))


# torch imports its own scripted decompositions for forward-mode derivatives.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_transforms():
    query, *rest = problem(5)
    with pytest.raises(ValueError, match=r'"native" cannot run inside a transform of torch\.func; use "auto"'):
        torch.func.grad(lambda query: attend(query, *rest).sum())(query)
    with forward_ad.dual_level(), pytest.raises(ValueError, match='"native" cannot run inside forward-mode diff'):
        attend(forward_ad.make_dual(query, torch.ones_like(query)), *rest)


class Attention(torch.nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return attend(*inputs)


@pytest.mark.filterwarnings("ignore")
def test_graphs_that_are_saved():
    inputs = tuple(problem(5))
    refusal = '"native" cannot run inside a graph that is exported or traced; use "auto" or "dense"'
    for strict in (True, False):
        # A strict export of torch 2.6 stops at the error, and does not show its message.
        shown = "Observed exception" if strict and not hasattr(torch.compiler, "is_exporting") else refusal
        with pytest.raises(Exception, match=shown):
            torch.export.export(Attention(), inputs, strict=strict)
    with pytest.raises(ValueError, match=refusal):
        torch.jit.trace(Attention(), inputs)


def test_build_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.raises(RuntimeError, match=r"no-such-compiler was not found\. Install g\+\+"):
        build()


def test_build_with_a_compiler_that_fails(elsewhere, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.raises(RuntimeError, match=r"C\+\+20 with OpenMP"):
        build()
    assert not list((elsewhere / "stmi_layers").iterdir())


def test_build_for_an_older_processor(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    with pytest.raises(RuntimeError, match=r"AVX2 or AVX512; received DEFAULT\. Use"):
        build()
