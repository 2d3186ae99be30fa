"""Validation identities: their selection, no overlap with training, and the unread test split."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sets import write_set
from stmi_layers.training import Data, Item, hold_out, load_split, scored_split

COUNTS = st.lists(st.integers(1, 4), min_size=4, max_size=30)


def items_of(counts: list[int]) -> list[Item]:
    """Items of identities 0, 1, ..., those of one identity apart from each other."""
    numbered = [(number, identity) for identity, count in enumerate(counts) for number in range(count)]
    return [Item(f"{identity}-{number}", identity, (), ()) for number, identity in sorted(numbered)]


def identities(items: list[Item]) -> set[object]:
    return {item.identity for item in items}


@given(counts=COUNTS, share=st.floats(0.1, 0.9), seed=st.integers(0, 2**31))
def test_every_item_is_on_one_side_with_all_items_of_its_identity(counts: list[int], share: float, seed: int):
    items, expected = items_of(counts), int(len(counts) * share + 0.5)
    if not 2 <= expected <= len(counts) - 2:
        with pytest.raises(ValueError, match="share must hold out 2 identities and leave 2"):
            hold_out(items, share, seed)
        return
    kept, held_out = hold_out(items, share, seed)
    assert not identities(kept) & identities(held_out)
    assert len(identities(held_out)) == expected
    assert sorted(kept + held_out, key=items.index) == items
    assert kept == sorted(kept, key=items.index)
    assert held_out == sorted(held_out, key=items.index)


@given(counts=COUNTS, seed=st.integers(0, 2**31), order=st.randoms())
def test_neither_order_nor_counts_of_the_items_matter_and_a_larger_share_holds_out_more(counts, seed, order):
    items = items_of(counts)
    drawn = identities(hold_out(items, 0.5, seed)[1])
    order.shuffle(items)
    assert identities(hold_out(items, 0.5, seed)[1]) == drawn
    assert identities(hold_out(items_of([1] * len(counts)), 0.5, seed)[1]) == drawn
    more = items_of([1] * 20)
    assert identities(hold_out(more, 0.2, seed)[1]) < identities(hold_out(more, 0.4, seed)[1])


def test_another_seed_draws_other_identities_and_each_is_drawn_as_often():
    items = items_of([1] * 10)
    counts = dict.fromkeys(range(10), 0)
    for seed in range(400):
        for identity in identities(hold_out(items, 0.3, seed)[1]):
            counts[identity] += 1
    assert all(75 < count < 165 for count in counts.values())  # 120 expected, deviation 9


def test_names_and_numbers_may_be_mixed():
    items = [Item(str(name), name, (), ()) for name in (3, "b", 1, "a", 2)]
    kept, held_out = hold_out(items, 0.4)
    assert (len(kept), len(held_out)) == (3, 2)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_is_a_share(share: float):
    with pytest.raises(ValueError, match=r"share must be a probability in \[0, 1\]; received"):
        hold_out(items_of([1] * 10), share)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 1.0])
def test_two_identities_are_needed_on_each_side(share: float):
    with pytest.raises(ValueError, match=rf"received {share}, which is \d+ of 10 identities"):
        hold_out(items_of([1] * 10), share)


def test_an_item_without_identity_is_refused():
    with pytest.raises(ValueError, match="items must have identities; received 1 without: nobody"):
        hold_out([*items_of([1] * 9), Item("nobody", None, (), ())], 0.3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"validation": 1.0}, "validation must"), ({"validation_seed": -1}, "validation_seed must")],
)
def test_settings_are_checked(changes: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        Data(Path(), **changes)


# Splits that are loaded


def test_a_loaded_split_holds_out_what_the_settings_say(tmp_path: Path):
    whole = Data(write_set(tmp_path / "set"), ("RGB", "NI"), (16, 16))
    half = replace(whole, validation=0.4)
    items = load_split(whole, "train").items
    train, held_out = load_split(half, "train"), load_split(half, "validation")
    assert (train.items, held_out.items) == hold_out(items, 0.4, 0)
    assert (len(train.identities), len(held_out.identities)) == (3, 2)
    assert (scored_split(whole), scored_split(half)) == ("test", "validation")
    assert (train.split, held_out.split, load_split(half, "test").split) == ("train", "validation", "test")
    assert load_split(half, "test").items == load_split(whole, "test").items
    other = load_split(replace(half, validation_seed=2), "validation")
    assert other.identities != held_out.identities
    with pytest.raises(FileNotFoundError, match="validation"):
        load_split(whole, "validation")
    with pytest.raises(ValueError, match="share must hold out 2"):
        load_split(replace(whole, validation=0.9), "validation")


def test_junk_is_drawn_into_neither_side(tmp_path: Path):
    data = Data(write_set(tmp_path / "set"), ("RGB", "NI"), (16, 16), junk=(2,), validation=0.5)
    train, held_out = (load_split(data, split).identities for split in ("train", "validation"))
    assert sorted([*train, *held_out]) == [0, 1, 3, 4]


def test_the_validation_identities_need_no_test_split(tmp_path: Path):
    data = Data(write_set(tmp_path / "set"), ("RGB", "NI"), (16, 16), validation=0.4)
    shutil.rmtree(data.root / "test")
    assert len(load_split(data, scored_split(data))) == 8
