"""Loading of pretrained weights into an existing model, with a report on every tensor."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from stmi_layers.backbones.adapted import added_names
from stmi_layers.backbones.parameters import strengths_of
from stmi_layers.backbones.positions import GRID_NAME, position_grids, resize_positions, square_grid
from stmi_layers.backbones.weight_checks import refuse_missing, refuse_other_tensors, shorten
from stmi_layers.backbones.weight_files import read_weight_file
from stmi_layers.backbones.weight_names import match_names


@dataclass(frozen=True)
class LoadReport:
    """Report of `load_weights`; `str(report)` is a readable summary.

    Attributes:
        path: path of the file.
        kind: "TorchScript archive", "safetensors file", "torch file" or "index of shards".
        prefix: prefix of the names in the file, such as "visual.".
        loaded: names in the model whose values come from the file.
        resized: old and new grid by name, for the loaded positions of another grid.
        missing: names that are not in the file and keep their values: strengths of the modulation, adapters, prompts.
        unexpected: names in the file without a counterpart in the model.
        activation: one sentence on the activation of the model and of the file, QuickGELU or another.
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
            f"resized: {shorten(grids)}",
            f"not in the file, unchanged: {shorten(self.missing)}",
            f"only in the file, not used: {shorten(self.unexpected)}",
            f"activation: {self.activation}",
        ]
        return "\n  ".join(lines)


def load_weights(
    model: nn.Module,
    path: Path | str,
    *,
    old_grid: tuple[int, int] | None = None,
    prefix: str | None = None,
    trust_pickle: bool = False,
) -> LoadReport:
    """Load a pretrained file into a vision transformer, a text tower or a whole CLIP model.

    Supported are OpenAI's TorchScript archives, safetensors files, torch files, and the `.index.json` of shards. Torch
    files may be checkpoints with the weights under a key such as `state_dict`, `model` or `teacher`; with several such
    sets, the key becomes a prefix. A prefix of the names, such as `module.` or `visual.`, is dropped: the prefix under
    which most tensors of the model are found. Name parts that `torch.compile`, DDP, FSDP and `checkpoint_wrapper` add
    to single blocks are dropped, too. Positions of another image size are
    [resized][stmi_layers.backbones.resize_positions]; floating-point numbers are converted to the dtype of the model.
    The checksums of an archive are verified first, and the model is changed only when everything fits.

    No code from the file is run, unless a torch file is read with `trust_pickle=True`. Torch files are otherwise read
    by torch's own `weights_only` loader, which had a memory-safety flaw before torch 2.10. Prefer safetensors for files
    of unknown origin.

    Args:
        model: a model that open_clip, timm or transformers built with the names of the file, before or after
            `modulate`, and before [`TokenBackbone`][stmi_layers.backbones.TokenBackbone] wraps it. For a file that
            `TokenBackbone` saved, a model or a `TokenBackbone`.
        path: path of the file.
        old_grid: rows and columns of patches of the images the file was trained with. If None: the grid stored in the
            file (files saved by `TokenBackbone` have it), otherwise a square grid. Required when the patch count is not
            a square, or equals that of a non-square `model`, because 16 x 8 and 8 x 16 look alike.
        prefix: prefix of the names in the file, such as `"teacher.backbone."`. Required when a file holds the model
            more than once: student and teacher, or a tower per modality. None searches for the prefix.
        trust_pickle: whether to read a torch file that holds more than tensors. Reading it can run any code: pass True
            only for files from people whose programs you would run.

    Returns:
        The report. Its missing names are parameters that `modulate` and `adapt` added; all others must be in the file.

    Raises:
        FileNotFoundError: when there is no file at `path`.
        ImportError: when the file is a safetensors file and safetensors is not installed.
        ValueError: when the file cannot be read; a name is missing; a tensor has another shape, another kind of numbers
            (integers for floating-point numbers), or values that are not finite; several prefixes fit equally well; the
            old grid is needed or does not fit; parameters that `model` shares have several values in the file; the file
            holds some strengths but not all; or the weights were trained with another activation (OpenAI's weights:
            with QuickGELU).

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
    # The grid of a TokenBackbone is no weight: the model keeps its grid, and positions are resized to it below.
    own = {name: tensor for name, tensor in state.items() if not _is_grid(name)}
    prefix, in_file = match_names(own, file.tensors, prefix, path)
    weights = {name: file.tensors[in_file[name]] for name in own if name in in_file}
    missing = tuple(name for name in own if name not in weights)
    refuse_missing(set(missing) - set(strengths_of(model)) - added_names(model), own, file.tensors, path)
    resized = {}
    for name, new_grid in position_grids(model).items():
        if weights[name].ndim != own[name].ndim:
            continue  # refuse_other_tensors reports the shape
        old = _old_grid(in_file[name], file.tensors, old_grid, path)
        weights[name], grid = _fit_positions(weights[name], own[name], old, new_grid, name, path)
        if grid != new_grid:
            resized[name] = (grid, new_grid)
    refuse_other_tensors(weights, own, dict(model.named_parameters(remove_duplicate=False)), path)
    model.load_state_dict({**state, **weights, **_shared_strengths(weights, model, path)})
    used = {in_file[name] for name in weights}
    unexpected = tuple(name for name in file.tensors if name not in used and not _is_grid(name))
    return LoadReport(path, file.kind, prefix, tuple(weights), resized, missing, unexpected, activation)


def _shared_strengths(weights: dict[str, Tensor], model: nn.Module, path: Path) -> dict[str, Tensor]:
    """Return the values of strengths that the file stores under another name of the same parameter."""
    strengths = strengths_of(model)
    stored = {id(strength): weights[name] for name, strength in strengths.items() if name in weights}
    lacking = [name for name, strength in strengths.items() if id(strength) not in stored]
    if stored and lacking:
        raise ValueError(
            f"{path} holds strengths, but not {shorten(lacking)}: modulate the model as the model of this file, "
            'with the same layers and share (a file of share="model" may store its pair once)'
        )
    return {name: stored[id(strength)] for name, strength in strengths.items() if name not in weights and stored}


def _is_grid(name: str) -> bool:
    return name.rpartition(".")[2] == GRID_NAME


def _old_grid(
    name: str, tensors: dict[str, Tensor], asked: tuple[int, int] | None, path: Path
) -> tuple[int, int] | None:
    """Return the grid of the positions `name` of a file: `asked`, or the grid that a saved TokenBackbone holds."""
    owners = [grid.removesuffix(GRID_NAME) for grid in tensors if _is_grid(grid)]
    owners = [owner for owner in owners if name.startswith(f"{owner}tower.")]
    if not owners:
        return asked
    stated = tensors[max(owners, key=len) + GRID_NAME]
    if stated.shape != (2,):
        raise ValueError(f"{path}: {GRID_NAME} must hold rows and columns; received shape {tuple(stated.shape)}")
    rows, columns = (int(side) for side in stated)
    if asked is not None and tuple(asked) != (rows, columns):
        raise ValueError(f"{path} holds its grid, {rows, columns}; received old_grid={asked}. Leave old_grid out")
    return rows, columns


def _fit_positions(
    stored: Tensor,
    own: Tensor,
    old_grid: tuple[int, int] | None,
    new_grid: tuple[int, int],
    name: str,
    path: Path,
) -> tuple[Tensor, tuple[int, int]]:
    """Return the stored positions, resized to the new grid, and their old grid; leading axes of size 1 stay."""
    prefix_tokens = own.shape[-2] - new_grid[0] * new_grid[1]
    patches = stored.shape[-2] - prefix_tokens
    square = square_grid(patches)
    # With as many patches as the model has, its own grid is as likely as a square grid.
    doubtful = square is not None and patches == new_grid[0] * new_grid[1] and square != new_grid
    grid = old_grid or (None if doubtful else square)
    if grid is None or grid[0] * grid[1] != patches:
        how = f"both a square and {new_grid} have" if doubtful else "no square has"
        how = f"old_grid={old_grid} does not give" if old_grid else how
        raise ValueError(
            f"{path}: {name} has positions of {patches} patches (and {prefix_tokens} prefix tokens), which {how}; "
            "pass old_grid=(rows, columns) of the images that the file was trained with"
        )
    fitted = resize_positions(stored.flatten(0, -2), grid, new_grid, prefix_tokens=prefix_tokens)
    return fitted.reshape(*stored.shape[:-2], *fitted.shape), grid


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
            f"{path} was trained {trained} and the model has {name}, which would silently spoil its features; "
            f"{remedy} the name of the open_clip model, or build the model with quick_gelu={needed}"
        )
    return f"{name} in the model, as the file was trained"
