"""Splitting, finding, refusing."""

import warnings

import pytest
import timm
import torch
from timm.layers import GluMlp, SwiGLU, SwiGLUPacked
from torch import nn

from potstill.acm import acmize, acms, deacmize, run, set_mode, specs
from potstill.acm.layers.splitting import Units, importance, split_linear
from potstill.acm.layers.surgery import ModuleSpec, install, sources
from potstill.core.errors import BackendError, ConfigError

TIGHT = {"atol": 1e-5, "rtol": 1e-4}


@torch.no_grad()
def test_full_budget_is_the_dense_model(vit, images):
    adaptive = acmize(vit).eval()
    torch.testing.assert_close(adaptive(images), vit(images), **TIGHT)  # the gates take all
    torch.testing.assert_close(set_mode(adaptive, 4)(images), vit(images), **TIGHT)
    assert not torch.allclose(set_mode(adaptive, 2)(images), vit(images), atol=1e-3)


def test_the_dense_model_is_not_touched(vit):
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    adaptive = acmize(vit)
    with torch.no_grad():
        for parameter in adaptive.parameters():
            parameter.zero_()
    for name, value in vit.state_dict().items():
        assert torch.equal(value, before[name])


@torch.no_grad()
def test_the_first_learners_hold_the_most_important_units(vit):
    mlp = vit.blocks[0].mlp
    acm = acmize(vit).blocks[0].mlp
    norms = acm.up.norm(dim=1) * acm.down.norm(dim=1)
    assert bool((norms[:-1] >= norms[1:]).all())
    torch.testing.assert_close(
        norms, importance(Units.of(mlp), mlp.fc2).sort(descending=True).values
    )


@torch.no_grad()
@pytest.mark.parametrize("targets", [("mlp",), ("mlp", "qkvo"), ("mlp", "qkvo_shared")])
def test_deacmized_computes_the_same(vit, images, targets):
    adaptive = acmize(vit, targets).eval()
    for k in (1, 3):
        dense = deacmize(adaptive, k)
        assert not acms(dense)
        torch.testing.assert_close(dense(images), set_mode(adaptive, k)(images), **TIGHT)


@torch.no_grad()
def test_a_projection_at_full_rank_is_the_linear_map():
    linear = nn.Linear(12, 8)
    acm = ModuleSpec(12, 8, (0, 2, 4, 8), "identity", least=1).build()
    split_linear(acm, linear)
    x = torch.randn(20, 12)
    torch.testing.assert_close(acm.prefixes(x)[-1], linear(x), **TIGHT)
    errors = [(p - linear(x)).norm() for p in acm.prefixes(x)[1:]]
    assert errors[0] > errors[1] > errors[2]
    left, values, right = torch.linalg.svd(linear.weight)
    best = left[:, :4] @ torch.diag(values[:4]) @ right[:4]
    torch.testing.assert_close(acm.prefixes(x)[2], x @ best.t() + linear.bias, **TIGHT)


def test_projections_cost_what_the_linear_map_cost():
    vit = timm.create_model("vit_small_patch16_224", depth=1)
    adaptive = acmize(vit, ("mlp", "qkvo"))
    for name, acm in acms(adaptive).items():
        if name.endswith("mlp"):
            assert acm.learners.widths == (384,) * 4
            assert acm.least == 0
        else:
            assert acm.learners.widths == (48,) * 4
            assert acm.least == 1
    shared = acms(acmize(vit, ("qkvo_shared",)))
    assert list(shared) == ["blocks.0.attn.qkv", "blocks.0.attn.proj"]
    assert shared["blocks.0.attn.qkv"].costs[-1] == 384 * 3 * 384


def test_where_modules_come_from(vit):
    where = sources(acmize(vit, ("mlp", "qkvo")))
    assert where["blocks.1.attn.qkv.k"].path == "blocks.1.attn.qkv"
    assert where["blocks.1.attn.qkv.k"].columns == slice(24, 48)
    assert where["blocks.1.mlp"].path == "blocks.1.mlp"


def test_layers_factor_and_remainder(vit):
    assert list(acms(acmize(vit, layers=[1]))) == ["blocks.1.mlp"]
    assert acmize(vit, flops_factor=0.5).blocks[0].mlp.bounds == (0, 12, 24, 36, 48)
    wide = acmize(vit, flops_factor=2.0).eval()
    with torch.no_grad():
        x = torch.randn(2, 3, 16, 16)
        torch.testing.assert_close(wide(x), vit(x), **TIGHT)
    with pytest.warns(UserWarning, match="the last learner of a module takes the remainder"):
        uneven = acmize(vit, learners=7)
    assert uneven.blocks[0].mlp.learners.widths == (13, 13, 13, 13, 13, 13, 18)
    with torch.no_grad():
        torch.testing.assert_close(uneven.eval()(x), vit(x), **TIGHT)


@pytest.mark.parametrize(
    ("name", "options", "modules"),
    [
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "num_heads": (1, 2, 4, 8)}, 12),
        ("deit3_small_patch16_224", {"embed_dim": 48, "depth": 2, "num_heads": 3}, 2),
        ("vit_base_patch16_clip_quickgelu_224", {"embed_dim": 48, "depth": 2, "num_heads": 3}, 2),
        ("beit_base_patch16_224", {"embed_dim": 48, "depth": 2, "num_heads": 3}, 2),
        ("eva02_tiny_patch14_224", {"embed_dim": 48, "depth": 2, "num_heads": 3}, 2),  # GluMlp
        (
            "vit_giant_patch14_dinov2",
            {"img_size": 56, "embed_dim": 48, "depth": 2, "num_heads": 3},
            2,
        ),  # SwiGLUPacked
        ("eva02_base_patch14_224", {"embed_dim": 48, "depth": 1, "num_heads": 3}, 0),
    ],
)
def test_families_of_timm(name, options, modules):
    model = timm.create_model(name, num_classes=3, **options).eval()
    if modules == 0:
        with pytest.raises(
            ConfigError, match="must be a plain timm Mlp, SwiGLU .* got SwiGLU with a LayerNorm"
        ):
            acmize(model)
        return
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        adaptive = acmize(model).eval()
        assert len(acms(adaptive)) == modules
        x = torch.randn(1, 3, *((56, 56) if "dinov2" in name else (224, 224)))
        torch.testing.assert_close(adaptive(x), model(x), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("mlp", [SwiGLU(8, 24), GluMlp(8, 48), SwiGLUPacked(8, 48, bias=False)])
def test_gated_learners_are_the_dense_module_cut_into_pieces(mlp):
    for parameter in mlp.parameters():
        parameter.add_(torch.randn_like(parameter))
    adaptive = acmize(nn.Sequential(mlp), predicate=lambda name, _: name == "0").eval()
    acm, x = adaptive[0], torch.randn(3, 7, 8)
    torch.testing.assert_close(set_mode(acm, 4)(x), mlp.eval()(x), **TIGHT)
    torch.testing.assert_close(deacmize(adaptive, 2)(x), set_mode(adaptive, 2)(x), **TIGHT)
    choices = torch.randint(0, 5, (21,))
    parts = acm.prefixes(x).flatten(1, 2)
    expected = torch.stack([parts[k, t] for t, k in enumerate(choices.tolist())])
    for backend in ("torch", "sorted_prefix", "gathered", "grouped_mm"):
        found = run(x.flatten(0, 1), choices, acm.learners, backend)
        torch.testing.assert_close(found, expected, **TIGHT)
    again = specs(adaptive)["0"].build()
    again.load_state_dict(acm.state_dict())
    assert (again.costs, again.costs[-1]) == (acm.costs, 24 * 3 * 8)


def test_any_token_wise_map_by_predicate():
    net = nn.Sequential(nn.Linear(8, 8), SwiGLU(8, 16), nn.Linear(8, 4))
    adaptive = acmize(net, learners=2, predicate=lambda name, module: name in ("1", "2"))
    found = acms(adaptive)
    assert list(found) == ["1", "2"]
    assert (found["1"].inputs, found["1"].outputs, found["1"].least) == (8, 8, 0)
    assert found["1"].costs[-1] == sum(
        m.weight.numel() for m in net[1].modules() if isinstance(m, nn.Linear)
    )
    assert adaptive(torch.randn(3, 5, 8)).shape == (3, 5, 4)


def test_install_builds_the_same_modules(vit):
    adaptive = acmize(vit, ("mlp", "qkvo"))
    again = deacmize(acmize(vit), 4)
    install(again, specs(adaptive))
    again.load_state_dict(adaptive.state_dict())
    assert specs(again) == specs(adaptive)
    with pytest.raises(ConfigError, match="must have a module 'blocks.9.mlp', got none"):
        install(again, {"blocks.9.mlp": ModuleSpec(4, 4, (0, 2))})


def test_bad_input(vit):
    for learners in (0, -1):
        with pytest.raises(ConfigError, match="learners must be at least 1"):
            acmize(vit, learners=learners)
    with pytest.raises(ConfigError, match="at most the 96 hidden units, got 97"):
        acmize(vit, learners=97)
    for factor in (0.0, -1.0):
        with pytest.raises(ConfigError, match="flops_factor must be positive"):
            acmize(vit, flops_factor=factor)
    with pytest.raises(ConfigError, match="targets must be some of mlp, qkvo"):
        acmize(vit, ("mpl",))
    with pytest.raises(ConfigError, match="in a tuple, got 'mlp'"):
        acmize(vit, "mlp")
    with pytest.raises(ConfigError, match="must name qkvo or qkvo_shared, got both"):
        acmize(vit, ("qkvo", "qkvo_shared"))
    with pytest.raises(ConfigError, match=r"layers must be from 0 to 2, got \[3\]"):
        acmize(vit, layers=[3])
    with pytest.raises(ConfigError, match="initial must be 'split' or 'random'"):
        acmize(vit, initial="svd")
    with pytest.raises(ConfigError, match="temperature must be positive, got -1"):
        acmize(vit, temperature=-1)
    with pytest.raises(ConfigError, match="must be dense, got one with 3 adaptive modules"):
        acmize(acmize(vit))
    with pytest.raises(ConfigError, match="did you mean 'gathered'"):
        acmize(vit, backend="gatherd")
    with pytest.raises(BackendError, match="use backend 'sorted_prefix'"):
        acmize(vit, backend="triton")
    with pytest.raises(ConfigError, match="k of 'blocks.0.mlp' must be from 1 to 4 .* got 0"):
        deacmize(acmize(vit), 0)
    with pytest.raises(ConfigError, match="k of 'blocks.1.mlp' must be from 1 to 4 .* got None"):
        deacmize(acmize(vit), {"blocks.0.mlp": 1})


def test_models_that_are_not_transformers():
    resnet = timm.create_model("resnet10t", num_classes=3)
    with pytest.raises(ConfigError, match="transformer blocks .* got ResNet without; .* fc"):
        acmize(resnet)
    with pytest.raises(ConfigError, match="got Linear without; .* none"):
        acmize(nn.Linear(2, 2))
    net = nn.Sequential(nn.ReLU())
    with pytest.raises(ConfigError, match="'0' must have linear layers"):
        acmize(net, predicate=lambda name, module: name == "0")


def test_blocks_that_cannot_be_split(vit):
    vit.blocks[1].mlp.norm = nn.LayerNorm(96)
    with pytest.raises(
        ConfigError,
        match=r"plain timm Mlp, .*got Mlp with a LayerNorm .*layers=",
    ):
        acmize(vit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(acms(acmize(vit, layers=[0, 2]))) == 2
    vit.blocks[1].mlp.norm = nn.Identity()
    vit.blocks[1].mlp.act = nn.Tanh()
    with pytest.raises(ConfigError, match="activation of 'blocks.1.mlp' must be one of .*Tanh"):
        acmize(vit)
    vit.blocks[1].mlp = timm.layers.Mlp(24, 96, 12)
    with pytest.raises(ConfigError, match="of one width, got 24 to 12"):
        acmize(vit)


def test_a_wrong_image_size_is_timms_own_error(adaptive):
    with pytest.raises(AssertionError, match="Input height"):
        adaptive(torch.randn(1, 3, 20, 20))


def test_a_frozen_teacher_has_a_trainable_student(vit):
    assert all(p.requires_grad for p in acmize(vit.requires_grad_(False)).parameters())
