"""Masks: the vote, cleaning, measures and doubts, the fallback, and a run over a folder."""

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from examples.prepare.masks import classical, make, sheet
from examples.prepare.masks.__main__ import main
from examples.prepare.masks.classical import Classical, mixture_log_density
from examples.prepare.masks.files import Note, read_note, write_mask
from examples.prepare.masks.make import Settings
from examples.prepare.masks.quality import Quality, find_doubts, measure_made
from examples.prepare.masks.regions import clean, frame_border, intersection_over_union, mean_overlap, vote
from examples.prepare.synthetic.dataset import write_dataset
from stmi_layers.training.files import locked
from stmi_layers.training.images import read_mask
from stmi_layers.training.splits import read_split

pytest.importorskip("scipy")

REAL = Path(__file__).parents[3] / "shared" / "data"
NAMES = ("000001_cam1_0_00", "000001_cam2_0_00", "000002_cam1_0_00")
SIZE = (40, 32)
MASKS = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def disc(size: tuple[int, int] = SIZE, radius: float = 0.5) -> NDArray[np.bool_]:
    y, x = np.ogrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    return y**2 + x**2 < radius**2


def picture(seed: int, mask: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
    """A light disc on a dark ground, with noise."""
    mask = disc() if mask is None else mask
    noise = np.random.default_rng(seed).normal(0, 12, (*mask.shape, 3))
    return np.clip(np.where(mask[..., None], [190, 150, 90], [60, 70, 90]) + noise, 0, 255).astype(np.uint8)


def save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three items in RGB and NI, without masks."""
    for number, name in enumerate(NAMES):
        save(tmp_path / "set" / "train" / "RGB" / f"{name}.png", picture(number))
        save(tmp_path / "set" / "train" / "NI" / f"{name}.png", picture(number + 10)[..., 0])
    return tmp_path / "set"


def settings(root: Path, **changes: object) -> Settings:
    base = Settings(data=root, modalities=("RGB", "NI"), splits=("train",), method="classical", device="cpu")
    return replace(base, **changes)


def masks_of(root: Path, split: str = "train") -> dict[str, NDArray[np.bool_]]:
    return {file.stem: np.array(Image.open(file)) > 127 for file in sorted((root / split / "mask").glob("*.png"))}


# Regions


@given(arrays(bool, st.tuples(st.sampled_from([1, 3, 5]), st.integers(1, 4), st.integers(1, 4))))
def test_certain_modalities_vote_by_majority(masks: NDArray[np.bool_]):
    expected = masks.sum(axis=0) * 2 > len(masks)
    np.testing.assert_array_equal(vote(masks.astype(float)), expected)
    np.testing.assert_array_equal(vote(masks[::-1].astype(float)), expected)


@given(arrays(float, (3, 2, 2), elements=st.floats(0, 1)), st.floats(0, 1))
def test_more_certainty_never_removes_foreground(probabilities: NDArray[np.float64], more: float):
    raised = np.concatenate([np.maximum(probabilities[:1], more), probabilities[1:]])
    assert not (vote(probabilities) & ~vote(raised)).any()


def test_a_tie_is_background_and_a_sure_modality_outweighs_two_that_hesitate():
    assert not vote(np.array([[[1.0]], [[0.0]]])).any()
    assert vote(np.array([[[1.0]], [[0.4]], [[0.4]]])).all()


def regions(mask: NDArray[np.bool_]) -> list[set[tuple[int, int]]]:
    """Sets of pixels that hang together by their sides, by walking from each."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = []
    while left:
        start = min(left)
        left.discard(start)
        region, queue = {start}, deque([start])
        while queue:
            y, x = queue.popleft()
            for pixel in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if pixel in left:
                    left.discard(pixel)
                    region.add(pixel)
                    queue.append(pixel)
        found.append(region)
    return found


@given(MASKS)
def test_cleaning_leaves_the_largest_region_without_holes(mask: NDArray[np.bool_]):
    before = mask.copy()
    cleaned = clean(mask)
    np.testing.assert_array_equal(mask, before)
    np.testing.assert_array_equal(clean(cleaned), cleaned)
    assert cleaned.dtype == np.bool_
    largest = max(regions(mask), key=len, default=set())  # the first of several
    assert all(cleaned[pixel] for pixel in largest)
    height, width = mask.shape
    holes = [
        region
        for region in regions(~np.isin(np.arange(mask.size).reshape(mask.shape), [y * width + x for y, x in largest]))
        if not any(y in (0, height - 1) or x in (0, width - 1) for y, x in region)
    ]
    assert cleaned.sum() == len(largest) + sum(len(region) for region in holes)


def test_overlap_of_masks_counted_by_hand():
    one, other = np.array([[True, True, False, False]]), np.array([[False, True, True, False]])
    empty = np.zeros((1, 4), bool)
    assert intersection_over_union(one, other) == pytest.approx(1 / 3)
    assert intersection_over_union(empty, empty) == 1
    assert intersection_over_union(one, empty) == 0
    assert mean_overlap([one, other, empty]) == pytest.approx(1 / 9)
    assert mean_overlap([one]) is None


@pytest.mark.parametrize(("size", "count"), [((4, 5), 14), ((1, 5), 5), ((2, 2), 4), ((3, 1), 3)])
def test_the_border_has_each_outermost_pixel_once(size: tuple[int, int], count: int):
    assert len(frame_border(np.ones(size, bool))) == count


# Quality


def test_measurements_counted_by_hand():
    first, second = np.zeros((4, 4)), np.zeros((4, 4))
    first[0, :] = 0.9  # four pixels on the border
    first[3, 0] = 0.9  # one apart from them
    second[0, :2] = 0.9
    second[0, 2:] = 0.6
    used = (first + second) / 2  # .9 .9 .75 .75 in the first row, .45 at the bottom
    raw = first > 0.5
    mask = clean(raw)
    quality = measure_made(mask, np.stack([first, second]), raw, used)
    assert quality == Quality(area=4 / 16, border=4 / 12, agreement=1.0, stability=4 / 5, removed=1 / 5)


@pytest.mark.parametrize(
    ("quality", "expected"),
    [
        (Quality(0.3, 0.0, 0.9, 0.9, 0.0), {}),
        (Quality(0.3, 0.0), {}),
        (Quality(0.0, 0.0, 1.0, 1.0, 0.0), {"empty": 1.0}),
        (Quality(0.005, 0.0), {"small": 0.75}),
        (Quality(0.95, 0.8), {"fills the image": 0.5, "touches the border": 0.8}),
        (Quality(0.3, 0.0, found=[1, 1]), {}),
        (Quality(0.3, 0.0, found=[0, 4]), {"nothing found": 0.5, "several found": 0.75}),
        (Quality(0.3, 0.0, 0.25, 0.125, 0.5), {"modalities disagree": 0.75, "unstable": 0.875, "scattered": 0.5}),
    ],
)
def test_doubts(quality: Quality, expected: dict[str, float]):
    assert find_doubts(quality) == pytest.approx(expected)


# Files


def test_a_mask_says_how_it_was_made(tmp_path: Path):
    note = Note("by hand \u2013 nearly", Quality(0.25, 0.1, None, 0.5, 0.0))
    write_mask(tmp_path / "mask" / "one.png", disc(), note)
    assert read_note(tmp_path / "mask" / "one.png") == note
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "mask" / "one.png")), disc() * np.uint8(255))
    assert [file.name for file in (tmp_path / "mask").iterdir()] == ["one.png"]
    save(tmp_path / "other.png", disc().astype(np.uint8) * 255)
    assert read_note(tmp_path / "other.png") is None


# The fallback


def as_images(pixels: Sequence[NDArray[np.uint8]]) -> list[Image.Image]:
    return [Image.fromarray(one) for one in pixels]


def test_the_fallback_finds_a_disc_and_is_the_same_twice_and_in_any_batch():
    pixels = [picture(0), picture(1)[..., 0], picture(2, disc((30, 60)))]
    segmenter = Classical()
    together = segmenter(as_images(pixels))
    for one, probability, again in zip(pixels, together, segmenter(as_images(pixels)), strict=True):
        assert probability.shape == one.shape[:2]
        assert ((probability >= 0) & (probability <= 1)).all()
        np.testing.assert_array_equal(probability, again)
        np.testing.assert_allclose(segmenter(as_images([one]))[0], probability, atol=1e-4)
        assert intersection_over_union(clean(probability > 0.5), disc(one.shape[:2])) > 0.9


def test_object_size_is_what_an_image_without_contrast_gets():
    plain = Image.new("RGB", (64, 64), (90, 90, 90))
    areas = [(Classical(object_size=size)([plain])[0] > 0.5).mean() for size in (0.2, 0.5)]
    # 0.9 exp(-r²/2s²) = 1/2 at r = 1.084 s, an ellipse of π r² / 4 of the image.
    assert areas == pytest.approx([np.pi * (1.084 * size) ** 2 / 4 for size in (0.2, 0.5)], abs=0.01)


def test_the_fallback_says_what_it_is_and_refuses_nonsense():
    assert "NOT SAM 2" in Classical().name
    with pytest.raises(ValueError, match=r"object_size must be positive .* received 0"):
        Classical(object_size=0)


def slow_mixture(points: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Expectation and maximisation, point by point, from slices along the main axis."""
    dim, count = points.shape
    covariance = sum(weights[n] * np.outer(points[:, n], points[:, n]) for n in range(count))
    axis = np.linalg.eigh(covariance)[1][:, -1]
    share, passed = np.zeros((classical.COMPONENTS, count)), 0.0
    for n in np.argsort(axis @ points, kind="stable"):
        passed += weights[n]
        share[min(int(classical.COMPONENTS * passed / weights.sum()), classical.COMPONENTS - 1), n] = weights[n]
    density = np.zeros_like(share)
    for _ in range(classical.ROUNDS):
        for k, row in enumerate(share):
            centre = sum(row[n] * points[:, n] for n in range(count)) / row.sum()
            offset = points - centre[:, None]
            spread = sum(row[n] * np.outer(offset[:, n], offset[:, n]) for n in range(count)) / row.sum()
            spread = spread + classical.COLOUR_NOISE * np.eye(dim)
            distance = np.array([o @ np.linalg.solve(spread, o) for o in offset.T])
            density[k] = np.log(row.sum() / share.sum()) - distance / 2 - np.log(np.linalg.det(spread)) / 2
        likelihood = np.exp(density)
        share_next = likelihood / likelihood.sum(axis=0) * weights
        share = share_next
    return np.log(np.exp(density).sum(axis=0))


def test_the_mixture_is_the_slow_one():
    random = np.random.default_rng(0)
    points, weights = random.normal(size=(3, 60)), random.uniform(0.1, 1, 60)
    points[:, :25] += 3
    fast = mixture_log_density(torch.from_numpy(points)[None], torch.from_numpy(weights)[None])[0]
    np.testing.assert_allclose(fast.numpy(), slow_mixture(points, weights), rtol=1e-6, atol=1e-6)


# A run


def test_a_run_writes_masks_that_the_trainer_reads_and_a_report(root: Path, capsys: pytest.CaptureFixture[str]):
    arguments = [str(root), "--modalities", "RGB", "NI", "--splits", "train", "--method", "classical"]
    report = main(tyro.cli(Settings, args=arguments))
    items = read_split(root, "train", ("RGB", "NI"))
    assert [item.masks[0] for item in items] == [root / "train" / "mask" / f"{name}.png" for name in NAMES]
    for name, mask in masks_of(root).items():
        assert mask.shape == SIZE
        assert intersection_over_union(mask, disc()) > 0.9, name
        note = read_note(root / "train" / "mask" / f"{name}.png")
        assert note is not None
        assert note.method == report["method"]
    assert "NOT SAM 2" in report["method"]
    assert report["method"].endswith("vote over RGB, NI; largest region, holes filled")
    assert report == json.loads((root / "mask_report.json").read_text())
    summary = report["splits"]["train"]
    assert (summary["items"], summary["made"], summary["kept"], summary["given"]) == (3, 3, 0, 0)
    assert summary["mean area"] == pytest.approx(np.mean([mask.mean() for mask in masks_of(root).values()]))
    assert summary["IoU with given masks"] is None
    printed = capsys.readouterr().out
    assert printed.count("NOT SAM 2") >= 2
    assert not (root / "mask_doubtful.png").exists()


def test_one_run_at_a_time_makes_masks_in_a_folder(root: Path):
    with locked(root, ".masks.lock"), pytest.raises(BlockingIOError, match=r"set is in use by another run"):
        main(settings(root))
    assert not (root / "train" / "mask").exists()


def test_a_manifest_takes_its_masks_and_report_beside_it(root: Path):
    lines = [f"train,{number},train/RGB/{name}.png,train/NI/{name}.png,{name}" for number, name in enumerate(NAMES)]
    (root / "mine.csv").write_text("\n".join(["split,identity,RGB,NI,item", *lines]))
    main(settings(root / "mine.csv"))
    assert sorted(path.name for path in (root / "mask").iterdir()) == [f"{name}.png" for name in sorted(NAMES)]
    assert (root / "mask_report.json").is_file()


def test_a_stopped_run_goes_on_and_finished_masks_are_not_made_again(root: Path, monkeypatch: pytest.MonkeyPatch):
    whole = main(settings(root, batch_size=2))
    expected = masks_of(root)
    (root / "train" / "mask" / f"{NAMES[1]}.png").unlink()
    shown = []
    original = Classical.__call__
    monkeypatch.setattr(Classical, "__call__", lambda self, images: shown.extend(images) or original(self, images))
    again = main(settings(root))
    assert len(shown) == 2  # one item, two modalities
    assert {name: mask.tolist() for name, mask in masks_of(root).items()} == {
        name: mask.tolist() for name, mask in expected.items()
    }
    assert [item["state"] for item in again["items"]] == ["kept", "made", "kept"]
    measured = ("area", "border", "agreement", "stability", "removed")
    for one, other in zip(whole["items"], again["items"], strict=True):
        assert [one[key] for key in measured] == pytest.approx([other[key] for key in measured], abs=1e-5)
    with pytest.raises(
        ValueError, match=r"(?s)3 masks were made in another way: .*size 0\.5.*size 0\.3.*--overwrite own"
    ):
        main(settings(root, object_size=0.3))
    assert main(settings(root, object_size=0.3, overwrite="own"))["splits"]["train"]["made"] == 3


def test_given_masks_are_kept_until_all_are_to_be_overwritten(root: Path, capsys: pytest.CaptureFixture[str]):
    path = root / "train" / "mask" / f"{NAMES[0]}.png"
    save(path, np.full(SIZE, 255, np.uint8))
    before = path.read_bytes()
    for overwrite in ("none", "own"):
        report = main(settings(root, overwrite=overwrite))
        assert path.read_bytes() == before
        assert report["items"][0]["state"] == report["items"][0]["method"] == "given"
        assert report["items"][0]["doubts"] == {"fills the image": 1.0, "touches the border": 1.0}
        assert "1 masks were made elsewhere and are kept" in capsys.readouterr().out
    assert (root / "mask_doubtful.png").is_file()
    report = main(settings(root, overwrite="all"))
    assert "1 masks that were made elsewhere are replaced" in capsys.readouterr().out
    assert path.read_bytes() != before
    assert [item["state"] for item in report["items"]] == ["made"] * 3
    assert not (root / "mask_doubtful.png").exists()


def test_masks_written_elsewhere_are_compared_with_the_given_ones(root: Path, tmp_path: Path):
    truth = np.zeros(SIZE, bool)
    truth[:, :16] = True
    for name in NAMES[:2]:
        save(root / "train" / "mask" / f"{name}.png", truth.astype(np.uint8) * 255)
    report = main(settings(root, out=tmp_path / "out"))
    made = masks_of(tmp_path / "out")
    overlaps = [(made[name] & truth).sum() / (made[name] | truth).sum() for name in NAMES[:2]]
    found = report["splits"]["train"]["IoU with given masks"]
    assert found == pytest.approx({"masks": 2, "mean": np.mean(overlaps), "median": np.median(overlaps)})
    assert [item["IoU with given masks"] for item in report["items"]] == [*map(pytest.approx, overlaps), None]
    assert sorted(masks_of(root)) == sorted(NAMES[:2])
    in_place = main(settings(root, out=root / "train" / ".."))
    assert [item["state"] for item in in_place["items"]] == ["given", "given", "made"]
    assert in_place["splits"]["train"]["IoU with given masks"] is None


def test_masks_of_one_modality_would_hide_a_common_one(root: Path):
    save(root / "train" / "mask_NI" / f"{NAMES[0]}.png", disc().astype(np.uint8) * 255)
    with pytest.raises(
        ValueError, match=r"masks in .*mask_NI are read instead of those in .*mask; pass --folder mask_NI"
    ):
        main(settings(root))
    report = main(settings(root, folder="mask_NI", source="NI"))
    assert [item["state"] for item in report["items"]] == ["given", "made", "made"]
    assert "mask of NI" in report["method"]


def test_the_source_decides_and_its_size_is_that_of_the_mask(root: Path):
    for name in NAMES:
        pixels = picture(5, np.roll(disc((20, 16), 0.4), 3, axis=1))[..., 0]
        save(root / "train" / "NI" / f"{name}.png", pixels)
    alone = settings(root, modalities=("NI",), folder="mask_NI", source="NI")
    both = main(settings(root, source="NI", out=root.parent / "both"))
    main(replace(alone, folder="mask", out=root.parent / "alone"))
    for name, mask in masks_of(root.parent / "both").items():
        assert mask.shape == (20, 16)
        np.testing.assert_array_equal(mask, masks_of(root.parent / "alone")[name])
    assert all(0 < item["agreement"] < 1 for item in both["items"])
    assert all(mask.shape == SIZE for mask in (main(settings(root)) and masks_of(root)).values())


def test_a_missing_modality_is_named_and_the_others_vote(root: Path):
    (root / "train" / "NI" / f"{NAMES[2]}.png").unlink()
    with pytest.raises(ValueError, match=NAMES[2]):
        main(settings(root))
    with pytest.raises(ValueError, match=f"source 'NI' is missing in 1 items: {NAMES[2]}; pass --source vote"):
        main(settings(root, source="NI", missing_modality="absent"))
    report = main(settings(root, missing_modality="absent"))
    assert report["splits"]["train"]["lacking a modality"] == 1
    assert report["items"][2]["missing"] == ["NI"]
    assert report["items"][2]["agreement"] is None
    assert len(masks_of(root)) == 3


def test_a_damaged_image_is_named_and_left_out_on_request(root: Path):
    (root / "train" / "RGB" / f"{NAMES[1]}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=NAMES[1]):
        main(settings(root))
    with pytest.warns(UserWarning, match=NAMES[1]):
        main(settings(root, damaged="skip"))
    assert sorted(masks_of(root)) == [NAMES[0], NAMES[2]]


@pytest.mark.parametrize(
    ("files", "mask"),
    [
        (["bounding_box_train/0548_c0002_000.png"], "bounding_box_train/mask/0548_c0002_000.png"),
        (["rgbir/bounding_box_train/0548_c0002_000.png"], "rgbir/bounding_box_train/mask/0548_c0002_000.png"),
        (
            [f"bounding_box_train/0002/{band}/0002_s002_v0_000.png" for band in ("vis", "ni")],
            "bounding_box_train/0002/mask/0002_s002_v0_000.png",
        ),
    ],
    ids=["RGBN300", "RGBN300 with rgbir", "MSVR310"],
)
def test_masks_lie_where_the_reader_of_a_benchmark_looks(tmp_path: Path, files: list[str], mask: str):
    panel = picture(0, disc((128, 256)))
    for file in files:
        save(tmp_path / file, np.concatenate([panel, panel], axis=1) if len(files) == 1 else panel)
    main(settings(tmp_path))
    items = read_split(tmp_path, "train", ("RGB", "NI"))
    assert [item.masks for item in items] == [(tmp_path / mask,) * 2]
    assert intersection_over_union(read_mask(tmp_path / mask), disc((128, 256))) > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "sam2"}, "method sam2 needs --weights, .* or pass --method classical"),
        ({"weights": Path("somewhere")}, "weights are for SAM 2 and would be ignored"),
        ({"source": "TI"}, "source must be one of 'vote', 'RGB', 'NI'; received 'TI'"),
        ({"folder": "masks"}, "folder must be one of 'mask', 'mask_RGB', 'mask_NI'; received 'masks'"),
        ({"splits": ("train", "train")}, "splits must be different names"),
        ({"batch_size": 0}, "batch_size must be positive, sheet not negative; received 0 and 40"),
    ],
)
def test_settings_that_cannot_be_meant(root: Path, changes: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        main(settings(root, **changes))
    assert not (root / "train" / "mask").exists()


def test_the_sheet_shows_the_most_doubtful_first(root: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: list[str] = []
    quality = {NAMES[0]: Quality(0.3, 0.6), NAMES[1]: Quality(0.3, 0.9), NAMES[2]: Quality(0.3, 0.9, 0.2)}
    for name, one in quality.items():
        write_mask(root / "train" / "mask" / f"{name}.png", disc(), Note(make.build(settings(root))[1], one))

    def remember(path: Path, entries: Sequence, title: str, asked: Settings) -> Path:
        drawn.extend(entry.task.item.name for entry in entries)
        return sheet.draw_sheet(path, entries, title, asked)

    monkeypatch.setitem(main.__globals__, "draw_sheet", remember)
    main(settings(root, sheet=2))
    assert drawn == [NAMES[2], NAMES[1]]
    with Image.open(root / "mask_doubtful.png") as image:
        assert len(image.getcolors(image.width * image.height) or []) > 100
        assert sheet.OUTLINE in {colour for _, colour in image.getcolors(image.width * image.height) or []}


def test_deep_images_are_shown_within_their_range(root: Path):
    for path in (root / "train" / "NI").iterdir():
        Image.fromarray(np.array(Image.open(path)).astype(np.uint16) + 7000).save(path)
    main(settings(root, ranges={"NI": (7000.0, 7255.0)}, object_size=9.0))
    with Image.open(root / "mask_doubtful.png") as image:
        assert image.width > 100


# Where true masks exist


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not beside the project")
def test_the_fallback_on_real_images_beats_the_bell_it_starts_from():
    items = read_split(REAL / "naip_parcels", "test", ("RGB",))[::10]
    maps = Classical()([Image.open(item.images[0]) for item in items])
    truths = [read_mask(item.masks[0]) for item in items]
    bell = Classical()([Image.new("L", (96, 96))])[0] > 0.5
    found = [intersection_over_union(clean(one > 0.5), truth) for one, truth in zip(maps, truths, strict=True)]
    assert np.mean(found) > 0.72
    assert np.mean(found) > np.mean([intersection_over_union(bell, truth) for truth in truths])


def test_the_fallback_on_the_synthetic_set(tmp_path: Path):
    data = write_dataset(
        tmp_path / "set", kind="person", size=(64, 32), train_identities=1, test_identities=3, binding_share=0.0
    )
    report = main(
        Settings(data=data, splits=("test",), method="classical", out=tmp_path / "out", device="cpu", batch_size=24)
    )
    assert report["splits"]["test"]["IoU with given masks"]["median"] > 0.5
    assert report["splits"]["test"]["items"] == 12
