"""Settings records: written as plain values, read back unchanged, and refused with the name of record and field."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from stmi_layers.training.settings import Data, differences, from_dict, to_dict

FULL = Data(
    Path("set"),
    ("RGB", "TI"),
    (32, 16),
    drop="scene",
    query_cameras=(1, 2),
    junk=(-1, "unknown"),
    ranges={"TI": (7000.0, 9000.5), "NI": "image"},
)


@dataclass(frozen=True)
class Inner:
    rate: float = 1.0


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    either: int | Literal["auto"] | None = None
    flag: bool = False
    rates: dict[str, float] = field(default_factory=dict)


@pytest.mark.parametrize("record", [Data(Path("x")), FULL, Outer(), Outer(Inner(2.0), "auto", True, {"a": 1.0})])
def test_records_come_back_as_they_were(record) -> None:
    assert from_dict(type(record), json.loads(json.dumps(to_dict(record)))) == record


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": None}, "Data.masks must be .*; received None"),
        ({"masks": "grey"}, "Data.masks must be .*'given'.*; received 'grey'"),
        ({"image_size": [32]}, r"Data.image_size must be .*; received \[32\]"),
        ({"image_size": [32, 1.5]}, r"Data.image_size must be int; received 1.5"),
        ({"junk": [True]}, "Data.junk must be int or str; received True"),
        ({"ranges": {"TI": [1, 2, 3]}}, r"Data.ranges\['TI'\] must be .*; received \[1, 2, 3\]"),
        ({"ranges": {"TI": [9, 2]}}, r'ranges must be a lowest and a highest count, or "image"; received \(9.0, 2.0\)'),
        ({"root": 3}, "Data.root must be Path; received 3"),
        ({"colour": 1}, "Data must have exactly its fields; received one that has the unknown colour"),
    ],
)
def test_values_that_do_not_fit_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(Data, {**to_dict(FULL), **changes})


def test_a_field_that_is_absent_is_named_and_never_todays_default() -> None:
    values = to_dict(FULL)
    del values["junk"], values["masks"]
    with pytest.raises(
        ValueError, match=r"Data must have .*; received one that lacks masks, lacks junk. It was written"
    ):
        from_dict(Data, values)
    with pytest.raises(ValueError, match=r"Inner must have .* lacks rate"):
        from_dict(Outer, {**to_dict(Outer()), "inner": {}})


def test_differences_are_one_line_each_and_places_count_not_spellings(tmp_path: Path) -> None:
    one = replace(FULL, root=tmp_path / "set")
    assert differences(one, replace(one, root=tmp_path / "x" / ".." / "set")) == []
    other = replace(one, junk=(), masks="ones")
    assert differences(one, other) == ["masks: given -> ones", "junk: (-1, 'unknown') -> ()"]
    assert differences(one, other, ignore=("junk",)) == ["masks: given -> ones"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"modalities": ("RGB", "RGB")},
            r"modalities must be a sequence of different names; received \('RGB', 'RGB'\)",
        ),
        ({"modalities": "RGB"}, "received 'RGB'"),
        ({"image_size": (0, 4)}, r"image_size must be a positive height and width; received \(0, 4\)"),
        ({"captions": "all"}, "captions must be one of 'off', 'required', 'optional'; received 'all'"),
        ({"damaged": "x"}, "damaged must be one of"),
        ({"missing_modality": "x"}, "missing_modality must be one of"),
        ({"missing_masks": "x"}, "missing_masks must be one of"),
        ({"masks": "x"}, "masks must be one of"),
        ({"ranges": {"TI": (5.0, float("nan"))}}, "ranges must be"),
    ],
)
def test_data_errors(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(FULL, **changes)
