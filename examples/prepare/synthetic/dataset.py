"""A procedural tri-modal re-identification set, for whoever has no data at hand.

    python -m examples.prepare.synthetic --out data/synthetic --seed 0

Vehicles (or persons) in RGB, near infrared and thermal infrared, written as a plain folder set. Who is who is told by
small tags alone: a tag has one factor per band, each factor is shared by many identities, and the places and the number
of tags change from image to image. Two kinds of identity:

- plain: every tag is the same (hue, ink, heat), so all three bands have to be read;
- binding: two different tags, in groups of four identities that show the same two hues, inks and heats, and differ only
  in which of them come together on one tag.

Silhouettes are shared. Backgrounds hold parts of other identities, and follow the identity in training but not in test.
Results on this set say whether a part of a model does its work; they never stand beside results on real data.
"""

import itertools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from examples.prepare.synthetic.bodies import BODIES, HEATS, HUES, INKS, SOME_BODY
from examples.prepare.synthetic.identities import (
    CORRUPTIONS,
    Identity,
    Settings,
    confusable,
    make_identities,
    sample_view,
)
from examples.prepare.synthetic.scenes import BANDS, LIGHTS, View, expose, figure_mask, paint, smooth_field

FORMAT = 1  # to be raised whenever the same settings come to render other files
ABOUT = (
    "Rendered, not photographed: results on this set say whether a part of a model does its work and never stand "
    "beside results on real data. Identity is carried by tags alone; a tag has one factor per band. Positions are "
    "pixels (x, y) in the frame of RGB; the figure in another band is displaced by the item's parallax along x."
)
NUMBER_WORDS = ("no", "one", "two", "three")
Mask = NDArray[np.bool_]


def corrupt_mask(mask: Mask, kind: str, level: float, rng: Generator) -> Mask:
    """Damage an exact mask by a stated extent.

    With n foreground pixels, `level`·n pixels change: the outermost of the figure ("eroded"), the nearest around it
    ("dilated"), blobs inside ("holes") or anywhere outside ("false_foreground"). So the intersection over union is
    1 - level for what removes and 1 / (1 + level) for what adds. "empty" blanks the mask with probability `level`.
    """
    if kind not in CORRUPTIONS[:-1]:
        raise ValueError(f"kind must be one of {', '.join(CORRUPTIONS[:-1])}; received {kind!r}")
    if not 0 <= level <= 1:
        raise ValueError(f"level must lie in [0, 1]; received {level}")
    chance, blobs = rng.uniform(), smooth_field(rng, (mask.shape[0], mask.shape[1]), cells=8)
    if kind in ("none", "empty"):
        return mask & (kind == "none" or chance >= level)
    removes = kind in ("eroded", "holes")
    pixels = mask if removes else ~mask
    order = blobs if kind in ("holes", "false_foreground") else _depth(pixels) + 0.2 * blobs
    first = np.argsort(np.where(pixels, order, np.inf), axis=None, kind="stable")
    damaged = mask.copy()
    damaged.flat[first[: min(round(level * mask.sum()), int(pixels.sum()))]] = not removes
    return damaged


def _depth(mask: Mask) -> NDArray[np.floating]:
    """How many steps of erosion each pixel of a mask survives."""
    depth = np.zeros(mask.shape)
    for _ in range(max(mask.shape)):
        depth += mask
        around = np.pad(mask, 1, mode="edge")
        mask = mask & around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return depth


class Caption(NamedTuple):
    """A sentence, and the attributes it leaves out or names wrongly."""

    text: str
    missing: list[str]
    wrong: list[str]


def describe(settings: Settings, identity: Identity, view: View, rng: Generator) -> Caption:
    """Word some attributes of a view: body, paint, heading, light, number of tags and their hues."""
    bodies, hues = BODIES[settings.kind], list(HUES)
    worn = sorted({hues[tag.hue] for tag in identity.tags})
    truth = {
        "body": view.figure.body.phrase,
        "paint": view.figure.body.paint_name,
        "heading": "left" if view.figure.pose.mirrored else "right",
        "light": view.light,
        "number": NUMBER_WORDS[len(view.figure.tags)],
        "hue": " and ".join(worn),
    }
    choices = {
        "body": [body.phrase for body in bodies],
        "paint": [body.paint_name for body in bodies],
        "heading": ["left", "right"],
        "light": list(LIGHTS),
        "number": list(NUMBER_WORDS[1:]),
        "hue": [" and ".join(sorted(some)) for some in itertools.combinations(hues, len(worn))],
    }
    missing = [name for name in truth if rng.uniform() < settings.caption_unknown]
    wrong = [name for name in truth if name not in missing and rng.uniform() < settings.caption_wrong]
    said = {name: value for name, value in truth.items() if name not in missing}
    for name in wrong:
        said[name] = str(rng.choice([value for value in choices[name] if value != truth[name]]))
    return Caption(_sentence(said, SOME_BODY[settings.kind]), missing, wrong)


def _sentence(said: dict[str, str], some_body: str) -> str:
    figure = " ".join(said.get("body", some_body).replace("{paint}", said.get("paint", "")).split())
    parts = [f"A photo of a {figure}"]
    if "heading" in said:
        parts.append(f"facing {said['heading']}")
    if "number" in said or "hue" in said:
        number = said.get("number", "some")
        words = [number, said.get("hue", ""), "tag" if number == "one" else "tags"]
        parts.append("with " + " ".join(filter(None, words)))
    if "light" in said:
        parts.append({"day": "by day", "night": "at night", "glare": "in glare"}[said["light"]])
    return ", ".join(parts) + "."


def _write_item(folder: Path, settings: Settings, identity: Identity, index: int, view: View) -> dict[str, Any]:
    """Write the images and masks of one item; return what the manifest says about it."""
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
    """Mask folder to the band whose geometry it has."""
    return {f"mask_{band}": band for band in BANDS} if settings.mask_per_modality else {"mask": "RGB"}


def _write_split(root: Path, settings: Settings, split: str, identities: Sequence[Identity]) -> list[dict[str, Any]]:
    for name in (*BANDS, *_mask_folders(settings)):
        (root / split / name).mkdir(parents=True)
    images = settings.train_images if split == "train" else settings.test_images
    own_place = settings.background_correlation if split == "train" else 0.0
    items = []
    for identity in identities:
        others = [one for one in identities if one.number != identity.number] or [identity]
        for index in range(images):
            view = sample_view(settings, identity, index, others, own_place)
            items.append(_write_item(root / split, settings, identity, index, view))
    captions = [{"item": item["item"], "description": item["caption"]["text"]} for item in items]
    (root / "text").mkdir(exist_ok=True)
    (root / "text" / f"{split}.json").write_text(json.dumps(captions, indent=1), encoding="utf-8")
    return items


def write_dataset(root: Path | str, settings: Settings | None = None, **changes: Any) -> Path:
    """Render the set into `root`, or leave it as it is when the same set is already there.

    The folder appears at once and complete: a run that is stopped leaves nothing under this name.

    Args:
        root: the folder to create; its parent is created when needed.
        settings: what to render; the default when None.
        changes: fields of `Settings` to set otherwise.

    Returns:
        `root`, with `train/`, `test/`, `text/`, `dataset.json` (the factors of every item) and `contact_sheet.png`.

    Raises:
        FileExistsError: when `root` holds anything else.
    """
    root, settings = Path(root), replace(settings or Settings(), **changes)
    identities = make_identities(settings)
    header = {"format": FORMAT, "settings": json.loads(json.dumps(asdict(settings)))}
    if root.exists() and (root.is_file() or any(root.iterdir())):
        _check_same(root, header)
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as scratch:
        unfinished = Path(scratch) / root.name
        items = {split: _write_split(unfinished, settings, split, ones) for split, ones in identities.items()}
        manifest = header | _summary(settings, identities, items)
        (unfinished / "dataset.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        contact_sheet(unfinished)
        if root.exists():
            root.rmdir()
        unfinished.rename(root)
    return root


def _check_same(root: Path, header: dict[str, Any]) -> None:
    """Raise FileExistsError unless `root` is the set that `header` describes."""
    file = root / "dataset.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    if not (isinstance(found, dict) and "settings" in found):
        raise FileExistsError(f"{root} is not empty and is no procedural set; give another folder or remove it")
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


def contact_sheet(root: Path | str, *, split: str = "test", rows: int = 8) -> Path:
    """Picture some identities of a set into `root/contact_sheet.png`: plain ones, then a binding group.

    Rows are identities, columns are cameras, and within each the three bands and the mask.
    """
    root = Path(root)
    manifest = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    identities = manifest["identities"][split]
    plain, bound = ([i for i in identities if (i["group"] is not None) == wanted] for wanted in (False, True))
    shown = plain[: rows - min(4, len(bound))] + bound[:4]
    masks = "mask" if (root / split / "mask").is_dir() else "mask_RGB"
    columns = [(camera, name) for camera in range(1, manifest["settings"]["cameras"] + 1) for name in (*BANDS, masks)]
    height, width = manifest["settings"]["size"]
    scale = max(1, round(96 / width))
    height, width, gap, left, top = height * scale, width * scale, 3, 190, 44
    size = left + len(columns) * (width + gap) + 16 * columns[-1][0], top + len(shown) * (height + gap)
    sheet = Image.new("RGB", size, (250, 250, 248))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for row, identity in enumerate(shown):
        y = top + row * (height + gap)
        draw.multiline_text((10, y + 6), _label(identity, manifest["factors"]), (40, 40, 40), font)
        for column, (camera, name) in enumerate(columns):
            x = left + column * (width + gap) + 16 * (camera - 1)
            if row == 0:
                draw.text((x + 2, 24), name.replace("mask_RGB", "mask"), (90, 90, 90), font)
            if row == 0 and name == "RGB":
                draw.text((x + 2, 5), f"camera {camera}", (20, 20, 20), font)
            file = root / split / name / f"{identity['number']:06d}_cam{camera}_0_00.png"
            if file.is_file():
                sheet.paste(Image.open(file).convert("RGB").resize((width, height), Image.Resampling.NEAREST), (x, y))
    sheet.save(root / "contact_sheet.png")
    return root / "contact_sheet.png"


def _label(identity: dict[str, Any], factors: dict[str, list[str]]) -> str:
    lines = [f"{identity['number']:06d}  {factors['body'][identity['body']]}"]
    for tag in identity["tags"]:
        lines.append(" \u00b7 ".join(factors[band][value] for band, value in zip(BANDS, tag, strict=True)))
    return "\n".join(lines + ([f"binding group {identity['group']}"] if identity["group"] is not None else []))


def main() -> None:
    """Render a set from the command line."""
    import tyro

    from examples.cli import run

    @dataclass(frozen=True)
    class Command:
        out: Path
        settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)

    def write(command: Command) -> None:
        print(f"{write_dataset(command.out, command.settings)}: see dataset.json and contact_sheet.png")

    run(write, Command, __doc__, prog="python -m examples.prepare.synthetic")
