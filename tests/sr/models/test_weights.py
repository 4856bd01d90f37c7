"""Weight files: every naming, every wrapper, and what is refused."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from potstill.core.errors import ConfigError, DataError
from potstill.core.store.data import root
from potstill.core.testing import requires_data
from potstill.sr import IMDN, IMDN_AS, IMDN_RTC, IMDN_RTE, load_model, save_model
from potstill.sr.models.weights import PRETRAINED, detect, load_tensors

OFFICIAL = {
    "IMDN_x2": (IMDN, {"scale": 2, "channels": 64, "blocks": 6, "global_skip": None}),
    "IMDN_x3": (IMDN, {"scale": 3, "channels": 64, "blocks": 6, "global_skip": None}),
    "IMDN_x4": (IMDN, {"scale": 4, "channels": 64, "blocks": 6, "global_skip": None}),
    "IMDN_AS": (IMDN_AS, {"channels": 64, "blocks": 6}),
    "model_RTC": (IMDN_RTC, {"channels": 12, "blocks": 5}),
    "model_RTE": (IMDN_RTE, {"channels": 20, "blocks": 6}),
}


@requires_data("sr/safetensors", "sr/checkpoints")
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_files_are_recognised(official, name):
    kind, config = OFFICIAL[name]
    safe = load_model(official(name))
    assert type(safe) is kind
    assert safe.config == config
    # saved on CUDA, with a "module." prefix
    pth = load_model(root() / f"sr/checkpoints/{name}.pth", expect=kind)
    for ours, theirs in zip(safe.parameters(), pth.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "model",
    [
        IMDN(3, 8, 2, "bicubic"),
        IMDN_AS(channels=8, blocks=2),
        IMDN_RTC(8, 2),
        IMDN_RTE(8, 2),
    ],
    ids=lambda model: model.architecture,
)
def test_saving_and_loading_is_bit_equal(tmp_path, model):
    path = save_model(model, tmp_path / "net.safetensors", licence="Apache-2.0")
    again = load_model(path)
    assert again.config == model.config
    assert not again.training
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    assert load_tensors(path)[1]["licence"] == "Apache-2.0"


def test_half_precision_is_half_the_size(tmp_path, tiny):
    full = save_model(tiny, tmp_path / "full.safetensors").stat().st_size
    half = save_model(tiny, tmp_path / "half.safetensors", dtype=torch.float16).stat().st_size
    assert half < 0.65 * full


@pytest.mark.parametrize("wrapper", ["params", "params_ema", "state_dict"])
def test_wrapped_checkpoints(tmp_path, tiny, wrapper):
    path = tmp_path / "net.pth"
    state = {f"module.{key}": value for key, value in tiny.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3}, path)
    again = load_model(path)
    assert torch.equal(again.upsampler.weight, tiny.upsampler.weight)


class Payload:
    ran = False

    def __reduce__(self):
        return (setattr, (Payload, "ran", True))


def test_a_pickle_with_code_is_refused_without_running_it(tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(pickle.dumps(Payload(), protocol=2))
    with pytest.raises(DataError, match="wants to run code, which was refused"):
        load_model(path)
    torch.save({"params": Payload()}, path)
    with pytest.raises(DataError, match="wants to run code, which was refused"):
        load_model(path)
    assert not Payload.ran


def test_damaged_and_foreign_files(tmp_path, tiny):
    path = save_model(tiny, tmp_path / "net.safetensors")
    for damaged in (path.read_bytes()[:500], b"", b"hello"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="must be a whole safetensors file"):
            load_model(path)
    with pytest.raises(DataError, match="got nothing there"):
        load_model(tmp_path / "none.pth")
    (tmp_path / "net.xyz").write_bytes(b"x")
    with pytest.raises(DataError, match="must end in .safetensors"):
        load_model(tmp_path / "net.xyz")
    torch.save({"a": torch.zeros(3)}, tmp_path / "net.pth")
    with pytest.raises(ConfigError, match="must be weights of IMDN"):
        load_model(tmp_path / "net.pth")
    whole = (tmp_path / "net.pth").read_bytes()
    (tmp_path / "net.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="must be a whole checkpoint"):
        load_model(tmp_path / "net.pth")
    torch.save({"epoch": 3}, tmp_path / "net.pth")
    with pytest.raises(DataError, match="must hold tensors by name, got the keys epoch"):
        load_model(tmp_path / "net.pth")
    torch.save([torch.zeros(3)], tmp_path / "net.pth")
    with pytest.raises(DataError, match="must hold tensors by name, got list"):
        load_model(tmp_path / "net.pth")


def test_another_scale_or_class_is_refused(tmp_path, tiny):
    path = save_model(tiny, tmp_path / "net.safetensors")
    with pytest.raises(ConfigError, match="scale must be 2 for .*, got 4"):
        load_model(path, scale=4)
    with pytest.raises(ConfigError, match="must hold IMDN_AS weights, got IMDN"):
        load_model(path, expect=IMDN_AS)
    with pytest.raises(ConfigError, match="did you mean 'potstill-x2'"):
        load_model("potstil-x2")


def test_missing_surplus_and_mixed_tensors(tmp_path, tiny):
    state = tiny.state_dict()
    path = tmp_path / "net.safetensors"
    save_file({**state, "extra": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match="1 unknown \\(extra\\)"):
        load_model(path)
    assert load_model(path, strict=False).channels == 8
    save_file({k: v for k, v in state.items() if k != "body_out.bias"}, path)
    with pytest.raises(ConfigError, match="1 missing \\(body_out.bias\\)"):
        load_model(path)
    save_file({**state, "body_out.weight": torch.zeros(8, 4, 3, 3)}, path)
    with pytest.raises(ConfigError, match="mixes architectures"):
        load_model(path)


def test_the_ntire_baseline_is_refused_by_name(tiny):
    state = {k: v for k, v in tiny.state_dict().items() if ".gate." not in k}
    with pytest.raises(ConfigError, match="layout of the NTIRE 2022 baseline"):
        detect(state)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_our_own_weights_come_with_the_package(scale):
    model = load_model(f"potstill-x{scale}", scale=scale, expect=IMDN)
    assert model.scale == scale
    from importlib import resources

    path = resources.files("potstill.sr") / "pretrained" / PRETRAINED[f"potstill-x{scale}"]
    assert len(path.read_bytes()) <= 500_000
    metadata = load_tensors(path)[1]
    assert json.loads(metadata["config"])["global_skip"] == "bicubic"
    assert metadata["licence"] == "Apache-2.0"
    assert "astronaut.png" in metadata["data"]


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "net_g.", "model.", "module._orig_mod."]
)
@pytest.mark.parametrize("wrapper", [None, "params", "params_ema", "net_g"])
def test_names_of_wrappers_are_no_names(tmp_path, tiny, prefix, wrapper):
    state = {prefix + key: value for key, value in tiny.state_dict().items()}
    path = tmp_path / "NET.PTH"
    torch.save({wrapper: state, "iter": 3} if wrapper else state, path)
    torch.testing.assert_close(load_model(path).state_dict(), tiny.state_dict())


def test_a_file_is_what_it_holds(tmp_path, tiny):
    made = save_model(tiny, tmp_path / "a.safetensors")
    for name in ("b.pth", "b.bin"):
        (tmp_path / name).write_bytes(made.read_bytes())
        assert load_model(tmp_path / name).channels == 8
    cases = {
        "page.pth": (b"\n<!DOCTYPE html><html>404</html>", "got a web page, so the download"),
        "page.pt": (b"<html>", "got a web page"),
        "lfs.bin": (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
        "noise.pth": (bytes(range(50, 200)), "got something else"),
        "empty.pth": (b"", "got an empty file"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(
            DataError, match=f"{name} must be a checkpoint or safetensors, .*{message}"
        ):
            load_model(tmp_path / name)
