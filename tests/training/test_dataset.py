"""Dataset: joint geometry, masks, cache and reproducibility on painted sets, and real data when present."""

import itertools
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from painted_sets import MODALITIES, NAMES, SIZE, blob, captions_of, read, save, write_captions, write_painted
from stmi_layers.training import IdentitySampler, Item, cache
from stmi_layers.training.collation import Sample, collate
from stmi_layers.training.contract import Batch, Facts
from stmi_layers.training.dataset import MultiModalDataset, facts_of, load_split
from stmi_layers.training.images import UnreadableError
from stmi_layers.training.protocol import query_gallery
from stmi_layers.training.record import unlabelled
from stmi_layers.training.settings import Data
from stmi_layers.training.splits import read_split
from stmi_layers.training.transforms import Augmentation

REAL_DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_painted(tmp_path / "set")


def same(first: Sample | Batch, second: Sample | Batch) -> bool:
    return all(
        torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other
        for one, other in zip(first, second, strict=True)
    )


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
    assert all(dataset[2].images[modality].max() == 1 for modality in range(3))
    batch = collate([dataset[0], dataset[2]])
    assert batch.present is not None
    assert batch.present.tolist() == [[False, True, True], [True, True, True]]


@given(st.integers(0, 2**32), st.integers(0, 50), st.booleans(), st.floats(0, 0.3))
def test_masks_stay_exactly_on_every_image(
    tmp_path_factory: pytest.TempPathFactory, seed: int, epoch: int, per_modality: bool, padding: float
) -> None:
    root = tmp_path_factory.getbasetemp() / f"painted-{per_modality}"
    items = read(root if root.exists() else write_painted(root, per_modality=per_modality))
    dataset = MultiModalDataset(items, SIZE, augment=Augmentation(padding=padding, erasing=0), seed=seed)
    dataset.set_epoch(epoch)
    sample = dataset[seed % len(dataset)]
    assert sample.masks is not None
    assert torch.equal(sample.images, sample.masks[:, None].expand_as(sample.images).float())


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
        images = (dataset[0].images > 0.5).flatten(0, 1)
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
        erased = sample.images[:, 0] == 0.5
        assert torch.equal(sample.images, torch.where(erased, 0.5, 1.0)[:, None].expand(-1, 3, -1, -1))
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
        erased[epoch] = (dataset[0].images == 0.5).flatten(1).any(1)
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


def test_a_batch_has_one_storage_for_images_one_for_masks_and_one_for_all_numbers(root: Path) -> None:
    items = read(root)
    items[0] = replace(items[0], images=(None, *items[0].images[1:]))
    dataset = MultiModalDataset(items, SIZE)
    batch = collate([dataset[0], dataset[1]])
    parts = [part for part in batch if part is not None]
    assert len(parts) == 9
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 3


def test_batch_fields(root: Path) -> None:
    dataset = MultiModalDataset(read(root), SIZE)
    batch = collate([dataset[index] for index in (4, 0, 3)])
    assert batch.images.shape == (3, 3, 3, *SIZE)
    assert batch.images.dtype == torch.float32
    assert batch.masks is not None
    assert batch.masks.shape == (3, 3, *SIZE)
    assert batch.masks.dtype == batch.has_text.dtype == torch.bool
    assert batch.present is None  # all are there
    assert batch.labels.tolist() == [2, 0, 1]
    assert [dataset.identities[label] for label in batch.labels] == [171, 3, 28]
    assert batch.cameras.tolist() == [1, 1, 2]
    assert batch.indices.tolist() == [4, 0, 3]


def test_single_channels_become_three_between_0_and_1_and_are_resized(tmp_path: Path) -> None:
    save(tmp_path / "train" / "TI" / "000001_cam1.png", np.full((50, 70), 51, np.uint8))
    sample = MultiModalDataset(read(tmp_path, ("TI",)), (8, 4), masks="none")[0]
    torch.testing.assert_close(sample.images[0], torch.full((3, 8, 4), 0.2))
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
    assert masks(masks="ones").all()
    assert masks(masks="ones", augment=True).all()
    shuffled = masks(masks="shuffled", seed=3)
    order = [int((given_masks == mask).all((1, 2)).nonzero()) for mask in shuffled]
    assert sorted(order) == list(range(6))
    assert all(index != other for index, other in enumerate(order))
    assert torch.equal(masks(masks="shuffled", seed=3), shuffled)
    assert any(not torch.equal(masks(masks="shuffled", seed=seed), shuffled) for seed in range(3))


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


def test_blank_paints_the_background_grey_by_the_moved_mask(root: Path) -> None:
    items = read(root)
    varied = Augmentation(erasing=0)
    plain = MultiModalDataset(items, SIZE, augment=varied)[1]
    both = MultiModalDataset(items, SIZE, augment=varied, masks="blank+given")[1]
    assert plain.masks is not None
    assert both.masks is not None
    assert torch.equal(both.images, plain.images.where(plain.masks[:, None], 0.5))
    assert torch.equal(both.masks, plain.masks)
    blank = MultiModalDataset(items, SIZE, augment=varied, masks="blank")[1]
    assert torch.equal(blank.images, both.images)
    assert blank.masks is None


def test_missing_masks(root: Path) -> None:
    (root / "train_3" / "mask" / f"{NAMES[2]}.png").unlink()
    items = read(root)
    with pytest.raises(ValueError, match=rf"1 of 6 items lack a mask .*: {NAMES[2]}; .*missing_masks='ones'"):
        MultiModalDataset(items, SIZE)
    for mode in ("ones", "none"):
        assert len(MultiModalDataset(items, SIZE, masks=mode)) == 6
    with pytest.raises(ValueError, match="lack a mask"):
        MultiModalDataset(items, SIZE, masks="blank")
    dataset = MultiModalDataset(items, SIZE, missing_masks="ones")
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
    with pytest.raises(ValueError, match=rf"{NAMES[0]}.png cannot be read: .*No such file"):
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
        ({"masks": "grey"}, "masks must be one of 'given', 'ones', .*, 'none'; received 'grey'"),
        ({"missing_masks": "skip"}, "missing_masks must be one of 'error', 'ones'; received 'skip'"),
        ({"size": (0, 8)}, r"size must be a positive height and width; received \(0, 8\)"),
        ({"items": []}, "items must be at least one, all with as many modalities; received 0 items"),
        ({"items": [Item("a", 1, (None,), (None,))], "masks": "shuffled"}, "of at least two items; received 1"),
    ],
)
def test_dataset_errors(root: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiModalDataset(**{"items": read(root), **options})


def test_negative_seeds_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"seed and epoch must not be negative; received \(-1, 0, 0\)"):
        MultiModalDataset(read(root), SIZE, seed=-1)[0]


def test_captions_are_encoded_once_and_their_rows_follow_the_samples(root: Path) -> None:
    write_captions(root, captions_of(NAMES[:5]))
    dataset = MultiModalDataset(read(root), SIZE)
    assert collate([dataset[0]]).texts is None
    calls: list[list[tuple[str, ...]]] = []

    def encode(captions):
        calls.append(list(captions))
        return torch.tensor([[len(texts), index] for index, texts in enumerate(captions)])

    dataset.encode_captions(encode)
    batch = collate([dataset[5], dataset[2]])
    assert calls == [[(f"about {name}",) for name in NAMES[:5]] + [()]]
    assert batch.texts is not None
    assert batch.texts.tolist() == [[0, 5], [1, 2]]
    assert batch.has_text.tolist() == [False, True]
    with pytest.raises(ValueError, match="encode must return a row per sample, 6; received 1"):
        dataset.encode_captions(lambda captions: torch.zeros(1))
    dataset.encode_captions(lambda captions: None)
    assert collate([dataset[0]]).texts is None


def test_unlabelled_images_are_items_without_label_camera_or_mask(root: Path) -> None:
    files = [[root / "train_3" / name / f"{NAMES[0]}.png" for name in MODALITIES]]
    dataset = MultiModalDataset(unlabelled(["mine"], files), SIZE, masks="none")
    batch = collate([dataset[0]])
    assert (batch.labels.tolist(), batch.cameras.tolist(), batch.views.tolist()) == ([-1], [-1], [-1])
    assert dataset.identities == []
    assert torch.equal(batch.images, collate([MultiModalDataset(read(root), SIZE)[0]]).images)
    with pytest.raises(ValueError, match="1 of 1 items lack a mask"):
        MultiModalDataset(unlabelled(["mine"], files), SIZE)


def test_identities_may_be_names_and_numbers(root: Path) -> None:
    pairs = zip(read(root), ["b", 7, "a", 7, None, -1], strict=True)
    items = [replace(item, identity=identity) for item, identity in pairs]
    dataset = MultiModalDataset(items, SIZE)
    assert dataset.identities == [-1, 7, "a", "b"]
    assert dataset.labels == [3, 1, 2, 1, -1, 0]


def test_the_cache_is_one_block_of_the_size_that_is_promised(root: Path) -> None:
    dataset = MultiModalDataset(read(root), (200, 300), cache=True)
    blocks = [dataset._pixels._images._block, dataset._pixels._masks._block]
    assert [block.numel() * block.element_size() for block in blocks] == [6 * 3 * 3 * 200 * 300, 6 * 200 * 300]
    first = dataset._pixels.image(dataset.items[0].images[0], None)
    assert first.untyped_storage().data_ptr() == blocks[0].untyped_storage().data_ptr()
    assert MultiModalDataset(read(root), (200, 300))._pixels._images._block.numel() == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_while_training_runs_is_one_line(root: Path, workers: int) -> None:
    dataset = MultiModalDataset(read(root), SIZE)
    path = root / "train_3" / "NI" / f"{NAMES[0]}.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UnreadableError) as caught:
        list(DataLoader(dataset, 6, collate_fn=collate, num_workers=workers))
    assert str(caught.value).startswith(f"{path} cannot be read: ")
    assert "\n" not in str(caught.value)


def test_whatever_a_decoder_makes_of_a_file_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise struct.error("unpack requires 4 bytes")

    dataset = MultiModalDataset(read(root), SIZE)
    monkeypatch.setattr(cache, "read_mask", fail)
    with pytest.raises(UnreadableError, match=r"train_3/mask/.*\.png cannot be read: unpack requires 4 bytes"):
        dataset[0]
    monkeypatch.setattr(cache, "read_upright", fail)
    with pytest.raises(UnreadableError, match=r"train_3/RGB/.*\.png cannot be read: unpack requires 4 bytes"):
        dataset[0]


def test_a_split_loads_as_the_settings_say(root: Path) -> None:
    write_captions(root, captions_of(NAMES))
    data = Data(root, MODALITIES, SIZE, captions="required", masks="none", junk=(28,))
    train = load_split(data, "train", augment=Augmentation(flip=1, padding=0, erasing=0), seed=3)
    assert (train.identities, train.seed, train.masks) == ([3, 171], 3, "none")
    assert train[0].images[0, 0].flip(1).bool().tolist() == blob(0).tolist()
    facts = facts_of(train, MODALITIES)
    assert facts == Facts(
        MODALITIES, SIZE, 2, (1, 2), (), ("0", "about", "000003", "000171", "01", "02", "cam1", "cam2")
    )
    shuffled = load_split(replace(data, shuffled_captions=True, junk=()), "train", seed=3)
    texts = [item.captions for item in shuffled.items]
    assert sorted(texts) == sorted((f"about {name}",) for name in NAMES)
    assert all(text != (f"about {name}",) for text, name in zip(texts, NAMES, strict=True))


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
    items = read_split(REAL_DATA / name, split, modalities, captions="required" if described else "off")
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
    assert batch.has_text.all() == described
    if name == "naip_parcels":
        assert batch.masks is not None
        assert 0.25 < batch.masks.float().mean() < 0.37
