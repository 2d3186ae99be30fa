"""Quicker capture of graphs that take any size."""

import torch


def for_any_size():
    """Return a context and decorator in which torch computes every shape anew.

    To keep shapes and to check what it keeps, as it does by default, takes a third of a capture with symbolic sizes.
    """
    return torch._dynamo.config.patch(fake_tensor_cache_enabled=False)
