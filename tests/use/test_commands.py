"""Commands from images to matches: every source of images, every mask policy, search rules, and clear errors."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

from examples import extract
from examples.listing import Listing
from examples.restore import load_model
from examples.search import __main__ as search
from processes import as_command, in_processes, start, waiting
from sets import save, tiny
from stmi_layers.training import (
    Machine,
    MultiModalDataset,
    describe,
    extraction,
    load_split,
    open_shards,
    unlabelled,
)


def run(module: Any, *arguments: object) -> Any:
    """A command by its command line, on the CPU."""
    return module.main(tyro.cli(module.Arguments, args=[*map(str, arguments), "--device", "cpu"]))


def rows_of(folder: Path) -> torch.Tensor:
    shards = open_shards(folder)
    name = next(iter(shards.record.widths))
    return torch.cat([shards.vectors(number, name) for number in range(len(shards))])


@pytest.fixture(scope="module")
def index(data: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test split, described; a picture beside the splits is none of the images."""
    Image.new("RGB", (9, 9)).save(data / "contact_sheet.png")
    out = tmp_path_factory.mktemp("index")
    run(extract, "--checkpoint", checkpoint, "--images", data, "--split", "test", "--out", out)
    return out


def test_a_set_is_described_as_evaluation_does(index: Path, data: Path, checkpoint: Path):
    loaded = load_model(checkpoint, machine=Machine(device="cpu"))
    dataset = load_split(loaded.run.data, "test")
    expected = describe(loaded.model, dataset, device="cpu")["U"]
    torch.testing.assert_close(rows_of(index), expected, rtol=1e-4, atol=1e-5)
    items = list(open_shards(index).all_items())
    assert [item.name for item in items] == [item.name for item in dataset.items]
    assert [(item.identity, item.camera) for item in items] == [(i.identity, i.camera) for i in dataset.items]


def test_every_place_of_images_gives_the_same_descriptors(index: Path, data: Path, checkpoint: Path, tmp_path: Path):
    """A split, folders by modality, and files: without captions all of them agree."""
    quiet = ["--checkpoint", checkpoint]
    plain = tmp_path / "plain"
    for modality in ("RGB", "NI", "mask"):
        for file in (data / "test" / modality).iterdir():
            save(plain / "all" / modality / f"photo {file.name}", np.array(Image.open(file)))
    run(extract, *quiet, "--images", plain / "all", "--out", tmp_path / "folders")
    items = list(open_shards(tmp_path / "folders").all_items())
    assert len(items) == 20
    assert {item.identity for item in items} == {None}
    assert all(item.masks[0] is not None for item in items)
    run(extract, *quiet, "--images", data / "test", "--out", tmp_path / "split")
    assert [item.identity for item in open_shards(tmp_path / "split").all_items()][:5] == [5, 5, 5, 5, 6]
    torch.testing.assert_close(rows_of(tmp_path / "split"), rows_of(index))
    first = [f"{name}={data / 'test' / name / '000005_cam1_0_00.png'}" for name in ("RGB", "NI")]
    second = [f"{name}={data / 'test' / name / '000005_cam1_0_01.png'}" for name in ("RGB", "NI")]
    run(extract, *quiet, "--images", *first, *second, "--masks", "ones", "--out", tmp_path / "files")
    run(extract, *quiet, "--images", plain / "all", "--masks", "ones", "--out", tmp_path / "ones")
    torch.testing.assert_close(rows_of(tmp_path / "files"), rows_of(tmp_path / "ones")[:2])
    # One modality: a folder of images, or files, and the modality stated.
    folder = data / "test" / "RGB"
    run(extract, *quiet, "--images", folder, "--modality", "RGB", "--masks", "none", "--out", tmp_path / "one")
    file = folder / "000005_cam1_0_00.png"
    run(extract, *quiet, "--images", file, "--modality", "RGB", "--masks", "none", "--out", tmp_path / "file")
    torch.testing.assert_close(rows_of(tmp_path / "file"), rows_of(tmp_path / "one")[:1])
    items = list(open_shards(tmp_path / "one").all_items())
    assert all(item.images[1] is None for item in items)
    width = rows_of(tmp_path / "one").shape[1] // 2
    assert rows_of(tmp_path / "one")[:, width:].abs().max() == 0  # the part of the absent modality


def test_a_manifest_is_read_and_its_missing_files_are_named(data: Path, checkpoint: Path, tmp_path: Path):
    names = ["000005_cam1_0_00", "000005_cam2_0_00"]
    lines = [f"test,red,{n},{data}/test/RGB/{name}.png,{data}/test/NI/{name}.png" for n, name in enumerate(names)]
    manifest = tmp_path / "m.csv"
    manifest.write_text("\n".join(["split,identity,camera,RGB,NI", *lines]))
    arguments = ["--checkpoint", checkpoint, "--images", manifest, "--masks", "none", "--out"]
    run(extract, *arguments, tmp_path / "a")
    items = list(open_shards(tmp_path / "a").all_items())
    assert [(item.identity, item.camera) for item in items] == [("red", 0), ("red", 1)]
    manifest.write_text("\n".join(["split,identity,camera,RGB,NI", lines[0], lines[1].replace("RGB/", "RGB/no")]))
    with pytest.raises(ValueError, match=r"1 files are named and missing: .*RGB/no000005_cam2_0_00\.png"):
        run(extract, *arguments, tmp_path / "b")
    assert not (tmp_path / "b" / "extraction.json").exists()
    manifest.write_text("\n".join(["split,identity,camera,RGB,NI", *lines]))
    run(extract, *arguments, tmp_path / "b")


def test_modalities_that_the_model_lacks_are_said(data: Path, checkpoint: Path, tmp_path: Path):
    names = ["split,RGB,XX", f"test,{data}/test/RGB/000005_cam1_0_00.png,{data}/test/NI/000005_cam1_0_00.png"]
    (tmp_path / "m.csv").write_text("\n".join(names))
    arguments = ["--checkpoint", checkpoint, "--images", tmp_path / "m.csv", "--masks", "none", "--out", tmp_path]
    with pytest.warns(UserWarning, match=r"m\.csv: test also has XX, which the model does not read"):
        run(extract, *arguments)
    (tmp_path / "m.csv").write_text("\n".join(names).replace("RGB,XX", "YY,XX"))
    with pytest.raises(FileNotFoundError, match=r"m\.csv has no modality of the model, RGB, NI; it has \['XX', 'YY'\]"):
        run(extract, *arguments[:-1], tmp_path / "other")


def test_masks_are_given_made_or_left_out(data: Path, checkpoint: Path, tmp_path: Path):
    shutil.copytree(data / "test" / "RGB", tmp_path / "images" / "RGB")
    arguments = ["--checkpoint", checkpoint, "--images", tmp_path / "images"]
    with pytest.raises(ValueError, match=r"20 items lack a mask, .*--masks classical .*--masks ones .*--masks none"):
        run(extract, *arguments, "--out", tmp_path / "given")
    for policy in ("classical", "ones", "none"):
        run(extract, *arguments, "--masks", policy, "--out", tmp_path / policy)
    found = [rows_of(tmp_path / policy) for policy in ("classical", "ones", "none")]
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[1], found[2])


def test_a_model_for_masks_is_asked_for_every_item(data: Path, checkpoint: Path, tmp_path: Path, monkeypatch):
    """With the masks of the set as its answers, descriptors are those with given masks."""
    arguments = ["--checkpoint", checkpoint, "--images", data, "--split", "test"]
    with pytest.raises(ValueError, match=r"masks sam3 need --mask-weights, a local folder"):
        run(extract, *arguments, "--masks", "sam3", "--mask-prompt", "person", "--out", tmp_path / "sam3")
    with pytest.raises(ValueError, match=r"workers must be 0 for masks sam3: its model is in one process"):
        run(extract, *arguments, "--masks", "sam3", "--workers", "2", "--out", tmp_path / "sam3")
    centre = np.zeros((32, 32), bool)  # the masks of the set at twice their size
    centre[8:24, 8:24] = True
    monkeypatch.setattr(extract, "maker_of", lambda *_, **__: lambda item: centre)
    model = ["--masks", "sam3", "--mask-weights", tmp_path, "--mask-prompt", "person"]
    run(extract, *arguments, *model, "--out", tmp_path / "sam3")
    run(extract, *arguments, "--out", tmp_path / "given")
    torch.testing.assert_close(rows_of(tmp_path / "sam3"), rows_of(tmp_path / "given"))
    # Queries are treated as the index was.
    found = run(search, "--index", tmp_path / "sam3", "--query", data / "test", "--out", tmp_path)
    assert len(found) == 20
    with pytest.raises(ValueError, match=r"another extraction \(mask_prompt person -> bus\); choose another folder"):
        run(extract, *arguments, *model[:-1], "bus", "--out", tmp_path / "sam3")


def test_the_classical_method_finds_the_object_in_the_middle():
    from examples.images import classical_mask

    images = torch.full((2, 3, 32, 16), 0.2)
    images[:, :, 8:24, 4:12] = 0.9
    images += 0.02 * torch.randn(images.shape)
    mask = classical_mask(images.clamp(0, 1), torch.tensor([True, False]))
    truth = torch.zeros(32, 16, dtype=torch.bool)
    truth[8:24, 4:12] = True
    assert (mask & truth).sum() / (mask | truth).sum() > 0.8


def test_deep_images_are_read_with_the_range_of_the_checkpoint(data: Path, tmp_path: Path):
    from examples.train import train

    for split in ("train", "test"):
        for file in (data / split / "RGB").iterdir():
            save(tmp_path / "set" / split / "RGB" / file.name, np.array(Image.open(file)))
            grey = np.array(Image.open(file).convert("L")).astype(np.uint16) * 10 + 7000
            save(tmp_path / "set" / split / "NI" / file.name, grey)
    settings = {"epochs": 1, "captions": "off", "masks": "none", "ranges": {"NI": (7000.0, 9550.0)}}
    train(tiny(tmp_path / "set", **settings), tmp_path / "run")
    file = tmp_path / "set" / "test" / "NI" / "000005_cam1_0_00.png"
    arguments = ["--checkpoint", tmp_path / "run" / "checkpoint.pt", "--images", f"NI={file}", "--out"]
    run(extract, *arguments, tmp_path / "deep")
    save(tmp_path / "flat.png", ((np.array(Image.open(file)).astype(float) - 7000) / 10).round().astype(np.uint8))
    with pytest.raises(ValueError, match=r"flat\.png cannot be read: has 8 bits per channel, and the range"):
        run(extract, *arguments[:3], f"NI={tmp_path / 'flat.png'}", "--out", tmp_path / "flat")
    # The range of the training, 10 counts a grey level: the same images with 8 bits, without a range.
    loaded = load_model(tmp_path / "run" / "checkpoint.pt", machine=Machine(device="cpu"))
    grey = unlabelled(["flat"], [[None, tmp_path / "flat.png"]])
    expected = describe(loaded.model, MultiModalDataset(grey, (16, 16), masks="none"), device="cpu")
    torch.testing.assert_close(rows_of(tmp_path / "deep"), expected[loaded.model.headline])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["{data}/nothing"], r"there is nothing at .*nothing"),
        (["{data}/test/RGB"], r"the modality of the images in .*RGB must be stated, one of RGB, NI: by --modality"),
        (["XX={data}/test/RGB/000005_cam1_0_00.png"], r"must name a modality of the model, RGB, NI; received 'XX="),
        (["RGB={data}/none.png"], r"there is no image at .*none\.png"),
        (["{data}/text"], r"text is in no known layout"),
    ],
)
def test_images_that_cannot_be_described_are_refused(images, message, data: Path, checkpoint: Path, tmp_path: Path):
    named = [text.format(data=data) for text in images]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(extract, "--checkpoint", checkpoint, "--images", *named, "--out", tmp_path)


def test_the_same_folder_is_not_used_for_other_images(index: Path, data: Path, checkpoint: Path):
    with pytest.raises(ValueError, match=r"another extraction \(split test -> train\); choose another folder"):
        run(extract, "--checkpoint", checkpoint, "--images", data, "--split", "train", "--out", index)


def test_a_listing_gives_items_without_holding_them(index: Path):
    listing = Listing(index / "items.jsonl")
    assert len(listing) == 20
    assert listing[19] == listing[-1] == list(open_shards(index).all_items())[-1]
    with pytest.raises(IndexError):
        listing[20]


def test_search_lists_the_best_matches_as_table_and_json(index: Path, data: Path, tmp_path: Path, capsys):
    found = run(search, "--index", index, "--query", data, "--split", "test", "--k", 3, "--out", tmp_path)
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "matches.json").read_text())
    assert written["queries"] == found
    assert (len(found), written["descriptor"]) == (20, "U")
    rows = rows_of(index)
    for place, query in enumerate(found):
        cosines = rows @ rows[place]
        cosines[place] = -2  # a query never finds itself
        expected = cosines.topk(3).indices.tolist()
        assert [match["row"] for match in query["matches"]] == expected
        for match in query["matches"]:
            assert match["similarity"] == pytest.approx(float(cosines[match["row"]]), abs=2e-5)
            assert match["distance"] == pytest.approx(max(0, 2 - 2 * match["similarity"]) ** 0.5, abs=2e-4)
            assert match["right"] == (match["identity"] == query["identity"])
    assert "query 000005_cam1_0_00  identity 5  camera 1\n    1  " in printed
    assert "of 20 queries whose identity is known" in printed


def test_rules_leave_out_what_they_say(index: Path, tmp_path: Path, capsys):
    def ask(*rules: object) -> list[dict[str, Any]]:
        return run(search, "--index", index, "--query", index, "--k", 5, "--out", tmp_path, *rules)

    for query in ask("--drop", "camera"):
        assert len(query["matches"]) == 5
        pairs = [(match["identity"], match["camera"]) for match in query["matches"]]
        assert (query["identity"], query["camera"]) not in pairs
        assert any(camera == query["camera"] for _, camera in pairs)
    for query in ask("--exclude", "camera", "--k", "10"):
        assert [match["camera"] for match in query["matches"]] == [3 - query["camera"]] * 10
    capsys.readouterr()
    assert all(match["similarity"] >= 0.99 for query in ask("--min-similarity", 0.99) for match in query["matches"])
    nothing = ask("--min-similarity", 1.1)
    assert not any(query["found"] or query["matches"] for query in nothing)
    assert "query 000005_cam1_0_00  identity 5  camera 1: not in the gallery" in capsys.readouterr().out
    assert (tmp_path / "matches.html").read_text().count("Not in the gallery.") == 20
    with pytest.raises(ValueError, match=r"drop must be a column of the queries, camera, identity, name; .*'scene'"):
        ask("--drop", "scene")


def test_images_without_identity_are_searched(index: Path, data: Path, tmp_path: Path):
    """An image of another size than the training's, and one modality of two."""
    Image.open(data / "test" / "RGB" / "000007_cam1_0_00.png").resize((50, 90)).save(tmp_path / "new.png")
    asked = ["--index", index, "--query", f"RGB={tmp_path / 'new.png'}", "--masks", "classical", "--out", tmp_path]
    (query,) = run(search, *asked)
    assert (query["name"], query["identity"], len(query["matches"])) == ("new", None, 10)
    assert {match["right"] for match in query["matches"]} == {None}
    with pytest.raises(ValueError, match=r"drop must be a column of the queries"):
        run(search, *asked, "--drop", "camera")
    with pytest.raises(ValueError, match=r"drop compares identities, and no query has one; --exclude"):
        run(search, *asked, "--drop", "name")


def test_other_models_are_refused_by_name(index: Path, data: Path, other_checkpoint: Path, tmp_path: Path):
    out = tmp_path / "other"
    run(extract, "--checkpoint", other_checkpoint, "--images", data / "test", "--out", out)
    with pytest.raises(
        ValueError, match=r"by the model of the index; .*other has the weights .*checkpoint\.pt with the"
    ):
        run(search, "--index", index, "--query", out)
    with pytest.raises(ValueError, match=r"by the model of the index; .*\(--checkpoint\)"):
        run(search, "--index", index, "--query", data / "test", "--checkpoint", other_checkpoint)
    with pytest.raises(ValueError, match=r"has the descriptors \['U'\]; received 'G'"):
        run(search, "--index", index, "--query", out, "--descriptor", "G")
    with pytest.raises(FileNotFoundError, match=r"holds no extraction\.json"):
        run(search, "--index", tmp_path, "--query", out)
    with pytest.raises(ValueError, match=r"query must name images to look up, or kind an index"):
        run(search, "--index", index)
    record = json.loads((out / "extraction.json").read_text())
    del record["notes"]["seen"]
    (out / "extraction.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"examples\.extract, of this version; .* that lacks seen\. Extract again"):
        run(search, "--index", out, "--query", data / "test")


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_faiss_is_built_once_and_its_recall_is_printed(kind, index: Path, tmp_path: Path, capsys):
    pytest.importorskip("faiss")
    run(search, "--index", index, "--kind", kind)
    printed = capsys.readouterr().out
    assert f"built {kind} of 20 rows" in printed
    assert ("recall at 10 against exact search" in printed) == (kind != "exact")
    found = run(search, "--index", index, "--query", index, "--kind", kind, "--k", 3, "--out", tmp_path)
    assert "built " not in capsys.readouterr().out
    assert found == run(search, "--index", index, "--query", index, "--k", 3, "--out", tmp_path)


@pytest.mark.slow
def test_two_processes_describe_what_one_does(index: Path, data: Path, checkpoint: Path, tmp_path: Path):
    options = ("--images", data, "--split", "test", "--shard-size", 3, "--device", "cpu", "--out", tmp_path)
    in_processes(as_command, "examples.extract", "--checkpoint", checkpoint, *options)
    assert len(open_shards(tmp_path)) == 7
    torch.testing.assert_close(rows_of(tmp_path), rows_of(index), rtol=1e-4, atol=1e-5)


def extract_until_killed(*line: object) -> None:
    extraction.write_shard = waiting(extraction.write_shard, 20)
    as_command("examples.extract", *line)


@pytest.mark.slow
def test_an_extraction_survives_being_killed(index: Path, data: Path, checkpoint: Path, tmp_path: Path):
    line = ["--checkpoint", checkpoint, "--images", data, "--split", "test", "--shard-size", 1, "--batch-size", 1]
    line += ["--out", tmp_path / "out"]
    process = start(extract_until_killed, *line, "--device", "cpu", says=tmp_path / "said.txt")
    while len(list(tmp_path.glob("out/shards/0*"))) < 4 and process.is_alive():
        time.sleep(0.001)
    process.kill()
    process.join()
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/shards/0*")}
    assert 4 <= len(times) < 20, (tmp_path / "said.txt").read_text()
    run(extract, *line)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    torch.testing.assert_close(rows_of(tmp_path / "out"), rows_of(index), rtol=1e-4, atol=1e-5)
