"""Aerial sets: their rules on imitated tiles, and the parts of the published sets that need no source."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.prepare.aerial.build import Shot, build, list_shots
from examples.prepare.aerial.cities import hold_out_cities
from examples.prepare.aerial.crops import crop_parcel, crop_place, draw_blob, generator, move_points, reduced
from examples.prepare.aerial.measures import Measures, caption, count_trees, find_crowns, find_vegetation, measure
from examples.prepare.aerial.source import COMMIT, SOURCE, YEARS, list_backgrounds, list_tiles, read_tile, read_trees
from made_up_tiles import NUMBERS, write_clone
from stmi_layers.training import Protocol, read_split

REAL = Path(__file__).parents[3] / "shared" / "data"
there = pytest.mark.skipif(not REAL.is_dir(), reason="no real data beside the project")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs_libraries()
    return write_clone(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def built(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "sets"
    build(clone, out)
    return out


def needs_libraries() -> None:
    for library in ("cv2", "tifffile", "imagecodecs"):
        pytest.importorskip(library)


def empty_tiles(root: Path, numbers: dict[str, tuple[int, ...]]) -> Path:
    """Names of tiles without pixels."""
    (root / "images").mkdir(parents=True)
    for city, of_city in numbers.items():
        for number in of_city:
            for year in YEARS:
                (root / "images" / f"{city}_{year}_{number}.tif").touch()
    return root


def provenance(root: Path) -> list[dict[str, str]]:
    with (root / "naip_provenance.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


# Names and numbers, for which no picture is read


def test_tiles_are_sorted_by_number_and_whoever_lacks_a_year_is_left_out(tmp_path: Path):
    clone = empty_tiles(tmp_path, {"long_beach": (10, 2, 0, 7), "beach": (1,)})
    (clone / "images" / "long_beach_2016_7.tif").unlink()
    tiles = list_tiles(clone, "long_beach")
    assert list(tiles) == [0, 2, 10]
    assert {year: file.name for year, file in tiles[2].items()} == {year: f"long_beach_{year}_2.tif" for year in YEARS}
    with pytest.raises(FileNotFoundError, match=rf"no tiles images/claremont_YEAR_NUMBER.tif .* git clone {SOURCE}"):
        list_tiles(clone, "claremont")


def test_backgrounds_of_2016_are_those_of_2018(tmp_path: Path):
    clone = empty_tiles(tmp_path, {"chico": (1, 0)})
    (clone / "images" / "chico_2018_5.tif").touch()
    names = {year: [file.name for file in files] for year, files in list_backgrounds(clone).items()}
    of_2018 = ["chico_2018_0.tif", "chico_2018_1.tif", "chico_2018_5.tif"]
    assert names == {2016: of_2018, 2018: of_2018, 2020: ["chico_2020_0.tif", "chico_2020_1.tif"]}
    for file in clone.glob("images/chico_2020_*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no tiles images/chico_2020_NUMBER.tif; clone the source"):
        list_backgrounds(clone)


def test_numbers_of_identities_run_through_all_cities_and_a_limit_is_per_city(tmp_path: Path):
    clone = empty_tiles(tmp_path, NUMBERS)
    whole = {f"{home}/{split}": shots for home, split, shots in list_shots(clone, "places", None)}
    assert list(whole) == ["places/train_6", "places_santa_monica/test", "places/test"]
    shots = [shot for of_split in whole.values() for shot in of_split]
    assert [shot.identity for shot in shots] == [identity for identity in range(1, 10) for _ in YEARS]
    assert shots[-1].name == "000009_cam3_0_00"
    assert (shots[-1].city, shots[-1].number, shots[-1].file.name) == ("claremont", 11, "claremont_2020_11.tif")
    limited = {f"{home}/{split}": shots for home, split, shots in list_shots(clone, "parcels", 1)}
    assert {name: len(of_split) for name, of_split in limited.items()} == {
        "parcels/train_3": 9,
        "parcels_santa_monica/test": 3,
        "parcels/test": 3,
    }
    assert {shot.number for shot in limited["parcels/test"]} == {0}


def test_randomness_depends_on_the_names_alone():
    one, other = (generator("city", 1, year, "v1").random(4).tolist() for year in (2016, 2018))
    assert one != other
    assert generator("city", 1, 2016, "v1").random(4).tolist() == one


def test_points_outside_the_crop_are_left_out_and_none_are_none():
    matrix = np.array([[0.0, -1, 200], [1, 0, -30]])  # a quarter turn
    points = np.array([[100.0, 100.0], [100.0, 72.0], [100.0, 200.5], [30.0, 72.5]])
    assert move_points(points, matrix).tolist() == [[100.0, 70.0], [127.5, 0.0]]
    assert move_points(np.zeros((0, 2)), matrix).shape == (0, 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trees": 0}, "no visible trees with"),
        ({"trees": 3}, "a few trees with"),
        ({"trees": 4}, "about 4 trees with"),
        ({"vegetation": 0.1199}, "sparse vegetation"),
        ({"vegetation": 0.12}, "moderate vegetation"),
        ({"vegetation": 0.3}, "dense vegetation"),
        ({"brightness": 115}, "dark roofs"),
        ({"brightness": 150}, "mid-tone roofs"),
        ({"brightness": 150.1}, "bright roofs"),
        ({"reddish": 0.041}, "surfaces. Reddish tiled roofs or bare soil are present."),
        ({"pool": 12}, "surfaces. A swimming pool is visible."),
    ],
)
def test_captions_say_what_was_measured(changes: dict[str, float], said: str):
    plain = Measures(trees=5, vegetation=0.2, brightness=120, reddish=0.04, pool=11)
    assert said in caption(plain._replace(**changes))
    assert caption(plain) == (
        "The aerial view shows about 5 trees with moderate vegetation and mid-tone roofs or paved surfaces."
    )


def test_a_missing_library_is_named_with_its_extra_before_anything_is_written(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(ImportError, match=r"cv2 cannot be imported; .*pip install .*\[aerial\]'"):
        build(tmp_path / "clone", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_refused(tmp_path: Path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="must not exist or be empty"):
        build(tmp_path, tmp_path)


# Pictures


def test_a_tile_of_another_kind_is_refused_and_trees_are_optional(clone: Path):
    wrong = clone / "images" / "other.tif"
    pytest.importorskip("tifffile").imwrite(wrong, np.zeros((256, 256, 3), np.uint8), photometric="rgb")
    with pytest.raises(
        ValueError, match=r"other.tif must hold bytes of shape \(256, 256, 4\); received uint8 of shape"
    ):
        read_tile(wrong)
    assert read_trees(clone, wrong).shape == (0, 2)
    listed = next((clone / "csv").glob("claremont_*.csv"))
    assert len(read_trees(clone, clone / "images" / f"{listed.stem}.tif")) == len(listed.read_text().splitlines()) - 1


def test_points_move_with_the_pixels_of_a_place():
    needs_libraries()
    tile = np.zeros((256, 256, 4), np.uint8)
    points = np.array([[128.0, 120.0], [100.0, 140.0], [140.0, 100.0]])
    for number, (x, y) in enumerate(points.astype(int)):
        tile[y - 1 : y + 2, x - 1 : x + 2, number] = 255
    crop, matrix = crop_place(tile, "city", 5, 2018)
    scale = np.linalg.norm(matrix[:, 0])
    assert np.exp(-0.1) < scale < np.exp(0.1)
    assert abs(np.degrees(np.arctan2(matrix[0, 1], matrix[0, 0]))) < 20
    assert np.abs(matrix @ (127.5, 127.5, 1) - 63.5).max() < 12 * np.exp(0.1) * np.sqrt(2)
    rows, columns = np.mgrid[:128, :128]
    for number, (x, y) in enumerate(move_points(points, matrix)):
        weight = crop[..., number].astype(float)
        found = (columns * weight).sum() / weight.sum(), (rows * weight).sum() / weight.sum()
        assert np.allclose(found, (x, y), atol=0.1)


def test_the_identity_is_inside_the_mask_of_a_parcel_and_nowhere_else():
    needs_libraries()
    tile, other = np.full((256, 256, 4), 200, np.uint8), [np.full((256, 256, 4), value, np.uint8) for value in (10, 30)]
    crop, mask = crop_parcel(tile, other, "city", 5, 2018)
    assert (crop.shape, mask.shape, mask.dtype) == ((96, 96, 4), (96, 96), bool)
    assert 0.2 < mask.mean() < 0.45
    background = crop[0, 0, 0]
    assert background in (10, 30)
    # Half of each on the outline; the identity is 200, the background one of the others.
    assert crop[mask].min() > 90
    assert crop[mask].max() == 200
    assert crop[~mask].max() < 130
    assert crop[~mask].min() == background
    again = crop_parcel(np.zeros_like(tile), other, "city", 5, 2018)
    assert np.array_equal(again.mask, mask)
    chosen = {int(crop_parcel(tile, other, "city", number, 2018).crop[0, 0, 0]) for number in range(8)}
    assert chosen == {10, 30}


def test_vegetation_is_bright_in_the_infrared_and_crowns_are_those_near_a_tree():
    needs_libraries()
    crop = np.full((128, 128, 4), 100, np.uint8)
    crop[20:60, 20:60, 3], crop[80:120, 80:120, 3] = 220, 220
    vegetation = find_vegetation(crop)
    assert vegetation[25:55, 25:55].all()
    assert not vegetation[:15].any()
    crowns = find_crowns(vegetation, np.array([[40.0, 40.0], [10.0, 100.0]]))
    assert crowns[40, 40]
    rows, columns = np.nonzero(crowns)
    assert max(np.hypot(rows - 40, columns - 40)) < 10
    assert not find_crowns(vegetation, np.zeros((0, 2))).any()
    assert not find_vegetation(np.full((128, 128, 4), 100, np.uint8)).any()
    found = measure(crop, vegetation, 7)
    assert (found.trees, found.brightness, found.reddish, found.pool) == (7, 100, 0, 0)
    crop[60:80, :20] = (40, 150, 160, 20)
    crop[:20, 60:80] = (180, 60, 50, 60)
    coloured = measure(crop, vegetation, 7)
    assert (coloured.pool, coloured.reddish) == (400, 400 / 128**2)


def test_what_is_drawn_stays_what_it_was():
    """A blob, which no version of a codec touches."""
    needs_libraries()
    blob = reduced(draw_blob(generator("claremont", 3, 2018, "parcel1"))[0]) >= 0.5
    assert hashlib.sha256(np.packbits(blob).tobytes()).hexdigest()[:16] == "5b335fa0f5646e93"


# Sets


def test_all_cities_are_built_and_read_as_sets(built: Path, clone: Path):
    kinds = sorted(path.name for path in built.iterdir())
    sets = ["naip_parcels", "naip_parcels_santa_monica", "naip_places", "naip_places_santa_monica"]
    assert kinds == ["SOURCE.txt", *sets, "naip_provenance.csv"]
    for name, split, identities in (
        ("naip_places", "train", 5),
        ("naip_places", "test", 2),
        ("naip_places_santa_monica", "test", 1),
        ("naip_parcels", "train", 5),
        ("naip_parcels_santa_monica", "test", 1),
    ):
        captions = "required" if "places" in name else "off"
        items = read_split(built / name, split, ("RGB", "NI"), captions=captions)
        assert len(items) == 3 * identities
        assert all(None not in (*item.images, *item.masks) for item in items)
        side = 128 if "places" in name else 96
        for file in {file for item in items[:2] for file in (*item.images, *item.masks)}:
            with Image.open(str(file)) as image:
                assert image.size == (side, side)
    query, gallery = Protocol(query_cameras=(3,)).split(read_split(built / "naip_places", "test", ("RGB", "NI")))
    assert (len(query), len(gallery)) == (2, 4)
    assert all(word in (built / "SOURCE.txt").read_text() for word in ("CC BY 4.0", "Ventura", COMMIT, "Changes"))


def test_provenance_tells_where_every_file_comes_from(built: Path, clone: Path):
    rows = provenance(built)
    named = {(row["set"], row["split"], row["name"]) for row in rows}
    masks = sorted(built.rglob("mask/*.png"))
    assert named == {(*file.parts[-4:-2], file.stem) for file in masks}
    assert len(rows) == len(masks)
    for row in rows:
        folder = built / row["set"] / row["split"]
        with Image.open(folder / "mask" / f"{row['name']}.png") as mask:
            assert f"{np.asarray(mask).astype(bool).mean():.3f}" == row["mask_fraction"]
        assert (clone / "images" / row["source_file"]).exists()
        assert row["source_file"] == f"{row['city']}_{row['year']}_{row['tile']}.tif"
    for entry in json.loads((built / "naip_places" / "text" / "test.json").read_text()):
        (row,) = [row for row in rows if row["set"] == "naip_places" and row["name"] + ".jpg" == entry["item"]]
        assert f"shows {count_trees(int(row['annotated_trees_in_crop']))} with" in entry["description"]


def test_the_same_clone_gives_the_same_bytes_and_no_tile_changes_another(built: Path, clone: Path, tmp_path: Path):
    fewer = {city: numbers[:1] for city, numbers in NUMBERS.items() if city != "chico"}
    other = empty_tiles(tmp_path / "clone", fewer)
    for file in other.glob("images/*.tif"):
        file.unlink()
        file.symlink_to(clone / "images" / file.name)
    for file in clone.glob("images/chico_*.tif"):
        (other / "images" / file.name).symlink_to(file)
    (other / "csv").symlink_to(clone / "csv")
    build(other, tmp_path / "out")
    of_tile = {(row["set"], row["source_file"]): row for row in provenance(built)}
    for row in provenance(tmp_path / "out"):
        before = of_tile[row["set"], row["source_file"]]
        for kind, suffix in (("RGB", "jpg"), ("NI", "jpg"), ("mask", "png")):
            one, two = (
                root / each["set"] / each["split"] / kind / f"{each['name']}.{suffix}"
                for root, each in ((built, before), (tmp_path / "out", row))
            )
            assert one.read_bytes() == two.read_bytes()


def test_each_training_city_is_a_test_split_once(built: Path, tmp_path: Path):
    out = tmp_path / "cities"
    counts = hold_out_cities(built, out)
    cities = {"long_beach": 2, "palm_springs": 1, "riverside": 2}
    assert counts == {
        f"{kind}_{city}/{split}": count
        for kind in ("naip_places", "naip_parcels")
        for city, test in cities.items()
        for split, count in ((f"train_{5 - test}", 5 - test), ("test", test))
    }
    assert (out / "SOURCE.txt").read_bytes() == (built / "SOURCE.txt").read_bytes()
    before = {(row["set"], row["name"]): row for row in provenance(built)}
    for row in provenance(out):
        kind = "naip_places" if row["set"].startswith("naip_places") else "naip_parcels"
        source = before[kind, row["name"]]
        assert (row["split"] == "test") == (row["set"] == f"{kind}_{row['city']}")
        assert {**row, "set": "", "split": ""} == {**source, "set": "", "split": ""}
        one, two = (
            root / of["set"] / of["split"] / "NI" / f"{row['name']}.jpg" for root, of in ((out, row), (built, source))
        )
        assert one.read_bytes() == two.read_bytes()
    captions = "required"
    items = read_split(out / "naip_places_riverside", "test", ("RGB", "NI"), captions=captions)
    assert len(items) == 6
    assert all(None not in (*item.images, *item.masks) for item in items)
    assert len(read_split(out / "naip_places_riverside", "train", ("RGB", "NI"), captions=captions)) == 9
    assert len(read_split(out / "naip_parcels_long_beach", "train", ("RGB", "NI"))) == 9


def test_cities_are_held_out_of_built_sets_alone(built: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"naip_provenance.csv is missing; give the folder that .* wrote"):
        hold_out_cities(built / "naip_places", tmp_path / "out")
    with pytest.raises(FileExistsError, match="must not exist or be empty"):
        hold_out_cities(built, built)
    lines = (built / "naip_provenance.csv").read_text().splitlines(keepends=True)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "naip_provenance.csv").write_text(
        "".join(line for line in lines if "train" not in line or "riverside" in line)
    )
    with pytest.raises(ValueError, match="naip_places must have two training cities or more; received riverside"):
        hold_out_cities(tmp_path / "one", tmp_path / "out")
    (tmp_path / "one" / "naip_provenance.csv").write_text("".join(line for line in lines if "train" not in line))
    with pytest.raises(ValueError, match=r"one must have training splits; its naip_provenance.csv names none"):
        hold_out_cities(tmp_path / "one", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The published sets, as far as they say themselves how they were made


@there
def test_the_published_names_are_those_of_their_tiles(tmp_path: Path):
    rows = [row for row in provenance_of_published() if row["set"] == "naip_places"]
    numbers: dict[str, set[int]] = {"santa_monica": set(range(92))}
    for row in rows:
        numbers.setdefault(row["city"], set()).add(int(row["tile"]))
    clone = empty_tiles(tmp_path, {city: tuple(of_city) for city, of_city in numbers.items()})
    expected = {(row["set"], row["split"], row["name"], row["source_file"]) for row in provenance_of_published()}
    found: set[tuple[str, str, str, str]] = set()
    for kind, most in (("naip_places", None), ("naip_parcels", 50)):
        for home, split, shots in list_shots(clone, kind, most):
            found |= {(home, split, shot.name, shot.file.name) for shot in shots if shot.city != "santa_monica"}
    assert found == expected


@there
def test_the_published_captions_have_the_words_and_the_trees_of_their_provenance():
    trees = {row["name"]: row["annotated_trees_in_crop"] for row in provenance_of_published()[: 870 + 276]}
    for split in ("train", "test"):
        for entry in json.loads((REAL / "naip_places" / "text" / f"{split}.json").read_text()):
            said = entry["description"]
            measures = Measures(
                int(trees[entry["item"][:-4]]),
                0.0 if "sparse" in said else 0.2 if "moderate" in said else 0.5,
                160 if "bright" in said else 120 if "mid-tone" in said else 0,
                0.1 if "Reddish" in said else 0.0,
                20 if "pool" in said else 0,
            )
            assert caption(measures) == said


@there
def test_the_blobs_of_the_published_parcels_are_drawn_again():
    needs_libraries()
    for row in provenance_of_published()[::7]:
        if row["set"] == "naip_parcels":
            shot = Shot(0, row["city"], int(row["tile"]), int(row["year"]), Path())
            blob, _ = draw_blob(generator(shot.city, shot.number, shot.year, "parcel1"))
            with Image.open(REAL / row["set"] / row["split"] / "mask" / f"{row['name']}.png") as mask:
                assert np.array_equal(np.asarray(mask).astype(bool), reduced(blob) >= 0.5), row["name"]


def provenance_of_published() -> list[dict[str, str]]:
    return provenance(REAL)
