"""Images are read where they may be, and only as large as they may be."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from llama_index_refine.images.reading import ImageError, ImageReader, Picture, fitted, size_within
from llama_index_refine.images.sources import ImageSource
from tests.images.pictures import BLUE, RED, picture, save

URL = "https://pictures.example/cat.png"


def opened(image: Picture) -> Image.Image:
    found = Image.open(io.BytesIO(image.data))
    assert found.size == (image.width, image.height)
    assert Image.MIME[found.format] == image.mimetype
    return found


@pytest.fixture
def folder(tmp_path) -> Path:
    save(tmp_path / "allowed" / "inner", "blue.png", picture(BLUE))
    save(tmp_path / "allowed-too", "red.png", picture(RED))
    return tmp_path / "allowed"


@pytest.fixture
def reader(folder) -> ImageReader:
    return ImageReader(1000, [folder])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_what_fits_is_sent_as_it_is(kind):
    data = picture(kind=kind)
    found = fitted(data, 64)
    assert found.data == data
    opened(found)


@pytest.mark.parametrize("kind", ["BMP", "TIFF"])
def test_what_models_do_not_take_is_written_anew(kind):
    assert opened(fitted(picture(kind=kind), 64)).getpixel((3, 3)) == RED


@pytest.mark.parametrize(("kind", "mimetype"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/jpeg")])
def test_what_is_too_large_is_scaled_down(kind, mimetype):
    found = fitted(picture(size=(400, 100), kind=kind), 1024)
    assert (found.width, found.height, found.mimetype) == (64, 16, mimetype)
    assert np.allclose(np.asarray(opened(found).convert("RGB")), RED, atol=6)


@settings(max_examples=300)
@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 10**7))
def test_no_size_is_above_the_budget_and_proportions_stay(width, height, budget):
    across, down = size_within(width, height, budget)
    assert 1 <= across <= width
    assert 1 <= down <= height
    assert across * down <= budget
    if min(across, down) > 10:
        assert across / down == pytest.approx(width / height, rel=0.15)
    if width * height <= budget:
        assert (across, down) == (width, height)


def test_a_photo_that_lies_on_its_side_is_put_upright():
    lying = Image.new("RGB", (40, 20), RED)
    lying.paste(BLUE, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x8825] = {1: "N", 2: (48.0, 51.0, 29.0)}
    written = io.BytesIO()
    lying.save(written, "JPEG", exif=exif, quality=95)
    for budget in (10_000, 200):
        upright = opened(fitted(written.getvalue(), budget))
        assert upright.width < upright.height
        # Turned by a quarter clockwise, what was on the left is on top.
        top = upright.convert("RGB").getpixel((upright.width // 2, 1))
        assert top[2] > top[0]
        assert not upright.getexif()


def test_one_frame_is_sent_of_what_moves():
    frames = [Image.new("RGB", (10, 10), colour) for colour in (RED, BLUE)]
    written = io.BytesIO()
    frames[0].save(written, "GIF", save_all=True, append_images=frames[1:])
    found = opened(fitted(written.getvalue(), 1000))
    assert getattr(found, "n_frames", 1) == 1
    assert np.allclose(found.convert("RGB").getpixel((5, 5)), RED, atol=8)


def test_transparency_and_deep_greys_survive():
    assert opened(fitted(picture((*RED, 128), size=(40, 40)), 400)).getpixel((5, 5))[3] == 128
    deep = Image.fromarray(np.full((40, 40), 32768, np.uint16))
    written = io.BytesIO()
    deep.save(written, "TIFF")
    assert opened(fitted(written.getvalue(), 400)).getpixel((5, 5)) == pytest.approx(127, abs=1)
    palette = Image.new("P", (40, 40))
    palette.putpalette([*BLUE] * 256)
    written = io.BytesIO()
    palette.save(written, "PNG")
    assert opened(fitted(written.getvalue(), 400)).getpixel((5, 5)) == BLUE


def test_noise_that_png_cannot_make_small_becomes_a_jpeg(monkeypatch):
    monkeypatch.setattr("llama_index_refine.images.reading._MOST_BYTES_SENT", 10_000)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 4), np.uint8), "RGBA")
    written = io.BytesIO()
    noise.save(written, "PNG")
    assert fitted(written.getvalue(), 100_000).mimetype == "image/jpeg"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        picture(size=(64, 64))[:-60],
        b"P6 1 1 255 abc",
    ],
)
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(ImageError, match="cannot be opened"):
        fitted(data, 1000)


def test_bombs_are_not_opened(monkeypatch):
    bomb = picture(size=(9_000, 8_000))
    assert len(bomb) < 1_000_000
    with pytest.raises(ImageError, match="megapixels"):
        fitted(bomb, 1000)
    monkeypatch.setattr("llama_index_refine.images.reading._MOST_BYTES", 50)
    with pytest.raises(ImageError, match="larger than"):
        fitted(picture(), 1000)


def test_files_in_the_folders_are_read(reader, folder, monkeypatch):
    assert reader.read(ImageSource(path=folder / "inner" / "blue.png")) == fitted(picture(BLUE), 1000)
    assert reader.read(ImageSource(path=Path("inner/blue.png"))) == fitted(picture(BLUE), 1000)
    monkeypatch.chdir(folder.parent)
    assert reader.read(ImageSource(path=Path("allowed/inner/../inner/blue.png"))) == fitted(picture(BLUE), 1000)


@pytest.mark.parametrize(
    "path",
    [
        "../allowed-too/red.png",
        "inner/../../allowed-too/red.png",
        "/etc/hostname",
        "{parent}/allowed-too/red.png",
        "..",
    ],
)
def test_files_outside_are_refused_whether_they_are_there_or_not(reader, folder, path):
    with pytest.raises(ImageError, match="outside"):
        reader.read(ImageSource(path=Path(path.format(parent=folder.parent))))


def test_a_link_is_followed_before_it_is_judged(reader, folder):
    (folder / "out.png").symlink_to(folder.parent / "allowed-too" / "red.png")
    (folder / "in.png").symlink_to(folder / "inner" / "blue.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    with pytest.raises(ImageError, match="outside"):
        reader.read(ImageSource(path=folder / "out.png"))
    assert reader.read(ImageSource(path=folder / "in.png")) == fitted(picture(BLUE), 1000)
    with pytest.raises(ImageError):
        reader.read(ImageSource(path=folder / "loop.png"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_is_not_opened(reader, folder, monkeypatch):
    os.mkfifo(folder / "pipe.png")
    for name in ("pipe.png", "inner"):
        with pytest.raises(ImageError, match="not that of a file"):
            reader.read(ImageSource(path=folder / name))
    with pytest.raises(ImageError, match="does not exist"):
        reader.read(ImageSource(path=folder / "nothing.png"))
    with pytest.raises(ImageError, match="path"):
        reader.read(ImageSource(path=Path("nul\0l")))
    monkeypatch.setattr("llama_index_refine.images.reading._MOST_BYTES", 50)
    with pytest.raises(ImageError, match="larger"):
        reader.read(ImageSource(path=folder / "inner" / "blue.png"))


def test_without_folders_no_file_is_read_save_what_the_application_names(folder):
    reader = ImageReader(1000)
    source = ImageSource(path=folder / "inner" / "blue.png")
    with pytest.raises(ImageError, match="image_folders"):
        reader.read(source)
    assert reader.read(source, anywhere=True) == fitted(picture(BLUE), 1000)


def test_a_url_is_handed_on_and_takes_the_place_of_a_file_that_may_not_be_read(reader):
    assert reader.read(ImageSource(url=URL)) == URL
    assert reader.read(ImageSource(path=Path("/etc/hostname"), url=URL)) == URL
    for url in ("ftp://a/b.png", "javascript://a", "s3://bucket/b.png"):
        with pytest.raises(ImageError, match="http"):
            reader.read(ImageSource(url=url))
    for url in ("http://[::1", "https://", "http://a:99999/b.png"):
        with pytest.raises(ImageError, match="not valid"):
            reader.read(ImageSource(url=url))


def test_what_is_not_there_is_explained(reader):
    with pytest.raises(ImageError, match="ImageNode"):
        reader.read(ImageSource())
    with pytest.raises(ImageError, match="base64"):
        reader.read(ImageSource(broken=True))


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="max_image_pixels"):
        ImageReader(0)
    with pytest.raises(ValueError, match="image_folders must be a list"):
        ImageReader(1, str(tmp_path))
    with pytest.raises(ValueError, match="image_folders must name"):
        ImageReader(1, [tmp_path / "nothing"])


@pytest.mark.parametrize("compressed", [True, False])
def test_notes_of_any_length_in_a_png_are_skipped_and_never_sent(compressed):
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt("XML:com.adobe.xmp", "layer " * 500_000, zip=compressed)
    notes.add_text("parameters", "a cat " * 500_000, zip=compressed)
    file = io.BytesIO()
    Image.new("RGB", (8, 8), RED).save(file, "PNG", pnginfo=notes, icc_profile=b"profile " * 300_000)
    image = fitted(file.getvalue(), 1000)
    assert len(image.data) < 500
    assert opened(image).convert("RGB").getpixel((0, 0)) == RED


@given(st.binary(max_size=60))
def test_whatever_follows_the_head_of_a_png_it_is_opened_or_refused(rest):
    with pytest.raises(ImageError):
        fitted(b"\x89PNG\r\n\x1a\n" + rest, 1000)
