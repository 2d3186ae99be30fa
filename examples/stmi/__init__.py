"""The full STMI model, its data, trainer and evaluation, composed from the public layers."""

import sys
from importlib.util import find_spec

# The extra `examples` of pyproject.toml, by what is imported of it.
_NEEDED = ("torchvision", "PIL", "numpy", "tyro", "tqdm", "tensorboard", "matplotlib", "scipy", "sklearn")

if _missing := [name for name in _NEEDED if find_spec(name) is None]:
    _message = f"{', '.join(_missing)} cannot be imported; install what the examples need: pip install -e '.[examples]'"
    if sys.argv[0] == "-m":  # what Python puts there while it looks for the module of a command
        sys.exit(f"error: {_message}")
    raise ImportError(_message)
