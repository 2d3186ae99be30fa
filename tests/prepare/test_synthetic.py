"""Synthetic set: measured checks of its causes."""

import itertools
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from examples.prepare.synthetic import dataset as synthetic
from examples.prepare.synthetic.bodies import BODIES, HUES, Tag
from examples.prepare.synthetic.captions import describe
from examples.prepare.synthetic.dataset import write_dataset
from examples.prepare.synthetic.identities import PLACES, Identity, Settings, confusable, make_identities, sample_view
from examples.prepare.synthetic.masks import corrupt_mask
from examples.prepare.synthetic.scenes import BANDS, LIGHTS, View, figure_mask, paint
from examples.prepare.synthetic.sensors import expose
from examples.prepare.synthetic.sheet import contact_sheet
from stmi_layers.training import read_split

TINY = Settings(
    size=(48, 48),
    train_identities=8,
    test_identities=8,
    train_images=3,
    test_images=2,
    cameras=2,
    binding_share=0.5,
)
REMOVING, ADDING = ("eroded", "holes"), ("dilated", "false_foreground")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("synthetic") / "set", TINY)


def contents(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def views(settings: Settings, split: str = "test", images: int = 4) -> list[tuple[Identity, View]]:
    """The views of a split, without rendering them."""
    identities = make_identities(settings)[split]
    own_place = settings.background_correlation if split == "train" else 0.0
    return [
        (identity, sample_view(settings, identity, index, identities, own_place))
        for identity in identities
        for index in range(images)
    ]


def some_view(light: str = "day") -> View:
    return replace(views(TINY)[5][1], light=light)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


# Files


def test_same_seed_same_bytes_other_seed_other_images(tiny: Path, tmp_path: Path):
    first = contents(tiny)
    assert contents(write_dataset(tmp_path / "again", TINY)) == first
    other = contents(write_dataset(tmp_path / "other", TINY, seed=1))
    assert other.keys() == first.keys()
    images = [name for name in first if Path(name).parent.name in BANDS]
    assert len(images) == 3 * (8 * 3 + 8 * 2)
    assert all(other[name] != first[name] for name in images)


def test_layout_is_the_plain_folder_set(tiny: Path):
    assert {entry.name for entry in tiny.iterdir()} == {
        "train",
        "test",
        "text",
        "items.csv",
        "dataset.json",
        "contact_sheet.png",
    }
    for split, images in (("train", 3), ("test", 2)):
        assert {entry.name for entry in (tiny / split).iterdir()} == {*BANDS, "mask"}
        names = [sorted(file.name for file in folder.iterdir()) for folder in (tiny / split).iterdir()]
        assert len(names[0]) == 8 * images
        assert all(one == names[0] for one in names)
        assert all(re.fullmatch(r"\d{6}_cam[12]_0_\d{2}\.png", name) for name in names[0])
        captions = json.loads((tiny / "text" / f"{split}.json").read_text())
        assert sorted(one["item"] for one in captions) == names[0]
        assert all(one["description"].startswith("A photo of a ") for one in captions)


@pytest.mark.parametrize(("band", "mode"), [("RGB", "RGB"), ("NI", "L"), ("TI", "L"), ("mask", "L")])
def test_images_have_the_size_and_mode_of_their_band(tiny: Path, band: str, mode: str):
    for file in (tiny / "test" / band).iterdir():
        with Image.open(file) as image:
            assert (image.size, image.mode) == ((48, 48), mode)
            values = set(np.unique(np.asarray(image)).tolist())
            assert values == {0, 255} if band == "mask" else len(values) > 20


def test_the_kind_of_every_item_is_a_column_of_the_set(tiny: Path):
    groups = {
        one["number"]: one["group"]
        for ones in json.loads((tiny / "dataset.json").read_text())["identities"].values()
        for one in ones
    }
    items = read_split(tiny, "test", BANDS)
    assert {item.columns["kind"] for item in items} == {"binding", "plain"}
    assert all((item.columns["kind"] == "binding") == (groups[int(item.name[:6])] is not None) for item in items)


def test_identities_of_the_splits_are_disjoint(tiny: Path):
    train, test = ({int(file.name[:6]) for file in (tiny / split / "RGB").iterdir()} for split in ("train", "test"))
    assert (len(train), len(test)) == (8, 8)
    assert not train & test


def test_manifest_describes_every_item(tiny: Path):
    manifest = json.loads((tiny / "dataset.json").read_text())
    assert manifest["settings"]["seed"] == 0
    for split in ("train", "test"):
        codes = {one["number"]: one["tags"] for one in manifest["identities"][split]}
        for item in manifest["items"][split]:
            with Image.open(tiny / split / "mask" / item["item"]) as mask:
                share = (np.asarray(mask) > 0).mean()
            assert share == pytest.approx(item["foreground"], abs=1e-4)
            assert {*map(tuple, codes[item["identity"]])} == {tuple(tag["factors"]) for tag in item["tags"]}
            assert item["item"].startswith(f"{item['identity']:06d}_cam{item['camera']}_")
            assert item["mask"] == {"corruption": "none", "iou": 1.0}


def test_masks_can_follow_each_sensor(tmp_path: Path):
    root = write_dataset(tmp_path / "set", TINY, train_identities=1, test_identities=2, mask_per_modality=True)
    assert {entry.name for entry in (root / "test").iterdir()} == {*BANDS, "mask_RGB", "mask_NI", "mask_TI"}
    item = json.loads((root / "dataset.json").read_text())["items"]["test"][0]
    rgb, ti = (np.asarray(Image.open(root / "test" / f"mask_{band}" / item["item"])) for band in ("RGB", "TI"))
    step = item["parallax"]["TI"]
    overlap = np.s_[:, step:] if step > 0 else np.s_[:, :step]
    assert 1 <= abs(step) <= 4
    assert np.array_equal(np.roll(rgb, step, axis=1)[overlap], ti[overlap])


def test_contact_sheet_shows_rows_of_cameras(tiny: Path):
    before = (tiny / "contact_sheet.png").read_bytes()
    with Image.open(contact_sheet(tiny)) as sheet:
        assert sheet.width > 2 * 4 * 96
        assert sheet.height > 8 * 96
    assert (tiny / "contact_sheet.png").read_bytes() == before


def test_a_set_that_is_there_already_is_left_as_it_is(tiny: Path):
    before = {file: file.stat().st_mtime_ns for file in tiny.rglob("*")}
    assert write_dataset(tiny, TINY) == tiny
    assert {file: file.stat().st_mtime_ns for file in tiny.rglob("*")} == before


def test_another_set_is_not_overwritten(tiny: Path):
    with pytest.raises(FileExistsError, match=r"holds a set with seed 0, not 3; give another folder"):
        write_dataset(tiny, TINY, seed=3)


@pytest.mark.parametrize("name", ["notes.txt", "dataset.json"])
def test_a_foreign_folder_is_not_overwritten(tmp_path: Path, name: str):
    (tmp_path / name).write_text("[]")
    with pytest.raises(FileExistsError, match="is not empty and is not a synthetic set"):
        write_dataset(tmp_path, TINY)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_run_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(root: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "contact_sheet", stop)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "set", TINY, train_identities=1, test_identities=1)
    assert list(tmp_path.iterdir()) == []


def test_command_line_fills_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "set"
    out.mkdir()
    words = f"synthetic --out {out} --seed 5 --kind person --size 64 32 --train-identities 2 --test-identities 2"
    monkeypatch.setattr("sys.argv", words.split())
    synthetic.main()
    assert json.loads((out / "dataset.json").read_text())["settings"]["kind"] == "person"
    assert str(out) in capsys.readouterr().out


# Identities


def test_each_factor_is_shared_and_only_the_whole_code_is_unique():
    splits = make_identities(Settings())
    everyone = [*splits["train"], *splits["test"]]
    assert len({(one.body, frozenset(one.tags)) for one in everyone}) == len(everyone) == 220
    plain = [one for one in splits["test"] if one.group is None]
    for band in range(3):
        looks = Counter((one.body, one.tags[0][band]) for one in plain)
        assert max(looks.values()) >= 4
        assert len({one.tags[0][band] for one in plain}) == 5
    assert max(Counter(one.body for one in splits["test"]).values()) <= 30
    alone = [confusable(splits["test"], [band]) for band in BANDS]
    assert min(alone) > 3
    assert min(confusable(splits["test"], [a, b]) for a, b in (BANDS[:2], BANDS[1:], BANDS[::2])) > 1.3
    assert confusable(splits["test"], BANDS) == 1


def test_binding_identities_share_all_parts_and_differ_in_their_combination():
    splits = make_identities(Settings(binding_share=0.5))
    bound = [one for ones in splits.values() for one in ones if one.group is not None]
    assert len(bound) == 60 + 48
    for group in {one.group for one in bound}:
        members = [one for one in bound if one.group == group]
        assert len(members) == len({frozenset(one.tags) for one in members}) == 4
        assert len({one.body for one in members}) == 1
        for band in range(3):
            assert len({frozenset(tag[band] for tag in one.tags) for one in members}) == 1
        assert [confusable(members, [band]) for band in BANDS] == [4, 4, 4]
        assert confusable(members, ["RGB", "NI"]) == 2


def test_confusable_counts_identities_by_hand():
    tags = [Tag(0, 0, 0), Tag(0, 1, 0), Tag(0, 2, 0), Tag(1, 2, 0)]
    identities = [Identity(number, 0, (tag,), None, 0) for number, tag in enumerate(tags)]
    assert confusable(identities, ["RGB"]) == (3 + 3 + 3 + 1) / 4
    assert confusable(identities, ["TI"]) == 4
    assert confusable(identities, ["RGB", "NI"]) == 1


def test_every_identity_shows_all_its_tags_at_changing_anchors():
    shown = views(Settings(binding_share=0.5), images=6)
    assert all({tag for _, tag in view.figure.tags} == set(identity.tags) for identity, view in shown)
    assert {len(view.figure.tags) for identity, view in shown if identity.group is None} == {1, 2, 3}
    places = Counter(tuple(sorted(anchor for anchor, _ in view.figure.tags)) for _, view in shown)
    assert len(places) > 40


def test_others_in_the_background_are_never_the_identity():
    others = make_identities(TINY)["test"]
    seen = set()
    for index in range(40):
        view = sample_view(TINY, others[0], index, others[1:], 0.0)
        seen |= {tag for _, tag in view.posters}
        assert not {tag for _, tag in view.posters} & set(others[0].tags)
    assert seen == {other.tags[0] for other in others[1:]}


# Figure, mask and background


@pytest.mark.parametrize(
    ("kind", "size"),
    [("vehicle", (64, 64)), ("vehicle", (48, 96)), ("person", (64, 32)), ("person", (96, 48)), ("person", (48, 48))],
)
def test_foreground_takes_20_to_45_percent(kind: str, size: tuple[int, int]):
    shares = []
    for _, view in views(replace(TINY, kind=kind, size=size, test_identities=16), images=8):
        shares.append(figure_mask(view, paint(view)[1], "RGB").mean())
    assert min(shares) >= 0.20
    assert max(shares) <= 0.45
    assert np.ptp(shares) > 0.1


def test_parallax_displaces_the_figure_by_one_to_four_pixels():
    steps = set()
    for _, view in views(TINY, images=8):
        front = paint(view)[1]
        reference = np.pad(figure_mask(view, front, "RGB"), ((0, 0), (4, 4)))
        for band in ("NI", "TI"):
            step = view.parallax[band][0]
            steps.add(abs(step))
            moved = np.roll(reference, step, axis=1)[:, 4:-4]
            inside = slice(4, -4)
            assert np.array_equal(figure_mask(view, front, band)[:, inside], moved[:, inside])
    assert steps == {1, 2, 3, 4}


def test_tags_lie_on_the_figure_where_the_manifest_says():
    for _, view in views(TINY, images=2):
        front = paint(view)[1]
        mask = figure_mask(view, front, "RGB")
        still = replace(view, light="day", parallax=dict.fromkeys(BANDS, (0, 0)))
        image = expose(still, *paint(still))["RGB"].astype(float)
        for anchor, tag in view.figure.tags:
            x, y = (int(side) for side in view.figure.tag_pose(anchor).centre)
            assert mask[y, x]
            hues = np.array(list(HUES.values())) ** (1 / 2.2)
            seen = image[y - 1 : y + 2, x - 1 : x + 2].mean((0, 1))
            assert np.argmax(hues @ seen / np.linalg.norm(hues, axis=1)) == tag.hue


def nearest_is_own(settings: Settings, split: str, images: int) -> float:
    """Share of views whose most similar background belongs to the same identity.

    The light is day everywhere, and only ratios between pixels count: the gain depends on how bright the figure is.
    """
    features, owners = [], []
    for identity, view in views(settings, split, images):
        view = replace(view, light="day", bystanders=(), posters=(), parallax=dict.fromkeys(BANDS, (0, 0)))
        behind, front = paint(view)
        background = ~figure_mask(view, front, "RGB")
        image = expose(view, behind, front)
        bands = np.concatenate([image["RGB"], image["NI"][..., None]], axis=-1)
        top, bottom = (np.median(bands[rows][background[rows]], axis=0) for rows in (slice(6), slice(-6, None)))
        ratios = np.log(1 + np.stack([top, bottom]))
        ratios[:, :3] -= ratios[:, :3].mean()
        ratios[:, 3] -= ratios[:, 3].mean()
        features.append(ratios.ravel())
        owners.append(identity.number)
    distances = np.linalg.norm(np.array(features)[:, None] - np.array(features), axis=-1)
    np.fill_diagonal(distances, np.inf)
    return float(np.mean(np.array(owners)[distances.argmin(1)] == owners))


def test_background_follows_the_identity_in_training_only():
    settings = replace(TINY, train_identities=30, test_identities=30, background_correlation=1.0)
    chance = 2 / 89
    assert nearest_is_own(settings, "train", 3) > 8 * chance
    assert nearest_is_own(settings, "test", 3) < 4 * chance
    settings = Settings(train_identities=200, test_identities=200)
    own = {split: [view.place[1] == i.place for i, view in views(settings, split)] for split in ("train", "test")}
    assert np.mean(own["train"]) == pytest.approx(0.7 + 0.3 / PLACES, abs=0.05)
    assert np.mean(own["test"]) == pytest.approx(1 / PLACES, abs=0.03)


@given(
    kind=st.sampled_from([*REMOVING, *ADDING]), level=st.floats(0, 1), seed=st.integers(0, 9), index=st.integers(0, 15)
)
def test_corruption_has_the_extent_it_states(kind: str, level: float, seed: int, index: int):
    view = views(TINY, images=2)[index][1]
    mask = figure_mask(view, paint(view)[1], "RGB")
    original = mask.copy()
    damaged = corrupt_mask(mask, kind, level, np.random.default_rng(seed))
    assert np.array_equal(mask, original)
    removes = kind in REMOVING
    assert not (damaged & ~mask if removes else mask & ~damaged).any()
    assert iou(mask, damaged) == pytest.approx(1 - level if removes else 1 / (1 + level), abs=0.01)


@pytest.mark.parametrize("kind", [*REMOVING, *ADDING, "empty"])
def test_more_corruption_is_never_less_damage(kind: str):
    masks = [figure_mask(view, paint(view)[1], "RGB") for _, view in views(TINY, images=2)]
    curve = [
        np.mean([iou(mask, corrupt_mask(mask, kind, level, np.random.default_rng(k))) for k, mask in enumerate(masks)])
        for level in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    ]
    assert curve[0] == 1
    assert all(later < earlier for earlier, later in itertools.pairwise(curve))


def test_erosion_takes_the_rim_and_dilation_the_surroundings():
    mask = np.zeros((32, 32), dtype=bool)
    mask[8:24, 8:24] = True
    eroded = corrupt_mask(mask, "eroded", 0.3, np.random.default_rng(0))
    dilated = corrupt_mask(mask, "dilated", 0.3, np.random.default_rng(0))
    assert eroded[11:21, 11:21].all()
    assert not dilated[:5].any()
    assert not dilated[:, -5:].any()


def test_corruption_changes_masks_and_no_image(tiny: Path, tmp_path: Path):
    root = write_dataset(tmp_path / "set", TINY, mask_corruption="mixed", mask_level=0.5)
    exact, damaged = contents(tiny), contents(root)
    changed = {name for name in exact if exact[name] != damaged[name]} - {"dataset.json", "contact_sheet.png"}
    assert changed
    assert all(Path(name).parent.name == "mask" for name in changed)
    items = json.loads(damaged["dataset.json"])["items"]["train"]
    assert {item["mask"]["corruption"] for item in items} == {*REMOVING, *ADDING, "empty"}
    for item in items:
        masks = [np.asarray(Image.open(folder / "train/mask" / item["item"])) > 0 for folder in (tiny, root)]
        assert iou(*masks) == pytest.approx(item["mask"]["iou"], abs=1e-3)


# Radiometry


def test_thermal_is_blind_to_light_and_the_others_are_not():
    day, night, glare = (expose(view, *paint(view)) for view in (some_view(light=light) for light in LIGHTS))
    assert np.array_equal(day["TI"], night["TI"])
    assert np.array_equal(day["TI"], glare["TI"])
    for band in ("RGB", "NI"):
        assert np.abs(day[band].astype(int) - night[band]).mean() > 10
        assert np.abs(day[band].astype(int) - glare[band]).mean() > 3


def test_night_is_noisy_and_glare_is_flat_in_rgb():
    def roughness(image: np.ndarray) -> float:
        return float(np.median(np.abs(np.diff(image.astype(float), axis=0))))

    day, night, glare = (expose(view, *paint(view))["RGB"] for view in (some_view(light=light) for light in LIGHTS))
    assert roughness(night) > 2 * roughness(day)
    assert np.ptp(np.percentile(glare, [5, 95])) < np.ptp(np.percentile(day, [5, 95]))


@pytest.mark.parametrize(
    ("columns", "blind"), [(slice(0, 3), {"NI", "TI"}), (slice(3, 4), {"RGB", "TI"}), (slice(4, 6), {"RGB", "NI"})]
)
def test_each_band_sees_its_own_surface_property_only(columns: slice, blind: set[str]):
    view = some_view(light="day")
    behind, front = paint(view)
    materials = front.materials.copy()
    materials[1:, columns] = materials[1:, columns][::-1]
    before, after = expose(view, behind, front), expose(view, behind, front._replace(materials=materials))
    assert {band for band in BANDS if np.array_equal(before[band], after[band])} == blind


def test_heat_reads_brighter_and_bare_metal_darker_than_the_body():
    body = BODIES["vehicle"][1]
    view = some_view()
    anchors = body.anchors[0], body.anchors[2]
    worn = ((anchors[0], Tag(0, 0, 0)), (anchors[1], Tag(0, 0, 1)))
    figure = replace(view.figure, body=body, tags=worn, activity=0.5)
    view = replace(view, figure=figure, parallax=dict.fromkeys(BANDS, (0, 0)))
    thermal = expose(view, *paint(view))["TI"]
    (hot_x, hot_y), (cold_x, cold_y) = (map(int, figure.tag_pose(anchor).centre) for anchor in anchors)
    middle = np.median(thermal[figure_mask(view, paint(view)[1], "TI")])
    assert thermal[hot_y, hot_x] > middle + 60
    assert thermal[cold_y, cold_x] < middle - 60


# Captions


def test_captions_leave_out_and_mistake_the_share_asked_for():
    settings = Settings(caption_unknown=0.3, caption_wrong=0.2)
    captions = [
        describe(settings, identity, view, np.random.default_rng(k))
        for k, (identity, view) in enumerate(views(settings))
    ]
    missing, wrong = (sum(map(len, kind)) for kind in zip(*((c.missing, c.wrong) for c in captions), strict=True))
    assert missing / (6 * len(captions)) == pytest.approx(0.3, abs=0.04)
    assert wrong / (6 * len(captions) - missing) == pytest.approx(0.2, abs=0.04)
    assert not any("unknown" in caption.text or "{" in caption.text for caption in captions)


@pytest.mark.parametrize("kind", ["vehicle", "person"])
def test_captions_tell_the_truth_when_nothing_is_unknown_or_wrong(kind: str):
    settings = replace(TINY, kind=kind, caption_unknown=0.0, caption_wrong=0.0)
    lights = {"day": "by day", "night": "at night", "glare": "in glare"}
    for identity, view in views(settings):
        text = describe(settings, identity, view, np.random.default_rng(0)).text
        body, pose = view.figure.body, view.figure.pose
        assert body.phrase.replace("{paint}", body.paint_name) in text
        assert f"facing {'left' if pose.mirrored else 'right'}" in text
        assert lights[view.light] in text
        assert {hue for hue in HUES if hue in text.split("with ")[-1]} == {list(HUES)[tag.hue] for tag in identity.tags}


def test_captions_may_know_nothing():
    identity, view = views(TINY)[0]
    nothing = replace(TINY, caption_unknown=1.0)
    assert describe(nothing, identity, view, np.random.default_rng(0)).text == "A photo of a vehicle."
    nobody = describe(replace(nothing, kind="person"), identity, view, np.random.default_rng(0))
    assert nobody.text == "A photo of a person in clothes."


def test_a_wrong_attribute_is_never_right_by_accident():
    settings = replace(TINY, caption_unknown=0.0, caption_wrong=1.0)
    for identity, view in views(settings):
        caption = describe(settings, identity, view, np.random.default_rng(0))
        assert len(caption.wrong) == 6
        assert f"facing {'left' if view.figure.pose.mirrored else 'right'}" not in caption.text
        assert view.figure.body.name not in caption.text


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "boat"}, "kind must be one of vehicle, person; received 'boat'"),
        ({"mask_corruption": "torn"}, "mask_corruption must be one of none, .*; received 'torn'"),
        ({"seed": -1}, "seed must not be negative; received -1"),
        ({"size": (64, 16)}, r"size must be at least 32 pixels high and wide.*received \(64, 16\)"),
        ({"cameras": 0}, "cameras must be at least 1; received 0"),
        ({"test_identities": 0}, "test_identities must be at least 1; received 0"),
        ({"mask_level": 1.5}, r"mask_level must lie in \[0, 1\]; received 1.5"),
        ({"caption_wrong": -0.1}, r"caption_wrong must lie in \[0, 1\]; received -0.1"),
        (
            {"train_identities": 700, "binding_share": 0.0},
            r"at most 500 plain and 16000 binding identities; received 700 \+ 8 with",
        ),
    ],
)
def test_settings_out_of_range(tmp_path: Path, changes: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        write_dataset(tmp_path / "set", TINY, **changes)


def test_corruption_out_of_range():
    mask = np.ones((4, 4), dtype=bool)
    with pytest.raises(ValueError, match=r"kind must be one of none, eroded, .*; received 'mixed'"):
        corrupt_mask(mask, "mixed", 0.1, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"level must lie in \[0, 1\]; received 2"):
        corrupt_mask(mask, "holes", 2, np.random.default_rng(0))
