"""The folder reader, the dataset and the sampler on folders with the true file names, and on real data when present."""

import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from stmi_layers.training import _torchvision as torchvision_compat
from stmi_layers.training import splits as folders
from stmi_layers.training.dataset import (
    Augmentation,
    Batch,
    IdentitySampler,
    Item,
    MultiModalDataset,
    Sample,
    collate,
    query_gallery,
    read_split,
)

REAL_DATA = Path(__file__).parents[3] / "shared" / "data"
SIZE = (24, 12)
NAMES = tuple(f"{identity:06d}_cam{camera}_0_{camera:02d}" for identity in (3, 28, 171) for camera in (1, 2))
MODALITIES = ("RGB", "NI", "TI")


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def blob(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A random mask, rough enough that every shift and the flip change it."""
    return np.random.default_rng(seed).random(size) < 0.4


def write_set(root: Path, split: str = "train_3", names: Sequence[str] = NAMES, *, per_modality: bool = False) -> Path:
    """RGB in colour, the other modalities with one channel; every image is white on its mask and black elsewhere."""
    for number, name in enumerate(names):
        for offset, modality in enumerate(MODALITIES):
            mask = blob(10 * number + per_modality * offset).astype(np.uint8) * 255
            save(root / split / modality / f"{name}.png", np.stack([mask] * 3, axis=-1) if offset == 0 else mask)
            folder = f"mask_{modality}" if per_modality else "mask"
            # At twice the size, which nearest interpolation undoes exactly.
            save(root / split / folder / f"{name}.png", mask.repeat(2, 0).repeat(2, 1))
    return root


def write_captions(root: Path, entries: object) -> Path:
    (root / "text").mkdir(exist_ok=True)
    (root / "text" / "train.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return root


def captions_of(names: Sequence[str]) -> list[dict[str, str]]:
    return [{"item": f"{name}.jpg", "description": f"about {name}"} for name in names]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set")


def read(root: Path, modalities: Sequence[str] = MODALITIES, **options) -> list[Item]:
    return read_split(root, "train", modalities, **{"missing_caption": "none", **options})


def same(first: Sample | Batch, second: Sample | Batch) -> bool:
    return all(
        torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other
        for one, other in zip(first, second, strict=True)
    )


def test_items_are_sorted_and_parsed_from_the_true_names(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: sorted(listing(folder), reverse=True))
    items = read(write_captions(root, captions_of(NAMES)), missing_caption="error")
    assert [item.name for item in items] == sorted(NAMES)
    assert [(item.identity, item.camera) for item in items] == list(itertools.product((3, 28, 171), (1, 2)))
    assert [item.caption for item in items] == [f"about {name}" for name in sorted(NAMES)]
    folder = root / "train_3"
    assert items[0].images == tuple(folder / modality / f"{NAMES[0]}.png" for modality in MODALITIES)
    assert items[0].masks == (folder / "mask" / f"{NAMES[0]}.png",) * 3


def test_a_split_goes_by_its_name_or_its_numbered_folder(root: Path) -> None:
    write_captions(root, captions_of(NAMES))
    assert read_split(root, "train", MODALITIES) == read_split(root, "train_3", MODALITIES)
    (root / "train_3").rename(root / "train")
    assert len(read_split(root, "train", ("TI",))) == len(NAMES)


def test_masks_per_modality_go_before_the_common_one(tmp_path: Path) -> None:
    root = write_set(tmp_path, per_modality=True)
    save(root / "train_3" / "mask" / f"{NAMES[0]}.png", blob(0).astype(np.uint8) * 255)
    (root / "train_3" / "mask_NI" / f"{NAMES[0]}.png").unlink()
    item = read(root)[0]
    assert [mask.parent.name if mask else None for mask in item.masks] == ["mask_RGB", "mask", "mask_TI"]


def test_files_that_are_no_images_are_ignored(root: Path) -> None:
    (root / "train_3" / "RGB" / "Thumbs.db").write_text("")
    (root / "train_3" / "RGB" / "._000028_cam1_0_01.png").write_text("")
    assert len(read(root)) == len(NAMES)


def test_missing_modality(root: Path) -> None:
    (root / "train_3" / "TI" / f"{NAMES[1]}.png").unlink()
    (root / "train_3" / "RGB" / f"{NAMES[0]}.png").unlink()
    with pytest.raises(ValueError, match=rf"2 images are missing.*RGB/{NAMES[0]}, TI/{NAMES[1]};.*='absent'"):
        read(root)
    items = read(root, missing_modality="absent")
    dataset = MultiModalDataset(items, SIZE, augment=Augmentation(erasing=1))
    assert [sample.present.tolist() for sample in (dataset[0], dataset[1], dataset[2])] == [
        [False, True, True],
        [True, True, False],
        [True, True, True],
    ]
    assert (dataset[0].images[0] == 0).all()
    assert all(dataset[2].images[modality].abs().max() == 1 for modality in range(3))


def test_missing_captions(root: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"train\.json does not exist; write it by .* --split train`, or pass missing_caption='none'",
    ):
        read(root, missing_caption="error")
    assert {item.caption for item in read(root)} == {None}
    write_captions(root, [*captions_of(NAMES[2:]), {"item": f"{NAMES[0]}.jpg", "description": " "}])
    with pytest.raises(ValueError, match=rf"2 of 6 items have no caption: {NAMES[0]}, {NAMES[1]}; .*='none'"):
        read(root, missing_caption="error")
    dataset = MultiModalDataset(read(root), SIZE)
    batch = collate([dataset[index] for index in range(3)])
    assert batch.captions == ["", "", f"about {NAMES[2]}"]
    assert batch.has_caption.tolist() == [False, False, True]


def test_damaged_files_are_all_named_or_left_out(root: Path) -> None:
    truncated = root / "train_3" / "NI" / f"{NAMES[0]}.png"
    truncated.write_bytes(truncated.read_bytes()[:60])
    (root / "train_3" / "mask" / f"{NAMES[3]}.png").write_text("no image")
    pattern = (
        rf"(?s)2 of 24 files cannot be used{{}}:\n  train_3/NI/{NAMES[0]}\.png: .*\n  train_3/mask/{NAMES[3]}\.png: "
    )
    with pytest.raises(ValueError, match=pattern.format("; repair them, or .* \\(--damaged skip\\).*")):
        read(root)
    with pytest.warns(UserWarning, match=pattern.format(", 2 items are left out")):
        items = read(root, damaged="skip")
    assert [item.name for item in items] == [NAMES[1], NAMES[2], NAMES[4], NAMES[5]]
    for file in (root / "train_3" / "TI").iterdir():
        file.write_text("")
    with pytest.raises(ValueError, match="8 of 24 files cannot be used, which leaves no item"):
        read(root, damaged="skip")


def test_values_that_would_be_misread_are_refused(root: Path) -> None:
    save(root / "train_3" / "TI" / f"{NAMES[0]}.png", np.full(SIZE, 3000, dtype=np.uint16))
    save(root / "train_3" / "mask" / f"{NAMES[1]}.png", blob(0).astype(np.uint8))
    with pytest.raises(ValueError, match=r"(?s)TI/.*more than 8 bits \(mode I;16\).*mask/.*largest value is 1; fore"):
        read(root)


def test_a_long_check_shows_its_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "train" / "RGB" / "000000_cam1_0_00.png", np.zeros((2, 2), np.uint8))
    read(tmp_path, ("RGB",))
    assert "checking" not in capsys.readouterr().err
    for number in range(1, 1000):
        (tmp_path / "train" / "RGB" / f"{number:06d}_cam1_0_00.png").symlink_to("000000_cam1_0_00.png")
    assert len(read(tmp_path, ("RGB",))) == 1000
    assert "checking" in capsys.readouterr().err


def _rename(root: Path, name: str) -> None:
    (root / "train_3" / "RGB" / f"{NAMES[0]}.png").rename(root / "train_3" / "RGB" / name)


FOLDER_ERRORS: dict[str, tuple[Callable[[Path], object], dict, str]] = {
    "no root": (lambda root: root.rename(root.parent / "elsewhere"), {}, "root must be the folder of a data set"),
    "no split": (
        lambda root: (root / "train_3").rename(root / "training"),
        {},
        "has no split 'train'; it has training",
    ),
    "two splits": (lambda root: write_set(root, "train_9"), {}, "ambiguous in .*: give one of train_3, train_9"),
    "no modality": (
        lambda root: None,
        {"modalities": ("RGB", "NIR")},
        "no modality folder 'NIR'; it has RGB, NI, TI",
    ),
    "no modalities": (lambda root: None, {"modalities": ()}, r"modalities must be a sequence .*; received \(\)"),
    "a string": (lambda root: None, {"modalities": "RGB"}, "modalities must be a sequence .*; received 'RGB'"),
    "a modality twice": (lambda root: None, {"modalities": ("NI", "NI")}, "different folder names; received"),
    "no images": (lambda root: (root / "train_3" / "XR").mkdir(), {"modalities": ("XR",)}, "XR holds no images"),
    "names": (
        lambda root: _rename(root, "28_c1.png"),
        {},
        "names must be <identity>_cam<camera>.*; 1 are not: 28_c1",
    ),
    "one stem twice": (
        lambda root: save(root / "train_3" / "RGB" / f"{NAMES[0]}.jpg", blob(0)),
        {},
        f"RGB holds several files of one stem, keep one of each: {NAMES[0]}",
    ),
    "no JSON": (lambda root: write_captions(root, "[{"), {}, "train.json is not JSON: Expecting"),
    "no list": (lambda root: write_captions(root, {}), {}, "train.json must be a list .*; received a dict"),
    "wrong keys": (
        lambda root: write_captions(root, [*captions_of(NAMES[:1]), {"item": "x", "caption": "y"}]),
        {},
        'must be a list of .*; entry 1 is {"item": "x", "caption": "y"}',
    ),
    "unknown item": (
        lambda root: write_captions(root, captions_of([*NAMES, "000009_cam1_0_00"])),
        {},
        "1 captions are of items that do not exist: 000009_cam1_0_00",
    ),
    "two captions": (
        lambda root: write_captions(root, captions_of([*NAMES, NAMES[2]])),
        {},
        f"1 items have several captions: {NAMES[2]}",
    ),
    "missing_modality": (lambda root: None, {"missing_modality": "zero"}, "missing_modality must be one of 'error', "),
    "missing_caption": (
        lambda root: None,
        {"missing_caption": ""},
        "missing_caption must be one of 'error', 'none', 'ignore'; ",
    ),
    "damaged": (lambda root: None, {"damaged": "ignore"}, "damaged must be one of .*; received 'ignore'"),
}


@pytest.mark.parametrize("case", FOLDER_ERRORS)
def test_folder_errors(root: Path, case: str) -> None:
    spoil, options, message = FOLDER_ERRORS[case]
    spoil(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(root, **options)


def test_long_lists_of_names_are_shortened() -> None:
    assert folders.shorten(list("abcdefgh")) == "a, b, c, d, e and 3 more"


@given(st.integers(0, 2**32), st.integers(0, 50), st.booleans(), st.floats(0, 0.3))
def test_masks_stay_exactly_on_every_image(
    tmp_path_factory: pytest.TempPathFactory, seed: int, epoch: int, per_modality: bool, padding: float
) -> None:
    root = tmp_path_factory.getbasetemp() / f"painted-{per_modality}"
    items = read(root if root.exists() else write_set(root, per_modality=per_modality))
    dataset = MultiModalDataset(items, SIZE, augment=Augmentation(padding=padding, erasing=0), seed=seed)
    dataset.set_epoch(epoch)
    sample = dataset[seed % len(dataset)]
    assert sample.masks is not None
    assert torch.equal(sample.images, sample.masks[:, None].expand_as(sample.images) * 2.0 - 1)


def test_modalities_share_a_flip_and_a_crop(root: Path) -> None:
    """The moved mask is found at one place of the bordered original, mirrored or not; all places and both occur."""
    dataset = MultiModalDataset(read(root), SIZE, augment=Augmentation(padding=2 / (24 * 12) ** 0.5, erasing=0))
    original = torch.nn.functional.pad(torch.from_numpy(blob(0)), (2, 2, 2, 2))
    views = {
        (flipped, dy, dx): view[dy : dy + SIZE[0], dx : dx + SIZE[1]]
        for flipped, view in ((False, original), (True, original.flip(1)))
        for dy, dx in itertools.product(range(5), repeat=2)
    }
    found: Counter[tuple[bool, int, int]] = Counter()
    for epoch in range(300):
        dataset.set_epoch(epoch)
        images = (dataset[0].images > 0).flatten(0, 1)
        places = [place for place, view in views.items() if (images == view).all()]
        assert len(places) == 1
        found.update(places)
    assert 110 < sum(count for (flipped, _, _), count in found.items() if flipped) < 190
    assert {dy for _, dy, _ in found} == {dx for _, _, dx in found} == set(range(5))


def test_erasing_is_a_rectangle_of_its_own_in_every_modality(tmp_path: Path) -> None:
    for modality in MODALITIES:
        save(tmp_path / "train" / modality / f"{NAMES[0]}.png", np.full((64, 32), 255, np.uint8))
    save(tmp_path / "train" / "mask" / f"{NAMES[0]}.png", np.full((64, 32), 255, np.uint8))
    always = Augmentation(flip=0, padding=0, erasing=1)
    dataset = MultiModalDataset(read(tmp_path), (64, 32), augment=always)
    rectangles = []
    for epoch in range(60):
        dataset.set_epoch(epoch)
        sample = dataset[0]
        assert sample.masks is not None
        assert sample.masks.all()
        erased = sample.images[:, 0] == 0
        assert torch.equal(sample.images, torch.where(erased, 0.0, 1.0)[:, None].expand(-1, 3, -1, -1))
        for one in erased:
            rows, columns = one.any(1), one.any(0)
            assert torch.equal(one, rows[:, None] & columns)
            height, width = rows.sum().item(), columns.sum().item()
            assert 0.015 < height * width / (64 * 32) < 0.35
            assert 0.2 < height / width < 4
            rectangles.append(one)
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(rectangles[:9], 2))


def test_erasing_happens_as_often_as_asked_and_independently(root: Path) -> None:
    dataset = MultiModalDataset(read(root), SIZE, augment=Augmentation(flip=0, padding=0, erasing=0.5))
    erased = torch.zeros(240, 3, dtype=torch.bool)
    for epoch in range(240):
        dataset.set_epoch(epoch)
        erased[epoch] = (dataset[0].images == 0).flatten(1).any(1)
    assert ((erased.float().mean(0) - 0.5).abs() < 0.12).all()
    assert len(erased.unique(dim=0)) == 8


def test_a_sample_depends_on_seed_epoch_and_index_alone(root: Path) -> None:
    items = [read(root)[0]] * 4
    dataset = MultiModalDataset(items, SIZE, augment=True, seed=5)
    before = torch.get_rng_state()
    samples = [dataset[index] for index in range(4)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = MultiModalDataset(items, SIZE, augment=True, seed=5)
    assert all(same(again[index], samples[index]) for index in (3, 1, 0, 2))
    assert same(dataset[-1], samples[3])
    assert len({tuple(sample.images.flatten().tolist()) for sample in samples}) == 4
    dataset.set_epoch(1)
    assert not same(dataset[0], samples[0])
    dataset.set_epoch(0)
    assert same(dataset[0], samples[0])
    assert not same(MultiModalDataset(items, SIZE, augment=True, seed=6)[0], samples[0])


def test_samples_leave_the_generators_of_other_devices_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    _ = MultiModalDataset(read(root), SIZE, augment=True)[0]
    assert seeded == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_batches_do_not_depend_on_the_number_of_workers(root: Path) -> None:
    def epochs(num_workers: int) -> list[list[Batch]]:
        dataset = MultiModalDataset(read(root), SIZE, augment=True, cache=True)
        sampler = IdentitySampler(dataset.labels, 2, 2, seed=1)
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )
        batches = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            dataset.set_epoch(epoch)
            batches.append(list(loader))
        return batches

    alone, shared = epochs(0), epochs(2)
    assert [len(batches) for batches in alone] == [len(batches) for batches in shared] == [2, 2]
    for one, other in zip(itertools.chain(*alone), itertools.chain(*shared), strict=True):
        assert same(one, other)
    assert not same(alone[0][0], alone[1][0])


def test_batch_fields(root: Path) -> None:
    dataset = MultiModalDataset(read(root), SIZE)
    batch = collate([dataset[index] for index in (4, 0, 3)])
    assert batch.images.shape == (3, 3, 3, *SIZE)
    assert batch.images.dtype == torch.float32
    assert batch.masks is not None
    assert batch.masks.shape == (3, 3, *SIZE)
    assert batch.masks.dtype == batch.present.dtype == batch.has_caption.dtype == torch.bool
    assert batch.present.all()
    assert batch.labels.tolist() == [2, 0, 1]
    assert [dataset.identities[label] for label in batch.labels] == [171, 3, 28]
    assert batch.cameras.tolist() == [1, 1, 2]
    assert batch.indices.tolist() == [4, 0, 3]


def test_single_channels_become_three_and_are_normalised_and_resized(tmp_path: Path) -> None:
    save(tmp_path / "train" / "TI" / "000001_cam1.png", np.full((50, 70), 51, np.uint8))
    dataset = MultiModalDataset(
        read(tmp_path, ("TI",)), (8, 4), mask_mode="none", mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 0.5)
    )
    sample = dataset[0]
    expected = torch.tensor([0.1, 0.0, -0.2])[:, None, None].expand(3, 8, 4)
    torch.testing.assert_close(sample.images[0], expected)
    assert sample.masks is None
    assert collate([sample, sample]).masks is None


def test_mask_modes(root: Path) -> None:
    items = read(root)
    given_masks = torch.stack([torch.from_numpy(blob(10 * number)) for number in range(6)])

    def masks(**options) -> Tensor:
        dataset = MultiModalDataset(items, SIZE, **options)
        found = [sample.masks for sample in (dataset[index] for index in range(6))]
        return torch.stack([mask[0] for mask in found if mask is not None])

    assert torch.equal(masks(), given_masks)
    assert masks(mask_mode="ones").all()
    assert masks(mask_mode="ones", augment=True).all()
    shuffled = masks(mask_mode="shuffled", seed=3)
    order = [int((given_masks == mask).all((1, 2)).nonzero()) for mask in shuffled]
    assert sorted(order) == list(range(6))
    assert all(index != other for index, other in enumerate(order))
    assert torch.equal(masks(mask_mode="shuffled", seed=3), shuffled)
    assert any(not torch.equal(masks(mask_mode="shuffled", seed=seed), shuffled) for seed in range(3))


@pytest.mark.parametrize("stored", [(36, 30), (7, 40), (24, 12)])
def test_masks_take_the_nearest_pixel(tmp_path: Path, stored: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).choice([0, 127, 128, 255], stored).astype(np.uint8)
    save(tmp_path / "train" / "NI" / f"{NAMES[0]}.png", pixels)
    save(tmp_path / "train" / "mask" / f"{NAMES[0]}.png", pixels)
    rows, columns = (
        np.floor((np.arange(target) + 0.5) * source / target).astype(int)
        for source, target in zip(stored, SIZE, strict=True)
    )
    _, masks = MultiModalDataset(read(tmp_path, ("NI",)), SIZE).picture(0)
    assert (masks[0] == (pixels[np.ix_(rows, columns)] >= 128)).all()


def test_blank_paints_the_background_by_the_moved_mask(root: Path) -> None:
    items = read(root)
    varied = Augmentation(erasing=0)
    plain = MultiModalDataset(items, SIZE, augment=varied)[1]
    blank = MultiModalDataset(items, SIZE, augment=varied, blank=True)[1]
    assert plain.masks is not None
    assert blank.masks is not None
    assert torch.equal(blank.images, plain.images.where(plain.masks[:, None], 0.0))
    assert torch.equal(blank.masks, plain.masks)
    without = MultiModalDataset(items, SIZE, augment=varied, blank=True, mask_mode="none")[1]
    assert torch.equal(without.images, blank.images)
    assert without.masks is None
    shuffled = MultiModalDataset(items, SIZE, augment=varied, blank=True, mask_mode="shuffled")[1]
    assert not torch.equal(shuffled.images, blank.images)


def test_missing_masks(root: Path) -> None:
    (root / "train_3" / "mask" / f"{NAMES[2]}.png").unlink()
    items = read(root)
    with pytest.raises(ValueError, match=rf"1 of 6 items lack a mask .*: {NAMES[2]}; .*missing_mask='ones'"):
        MultiModalDataset(items, SIZE)
    for mode in ("ones", "none"):
        assert len(MultiModalDataset(items, SIZE, mask_mode=mode)) == 6
    with pytest.raises(ValueError, match="lack a mask"):
        MultiModalDataset(items, SIZE, mask_mode="none", blank=True)
    dataset = MultiModalDataset(items, SIZE, missing_mask="ones")
    masks = collate([dataset[1], dataset[2]]).masks
    assert masks is not None
    assert masks.flatten(1).all(1).tolist() == [False, True]


def test_the_cache_changes_nothing_but_the_reading(root: Path) -> None:
    items = read(root)
    cached = MultiModalDataset(items, SIZE, augment=True, cache=True)
    samples = [cached[index] for index in range(6)]
    uncached = MultiModalDataset(items, SIZE, augment=True)
    assert all(same(uncached[index], samples[index]) for index in range(6))
    for item in items:
        for file in {*item.images, *item.masks}:
            assert file is not None
            file.unlink()
    assert all(same(cached[index], samples[index]) for index in range(6))
    with pytest.raises(FileNotFoundError, match=NAMES[0]):
        uncached[0]


def test_picture_shows_the_item_as_it_is(root: Path) -> None:
    images, masks = MultiModalDataset(read(root), SIZE, augment=True).picture(1)
    assert images.shape == (3, *SIZE, 3)
    assert images.dtype == np.uint8
    assert (masks == blob(10)).all()
    assert (images == masks[..., None] * np.uint8(255)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_mode": "blank"}, "mask_mode must be one of 'given', 'ones', .*, 'none'; received 'blank'"),
        ({"missing_mask": "skip"}, "missing_mask must be one of 'error', 'ones'; received 'skip'"),
        ({"size": (0, 8)}, r"size must be a positive height and width; received \(0, 8\)"),
        ({"blank": True, "mask_mode": "ones"}, "blank needs masks to blank by; received mask_mode='ones'"),
        ({"std": (1.0, 0.0, 1.0)}, r"mean and std must be .* positive; received 0.5 and \(1.0, 0.0, 1.0\)"),
        ({"mean": (0.5, 0.5)}, r"mean and std must be one number or three.*received \(0.5, 0.5\)"),
        ({"items": []}, "items must be some, all with the same number of modalities; received 0"),
        ({"items": [Item("a", 1, 1, (None,), (None,), None)], "mask_mode": "shuffled"}, "at least two items; rec.* 1"),
    ],
)
def test_dataset_errors(root: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiModalDataset(**{"items": read(root), **options})


def test_negative_seeds_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"seed and epoch must not be negative; received \(-1, 0, 0\)"):
        MultiModalDataset(read(root), SIZE, seed=-1)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, r"flip and erasing must lie in \[0, 1\]; received 1.5 and 0.5"),
        ({"erasing": -0.1}, "flip and erasing must lie in"),
        ({"padding": -1.0}, "padding must not be negative; received -1.0"),
        ({"erasing_area": (0.5, 0.2)}, r"erasing_area must rise .*; received \(0.5, 0.2\)"),
        ({"erasing_aspect": (0.0, 2.0)}, r"erasing_aspect be positive and rise; received .* \(0.0, 2.0\)"),
    ],
)
def test_augmentation_errors(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)


@given(st.data())
def test_sampler_laws(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    labels = data.draw(st.permutations([7 * label for label, size in enumerate(sizes) for _ in range(size)]))
    identities, images = data.draw(st.integers(1, len(sizes))), data.draw(st.integers(1, 6))
    sampler = IdentitySampler(labels, identities, images, seed=data.draw(st.integers(0, 9)))
    sampler.set_epoch(data.draw(st.integers(0, 9)))
    batches = list(sampler)
    assert list(sampler) == batches
    assert len(batches) == len(sampler)
    assert len(labels) <= len(batches) * identities * images
    for batch in batches:
        of_identity = Counter(labels[index] for index in batch)
        assert list(of_identity.values()) == [images] * identities
        drawn = Counter(batch)
        assert all(count <= -(-images // labels.count(labels[index])) for index, count in drawn.items())
    identity_counts = Counter(labels[index] for index in itertools.chain(*batches))
    image_counts = Counter(itertools.chain(*batches))
    assert min(identity_counts[label] for label in labels) > 0
    assert max(identity_counts.values()) - min(identity_counts.values()) <= images
    for label in labels:
        of_one = [image_counts[index] for index, other in enumerate(labels) if other == label]
        assert max(of_one) - min(of_one) <= 1


def test_sampler_draws_from_its_own_generator() -> None:
    labels = [index // 3 for index in range(60)]
    sampler = IdentitySampler(labels, 4, 3, seed=1)
    first = list(sampler)
    before = torch.get_rng_state()
    torch.manual_seed(7)
    assert list(IdentitySampler(labels, 4, 3, seed=1)) == first
    torch.set_rng_state(before)
    _ = list(sampler)
    assert torch.equal(torch.get_rng_state(), before)
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(IdentitySampler(labels, 4, 3, seed=2)) != first
    assert sorted(itertools.chain(*first)) == list(range(60))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 0, 1), 3, 2), "identities_per_batch must lie in 1 ... 2, the number of identities; received 3"),
        (((0, 0, 1), 0, 2), "identities_per_batch must lie in .*; received 0"),
        (((0, 0, 1), 2, 0), "images_per_identity must be at least 1; received 0"),
    ],
)
def test_sampler_errors(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IdentitySampler(*arguments)


def test_query_and_gallery(root: Path) -> None:
    items = read(root)
    query, gallery = query_gallery(items, (2,))
    assert (query.tolist(), gallery.tolist()) == ([1, 3, 5], [0, 2, 4])
    assert all(part.tolist() == list(range(6)) for part in query_gallery(items))
    with pytest.raises(ValueError, match=r"query_cameras must be cameras of the items, \[1, 2\]; received \[4\]"):
        query_gallery(items, (2, 4))
    with pytest.raises(ValueError, match=r"leave a camera for the gallery; received all of them, \[1, 2\]"):
        query_gallery(items, (1, 2))


class _Recorder:
    """Stands in for `import_module` and `torch.library.Library`."""

    def __init__(self, *failures: str) -> None:
        self.failures, self.imports, self.schemas = list(failures), 0, list[str]()

    def import_module(self, name: str) -> None:
        self.imports += 1
        if self.failures:
            raise RuntimeError(self.failures.pop(0))

    def library(self, namespace: str, kind: str) -> "_Recorder":
        assert (namespace, kind) == ("torchvision", "FRAGMENT")
        return self

    def define(self, schema: str) -> None:
        self.schemas.append(schema)


@pytest.mark.parametrize(
    ("failures", "imports", "declared"),
    [((), 1, 0), (("operator torchvision::nms does not exist",), 2, 2)],
)
def test_torchvision_is_mended_only_where_broken(
    monkeypatch: pytest.MonkeyPatch, failures: tuple[str, ...], imports: int, declared: int
) -> None:
    recorder = _Recorder(*failures)
    monkeypatch.setattr(torchvision_compat, "import_module", recorder.import_module)
    monkeypatch.setattr(torch.library, "Library", recorder.library)
    monkeypatch.setattr(torchvision_compat, "_kept", [])
    torchvision_compat.import_torchvision()
    assert (recorder.imports, len(recorder.schemas)) == (imports, declared)
    assert all("(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" in schema for schema in recorder.schemas)
    assert len(torchvision_compat._kept) == (declared > 0)


def test_other_errors_of_torchvision_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = _Recorder("another one")
    monkeypatch.setattr(torchvision_compat, "import_module", recorder.import_module)
    with pytest.raises(RuntimeError, match="another one"):
        torchvision_compat.import_torchvision()
    assert recorder.imports == 1


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="no real data beside the project")
@pytest.mark.parametrize(
    ("name", "split", "modalities", "identities", "images", "cameras"),
    [
        ("naip_places", "train", ("RGB", "NI"), 290, 870, {1, 2, 3}),
        ("naip_places", "test", ("RGB", "NI"), 92, 276, {1, 2, 3}),
        ("naip_parcels", "train", ("RGB", "NI"), 150, 450, {1, 2, 3}),
        ("naip_parcels", "test", ("RGB", "NI"), 50, 150, {1, 2, 3}),
        ("aero_rgbt", "train", ("RGB", "TI"), 5, 30, None),
        ("aero_rgbt", "test", ("RGB", "TI"), 5, 30, None),
    ],
)
def test_real_sets(
    name: str, split: str, modalities: tuple[str, ...], identities: int, images: int, cameras: set[int] | None
) -> None:
    described = name == "naip_places"
    items = read_split(REAL_DATA / name, split, modalities, missing_caption="error" if described else "none")
    dataset = MultiModalDataset(items, (64, 64))
    assert (len(dataset), len(dataset.identities)) == (images, identities)
    assert all(None not in (*item.images, *item.masks) for item in items)
    if cameras is not None:
        assert {item.camera for item in items} == cameras
        query, gallery = query_gallery(items, (3,))
        assert (len(query), len(gallery)) == (identities, 2 * identities)
    batch = collate([dataset[index] for index in range(0, images, images // 5)])
    assert batch.images.shape[1:] == (2, 3, 64, 64)
    assert batch.images.std() > 0.1
    assert batch.has_caption.all() == described
    if name == "naip_parcels":
        assert batch.masks is not None
        assert 0.25 < batch.masks.float().mean() < 0.37
