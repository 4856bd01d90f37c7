"""Pre-training through the engine: reproducible, resumable, in several processes."""

from __future__ import annotations

import os
import signal

import pytest
import timm
import torch
from safetensors.torch import load_file

from potstill.core import Batches, Engine, Run, cosine, fit
from potstill.core.engine.ranks import run_ranks
from potstill.core.errors import Interrupted, NonFiniteError
from potstill.mae import MaskedAutoencoder, MaskedToMasked, MaskPlan, RandomMasking, adamw


class Pictures:
    """Eight fixed images."""

    def __init__(self, poison=None):
        self.images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        if poison is not None:
            self.images[poison, 0, 3, 3] = float("nan")

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def same_for_all(batch, grid, device=None, generator=None):
    """A plan that does not depend on the process that draws it."""
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1)).expand(batch, -1)
    return MaskPlan(order[:, :4], order[:, 4:])


SMALL = dict(img_size=64, embed_dim=48, num_heads=3, depth=2, num_classes=0)


def small_vit(seed=0, **options):
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", **{**SMALL, **options})


def make(decoder=True, masking=None, **options):
    student = MaskedAutoencoder(small_vit(), {"depth": 1, "width": 32} if decoder else None)
    return MaskedToMasked(student, small_vit(seed=1, embed_dim=72), masking=masking, **options)


def train(steps=6, batch=4, progress=False, poison=None, **options):
    distiller = make(**{k: options.pop(k) for k in ("decoder", "masking", "alpha") if k in options})
    history = fit(
        distiller,
        Batches(Pictures(poison), batch),
        steps=steps,
        lr=1e-3,
        optimizer=adamw(),
        schedule=cosine(warmup=0.2),
        progress=progress,
        **options,
    )
    return distiller, history


def losses(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def test_same_seed_same_curve():
    (one, a), (two, b) = train(), train()
    assert losses(a) == losses(b)
    torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0)
    assert losses(train(seed=1)[1]) != losses(a)


def test_all_terms_fall():
    _, history = train(steps=30)
    for name in ("pixels", "align/1"):
        assert history[-1][name] < history[0][name]


def test_killed_run_resumes_to_the_same_curve(tmp_path):
    whole, expected = train(steps=6)

    def stop_after_three(row, share):
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(steps=6, run=Run(tmp_path / "run"), progress=stop_after_three)
    resumed, history = train(steps=6, run=Run(tmp_path / "run"))
    assert losses(history) == losses(expected)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    saved = load_file(tmp_path / "run" / "student.safetensors")
    torch.testing.assert_close(saved, dict(whole.student.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("term", ["pixels", "align/1"])
def test_non_finite_term_is_caught_whichever_it_is(term):
    distiller = make()
    module = (
        distiller.student.decoder.head
        if term == "pixels"
        else distiller.objective.module("align/1").projector[0]
    )
    torch.nn.init.constant_(module.bias, float("inf"))
    with pytest.raises(NonFiniteError, match=rf"at step 0, from {term} \(.*; samples \["):
        fit(distiller, Batches(Pictures(), 4), steps=1, progress=False)


def test_bad_image_is_named():
    """A NaN pixel reaches both terms; the message lists the samples of the batch."""
    with pytest.raises(NonFiniteError, match=r"samples \[[\d, ]*5[\d, ]*\]"):
        train(steps=2, poison=5)


def test_accumulation_is_the_larger_batch():
    one, _ = train(steps=3, batch=8, masking=same_for_all)
    two, _ = train(steps=3, batch=4, accumulate=2, masking=same_for_all)
    torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=1e-4, atol=1e-5)


def on_ranks(parallel, decoder):
    with Engine(device="cpu", parallel=parallel) as engine:
        distiller, history = train(
            batch=4 // engine.world, masking=same_for_all, engine=engine, decoder=decoder
        )
        held_by_wrapper = any("teacher" in n for n, _ in distiller.named_parameters())
        return [[row["loss"] for row in history], held_by_wrapper]


@pytest.mark.dist
@pytest.mark.parametrize("decoder", [True, False], ids=["pixels", "alignment only"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_equal_one(parallel, decoder):
    alone, _ = on_ranks("ddp", decoder)
    for curve, held in run_ranks(on_ranks, 2, parallel, decoder):
        assert not held
        torch.testing.assert_close(torch.tensor(curve), torch.tensor(alone), rtol=1e-5, atol=1e-6)


def test_masks_differ_between_steps_and_processes():
    plans = []
    distiller = make(masking=lambda *a, **k: plans.append(RandomMasking()(*a, **k)) or plans[-1])
    plans.clear()
    fit(distiller, Batches(Pictures(), 4), steps=2, progress=False)
    assert not torch.equal(plans[0].keep, plans[1].keep)
