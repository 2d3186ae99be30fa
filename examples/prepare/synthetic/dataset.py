"""Synthetic set: three modalities with masks and captions, rendered for users without data.

    python -m examples.prepare.synthetic --out data/synthetic --seed 0

Vehicles (or persons) in RGB, near infrared and thermal infrared, written as a plain folder set. Identities differ only
in small tags. A tag has one factor per band, each factor is shared by many identities, and the places and the number of
tags change from image to image. There are two kinds of identities:

- plain: all tags have the same hue, ink and heat, so that a model has to read all three bands;
- binding: two different tags, in groups of four identities with the same two hues, inks and heats, which differ only in
  the combination of the factors on one tag.

Silhouettes are shared. Backgrounds hold parts of other identities, and depend on the identity in training but not in
test. Results on this set show whether a part of a model works; they never stand beside results on real data.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from examples.prepare.synthetic.bodies import BODIES, HEATS, HUES, INKS
from examples.prepare.synthetic.captions import describe
from examples.prepare.synthetic.identities import (
    CORRUPTIONS,
    Identity,
    Settings,
    confusable,
    make_identities,
    sample_view,
)
from examples.prepare.synthetic.masks import corrupt_mask
from examples.prepare.synthetic.scenes import BANDS, View, figure_mask, paint
from examples.prepare.synthetic.sensors import expose
from examples.prepare.synthetic.sheet import contact_sheet
from stmi_layers.training.files import write_folder

FORMAT = 2  # raise it whenever equal settings would render other files
ABOUT = (
    "Rendered, not photographed: results on this set say whether a part of a model does its work and never stand "
    "beside results on real data. Identity is carried by tags alone; a tag has one factor per band. Positions are "
    "pixels (x, y) in the frame of RGB; the figure in another band is displaced by the item's parallax along x."
)


def _write_item(folder: Path, settings: Settings, identity: Identity, index: int, view: View) -> dict[str, Any]:
    """Write the images and masks of one item; return its entry of the manifest."""
    camera, take = index % settings.cameras, index // settings.cameras
    file = f"{identity.number:06d}_cam{camera + 1}_0_{take:02d}.png"
    behind, front = paint(view)
    for band, image in expose(view, behind, front).items():
        Image.fromarray(image).save(folder / band / file, compress_level=1)
    exact = {band: figure_mask(view, front, band) for band in BANDS}
    rng = np.random.default_rng((settings.seed, 3, identity.number, index))
    kind = str(rng.choice(CORRUPTIONS[1:-1])) if settings.mask_corruption == "mixed" else settings.mask_corruption
    key = int(rng.integers(2**32))
    written = {band: corrupt_mask(exact[band], kind, settings.mask_level, np.random.default_rng(key)) for band in BANDS}
    for name, band in _mask_folders(settings).items():
        Image.fromarray(written[band].astype(np.uint8) * 255).save(folder / name / file, compress_level=1)
    overlap = (written["RGB"] & exact["RGB"]).sum() / (written["RGB"] | exact["RGB"]).sum()
    caption = describe(settings, identity, view, np.random.default_rng((settings.seed, 4, identity.number, index)))
    tags = [
        {"xy": [round(side, 1) for side in view.figure.tag_pose(anchor).centre], "factors": tag}
        for anchor, tag in view.figure.tags
    ]
    return {
        "item": file,
        "identity": identity.number,
        "camera": camera + 1,
        "light": view.light,
        "mirrored": view.figure.pose.mirrored,
        "place": view.place[1],
        "parallax": {band: step[0] for band, step in view.parallax.items()},
        "foreground": round(float(exact["RGB"].mean()), 4),
        "tags": tags,
        "mask": {"corruption": kind, "iou": round(float(overlap), 4)},
        "caption": caption._asdict(),
    }


def _mask_folders(settings: Settings) -> dict[str, str]:
    """Return the band whose geometry a mask folder has, by folder."""
    return {f"mask_{band}": band for band in BANDS} if settings.mask_per_modality else {"mask": "RGB"}


def _write_split(root: Path, settings: Settings, split: str, identities: Sequence[Identity]) -> list[dict[str, Any]]:
    for name in (*BANDS, *_mask_folders(settings)):
        (root / split / name).mkdir(parents=True)
    images = settings.train_images if split == "train" else settings.test_images
    own_place = settings.background_correlation if split == "train" else 0.0
    items = []
    for identity in tqdm(identities, desc=f"rendering {split}", unit="identity", leave=False, disable=None):
        others = [one for one in identities if one.number != identity.number] or [identity]
        for index in range(images):
            view = sample_view(settings, identity, index, others, own_place)
            items.append(_write_item(root / split, settings, identity, index, view))
    captions = [{"item": item["item"], "description": item["caption"]["text"]} for item in items]
    (root / "text").mkdir(exist_ok=True)
    (root / "text" / f"{split}.json").write_text(json.dumps(captions, indent=1), encoding="utf-8")
    return items


def _write_kinds(path: Path, identities: dict[str, list[Identity]], items: dict[str, list[dict[str, Any]]]) -> None:
    """Write the kind of every item as a column of the set, so that queries can be scored by kind."""
    binding = {one.number for ones in identities.values() for one in ones if one.group is not None}
    kinds = [(item["item"], item["identity"] in binding) for ones in items.values() for item in ones]
    lines = [f"{Path(name).stem},{'binding' if bound else 'plain'}" for name, bound in kinds]
    path.write_text("\n".join(["item,kind", *lines]) + "\n", encoding="utf-8")


def write_dataset(root: Path | str, settings: Settings | None = None, **changes: Any) -> Path:
    """Render the set into `root`, unless `root` already holds the same set.

    The folder appears when it is complete: a stopped run leaves nothing under this name.

    Args:
        root: folder to create; its parent is created if missing.
        settings: settings of the set; the defaults if None.
        changes: fields of `Settings` to change.

    Returns:
        `root`, with `train/`, `test/`, `text/`, `items.csv` (the kind of every item), `dataset.json` (its factors) and
        `contact_sheet.png`.

    Raises:
        FileExistsError: when `root` holds anything else.
    """
    root, settings = Path(root), replace(settings or Settings(), **changes)
    identities = make_identities(settings)
    header = {"format": FORMAT, "settings": json.loads(json.dumps(asdict(settings)))}
    if root.exists() and (root.is_file() or any(root.iterdir())):
        _check_same(root, header)
        return root
    with write_folder(root) as unfinished:
        items = {split: _write_split(unfinished, settings, split, ones) for split, ones in identities.items()}
        _write_kinds(unfinished / "items.csv", identities, items)
        manifest = header | _summary(settings, identities, items)
        (unfinished / "dataset.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        contact_sheet(unfinished)
    return root


def _check_same(root: Path, header: dict[str, Any]) -> None:
    """Refuse a folder, by FileExistsError, unless it holds the set that `header` describes."""
    file = root / "dataset.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    if not (isinstance(found, dict) and "settings" in found):
        raise FileExistsError(f"{root} is not empty and is not a synthetic set; give another folder or remove it")
    asked, there = ({"format": one.get("format")} | one["settings"] for one in (header, found))
    different = [f"{name} {there.get(name)!r}, not {asked[name]!r}" for name in asked if there.get(name) != asked[name]]
    if different:
        raise FileExistsError(f"{root} holds a set with {'; '.join(different)}; give another folder or remove it")


def _summary(
    settings: Settings, identities: dict[str, list[Identity]], items: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    subsets = [subset for size in (1, 2, 3) for subset in itertools.combinations(BANDS, size)]
    counts = {
        split: {
            "identities": len(identities[split]),
            "binding identities": sum(one.group is not None for one in identities[split]),
            "items": len(items[split]),
            "looking alike to a perfect reader of": {"+".join(s): confusable(identities[split], s) for s in subsets},
        }
        for split in identities
    }
    bodies = [body.name for body in BODIES[settings.kind]]
    return {
        "about": ABOUT,
        "protocol": "test is query and gallery; same identity and same camera is dropped",
        "counts": counts,
        "factors": {"body": bodies, "RGB": list(HUES), "NI": list(INKS), "TI": list(HEATS)},
        "identities": {split: [asdict(one) for one in ones] for split, ones in identities.items()},
        "items": items,
    }


def main() -> None:
    """Render a set from the command line."""
    import tyro

    from examples.cli import run

    @dataclass(frozen=True)
    class Command:
        out: Path
        """Folder of the set to write."""
        settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)

    def write(command: Command) -> None:
        print(f"{write_dataset(command.out, command.settings)}: see dataset.json and contact_sheet.png")

    run(write, Command, __doc__, prog="python -m examples.prepare.synthetic")
