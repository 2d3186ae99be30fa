"""Images to describe: a set in any layout, a manifest, a folder of images, or single files.

| given | items that are read |
|---|---|
| a set in a layout that the trainer reads, or its manifest | its items, with their identities, cameras and masks |
| the folder of one of its splits | the items of that split |
| a folder with folders RGB, NI, TI ... | images of equal paths in them are one item; masks in `mask` or `mask_RGB` |
| a folder of images | each image is an item of one modality |
| `RGB=a.jpg TI=b.png` | one item; a repeated modality begins the next item |
| `a.jpg b.jpg` | each is an item of one modality |
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stmi_layers.training.images import SUFFIXES
from stmi_layers.training.layouts import FOLDERS, find_set
from stmi_layers.training.layouts.layout import is_split, list_images
from stmi_layers.training.layouts.leftovers import all_folders, describe_counts, passed_over
from stmi_layers.training.layouts.manifest import find_manifest
from stmi_layers.training.record import Item, Source
from stmi_layers.training.splits import list_items, shown, warn_of_passed_over

ALL = "all"
DEEPEST = 64  # levels of folders below a folder of images


def list_sources(
    images: Sequence[str], modalities: Sequence[str], *, modality: str | None, split: str, captions: bool
) -> Iterator[Item]:
    """List the items that the command line names, with a place for each modality of the model.

    Args:
        images: folder, manifest or files, see above.
        modalities: modalities of the model, in its order.
        modality: modality of images whose folder does not name a modality.
        split: split of a set, or "all".
        captions: read the captions of a set, if it has captions.

    Raises:
        FileNotFoundError: when a file does not exist, or a folder holds no image.
        ValueError: when the modality of images is unknown, or the model lacks it.
    """
    if modality is not None and modality not in modalities:
        raise ValueError(f"modality must be one of the model, {', '.join(modalities)}; received {modality!r}")
    path = Path(images[0])
    if len(images) > 1 or "=" in images[0] or (path.is_file() and find_manifest(path) is None):
        return iter(_of_files(images, modalities, modality))
    if not path.exists():
        raise FileNotFoundError(f"images must be a folder, a manifest or files; there is nothing at {path}")
    if path.is_dir() and find_manifest(path) is None:
        if _is_split(path, modalities) and _is_labelled(path, modalities):
            return _of_set(path.resolve().parent, modalities, path.name, captions)
        if any((path / name).is_dir() for name in modalities):
            return _of_modality_folders(path, modalities)
        if not _is_set(path, modalities) and any(file.suffix.lower() in SUFFIXES for file in path.iterdir()):
            return _of_folder(path, modalities, modality)
    return _of_set(path, modalities, split, captions)


def _is_set(folder: Path, modalities: Sequence[str]) -> bool:
    """Tell whether a folder is a set with a modality of the model; other folders of images may look like a set."""
    try:
        found = find_set(folder, modalities)
    except FileNotFoundError:
        return False
    return any(name in modalities for split in found.splits for name in found.list_modalities(split))


def _is_split(folder: Path, modalities: Sequence[str]) -> bool:
    try:
        found = find_set(folder.resolve().parent, modalities)
    except (FileNotFoundError, ValueError):
        return False
    # Any folder with folders of modalities could be a split of its parent, so its name has to be that of a split.
    is_one = found.layout != FOLDERS.name or is_split(folder.name)
    return is_one and folder.name in found.splits and found.base == folder.resolve().parent


def _is_labelled(folder: Path, modalities: Sequence[str]) -> bool:
    """Tell whether the names of a split follow its layout; a folder of images by modality may look like a split."""
    try:
        there = [name for name in modalities if (folder / name).is_dir()]
        return not there or bool(
            list_items(folder.resolve().parent, folder.name, there, captions="off", missing_modality="absent")
        )
    except ValueError:
        return False


def _of_set(root: Path, modalities: Sequence[str], split: str, captions: bool) -> Iterator[Item]:
    found = find_set(root, modalities)
    splits = list(found.splits) if split == ALL else [split]
    some = False
    for name in splits:
        have = found.list_modalities(name)
        there = [one for one in modalities if one in have]
        if not there:
            continue
        some = True
        if unread := [one for one in have if one not in modalities]:
            warnings.warn(f"{root}: {name} also has {', '.join(unread)}, which the model does not read", stacklevel=2)
        options = {"captions": "optional" if captions else "off", "missing_modality": "absent"}
        items = list_items(root, name, there, **options)  # pyright: ignore[reportArgumentType]
        warn_of_passed_over(items, root)
        for item in items:
            yield spread(item, there, modalities)
    if not some:
        have = sorted({one for name in splits for one in found.list_modalities(name)})
        raise FileNotFoundError(f"{root} has no modality of the model, {', '.join(modalities)}; it has {have}")


def spread(item: Item, there: Sequence[str], modalities: Sequence[str]) -> Item:
    """Return the item with a place for each modality of the model, None where it has no image."""
    images = dict(zip(there, item.images, strict=True))
    masks = dict(zip(there, item.masks, strict=True))
    captions = item.captions
    if len(captions) > 1:
        said = dict(zip(there, captions, strict=True))
        captions = tuple(said.get(name, "") for name in modalities)
    return _replace(item, images, masks, modalities, captions)


def _replace(
    item: Item,
    images: Mapping[str, Source | None],
    masks: Mapping[str, Path | None],
    modalities: Sequence[str],
    captions: tuple[str, ...] = (),
) -> Item:
    return replace(
        item,
        images=tuple(images.get(name) for name in modalities),
        masks=tuple(masks.get(name) for name in modalities),
        captions=captions,
    )


def _of_modality_folders(root: Path, modalities: Sequence[str]) -> Iterator[Item]:
    """List items of images that have the same path in the folders of several modalities."""
    files = {name: _by_stem(root / name) for name in modalities if (root / name).is_dir()}
    shared = _by_stem(root / "mask", arrays=True)
    masks = {name: shared | _by_stem(root / f"mask_{name}", arrays=True) for name in files}
    stems = sorted(set().union(*files.values()))
    if not stems:
        raise FileNotFoundError(f"{root} holds no images ({' '.join(SUFFIXES)}) in {', '.join(files)}")
    for stem in stems:
        images = {name: files[name].get(stem) for name in files}
        own = {name: masks[name].get(stem) if images[name] else None for name in files}
        yield _replace(Item(stem, None, (), (), layout="images"), images, own, modalities)


def _by_stem(folder: Path, *, arrays: bool = False) -> dict[str, Path]:
    """List images below a folder by relative path without suffix; warn about other files.

    Raises:
        ValueError: when several files of a folder differ only in their suffix.
    """
    places = all_folders(folder, depth=DEEPEST)
    if found := passed_over(places):
        named = "; ".join(f"{shown(place, folder)}: {describe_counts(counts)}" for place, counts in found.items())
        warnings.warn(f"{folder}: files are passed over that are not read as images: {named[:500]}", stacklevel=2)
    files = {path: stem for place in places for stem, path in list_images(place, arrays=arrays).items()}
    return {(path.parent / stem).relative_to(folder).as_posix(): path for path, stem in sorted(files.items())}


def _of_folder(root: Path, modalities: Sequence[str], modality: str | None) -> Iterator[Item]:
    name = _only(modalities, modality, f"the images in {root}")
    for stem, file in _by_stem(root).items():
        yield _replace(Item(stem, None, (), (), layout="images"), {name: file}, {}, modalities)


def _only(modalities: Sequence[str], modality: str | None, what: str) -> str:
    if modality is None and len(modalities) > 1:
        raise ValueError(
            f"the modality of {what} must be stated, one of {', '.join(modalities)}: by --modality, by folders of "
            f"these names, or as {modalities[0]}=FILE"
        )
    return modality or modalities[0]


def _of_files(images: Sequence[str], modalities: Sequence[str], modality: str | None) -> list[Item]:
    groups: list[dict[str, Path]] = []
    for text in images:
        name, equals, rest = text.partition("=")
        path = Path(rest if equals else text)
        if equals and name not in modalities:
            raise ValueError(f"images must name a modality of the model, {', '.join(modalities)}; received {text!r}")
        name = name if equals else _only(modalities, modality, str(path))
        if not path.is_file():
            raise FileNotFoundError(f"there is no image at {path}")
        if not equals or not groups or name in groups[-1]:
            groups.append({})
        groups[-1][name] = path
    names = [_stem(group) for group in groups]
    twice = len(set(names)) < len(names)
    named = [str(next(iter(group.values()))) for group in groups] if twice else names
    return [
        _replace(Item(name, None, (), (), layout="images"), group, {}, modalities)
        for name, group in zip(named, groups, strict=True)
    ]


def _stem(group: Mapping[str, Path]) -> str:
    return next(iter(group.values())).stem
