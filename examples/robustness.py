"""Score a finished run on its test split as it might be in use: with other masks, or without some modalities."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from examples.stmi.build import build_model, restore_tokenizer
from examples.stmi.evaluate import choose_device, describe, score, test_dataset
from examples.stmi.report import as_numbers, headline
from examples.stmi.settings import Settings
from examples.stmi.variants import Row
from stmi_layers.training.checkpoint import load_weights, read_checkpoint
from stmi_layers.training.dataset import Item
from stmi_layers.training.protocol import protocol_for


def without(items: Sequence[Item], modalities: Sequence[str], keep: Sequence[str]) -> list[Item]:
    """The items with only the modalities to `keep`; the others are missing.

    Raises:
        ValueError: when one to keep is none of the modalities.
    """
    unknown = sorted(set(keep) - set(modalities))
    if unknown or not keep:
        raise ValueError(f"keep must name some of the modalities {tuple(modalities)}; received {tuple(keep)}")
    kept = [modality in keep for modality in modalities]

    def only(parts: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(part if there else None for part, there in zip(parts, kept, strict=True))

    return [replace(item, images=only(item.images), masks=only(item.masks)) for item in items]


def score_under(settings: Settings, row: Row) -> dict[str, Any]:
    """What metrics.json would say of a finished run, tested under the conditions of the row.

    The result is kept beside the checkpoint and made once.
    """
    name = "-".join(["test", *([row.masks] if row.masks else []), *row.keep])
    kept = settings.out / "conditions" / f"{name}.json"
    if not kept.exists():
        result = _measure(settings, row)
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(result, indent=2) + "\n")
    return json.loads(kept.read_text())


def _measure(settings: Settings, row: Row) -> dict[str, Any]:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    content = read_checkpoint(settings.out / "checkpoint.pt")
    tokenizer = restore_tokenizer(settings, content["words"])
    device = choose_device(settings.device)
    model = build_model(settings, tokenizer).to(device)
    load_weights(model, content["model"], "model")
    dataset = test_dataset(replace(settings, masks=row.masks or settings.masks))
    protocol = protocol_for(dataset.items, settings.query_cameras, match=settings.match, drop=settings.drop)
    if row.keep:
        dataset.items = without(dataset.items, settings.modalities, row.keep)
    descriptors = describe(model, dataset, tokenizer, device=device, descriptor=settings.descriptor, quiet=True)
    metrics = score(descriptors, dataset.items, protocol)
    masks = [sample.masks for sample in (dataset[index] for index in range(len(dataset))) if sample.masks is not None]
    return {
        "headline": headline(settings, list(descriptors)),
        "descriptors": {name: as_numbers(value) for name, value in metrics.items()},
        "foreground": torch.stack(masks).float().mean().item() if masks else None,
    }
