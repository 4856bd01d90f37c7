"""The teacher: a velocity with classifier-free guidance, sampled along its path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from potstill.core import ConfigError, generator
from potstill.flow.teachers.analytic import GaussianMixture
from potstill.flow.teachers.networks import diffusers, is_diffusers
from potstill.flow.teachers.paths import NoisePath, path_of
from potstill.flow.teachers.velocity import Velocity, spread

__all__ = ["Teacher", "drawn", "integrate"]

Solver = Literal["euler", "heun", "rk4"]
ORDERS: dict[str, int] = {"euler": 1, "heun": 2, "rk4": 4}


class Teacher(Velocity):
    """A diffusion or flow model to learn from.

    With guidance w its velocity is ``u_none + w (u_condition - u_none)`` (Ho and Salimans, 2022),
    both in one call of twice the batch.

    Args:
        model: A network of diffusers, or any ``model(x_n, time, condition)``.
        prediction: What it predicts: see `Velocity`.
        path: Its path; the linear one by default.
        guidance: Weight of classifier-free guidance; 1 is none.
        null: Label, or state, that stands for no condition; guidance needs it.
        shape: Shape of an item.
        classes: Number of classes; 0 where there are none.

    Raises:
        ConfigError: What `Velocity` refuses, guidance without ``null``, or items whose sides the
            network cannot halve as often as it does.
    """

    def __init__(
        self,
        model: nn.Module,
        prediction: str = "flow",
        path: NoisePath | None = None,
        *,
        guidance: float = 1.0,
        null: int | Tensor | None = None,
        shape: tuple[int, ...] = (2,),
        classes: int = 0,
    ) -> None:
        super().__init__(model, prediction, path)
        if guidance != 1.0 and null is None:
            raise ConfigError(
                f"Teacher: guidance={guidance:g} needs null, the label that stands for no "
                "condition, got none; pass null= or guidance=1"
            )
        halvings = len(getattr(model, "config", {}).get("down_block_types", (0,))) - 1
        if halvings > 0 and any(side % 2**halvings for side in shape[1:]):
            raise ConfigError(
                f"Teacher: sides must be multiples of {2**halvings}, which the network halves "
                f"{halvings} times, got {list(shape[1:])}; resize or pad the images"
            )
        self.guidance, self.null, self.shape, self.classes = guidance, null, tuple(shape), classes

    @classmethod
    def gaussian_mixture(cls, means: Tensor, deviation: float) -> Teacher:
        """The exact teacher of a mixture of Gaussians; one mode is a Gaussian.

        Args:
            means: Centres, [modes size].
            deviation: Standard deviation of each.
        """
        model = GaussianMixture(means, deviation)
        return cls(model, shape=(means.shape[1],), classes=len(means))

    @classmethod
    def from_diffusers(
        cls,
        model: Any,
        *,
        prediction: str | None = None,
        scheduler: Any = None,
        guidance: float = 1.0,
        null: int | Tensor | None = None,
    ) -> Teacher:
        """A network of diffusers, such as ``UNet2DModel`` or ``DiTTransformer2DModel``.

        Args:
            model: The network, a pipeline, or the folder of a pipeline.
            prediction: What it predicts; as the scheduler says by default.
            scheduler: Says the path; that of the pipeline by default.
            guidance: Weight of classifier-free guidance.
            null: Label that stands for no condition; that after the last class for DiT.

        Raises:
            ConfigError: No scheduler, one that contradicts ``prediction``, or latents: distil
                those with `Teacher` itself, whose items are what the network takes.
            BackendError: diffusers is not installed.
        """
        if not isinstance(model, nn.Module) and not hasattr(model, "components"):
            model = diffusers("Teacher.from_diffusers").DiffusionPipeline.from_pretrained(
                str(model)
            )
        if hasattr(model, "components"):
            parts = model.components
            if parts.get("vae") is not None:
                raise ConfigError(
                    "Teacher.from_diffusers: a pipeline with a VAE works on scaled latents; pass "
                    "its network and scheduler, and encode the data with vae.config.scaling_factor"
                )
            scheduler = scheduler or parts["scheduler"]
            model = parts.get("unet") or parts.get("transformer")
        if scheduler is None:
            raise ConfigError(
                "Teacher.from_diffusers: scheduler must say the path of the network, got none"
            )
        path, said = path_of(scheduler)
        if prediction not in (None, said):
            raise ConfigError(
                f"Teacher.from_diffusers: prediction must be {said!r}, as the scheduler "
                f"{type(scheduler).__name__} says, got {prediction!r}; pass the right scheduler"
            )
        config = model.config
        side = config["sample_size"]
        sides = (side, side) if isinstance(side, int) else tuple(side or (1, 1))
        classes = int(config.get("num_class_embeds") or config.get("num_embeds_ada_norm") or 0)
        if null is None and config.get("num_embeds_ada_norm"):
            null = classes
        return cls(
            model, said, path, guidance=guidance, null=null, classes=classes,
            shape=(config["in_channels"], *sides),
        )  # fmt: skip

    def velocity(self, x: Tensor, t: Tensor | float, condition: Tensor | None = None) -> Tensor:
        """The guided velocity; see `Velocity.velocity`.

        Raises:
            ConfigError: Guidance without a condition.
        """
        if self.guidance == 1.0:
            return super().velocity(x, t, condition)
        if condition is None:
            raise ConfigError(
                f"Teacher: condition must be given with guidance={self.guidance:g}, got none"
            )
        null: Any = self.null
        null = (
            null.to(condition).expand_as(condition) if isinstance(null, Tensor)
            else torch.full_like(condition, null)
        )  # fmt: skip
        times = spread(t, x).flatten().repeat(2)
        both = super().velocity(torch.cat([x, x]), times, torch.cat([null, condition]))
        without, given = both.chunk(2)
        return without + self.guidance * (given - without)

    @torch.no_grad()
    def sample(
        self, noise: Tensor, condition: Tensor | None = None, *, steps: int = 50,
        solver: Solver = "euler",
    ) -> Tensor:  # fmt: skip
        """Follow the path from noise to data.

        Args:
            noise: [items ...].
            condition: Condition of each, or None.
            steps: Equal steps in t; "euler" asks the network once in each, "heun" twice, "rk4"
                four times (twice as often with guidance).
            solver: Method of integration.
        """
        return integrate(self.velocity, noise, condition, steps=steps, solver=solver)

    @torch.no_grad()
    def check(self, clean: Tensor, condition: Tensor | None = None, seed: int = 0) -> None:
        """Compare what the teacher makes of noised data with the best linear denoiser.

        That one needs only mean and variance, so a network that is read as it was trained is not
        much worse at any noise level.

        Args:
            clean: Some real items, on the scale that the network was trained on.
            condition: Condition of each.
            seed: Seed of the noise.

        Raises:
            ConfigError: It is more than 1.5 times worse: another prediction, schedule or scale.
        """
        rng = generator("check", seed)
        noise = torch.randn(clean.shape, generator=rng, dtype=clean.dtype).to(clean.device)
        variance = float(clean.var(0, correction=0).mean()) + 1e-6
        for t in (0.1, 0.5, 0.9):
            x = (1 - t) * clean + t * noise
            error = float((self.denoise(x, t, condition) - clean).square().mean())
            best = variance * t**2 / ((1 - t) ** 2 * variance + t**2)
            if not error <= 1.5 * best:
                raise ConfigError(
                    f"Teacher: denoising at t={t} must be about as good as that of a linear "
                    f"denoiser, a squared error of {best:.3g}, got {error:.3g}; do prediction="
                    f"{self.prediction!r}, the scheduler and the scale of the data (latents: the "
                    "VAE's scaling factor) belong to this network?"
                )

    def extra_repr(self) -> str:
        """Prediction, path and guidance, for ``print``."""
        return f"{self.prediction}, {type(self.path).__name__}, guidance={self.guidance:g}"

    @property
    def from_library(self) -> bool:
        """Whether the network is one of diffusers."""
        return is_diffusers(self.model)


def integrate(
    velocity: Callable[..., Tensor],
    x: Tensor,
    condition: Tensor | None = None,
    *,
    steps: int,
    solver: Solver = "euler",
    start: float = 1.0,
    end: float = 0.0,
) -> Tensor:
    """Integrate ``dx/dt = u(x, t)`` from ``start`` to ``end`` in equal steps.

    Args:
        velocity: ``u(x, t, condition)``.
        x: Where to start, [items ...].
        condition: Condition of each item.
        steps: At least 1.
        solver: Euler, Heun, or the classical Runge-Kutta method of order four.
        start: Time of ``x``.
        end: Time of the result.

    Raises:
        ConfigError: No steps, or an unknown solver.
    """
    if steps < 1 or solver not in ORDERS:
        raise ConfigError(
            f"integrate: steps must be at least 1 and solver one of {', '.join(ORDERS)}, got "
            f"{steps} and {solver!r}"
        )
    h = (end - start) / steps
    for number in range(steps):
        t = start + number * h
        k1 = velocity(x, t, condition)
        if solver == "euler":
            x = x + h * k1
        elif solver == "heun":
            x = x + h / 2 * (k1 + velocity(x + h * k1, t + h, condition))
        else:
            k2 = velocity(x + h / 2 * k1, t + h / 2, condition)
            k3 = velocity(x + h / 2 * k2, t + h / 2, condition)
            k4 = velocity(x + h * k3, t + h, condition)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def drawn(
    shape: tuple[int, ...], classes: int, n: int, seed: int, *parts: int | str
) -> tuple[Tensor, Tensor | None]:
    """Noise [n ...] and classes [n], or None where there are none, of a seed."""
    rng = generator("draw", seed, *parts)
    noise = torch.randn(n, *shape, generator=rng)
    labels = torch.randint(classes, (n,), generator=rng) if classes else None
    return noise, labels


def in_batches(
    noise: Tensor, condition: Tensor | None, size: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Parts of at most ``size`` items."""
    for start in range(0, len(noise), size):
        part = slice(start, start + size)
        yield noise[part], None if condition is None else condition[part]
