"""Pretrained weights for a model already built, with an account of what became of every tensor."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from stmi_layers.backbones.positions import position_grids, resize_positions, square_grid
from stmi_layers.backbones.weight_files import read_weight_file

# What `modulate` adds to a model: no pretrained file has them.
STRENGTHS = ("alpha", "beta")


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did; `str` of it is for people.

    Attributes:
        path: the file.
        kind: what sort of file it is.
        prefix: what stands before the names in the file, such as "visual.".
        loaded: names in the model whose values come from the file.
        resized: those among them that are positions of another grid, with the old and the new grid.
        missing: names that are not in the file and keep their values: strengths of the modulation.
        unexpected: names in the file that the model has no place for.
        activation: what is known about QuickGELU.
    """

    path: Path
    kind: str
    prefix: str
    loaded: tuple[str, ...]
    resized: dict[str, tuple[tuple[int, int], tuple[int, int]]]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    activation: str

    def __str__(self) -> str:
        under = f", found under {self.prefix!r}" if self.prefix else ""
        grids = [f"{name} from {old} to {new} patches" for name, (old, new) in self.resized.items()]
        lines = [
            f"{self.path} ({self.kind}): {len(self.loaded)} tensors loaded{under}",
            f"resized: {_shorten(grids)}",
            f"not in the file, left as they were: {_shorten(self.missing)}",
            f"only in the file, not used: {_shorten(self.unexpected)}",
            f"activation: {self.activation}",
        ]
        return "\n  ".join(lines)


def load_weights(
    model: nn.Module,
    path: Path | str,
    *,
    old_grid: tuple[int, int] | None = None,
    trust_pickle: bool = False,
) -> LoadReport:
    """Load a pretrained file into a vision transformer, a text tower or a whole CLIP model.

    Understood are OpenAI's TorchScript archives, safetensors files and torch files, the latter also as checkpoints with
    the weights under `state_dict`, `model` or `module`. A prefix common to the names, such as `module.` or `visual.`,
    is dropped: of all that occur, the one that leaves the most names of the model found, and the shortest of equals.
    Position embeddings of another image size are [resized][stmi_layers.backbones.resize_positions]; numbers
    are converted to the dtype of the model. The model is changed only when everything fits.

    No code from the file is run. Only a torch file can ask for that, with `trust_pickle`.

    Args:
        model: built by open_clip, timm or transformers for the names in the file, before or after `modulate`, and
            before it is wrapped in [`TokenBackbone`][stmi_layers.backbones.TokenBackbone].
        path: the file.
        old_grid: rows and columns of patches of the images the file was trained with; by default a square, and an
            error when the number of patches is none. 16 x 8 and 8 x 16 cannot be told apart.
        trust_pickle: read a torch file that holds more than tensors. Doing so can run any code: only for files from
            people you would take a program from.

    Returns:
        The account. Names it calls missing are strengths of the modulation; everything else must be in the file.

    Raises:
        FileNotFoundError: when there is no such file.
        ImportError: when it is a safetensors file and safetensors is not installed.
        ValueError: when the file cannot be read, a name is missing or has another shape, the old grid is needed or does
            not fit, or the weights were trained with another activation: OpenAI's with QuickGELU.

    Examples:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "checkpoint.pt"
        ...     weights = {"module.weight": torch.ones(1, 2), "module.bias": torch.ones(1)}
        ...     torch.save({"epoch": 3, "state_dict": weights}, path)
        ...     report = load_weights(nn.Linear(2, 1), path)
        >>> report.prefix, report.loaded
        ('module.', ('weight', 'bias'))
    """
    path = Path(path)
    file = read_weight_file(path, trust_pickle=trust_pickle)
    activation = _check_activation(model, file.quick_gelu, path)
    own = model.state_dict()
    prefix = _common_prefix(own, file.tensors)
    stripped = {name.removeprefix(prefix): tensor for name, tensor in file.tensors.items() if name.startswith(prefix)}
    weights = {name: stripped[name] for name in own if name in stripped}
    missing = tuple(name for name in own if name not in weights)
    _refuse_missing([name for name in missing if name.rpartition(".")[2] not in STRENGTHS], own, path)
    resized = {}
    for name, new_grid in position_grids(model).items():
        if weights[name].ndim != own[name].ndim:
            continue  # another shape, which is named below
        weights[name], grid = _fit_positions(weights[name], own[name], old_grid, new_grid, name, path)
        if grid != new_grid:
            resized[name] = (grid, new_grid)
    _refuse_other_shapes(weights, own, path)
    model.load_state_dict({**own, **weights})
    used = {prefix + name for name in weights}
    unexpected = tuple(name for name in file.tensors if name not in used)
    return LoadReport(path, file.kind, prefix, tuple(weights), resized, missing, unexpected, activation)


def _common_prefix(own: Iterable[str], names: Iterable[str]) -> str:
    own, names, prefixes = set(own), set(names), {""}
    for name in names:
        parts = name.split(".")
        prefixes |= {".".join(parts[:count]) + "." for count in range(1, len(parts))}
    # Sorted, so that the choice among equals does not depend on the order of a set.
    return max(sorted(prefixes), key=lambda prefix: (sum(prefix + name in names for name in own), -len(prefix)))


def _fit_positions(
    stored: Tensor,
    own: Tensor,
    old_grid: tuple[int, int] | None,
    new_grid: tuple[int, int],
    name: str,
    path: Path,
) -> tuple[Tensor, tuple[int, int]]:
    """The stored positions for the new grid, and the grid they had; leading axes of size 1 stay."""
    prefix_tokens = own.shape[-2] - new_grid[0] * new_grid[1]
    patches = stored.shape[-2] - prefix_tokens
    grid = old_grid or square_grid(patches)
    if grid is None or grid[0] * grid[1] != patches:
        how = f"old_grid={old_grid} does not give" if old_grid else "no square has"
        raise ValueError(
            f"{path}: {name} has positions of {patches} patches (and {prefix_tokens} prefix tokens), which {how}; "
            "pass old_grid=(rows, columns) of the images it was trained with"
        )
    fitted = resize_positions(stored.flatten(0, -2), grid, new_grid, prefix_tokens=prefix_tokens)
    return fitted.reshape(*stored.shape[:-2], *fitted.shape), grid


def _refuse_missing(names: list[str], own: dict[str, Tensor], path: Path) -> None:
    if names:
        raise ValueError(
            f"{path} lacks {len(names)} of the {len(own)} tensors of the model: {_shorten(names)}; "
            "build the model the file was made for, without what it does not have"
        )


def _refuse_other_shapes(weights: dict[str, Tensor], own: dict[str, Tensor], path: Path) -> None:
    wrong = [
        f"{name} is {tuple(tensor.shape)} in the file and {tuple(own[name].shape)} in the model"
        for name, tensor in weights.items()
        if tensor.shape != own[name].shape
    ]
    if wrong:
        raise ValueError(f"{path} is of another model, {len(wrong)} shapes differ: {_shorten(wrong)}")


def _check_activation(model: nn.Module, needed: bool | None, path: Path) -> str:
    found = {type(module).__name__ for module in model.modules()}
    has_quick = any("quickgelu" in name.lower() for name in found)
    name = "QuickGELU" if has_quick else "no QuickGELU"
    if needed is None:
        return f"the model has {name}; the file does not say with which one it was trained"
    if needed != has_quick:
        trained = "with QuickGELU" if needed else "without QuickGELU"
        remedy = "add '-quickgelu' to" if needed else "leave '-quickgelu' out of"
        raise ValueError(
            f"{path} was trained {trained} and the model has {name}, which would spoil its features in silence; "
            f"{remedy} the name of the open_clip model, or set quick_gelu={needed} where it is built"
        )
    return f"{name} in the model, as the file was trained"


def _shorten(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"
