"""Findings of an inspection before files are decoded: items, contradictions, missing and unread files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from stmi_layers.training.annotations import read_captions, read_columns
from stmi_layers.training.layouts import FoundSet, find_set
from stmi_layers.training.layouts.layout import in_order
from stmi_layers.training.layouts.leftovers import all_folders, describe_counts, passed_over, unread_images
from stmi_layers.training.messages import printable, shorten
from stmi_layers.training.protocol import protocol_for
from stmi_layers.training.record import Item, files_of
from stmi_layers.training.settings import Range
from stmi_layers.training.splits import home_of, shown


@dataclass
class Findings:
    """Result of an inspection.

    Attributes:
        layout: name of the layout.
        rule: what was recognised, in words.
        base: folder that holds the splits.
        modalities: modalities that any split has.
        splits: items of each split that could be read.
        problems: problems to fix, by kind.
        notes: other facts about the set.
        ranges: suggested counts that become black and white in deep images, by modality.
    """

    layout: str
    rule: str
    base: Path
    modalities: list[str]
    splits: dict[str, list[Item]] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    ranges: Mapping[str, Range] = field(default_factory=dict)

    def add(self, kind: str, *found: str) -> None:
        """Add problems, equal ones once."""
        if found:
            known = self.problems.setdefault(kind, [])
            known.extend(line for line in dict.fromkeys(found) if line not in known)


def find_all(root: Path, modalities: tuple[str, ...] = ()) -> Findings:
    """Read all splits of a set, without decoding its files.

    Args:
        root: folder of the set, or its manifest.
        modalities: names of modalities to recognise besides the usual names.

    Raises:
        FileNotFoundError: when there is no set, or it is in no known layout.
        ValueError: when a manifest cannot be read.
    """
    found = find_set(root, modalities)
    of_split = _modalities_of(found)
    all_there = in_order(name for names in of_split.values() for name in names)
    findings = Findings(found.layout, found.rule, found.base, all_there)
    findings.add("missing", *(f"{found.layout} lacks its folder {name}" for name in found.missing))
    for split, names in of_split.items():
        lacking = [name for name in all_there if name not in names]
        findings.add("mismatched", *(f"{split}: no modality {name}, which another split has" for name in lacking))
        _read(findings, found, root, split, [name for name in all_there if name in names])
    for split, items in findings.splits.items():
        _find_missing(findings, split, items)
    unread = [split for split in of_split if split not in findings.splits]
    _find_passed_over(findings, complete=not unread)
    _compare_splits(findings, unread)
    return findings


def _modalities_of(found: FoundSet) -> dict[str, list[str]]:
    """List modalities by split; a split with a missing folder is left out here and reported elsewhere."""
    there: dict[str, list[str]] = {}
    for split in found.splits:
        try:
            there[split] = sorted(found.list_modalities(split))
        except (OSError, ValueError):
            continue
    return there


def _read(findings: Findings, found: FoundSet, root: Path, split: str, modalities: list[str]) -> None:
    """Add the items of a split that can be read, and name contradictions."""
    try:
        items = found.list_items(split, modalities)
    except (ValueError, OSError) as error:
        findings.add("contradictory", printable(error))
        return
    names = sorted({item.name for item in items})
    roles = [split, *dict.fromkeys(item.role for item in items if item.role not in ("both", split))]
    captions: dict[str, tuple[str, ...]] = {item.name: item.captions for item in items if item.captions}
    columns: dict[str, dict[str, str]] = {}
    if found.layout != "manifest":
        home = home_of(root, found)
        with _contradictions(findings):
            captions |= read_captions(home, roles, modalities, names, required=False)
        with _contradictions(findings):
            columns = read_columns(home, names)
    findings.splits[split] = [
        replace(
            item,
            images=_aligned(findings.modalities, modalities, item.images),
            masks=_aligned(findings.modalities, modalities, item.masks),
            captions=captions.get(item.name, ()),
            columns={**item.columns, **columns.get(item.name, {})},
        )
        for item in items
    ]


@contextmanager
def _contradictions(findings: Findings) -> Iterator[None]:
    """Add an error of the block to the findings and go on."""
    try:
        yield
    except (ValueError, OSError) as error:
        findings.add("contradictory", printable(error))


def _aligned(to: list[str], modalities: list[str], values: tuple) -> tuple:
    """Return values of some modalities in the order of all modalities, None for missing ones."""
    known = dict(zip(modalities, values, strict=True))
    return tuple(known.get(name) for name in to)


def _find_missing(findings: Findings, split: str, items: list[Item]) -> None:
    """Find missing images that another modality has, and missing masks and captions that other items have."""
    for position, modality in enumerate(findings.modalities):
        lacking = [item.name for item in items if item.images[position] is None]
        if len(lacking) < len(items):
            findings.add("missing", *(f"{split}: no {modality} image of {printable(name)}" for name in lacking))
    for item in items if any(any(item.masks) for item in items) else ():
        pairs = zip(findings.modalities, item.images, item.masks, strict=True)
        if bare := [name for name, image, mask in pairs if image is not None and mask is None]:
            findings.add("missing", f"{split}: no mask of {printable(item.name)} for {', '.join(bare)}")
    lacking = [item.name for item in items if not item.captions]
    if len(lacking) < len(items):
        findings.add("missing", *(f"{split}: no caption of {printable(name)}" for name in lacking))


def _find_passed_over(findings: Findings, *, complete: bool) -> None:
    """Find files in the folders of the set that belong to no item, except in splits that could not be read."""
    base = findings.base
    used = {file for items in findings.splits.values() for item in items for file in files_of(item)}
    unreadable: list[Path] = []
    there = all_folders(base, unreadable=unreadable)
    findings.add("unreadable", *(f"{shown(folder, base)} is a folder that cannot be read" for folder in unreadable))
    folders = [folder for folder in there if folder not in (base, base / "text")]
    for folder, counts in passed_over(folders).items():
        findings.add("passed over", f"{shown(folder, base)}: {printable(describe_counts(counts))}, not read as images")
    parts = {file.relative_to(base).parts[0] for file in used if file.is_relative_to(base)}
    for folder, count in unread_images(folders, used).items() if complete else ():
        line = f"{shown(folder, base)}: {count} images belong to no item"
        if findings.layout != "manifest" and folder.relative_to(base).parts[0] in parts:
            findings.add("passed over", line)
        else:
            findings.notes.append(line)


def _compare_splits(findings: Findings, unread: list[str]) -> None:
    train = findings.splits.get("train", [])
    train = train or [item for name, items in findings.splits.items() if "train" in name for item in items]
    test = findings.splits.get("test", [])
    findings.notes += [
        f"split {split!r} was not read, and its files are not checked: see contradictory" for split in unread
    ]
    if not train and not any("train" in split for split in unread):
        findings.notes.append("no split 'train': there is nothing to train on")
    if not test and all("train" in split for split in unread):
        findings.notes.append("no split 'test', or query and gallery: there is nothing to evaluate on")
    known = {item.identity for item in train} - {None}
    if shared := sorted(known & {item.identity for item in test}, key=str):
        findings.notes.append(f"{len(shared)} identities are in train and in test: {shorten(map(str, shared))}")
    every = [item for items in findings.splits.values() for item in items]
    if junk := sum(item.identity == -1 for item in every):
        findings.notes.append(
            f"{junk} items have the identity -1, junk in Market-1501: state it as junk to ignore them"
        )
    if nameless := sum(item.identity is None for item in every):
        findings.notes.append(f"{nameless} items have no identity")
    captioned = {split: any(item.captions for item in items) for split, items in findings.splits.items()}
    if any(captioned.values()):
        without = [split for split, some in captioned.items() if not some]
        findings.notes += [f"{split} has no captions, and another split has" for split in without]
    if test:
        try:
            findings.notes.append(f"protocol: {protocol_for(test).describe(test)}")
        except ValueError as error:
            findings.notes.append(f"no protocol: {printable(error)}")
