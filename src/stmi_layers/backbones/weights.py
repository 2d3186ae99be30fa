"""Pretrained weights for a model already built, with a report on every tensor."""

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
    """Report of `load_weights`; `str` makes it readable.

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
            f"resized: {shorten(grids)}",
            f"not in the file, left as they were: {shorten(self.missing)}",
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

    Reads OpenAI's TorchScript archives, safetensors files, torch files, and the `.index.json` beside shards of them.
    Torch files may be checkpoints with the weights under a name such as `state_dict`, `model` or `teacher`, which is a
    prefix where there are several. A prefix common to the names, such as `module.` or `visual.`, is dropped: of all
    that occur, the one under which most tensors of the model are found. What `torch.compile`, DDP, FSDP and
    `checkpoint_wrapper` add to the names of single blocks is dropped, too. Positions of another image size are
    [resized][stmi_layers.backbones.resize_positions]; floating numbers are converted to the dtype of the model. The
    checksums of an archive are compared first, and the model is changed only when everything fits.

    No code from the file is run, unless a torch file is read with `trust_pickle`. Without that option torch's own
    `weights_only` keeps the promise for torch files, and its loader had a memory-safety flaw before torch 2.10.
    Prefer safetensors for files of unknown origin.

    Args:
        model: built by open_clip, timm or transformers for the names in the file, before or after `modulate`, and
            before it is wrapped in [`TokenBackbone`][stmi_layers.backbones.TokenBackbone]; for a file that
            `TokenBackbone` saved, bare or wrapped.
        path: the file.
        old_grid: rows and columns of patches of the images the file was trained with. If None: the grid stored in the
            file (files saved by `TokenBackbone` have it), otherwise a square grid. Required when the patch count is not
            a square, or equals that of a non-square `model`, because 16 x 8 and 8 x 16 look alike.
        prefix: prefix of the names in the file, such as `"teacher.backbone."`. Required when a file holds the model
            more than once: student and teacher, or a tower per modality. None looks for it.
        trust_pickle: read a torch file that holds more than tensors. Doing so can run any code: only for files from
            people you would take a program from.

    Returns:
        The report. Names it calls missing are what `modulate` and `adapt` add; everything else must be in the file.

    Raises:
        FileNotFoundError: when there is no such file.
        ImportError: when it is a safetensors file and safetensors is not installed.
        ValueError: when the file cannot be read; a name is missing; a tensor has another shape, other numbers
            (whole for floating), or values that are not finite; several prefixes fit equally well; the old grid is
            needed or does not fit; parameters that `model` shares have several values in the file; some strengths are
            in the file and others are not; or the weights were trained with another activation: OpenAI's with
            QuickGELU.

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
    prefix, in_file = match_names(own, file.tensors, prefix, path)
    weights = {name: file.tensors[in_file[name]] for name in own if name in in_file}
    missing = tuple(name for name in own if name not in weights)
    refuse_missing(set(missing) - set(strengths_of(model)) - added_names(model), own, file.tensors, path)
    resized = {}
    for name, new_grid in position_grids(model).items():
        if weights[name].ndim != own[name].ndim:
            continue  # another shape, which is named below
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
            f"{path} holds strengths, but not {shorten(lacking)}: modulate the model as it was for this file, "
            'with the same layers and share (a file of share="model" may store its pair once)'
        )
    return {name: stored[id(strength)] for name, strength in strengths.items() if name not in weights and stored}


def _is_grid(name: str) -> bool:
    return name.rpartition(".")[2] == GRID_NAME


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
