"""Image and mask files: all counts of 16-bit images kept, upright orientation, or refused with their name."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from image_files import write_png, write_tiff, write_turned
from stmi_layers.training import MultiModalDataset
from stmi_layers.training.checks import Look, find_defect, look_at
from stmi_layers.training.depth import bits_of, read_counts
from stmi_layers.training.images import SUFFIXES, UnreadableError, opened, read_image, read_mask, scale_counts
from stmi_layers.training.record import Panel, unlabelled

RANDOM = np.random.default_rng(0)
COUNTS = RANDOM.integers(0, 65536, (13, 11), dtype=np.uint16)
COLOURS = RANDOM.integers(0, 65536, (13, 11, 3), dtype=np.uint16)
FLOATS = RANDOM.normal(300, 20, (13, 11)).astype(np.float32)


def write_pnm(path: Path, counts: np.ndarray, largest: int = 65535) -> None:
    head = f"P{6 if counts.ndim == 3 else 5}\n# counts\n{counts.shape[1]} {counts.shape[0]}\n{largest}\n"
    path.write_bytes(head.encode() + counts.astype(">u2").tobytes())


DEEP = {
    "PNG": ("x.png", lambda path: write_png(path, COUNTS), COUNTS),
    "PNG interlaced": ("x.png", lambda path: write_png(path, COUNTS, interlaced=True), COUNTS),
    "PNG alpha": ("x.png", lambda path: write_png(path, np.dstack([COUNTS, ~COUNTS])), COUNTS),
    "PNG colour": ("x.png", lambda path: write_png(path, COLOURS), COLOURS),
    "PNG colour interlaced": ("x.png", lambda path: write_png(path, COLOURS, interlaced=True), COLOURS),
    "PNG colour alpha": ("x.png", lambda path: write_png(path, np.dstack([COLOURS, COUNTS])), COLOURS),
    "TIFF": ("x.tif", lambda path: write_tiff(path, COUNTS), COUNTS),
    "TIFF big end": ("x.tif", lambda path: write_tiff(path, COUNTS, order=">"), COUNTS),
    "TIFF deflated": ("x.tiff", lambda path: write_tiff(path, COUNTS, deflate=True), COUNTS),
    "TIFF colour": ("x.tif", lambda path: write_tiff(path, COLOURS), COLOURS),
    "TIFF colour big end": ("x.tif", lambda path: write_tiff(path, COLOURS, order=">"), COLOURS),
    "TIFF colour deflated": ("x.tif", lambda path: write_tiff(path, COLOURS, deflate=True), COLOURS),
    "TIFF colour deflated big end": ("x.tif", lambda path: write_tiff(path, COLOURS, order=">", deflate=True), COLOURS),
    "TIFF signed": (
        "x.tif",
        lambda path: write_tiff(path, COUNTS.view(np.int16), kind=2),
        COUNTS.view(np.int16),
    ),
    "TIFF floating": ("x.tif", lambda path: write_tiff(path, FLOATS, kind=3), FLOATS),
    "TIFF 32 bits": (
        "x.tif",
        lambda path: write_tiff(path, COUNTS.astype(np.int32) * 9, kind=2),
        COUNTS.astype(int) * 9,
    ),
    "PGM": ("x.pgm", lambda path: write_pnm(path, COUNTS), COUNTS),
    "PGM of 12 bits": ("x.pgm", lambda path: write_pnm(path, COUNTS >> 4, 4095), COUNTS >> 4),
    "PPM": ("x.ppm", lambda path: write_pnm(path, COLOURS), COLOURS),
    "PPM of 10 bits": ("x.ppm", lambda path: write_pnm(path, COLOURS >> 6, 1023), COLOURS >> 6),
    "Pillow": ("x.png", lambda path: Image.fromarray(COUNTS).save(path), COUNTS),
}


@pytest.mark.parametrize("kind", DEEP)
def test_every_count_of_a_deep_image_is_read(tmp_path: Path, kind: str) -> None:
    name, write, counts = DEEP[kind]
    path = tmp_path / name
    write(path)
    assert np.array_equal(read_counts(path, opened), counts)
    low, high = (float(value) for value in np.quantile(counts, [0.2, 0.7]))
    expected = np.floor(((counts.astype(float) - low) / (high - low)).clip(0, 1) * 255 + 0.5)
    expected = expected if counts.ndim == 3 else np.repeat(expected[..., None], 3, axis=-1)
    assert np.array_equal(np.array(read_image(path, (low, high))), expected)
    assert {np.array(read_image(path, "image")).min(), np.array(read_image(path, "image")).max()} == {0, 255}
    bits = 32 if kind.endswith(("floating", "32 bits")) else 12 if "12" in kind else 10 if "10" in kind else 16
    with pytest.raises(ValueError, match=rf"has {bits} bits per channel; state the counts that become black and white"):
        read_image(path)
    assert look_at(path, bounds=(low, high)).notes[-1] == "clipped"
    assert "clipped" not in look_at(path, bounds=(float(counts.min()), float(counts.max()))).notes
    assert look_at(path).notes[-1] == "deep"
    assert "bits per channel; write it with 8 bits, 0 and 255" in (find_defect(path, is_mask=True) or "")


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_order_of_bytes_is_gone_before_anything_is_resized(tmp_path: Path, order: str) -> None:
    """Pillow mixes up the bytes of the other order when it resizes."""
    counts = np.arange(7000, 7000 + 64 * 48, dtype=np.uint16).reshape(48, 64)
    write_tiff(tmp_path / "x.tif", counts, order=order)
    dataset = MultiModalDataset(
        unlabelled(["x"], [[tmp_path / "x.tif"]]), (24, 32), masks="none", ranges=[(7000, 10071)]
    )
    expected = np.array(
        Image.fromarray(scale_counts(counts, (7000, 10071))).resize((32, 24), Image.Resampling.BILINEAR)
    )
    difference = dataset.picture(0)[0][0, ..., 0].astype(int) - expected
    assert np.abs(difference).max() <= 2


BANDS = np.dstack([np.full((16, 16), value, np.uint8) for value in (10, 20, 30, 40)])


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(("extra", "note"), [(0, "bands"), (2, "alpha")])
def test_a_fourth_band_is_counted_and_changes_no_colour(tmp_path: Path, extra: int, note: str, deep: bool) -> None:
    write_tiff(tmp_path / "x.tif", BANDS * (np.uint16(100) if deep else np.uint8(1)), extra=extra)
    bounds = (0.0, 25500.0) if deep else None
    assert np.array_equal(np.array(read_image(tmp_path / "x.tif", bounds)), BANDS[..., :3])
    assert note in look_at(tmp_path / "x.tif", bounds=bounds).notes


@pytest.mark.parametrize(
    ("channels", "kind", "bounds"), [(2, np.uint8, None), (4, np.uint8, None), (4, np.uint16, "image")]
)
def test_colours_that_another_band_would_divide_are_refused(tmp_path: Path, channels: int, kind: type, bounds) -> None:
    write_tiff(tmp_path / "x.tif", BANDS[..., :channels].astype(kind), extra=1)
    assert "colours are labelled as multiplied by its last band" in (
        find_defect(tmp_path / "x.tif", bounds=bounds) or ""
    )


def test_a_second_band_of_grey_is_counted(tmp_path: Path) -> None:
    write_tiff(tmp_path / "x.tif", np.dstack([ALPHA, BANDS[..., 0]]), extra=0)
    assert look_at(tmp_path / "x.tif").notes == ("bands",)
    assert look_at(tmp_path / "x.tif", is_mask=True).notes == ("bands",)
    assert np.array_equal(read_mask(tmp_path / "x.tif"), SHAPE)


def test_white_is_zero_is_inverted_where_the_values_are_bytes(tmp_path: Path) -> None:
    """A camera's deep files of that kind are refused, so that its exports are no negatives of one another."""
    write_tiff(tmp_path / "x.tif", np.full((8, 8), 218, np.uint8), photometric=0)
    assert np.array(read_image(tmp_path / "x.tif")).max() == 37
    write_tiff(tmp_path / "mask.tif", 255 - ALPHA, photometric=0)
    assert np.array_equal(read_mask(tmp_path / "mask.tif"), SHAPE)


@pytest.mark.parametrize("is_mask", [False, True])
def test_bytes_with_a_sign_are_refused(tmp_path: Path, is_mask: bool) -> None:
    write_tiff(tmp_path / "x.tif", np.full((8, 8), -3, np.int8), kind=2)
    assert "has signed values of 8 bits" in (find_defect(tmp_path / "x.tif", is_mask=is_mask) or "")


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_counts_of_jpeg_2000_which_pillow_shifts_are_refused_by_their_depth(tmp_path: Path, bits: int) -> None:
    Image.fromarray(COUNTS).save(tmp_path / "x.jp2")
    data = bytearray((tmp_path / "x.jp2").read_bytes())
    data[data.find(b"\xff\x4f\xff\x51") + 42] = bits - 1
    (tmp_path / "x.jp2").write_bytes(data)
    assert f"has {bits} bits per channel" in (find_defect(tmp_path / "x.jp2") or "")
    said = "is JPEG2000 with more than 8 bits per channel; write it as PNG or TIFF"
    assert find_defect(tmp_path / "x.jp2", bounds=(0.0, 4095.0)) == said


def test_a_colour_profile_is_counted_unless_it_is_the_usual_one(tmp_path: Path) -> None:
    for name, profile, notes in (("a", b"wide gamut", ("profile",)), ("b", b".. sRGB ..", ()), ("c", b"", ())):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png", icc_profile=profile)
        assert look_at(tmp_path / f"{name}.png").notes == notes


def test_a_range_is_for_deep_images_alone(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="has 8 bits per channel, and the range of its modality is for deeper images"):
        read_image(tmp_path / "x.png", (0, 9))


def test_an_image_of_one_count_is_black() -> None:
    assert scale_counts(np.full((2, 2), 7000), "image").max() == 0
    assert scale_counts(np.array([[-5.0, 0.5]]), (0.0, 1.0)).tolist() == [[0, 128]]


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.tif", lambda path: write_tiff(path, np.where(FLOATS > 300, np.nan, FLOATS), kind=3), "that are not finite"),
        ("x.tif", lambda path: write_tiff(path, COUNTS, photometric=0), "whose counts fall from black to white"),
        ("x.pgm", lambda path: path.write_text("P2 2 1 65535 0 65535"), "deep portable map in plain text"),
        ("x.jp2", lambda path: Image.fromarray(COUNTS).save(path), "is JPEG2000 with more than 8 bits per channel"),
    ],
)
def test_deep_images_that_would_be_misread_are_refused(tmp_path: Path, name: str, write, message: str) -> None:
    write(tmp_path / name)
    assert message in (find_defect(tmp_path / name, bounds=(0.0, 9.0)) or "")


@pytest.mark.parametrize("end", [b"\x0c\0\0", b"\0" * 5])
def test_depth_is_what_the_file_says(tmp_path: Path, end: bytes) -> None:
    for name, image, bits in (
        ("a.png", Image.new("RGB", (4, 4)), 8),
        ("b.png", Image.new("1", (4, 4)), 1),
        ("c.jpg", Image.new("L", (4, 4)), 8),
        ("d.jp2", Image.new("RGB", (16, 16)), 8),
        ("e.ppm", Image.new("RGB", (4, 4)), 8),
        ("f.gif", Image.new("P", (4, 4)), 8),
    ):
        image.save(tmp_path / name)
        with opened(tmp_path / name) as file:
            assert bits_of(file, tmp_path / name) == bits


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_images_and_masks_are_read_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    pixels = np.zeros((6, 9), np.uint8)
    pixels[:2], pixels[2:, :3] = 255, 255
    upright = Image.fromarray(pixels)
    write_turned(tmp_path / f"x{suffix}", upright, orientation)
    image = read_image(tmp_path / f"x{suffix}")
    assert np.abs(np.array(image.convert("L")).astype(int) - pixels).max() < 60
    assert np.array_equal(read_mask(tmp_path / f"x{suffix}"), pixels > 127)
    assert look_at(tmp_path / f"x{suffix}") == Look(None, (9, 6), ("turned",) * (orientation > 1))


def test_deep_images_are_read_upright_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    write_png(tmp_path / "x.png", np.rot90(COLOURS), chunks=(b"eXIf" + exif.tobytes()[6:],))
    assert np.array_equal(read_counts(tmp_path / "x.png", opened), COLOURS)
    panel = read_image(Panel(tmp_path / "x.png", 1, 2), "image")
    assert panel.size == (5, 13)


SHAPE = np.zeros((16, 16), bool)
SHAPE[4:12, 5:11] = True
ALPHA = SHAPE.astype(np.uint8) * 255
PHOTO = RANDOM.integers(0, 255, (16, 16, 3), dtype=np.uint8)


def transparent_palette(path: Path) -> None:
    image = Image.fromarray(SHAPE.astype(np.uint8), "P")
    image.putpalette([255, 255, 255, 255, 255, 255])
    image.save(path, transparency=0)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
@pytest.mark.parametrize("colour", [0, 255, "photo"])
def test_a_transparency_that_varies_is_the_mask(tmp_path: Path, suffix: str, colour) -> None:
    rgb = PHOTO if colour == "photo" else np.full((16, 16, 3), colour, np.uint8)
    path = tmp_path / f"mask{suffix}"
    Image.fromarray(np.dstack([rgb, ALPHA])).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    assert np.array_equal(read_mask(path), SHAPE)
    assert find_defect(path, is_mask=True) is None


def test_grey_and_palettes_with_transparency_are_masks_by_it(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([np.full_like(ALPHA, 255), ALPHA])).save(tmp_path / "la.png")
    transparent_palette(tmp_path / "p.png")
    Image.fromarray(ALPHA // 255 * 9).save(tmp_path / "l.png", transparency=0)
    for name in ("la.png", "p.png", "l.png"):
        assert np.array_equal(read_mask(tmp_path / name), SHAPE), name


def test_a_transparency_that_leaves_no_background_is_no_mask(tmp_path: Path) -> None:
    """An editor leaves an edge that is not quite opaque."""
    alpha = np.full_like(ALPHA, 255)
    alpha[0] = 250
    Image.fromarray(np.dstack([ALPHA, ALPHA, ALPHA, alpha])).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), SHAPE)


def palette(path: Path, colours: list[int]) -> None:
    image = Image.fromarray(SHAPE.astype(np.uint8), "P")
    image.putpalette(colours)
    image.save(path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: Image.fromarray(PHOTO).save(path), "is a mask in colour, which does not tell the foreground"),
        (lambda path: palette(path, [0, 0, 0, 128, 0, 0]), "is a mask in colour"),
        (lambda path: Image.new("RGBA", (4, 4), (255, 255, 255, 0)).save(path), "is a mask that is wholly transparent"),
        (
            lambda path: Image.fromarray(SHAPE.astype(np.uint8)).save(path),
            "is a mask whose largest value is 1; foregro",
        ),
        (
            lambda path: Image.fromarray(np.where(SHAPE, 255, 150).astype(np.uint8)).save(path),
            "is a mask whose values lie from 150 to 255, all foreground; background must be 0",
        ),
        (lambda path: Image.fromarray(ALPHA.astype(np.uint16) * 257).save(path), "is a mask of 16 bits per channel"),
    ],
)
def test_masks_that_say_foreground_in_no_known_way_are_refused(tmp_path: Path, write, message: str) -> None:
    write(tmp_path / "mask.png")
    assert message in (find_defect(tmp_path / "mask.png", is_mask=True) or "")


def test_masks_of_every_grey_form_are_read(tmp_path: Path) -> None:
    grey = Image.fromarray(ALPHA)
    for mode in ("1", "L", "RGB", "RGBA", "LA", "P"):
        grey.convert(mode).save(tmp_path / f"{mode}.png")
        assert np.array_equal(read_mask(tmp_path / f"{mode}.png"), SHAPE), mode
    palette(tmp_path / "swapped.png", [255, 255, 255, 0, 0, 0])
    assert np.array_equal(read_mask(tmp_path / "swapped.png"), ~SHAPE)
    grey.convert("RGB").save(tmp_path / "x.jpg", quality=95)
    assert np.array_equal(read_mask(tmp_path / "x.jpg"), SHAPE)


def test_policies_are_noted(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([PHOTO, ALPHA])).save(tmp_path / "cutout.png")
    assert look_at(tmp_path / "cutout.png").notes == ("alpha",)
    assert np.array_equal(np.array(read_image(tmp_path / "cutout.png")), PHOTO)
    pages = [Image.fromarray(PHOTO), Image.fromarray(255 - PHOTO)]
    for suffix in (".tif", ".gif", ".webp", ".png"):
        pages[0].save(tmp_path / f"pages{suffix}", save_all=True, append_images=pages[1:])
        assert "pages" in look_at(tmp_path / f"pages{suffix}").notes
    assert np.array_equal(np.array(read_image(tmp_path / "pages.tif")), PHOTO)
    for name, array, notes in (
        ("levels", np.where(SHAPE, 200, 90).astype(np.uint8) - np.eye(16, dtype=np.uint8), ("levels",)),
        ("empty", np.zeros((8, 8), np.uint8), ("empty",)),
        ("full", np.full((8, 8), 255, np.uint8), ("full",)),
        ("inverted", 255 - ALPHA, ("inverted",)),
        ("sound", ALPHA, ()),
    ):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
        assert look_at(tmp_path / f"{name}.png", is_mask=True).notes == notes, name


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_all_suffixes_are_of_images_that_are_read(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / f"x{suffix}"
    image = Image.new("F" if suffix == ".pfm" else "1" if suffix == ".pbm" else "L", (16, 16), 1)
    kind = {".jfif": "JPEG", ".dib": "DIB", ".jpe": "JPEG", ".pfm": "PPM"}.get(suffix)
    image.save(path, kind) if kind else image.save(path)
    assert find_defect(path, bounds="image" if suffix == ".pfm" else None) is None


def loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (loop, "Too many levels of symbolic links"),
        (lambda path: path.symlink_to("/nowhere/x.png"), "No such file"),
        (lambda path: path.mkdir(), "is no file"),
        (os.mkfifo, "is no file"),
        (lambda path: path.symlink_to("/dev/zero"), "is no file"),
        (lambda path: path.write_bytes(b""), "is in no known image format"),
        (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "is in no known image format"),
    ],
)
@pytest.mark.parametrize("is_mask", [False, True])
def test_what_cannot_be_opened_is_named(tmp_path: Path, make, message: str, is_mask: bool) -> None:
    make(tmp_path / "x.png")
    assert message in (find_defect(tmp_path / "x.png", is_mask=is_mask) or "")


def test_arrays_that_promise_too_much_are_refused(tmp_path: Path) -> None:
    head = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    text = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 100000000), }"
    (tmp_path / "mask.npy").write_bytes(head + text.ljust(117).encode() + b"\n")
    assert "cannot be decoded" in (find_defect(tmp_path / "mask.npy", is_mask=True) or "")
    os.mkfifo(tmp_path / "pipe.npy")
    assert "is no file" in (find_defect(tmp_path / "pipe.npy", is_mask=True) or "")


def test_a_damaged_file_never_raises(tmp_path: Path) -> None:
    """Bytes of small files, changed one after the other: a look at them comes to an end."""
    random = np.random.default_rng(5)
    for name, options in (("x.png", {}), ("x.tif", {}), ("x.jpg", {}), ("x.webp", {}), ("x.jp2", {}), ("x.gif", {})):
        path = tmp_path / name
        Image.fromarray(PHOTO).save(path, **options)
        whole = bytearray(path.read_bytes())
        for _, is_mask in itertools.product(range(40), (False, True)):
            changed = bytearray(whole)
            for place in random.integers(0, len(whole), 3):
                changed[place] = random.integers(256)
            path.write_bytes(changed[: random.integers(1, len(whole) + 1)])
            assert isinstance(look_at(path, is_mask=is_mask), Look)


def test_an_error_of_a_worker_is_one_line() -> None:
    said = UnreadableError("a.png cannot be read: broken")
    again = UnreadableError(
        f"Caught UnreadableError in DataLoader worker process 0.\nTrace\nx.UnreadableError: {said}\n"
    )
    assert str(again) == str(said)
