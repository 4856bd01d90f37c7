"""One set of weights for many students, exact to the bit; relations of a teacher."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import CheckpointError, ConfigError, DataError, Objective, ShapeError, fit
from potstill.core.schemes import LogitDistiller
from potstill.search import (
    Elastic,
    ElasticSandwich,
    RelationDistiller,
    RelationSandwich,
    Space,
    qkv_relation,
    recalibrate,
    resnet,
    timm_model,
    vit,
)


@pytest.fixture
def vits() -> Space:
    return vit(3, size=8, patch=4, depth=(1, 2), dim=(8, 16), heads=(2,), mlp=(1, 2))


@pytest.fixture
def nets() -> Space:
    return resnet(3, depth=((1, 1), (2, 1)), width=(2, 4))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def residual() -> Space:
    fixed = {"model": "resnet18", "num_classes": 3, "stem_width": 8}
    choices = {"layers": ((1, 1, 1, 1), (2, 1, 1, 1)), "channels": ((4, 8, 8, 8), (8, 8, 8, 16))}
    return Space(timm_model, choices, fixed, name="timm")


@pytest.mark.parametrize("kind", ["vits", "nets", "residual"])
def test_a_candidate_is_the_model_that_is_taken_out(kind: str, x, request) -> None:
    space = request.getfixturevalue(kind)
    elastic = Elastic(space).eval()
    for choice in list(space)[::3]:
        assert torch.equal(elastic(x, choice), elastic.extract(choice)(x))
    assert torch.equal(elastic(x), elastic(x, elastic.largest))


def test_gradients_stay_in_the_slice_and_add_up(vits: Space, x) -> None:
    elastic, (small, other) = Elastic(vits), list(vits)[:2]

    def gradient(*choices) -> dict[str, torch.Tensor]:
        elastic.zero_grad(set_to_none=False)
        for choice in choices:
            elastic(x, choice).sum().backward()
        return {n: p.grad.clone() for n, p in elastic.full.named_parameters() if p.grad is not None}

    one, two, both = gradient(small), gradient(other), gradient(small, other)
    assert one["patch_embed.proj.weight"][8:].eq(0).all()
    assert one["blocks.0.attn.qkv.weight"][8:16].eq(0).all()  # of the queries, those left out
    assert one["blocks.0.attn.qkv.weight"][16:24, :8].ne(0).any()  # the keys begin at 16
    for name, value in both.items():
        torch.testing.assert_close(value, one[name] + two[name], atol=1e-6, rtol=1e-5)


def test_gradients_of_residual_networks_stay_in_the_slice_too(residual: Space, x) -> None:
    elastic, mask = Elastic(residual), Elastic(residual)
    elastic(x, elastic.least).sum().backward()
    with torch.no_grad():
        for parameter in mask.full.parameters():
            parameter.zero_()
        for view in mask.views(mask.least).values():
            view.fill_(1)
    own = dict(mask.full.named_parameters())
    for name, parameter in elastic.full.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad[own[name] == 0].eq(0).all(), name
    assert elastic.full.conv1.weight.grad.ne(0).any()


def test_packed_projections_have_to_be_named(vits: Space, x) -> None:
    right, wrong = Elastic(vits).eval(), Elastic(vits, {}).eval()
    smallest = next(iter(vits))
    assert not torch.allclose(right(x, smallest), wrong(x, smallest))
    with pytest.raises(ConfigError, match=r"qkv.* must hold 5 projections"):
        Elastic(vits, {"attn.qkv": 5})


def test_names_and_shapes_that_do_not_nest_are_refused() -> None:
    class Named(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            setattr(self, f"layer{width}", nn.Linear(2, width))

    with pytest.raises(ShapeError, match=r"names of width=2 .* got layer2\.weight besides"):
        Elastic(Space(Named, {"width": (2, 3)}))
    turned = Space(lambda a: nn.Linear(a, 6 // a * 2), {"a": (1, 4)})
    with pytest.raises(
        ShapeError, match=r"weight must fit into that of the largest, \[12, 1\], got \[2, 4\]$"
    ):
        Elastic(turned)
    packed = Space(lambda a: nn.Linear(a, 12 if a == 4 else 24), {"a": (4, 3)})
    with pytest.raises(ShapeError, match=r"three projections, name it in packed="):
        Elastic(packed)


def test_statistics_are_those_of_the_candidate_alone(nets: Space, x) -> None:
    elastic = Elastic(nets)
    small = elastic.least
    elastic.train()
    for choice in nets:
        elastic(3 * x + 1, choice)  # statistics of all candidates, mixed
    model = elastic.extract(small, [x, x])
    alone = elastic.extract(small)
    alone.train()
    for norm in alone.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = 1.0
    alone(x)
    torch.testing.assert_close(model.bn1.running_mean, alone.bn1.running_mean)
    assert model.bn1.momentum == 0.1
    assert not model.training
    plain = nn.Linear(2, 2)
    assert recalibrate(plain, []) is plain


def test_the_sandwich_trains_all_of_them(nets: Space, x) -> None:
    elastic = Elastic(nets)
    batch = (x, torch.tensor([0, 1, 2, 0, 1]))
    before = elastic.full.stages[1][0].conv1.weight.detach().clone()
    history = fit(ElasticSandwich(elastic, 4, delay=0.0, warmup=0.0), [batch], steps=4,
                  progress=False)  # fmt: skip
    assert {"full", "smallest", "random"} <= set(history[1])
    assert not torch.equal(elastic.full.stages[1][0].conv1.weight, before)
    taught = ElasticSandwich(elastic, 4, delay=0.0, warmup=0.0, teacher=resnet(3).make(
        {"depth": (1, 1, 1), "width": 4}))  # fmt: skip
    assert set(taught(batch, 1).terms) == {"full", "smallest", "random", "taught"}


def test_a_sandwich_that_only_waits_is_plain_training(nets: Space, x) -> None:
    batch = (x, torch.tensor([0, 1, 2, 0, 1]))
    elastic = Elastic(nets)
    plain = elastic.extract(elastic.largest)
    options = {"steps": 3, "lr": 0.1, "optimizer": torch.optim.SGD, "progress": False}
    fit(ElasticSandwich(elastic, 100, delay=0.9), [batch], **options)
    fit(LogitDistiller(plain, Objective(task=(1.0, F.cross_entropy))), [batch], **options)
    for ours, theirs in zip(elastic.full.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


# --- relations ------------------------------------------------------------------------------------


def test_relations_do_not_change_when_a_head_is_turned() -> None:
    torch.manual_seed(0)
    qkv_s, qkv_t = torch.randn(2, 5, 3 * 8).double(), torch.randn(2, 5, 3 * 12).double()
    turn = torch.linalg.qr(torch.randn(4, 4).double()).Q
    turned = qkv_s.unflatten(2, (3, 2, 4)) @ turn
    before = qkv_relation(qkv_s, qkv_t, heads=2)
    torch.testing.assert_close(qkv_relation(turned.flatten(2), qkv_t, heads=2), before)
    qkv_s.requires_grad_()
    same = qkv_relation(qkv_s, qkv_s.detach(), heads=2)
    same.backward()
    assert same.abs() < 1e-12
    assert qkv_s.grad.abs().max() < 1e-12


def test_relations_are_those_of_the_formula() -> None:
    torch.manual_seed(1)
    qkv_s, qkv_t = torch.randn(1, 4, 3 * 4).double(), torch.randn(1, 4, 3 * 6).double()
    expected = 0.0
    for part in range(3):
        for head in range(2):
            a_s = qkv_s[0, :, part * 4 + head * 2 : part * 4 + head * 2 + 2]
            a_t = qkv_t[0, :, part * 6 + head * 3 : part * 6 + head * 3 + 3]
            p = (a_t @ a_t.T / 3**0.5).softmax(-1)
            q = (a_s @ a_s.T / 2**0.5).softmax(-1)
            expected += (p * (p / q).log()).sum() / 4 / 2
    torch.testing.assert_close(qkv_relation(qkv_s, qkv_t, heads=2), expected)


def test_a_student_learns_relations_of_a_timm_teacher(vits: Space, x) -> None:
    choices = list(vits)
    teacher, student = vits.make(choices[-1]), vits.make(choices[0], 1)
    batch = (x, torch.zeros(5, dtype=torch.long))
    history = fit(RelationDistiller(student, teacher), [batch], steps=30, lr=3e-3, progress=False)
    assert history[-1]["relation"] < history[0]["relation"]
    with pytest.raises(ShapeError, match="heads must divide the width of the student, 8, got 3"):
        RelationDistiller(student, teacher, heads=3)(batch, 0)
    finer = vit(3, size=8, patch=2, depth=(1, 2), dim=(8,), heads=(2,), mlp=(1,)).make(choices[0])
    with pytest.raises(
        ShapeError, match="must have 5 tokens of 5 items like the teacher, got 17 of"
    ):
        RelationDistiller(finer, teacher)(batch, 0)
    with pytest.raises(ConfigError, match=r"blocks with attn\.qkv, .* got Linear"):
        RelationDistiller(nn.Linear(2, 2), teacher)


def test_a_supernet_is_read_for_the_space_that_it_is_of(nets: Space, tmp_path, x) -> None:
    elastic = Elastic(nets, seed=3).eval()
    elastic.save(tmp_path)
    again = Elastic.load(tmp_path, nets).eval()
    assert torch.equal(again(x, again.least), elastic(x, elastic.least))
    with pytest.raises(CheckpointError, match="must be of the same space"):
        Elastic.load(tmp_path, nets.having(in_chans=3))
    (tmp_path / "supernet.json").write_text("{}")
    with pytest.raises(DataError, match="a supernet of potstill search elastic"):
        Elastic.load(tmp_path, nets)


def test_a_supernet_learns_relations_without_labels(vits: Space, x) -> None:
    teachers = vit(3, size=8, patch=4, depth=(2, 3), dim=(24,), heads=(2,), mlp=(2,))
    elastic = Elastic(vits)
    teacher = teachers.make(next(iter(teachers)))
    distiller = RelationSandwich(elastic, 40, teacher=teacher)
    history = fit(distiller, [(x, None)], steps=40, lr=3e-3, progress=False)
    assert {"taught", "smallest", "random"} <= set(history[1])
    assert "full" not in history[1]
    assert history[-1]["smallest"] < history[1]["smallest"]
    with pytest.raises(ConfigError, match="task or teacher must be given"):
        ElasticSandwich(elastic, 4, task=None)
