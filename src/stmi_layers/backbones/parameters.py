"""Parameters of a model by kind: pretrained weights, strengths of the modulation, new parameters."""

from torch import Tensor, nn

from stmi_layers.backbones.adapted import added_names
from stmi_layers.backbones.known_models import find_towers


def parameter_groups(model: nn.Module, *, backbone: nn.Module | None = None) -> dict[str, list[nn.Parameter]]:
    """Split the parameters for an optimizer: pretrained weights, modulation strengths, new parameters.

    Adapters and prompts are new parameters, also inside the backbone.

    Args:
        model: a modulated model, or a system that contains one.
        backbone: the module whose parameters are pretrained; by default the supported vision transformers in `model`,
            or the whole `model` when it contains no such transformer.

    Returns:
        Lists under "backbone", "strengths" and "rest". Each parameter of `model` is in exactly one list, also when
        modules share the parameter; a list may be empty.

    Examples:
        >>> import torch
        >>> from stmi_layers.backbones import modulate
        >>> system = nn.Sequential(modulate(nn.MultiheadAttention(8, 2)), nn.Linear(8, 4))
        >>> groups = parameter_groups(system, backbone=system[0])
        >>> {name: len(parameters) for name, parameters in groups.items()}
        {'backbone': 4, 'strengths': 2, 'rest': 2}
        >>> rates = {"backbone": 5e-6, "strengths": 1e-3, "rest": 3.5e-4}
        >>> optimizer = torch.optim.Adam([{"params": groups[name], "lr": rates[name]} for name in groups])
    """
    strengths = {id(strength) for strength in strengths_of(model).values()}
    towers = [backbone] if backbone is not None else find_towers(model) or [model]
    added = added_names(model)
    new = {id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False) if name in added}
    pretrained = {id(parameter) for tower in towers for parameter in tower.parameters()} - new
    groups: dict[str, list[nn.Parameter]] = {"backbone": [], "strengths": [], "rest": []}
    for parameter in model.parameters():
        known = "backbone" if id(parameter) in pretrained else "rest"
        groups["strengths" if id(parameter) in strengths else known].append(parameter)
    return groups


def strengths_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Find the strengths of all modulated attentions in `model`, of our layers and of libraries.

    Args:
        model: any module.

    Returns:
        `alpha` and `beta` of every module that has both, by name. A shared parameter appears under each of its names.

    Examples:
        >>> from stmi_layers.backbones import modulate
        >>> list(strengths_of(nn.Sequential(modulate(nn.MultiheadAttention(8, 2)))))
        ['0.alpha', '0.beta']
    """
    found = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        strengths = {name: module._parameters.get(name) for name in ("alpha", "beta")}
        if all(isinstance(strength, Tensor) for strength in strengths.values()):
            found |= {f"{prefix}.{name}".removeprefix("."): strength for name, strength in strengths.items()}
    return found
