"""Every prediction on every path says the same, and what diffusers' schedulers say."""

from itertools import pairwise

import pytest
import torch

from potstill.core import ConfigError
from potstill.flow import (
    EDM,
    Linear,
    Teacher,
    VariancePreserving,
    Velocity,
    integrate,
    path_of,
    ring,
)

diffusers = pytest.importorskip("diffusers")

MEAN, DEVIATION = (1.0, -2.0), 0.5
SQUARES = torch.linspace(0.9999, 0.02, 50, dtype=torch.float64)


def gaussian() -> Teacher:
    return Teacher.gaussian_mixture(torch.tensor([MEAN], dtype=torch.float64), DEVIATION)


def points(n: int = 64) -> torch.Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("prediction", "path"),
    [
        ("flow", Linear(1000.0)),
        ("epsilon", Linear()),
        ("sample", Linear()),
        ("epsilon", VariancePreserving(SQUARES)),
        ("v_prediction", VariancePreserving(SQUARES)),
        ("sample", VariancePreserving(SQUARES)),
        ("epsilon", EDM()),
        ("sample", EDM()),
        ("edm", EDM()),
    ],
)
def test_teachers_of_one_distribution_are_one(exact, prediction: str, path) -> None:
    """At the same ratio of signal to noise all give the same clean item, to 1e-10."""
    teacher = Teacher(exact(MEAN, DEVIATION, prediction, path), prediction, path)
    x, wanted = points(), gaussian()
    known = path.linear_times()[5::11] if isinstance(path, VariancePreserving) else (0.1, 0.5, 0.9)
    for t in known:
        for what in ("denoise", "noise", "velocity"):
            ours, exactly = (getattr(each, what)(x, float(t)) for each in (teacher, wanted))
            torch.testing.assert_close(ours, exactly, rtol=1e-10, atol=1e-10)
        predicted, target = teacher.target(x, x.flip(0), float(t))
        clean = (1 - t) * x + t * x.flip(0)
        ours = Velocity(lambda *_, target=target: target, prediction, path)  # type: ignore[arg-type]
        torch.testing.assert_close(ours.denoise(clean, float(t)), x, rtol=1e-9, atol=1e-9)
        assert predicted.shape == x.shape


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddim_is_euler_on_the_linear_path(exact, prediction: str) -> None:
    """One step of diffusers' DDIM without noise, from any step to any other, to 1e-10."""
    scheduler = diffusers.DDIMScheduler(
        100, clip_sample=False, prediction_type=prediction, set_alpha_to_one=False
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    path, said = path_of(scheduler)
    assert said == prediction
    model = exact(MEAN, DEVIATION, prediction, path)
    teacher = Teacher(model, prediction, path)
    scheduler.set_timesteps(10)
    x, times = points(), path.linear_times()
    for step in scheduler.timesteps.tolist()[:-1]:
        a, b = scheduler.alphas_cumprod[[step, step - 10]]
        raw = model(x * a.sqrt() + x * (1 - a).sqrt(), torch.full((len(x),), step))
        noised = x * (a.sqrt() + (1 - a).sqrt())
        theirs = scheduler.step(raw, step, noised).prev_sample / (b.sqrt() + (1 - b).sqrt())
        ours = integrate(
            teacher.velocity, x, steps=1, start=float(times[step]), end=float(times[step - 10])
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_other_schedulers_are_the_same_path(exact) -> None:
    edm = diffusers.EDMEulerScheduler()
    path, said = path_of(edm)
    x, sigma = points(), torch.tensor(1.7, dtype=torch.float64)
    raw = torch.sin(x)
    theirs = edm.precondition_outputs((1 + sigma) * x, raw, sigma)
    ours = Velocity(lambda *_: raw, said, path).denoise(x, sigma / (1 + sigma))  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    flow = diffusers.FlowMatchEulerDiscreteScheduler(1000)
    path, said = path_of(flow)
    assert (said, path.options()) == ("flow", {"scale": 1000.0})
    flow.set_timesteps(4)
    theirs, teacher = x, gaussian()
    for step in flow.timesteps:
        theirs = flow.step(teacher.velocity(theirs, float(step) / 1000), step, theirs).prev_sample
        theirs = theirs.double()
    sigmas = flow.sigmas.tolist()
    ours = x
    for begin, end in pairwise(sigmas):
        ours = integrate(teacher.velocity, ours, steps=1, start=begin, end=end)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # theirs is in float32


def test_a_gaussian_ends_where_its_map_says() -> None:
    """Closed form: the endpoint of z is m + s z; Euler is of first order, RK4 is there."""
    z, teacher = points(), gaussian()
    wanted = torch.tensor(MEAN).double() + DEVIATION * z
    exactly = teacher.sample(z, steps=200, solver="rk4")
    torch.testing.assert_close(exactly, wanted, rtol=0, atol=1e-8)
    errors = [
        float((integrate(teacher.velocity, z, steps=n) - wanted).abs().max()) for n in (500, 1000)
    ]
    assert errors[1] < 5e-3
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)
    assert float((teacher.sample(z, steps=50, solver="heun") - wanted).abs().max()) < errors[1]


def test_a_mixture_is_the_mean_of_what_its_modes_say() -> None:
    """Against a sum over modes by Bayes' rule, and the modes that samples end in."""
    mixture = ring().double()
    x, t, s = points(5), 0.3, mixture.deviation
    variance = (1 - t) ** 2 * s**2 + t**2
    total = torch.zeros_like(x)
    for row, point in enumerate(x):
        chances = [
            (-((point - (1 - t) * m) ** 2).sum() / (2 * variance)).exp() for m in mixture.means
        ]
        for chance, mean in zip(chances, mixture.means, strict=True):
            away = point - (1 - t) * mean
            clean, noise = mean + (1 - t) * s**2 / variance * away, t / variance * away
            total[row] += chance / sum(chances) * (noise - clean)
    torch.testing.assert_close(mixture(x, torch.full((5,), t).double()), total)
    ends = Teacher(mixture).sample(points(400), steps=100, solver="rk4")
    share, modes = mixture.within(ends)
    assert (modes, share > 0.97) == (8, True)
    own = mixture(x, torch.full((5,), t).double(), torch.zeros(5, dtype=torch.long))
    alone = Teacher.gaussian_mixture(mixture.means[:1], s).velocity(x, t)
    torch.testing.assert_close(own, alone)


def test_guidance_is_inside() -> None:
    """``u_none + w (u_condition - u_none)``, for networks and labels of any kind."""

    def network(x, time, condition):
        return x * (1 + condition.to(x.dtype)[:, None])

    x, labels = points(6), torch.tensor([0, 1, 2, 0, 1, 2])
    teacher = Teacher(network, guidance=3.0, null=9, classes=3)  # type: ignore[arg-type]
    wanted = 10 * x + 3.0 * ((1 + labels[:, None]) * x - 10 * x)
    torch.testing.assert_close(teacher.velocity(x, 0.5, labels), wanted)
    with pytest.raises(ConfigError, match="condition must be given with guidance=3"):
        teacher.velocity(x, 0.5)
    with pytest.raises(ConfigError, match="guidance=3 needs null"):
        Teacher(network, guidance=3.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("read", "is_"),
    [("epsilon", "v_prediction"), ("v_prediction", "epsilon"), ("sample", "epsilon")],
)
def test_a_network_that_is_misread_is_refused(exact, read: str, is_: str) -> None:
    path = VariancePreserving(torch.linspace(0.9999, 0.001, 200, dtype=torch.float64))
    data = 0.25 * points(256)
    model = exact((0.0, 0.0), 0.25, is_, path)
    Teacher(model, is_, path).check(data)
    with pytest.raises(ConfigError, match="do prediction=.*belong to this network"):
        Teacher(model, read, path).check(data)
    with pytest.raises(ConfigError, match="scale of the data"):
        Teacher(model, is_, path).check(8 * data)


def test_what_cannot_be_is_refused() -> None:
    model = ring()
    with pytest.raises(ConfigError, match="unknown prediction 'velocity'"):
        Velocity(model, "velocity")
    with pytest.raises(ConfigError, match="'edm' must have a path of EDM, got Linear"):
        Velocity(model, "edm")
    with pytest.raises(ConfigError, match="alphas_cumprod must be falling"):
        VariancePreserving([0.1, 0.9])
    with pytest.raises(ConfigError, match="alphas_cumprod must be falling.*zero terminal"):
        VariancePreserving([0.9, 0.0])
    with pytest.raises(ConfigError, match="sigma_min, sigma_max and sigma_data"):
        EDM(1.0, 0.5)
    with pytest.raises(ConfigError, match="must have alphas_cumprod or be of flow"):
        path_of(object())
    with pytest.raises(ConfigError, match="steps must be at least 1 and solver one of"):
        integrate(model, points(), steps=0)
    scheduler = diffusers.DDIMScheduler(100)
    network = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4, add_attention=False,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="prediction must be 'epsilon', as the scheduler"):
        Teacher.from_diffusers(network, prediction="sample", scheduler=scheduler)
    with pytest.raises(ConfigError, match="scheduler must say the path"):
        Teacher.from_diffusers(network)
    with pytest.raises(ConfigError, match="multiples of 2"):
        Teacher(network, shape=(1, 7, 8))
    teacher = Teacher.from_diffusers(network, scheduler=scheduler)
    assert (teacher.shape, teacher.prediction, teacher.classes) == ((1, 8, 8), "epsilon", 0)
    assert teacher.velocity(torch.zeros(2, 1, 8, 8), 0.5).shape == (2, 1, 8, 8)


def test_a_network_of_another_shape_is_refused() -> None:
    with pytest.raises(ConfigError, match="must predict .64, 2., like its input, got .64, 1."):
        Velocity(lambda x, *_: x[:, :1])(points(), 0.5)  # type: ignore[arg-type]
