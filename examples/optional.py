"""Import of optional libraries, with errors that say what to install."""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

# Modules of the extra `examples` of pyproject.toml.
NEEDED = ("torchvision", "PIL", "numpy", "tyro", "tqdm", "tensorboard", "matplotlib", "scipy", "sklearn")


def import_library(name: str, extra: str) -> Any:
    """Import a library of pretrained models or figures.

    Args:
        name: module to import.
        extra: extra of this package that installs it.

    Raises:
        ImportError: when it cannot be imported; the message names the extra.
    """
    from stmi_layers.training._torchvision import import_torchvision

    import_torchvision()  # all of these libraries import it
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} cannot be imported; from a clone: pip install '.[{extra}]'") from error


def check_examples() -> None:
    """Refuse to start a command without the libraries of the extra `examples`, naming all that are missing.

    Raises:
        SystemExit: in a command, with the message in a line.
        ImportError: elsewhere.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if not missing:
        return
    message = f"{', '.join(missing)} cannot be imported; install what the examples need: pip install -e '.[examples]'"
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.startswith("examples."):  # started by python -m
        sys.exit(f"error: {message}")
    raise ImportError(message)
