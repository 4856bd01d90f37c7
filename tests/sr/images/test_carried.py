"""What a file carries besides its samples, and every layout of TIFF."""

import itertools
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from potstill.core.errors import ConfigError, DataError
from potstill.sr import Picture, read_image, write_image
from potstill.sr.images.metadata import photoshop

RGB = (np.arange(40 * 36 * 3).reshape(40, 36, 3) * 7 % 251).astype(np.uint8)
ALPHA = (np.arange(40 * 36).reshape(40, 36) % 256).astype(np.uint8)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description xmp:Rating="5" tiff:ImageWidth="36" '
    b'tiff:Orientation="6"><exif:PixelXDimension>36</exif:PixelXDimension></rdf:Description>'
    b"</x:xmpmeta>"
)
IPTC = b"\x1c\x02\x78\x00\x05title"
LAYOUTS = list(
    itertools.product((8, 16), ("contig", "separate"), (None, (16, 16)), (None, "zlib"), (1, 3, 4))
)


def samples(bits, count):
    values = {1: RGB[..., :1], 3: RGB, 4: np.dstack([RGB, ALPHA])}[count]
    return values if bits == 8 else values.astype(np.uint16) * 257 - values % 3


@pytest.mark.parametrize("big", [False, True])
def test_every_layout_of_tiff_is_read_and_written_right(tmp_path, big):
    path = tmp_path / "a.tif"
    for bits, planar, tile, compression, count in LAYOUTS:
        values = samples(bits, count)
        tifffile.imwrite(
            path,
            values[..., 0] if count == 1 else values if planar == "contig"
            else np.moveaxis(values, -1, 0),
            bigtiff=big, tile=tile, compression=compression, iccprofile=PROFILE,
            photometric="minisblack" if count == 1 else "rgb",
            planarconfig=None if count == 1 else planar,
            extrasamples=["unassalpha"] if count == 4 else None,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if count == 1 else "error")  # a grey one's RGB profile
            picture = read_image(path)
            again = read_image(write_image(picture, tmp_path / "b.tiff", overwrite=True))
        for found in (picture, again):
            case = (bits, planar, tile, compression, count)
            assert found.color.dtype == values.dtype, case
            np.testing.assert_array_equal(found.color[..., : min(count, 3)], values[..., :3])
            assert found.kind == ("L" if count == 1 else "RGB"), case
            assert (found.alpha is not None) == (count == 4), case
            assert (found.icc == PROFILE) == (count > 1), case


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "jpeg", "tiff_adobe_deflate"])
def test_compressions_of_eight_bits(tmp_path, compression):
    path = tmp_path / "a.tif"
    smooth = np.dstack([np.add.outer(np.arange(40), np.arange(36)).astype(np.uint8) * 2] * 3)
    Image.fromarray(smooth).save(path, compression=compression, dpi=(300, 300))
    picture = read_image(path)
    assert np.abs(picture.color.astype(int) - smooth).max() <= (8 if compression == "jpeg" else 0)
    with Image.open(write_image(picture, tmp_path / "b.tif")) as again:
        assert (again.size, again.info["dpi"]) == ((36, 40), (300.0, 300.0))


def test_sixteen_bit_lzw_is_read_or_named(tmp_path):
    values = samples(16, 3)
    cv2.imwrite(str(tmp_path / "a.tif"), values[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").color, values)


def test_white_is_zero_associated_alpha_and_floats(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, samples(16, 1)[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(read_image(path).color[..., 0], 65535 - samples(16, 1)[..., 0])
    values = np.full((20, 20, 4), (10000, 5000, 0, 20000), np.uint16)
    tifffile.imwrite(path, values, photometric="rgb", extrasamples=["assocalpha"])
    assert read_image(path).color[0, 0].tolist() == [32768, 16384, 0]
    tifffile.imwrite(path, RGB.astype(np.float32) / 255, photometric="rgb")
    np.testing.assert_array_equal(read_image(path).color, RGB.astype(np.uint16) * 257)
    tifffile.imwrite(path, np.moveaxis(RGB / np.float32(255), -1, 0), photometric="rgb",
                     planarconfig="separate")  # fmt: skip
    np.testing.assert_array_equal(read_image(path).color, RGB.astype(np.uint16) * 257)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (RGB[..., 0].astype(np.float32), "floating values in .0, 1., got 0 to 250; divide"),
        (RGB.astype(np.float32), "floating values in .0, 1., got 0 to 250; divide"),
        (RGB[..., 0].astype(np.int32), "range of its int32 samples, got 0 to 250"),
        (RGB[..., 0].astype(np.uint32) * 300, "from 0 to 65535, got 0 to 75000"),
        (-RGB[..., 0].astype(np.int16), "from 0 to 65535, got -250 to 0"),
    ],
)
def test_unknown_ranges_are_refused(tmp_path, values, message):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="rgb" if values.ndim == 3 else "minisblack")
    with pytest.raises(DataError, match=f"a.tif must .*{message}"):
        read_image(path)


def test_integers_that_use_sixteen_bits_are_read(tmp_path):
    for dtype in (np.int32, np.uint32):
        tifffile.imwrite(tmp_path / "a.tif", RGB[..., 0].astype(dtype) * 257)
        color = read_image(tmp_path / "a.tif").color
        np.testing.assert_array_equal(color[..., 1], RGB[..., 0].astype(np.uint16) * 257)


def loaded(picture):
    """Picture with everything that travels, as if a camera had made it."""
    exif = Image.Exif()
    exif[271], exif[0x0112] = "Maker", 1
    exif[0x8769] = {0x9003: "2020:01:01 00:00:00", 0xA002: 9, 0xA003: 9}
    exif[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}
    return Picture(
        picture.color, None, picture.kind, PROFILE, exif.tobytes(), XMP, IPTC, (300.0, 300.0)
    )


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("form", ["tiff", "png", "jpg", "webp"])
def test_all_that_a_format_holds_is_kept_and_the_rest_is_named(tmp_path, form, bits):
    source = write_image(loaded(Picture(samples(bits, 3))), tmp_path / "source.tiff")
    picture = read_image(source)
    assert (picture.xmp, picture.iptc) == (picture.xmp, IPTC)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        written = write_image(picture, tmp_path / f"a.{form}")
    again = read_image(written)
    lost = [] if form in ("tiff", "jpg") else ["IPTC"]
    lost += ["more than 8 bits"] if bits == 16 and form in ("jpg", "webp") else []
    assert [str(w.message).partition("hold ")[2] for w in said] == (
        [f"{', '.join(lost)}; dropped"] if lost else []
    )
    assert again.icc == PROFILE
    assert again.iptc == (IPTC if form in ("tiff", "jpg") else None)
    assert b'Rating="5"' in again.xmp
    assert b"Width" not in again.xmp
    assert b"Orientation" not in again.xmp
    assert b"Dimension" not in again.xmp
    with Image.open(written) as image:
        exif = image.getexif()
        inner, gps = exif.get_ifd(0x8769), exif.get_ifd(0x8825)
        assert (exif[271], inner[0x9003]) == ("Maker", "2020:01:01 00:00:00")
        assert (inner[0xA002], inner[0xA003]) == (36, 40)
        assert [float(value) for value in gps[2]] == [1.0, 2.0, 3.0]
        storage = {256, 257, 258, 273, 277, 278, 279} & set(exif)
        assert form == "tiff" or not storage, "tags of how a TIFF was stored"
        found = image.info.get("dpi") or (exif[282], exif[283])
        assert [round(float(dots)) for dots in found] == [300, 300]


def test_a_pil_image_keeps_what_travels():
    image = Image.fromarray(RGB)
    image.info.update(icc_profile=PROFILE, dpi=(72, 72), exif=loaded(Picture(RGB)).exif)
    from potstill.sr.images.picture import picture_of

    made = picture_of(image).to_pil()
    assert made.info["icc_profile"] == PROFILE
    assert made.info["dpi"] == (72.0, 72.0)
    assert made.getexif()[271] == "Maker"


def test_tags_of_a_tiff_do_not_reach_a_png(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.tif", tiffinfo={270: "a flower", 305: "a program"})
    with Image.open(write_image(read_image(tmp_path / "a.tif"), tmp_path / "b.png")) as again:
        exif = again.getexif()
        assert dict(exif) == {270: "a flower", 305: "a program", 0x8769: exif[0x8769]}


def test_a_profile_of_another_space_is_named_and_dropped(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    Image.fromarray(RGB).save(tmp_path / "a.tif", icc_profile=lab)
    with pytest.warns(UserWarning, match=r"profile of .*a.tif is for Lab, not for RGB; dropped"):
        assert read_image(tmp_path / "a.tif").icc is None
    Image.fromarray(RGB[..., 0]).save(tmp_path / "a.png", icc_profile=PROFILE)
    with pytest.warns(UserWarning, match="is for RGB, not for GRAY; dropped"):
        assert read_image(tmp_path / "a.png").icc is None


def test_a_gamma_of_its_own_is_named(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    data = path.read_bytes()
    chunk = b"gAMA" + struct.pack(">I", 100_000)

    chunk = struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(data[:33] + chunk + data[33:])
    with pytest.warns(UserWarning, match=r"the gamma 1 of .*a.png is not applied; dropped"):
        read_image(path)


def test_several_pictures_in_a_file_are_named(tmp_path):
    first, second = Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())
    first.save(tmp_path / "a.mpo", "MPO", save_all=True, append_images=[second], quality=95)
    Image.fromarray(RGB).save(
        tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(RGB)]
    )
    for name, form in (("a.mpo", "MPO"), ("a.tif", "TIFF")):
        with pytest.warns(UserWarning, match=rf"holds 2 pictures \({form}\); the first is used"):
            picture = read_image(tmp_path / name)
        assert np.abs(picture.color.astype(int) - RGB).mean() < 20


def test_webp_without_loss_stays_without_loss(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.webp", lossless=True, icc_profile=PROFILE)
    picture = read_image(tmp_path / "a.webp")
    assert picture.lossless
    np.testing.assert_array_equal(
        read_image(write_image(picture, tmp_path / "b.webp")).color, picture.color
    )
    lossy = write_image(picture, tmp_path / "c.webp", quality=20)
    assert not read_image(lossy).lossless
    with pytest.raises(ConfigError, match="quality must be from 1 to 100, got 0"):
        write_image(picture, tmp_path / "d.webp", quality=0)


def test_what_a_format_cannot_hold_is_refused_before(tmp_path, monkeypatch):
    long = np.zeros((1, 16384, 3), np.uint8)
    with pytest.raises(DataError, match="must be at most 16383 pixels, got 16384 x 1"):
        write_image(Picture(long), tmp_path / "a.webp")
    with pytest.raises(ConfigError, match="at most 255 bytes, got 304"):
        write_image(Picture(RGB), tmp_path / f"{'x' * 300}.png")
    name = "ü" * 120 + ".png"
    assert read_image(write_image(Picture(RGB), tmp_path / name)).color.shape == RGB.shape
    monkeypatch.setattr("potstill.sr.images.tiff._BIG", 100)
    big = write_image(loaded(Picture(RGB)), tmp_path / "big.tiff")
    assert big.read_bytes()[:4] == b"II+\0"
    assert (read_image(big).icc, read_image(big).iptc) == (PROFILE, IPTC)
    np.testing.assert_array_equal(read_image(big).color, RGB)


def test_size_limits_and_programs_are_refused_by_the_header(tmp_path, monkeypatch):
    path = write_image(Picture(RGB), tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(DataError, match=r"a.png must have at most 0.001 megapixels, got 36 x 40"):
        read_image(path, megapixels=0.001)
    monkeypatch.undo()
    (tmp_path / "a.eps").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(DataError, match="must be made of pixels, got EPS, which is a program"):
        read_image(tmp_path / "a.eps")
    tifffile.imwrite(tmp_path / "f.tif", RGB.astype(np.float32), photometric="rgb")
    with pytest.raises(DataError, match=r"f.tif must have at most 0.001 megapixels"):
        read_image(tmp_path / "f.tif", megapixels=0.001)


def test_iptc_of_a_jpeg_of_another_program(tmp_path):
    block = photoshop(IPTC)
    segment = b"\xff\xed" + struct.pack(">H", len(block) + 2) + block
    Image.fromarray(RGB).save(tmp_path / "a.jpg", extra=segment)
    assert read_image(tmp_path / "a.jpg").iptc == IPTC


def test_tiffs_that_were_cut_off(tmp_path):
    for bits in (8, 16):
        path = write_image(Picture(samples(bits, 3)), tmp_path / f"{bits}.tif")
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(DataError, match="must be a whole image, got a damaged file"):
            read_image(path)
