import json

import pytest
import timm
import torch
from safetensors.torch import load_file

from potstill.acm import (
    acmize,
    acms,
    calibrate,
    create_model,
    from_pretrained,
    load_into,
    save_pretrained,
    specs,
)
from potstill.core.errors import CheckpointError, ConfigError, DataError


@pytest.mark.parametrize("targets", [("mlp",), ("mlp", "qkvo")])
@pytest.mark.filterwarnings("ignore:acmize.*remainder")
def test_a_model_comes_back_whole(vit, images, tmp_path, targets):
    model = acmize(vit, targets, 5).eval()
    for acm in acms(model).values():
        torch.nn.init.normal_(acm.gate.choose.weight)
    calibrate(model, [images], 0.6, tolerance=0.1)
    model.acm_phases = ("distill", "gate")
    save_pretrained(model, tmp_path / "m")
    again = from_pretrained(tmp_path / "m")
    assert specs(again) == specs(model)
    assert again.acm_phases == ("distill", "gate")
    assert again.acm_budget == 0.6
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["architecture"] == "vit_tiny_patch16_224"
    assert config["modules"]["blocks.0.mlp"]["bounds"] == [0, 19, 38, 57, 76, 96]
    assert any(key.endswith("gate.tilt") for key in load_file(tmp_path / "m/model.safetensors"))


def test_models_of_timm_know_their_name(tmp_path):
    model = acmize(timm.create_model("vit_tiny_patch16_224", num_classes=3))
    save_pretrained(model, tmp_path)
    assert from_pretrained(tmp_path, backend="gathered").blocks[0].mlp.backend == "gathered"


def test_create_model_is_timms_and_adaptive():
    model = create_model("vit_tiny_patch16_224", acm={"learners": 2}, depth=1, num_classes=3)
    assert acms(model)["blocks.0.mlp"].count == 2


def test_loading_into_a_model(vit, images, tmp_path):
    save_pretrained(acmize(vit), tmp_path)
    model = acmize(vit, initial="random").eval()
    load_into(model, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(images), vit(images), atol=1e-5, rtol=1e-4)


def test_bad_input(vit, tmp_path):
    save_pretrained(acmize(vit), tmp_path / "m")
    with pytest.raises(CheckpointError, match="has 4 learners of 24 units .*got 2 learners of 48"):
        load_into(acmize(vit, learners=2), tmp_path / "m")
    with pytest.raises(CheckpointError, match="4 learners of 24 units .* got 4 learners of 12"):
        load_into(acmize(vit, flops_factor=0.5), tmp_path / "m")
    with pytest.raises(CheckpointError, match="'blocks.1.mlp' .* got no adaptive module"):
        load_into(acmize(vit, layers=[0]), tmp_path / "m")
    with pytest.raises(ConfigError, match="must have adaptive modules"):
        save_pretrained(vit, tmp_path / "n")
    with pytest.raises(DataError):
        from_pretrained(tmp_path / "nothing")
    config = tmp_path / "m" / "config.json"
    values = json.loads(config.read_text())
    values["modules"]["blocks.0.mlp"]["bounds"] = [0, 10, 20]
    config.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"must fit the config\.json beside it"):
        from_pretrained(tmp_path / "m")
    values["modules"]["blocks.0.mlp"]["bouns"] = 3
    config.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="Did you mean --bounds"):
        from_pretrained(tmp_path / "m")
    del vit.acm_origin
    vit.pretrained_cfg = None
    with pytest.raises(ConfigError, match="architecture must be timm's name of the model"):
        save_pretrained(acmize(vit), tmp_path / "n")
    with pytest.raises(ConfigError, match="must build this model again"):
        save_pretrained(acmize(vit), tmp_path / "n", architecture="vit_tiny_patch16_224")
