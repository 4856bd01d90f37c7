"""Files that are enlarged strip by strip."""

import numpy as np
import pytest
import tifffile

from potstill.core.errors import ConfigError, DataError
from potstill.sr import IMDN_RTC, stream, upscale
from potstill.sr.inference import streaming


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("kind", ["bytes", "wide", "grey"])
def test_a_stream_gives_the_picture(tmp_path, tiny, photograph, kind, compression, monkeypatch):
    monkeypatch.setattr("potstill.sr.images.tiff._BIG", 1000)
    image = {"bytes": photograph, "wide": photograph.astype(np.uint16) * 257,
             "grey": photograph[..., 0]}[kind]  # fmt: skip
    photometric = "minisblack" if kind == "grey" else "rgb"
    tifffile.imwrite(tmp_path / "a.tif", image, compression=compression, photometric=photometric)
    expected = upscale(image, tiny, device="cpu").image.astype(int)
    for tile in (16, 23):
        target = stream(tmp_path / "a.tif", tmp_path / f"{tile}.tif", tiny, tile=tile, device="cpu")
        assert target.read_bytes()[:4] == b"II+\0"
        made = tifffile.imread(target)
        assert made.dtype == image.dtype
        assert np.abs(made - expected).max() <= 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["16.tif", "23.tif", "a.tif"]


@pytest.mark.parametrize("stop", ["gates", "rows"])
def test_a_killed_stream_goes_on_and_gives_the_same_bytes(
    tmp_path, tiny, photograph, stop, monkeypatch
):
    tifffile.imwrite(tmp_path / "a.tif", photograph, photometric="rgb")
    whole = stream(tmp_path / "a.tif", tmp_path / "b.tif", tiny, tile=16, device="cpu")
    keep, calls = streaming._Stream._keep, []

    def killed(self, **news):
        keep(self, **news)
        if stop in news:
            raise KeyboardInterrupt

    monkeypatch.setattr(streaming._Stream, "_keep", killed)
    with pytest.raises(KeyboardInterrupt):
        stream(tmp_path / "a.tif", tmp_path / "c.tif", tiny, tile=16, device="cpu")
    assert not (tmp_path / "c.tif").exists()
    monkeypatch.setattr(
        streaming._Stream, "_keep", lambda self, **news: calls.append(news) or keep(self, **news)
    )
    again = stream(tmp_path / "a.tif", tmp_path / "c.tif", tiny, tile=16, device="cpu")
    assert len(calls) == (1 + 3 if stop == "gates" else 2), "what was done is not done again"
    assert again.read_bytes() == whole.read_bytes()


def test_networks_without_gates_and_what_is_refused(tmp_path, tiny, photograph):
    tifffile.imwrite(tmp_path / "a.tif", photograph, photometric="rgb")
    bounded = IMDN_RTC(8, 1)
    made = tifffile.imread(
        stream(tmp_path / "a.tif", tmp_path / "b.tif", bounded, tile=16, device="cpu")
    )
    assert np.abs(made - upscale(photograph, bounded, device="cpu").image.astype(int)).max() <= 1
    with pytest.raises(ConfigError, match="target must be a new .tif, got .*b.tif"):
        stream(tmp_path / "a.tif", tmp_path / "b.tif", tiny)
    tifffile.imwrite(tmp_path / "f.tif", photograph.astype(np.float32), photometric="rgb")
    with pytest.raises(DataError, match="f.tif must be a TIFF of 8 or 16 bits"):
        stream(tmp_path / "f.tif", tmp_path / "c.tif", tiny)
