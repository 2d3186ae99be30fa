"""Weights of small towers: the file of `examples.pretrain`, and its loading into a model."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from examples.towers.cnn import ConvolutionalBackbone
from examples.towers.vit import VisionTransformer
from stmi_layers.backbones import strengths_of


def save_small_tower(tower: nn.Module, path: Path) -> None:
    """Write the weights of a small tower, except the strengths of SFM, which are not trained without masks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in _weights(tower).items()}, path)


def fill_small_towers(model: nn.Module, path: Path) -> str:
    """Fill all small towers of a model from a file of `save_small_tower`, except strengths; return a report.

    Raises:
        ValueError: when the file cannot be read, or is of another tower; the model is then unchanged.
    """
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"weights of a small tower must be a file of examples.pretrain; received {path}: {error}"
        ) from error
    towers = [one for one in model.modules() if isinstance(one, VisionTransformer | ConvolutionalBackbone)]
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    for tower in towers:
        own = {name: tuple(value.shape) for name, value in _weights(tower).items()}
        if wrong := sorted(name for name in own.keys() | shapes.keys() if own.get(name) != shapes.get(name)):
            raise ValueError(
                f"weights must be of a tower with the same settings and image size; {path} differs in {len(wrong)} of "
                f"{len(own)} tensors, such as {wrong[0]}"
            )
    for tower in towers:
        tower.load_state_dict({**tower.state_dict(), **weights})
    count = "small tower" if len(towers) == 1 else f"{len(towers)} small towers"
    return f"{count}: {len(weights)} tensors from {path.name}"


def _weights(tower: nn.Module) -> dict[str, Tensor]:
    strengths = strengths_of(tower)
    return {name: value for name, value in tower.state_dict().items() if name not in strengths}
