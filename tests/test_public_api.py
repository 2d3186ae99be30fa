"""Public names and signatures, and the cost of importing them.

`python -m tests.test_public_api` writes the record again. A change in the record can break users' code and belongs
into CHANGELOG.md.
"""

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import stmi_layers
import stmi_layers.backbones
import stmi_layers.training

SNAPSHOT = Path(__file__).with_name("public_api.json")
PACKAGES = (stmi_layers, stmi_layers.backbones, stmi_layers.training)


def public_items(package: ModuleType) -> dict[str, Any]:
    return {
        name: item
        for name, item in vars(package).items()
        if not name.startswith("_") and callable(item) and item.__module__.startswith("stmi_layers")
    }


ITEMS = public_items(stmi_layers)


def bare_signature(function) -> str:
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
        if parameter.name != "self"
    ]
    text = str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    return re.sub(r"<function (\w+) at 0x\w+>", r"\1", text)


def public_signatures(package: ModuleType) -> dict[str, str]:
    """Constructors, functions, and methods other than those that every layer has."""
    signatures = {}
    for name, item in public_items(package).items():
        signatures[name] = bare_signature(item)
        for method in vars(item) if inspect.isclass(item) else ():
            if inspect.isfunction(vars(item)[method]) and not method.startswith("_"):
                signatures[f"{name}.{method}"] = bare_signature(vars(item)[method])
    own = {name: text for name, text in signatures.items() if not name.endswith((".reset_parameters", ".extra_repr"))}
    return dict(sorted(own.items()))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_names_and_signatures(package):
    assert public_signatures(package) == json.loads(SNAPSHOT.read_text())[package.__name__]


def test_package_is_marked_as_typed():
    assert Path(stmi_layers.__file__).with_name("py.typed").is_file()


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", stmi_layers.__version__)


@pytest.mark.parametrize("name", ITEMS)
def test_docstring_shows_an_example(name):
    item = ITEMS[name]
    assert item.__doc__
    assert ">>> " in item.__doc__ or dataclasses.is_dataclass(item)


def test_import_loads_the_four_dependencies_and_nothing_else():
    program = """
import sys
import beartype, einops, jaxtyping, torch
before = {name.partition(".")[0] for name in sys.modules}
assert not before & {"torchvision", "open_clip", "timm", "transformers", "matplotlib", "scipy", "sklearn", "PIL"}
import stmi_layers
added = {name.partition(".")[0] for name in sys.modules} - before - set(sys.stdlib_module_names)
assert added == {"stmi_layers"}, added
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("path", sorted(Path(stmi_layers.__file__).parent.rglob("*.py")), ids=lambda path: path.name)
def test_files_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 250


if __name__ == "__main__":
    names = {package.__name__: public_signatures(package) for package in PACKAGES}
    SNAPSHOT.write_text(json.dumps(names, indent=2) + "\n")
