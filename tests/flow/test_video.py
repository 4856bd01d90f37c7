"""The buffer against Euler of each frame, and motion against what it is made of."""

import copy
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import ConfigError, Training, seed_all
from potstill.core.engine import fit_with
from potstill.flow import Batch, GaussianMixture, Items, Prior, Student, Teacher, integrate
from potstill.flow.video import (
    Buffer,
    ClipNet,
    Merging,
    MotionConsistency,
    Streaming,
    motion,
    moving_digits,
    pseudo_huber,
    stream,
)


class Frames:
    """Exact velocity of frames that are independent; counts its calls."""

    def __init__(self) -> None:
        self.gaussian = GaussianMixture(torch.tensor([[1.0, -2.0]]).double(), 0.5)
        self.calls = 0

    def __call__(self, x, t, condition=None):
        self.calls += 1
        flat = self.gaussian(x.flatten(0, 1), t.flatten().to(x))
        return flat.view_as(x)


@pytest.mark.parametrize(
    ("reference", "chunks", "frames", "steps"),
    [(0, 1, 4, 8), (0, 4, 1, 2), (2, 3, 2, 4), (1, 8, 2, 1), (3, 2, 3, 5)],
)
def test_streaming_is_euler_of_each_frame(reference, chunks, frames, steps) -> None:
    """With frames that do not know each other, to 1e-12, at ``steps`` evaluations a chunk."""
    buffer, velocity = Buffer(chunks, frames, steps, reference), Frames()
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(9, 3, frames, 2, generator=rng, dtype=torch.float64)
    chunks_made = stream(velocity, buffer, lambda n: noise[n])
    single = Frames()
    for number, made in enumerate(islice(chunks_made, 9 - chunks)):
        wanted = integrate(
            lambda x, t, c: single(x, torch.full(x.shape[:2], t, dtype=x.dtype)), noise[number],
            steps=steps * chunks,
        )  # fmt: skip
        torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-12)
        assert velocity.calls == steps * (chunks + number)
    assert len(buffer) == reference + chunks * frames


def test_training_times_are_those_of_streaming() -> None:
    buffer = Buffer(4, 2, 3, reference=2)
    times = buffer.draw(torch.zeros(500, 10))
    assert bool((times[:, :2] == 0).all())
    for chunk in range(4):
        own = times[:, 2 + 2 * chunk : 4 + 2 * chunk]
        assert torch.equal(own[:, 0], own[:, 1])
        assert chunk / 4 <= float(own.min()) < float(own.max()) <= (chunk + 1) / 4
    assert torch.equal(buffer.times(0)[2:].unique(), torch.tensor([0.25, 0.5, 0.75, 1]).double())


def test_motion_is_what_changes() -> None:
    still = torch.rand(2, 1, 3).expand(2, 8, 3)
    assert float(motion(still, "diff").abs().max()) == 0
    torch.testing.assert_close(motion(still, "low"), still)
    clip = torch.rand(2, 7, 3, dtype=torch.float64)
    torch.testing.assert_close(motion(clip, "low") + motion(clip, "high"), clip)
    assert motion(clip, "raw") is clip
    with pytest.raises(ConfigError, match="unknown kind 'flow'"):
        motion(clip, "flow")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="two frames or more, got 1"):
        motion(clip[:, :1])


def test_digits_move_and_stay_inside() -> None:
    image = torch.ones(1, 1, 3, 3)
    clips = moving_digits(image, 5, 20, 8)
    assert clips.shape == (5, 20, 1, 8, 8)
    assert torch.equal((clips > 0).flatten(2).sum(2), torch.full((5, 20), 9))
    assert all(len(clip.unique(dim=0)) > 2 for clip in clips)
    assert torch.equal(clips, moving_digits(image, 5, 20, 8))
    with pytest.raises(ConfigError, match="size must be more than 3"):
        moving_digits(image, 1, 2, 3)
    with pytest.raises(ConfigError, match="chunks, frames and steps must be at least 1"):
        Buffer(0)


def clips(n: int = 6) -> torch.Tensor:
    return moving_digits(torch.ones(1, 1, 3, 3), n, 6, 8)


def test_merged_steps_are_the_mean_of_the_small_ones() -> None:
    """A student that is the teacher has no residual with one step, and one with several."""
    torch.manual_seed(0)
    net = ClipNet(1, 8, 1)
    for steps, zero in ((1, True), (4, False)):
        distiller = Merging(copy.deepcopy(net), net, Buffer(2, 2, steps, reference=2))
        losses = distiller(Batch(torch.randn(6, 6, 1, 8, 8), real=clips()), 0)
        assert (float(losses.total.detach()) == 0) == zero


class Merged(nn.Module):
    """The student that merging asks for: the mean of the teacher's small steps at each level."""

    def __init__(self, teacher: Frames, buffer: Buffer) -> None:
        super().__init__()
        self.teacher, self.buffer = teacher, buffer
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x, t, condition=None):
        parts, k = self.buffer.chunks * self.buffer.steps, self.buffer.reference
        begin, t = x, t.to(x)
        for _ in range(self.buffer.steps):
            u = self.teacher(x, t)
            moved, later = x - u / parts, t - 1 / parts
            x = torch.cat([begin[:, :k], moved[:, k:]], 1)
            t = torch.cat([t[:, :k], later[:, k:]], 1)
        return (begin - x) * self.buffer.chunks + self.unused


def test_the_exact_merged_student_streams_what_the_teacher_does() -> None:
    """Its loss is zero, and one evaluation a chunk gives the teacher's frames, to 1e-12."""
    many, one = Buffer(3, 2, 4, reference=2), Buffer(3, 2, 1, reference=2)
    exact = Merged(Frames(), many)
    rng = torch.Generator().manual_seed(0)
    real, z = torch.randn(2, 5, 8, 2, generator=rng, dtype=torch.float64)
    losses = Merging(exact, Asked(), many)(Batch(z, real=real), 0)
    assert float(losses.total.detach()) == pytest.approx(0, abs=1e-24)
    noise = torch.randn(9, 3, 2, 2, generator=rng, dtype=torch.float64)
    ours, wanted = (
        list(islice(stream(model, buffer, lambda n: noise[n]), 4))
        for model, buffer in ((exact, one), (Frames(), many))
    )
    for made, chunk in zip(ours, wanted, strict=True):
        torch.testing.assert_close(made.detach(), chunk, rtol=1e-12, atol=1e-12)


class Asked(nn.Module):
    """The exact velocity of frames as a module."""

    def forward(self, x, t, condition=None):
        return Frames()(x, t, condition)


def test_clips_are_learned_and_their_steps_merged() -> None:
    """The merged student makes chunks of the teacher's in a quarter of its evaluations."""
    seed_all(0)
    data, training = Items(clips(64)), Training(steps=60, lr=3e-3, final=0.0, device="cpu")
    net, mixed = ClipNet(1, 8, 1), (Buffer(2, 2, reference=2), Buffer(4, 1, reference=2))
    source = Prior((6, 1, 8, 8), 16, data=data)
    rows = fit_with(training, Streaming(net, *mixed), source, progress=False)
    assert rows[-1]["denoise"] < 0.7 * rows[0]["denoise"]
    student, many = copy.deepcopy(net), Buffer(2, 2, 4, reference=2)
    rows = fit_with(training, Merging(student, net, many), source, progress=False)
    assert rows[-1]["mean"] < rows[0]["mean"]
    one, made = Buffer(2, 2, 1, reference=2), {}
    for name, model, buffer in (("s", student, one), ("t", net, many), ("o", net, one)):
        noise = torch.randn(9, 2, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            made[name] = next(stream(model, buffer, lambda n, z=noise: z[n]))
    assert F.mse_loss(made["s"], made["t"]) < F.mse_loss(made["o"], made["t"])


@pytest.mark.parametrize("kind", ["raw", "diff", "low", "high", "learn"])
def test_consistency_of_motion(kind: str) -> None:
    torch.manual_seed(0)
    net = ClipNet(1, 8, 1)
    teacher = Teacher(net, shape=(6, 1, 8, 8))
    student = Student(teacher.trainable(), shape=teacher.shape)
    distiller = MotionConsistency(student, teacher, kind=kind)  # type: ignore[arg-type]
    if kind == "learn":
        assert torch.equal(distiller.head(clips()), clips())
        frozen = copy.deepcopy(distiller.still.state_dict())
    source = Prior((6, 1, 8, 8), 4, data=Items(clips(8)))
    rows = fit_with(Training(steps=2, device="cpu"), distiller, source, progress=False)
    assert rows[-1]["motion"] >= 0
    if kind == "learn":
        assert all(torch.equal(v, frozen[n]) for n, v in distiller.still.state_dict().items())
        assert distiller.head.layers[-1].weight.any()


def test_options_of_video_that_cannot_be_are_refused() -> None:
    net = ClipNet(1, 8, 1)
    with pytest.raises(ConfigError, match="one number of frames, got .4, 5."):
        Streaming(net, Buffer(4), Buffer(5))
    teacher = Teacher(net, shape=(6, 1, 8, 8))
    with pytest.raises(ConfigError, match="mixed must be in .0, 1."):
        MotionConsistency(Student(teacher.trainable()), teacher, mixed=2.0)
    assert float(pseudo_huber(torch.ones(3), torch.ones(3))) == 0
    assert float(pseudo_huber(torch.ones(3), torch.zeros(3))) == pytest.approx(0.999, abs=1e-5)
