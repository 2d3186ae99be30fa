"""The refusal of second derivatives, in the same words wherever an implementation has none."""

from collections.abc import Callable
from typing import NoReturn


def refuse_second_derivative(name: str) -> Callable[..., NoReturn]:
    """Return what stands for the backward pass of the backward pass of the implementation `name`."""

    def refuse(*_: object) -> NoReturn:
        raise NotImplementedError(
            f'implementation="{name}" has no second derivative: call modulated_attention with implementation="dense", '
            "or leave create_graph off"
        )

    return refuse
