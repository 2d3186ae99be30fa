"""Contact sheet of a synthetic set."""

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from examples.prepare.synthetic.scenes import BANDS
from stmi_layers.training.files import write_whole
from stmi_layers.training.images import read_image


def contact_sheet(root: Path | str, *, split: str = "test", rows: int = 8) -> Path:
    """Draw identities of a set into `root/contact_sheet.png`: plain identities, then a binding group.

    Rows are identities; columns are cameras, each with three bands and the mask.
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
                sheet.paste(read_image(file).resize((width, height), Image.Resampling.NEAREST), (x, y))
    with write_whole(root / "contact_sheet.png") as file:
        sheet.save(file, "PNG")
    return root / "contact_sheet.png"


def _label(identity: dict[str, Any], factors: dict[str, list[str]]) -> str:
    lines = [f"{identity['number']:06d}  {factors['body'][identity['body']]}"]
    for tag in identity["tags"]:
        lines.append(" \u00b7 ".join(factors[band][value] for band, value in zip(BANDS, tag, strict=True)))
    return "\n".join(lines + ([f"binding group {identity['group']}"] if identity["group"] is not None else []))
