"""Differentiable search: discrete limits, sharpness, turns that resume."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import ConfigError, Run, fit
from potstill.search import Cell, Darts, curvature, discretize, two_turns


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    return nn.Sequential(nn.Conv2d(3, 2, 1), Cell(2, nodes=3), *head).double()


@pytest.fixture
def batches() -> list:
    rng = torch.Generator().manual_seed(1)

    def one() -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(6, 3, 5, 5, generator=rng, dtype=torch.float64)
        return x, torch.randint(3, (6,), generator=rng)

    return [(one(), one()) for _ in range(3)]


def test_choices_that_are_made_are_the_discrete_network(net, batches) -> None:
    for number, mixed in enumerate(net[1].edges.values()):
        mixed.alpha.data = 40 * F.one_hot(torch.tensor(number + 1), 5).double()
    discrete, x = discretize(net).eval(), batches[0][0][0]
    assert not any("alpha" in name for name, _ in discrete.named_parameters())
    torch.testing.assert_close(net.eval()(x), discrete(x), atol=1e-6, rtol=0)


def test_equal_operations_leave_no_gap(batches) -> None:
    same = nn.Identity()
    cell = Cell(3, nodes=3, make=lambda channels: {"a": same, "b": same}).double()
    x = batches[0][0][0]
    torch.testing.assert_close(cell(x), discretize(cell)(x))


def test_curvature_is_the_largest_eigenvalue_of_the_exact_hessian(net, batches) -> None:
    net.eval()
    x, y = batches[0][1]
    edges = list(net[1].edges.values())

    def of(flat: torch.Tensor) -> torch.Tensor:
        names = [f"1.edges.{name}.alpha" for name in net[1].edges]
        parts = dict(zip(names, flat.split(5), strict=True))
        return F.cross_entropy(torch.func.functional_call(net, parts, (x,)), y)

    exact = torch.func.hessian(of)(torch.cat([edge.alpha.detach() for edge in edges]))
    values = torch.linalg.eigvalsh(exact.detach())
    largest = float(values[values.abs().argmax()])
    found = curvature(net, lambda model: F.cross_entropy(model(x), y), iterations=400)
    assert found == pytest.approx(largest, rel=1e-4)


def test_each_turn_moves_its_own_parameters_on_its_own_half(net, batches) -> None:
    seen = []
    distiller = Darts(net, distil=1.0, every=1)
    compare = distiller.compare
    distiller.compare = lambda step, x, y, z=None: (
        seen.append((distiller.turn, any(x is half[0] for half in by[distiller.turn]))),
        compare(step, x, y, z),
    )[1]
    by = {"weights": [b[0] for b in batches], "choices": [b[1] for b in batches]}
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    history = fit(distiller, batches, stages=[two_turns()], steps=2, progress=False)
    assert {turn for turn, _ in seen} == {"weights", "choices"}
    assert all(own for _, own in seen)
    assert {"weights/task", "choices/task", "weights/kd"} <= set(history[0])
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert any(name.endswith("alpha") for name in moved)
    assert "4.weight" in moved
    assert history[1]["choices/kd"] > 0


def test_a_snapshot_of_this_very_step_teaches_nothing(net, batches) -> None:
    distiller = Darts(net, distil=1.0).eval()
    losses = distiller(batches[0], 0)
    assert losses.terms["kd"].abs() < 1e-12
    losses.total.backward()
    with_kd = net[4].weight.grad.clone()
    net.zero_grad()
    Darts(net).eval()(batches[0], 0).total.backward()
    torch.testing.assert_close(net[4].weight.grad, with_kd, atol=1e-12, rtol=0)


def test_a_killed_search_goes_on_bit_by_bit(net, batches, tmp_path, monkeypatch) -> None:
    import copy

    monkeypatch.setattr("potstill.core.engine.fit.plot_curves", lambda *_: None)
    options = {"stages": [two_turns(lr=0.1)], "steps": 6, "progress": False}
    whole, cut = copy.deepcopy(net), copy.deepcopy(net)
    fit(Darts(whole, distil=1.0, every=2), batches, **options)

    class Stop(Exception):
        pass

    def stop(row, share) -> None:
        if row["step"] == 4:
            raise Stop

    run = Run(tmp_path, every=2)
    with pytest.raises(Stop):
        fit(Darts(copy.deepcopy(cut), distil=1.0, every=2), batches, run=run,
            **{**options, "progress": stop})  # fmt: skip
    fit(Darts(cut, distil=1.0, every=2), batches, run=run, **options)
    for ours, theirs in zip(cut.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_network_without_choices_is_refused() -> None:
    with pytest.raises(ConfigError, match="must have Mixed modules, got Linear"):
        Darts(nn.Linear(2, 2))
