"""The three phases on a small ViT."""

import warnings

import pytest
import torch
from torch import nn

from potstill.acm import (
    Activations,
    EndToEnd,
    ModuleDistillation,
    acmize,
    acms,
    cache_activations,
    deacmize,
    distill,
    finetune,
    install,
    phases,
    pretrain_gates,
    record_gates,
    set_mode,
    share,
    specs,
)
from potstill.core import Batches, Engine
from potstill.core.engine.ranks import run_ranks
from potstill.core.errors import ConfigError, DataError, NonFiniteError
from potstill.core.testing import unchanged


@pytest.fixture
def batches(images):
    return [(torch.randn(8, 3, 16, 16), torch.randint(0, 5, (8,))) for _ in range(4)]


def errors(student, teacher, images):
    distiller = ModuleDistillation(student, teacher)
    with torch.no_grad():
        found = distiller.readings(images)
        return {
            name: [float((p - o).square().mean()) for p in acms(student)[name].prefixes(z)[1:]]
            for name, (z, o) in found.items()
        }


@pytest.mark.parametrize("targets", [("mlp",), ("mlp", "qkvo")])
def test_phase_1_lowers_the_error_of_every_module(vit, images, batches, targets):
    student = acmize(vit, targets)
    before = errors(student, vit, images)
    with unchanged(vit):
        history = distill(student, vit, batches, steps=60, lr=3e-3, progress=False)
    after = errors(student, vit, images)
    assert history[-1]["loss"] < history[0]["loss"]
    assert set(after) <= set(history[0])  # the terms are the modules
    for name in after:
        assert sum(after[name]) < sum(before[name])
        assert all(a > b for a, b in zip(after[name][:-1], after[name][1:], strict=True))
    assert phases(student) == ("distill",)


def test_phase_1_leaves_gates_and_phase_2_everything_else(vit, batches):
    student = acmize(vit)

    def changed(run):
        before = {n: p.detach().clone() for n, p in student.named_parameters()}
        run(student, vit, batches, steps=2, progress=False)
        return {n for n, p in student.named_parameters() if not torch.equal(p, before[n])}

    first, second = changed(distill), changed(pretrain_gates)
    assert first
    assert all(".mlp." in n and ".gate." not in n for n in first)
    assert second
    assert all(".mlp.gate." in n for n in second)


def test_phase_1_reads_the_dense_modules_inputs(vit, images):
    """The modules are independent: breaking the first changes no other term."""
    student = acmize(vit)
    distiller = ModuleDistillation(student, vit)
    with torch.no_grad():
        before = distiller(images, 0).terms
        student.blocks[0].mlp.up.zero_()
        after = distiller(images, 0).terms
    assert before["blocks.0.mlp"] != after["blocks.0.mlp"]
    assert before["blocks.2.mlp"] == after["blocks.2.mlp"]


def test_cached_activations_are_what_the_teacher_gives(vit, images, tmp_path, batches):
    student = acmize(vit, ("mlp", "qkvo"))
    cached = cache_activations(student, vit, batches, tmp_path / "cache")
    assert len(cached) == 32
    live = ModuleDistillation(student, vit).readings(batches[0][0])
    again = Activations(tmp_path / "cache")[3]
    for name, (z, o) in live.items():
        torch.testing.assert_close(again[name][0], z[3])
        torch.testing.assert_close(again[name][1], o[3])
    some = cache_activations(student, vit, batches, tmp_path / "some", tokens=5)
    assert some[0]["blocks.0.mlp"][0].shape == (5, 24)

    history = distill(student, None, Batches(some, 8), steps=40, lr=3e-3, progress=False)
    assert history[-1]["loss"] < history[0]["loss"]
    with pytest.raises(DataError, match="folder must hold activations.json"):
        Activations(tmp_path)
    with pytest.raises(ConfigError, match="tokens must be at least 1, got 0"):
        cache_activations(student, vit, batches, tmp_path / "none", tokens=0)
    with pytest.raises(ConfigError, match="must hold at least one batch"):
        cache_activations(student, vit, [], tmp_path / "none")


def test_a_cache_stays_whole_until_the_next_one_is(vit, images, tmp_path):
    student = acmize(vit)
    first = cache_activations(student, vit, [images], tmp_path)

    def killed():
        yield torch.zeros_like(images)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_activations(student, vit, killed(), tmp_path)
    for cache in (first, Activations(tmp_path)):  # a reader that is there, and one that comes
        (z, _), (again, _) = (c[2]["blocks.0.mlp"] for c in (first, cache))
        assert len(cache) == 6
        assert torch.equal(again, z)
    assert len(list(tmp_path.glob("data-*"))) == 2
    assert len(cache_activations(student, vit, iter([images, images[:1]]), tmp_path)) == 7
    assert len(list(tmp_path.glob("data-*"))) == 1  # what was left behind is gone too


def test_phase_2_learns_the_labels(vit, batches):
    student = acmize(vit)
    history = pretrain_gates(student, vit, batches, steps=80, lr=1e-2, progress=False)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


def test_phase_3_meets_its_budget(vit, batches):
    student = acmize(vit)
    with pytest.warns(UserWarning, match="the phases distill and gate have not been run"):
        finetune(
            student, batches, budget=0.5, lr=5e-3, steps=150, weights={"budget": 5.0},
            schedule=None, progress=False,
        )  # fmt: skip
    with torch.no_grad(), record_gates(student) as readings:
        student(torch.cat([images for images, _ in batches]))
    assert abs(float(share(readings).mean()) - 0.5) < 0.1
    assert phases(student) == ("finetune",)


def test_a_fixed_number_trains_on_the_task_alone(vit, batches):
    student = set_mode(acmize(vit), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = finetune(student, batches, budget=1.0, steps=3, progress=False)
    assert "task" in history[0]
    assert "budget" not in history[0]


def test_a_killed_phase_continues(vit, batches, tmp_path):
    def student():
        torch.manual_seed(1)
        return acmize(vit)

    whole, parts = student(), student()
    options = {"steps": 6, "progress": False, "schedule": None}
    distill(whole, vit, batches, **options)
    distill(parts, vit, batches, **{**options, "steps": 3}, run=tmp_path / "run")
    again = student()
    distill(again, vit, batches, **options, run=tmp_path / "run")
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_module_that_broke_is_named(vit, batches):
    student = acmize(vit).train()
    with torch.no_grad():
        student.blocks[1].mlp.bias[0] = float("nan")
    quick = {"budget": 0.5, "steps": 1, "progress": False}
    student.acm_phases = ("distill", "gate")
    with pytest.raises(NonFiniteError, match=r"output of module 'blocks.1.mlp' .* 8 images"):
        finetune(student, batches, **quick)
    with pytest.raises(NonFiniteError, match=r"blocks\.1\.mlp"):
        distill(student, vit, batches, steps=1, progress=False)
    images = batches[0][0].clone()
    images[2] = float("inf")
    healthy = acmize(vit).train()
    healthy.acm_phases = student.acm_phases
    with pytest.raises(NonFiniteError, match="input of module 'blocks.0.mlp'"):
        finetune(healthy, [(images, batches[0][1])], **quick)
    labels = torch.full((8,), float("nan"))
    healthy = acmize(vit)
    healthy.acm_phases = student.acm_phases

    def broken(logits, _):
        return logits.mean() * labels.mean()

    with pytest.raises(NonFiniteError, match=r"clip the gradient$"):  # no module is to blame
        finetune(healthy, batches, task=broken, **quick)


def test_batch_of_one_image(vit, batches):
    student = acmize(vit).train()
    images, labels = batches[0]
    losses = EndToEnd(student, 0.5)((images[:1], labels[:1]), 0)
    assert float(losses.terms["diversity"]) == 0
    losses.total.backward()
    assert all(bool(p.grad.isfinite().all()) for p in student.parameters() if p.grad is not None)


def test_modules_with_different_numbers_of_learners(vit, batches):
    mixed = deacmize(acmize(vit), 4)
    install(mixed, specs(acmize(vit, learners=4, layers=[0])))
    install(mixed, specs(acmize(vit, learners=2, layers=[1])))
    assert [acm.count for acm in acms(mixed).values()] == [4, 2]
    losses = EndToEnd(mixed.train(), 0.5)(batches[0], 0)
    losses.total.backward()
    assert bool(losses.total.isfinite())


def test_bad_input(vit, batches):
    student = acmize(vit)
    for run in (distill, pretrain_gates):
        with pytest.raises(ConfigError, match="teacher must be the dense model, got None"):
            run(student, None, batches, steps=1, progress=False)
    for budget in (0.0, 1.2):
        with pytest.raises(ConfigError, match=r"budget must be in \(0, 1\]"):
            finetune(student, batches, budget=budget, steps=1, progress=False)
    with pytest.raises(ConfigError, match="must have adaptive modules"):
        distill(nn.Linear(2, 2), vit, batches, steps=1, progress=False)
    with pytest.raises(ConfigError, match=r"weights must name task, budget.*got \['buget'\]"):
        EndToEnd(student, 0.5, weights={"buget": 1.0})
    projections = acmize(vit, ("qkvo",)).train()
    with pytest.raises(ConfigError, match=r"must be from 0\.25 to 1, what this model can reach"):
        EndToEnd(projections, 0.1)(batches[0], 0)


@pytest.mark.dist
def test_the_budget_is_one_of_the_global_batch():
    """Two ranks with very different images: the losses are those of all images together."""
    first, second = run_ranks(_global_terms, 2)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first[0], torch.tensor(0.0), atol=1e-6, rtol=0)  # (0.2 + 0.8) / 2
    torch.testing.assert_close(first[1], torch.tensor(-0.3), atol=1e-6, rtol=0)


def _global_terms():
    from potstill.acm import budget_loss, diversity_loss
    from potstill.acm.training.distiller import _over_ranks

    with Engine(device="cpu") as engine:
        mine = torch.full((2,), 0.2 if engine.rank == 0 else 0.8, requires_grad=True)
        share = _over_ranks(mine)
        terms = torch.stack([budget_loss(share, 0.5), diversity_loss(share)])
        diversity_loss(share).backward()
        assert bool(mine.grad.abs().max() > 0)
        return terms.detach()


@pytest.mark.dist
def test_two_processes_train_learners_and_gates_as_one_does(vit):
    torch.manual_seed(2)
    data = [(torch.randn(8, 3, 16, 16), torch.randint(0, 5, (8,))) for _ in range(3)]
    (one,), (two, other) = (run_ranks(_two_phases, n, vit, data) for n in (1, 2))
    assert any(not value.equal(start) for value, start in zip(one, _weights(vit), strict=True))
    for a, b, c in zip(one, two, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert torch.equal(b, c)


def _weights(vit):
    return [value.detach() for value in acmize(vit).parameters()]


def _two_phases(vit, data):
    student = acmize(vit)

    def draw(step, rank, world):
        images, labels = data[step % 3]
        return images[rank::world], labels[rank::world]

    with Engine(device="cpu") as engine:
        for phase in (distill, pretrain_gates):
            phase(student, vit, draw, steps=3, engine=engine, progress=False)
    return [value.detach() for value in student.parameters()]
