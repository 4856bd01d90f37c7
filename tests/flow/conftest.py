"""Exact networks in float64, and tiny ones."""

import pytest
import torch
from torch import nn

from potstill.flow import Data, GaussianMixture, Items, Velocity
from potstill.flow.teachers.velocity import spread


class Exact(nn.Module):
    """A Gaussian's closed form, as a network of any prediction on any path would say it."""

    def __init__(self, mean, deviation, prediction, path) -> None:
        super().__init__()
        self.gaussian = Velocity(GaussianMixture(torch.tensor([mean]).double(), deviation))
        self.prediction, self.path = prediction, path

    def forward(self, x, time, condition=None):
        t = self.linear(time.double())
        native = self.path.at(spread(t, x))
        if self.prediction == "edm":
            sigma, data = native.sigma, self.path.sigma_data
            noised = x * (sigma**2 + data**2).sqrt()
        else:
            noised = x
        point = noised / (native.alpha + native.sigma)
        clean = self.gaussian.denoise(point, t)
        noise = self.gaussian.noise(point, t)
        if self.prediction == "edm":
            total = sigma**2 + data**2
            return (clean - data**2 / total * noised) * total.sqrt() / (sigma * data)
        return {
            "flow": noise - clean, "epsilon": noise, "sample": clean,
            "v_prediction": native.alpha * noise - native.sigma * clean,
        }[self.prediction]  # fmt: skip

    def linear(self, time):
        """The linear time of the network's own."""
        if hasattr(self.path, "linear_times"):
            return self.path.linear_times()[time.round().long()]
        if hasattr(self.path, "sigma_data"):
            sigma = (4 * time).exp() if self.prediction == "edm" else time
            return sigma / (1 + sigma)
        return time / self.path.scale


@pytest.fixture(scope="session")
def exact():
    return Exact


@pytest.fixture(scope="session")
def digits() -> Data:
    """60 images of 1x8x8 in three classes: a bright row each."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(20)
    images = torch.full((60, 1, 8, 8), -1.0)
    images[torch.arange(60), 0, 2 * labels + 1] = 1.0
    images = (images + 0.1 * torch.randn(images.shape, generator=rng)).clamp(-1, 1)
    return Data(Items(images, labels), ("one", "three", "five"))
