"""Error for second derivatives, shared by all implementations without second derivatives."""

from collections.abc import Callable
from typing import NoReturn


def refuse_second_derivative(name: str) -> Callable[..., NoReturn]:
    """Return a function that raises the error, to register as the second derivative of the implementation `name`."""

    def refuse(*_: object) -> NoReturn:
        raise NotImplementedError(
            f'implementation="{name}" has no second derivative: call modulated_attention with implementation="dense", '
            "or leave create_graph off"
        )

    return refuse
