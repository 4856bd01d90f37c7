"""The adapter to the authors' IMDN, against a stand-in with the same interface written here."""

import sys
from pathlib import Path

import pytest
import torch

from benchmarks.sr import official, speed
from potstill.core.measure.bench import Skip

ARCHITECTURE = """
from . import block


class IMDN(block.NaiveIMDN):
    def __init__(self, in_nc=3, nf=64, num_modules=6, out_nc=3, upscale=4):
        super().__init__(upscale, nf, num_modules)

    def forward(self, x):
        return FACTOR * super().forward(x)
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(speed, "SIZE", 16)
    speed.networks.cache_clear()

    def write(factor: float = 1.0) -> Path:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "block.py").write_text("from benchmarks.sr.naive import NaiveIMDN\n")
        text = f"FACTOR = {factor}\n{ARCHITECTURE}"
        (tmp_path / "model" / "architecture.py").write_text(text)
        return tmp_path

    yield write
    speed.networks.cache_clear()


@pytest.mark.parametrize("race", [official.official_naive, official.official_torch_fp32])
def test_both_sides_make_the_same_image(checkout, race) -> None:
    pair = race(checkout())
    made = pair.ours(), pair.baseline()
    assert made[0].shape == (1, 3, 64, 64)
    pair.check(*made)


def test_another_network_is_noticed(checkout) -> None:
    pair = official.official_torch_fp32(checkout(factor=1.01))
    with pytest.raises(AssertionError, match="not close"):
        pair.check(pair.ours(), pair.baseline())


def test_nothing_is_left_behind(checkout) -> None:
    folder = checkout()
    before = {*sys.path}, {*sys.modules}
    network = official.official_network(folder)
    assert ({*sys.path}, {*sys.modules}) == before
    assert isinstance(network, torch.nn.Module)


def test_another_folder_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(Skip, match="no checkout of Zheng222/IMDN: model/architecture.py"):
        official.official_network(tmp_path)


def test_spandrel_is_skipped_with_a_reason_where_it_cannot_race(checkout, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(Skip, match="needs spandrel: hatch run peers:bench"):
        speed.spandrel_fp32()


def test_spandrel_races_once_it_knows_the_network(checkout, monkeypatch) -> None:
    class Refused(Exception):
        pass

    class Loader:
        known = False

        def __init__(self, device: str) -> None:
            assert device == "cpu"

        def load_from_state_dict(self, state):
            if not self.known:
                raise Refused
            network = speed.NaiveIMDN(speed.SCALE)
            network.load_state_dict(state)
            return type("Descriptor", (), {"model": network})

    stand_in = type(sys)("spandrel")
    stand_in.ModelLoader, stand_in.UnsupportedModelError = Loader, Refused
    monkeypatch.setitem(sys.modules, "spandrel", stand_in)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
    with pytest.raises(Skip, match="spandrel 9.9 does not know IMDN's weights"):
        speed.spandrel_fp32()
    Loader.known = True
    pair = speed.spandrel_fp32()
    pair.check(pair.ours(), pair.baseline())
