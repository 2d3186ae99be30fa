"""Figures of STMI beyond those of every method: semantic tokens and hyperedges."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from examples.figures.attention import Picture
from examples.restore import Trained
from examples.stmi.figures.hyperedges import draw_hyperedges
from examples.stmi.figures.semantic import draw_semantic, look_inside
from stmi_layers.training import Batch


def draw(trained: Trained, batch: Batch, shown: Sequence[Picture]) -> tuple[dict[str, Figure], dict[str, str]]:
    """Draw the figures of items by name; return also the reasons why figures cannot be drawn, by name.

    Args:
        trained: trained model with its data.
        batch: items as a batch on the device of the model.
        shown: the same items for display.
    """
    model, modalities = trained.model, trained.run.data.modalities
    if model.reallocations is None:
        return {}, dict.fromkeys(("tokens", "hyperedges"), "the model has no STR, hence no semantic tokens")
    looks, prior = look_inside(model, batch), model.text_encoder is not None
    figures = {"tokens": draw_semantic(looks, shown, modalities, prior=prior)}
    if looks.incidence is None:
        return figures, {"hyperedges": f"the model has no CHI: its semantic tokens meet by {trained.run.own.fusion!r}"}
    return figures | {"hyperedges": draw_hyperedges(looks, shown, modalities, prior=prior)}, {}
