"""Every kind of picture, in and out; every row of the table of bad inputs that concerns files."""

import io
import os
import sys

import numpy as np
import pytest
from PIL import Image, ImageCms

from potstill.core.errors import BackendError, ConfigError, DataError
from potstill.sr import Picture, read_image, write_image

GREY = np.arange(12 * 10, dtype=np.uint8).reshape(12, 10)
RGB = np.dstack([GREY, GREY[::-1], 255 - GREY])
WIDE = (np.arange(12 * 10 * 3).reshape(12, 10, 3) * 181 % 65536).astype(np.uint16)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def saved(tmp_path, image, name="a.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_rgb_and_grey(tmp_path):
    picture = read_image(saved(tmp_path, Image.fromarray(RGB)))
    np.testing.assert_array_equal(picture.color, RGB)
    assert (picture.kind, picture.alpha) == ("RGB", None)
    grey = read_image(saved(tmp_path, Image.fromarray(GREY)))
    np.testing.assert_array_equal(grey.color, np.dstack([GREY] * 3))
    assert grey.kind == "L"
    assert grey.to_pil().mode == "L"


def test_one_bit(tmp_path):
    picture = read_image(saved(tmp_path, Image.fromarray(GREY > 60)))
    assert picture.kind == "L"
    assert set(np.unique(picture.color)) == {0, 255}


def test_palette_with_transparency(tmp_path):
    image = Image.fromarray(RGB).quantize(8)
    path = saved(tmp_path, image, transparency=0)
    picture = read_image(path)
    assert picture.color.shape == (12, 10, 3)
    np.testing.assert_array_equal(picture.alpha == 0, np.asarray(image) == 0)
    assert read_image(saved(tmp_path, image, "b.png")).alpha is None


def test_grey_with_alpha(tmp_path):
    picture = read_image(saved(tmp_path, Image.merge("LA", [Image.fromarray(GREY)] * 2)))
    assert picture.kind == "L"
    np.testing.assert_array_equal(picture.alpha, GREY)
    assert picture.to_pil().mode == "LA"


def test_cmyk_without_and_with_a_profile(tmp_path):
    cmyk = Image.fromarray(RGB).convert("CMYK")
    picture = read_image(saved(tmp_path, cmyk, "a.jpg", quality=100))
    assert picture.color.shape == (12, 10, 3)
    assert np.abs(picture.color.astype(int) - np.asarray(cmyk.convert("RGB"))).max() < 60
    with pytest.warns(UserWarning, match="CMYK profile cannot be used"):
        read_image(saved(tmp_path, cmyk, "b.jpg", icc_profile=PROFILE))  # an RGB profile


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("alpha", [False, True])
def test_sixteen_bits_of_colour_stay(tmp_path, suffix, alpha):
    mask = WIDE[..., 0].copy() if alpha else None
    path = write_image(Picture(WIDE, mask, icc=PROFILE), tmp_path / f"a.{suffix}")
    again = read_image(path)
    assert again.color.dtype == np.uint16
    np.testing.assert_array_equal(again.color, WIDE)
    if alpha:
        np.testing.assert_array_equal(again.alpha, mask)
    if suffix == "png":
        assert again.icc == PROFILE


def test_dark_sixteen_bit_files_are_not_taken_for_bytes(tmp_path):
    dark = (WIDE % 200).astype(np.uint16)
    np.testing.assert_array_equal(
        read_image(write_image(Picture(dark), tmp_path / "dark.png")).color, dark
    )


def test_sixteen_bit_grey(tmp_path):
    wide = WIDE[..., 0].copy()
    picture = read_image(saved(tmp_path, Image.fromarray(wide)))
    assert picture.kind == "L"
    np.testing.assert_array_equal(picture.color[..., 1], wide)
    again = read_image(write_image(picture, tmp_path / "b.png"))
    np.testing.assert_array_equal(again.color[..., 1], wide)
    assert again.kind == "L"


def test_floating_tiff_is_clipped_with_a_warning(tmp_path):
    values = np.linspace(-0.5, 1.5, 120, dtype=np.float32).reshape(12, 10)
    path = saved(tmp_path, Image.fromarray(values), "a.tiff")
    with pytest.warns(UserWarning, match="has values from -0.5 to 1.5; clipped to \\[0, 1\\]"):
        picture = read_image(path)
    assert (picture.color.min(), picture.color.max()) == (0, 65535)
    values[0, 0] = np.nan
    with pytest.raises(DataError, match="must be finite, got 1 NaN or infinite values"):
        read_image(saved(tmp_path, Image.fromarray(values), "a.tiff"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_reset(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Maker"
    path = saved(tmp_path, Image.fromarray(RGB), exif=exif, icc_profile=PROFILE)
    picture = read_image(path)
    from PIL import ImageOps

    with Image.open(path) as image:
        np.testing.assert_array_equal(picture.color, np.asarray(ImageOps.exif_transpose(image)))
    with Image.open(write_image(picture, tmp_path / "b.png")) as again:
        assert again.getexif().get(0x0112, 1) == 1
        assert again.getexif()[0x010F] == "Maker"
        assert again.info["icc_profile"] == PROFILE


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sixteen_bit_files_are_turned_too(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write_image(Picture(WIDE, exif=exif.tobytes()), tmp_path / "a.png")
    expected = read_image(saved(tmp_path, Image.fromarray((WIDE >> 8).astype(np.uint8)), "b.png",
                                exif=exif))  # fmt: skip
    picture = read_image(path)
    np.testing.assert_array_equal(picture.color >> 8, expected.color)
    assert picture.exif is None or b"Maker" not in picture.exif


def test_animation_gives_its_first_frame_with_a_warning(tmp_path):
    frames = [Image.fromarray(np.full((8, 8), v, np.uint8)) for v in (10, 200)]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="is animated; its first frame is used"):
        assert read_image(path).color.max() <= 12


def test_damaged_files_are_named(tmp_path):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        whole, "PNG"
    )
    cases = {
        "empty.png": (b"", "got an empty file"),
        "text.png": (b"once upon a time", "got something else; is its suffix right"),
        "cut.png": (whole.getvalue()[:2000], "got a damaged file"),
    }
    jpeg = io.BytesIO()
    Image.open(whole).save(jpeg, "JPEG")
    cases["cut.jpg"] = (jpeg.getvalue()[:1500], "got a damaged file")
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=f"{name} must be .*{message}"):
            read_image(tmp_path / name)
    wide = write_image(Picture(WIDE.repeat(9, axis=0)), tmp_path / "wide.png")
    wide.write_bytes(wide.read_bytes()[:-60])
    with pytest.raises(DataError, match="wide.png must be a whole"):
        read_image(wide)
    with pytest.raises(DataError, match="got nothing there"):
        read_image(tmp_path / "absent.png")


def test_the_guard_against_large_images_is_lifted_and_put_back(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.fromarray(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # 120 pixels are more than twice as many
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    np.testing.assert_array_equal(read_image(path).color, RGB)
    assert Image.MAX_IMAGE_PIXELS == 50


def test_names_beyond_ascii(tmp_path):
    for picture in (Picture(RGB), Picture(WIDE)):
        path = write_image(picture, tmp_path / "größe 写真.png", overwrite=True)
        np.testing.assert_array_equal(read_image(path).color, picture.color)


def test_writing_refuses_and_leaves_nothing(tmp_path, monkeypatch):
    path = write_image(Picture(RGB), tmp_path / "a.png")
    with pytest.raises(ConfigError, match="must not exist yet; pass overwrite"):
        write_image(Picture(RGB), path)
    with pytest.raises(ConfigError, match="must end in .png, .tiff"):
        write_image(Picture(RGB), tmp_path / "a.xyz")
    with pytest.raises(ConfigError, match="cannot hold transparency; write .png or .webp"):
        write_image(Picture(RGB, GREY), tmp_path / "a.jpg")
    monkeypatch.setattr("potstill.sr.images.writing._LARGEST", 100)
    with pytest.raises(DataError, match="must stay below 4 GB uncompressed"):
        write_image(Picture(RGB), tmp_path / "b.png")
    monkeypatch.undo()
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="must be writable, got: "):
        write_image(Picture(RGB), tmp_path / "file" / "b.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "file"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DataError, match=r"could not write .*a\.png: No space left on device"):
        write_image(Picture(RGB), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpg"])
def test_formats(tmp_path, suffix):
    again = read_image(write_image(Picture(RGB, icc=PROFILE), tmp_path / f"a.{suffix}"))
    assert np.abs(again.color.astype(int) - RGB).mean() < 6
    assert again.icc == PROFILE


def test_sixteen_bits_say_what_they_need(tmp_path, monkeypatch):
    path = write_image(Picture(WIDE), tmp_path / "wide.png")
    monkeypatch.setitem(sys.modules, "cv2", None)  # as if it were not installed
    for ask in (lambda: read_image(path), lambda: write_image(Picture(WIDE), tmp_path / "b.png")):
        with pytest.raises(BackendError, match=r"pip install 'potstill-sr\[opencv\]'"):
            ask()
    assert [p.name for p in tmp_path.iterdir()] == ["wide.png"]
