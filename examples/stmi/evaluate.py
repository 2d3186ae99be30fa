"""Retrieve with a trained model: `python -m examples.stmi.evaluate --checkpoint runs/NAME/checkpoint.pt`.

Every feature of the model and their concatenation are scored in one pass.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from examples import cli as command
from examples.stmi.build import build_model, restore_tokenizer
from examples.stmi.model import STMI, Features
from examples.stmi.report import as_numbers, headline, table, write_report
from examples.stmi.settings import Descriptor, Settings
from examples.towers.text import Tokenizer
from stmi_layers import CrossModalHypergraph, ReIDMetrics, incidence_statistics
from stmi_layers.training.checkpoint import load_weights, read_checkpoint
from stmi_layers.training.dataset import (
    Augmentation,
    Batch,
    Item,
    MaskMode,
    MultiModalDataset,
    Sample,
    collate,
    read_split,
)
from stmi_layers.training.protocol import Protocol, protocol_for
from stmi_layers.training.sampler import derange
from stmi_layers.training.splits import MissingCaption, MissingModality

# What to do about a caption that is not there, by the setting of the run.
MISSING_CAPTION: dict[str, MissingCaption] = {"required": "error", "optional": "none", "off": "ignore"}
# The masks that modulate the attention, by the setting of the run.
MASK_MODE: dict[str, MaskMode] = {
    **{mode: mode for mode in get_args(MaskMode)},
    "blank": "none",
    "blank+given": "given",
}
# Settings of a run that its evaluation may replace.
FROM_THE_RUN = ("data", "query_cameras", "match", "drop", "missing_modality", "damaged", "descriptor")


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA when there is one, else the CPU.

    Raises:
        ValueError: when CUDA is asked for and there is none.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device must be cpu or auto where torch finds no CUDA device; received {name!r}")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def train_dataset(settings: Settings) -> MultiModalDataset:
    return _dataset(settings, "train", Augmentation(padding=settings.padding, erasing=settings.erasing))


def test_dataset(settings: Settings) -> MultiModalDataset:
    return _dataset(settings, "test", False)


def _dataset(settings: Settings, split: str, augment: Augmentation | bool) -> MultiModalDataset:
    items = read_split(
        settings.data,
        split,
        settings.modalities,
        missing_modality=settings.missing_modality,
        missing_caption=MISSING_CAPTION[settings.captions],
        damaged=settings.damaged,
    )
    if settings.shuffled_captions:
        others = [items[index].caption for index in derange(len(items), settings.seed)]
        items = [replace(item, caption=caption) for item, caption in zip(items, others, strict=True)]
    return MultiModalDataset(
        items,
        settings.image_size,
        augment=augment,
        seed=settings.seed,
        mask_mode=MASK_MODE[settings.masks],
        blank=settings.masks.startswith("blank"),
        cache=settings.cache and not settings.workers,
    )


@torch.no_grad()
def describe(
    model: STMI,
    dataset: Dataset[Sample],
    tokenizer: Tokenizer | None,
    *,
    device: torch.device,
    descriptor: Descriptor = "auto",
    workers: int = 0,
    quiet: bool = False,
) -> dict[str, Tensor]:
    """Descriptors of all items by name: each feature with norm 1, and `all`, several of them joined, with norm 1.

    `descriptor` may ask for another joined one, such as "G+T"; `workers` processes load the images.
    """
    was_training = model.training
    model.eval()
    parts: dict[str, list[Tensor]] = {}
    loader = DataLoader(dataset, batch_size=64, num_workers=workers, collate_fn=collate)
    for batch in tqdm(loader, desc="describe", disable=quiet, leave=False):
        for name, feature in features_of(model, batch, tokenizer, device)._asdict().items():
            if feature is not None:
                parts.setdefault(name, []).append(F.normalize(feature.float(), dim=-1).cpu())
    model.train(was_training)
    descriptors = {name: torch.cat(part) for name, part in parts.items()}
    joined: dict[str, list[str]] = {"all": list(descriptors)} if len(descriptors) > 1 else {}
    if "+" in descriptor:
        joined[descriptor] = [*descriptor.split("+")]
    return descriptors | {
        name: F.normalize(torch.cat([descriptors[part] for part in of_one], dim=-1), dim=-1)
        for name, of_one in joined.items()
    }


def features_of(model: STMI, batch: Batch, tokenizer: Tokenizer | None, device: torch.device) -> Features:
    """Move a batch to the device and run the model on it."""
    tokens = None if tokenizer is None else tokenizer.encode(batch.captions).to(device)
    masks = None if batch.masks is None else batch.masks.to(device)
    present = None if batch.present.all() else batch.present.to(device)
    cameras = batch.cameras.to(device) if model.reads_cameras else None
    return model(batch.images.to(device), masks, present, tokens, cameras)


def patches_and_prior(
    model: STMI, batch: Batch, tokenizer: Tokenizer | None, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """What STR reads of a batch: the patch tokens (batch modalities patches dim) and the text prior (batch dim)."""
    masks = None if batch.masks is None else batch.masks.to(device)
    cameras = batch.cameras.to(device) if model.reads_cameras else None
    patches, _ = model.tokens(batch.images.to(device), masks, batch.present.to(device), cameras)
    if tokenizer is None or model.text_encoder is None:
        return patches, None
    return patches, model.text_encoder(tokenizer.encode(batch.captions).to(device))


@torch.no_grad()
def hypergraph_statistics(
    model: STMI, dataset: MultiModalDataset, tokenizer: Tokenizer | None, *, device: torch.device
) -> dict[str, float] | None:
    """What CHI joins in the first 64 items: the identity and everything are the two hypergraphs that do nothing."""
    if model.fusion is None or not isinstance(model.fusion.interaction, CrossModalHypergraph):
        return None
    was_training = model.training
    model.eval()
    batch = collate([dataset[index] for index in range(min(64, len(dataset)))])
    patches, prior = patches_and_prior(model, batch, tokenizer, device)
    tokens = model.fusion.semantic_tokens(patches, prior)
    incidence = model.fusion.interaction.incidence(tokens, batch.present.to(device))
    model.train(was_training)
    names = ("mean_edge_size", "isolated_share", "cross_modal_share")
    means = [value.mean().item() for value in incidence_statistics(incidence, tokens.shape[1])]
    return {"nodes": incidence.shape[1], **dict(zip(names, means, strict=True))}


def score(
    descriptors: dict[str, Tensor],
    items: list[Item],
    protocol: Protocol,
    *,
    rerank: bool = False,
) -> dict[str, ReIDMetrics]:
    """Metrics of every descriptor.

    Args:
        descriptors: one row per item, by name.
        items: those of the test split.
        protocol: what a query may match.
        rerank: by k-reciprocal neighbours, instead of by distance alone.
    """
    return {name: protocol.score(descriptor, items, rerank=rerank) for name, descriptor in descriptors.items()}


class Trained(NamedTuple):
    """What a checkpoint holds, and the test split it is asked about."""

    settings: Settings
    model: STMI
    tokenizer: Tokenizer | None
    dataset: MultiModalDataset
    protocol: Protocol
    device: torch.device
    history: list[dict[str, Any]]


def restore(checkpoint: Path, changes: dict[str, Any]) -> Trained:
    """A trained model on its device, in evaluation mode; `changes` replace settings of its run, except where None."""
    content = read_checkpoint(checkpoint)
    given = {name: value for name, value in changes.items() if value is not None}
    settings = replace(Settings.from_dict(content["settings"]), **given)
    tokenizer = restore_tokenizer(settings, content["words"])
    device = choose_device(settings.device)
    model = build_model(settings, tokenizer)
    load_weights(model, content["model"], "model")
    dataset = test_dataset(settings)
    protocol = protocol_for(dataset.items, settings.query_cameras, match=settings.match, drop=settings.drop)
    return Trained(settings, model.to(device).eval(), tokenizer, dataset, protocol, device, content["history"])


@dataclass(frozen=True)
class Arguments:
    """Evaluate a checkpoint on the test split of its own data, or of other data in any layout."""

    checkpoint: Path
    """The checkpoint.pt of a run."""
    data: Path | None = None
    """Another set; the one of the run by default."""
    out: Path | None = None
    """Where metrics.json and retrieval.png go; DIR/evaluation beside the checkpoint by default."""
    query_cameras: tuple[int, ...] | None = None
    """Other cameras to query with."""
    match: str | None = None
    """Column in which a match equals the query: identity by default, or one of DATA/items.csv."""
    drop: str | None = None
    """Column in which it must not equal it as well: camera by default, scene on MSVR310, or one of DATA/items.csv."""
    descriptor: Descriptor | None = None
    """Another one for the headline and the picture: G, U, T, two of them joined such as G+T, or all."""
    rerank: bool = False
    """Report the scores after k-reciprocal re-ranking, too."""
    missing_modality: MissingModality | None = None
    """What to do about an image missing in some modality; as in the run by default."""
    damaged: Literal["error", "skip"] | None = None
    """What to do about files that cannot be decoded; as in the run by default."""
    device: str = "auto"
    """cpu, cuda, ...; "auto" takes CUDA when there is one."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch."""


def main(arguments: Arguments) -> dict[str, ReIDMetrics]:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    asked = {name: getattr(arguments, name) for name in FROM_THE_RUN}
    out = arguments.out or arguments.checkpoint.parent / "evaluation"
    trained = restore(arguments.checkpoint, {**asked, "out": out, "device": arguments.device})
    settings, dataset, protocol = trained.settings, trained.dataset, trained.protocol
    # A descriptor that the model lacks is refused now, not after all images.
    headline(settings, list(trained.model.feature_widths(len(settings.modalities))))
    descriptors = describe(
        trained.model, dataset, trained.tokenizer, device=trained.device, descriptor=settings.descriptor
    )
    metrics = score(descriptors, dataset.items, protocol)
    print(table(metrics))
    extra: dict[str, object] = {}
    if arguments.rerank:
        reranked = score(descriptors, dataset.items, protocol, rerank=True)
        print("after k-reciprocal re-ranking:", table(reranked), sep="\n")
        extra["reranked"] = {name: as_numbers(value) for name, value in reranked.items()}
    paths = write_report(settings, dataset, descriptors, metrics, protocol=protocol, extra=extra)
    print(f"protocol: {protocol.describe(dataset.items)}", *paths, sep="\n")
    return metrics


if __name__ == "__main__":
    command.run(main, Arguments, __doc__)
