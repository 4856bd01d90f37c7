"""The five domain programs on tiny models: the proof that one vocabulary carries all domains.

Each distiller is what a domain writes, at most a dozen lines. The models around them are the
smallest that have the shape of the real ones; the packages have the real ones. Everything is
float64, so that a curve means the same on every machine.
"""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import Distiller, Frozen, Objective, after, decay, fit, tap

STEPS = 20


# --- graph: GNN -> MLP. The teacher is a column of the datum, written once. ----------------------


class Graph(NamedTuple):
    x: Tensor  # [N F]
    y: Tensor  # [N]
    edge_index: Tensor  # [2 E]
    train_mask: Tensor  # [N]
    z_teacher: Tensor  # [N C]


class GraphToMLP(Distiller):
    def forward(self, data, step):
        z = self.student(data.x)
        seen = data.train_mask
        return self.objective(
            step,
            task=(z[seen], data.y[seen]),
            low=(z, data.z_teacher, data.edge_index),
            high=(z, data.z_teacher, data.edge_index),
        )


def low_frequency(z, t, edge_index):
    i, j = edge_index
    return F.kl_div(z.log_softmax(1)[i], t.softmax(1)[j], reduction="batchmean")


def high_frequency(z, t, edge_index, tau=1.5):
    i, j = edge_index
    d_s, d_t = (z[i] - z[j]).abs() / tau, (t[i] - t[j]).abs() / tau
    return F.kl_div(d_s.log_softmax(1), d_t.softmax(1), reduction="batchmean")


def graph():
    x, y = torch.randn(30, 6), torch.arange(30) % 3
    edge_index = torch.randint(30, (2, 90))
    gnn = nn.Linear(6, 3)
    z_teacher = Frozen(gnn)(x + x[edge_index[0]][:30])
    data = Graph(x, y, edge_index, torch.arange(30) < 9, z_teacher)
    mlp = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
    objective = Objective(
        task=(0.1, F.cross_entropy), low=(0.9, low_frequency), high=(0.9, high_frequency)
    )
    return GraphToMLP(mlp, objective), [data]


# --- nerf: field -> field. One set of samples, both fields; stages are schedules. ----------------


class FieldOut(NamedTuple):
    feature: Tensor  # [M D]
    log_density: Tensor  # [M]
    rgb: Tensor  # [M 3]


class Field(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.trunk, self.head = nn.Linear(6, width), nn.Linear(width, 8 + 1 + 3)

    def forward(self, p, v):
        h = self.head(torch.tanh(self.trunk(torch.cat([p, v], -1))))
        return FieldOut(h[:, :8], h[:, 8], h[:, 9:].sigmoid())


def render(field, dt):
    alpha = 1 - torch.exp(-field.log_density.exp().view(dt.shape) * dt)  # [R S]
    ahead = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha[:, :-1]], 1), 1)
    return ((alpha * ahead)[..., None] * field.rgb.view(*dt.shape, 3)).sum(1)  # [R 3]


class FieldToField(Distiller):
    def forward(self, rays, step):
        p, v, dt = rays
        s, t = self.student(p, v), self.teacher(p, v)
        tensors = dict(
            feature=(s.feature, t.feature),
            density=(s.log_density, t.log_density),
            color=(s.rgb, t.rgb),
        )
        if "pixel" in self.objective.at(step):
            tensors["pixel"] = (render(s, dt), render(t, dt))
        return self.objective(step, tensors)


def draw_rays(step, rank, world):
    rng = torch.Generator().manual_seed(step * world + rank)
    random = partial(torch.rand, generator=rng, dtype=torch.float64)
    return random(64, 3), random(64, 3), random(8, 8)


def nerf():
    objective = Objective(
        feature=(decay(2e-1, 0.95), F.mse_loss),
        density=(after(5, 2e-1), F.mse_loss),
        color=(after(5, 2e-1), F.mse_loss),
        pixel=(after(10, 1.0), F.mse_loss),
    )
    return FieldToField(Field(12), objective, teacher=Field(16)), draw_rays


# --- mae: features of a large transformer into a small one, under one mask. ----------------------


class Encoder(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.embed = nn.Linear(12, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.decode = nn.Linear(width, 12)

    def forward(self, patches, keep):
        x = self.embed(patches.gather(1, keep[..., None].expand(-1, -1, 12)))
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.decode(x.mean(1, keepdim=True)).expand_as(patches)


class Projected(nn.Module):
    def __init__(self, projector, criterion):
        super().__init__()
        self.projector, self.criterion = projector, criterion

    def forward(self, s, t):
        return self.criterion(self.projector(s), t)


class MaskedToMasked(Distiller):
    tap_s, tap_t = "blocks.1", "blocks.2"

    def forward(self, batch, step):
        patches, keep, mask = batch
        with tap(self.student, self.tap_s) as h_s:
            pixels = self.student(patches, keep)
        with tap(self.teacher, self.tap_t, stop=True) as h_t:
            self.teacher(patches, keep)
        return self.objective(
            step,
            pixels=(pixels, patches, mask),
            feature=(h_s[self.tap_s].output, h_t[self.tap_t].output),
        )


def masked_mse(x, y, mask):
    return (((x - y) ** 2).mean(-1) * mask).sum() / mask.sum()


def mae():
    patches = torch.randn(4, 9, 12)
    order = torch.rand(4, 9).argsort(1)
    mask = torch.ones(4, 9).scatter(1, order[:, :3], 0.0)
    objective = Objective(
        pixels=(1.0, masked_mse), feature=(1.0, Projected(nn.Linear(6, 8), F.l1_loss))
    )
    distiller = MaskedToMasked(Encoder(6, 2), objective, teacher=Encoder(8, 4))
    return distiller, [(patches, order[:, :3], mask)]


# --- sr: a large upscaler into a light one. ------------------------------------------------------


def upscaler(width):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 12, 1), nn.PixelShuffle(2)
    )


class UpscalerToUpscaler(Distiller):
    def forward(self, batch, step):
        lr, hr = batch
        sr = self.student(lr)
        tensors = dict(task=(sr, hr))
        if "output" in self.objective.at(step):
            tensors["output"] = (sr, self.teacher(lr))
        return self.objective(step, tensors)


def sr():
    hr = torch.rand(4, 3, 12, 12)
    objective = Objective(task=(1.0, F.l1_loss), output=(after(3, 0.5), F.l1_loss))
    distiller = UpscalerToUpscaler(upscaler(4), objective, teacher=upscaler(8))
    return distiller, [(F.avg_pool2d(hr, 2), hr)]


# --- acm: module by module. The student is never run end to end. ---------------------------------


class Learners(nn.Module):
    """K learners whose ordered partial sums are the outputs per budget: [B D] -> [B K+1 D]."""

    def __init__(self, width, learners):
        super().__init__()
        self.learners = nn.ModuleList(nn.Linear(width, width) for _ in range(learners))

    def forward(self, x):
        outputs = torch.stack([torch.zeros_like(x)] + [net(x) for net in self.learners], 1)
        return outputs.cumsum(1)


def every_budget(outputs, target):
    return F.mse_loss(outputs[:, 1:], target[:, None].expand_as(outputs[:, 1:]))


class ModuleToModule(Distiller):
    def forward(self, images, step):
        names = self.objective.names
        with tap(self.teacher, *names) as t:
            self.teacher(images)
        return self.objective(
            step, {n: (self.student.get_submodule(n)(t[n].input), t[n].output) for n in names}
        )


def acm():
    def net(make):
        return nn.Sequential(*(nn.Sequential(nn.LayerNorm(5), make()) for _ in range(2)))

    teacher = net(lambda: nn.Linear(5, 5))
    student = net(lambda: Learners(5, 3))
    objective = Objective.each(["0.1", "1.1"], 1.0, every_budget)
    return ModuleToModule(student, objective, teacher=teacher), [torch.randn(16, 5)]


PROGRAMS = {"acm": acm, "graph": graph, "mae": mae, "nerf": nerf, "sr": sr}


def build(name):
    """The distiller and the batches of a program, in float64, the same every time."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        return PROGRAMS[name]()
    finally:
        torch.set_default_dtype(before)


def curve(name):
    """One row a step: the total and the terms, without times."""
    distiller, batches = build(name)
    rows = fit(distiller, batches, steps=STEPS, lr=1e-2, progress=False)
    return [{k: v for k, v in row.items() if k not in ("seconds", "lr")} for row in rows]
