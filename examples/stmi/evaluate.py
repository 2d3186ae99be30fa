"""Retrieve with a trained model: `python -m examples.stmi.evaluate --checkpoint runs/NAME/checkpoint.pt`.

Every feature of the model and their concatenation are scored in one pass.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from examples.stmi import figures
from examples.stmi.checkpoint import load_weights, read_checkpoint
from examples.stmi.data import Augmentation, Batch, Item, MultiModalDataset, collate, query_gallery, read_split
from examples.stmi.model import STMI, Features
from examples.stmi.settings import Settings, build_model
from examples.stmi.text import Vocabulary
from stmi_layers import CrossModalHypergraph, ReIDMetrics, incidence_statistics, rank_gallery, reid_metrics

RANKS = (1, 5, 10)


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
        missing_caption="error" if settings.captions == "required" else "none",
        damaged=settings.damaged,
    )
    return MultiModalDataset(
        items,
        settings.image_size,
        augment=augment,
        seed=settings.seed,
        mask_mode="none" if settings.masks == "blank" else settings.masks,
        blank=settings.masks == "blank",
        cache=True,
    )


@torch.no_grad()
def describe(
    model: STMI, dataset: MultiModalDataset, vocabulary: Vocabulary | None, *, device: torch.device, quiet: bool = False
) -> dict[str, Tensor]:
    """Descriptors of all items by name: each feature with norm 1, and `all`, several of them joined, with norm 1."""
    was_training = model.training
    model.eval()
    parts: dict[str, list[Tensor]] = {}
    loader = DataLoader(dataset, batch_size=64, collate_fn=collate)
    for batch in tqdm(loader, desc="describe", disable=quiet, leave=False):
        for name, feature in features_of(model, batch, vocabulary, device)._asdict().items():
            if feature is not None:
                parts.setdefault(name, []).append(F.normalize(feature.float(), dim=-1).cpu())
    model.train(was_training)
    descriptors = {name: torch.cat(part) for name, part in parts.items()}
    if len(descriptors) > 1:
        descriptors["all"] = F.normalize(torch.cat(list(descriptors.values()), dim=-1), dim=-1)
    return descriptors


def features_of(model: STMI, batch: Batch, vocabulary: Vocabulary | None, device: torch.device) -> Features:
    """Move a batch to the device and run the model on it."""
    tokens = None if vocabulary is None else vocabulary.encode(batch.captions).to(device)
    masks = None if batch.masks is None else batch.masks.to(device)
    present = None if batch.present.all() else batch.present.to(device)
    return model(batch.images.to(device), masks, present, tokens)


@torch.no_grad()
def hypergraph_statistics(
    model: STMI, dataset: MultiModalDataset, vocabulary: Vocabulary | None, *, device: torch.device
) -> dict[str, float] | None:
    """What CHI joins in the first 64 items: the identity and everything are the two hypergraphs that do nothing."""
    if model.fusion is None or not isinstance(model.fusion.interaction, CrossModalHypergraph):
        return None
    was_training = model.training
    model.eval()
    batch = collate([dataset[index] for index in range(min(64, len(dataset)))])
    masks = None if batch.masks is None else batch.masks.to(device)
    present = batch.present.to(device)
    patches, _ = model.tokens(batch.images.to(device), masks, present)
    prior = None
    if vocabulary is not None and model.text_encoder is not None:
        prior = model.text_encoder(vocabulary.encode(batch.captions).to(device))
    tokens = model.fusion.semantic_tokens(patches, prior)
    incidence = model.fusion.interaction.incidence(tokens, present)
    model.train(was_training)
    names = ("mean_edge_size", "isolated_share", "cross_modal_share")
    means = [value.mean().item() for value in incidence_statistics(incidence, tokens.shape[1])]
    return {"nodes": incidence.shape[1], **dict(zip(names, means, strict=True))}


def score(descriptors: dict[str, Tensor], items: list[Item], query_cameras: tuple[int, ...]) -> dict[str, ReIDMetrics]:
    """Metrics of every descriptor: the same identity from the same camera is never a match."""
    query, gallery = query_gallery(items, query_cameras)
    identities, cameras = _identities_and_cameras(items)
    return {
        name: reid_metrics(
            descriptor[query],
            descriptor[gallery],
            identities[query],
            identities[gallery],
            query_groups=cameras[query],
            gallery_groups=cameras[gallery],
            ranks=RANKS,
        )
        for name, descriptor in descriptors.items()
    }


def _identities_and_cameras(items: list[Item]) -> tuple[Tensor, Tensor]:
    return torch.tensor([item.identity for item in items]), torch.tensor([item.camera for item in items])


def headline(settings: Settings, names: list[str]) -> str:
    """The descriptor that stands for the run: U where the model has one (`descriptor` chooses another)."""
    if settings.descriptor == "auto":
        return "U" if "U" in names else "G"
    if settings.descriptor not in names:
        raise ValueError(f"descriptor must be one the model has, {sorted(names)}; received {settings.descriptor!r}")
    return settings.descriptor


def write_report(
    settings: Settings,
    dataset: MultiModalDataset,
    descriptors: dict[str, Tensor],
    metrics: dict[str, ReIDMetrics],
    *,
    extra: dict[str, object] | None = None,
) -> list[Path]:
    """Write metrics.json and retrieval.png into `settings.out` and return their paths."""
    settings.out.mkdir(parents=True, exist_ok=True)
    chosen = headline(settings, list(descriptors))
    content = {
        "headline": chosen,
        "protocol": protocol_of(settings),
        "queries": metrics[chosen].num_queries,
        "skipped_queries": metrics[chosen].num_skipped,
        "descriptors": {name: as_numbers(value) for name, value in metrics.items()},
        **(extra or {}),
    }
    path = settings.out / "metrics.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    return [path, draw_retrieval(settings, dataset, descriptors[chosen], chosen)]


def as_numbers(metrics: ReIDMetrics) -> dict[str, float]:
    return {"mAP": metrics.mAP, **{f"R{rank}": value for rank, value in metrics.cmc.items()}, "mINP": metrics.mINP}


def draw_retrieval(settings: Settings, dataset: MultiModalDataset, descriptor: Tensor, name: str) -> Path:
    """Six queries, evenly spread over all of them, with the five best matches of each."""
    items = dataset.items
    query, gallery = query_gallery(items, settings.query_cameras)
    shown = query[torch.linspace(0, len(query) - 1, min(6, len(query))).long()]
    identities, cameras = _identities_and_cameras(items)
    best = rank_gallery(
        descriptor[shown],
        descriptor[gallery],
        identities[shown],
        identities[gallery],
        query_groups=cameras[shown],
        gallery_groups=cameras[gallery],
        k=min(5, len(gallery)),
    )
    matches = torch.where(best < 0, best, gallery[best.clamp(min=0)])
    captions = [f"id {items[index].identity}, camera {items[index].camera}" for index in shown.tolist()]
    title = f"Queries and their best matches by {name}; green is right, red is wrong, the mask is outlined"
    return figures.retrieval(
        dataset, shown.tolist(), matches, settings.out / "retrieval.png", title=title, captions=captions
    )


def protocol_of(settings: Settings) -> str:
    who = f"cameras {list(settings.query_cameras)} query the others" if settings.query_cameras else "all query all"
    return f"{who}; same identity and camera dropped"


def table(metrics: dict[str, ReIDMetrics]) -> str:
    """A line per descriptor, in percent, and one about the queries that could not be scored."""
    lines = [f"{'':10}" + "".join(f"{name:>8}" for name in as_numbers(next(iter(metrics.values()))))]
    lines += [
        f"{name:10}" + "".join(f"{100 * value:8.1f}" for value in as_numbers(value).values())
        for name, value in metrics.items()
    ]
    first = next(iter(metrics.values()))
    if first.num_skipped:
        lines.append(
            f"{first.num_skipped} of {first.num_queries} queries are skipped: the gallery shows their identity from no "
            "other camera; add such images to the test split, or leave these out"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class Arguments:
    """Evaluate a checkpoint on the test split of its own data, or of other data in the same layout."""

    checkpoint: Path
    """The checkpoint.pt of a run."""
    data: Path | None = None
    """Another folder set; the one of the run by default."""
    out: Path | None = None
    """Where metrics.json and retrieval.png go; DIR/evaluation beside the checkpoint by default."""
    query_cameras: tuple[int, ...] | None = None
    """Other cameras to query with."""
    device: str = "auto"
    """cpu, cuda, ...; "auto" takes CUDA when there is one."""


def main(arguments: Arguments) -> dict[str, ReIDMetrics]:
    content = read_checkpoint(arguments.checkpoint)
    changes = {name: value for name in ("data", "query_cameras") if (value := getattr(arguments, name)) is not None}
    out = arguments.out or arguments.checkpoint.parent / "evaluation"
    settings = replace(Settings.from_dict(content["settings"]), **changes, out=out, device=arguments.device)
    vocabulary = None if content["words"] is None else Vocabulary(content["words"])
    device = choose_device(settings.device)
    model = build_model(settings, vocabulary)
    load_weights(model, content["model"], "model")
    dataset = test_dataset(settings)
    descriptors = describe(model.to(device), dataset, vocabulary, device=device)
    metrics = score(descriptors, dataset.items, settings.query_cameras)
    paths = write_report(settings, dataset, descriptors, metrics)
    print(table(metrics), f"protocol: {protocol_of(settings)}", *paths, sep="\n")
    return metrics


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
