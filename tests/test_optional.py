"""torchvision with a version of torch that it was not built for, and commands without it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from examples import optional
from examples.prepare.captions.local import LocalModel
from examples.prepare.masks import sam2, sam3


class _Recorder:
    """Stands in for `import_module` and `torch.library.Library`."""

    def __init__(self, *failures: str) -> None:
        self.failures, self.imports, self.schemas = list(failures), 0, list[str]()

    def import_module(self, name: str) -> None:
        self.imports += 1
        if self.failures:
            raise RuntimeError(self.failures.pop(0))

    def library(self, namespace: str, kind: str) -> "_Recorder":
        assert (namespace, kind) == ("torchvision", "FRAGMENT")
        return self

    def define(self, schema: str) -> None:
        self.schemas.append(schema)


@pytest.mark.parametrize(
    ("failures", "imports", "declared"),
    [((), 1, 0), (("operator torchvision::nms does not exist",), 2, 2)],
)
def test_torchvision_is_mended_only_where_broken(
    monkeypatch: pytest.MonkeyPatch, failures: tuple[str, ...], imports: int, declared: int
) -> None:
    recorder = _Recorder(*failures)
    monkeypatch.setattr(optional.importlib, "import_module", recorder.import_module)
    monkeypatch.setattr(torch.library, "Library", recorder.library)
    monkeypatch.setattr(optional, "_kept", [])
    optional.import_torchvision()
    assert (recorder.imports, len(recorder.schemas)) == (imports, declared)
    assert all("(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" in schema for schema in recorder.schemas)
    assert len(optional._kept) == (declared > 0)


def test_other_errors_of_torchvision_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = _Recorder("another one")
    monkeypatch.setattr(optional.importlib, "import_module", recorder.import_module)
    with pytest.raises(RuntimeError, match="another one"):
        optional.import_torchvision()
    assert recorder.imports == 1


@pytest.mark.parametrize("load", [sam2.load, sam3.load, LocalModel.load])
def test_commands_with_local_models_name_their_extra(
    load: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.json").touch()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"^transformers cannot be imported; .*'\.\[hf\]'$") as raised:
        load(tmp_path)
    assert raised.value.name is None  # an error with a name keeps its traceback on the command line
