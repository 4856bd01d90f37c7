"""Teachers by name; libraries that are not here are named in the error."""

import json
import sys

import pytest
import torch
from torch import nn

from potstill.core import Objective, fit
from potstill.core.adapters import Renormalized, load_teacher, statistics_of
from potstill.core.criteria import logit_mse
from potstill.core.errors import BackendError, ConfigError, DataError, ShapeError
from potstill.core.images import IMAGENET
from potstill.core.schemes import LogitDistiller
from potstill.core.testing import with_package

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("name", ["resnet50", "timm:", "keras:resnet50", ":x", ""])
def test_a_name_says_its_library(name):
    with pytest.raises(ConfigError, match="name must be <library>:<model> with a library of timm,"):
        load_teacher(name)


@pytest.mark.parametrize("library", ["timm", "torchvision", "transformers", "diffusers"])
def test_an_absent_library_is_named_with_what_to_install(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(BackendError, match=rf"x needs {library}, .*; pip install {library}$"):
        load_teacher(f"{library}:x")


@with_package("timm")
def test_timm():
    loaded = load_teacher("timm:vit_tiny_patch16_224", pretrained=False, depth=1, num_classes=4)
    assert not loaded.model.training
    assert loaded.statistics == HALF
    assert (loaded.origin, loaded.licence) == ("vit_tiny_patch16_224, fresh weights", "")
    assert loaded.model(torch.zeros(1, 3, 224, 224)).shape == (1, 4)
    assert statistics_of(nn.Linear(1, 1)) is None
    features = load_teacher(
        "timm:resnet10t", pretrained=False, features_only=True, output=lambda maps: maps[-1]
    )
    assert features.model(torch.zeros(1, 3, 64, 64)).shape == (1, 512, 2, 2)


@with_package("timm")
def test_timm_without_such_a_model_or_its_weights(monkeypatch):
    import timm

    with pytest.raises(DataError, match="timm has no model 'resnet5'; did you mean 'resnet"):
        load_teacher("timm:resnet5")
    with pytest.raises(DataError, match=r"timm.list_models\('vit\*'\) lists what there is"):
        load_teacher("timm:qqqqqq")
    with pytest.raises(TypeError, match="nonsense"):
        load_teacher("timm:resnet18", pretrained=False, nonsense=3)

    def broken(name, **options):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(timm, "create_model", broken)
    with pytest.raises(
        DataError, match="resnet18 must be downloadable, got OSError: no route.*; d"
    ):
        load_teacher("timm:resnet18")
    with pytest.raises(OSError, match="more"):  # nothing was to be downloaded
        load_teacher("timm:resnet18", pretrained=False)


@with_package("torchvision")
def test_torchvision():
    loaded = load_teacher("torchvision:resnet18", pretrained=False, num_classes=4)
    assert loaded.statistics == IMAGENET
    assert loaded.model(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    with pytest.raises(DataError, match="torchvision has no model 'resnet19'; did you mean 'resne"):
        load_teacher("torchvision:resnet19")
    with pytest.raises(
        ConfigError, match="weights must be of resnet18, got 'IMAGENET1K_V7'; did y"
    ):
        load_teacher("torchvision:resnet18", weights="IMAGENET1K_V7")


@with_package("torchvision")
def test_torchvision_keeps_to_hf_hub_offline(monkeypatch, tmp_path):
    import torchvision

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        DataError, match="forbids to download the weights of resnet18, and .*pth does"
    ):
        load_teacher("torchvision:resnet18")
    weights = torchvision.models.get_model_weights("resnet18").DEFAULT
    file = tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    model = torchvision.models.resnet18()
    torch.save(model.state_dict(), file)
    loaded = load_teacher("torchvision:resnet18")
    torch.testing.assert_close(loaded.model.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.fixture
def classifier(tmp_path):
    """A folder as transformers saves it, and the model in it."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ViTConfig(image_size=16, patch_size=8, intermediate_size=32, num_labels=5, **sizes)
    model = ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    about = {"image_mean": HALF[0], "image_std": HALF[1], "do_normalize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    return tmp_path, model


@with_package("transformers")
def test_transformers(classifier):
    folder, model = classifier
    loaded = load_teacher(f"transformers:{folder}")
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(loaded.model(images), model(images).logits)
    assert (loaded.statistics, loaded.origin) == (HALF, str(folder))
    fresh = load_teacher(f"transformers:{folder}", pretrained=False, num_labels=7)
    assert fresh.model(images).shape == (2, 7)
    body = load_teacher(f"transformers:{folder}", architecture="ViTModel", add_pooling_layer=False)
    assert body.model(images).shape == (2, 5, 16)
    (folder / "preprocessor_config.json").unlink()
    assert load_teacher(f"transformers:{folder}").statistics is None


@with_package("transformers")
def test_a_teacher_of_transformers_teaches(classifier):
    loaded = load_teacher(f"transformers:{classifier[0]}")
    torch.manual_seed(0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))
    teacher = Renormalized(loaded.model, IMAGENET, loaded.statistics)
    distiller = LogitDistiller(student, Objective(kd=(1.0, logit_mse)), teacher)
    batch = torch.randn(4, 3, 16, 16), torch.zeros(4, dtype=torch.long)
    rows = fit(distiller, [batch], steps=5, lr=1e-4, progress=False)
    assert rows[-1]["loss"] < rows[0]["loss"]


@with_package("transformers")
def test_transformers_that_cannot_be_found(classifier):
    with pytest.raises(DataError, match="the weights of .*/absent must be downloadable, got OSErr"):
        load_teacher(f"transformers:{classifier[0]}/absent")
    with pytest.raises(DataError, match="has no model 'ViTModul'; did you mean 'ViTModel'"):
        load_teacher(f"transformers:{classifier[0]}", architecture="ViTModul")


@with_package("diffusers")
def test_diffusers(tmp_path):
    from diffusers import UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    model = UNet2DModel(8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, **blocks)
    model.eval().save_pretrained(tmp_path / "unet")
    images = torch.randn(2, 3, 8, 8)
    loaded = load_teacher(f"diffusers:{tmp_path}", subfolder="unet")
    torch.testing.assert_close(loaded.model(images, 3), model(images, 3).sample)
    assert loaded.statistics is None
    fresh = load_teacher(f"diffusers:{tmp_path}/unet", pretrained=False)
    assert fresh.model(images, 3).shape == (2, 3, 8, 8)
    with pytest.raises(ShapeError, match="must be a tensor, got UNet2DOutput"):
        load_teacher(f"diffusers:{tmp_path}/unet", output=lambda found: found).model(images, 3)
