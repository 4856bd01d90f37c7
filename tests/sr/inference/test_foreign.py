"""Networks of other architectures in tiles, against the whole frame."""

import functools
import importlib
import importlib.util
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from potstill.core.errors import BackendError, ConfigError
from potstill.sr import load_model, upscale
from potstill.sr.models.foreign import Foreign, load_foreign

SIZES = [(29, 37), (33, 31), (47, 29), (61, 43), (35, 57)]


class Attention(nn.Module):
    """Channel attention by whatever statistic."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.mix = kind, nn.Conv2d(8, 8, 1)

    def statistic(self, x):
        if self.kind == "mean":
            return x.mean(dim=(2, 3), keepdim=True)
        if self.kind == "methods":
            return x.std((-2, -1), keepdim=True) + x.var([2, 3], unbiased=False, keepdim=True)
        if self.kind == "pool":
            return nn.functional.adaptive_avg_pool2d(x, 1)
        if self.kind == "maximum":
            return nn.AdaptiveMaxPool2d((1, 1))(x)
        return nn.functional.avg_pool2d(x, x.shape[2:])

    def forward(self, x):
        return x * torch.sigmoid(4 * self.mix(self.statistic(x)))


def built(*middle, scale=2):
    parts = [nn.Conv2d(3, 8, 3, padding=1)]
    for layer in middle:
        parts += [nn.Conv2d(8, 8, 3, padding=1), nn.GELU(), layer]
    last = nn.Conv2d(8, 3 * scale**2, 3, padding=1)
    return nn.Sequential(*parts, last, nn.PixelShuffle(scale))


def spandrel(name, **options):
    def make():
        module = importlib.import_module(f"spandrel.architectures.{name}")
        return getattr(module, name)(**options), options.get("scale", options.get("upscale", 2))

    return make


OURS = {
    "mean": lambda: built(Attention("mean"), Attention("mean")),
    "methods": lambda: built(Attention("methods")),
    "pool": lambda: built(Attention("pool"), Attention("pool"), Attention("pool")),
    "maximum": lambda: built(Attention("maximum")),
    "whole": lambda: built(Attention("whole"), scale=3),
    "instance": lambda: built(nn.InstanceNorm2d(8, affine=True), nn.InstanceNorm2d(8)),
    "group": lambda: built(nn.GroupNorm(2, 8), nn.GroupNorm(8, 8), scale=1),
    "local": lambda: built(nn.Identity(), nn.Identity()),
}
THEIRS = {
    "RCAN": dict(scale=2, n_resgroups=2, n_resblocks=2, n_feats=16, reduction=4),
    "ESRGAN": dict(scale=2, num_filters=8, num_blocks=1),
    "SPAN": dict(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2),
}


@functools.cache
def network(name):
    torch.manual_seed(0)
    if name in OURS:
        made = OURS[name]()
        return Foreign(made, round((made[-2].out_channels / 3) ** 0.5))
    if importlib.util.find_spec("spandrel") is None:
        pytest.skip("needs spandrel")
    return Foreign(*spandrel(name, **THEIRS[name])())


@pytest.mark.parametrize("name", [*OURS, *THEIRS])
def test_tiles_equal_the_whole_frame(name):
    model = network(name)
    assert (model.shares > 0) == (name not in ("local", "ESRGAN", "SPAN"))
    for size in SIZES:
        x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            whole = model(x)
        made = upscale(x, model, tile=16, device="cpu")
        assert (made.mode, made.tile) == ("exact", 16)
        assert (made.image - whole).abs().max() <= 1e-5 * whole.abs().max().clamp_min(1), size


def test_tiles_that_share_nothing_have_seams():
    model, x = network("mean"), torch.rand(1, 3, 40, 40)
    x[..., :20] *= 0.1
    whole = upscale(x, model).image
    alone = upscale(x, model, tile=16, tile_mode="independent").image
    assert (alone - whole).abs().max() > 1e-4


def test_what_cannot_be_tiled_is_refused():
    class Everywhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x) * x.flatten(2).mean(2)[..., None, None]

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x) * torch.linspace(0, 1, x.shape[3])

    with pytest.raises(ConfigError, match="tiles of Positions must equal the whole image"):
        upscale(torch.rand(1, 3, 40, 40), Foreign(Positions(), 1), tile=16, device="cpu")
    with pytest.raises(ConfigError, match="must see fewer than 512 pixels to each side"):
        Foreign(Everywhere(), 1)
    with pytest.raises(ConfigError, match="must enlarge 8 x 64 by 4, got"):
        Foreign(built(nn.Identity()), 4)


def test_an_error_in_one_tile_ends_all(photograph):
    model = network("mean")
    real, calls = model.network.forward, []

    def fails(x):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("broken")
        return real(x)

    with (
        mock.patch.object(nn.Sequential, "forward", lambda self, x: fails(x)),
        pytest.raises(RuntimeError, match="broken"),
    ):
        upscale(photograph, model, tile=16, device="cpu")


def test_tiles_that_ask_unequally_end_with_an_error(photograph):
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x) * (x.mean((2, 3), keepdim=True) if x[0, 0].numel() > 300 else 1)

    model = Foreign(Fickle(), 1)
    model.checked.done = True
    with pytest.raises(ConfigError, match="as many means of whole maps in every tile"):
        upscale(photograph, model, tile=55, device="cpu")


def test_files_of_other_architectures(tmp_path, monkeypatch, photograph):
    if importlib.util.find_spec("spandrel") is not None:
        module = importlib.import_module("spandrel.architectures.ESRGAN")
        torch.manual_seed(0)
        theirs = module.ESRGAN(scale=2, num_filters=8, num_blocks=1)
        torch.save(theirs.state_dict(), tmp_path / "net.pth")
        model = load_model(tmp_path / "net.pth", scale=2)
        assert model.name == "ESRGAN"
        whole = upscale(photograph, model, tile="none").image
        np.testing.assert_allclose(
            upscale(photograph, tmp_path / "net.pth", tile=16).image.astype(int), whole, atol=1
        )
        with pytest.raises(ConfigError, match="scale must be 2 for .*net.pth, got 4"):
            load_model(tmp_path / "net.pth", scale=4)
    torch.save({"a": torch.zeros(1)}, tmp_path / "none.pth")
    with pytest.raises(ConfigError, match="must be weights of IMDN"):
        load_model(tmp_path / "none.pth")
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(BackendError, match=r"pip install 'potstill-sr\[spandrel\]'"):
        load_foreign(tmp_path / "none.pth")
