"""The table of the gallery of condensed sets."""

from types import SimpleNamespace

import torch


def test_what_brings_nothing_is_said_in_bold():
    from apps.condense.gallery import compared

    arms = {"random": [70.0, 72.0], "all images": [98.0, 98.0]}
    found = {
        n: SimpleNamespace(accuracies={"net": {"condensed": [own, own], **arms}})
        for n, own in ((1, 90.0), (10, 69.0))
    }
    html = compared(found)
    assert ">+19.0</td>" in html
    assert 'best">-2.0: brings nothing</td>' in html
    assert "&lt;" not in html


def test_benchmarks_for_a_gpu_say_that_there_is_none(monkeypatch):
    import benchmarks.condense.gpu  # noqa: F401
    from potstill.core.measure.bench import registered, run

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    entries = [entry for entry in registered("condense") if entry.device == "cuda"]
    assert len(entries) == 6
    for entry in entries:
        result = run(entry, quick=True)
        assert (result.status, entry.targets != {}) == ("skipped", True)
        assert "no CUDA device" in result.reason


def test_the_loop_over_classes_has_the_same_loss():
    from benchmarks.condense.speed import step_pair

    for attention in (False, True):
        pair = step_pair(attention)
        pair.check(pair.ours(), pair.baseline())


def test_the_decoder_of_an_autoencoder_paints_what_was_left_out():
    import timm

    from apps.condense.inpaint import painter
    from potstill.condense import quantize_pixels
    from potstill.mae import MaskedAutoencoder

    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1)
    paint = painter(MaskedAutoencoder(vit, decoder={"depth": 1, "width": 16, "heads": 2}))
    images, importance = torch.rand(2, 3, 32, 32), torch.rand(2, 32, 32)
    found = quantize_pixels(images, importance, drop=0.5, patch=8, inpaint=paint)
    kept = found.kept.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand_as(images)
    assert torch.equal(found.images[kept], images[kept])
    gone = found.images[~kept]
    assert bool((gone != 0).all())
    assert bool((gone != images[~kept]).all())
    # What is left out is not looked at: another picture there is painted alike.
    other = torch.where(kept, images, 5.0)
    again = quantize_pixels(other, importance, drop=0.5, patch=8, inpaint=paint)
    assert torch.equal(again.images, found.images)
