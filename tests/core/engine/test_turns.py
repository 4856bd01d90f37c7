"""Turns: a GAN, a critic of a distribution, and bilevel weights in the one loop."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import (
    Batches,
    ConfigError,
    Distiller,
    Engine,
    Objective,
    Run,
    Stage,
    Turn,
    fit,
    unrolled,
)
from potstill.core.engine import Shard, run_ranks

DATA = torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1


def mean(values):
    return values.mean()


class GAN(Distiller):
    """A Wasserstein critic five times, the generator once: terms are means over samples."""

    def __init__(self, student, objective, critic):
        super().__init__(student, objective)
        self.critic = critic

    def forward(self, batch, step):
        real, noise = batch
        fake = self.student(noise)
        if self.turn == "critic":
            gap = self.critic(fake) - self.critic(real)
            return self.objective(step, gap=(gap,), size=(self.critic(real).square(),))
        return self.objective(step, fool=(-self.critic(fake),))


def networks():
    torch.manual_seed(1)
    generator = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    critic = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    return generator, critic


def gan():
    generator, critic = networks()
    turns = (
        Turn("critic", ["critic.*"], Objective(gap=(1.0, mean), size=(0.1, mean)),
             optimizer=torch.optim.RMSprop, lr=0.02, times=5),
        Turn("student", ["student.*"], Objective(fool=(1.0, mean)), lr=0.01),
    )  # fmt: skip
    return GAN(generator, Objective(fool=(1.0, mean)), critic), (Stage(share=1.0, turns=turns),)


def pairs(batch=8):
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return Batches(list(zip(DATA, noise, strict=True)), batch)


def train_gan(batch=8, run=None, steps=20, progress=False):
    distiller, stages = gan()
    with Engine(device="cpu") as engine:
        history = fit(
            distiller, pairs(batch), steps=steps, stages=stages, run=run, engine=engine,
            progress=progress,
        )  # fmt: skip
    return {k: v.clone() for k, v in distiller.state_dict().items()}, history


def test_a_gan_is_the_loop_one_would_write():
    generator, critic = networks()
    of_critic = torch.optim.RMSprop(critic.parameters(), lr=0.02)
    of_generator = torch.optim.Adam(generator.parameters(), lr=0.01)
    batches = pairs().stream(0, Shard())
    for _ in range(20):
        for _ in range(5):
            real, noise = next(batches)
            real_score = critic(real)
            loss = (critic(generator(noise).detach()) - real_score).mean()
            loss = loss + 0.1 * real_score.square().mean()
            of_critic.zero_grad()
            loss.backward()
            of_critic.step()
        real, noise = next(batches)
        of_generator.zero_grad()
        (-critic(generator(noise)).mean()).backward()
        of_generator.step()

    state, history = train_gan()
    for prefix, module in (("student.", generator), ("critic.", critic)):
        for name, value in module.state_dict().items():
            torch.testing.assert_close(state[prefix + name], value, rtol=0, atol=1e-9)
    assert {"critic/gap", "critic/loss", "critic/lr", "student/fool", "seconds"} <= set(history[0])
    assert "loss" not in history[0]


class Stop(Exception):
    pass


@pytest.mark.parametrize("killed", [1, 7, 13])
def test_a_run_of_turns_that_was_killed_goes_on_bit_for_bit(tmp_path, killed):
    whole, _ = train_gan()

    def kill(row, share):
        if row["step"] == killed:
            raise Stop

    with pytest.raises(Stop):
        train_gan(run=Run(tmp_path, every=1), progress=kill)
    state, history = train_gan(run=tmp_path)
    assert all(torch.equal(state[name], whole[name]) for name in whole)
    assert len(history) == 20


def test_a_kill_between_two_turns_of_a_step_repeats_the_step(tmp_path):
    whole, _ = train_gan()
    distiller, stages = gan()
    forward, calls = distiller.forward, []

    def failing(batch, step):
        calls.append(distiller.turn)
        if len(calls) == 6 * 7 + 4:  # in the eighth step, between updates of the critic
            raise Stop
        return forward(batch, step)

    distiller.forward = failing
    with pytest.raises(Stop):
        fit(distiller, pairs(), steps=20, stages=stages, run=Run(tmp_path, every=1), progress=False)
    assert calls[:7] == ["critic"] * 5 + ["student", "critic"]
    state, _ = train_gan(run=tmp_path)
    assert all(torch.equal(state[name], whole[name]) for name in whole)


@pytest.mark.dist
def test_two_processes_are_one_gan():
    alone, _ = train_gan(8)
    for state, _ in run_ranks(train_gan, 2, 4):
        for name, value in alone.items():
            torch.testing.assert_close(state[name], value, rtol=0, atol=1e-6)


# --- a DMD-like critic: a fake-score network that follows the student -----------------------------


class Matching(Distiller):
    """Distribution matching: a fake network follows the student, the student leaves it behind.

    Both turns train the shared input scale, which is what makes them share a parameter.
    """

    def __init__(self, student, objective, teacher, fake):
        super().__init__(student, objective, teacher)
        self.fake, self.scale = fake, nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, batch, step):
        noise = batch
        x = self.student(noise)
        if self.turn == "fake":
            return self.objective(step, denoise=(self.fake(self.scale * x.detach()), x.detach()))
        with torch.no_grad():
            slope = self.fake(self.scale * x) - self.teacher(x)
        return self.objective(step, match=(self.scale * x, x.detach() - slope))


def matching(batch=8, run=None, steps=20, progress=False):
    torch.manual_seed(3)
    student, teacher, fake = (nn.Linear(2, 2).double() for _ in range(3))
    distiller = Matching(student, Objective(match=(1.0, F.mse_loss)), teacher, fake)
    turns = (
        Turn("fake", ["fake.*", "scale"], Objective(denoise=(1.0, F.mse_loss)), times=2),
        Turn("student", lambda name: name.startswith(("student.", "scale")), every=2),
    )
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with Engine(device="cpu") as engine:
        fit(
            distiller, Batches(list(noise), batch), steps=steps, lr=0.02, clip=1.0,
            stages=(Stage(share=1.0, turns=turns),), run=run, engine=engine, progress=progress,
        )  # fmt: skip
    return {k: v.clone() for k, v in distiller.state_dict().items()}


@pytest.mark.dist
def test_two_processes_are_one_matching_with_a_shared_parameter():
    alone = matching(8)
    assert alone["scale"] != 1
    for state in run_ranks(matching, 2, 4):
        for name, value in alone.items():
            torch.testing.assert_close(state[name], value, rtol=0, atol=1e-6)


def test_a_killed_matching_goes_on_bit_for_bit(tmp_path):
    whole = matching()

    def kill(row, share):
        if row["step"] == 8:
            raise Stop

    with pytest.raises(Stop):
        matching(run=Run(tmp_path, every=3), progress=kill)
    state = matching(run=tmp_path)
    assert all(torch.equal(state[name], whole[name]) for name in whole)


# --- bilevel: weights of the training samples, learned on validation data ------------------------


class Reweighted(Distiller):
    """Each training sample has a weight; the weights learn what one unrolled step does."""

    def __init__(self, student, objective, samples):
        super().__init__(student, objective)
        self.weights = nn.Parameter(torch.zeros(samples, dtype=torch.float64))

    def lower(self, forward, x, y, index):
        share = torch.sigmoid(self.weights[index])
        return (share * (forward(x) - y).square().mean(1)).mean()

    def forward(self, batch, step):
        x, y, index, x_val, y_val = batch
        if self.turn == "weights":
            x, y, index = map(of_all_processes, (x, y, index))  # one inner step, of the whole batch
            moved = unrolled(self.student, lambda f: self.lower(f, x, y, index), lr=0.1)
            predicted = torch.func.functional_call(self.student, moved, (x_val,))
            return self.objective(step, upper=(predicted, y_val))
        return self.objective(step, lower=(self.lower(self.student, x, y, index),))


def of_all_processes(values):
    if not torch.distributed.is_initialized():
        return values
    parts = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, values)
    return torch.cat(parts)


def bilevel(batch=8, run=None, progress=False):
    torch.manual_seed(4)
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(32, 2, generator=draw, dtype=torch.float64)
    y = x[:, :1].clone()
    y[::2] = 5.0  # half of the labels are wrong
    x_val = torch.randn(32, 2, generator=draw, dtype=torch.float64)
    items = list(zip(x, y, torch.arange(32), x_val, x_val[:, :1], strict=True))
    distiller = Reweighted(
        nn.Linear(2, 1).double(), Objective(lower=(1.0, lambda value: value)), 32
    )
    turns = (
        Turn("weights", ["weights"], Objective(upper=(1.0, F.mse_loss)), lr=0.1),
        Turn("student", ["student.*"]),
    )
    with Engine(device="cpu", find_unused=True) as engine:
        fit(
            distiller, Batches(items, batch), steps=40, lr=0.05,
            stages=(Stage(share=1.0, turns=turns),), run=run, engine=engine, progress=progress,
        )  # fmt: skip
    return {k: v.clone() for k, v in distiller.state_dict().items()}


def test_bilevel_weights_find_the_wrong_labels_and_survive_a_kill(tmp_path):
    whole = bilevel()
    assert whole["weights"][::2].mean() < -0.5
    assert whole["weights"][1::2].mean() > 0.5

    def kill(row, share):
        if row["step"] == 21:
            raise Stop

    with pytest.raises(Stop):
        bilevel(run=Run(tmp_path, every=4), progress=kill)
    state = bilevel(run=tmp_path)
    assert all(torch.equal(state[name], whole[name]) for name in whole)


def killed_bilevel(batch, folder):
    def kill(row, share):
        if row["step"] == 21:
            raise Stop

    # The main process sees the progress and stops; the other one loses its peer.
    with pytest.raises((Stop, RuntimeError)):
        bilevel(batch, Run(folder, every=4), kill)


@pytest.mark.dist
def test_two_processes_are_one_bilevel_and_survive_a_kill(tmp_path):
    alone = bilevel(8)
    whole, _ = run_ranks(bilevel, 2, 4)
    for name, value in alone.items():
        torch.testing.assert_close(whole[name], value, rtol=0, atol=1e-6)
    run_ranks(killed_bilevel, 2, 4, tmp_path)  # an engine that closed took the group with it
    for state in run_ranks(bilevel, 2, 4, tmp_path):
        assert all(torch.equal(state[name], whole[name]) for name in whole)


# --- what turns leave alone -----------------------------------------------------------------------


def test_the_distiller_comes_back_as_it_was():
    distiller, stages = gan()
    own = distiller.objective
    frozen = distiller.critic[0].bias.requires_grad_(False)
    before = copy.deepcopy(frozen)
    fit(distiller, pairs(), steps=2, stages=stages, progress=False)
    assert distiller.objective is own
    assert distiller.turn == ""
    assert torch.equal(frozen, before)
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in distiller.student.parameters())


def test_epochs_count_the_batches_that_turns_take():
    distiller, stages = gan()
    history = fit(distiller, pairs(), epochs=6, stages=stages, progress=False)  # 8 an epoch, 6 each
    assert len(history) == 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Turn("", ["*"]), "name must be a word"),
        (lambda: Turn("a/b", ["*"]), "name must be a word"),
        (lambda: Turn("a", "student.*"), "must be a sequence of patterns"),
        (lambda: Turn("a", ["*"], times=0), "at least 1"),
        (lambda: Stage(share=1.0, turns=(Turn("a", ["*"]), Turn("a", ["*"]))), "different names"),
        (
            lambda: fit(
                gan()[0], pairs(), steps=1, progress=False,
                stages=(Stage(share=1.0, turns=(Turn("x", ["nothing.*"]),)),),
            ),
            "stage 0, turn 'x' has nothing to train",
        ),
    ],
)  # fmt: skip
def test_turns_that_cannot_work_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
