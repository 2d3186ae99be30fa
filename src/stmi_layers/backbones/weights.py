"""Pretrained weights for a model already built, with an account of what became of every tensor."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from stmi_layers.attention import SegmentationModulatedAttention
from stmi_layers.backbones.adapted import added_names
from stmi_layers.backbones.modulated import Modulated
from stmi_layers.backbones.positions import GRID_NAME, position_grids, resize_positions, square_grid
from stmi_layers.backbones.weight_files import read_weight_file

# What Dinov2 is called in files -> in memory, since transformers 5.
RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did; `str` of it is for people.

    Attributes:
        path: the file.
        kind: what sort of file it is.
        prefix: what stands before the names in the file, such as "visual.".
        loaded: names in the model whose values come from the file.
        resized: those among them that are positions of another grid, with the old and the new grid.
        missing: names that are not in the file and keep their values: strengths of the modulation, adapters, prompts.
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

    No code from the file is run. Only a torch file can ask for that, with `trust_pickle`. Without it the promise rests,
    for torch files, on torch's own `weights_only`, whose loader had a memory-safety flaw before torch 2.10: from
    strangers prefer safetensors.

    Args:
        model: built by open_clip, timm or transformers for the names in the file, before or after `modulate`, and
            before it is wrapped in [`TokenBackbone`][stmi_layers.backbones.TokenBackbone]; for a file that
            `TokenBackbone` saved, bare or wrapped.
        path: the file.
        old_grid: rows and columns of patches of the images the file was trained with. By default what the file tells,
            as those of `TokenBackbone` do, else a square: an error when the number of patches is none, or that of
            `model`, whose grid is not square. 16 x 8 and 8 x 16 cannot be told apart.
        trust_pickle: read a torch file that holds more than tensors. Doing so can run any code: only for files from
            people you would take a program from.

    Returns:
        The account. Names it calls missing are what `modulate` and `adapt` add; all else must be in the file.

    Raises:
        FileNotFoundError: when there is no such file.
        ImportError: when it is a safetensors file and safetensors is not installed.
        ValueError: when the file cannot be read, a name is missing or has another shape, the old grid is needed or does
            not fit, parameters that `model` shares have several values in the file, or the weights were trained with
            another activation: OpenAI's with QuickGELU.

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
    state = model.state_dict()
    # The grid of a TokenBackbone is no weight: it stays that of the model, and its positions are fitted to it here.
    own = {name: tensor for name, tensor in state.items() if not _is_grid(name)}
    prefix = _common_prefix(own, file.tensors)
    in_file = {_in_memory(name.removeprefix(prefix), own): name for name in file.tensors if name.startswith(prefix)}
    weights = {name: file.tensors[in_file[name]] for name in own if name in in_file}
    missing = tuple(name for name in own if name not in weights)
    _refuse_missing(set(missing) - _added(model), own, path)
    resized = {}
    for name, new_grid in position_grids(model).items():
        if weights[name].ndim != own[name].ndim:
            continue  # another shape, which is named below
        old = _old_grid(in_file[name], file.tensors, old_grid, path)
        weights[name], grid = _fit_positions(weights[name], own[name], old, new_grid, name, path)
        if grid != new_grid:
            resized[name] = (grid, new_grid)
    _refuse_other_shapes(weights, own, path)
    _refuse_several_values(weights, model, path)
    model.load_state_dict({**state, **weights})
    used = {in_file[name] for name in weights}
    unexpected = tuple(name for name in file.tensors if name not in used and not _is_grid(name))
    return LoadReport(path, file.kind, prefix, tuple(weights), resized, missing, unexpected, activation)


def _common_prefix(own: Iterable[str], names: Iterable[str]) -> str:
    own, names, prefixes = set(own), set(names), {""}
    for name in names:
        parts = name.split(".")
        prefixes |= {".".join(parts[:count]) + "." for count in range(1, len(parts))}
    # Sorted, so that the choice among equals does not depend on the order of a set.
    return max(sorted(prefixes), key=lambda prefix: (sum(prefix + name in names for name in own), -len(prefix)))


def _is_grid(name: str) -> bool:
    return name.rpartition(".")[2] == GRID_NAME


def _in_memory(name: str, own: Iterable[str]) -> str:
    """The name under which the model holds what the file calls `name`."""
    for saved, held in RENAMED.items():
        renamed = name.replace(f".{saved}.", f".{held}.")
        if name not in own and renamed in own:
            return renamed
    return name


def _added(model: nn.Module) -> set[str]:
    """Names of what the layers here add to a model, which no pretrained file has."""
    strengths = {
        f"{prefix}.{name}".removeprefix(".")
        for prefix, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, Modulated | SegmentationModulatedAttention)
        for name in ("alpha", "beta")
    }
    return strengths | added_names(model)


def _old_grid(
    name: str, tensors: dict[str, Tensor], asked: tuple[int, int] | None, path: Path
) -> tuple[int, int] | None:
    """The grid of the positions `name` of a file, as it was asked for or as the TokenBackbone that saved them tells."""
    owners = [grid.removesuffix(GRID_NAME) for grid in tensors if _is_grid(grid)]
    owners = [owner for owner in owners if name.startswith(f"{owner}tower.")]
    if not owners:
        return asked
    stated = tensors[max(owners, key=len) + GRID_NAME]
    if stated.shape != (2,):
        raise ValueError(f"{path}: {GRID_NAME} must hold rows and columns; received shape {tuple(stated.shape)}")
    rows, columns = (int(side) for side in stated)
    if asked is not None and tuple(asked) != (rows, columns):
        raise ValueError(f"{path} tells its grid, {rows, columns}; received old_grid={asked}: leave old_grid out")
    return rows, columns


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
    square = square_grid(patches)
    # As many patches as the model's: its own grid is as likely as a square.
    doubtful = square is not None and patches == new_grid[0] * new_grid[1] and square != new_grid
    grid = old_grid or (None if doubtful else square)
    if grid is None or grid[0] * grid[1] != patches:
        how = f"both a square and {new_grid} have" if doubtful else "no square has"
        how = f"old_grid={old_grid} does not give" if old_grid else how
        raise ValueError(
            f"{path}: {name} has positions of {patches} patches (and {prefix_tokens} prefix tokens), which {how}; "
            "pass old_grid=(rows, columns) of the images it was trained with"
        )
    fitted = resize_positions(stored.flatten(0, -2), grid, new_grid, prefix_tokens=prefix_tokens)
    return fitted.reshape(*stored.shape[:-2], *fitted.shape), grid


def _refuse_missing(names: set[str], own: dict[str, Tensor], path: Path) -> None:
    if names:
        raise ValueError(
            f"{path} lacks {len(names)} of the {len(own)} tensors of the model: {_shorten(sorted(names))}; "
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


def _refuse_several_values(weights: dict[str, Tensor], model: nn.Module, path: Path) -> None:
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if name in weights and other in weights and not torch.equal(weights[name], weights[other]):
            raise ValueError(
                f"{path} has two values for {other} and {name}, which are one parameter of the model: build it without "
                'sharing; for strengths by modulate(..., share="layer")'
            )


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
