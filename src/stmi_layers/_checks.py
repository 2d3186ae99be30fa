"""Argument checks that several layers share: each raises ValueError with the rule and the received value."""

from collections.abc import Collection


def check_choice(name: str, value: str, options: Collection[str]) -> None:
    """Refuse a `value` outside the `options`; an annotation `Literal` has no effect while the type checker is off."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}; received {value!r}")


def check_heads(dim: int, num_heads: int) -> None:
    """Refuse heads that do not share the width evenly."""
    if num_heads < 1 or dim < 1 or dim % num_heads:
        raise ValueError(f"num_heads must divide dim; received dim={dim}, num_heads={num_heads}")


def check_probability(name: str, value: float) -> None:
    """Refuse a value outside [0, 1], NaN included."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be a probability in [0, 1]; received {value}")


def check_positive(**sizes: int | None) -> None:
    """Refuse sizes below 1; None stands for a size that keeps its default."""
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1; received {size}")


def check_hidden(dim: int, mlp_ratio: float) -> int:
    """Return the hidden width of a feed-forward network; refuse a width below 1."""
    hidden = int(mlp_ratio * dim)
    if hidden < 1:
        raise ValueError(f"mlp_ratio * dim must be at least 1; received mlp_ratio={mlp_ratio}, dim={dim}")
    return hidden
