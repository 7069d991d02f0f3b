# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Pictures and masks of any kind: one rule for transparency, depth and orientation."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from alignext.diffusion.pictures import as_masks, to_mask, to_pil
from alignext.diffusion.sheets import contact_sheet
from alignext.trainers.diffusion_preference.data import to_rgb


GREY = np.linspace(0, 255, 32, dtype=np.uint8)[None].repeat(16, 0)  # (16, 32)
WHITE = (255, 255, 255)


def encoded(picture: PIL.Image.Image, form: str = "PNG", **settings) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **settings)
    return file.getvalue()


def grey_of(picture) -> np.ndarray:
    read = to_pil(picture)
    assert read.mode == "RGB"
    array = np.asarray(read)
    assert (array == array[..., :1]).all()
    return array[..., 0]


DEEP = GREY.astype(np.uint16) * 257
SAME_GREY = {
    "L": PIL.Image.fromarray(GREY),
    "16 bits": PIL.Image.fromarray(DEEP),
    "16 bits, other order": PIL.Image.frombytes("I;16B", (32, 16), DEEP.astype(">u2").tobytes()),
    "16-bit PNG": encoded(PIL.Image.fromarray(DEEP)),
    "16-bit TIFF": encoded(PIL.Image.fromarray(DEEP), "TIFF"),
    "32 bits": PIL.Image.fromarray(DEEP.astype(np.int32)),
    "32 bits of bytes": PIL.Image.fromarray(GREY.astype(np.int32)),
    "floats": PIL.Image.fromarray(GREY.astype(np.float32) / 255),
    "uint8 array": GREY,
    "uint16 array": DEEP,
    "float array": GREY / 255,
    "array with a channel": GREY[..., None],
    "uint8 tensor": torch.from_numpy(GREY)[None].expand(3, -1, -1),
    "float tensor": torch.from_numpy(GREY / 255)[None],
    "flat tensor": torch.from_numpy(GREY / 255).float(),
    "palette": PIL.Image.fromarray(GREY).convert("P"),
    "CMYK": PIL.Image.fromarray(GREY).convert("CMYK"),
    "YCbCr": PIL.Image.fromarray(GREY).convert("YCbCr"),
}


@pytest.mark.parametrize("kind", SAME_GREY)
def test_one_picture_in_many_forms(kind: str) -> None:
    assert np.abs(grey_of(SAME_GREY[kind]).astype(int) - GREY).max() <= 1


def test_booleans_are_black_and_white() -> None:
    halves = np.zeros((4, 6), bool)
    halves[:, :3] = True
    for picture in (halves, torch.from_numpy(halves), torch.from_numpy(halves)[None], PIL.Image.fromarray(halves)):
        assert (grey_of(picture) == halves * 255).all()


def transparent() -> np.ndarray:
    """A red square amid hidden colours, (16, 16, 4)."""
    rgba = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    rgba[..., 3] = 0
    rgba[4:12, 4:12] = (200, 30, 30, 255)
    return rgba


@pytest.mark.parametrize("read", [to_pil, to_rgb])
@pytest.mark.parametrize("kind", ["image", "bytes", "row", "path", "array", "tensor", "premultiplied"])
def test_what_is_transparent_is_white(kind: str, read, tmp_path: Path) -> None:
    rgba = transparent()
    image = PIL.Image.fromarray(rgba)
    image.save(tmp_path / "a.png")
    picture = {
        "image": image,
        "bytes": encoded(image),
        "row": {"bytes": encoded(image), "path": None},
        "path": tmp_path / "a.png",
        "array": rgba,
        "tensor": torch.from_numpy(rgba).permute(2, 0, 1),
        "premultiplied": image.convert("RGBa"),
    }[kind]
    seen = np.asarray(read(picture))
    assert (seen[:4] == 255).all() and (seen[4:12, 4:12] == (200, 30, 30)).all()


def test_transparency_that_is_named_beside_the_values() -> None:
    palette = PIL.Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((0, 0), 0)
    assert to_pil(encoded(palette, transparency=1)).getpixel((3, 3)) == WHITE
    assert to_pil(encoded(palette, transparency=1)).getpixel((0, 0)) == (255, 0, 0)
    for grey in (PIL.Image.new("L", (4, 4), 7), PIL.Image.new("1", (4, 4), 0), PIL.Image.new("LA", (4, 4), 0)):
        grey.info["transparency"] = 7 if grey.mode == "L" else 0
        assert to_pil(grey).getpixel((1, 1)) == WHITE
    deep = PIL.Image.fromarray(np.array([[300, 5]], np.uint16))
    deep.info["transparency"] = 300
    assert to_pil(deep).getpixel((0, 0)) == WHITE and to_pil(deep).getpixel((1, 0)) == (0, 0, 0)


def turned(mode: str) -> PIL.Image.Image:
    """Stored 8 wide and 4 high with its left half white, to be shown upright: 4 wide, its upper half white."""
    array = np.zeros((4, 8), np.uint8)
    array[:, :4] = 255
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return PIL.Image.open(io.BytesIO(encoded(PIL.Image.fromarray(array).convert(mode), exif=exif)))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
def test_pictures_are_turned_as_their_exif_says(mode: str) -> None:
    for read in (to_pil, to_mask):
        shown = np.asarray(read(turned(mode)).convert("L"))
        assert shown.shape == (8, 4)
        assert (shown[4:] == 0).all() and (mode == "I;16" or (shown[:4] == 255).all())


def test_contact_sheets_show_pictures_upright_and_on_white() -> None:
    sheet = contact_sheet([[turned("RGB"), PIL.Image.new("RGBA", (4, 8), (0, 0, 0, 0))]], cell=8)
    box = [(x, y) for x in range(sheet.width) for y in range(sheet.height) if sheet.getpixel((x, y)) == (0, 0, 0)]
    assert box and max(y for _, y in box) - min(y for _, y in box) < 4  # the lower half; the other one is all white


# Masks


def left_half() -> np.ndarray:
    mask = np.zeros((16, 16), bool)
    mask[:, :8] = True
    return mask


def masks() -> dict:
    left = left_half()
    rgba = np.full((16, 16, 4), 255, np.uint8)
    rgba[..., 3] = left * 255
    return {
        "booleans": left,
        "boolean tensor": torch.from_numpy(left),
        "bytes": left.astype(np.uint8) * 255,
        "zeros and ones": left.astype(np.uint8),
        "whole numbers": left.astype(np.int64),
        "floats": left.astype(np.float32),
        "one bit": PIL.Image.fromarray(left),
        "16 bits": PIL.Image.fromarray(left.astype(np.uint16) * 65535),
        "white strokes on transparent white": PIL.Image.fromarray(rgba),
        "white strokes, an array": rgba,
        "grey with alpha": PIL.Image.fromarray(rgba).convert("LA"),
    }


@pytest.mark.parametrize("kind", masks())
def test_masks_mark_what_is_white_and_seen(kind: str) -> None:
    read = to_mask(masks()[kind])
    assert read.mode == "L"
    assert ((np.asarray(read) > 127) == left_half()).all()


def test_batches_of_masks() -> None:
    left = left_half()
    both = np.stack([left, ~left])
    for batch in (both, torch.from_numpy(both), torch.from_numpy(both)[:, None].float(), list(both), both[..., None]):
        found = as_masks(batch)
        assert [((np.asarray(mask) > 127) == each).all() for mask, each in zip(found, both, strict=True)] == [True] * 2
    assert len(as_masks(left)) == len(as_masks(left[None])) == len(as_masks(left[..., None])) == 1


def test_the_names_that_scripts_know() -> None:
    from alignext import pictures
    from alignext.cli import rows
    from alignext.trainers.diffusion_preference import columns, data

    assert pictures.to_pil is data.to_rgb is to_pil
    # Pairs, what stands beside them, and single pictures and clips.
    known = {*columns.PICTURES, *columns._SOURCES, "mask", *columns.VIDEOS, "video"}
    assert set(rows._PICTURES) == known


# Errors


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.full((4, 4), 3.0), r"Float pictures must lie in \[0, 1\], received values in \[3.0, 3.0\]"),
        (torch.full((3, 4, 4), -0.5), r"received values in \[-0.5, -0.5\].*`x / 2 \+ 0.5`"),
        (torch.full((3, 4, 4), torch.nan), "Float pictures must lie"),
        (PIL.Image.fromarray(np.full((4, 4), 7.0, np.float32)), "Float pictures must lie"),
        (PIL.Image.fromarray(np.full((4, 4), -1, np.int32)), "Pictures of int32 must lie"),
        (np.full((4, 4), 7), "Pictures of int64 must lie .* pass them as uint8"),
        (np.zeros((4, 4, 5)), r"received ndarray of shape \(4, 4, 5\)"),
        (3, "received int"),
        (None, "received NoneType"),
        (b"no picture", "The picture cannot be read"),
        ("nowhere.png", "The picture nowhere.png cannot be read.*No such file"),
        ({"bytes": None, "path": None}, "neither a path nor bytes"),
        ({"bytes": b"x", "path": "broken.png"}, "The picture broken.png cannot be read"),
        (PIL.Image.new("LAB", (4, 4)), "its mode is LAB"),
    ],
)
def test_errors_say_what_is_wrong(picture, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_pil(picture)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    (tmp_path / "cut.png").write_bytes(encoded(noise)[:3000])
    with pytest.raises(ValueError, match=r"cut\.png cannot be read"):
        to_pil(tmp_path / "cut.png")
    with PIL.Image.open(tmp_path / "cut.png") as opened, pytest.raises(ValueError, match=r"cut\.png cannot be read"):
        to_pil(opened)


def test_a_huge_picture_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PIL.Image.new("L", (64, 64)).save(tmp_path / "huge.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"huge\.png is too large: .*4096 pixels.*MAX_IMAGE_PIXELS"):
        to_pil(tmp_path / "huge.png")
