"""Randomness as a pure function of what it is for, so that nothing about it has to be saved.

PyTorch's CPU generator takes 32 bits of its seed, so keys are hashed rather than added up: streams
of neighbouring seeds, steps and ranks are unrelated.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

__all__ = ["Draws", "common_draws", "generator", "kept_streams", "key", "seed_all", "seeded"]


def key(*parts: int | str) -> int:
    """Hash ``parts`` to 32 bits, the same on every machine and in every process.

    Example:
        >>> key(0, 1) == key(0, 1), key(0, 1) == key(1, 0)
        (True, False)
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator whose stream is a pure function of ``parts``."""
    return torch.Generator().manual_seed(key(*parts))


def seed_all(*parts: int | str) -> None:
    """Set the global streams of torch (all devices in use), numpy and python from ``parts``."""
    value = key(*parts)
    # Not torch.manual_seed: where CUDA was never used, that formats a stack trace at each call.
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(value)
    np.random.seed(value)  # noqa: NPY002  (the global stream is what third-party code draws from)
    random.seed(value)


@contextmanager
def kept_streams(devices: bool = True) -> Iterator[None]:
    """Give the global streams of torch, numpy and python back after a block, and the common one.

    Args:
        devices: Those of all devices in use too, which waits for them.
    """
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if devices and torch.cuda.is_initialized() else []
    apple = devices and torch.backends.mps.is_available()
    mps = torch.mps.get_rng_state() if apple else None
    common = _Common.now
    try:
        yield
    finally:
        _Common.now = common
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Set the global streams of the CPU from ``parts`` in a block, and give them back after it."""
    value = key(*parts)
    with kept_streams(devices=False):
        torch.default_generator.manual_seed(value)
        np.random.seed(value)  # noqa: NPY002
        random.seed(value)
        yield


class Draws(NamedTuple):
    """Random numbers of a step as one process with the batches of all would draw them.

    Attributes:
        generator: The stream of all processes; None is the global one, where there is one process.
        world: Number of processes whose batches are drawn.
        mine: Rows of what is drawn that belong to the batch of this process.

    Example:
        >>> def noise(x):
        ...     draws = common_draws(x.device)
        ...     shape = draws.world * len(x), *x.shape[1:]
        ...     return torch.rand(shape, generator=draws.generator, device=x.device)[draws.mine]
        >>> noise(torch.zeros(4, 2)).shape
        torch.Size([4, 2])
    """

    generator: torch.Generator | None = None
    world: int = 1
    mine: slice = slice(None)


class _Common:
    """Rank, world, seed and streams of the step that is in progress."""

    now: tuple[int, int, int, dict[torch.device, torch.Generator]] = (0, 1, 0, {})


def common_draws(device: torch.device | str = "cpu") -> Draws:
    """How to draw in a step of `fit` so that it does not matter how many processes there are.

    Draws in which the rows of a batch come first are made for the batches of all processes, of
    which process r takes every W-th row from the r-th. Outside of `fit`, and with one process,
    this is the global stream.

    Args:
        device: Device of the draws.
    """
    rank, world, seed, streams = _Common.now
    if world == 1:
        return Draws()
    device = torch.device(device)
    if device not in streams:
        streams[device] = torch.Generator(device).manual_seed(seed)
    return Draws(streams[device], world, slice(rank, None, world))


def seed_step(seed: int, step: int, rank: int, world: int) -> None:
    """Set the global streams of process ``rank`` for a step, and the one that all have."""
    seed_all("step", seed, step, rank)
    _Common.now = rank, world, key("step", seed, step, 0), {}
