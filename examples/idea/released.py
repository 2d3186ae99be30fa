"""Conversion of IDEA's released parameters and sizes to the names and units of our layers."""

import torch
from torch import Tensor

from examples.idea.settings import Settings
from examples.towers.releases.tensors import Carried, Release, State
from examples.towers.releases.towers import take_tower, tower_settings

# Parts of the released offset networks -> ours.
_NETWORK = {"0": "project", "2": "window", "4": "point"}


def max_offset(factor: float, grid: tuple[int, int], *, kernel: int = 4, stride: int = 2) -> tuple[float, float]:
    """Convert the released offset factor into `max_offset` of `DeformableReadout`: patches down and across.

    The released code divides its reach by the number of samples of an axis minus one. It fails for a single sample;
    here a single sample takes `factor` as it is.

    Examples:
        >>> max_offset(5, (16, 8))  # RGBNT201
        (6.25, 8.75)
    """
    samples = [(side - kernel) // stride + 1 for side in grid]
    reach = [factor * (side - 1) / (2 * max(count - 1, 1)) for side, count in zip(grid, samples, strict=True)]
    return reach[0], reach[1]


def released_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state of a released aggregation, with any prefix up to `da_group.0.`, to a `DeformableReadout`."""
    state = {name.rpartition("da_group.0.")[2]: value for name, value in state.items() if "da_group.0." in name}
    found: dict[str, Tensor] = {}
    for part in ("weight", "bias"):
        stacked = torch.cat([state[f"proj_{letter}.{part}"] for letter in "qkv"])
        found[f"in_proj_{part}"] = stacked.flatten(1) if part == "weight" else stacked
        found[f"out_proj.{part}"] = _matrix(state[f"proj_out.{part}"])
    for name, value in state.items():
        network, _, rest = name.partition(".")
        if network.startswith("conv_offset"):
            index = _index(network)
            layer, _, part = rest.partition(".")
            ours = f"networks.{index}.{_NETWORK[layer]}.{part}"
            found[ours] = value if layer == "2" else _matrix(value)
    return found


def released_inversion(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert `fc1` and `fc2` of the released inverse network, and the position of its token, to a `TextInversion`."""
    found = {}
    for name, value in state.items():
        owner, _, part = name.rpartition(".")
        for theirs, ours in (("fc1", "expand"), ("fc2", "project")):
            if owner.rpartition(".")[2] == theirs and "resblocks" not in owner:
                found[f"{ours}.{part}"] = value
        if part == "new_positional_embedding":
            found["position"] = value[0]
    return {"position": torch.zeros_like(found["project.bias"]), **found}


def carry(release: Release, own: Settings) -> Carried:
    """Carry a whole released file over, CLIP's text tower and the learned words included."""
    tower = take_tower(release, "BACKBONE.base.visual.", "BACKBONE.cv_embed")
    inverse = release.part("BACKBONE.inverseNet.")
    inverse["new_positional_embedding"] = tower.tensors.pop("new_positional_embedding")
    model = {f"inversion.{name}": value for name, value in released_inversion(inverse).items()}
    text, settings = release.part("BACKBONE.base."), tower_settings(tower)
    words = text.pop("text_prompt", None)
    if words is not None:
        model["text_encoder.prompts.prompts"] = words
    model |= {f"text_encoder.tower.{name}": value for name, value in text.items()}
    model |= {f"readout.{name}": value for name, value in released_state(release.part("CDA.")).items()}
    supervision, heads = _heads(release)
    shared = not any(name.startswith("readout.networks.1.") for name in model)
    settings |= {"text_encoder": "clip", "num_prompts": 0 if words is None else len(words), "aggregation": True}
    settings |= {"supervision": supervision, "offsets": "shared" if shared else "diagonal", "reference": "shifted"}
    kept = {
        "text_encoder.projection.": "the release has no projection: ours starts as the identity",
        "text_encoder.no_caption": "the release has a caption for every image",
    }
    notes = (
        "the camera embedding is exact on the class token, and approximate on the caption token",
        "captions of the release begin differently: see the recipes",
    )
    return Carried(settings, {"backbone": tower}, model, heads, kept, notes=notes)


def _heads(release: Release) -> tuple[str, dict[str, State]]:
    """Take the heads of F and FC, and the heads of G and C, which tell the supervision."""
    heads = {
        "F": release.head("bottleneck_visual", "visual_classifier"),
        "FC": release.head("bottleneck_textual", "textual_classifier"),
    }
    letters = {"G": "v", "C": "t"}
    if release.has("classifier_v."):
        joined = {name: release.head(f"bottleneck_{one}", f"classifier_{one}") for name, one in letters.items()}
        return "joined", {**heads, **joined}
    endings = {"RGB": "rgb", "NI": "nir", "TI": "tir"}
    for name, letter in letters.items():
        for modality, ending in endings.items():
            head = release.head(f"bottleneck_{letter}_{ending}", f"classifier_{letter}_{ending}")
            heads[f"{name}_{modality}"] = head
    return "single", heads


def _index(network: str) -> int:
    """Return the modality of a released offset network: conv_offset serves all, other names end in _r, _n and _t."""
    return {"conv_offset": 0, "conv_offset_r": 0, "conv_offset_n": 1, "conv_offset_t": 2}[network]


def _matrix(convolution: Tensor) -> Tensor:
    """Convert weights of a 1 x 1 convolution to those of a linear layer; a bias stays as it is."""
    return convolution.flatten(1) if convolution.dim() > 1 else convolution
