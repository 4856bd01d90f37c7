"""The schemes: identities of each, and that `fit` trains them."""

import copy
import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import Frozen, Objective, fit, schemes
from potstill.core.criteria import RatioNet, gjsd, kd, logit_std, soft_ce, tgeo_state
from potstill.core.errors import ConfigError, ObjectiveError
from potstill.core.store.data import root
from potstill.core.testing import requires_data

VECTORS = "core/loss_vectors.json"


def vector(name):
    stored = json.loads((root() / VECTORS).read_text())
    return next(k for k in stored["cases"] if k["name"] == name), stored["inputs"]


def tensor(x):
    return torch.tensor(x, dtype=torch.float64)


@pytest.fixture
def g():
    return torch.Generator().manual_seed(2)


@pytest.fixture
def data(g):
    """Three clouds in the plane."""
    y = torch.arange(60) % 3
    x = torch.tensor([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])[y]
    return x + 0.8 * torch.randn(60, 2, generator=g), y


def net(seed=0, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, classes))


def train(distiller, batches, steps=60, lr=0.02):
    return fit(distiller, batches, steps=steps, lr=lr, progress=False)


def right(model, data):
    return float((model(data[0]).argmax(1) == data[1]).float().mean())


@pytest.fixture
def teacher(data):
    model = net(5)
    train(schemes.LogitDistiller(model, Objective(task=(1.0, F.cross_entropy))), [data])
    return model


# --- plain and ensemble ---------------------------------------------------------------------------


def test_logit_distiller(data, teacher) -> None:
    objective = Objective(task=(0.1, F.cross_entropy), kd=(0.9, kd))
    student = net()
    history = train(schemes.LogitDistiller(student, objective, teacher), [data])
    assert history[-1]["kd"] < 0.3 * history[0]["kd"]
    assert right(student, data) > 0.8
    cached = [(*data, Frozen(teacher)(data[0]))]
    again = net()
    train(schemes.LogitDistiller(again, objective), cached)
    torch.testing.assert_close(again.state_dict(), student.state_dict())
    with pytest.raises(ObjectiveError, match="needs a teacher"):
        schemes.LogitDistiller(student, objective)(data, 0)


@requires_data(VECTORS)
def test_ensemble_averages_probabilities() -> None:
    case, inputs = vector("ensemble_soft_ce")
    z_s, z_t = (tensor(inputs["logits_a"][k]) for k in ("student", "teacher"))

    class Fixed(nn.Module):
        def __init__(self, z):
            super().__init__()
            self.z = z

        def forward(self, x):
            return self.z

    both = schemes.Ensemble([Fixed(z_t), Fixed(z_t.flip(1))]).double()
    value = soft_ce(z_s, both(None))
    torch.testing.assert_close(value.item(), case["expected"], rtol=1e-9, atol=0)
    of_logits = soft_ce(z_s, (z_t + z_t.flip(1)) / 2)
    assert abs(of_logits.item() - case["expected"]) > 0.01


def test_ensemble_of_one_teacher_many_times(teacher, data) -> None:
    one = torch.log_softmax(teacher(data[0]), 1)
    many = schemes.Ensemble([teacher] * 3, weights=[1.0, 5.0, 0.0])
    torch.testing.assert_close(many(data[0]), one)
    with pytest.raises(ConfigError, match="one weight"):
        schemes.Ensemble([teacher], weights=[1.0, 2.0])


def test_discriminator_learns_while_the_student_hides(g) -> None:
    torch.manual_seed(0)
    told = schemes.Discriminator(8)
    z_s, z_t = torch.randn(2, 32, 8, generator=g)
    z_s.requires_grad_()
    loss = told(z_s, z_t + 3)
    loss.backward()
    helpful = schemes.Discriminator(8, adversarial=False)
    helpful.load_state_dict(told.state_dict())
    other = z_s.detach().clone().requires_grad_()
    helpful(other, z_t + 3).backward()
    torch.testing.assert_close(z_s.grad, -other.grad)
    assert z_s.grad.any()
    assert told.layers[0].weight.grad.any()
    torch.testing.assert_close(told.layers[0].weight.grad, helpful.layers[0].weight.grad)


# --- without labels -------------------------------------------------------------------------------


def test_unlabeled(data, teacher) -> None:
    student = net()
    distiller = schemes.UnlabeledDistiller(student, Objective(js=(1.0, gjsd)), teacher)
    history = train(distiller, [data[0]], steps=100)
    assert history[-1]["js"] < 0.2 * history[0]["js"]
    assert (student(data[0]).argmax(1) == teacher(data[0]).argmax(1)).float().mean() > 0.9


def test_selection_by_class_and_confidence(g) -> None:
    logits = torch.randn(200, 4, generator=g)
    chosen = schemes.select_by_teacher(logits, per_class=7, min_confidence=0.4)
    confidence, label = torch.softmax(logits, 1).max(1)
    for k in range(4):
        own = chosen[label[chosen] == k]
        assert len(own) == min(7, int(((label == k) & (confidence >= 0.4)).sum()))
        assert confidence[own].min() >= 0.4
        rest = set(torch.where(label == k)[0].tolist()) - set(own.tolist())
        assert all(confidence[i] <= confidence[own].min() for i in rest)
    both = schemes.select_by_teacher(logits, per_class=7, student=-logits, share=1.0)
    assert torch.equal(both, schemes.select_by_teacher(logits, per_class=7))
    assert not len(schemes.select_by_teacher(logits, per_class=7, min_confidence=1.0))


@pytest.mark.parametrize("block", [3, 4096])
def test_near_duplicates(g, block) -> None:
    pool = torch.randn(10, 16, generator=g)
    pool[4], pool[9] = pool[1] * 2, pool[1] + 1e-3
    reference = torch.cat([pool[6:7] * 3, torch.randn(5, 16, generator=g)])
    expected = [i in (4, 9) for i in range(10)]
    assert schemes.near_duplicates(pool, block=block).tolist() == expected
    expected = [i == 6 for i in range(10)]
    assert schemes.near_duplicates(pool, reference, block=block).tolist() == expected


# --- mixup ----------------------------------------------------------------------------------------


@requires_data(VECTORS)
def test_mixup_vector() -> None:
    case, _ = vector("mixup")
    p = case["params"]
    mixed = schemes.mixup(tensor(p["x"]), p["lam"], torch.tensor(p["perm"]))
    torch.testing.assert_close(mixed, tensor(case["expected"]), rtol=1e-9, atol=1e-12)


def test_mixup_of_nothing_is_plain(data, teacher) -> None:
    objective = Objective(task=(0.1, F.cross_entropy), kd=(0.9, kd))
    plain = schemes.LogitDistiller(net(), objective, teacher)(data, 0)
    none = schemes.MixupDistiller(net(), objective, teacher, num_classes=3, share=0.0)(data, 0)
    torch.testing.assert_close(none.total, plain.total)


def test_mixup_is_shared_by_both_models(data, teacher) -> None:
    seen = []
    student, watched = net(), copy.deepcopy(teacher)
    for model in (student, watched):
        model.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    own = partial(logit_std, T=1.0, eps=0.0, t_squared=False)
    objective = Objective(task=(0.1, F.cross_entropy), kd=(0.9, own))
    distiller = schemes.MixupDistiller(student, objective, watched, num_classes=3, share=0.5)
    torch.manual_seed(0)
    distiller(data, 0)
    assert torch.equal(seen[0], seen[1])
    assert (seen[0] == data[0]).all(1).sum() >= 30
    assert not torch.equal(seen[0], data[0])
    train(distiller, [data])
    assert right(student, data) > 0.8


# --- generations ----------------------------------------------------------------------------------


@requires_data(VECTORS)
def test_kernel_ridge_test_bed() -> None:
    case, _ = vector("self_distillation_krr")
    p, expected = case["params"], case["expected"]
    x, y, x_val, y_val = (tensor(p[k]) for k in ("x", "y", "x_val", "y_val"))
    x, x_val = x[:, None], x_val[:, None]
    ridge = schemes.KernelRidge(schemes.rbf(x, x, 0.2), y, p["lam"])
    fitted = ridge.steps(61, p["alpha"])
    for k in (1, 2, 3):
        torch.testing.assert_close(
            fitted[k - 1], tensor(expected[f"step{k}"]), rtol=1e-9, atol=1e-12
        )
    limit = ridge.limit(p["alpha"])
    torch.testing.assert_close(limit, tensor(expected["infinite"]), rtol=1e-9, atol=1e-12)
    assert (fitted[-1] - limit).abs().max() < 1e-12
    cross = schemes.rbf(x_val, x, 0.2)
    alpha = ridge.best_alpha(cross, y_val, fitted[0])
    torch.testing.assert_close(alpha, expected["alpha_star_step2"], rtol=1e-9, atol=0)

    def error(a):
        return float((ridge.predict(cross, a * y + (1 - a) * fitted[0]) - y_val).square().mean())

    torch.testing.assert_close(
        error(alpha), expected["val_mse_step2_alpha_star"], rtol=1e-9, atol=0
    )
    torch.testing.assert_close(error(0.0), expected["val_mse_step2_alpha_0"], rtol=1e-9, atol=0)
    grid = torch.linspace(alpha - 0.5, alpha + 0.5, 1001, dtype=torch.float64).tolist()
    assert abs(min(grid, key=error) - alpha) < 1e-6
    with pytest.raises(ConfigError, match="alpha"):
        ridge.limit(0.0)


@pytest.mark.parametrize("init_from", ["scratch", "teacher"])
def test_generations(data, init_from) -> None:
    seeds = iter(range(100))
    line = schemes.self_distill(
        lambda: net(next(seeds)),
        lambda distiller: train(distiller, [data], steps=30),
        generations=3,
        alpha=lambda k: 0.5 / k,
        init_from=init_from,
    )
    assert [one.alpha for one in line] == [1.0, 0.5, 0.25]
    assert len({id(one.student) for one in line}) == 3
    assert all(right(one.student, data) > 0.8 for one in line)


def test_generations_with_the_estimated_share(data) -> None:
    seeds = iter(range(100))
    line = schemes.self_distill(
        lambda: net(next(seeds)),
        lambda distiller: train(distiller, [data], steps=15),
        generations=2,
        alpha="auto",
        validation=data,
    )
    assert 0 <= line[1].alpha <= 1
    with pytest.raises(ConfigError, match="validation"):
        schemes.self_distill(net, train, generations=2, alpha="auto")


def test_mixing_share_of_equal_predictions() -> None:
    with pytest.raises(ConfigError, match="differ"):
        schemes.optimal_mixing(torch.ones(2), torch.zeros(2), torch.zeros(2))


# --- online, sources, snapshots -------------------------------------------------------------------


def test_mutual(data) -> None:
    peers = [net(1), net(2), net(3)]
    distiller = schemes.mutual(peers, partial(kd, T=1.0), weight=2.0)
    losses = distiller(data, 0)
    assert losses.weights["match0_1"] == 1.0
    assert set(losses.terms) == {f"task{i}" for i in range(3)} | {
        f"match{i}_{j}" for i in range(3) for j in range(3) if i != j
    }
    train(distiller, [data])
    assert all(right(peer, data) > 0.8 for peer in peers)
    alone = schemes.mutual(peers[:2], kd, weight=0.0)
    assert set(alone(data, 0).terms) == {"task0", "task1"}


class Heads(nn.Module):
    def __init__(self, **classes):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(2, 8), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(8, k) for name, k in classes.items()})

    def forward(self, x):
        h = self.body(x)
        return {name: head(h) for name, head in self.heads.items()}


def test_similarity_weights() -> None:
    similarity = {"a": 0.9, "b": 0.3, "c": -0.2}
    for power in (0.0, 1.0, 7.0):
        assert abs(sum(schemes.similarity_weights(similarity, power=power).values()) - 1) < 1e-12
    near = schemes.similarity_weights(similarity, power=float("inf"))
    assert near == {"a": 1.0, "b": 0.0, "c": 0.0}
    sharp = schemes.similarity_weights(similarity, power=5000.0)
    assert sharp == pytest.approx(near)
    assert schemes.similarity_weights({"only": 0.1}, power=3.0) == {"only": 1.0}


@pytest.mark.parametrize("kind", ["cka", "rsa", "parc"])
def test_task_similarity_prefers_features_that_tell(kind, data, g) -> None:
    y = data[1]
    telling = F.one_hot(y).float() + 0.1 * torch.randn(60, 3, generator=g)
    noise = torch.randn(60, 3, generator=g)
    assert schemes.task_similarity(telling, y, kind) > 0.5
    assert schemes.task_similarity(telling, y, kind) > schemes.task_similarity(noise, y, kind) + 0.2


def test_multi_source(data) -> None:
    x, y = data
    sources = {"four": net(1, 4), "five": net(2, 5)}
    weights = {"four": 0.7, "five": 0.3}
    student = Heads(task=3, four=4, five=5)
    distiller = schemes.multi_source(student, sources, weights, lam=0.5)
    batch = (x, y, x + 0.1)
    history = train(distiller, [batch], steps=80)
    assert history[-1]["four"] < 0.5 * history[0]["four"]
    # A source without weight changes nothing, bit for bit, and never runs.
    broken = nn.Module()
    one = schemes.multi_source(Heads(task=3, four=4, five=5), sources, {"four": 1.0})
    two = schemes.multi_source(
        Heads(task=3, four=4, five=5), sources | {"five": broken}, {"four": 1.0, "five": 0.0}
    )
    for other in (one, two):
        train(other, [batch], steps=5)
    for a, b in zip(one.student.parameters(), two.student.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ConfigError, match="did you mean 'four'"):
        schemes.multi_source(student, sources, {"fuor": 1.0})
    with pytest.raises(ObjectiveError, match="head 'four'"):
        schemes.multi_source(Heads(task=3), sources, {"four": 1.0})(batch, 0)


@pytest.mark.parametrize("vote", ["mean", "majority"])
def test_snapshots_vote(vote, data) -> None:
    models = [net(seed) for seed in (1, 2, 3)]
    snapshots = schemes.Snapshots(models[0], k=2, every=10, vote=vote)
    first = torch.softmax(models[0](data[0]), 1)
    if vote == "mean":  # one snapshot so far
        torch.testing.assert_close(snapshots(data[0]).exp(), first)
    for step, model in ((5, models[2]), (10, models[1]), (20, models[2])):
        snapshots.update(model, step)  # step 5 is not due; step 20 replaces the oldest
    p = [torch.softmax(m(data[0]), 1) for m in models[1:]]
    if vote == "majority":
        p = [F.one_hot(x.argmax(1), 3).float() for x in p]
    torch.testing.assert_close(snapshots(data[0]).exp(), sum(p) / 2)
    assert not any(q.requires_grad for q in snapshots.parameters())
    assert not snapshots.train().slots[0].training


def test_snapshot_of_now_teaches_nothing(data) -> None:
    objective = Objective(kd=(1.0, kd))
    distiller = schemes.SnapshotDistiller(net(), objective, k=1, every=1)
    assert distiller(data, 0).total.abs() < 1e-6
    objective = Objective(task=(1.0, F.cross_entropy), kd=(1.0, kd))
    distiller = schemes.SnapshotDistiller(net(), objective, k=3, every=10)
    train(distiller, [data])
    assert int(distiller.snapshots.taken) == 6
    assert right(distiller.student, data) > 0.8


# --- the ratio that is really learned -------------------------------------------------------------


def fusion(data, dtype=torch.float64):
    student, teacher = net(0).to(dtype), net(5).to(dtype)
    torch.manual_seed(1)
    ratio = RatioNet(27).to(dtype)
    distiller = schemes.TrilateralFusion(student, teacher, ratio, inner_lr=0.5)
    x, y = data[0].to(dtype), data[1]
    return distiller, ratio, ((x[:30], y[:30]), (x[30:], y[30:]))


def test_ratio_gradient_equals_finite_differences(data) -> None:
    """Of the validation loss after one step of the student, written independently."""
    distiller, ratio, ((x, y), (x_val, y_val)) = fusion(data)
    z_t = distiller.teacher(x)

    def unrolled() -> float:
        student = copy.deepcopy(distiller.student)
        z_s = student(x)
        with torch.no_grad():
            a = ratio(tgeo_state(z_s, z_t, y))
        soft = (
            torch.softmax(z_t / 1.5, 1)
            * (torch.log_softmax(z_t / 1.5, 1) - torch.log_softmax(z_s / 1.5, 1))
        ).sum(1)
        hard = F.cross_entropy(z_s, y, reduction="none")
        (a * 1.5**2 * soft + (1 - a) * hard).mean().backward()
        with torch.no_grad():
            for p in student.parameters():
                p -= 0.5 * p.grad
            return float(F.cross_entropy(student(x_val), y_val))

    distiller(((x, y), (x_val, y_val)), 0).total.backward()
    grown = 0
    for p in ratio.parameters():
        flat, slopes = p.data.view(-1), p.grad.view(-1)
        for i in range(0, flat.numel(), max(1, flat.numel() // 5)):
            kept, h = float(flat[i]), 1e-5
            flat[i] = kept + h
            up = unrolled()
            flat[i] = kept - h
            down = unrolled()
            flat[i] = kept
            expected = (up - down) / (2 * h)
            torch.testing.assert_close(float(slopes[i]), expected, rtol=1e-4, atol=1e-9)
            grown += abs(expected) > 1e-8
    assert grown > 5  # it was not a comparison of zeros


def test_ratio_net_moves_and_student_sees_the_lower_loss_only(data) -> None:
    distiller, ratio, batch = fusion(data, torch.float32)
    before = copy.deepcopy(ratio.state_dict())
    losses = distiller(batch, 0)
    losses.total.backward()
    slopes = [p.grad.clone() for p in distiller.student.parameters()]
    alone = copy.deepcopy(distiller)
    alone.zero_grad()
    (x, y), _ = batch
    alone.mixture(alone.student(x), alone.teacher(x), y).backward()
    for p, slope in zip(alone.student.parameters(), slopes, strict=True):
        torch.testing.assert_close(p.grad, slope)
    train(distiller, [batch], steps=20)
    assert all(not torch.equal(v, before[k]) for k, v in ratio.state_dict().items())


def test_fusion_leaves_batch_statistics_alone(data) -> None:
    student = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    distiller = schemes.TrilateralFusion(student, net(5), RatioNet(27), inner_lr=0.1)
    once = copy.deepcopy(student)
    once(data[0][:30])
    distiller(((data[0][:30], data[1][:30]), (data[0][30:], data[1][30:])), 0)
    torch.testing.assert_close(student[1].state_dict(), once[1].state_dict())
