from __future__ import annotations

import math

import pytest
import torch

from potstill.core.errors import ConfigError, ShapeError
from potstill.mae import features_of, knn_probe, linear_probe


def blobs(n=60, classes=3, width=8, seed=0):
    rng = torch.Generator().manual_seed(seed)
    centers = 4 * torch.randn(classes, width, generator=torch.Generator().manual_seed(7))
    labels = torch.arange(n) % classes
    return centers[labels] + torch.randn(n, width, generator=rng), labels


def test_features_are_timms_pooled_features(make_vit):
    vit = make_vit().train()
    batches = [(torch.randn(2, 3, 64, 64), torch.tensor([0, 1])),
               (torch.randn(1, 3, 64, 64), torch.tensor([2]))]  # fmt: skip
    features, labels = features_of(vit, batches)
    assert labels.tolist() == [0, 1, 2]
    with torch.no_grad():
        expected = vit.eval().forward_features(batches[1][0])
        torch.testing.assert_close(features[2:], vit.forward_head(expected, pre_logits=True))


def test_knn_against_a_naive_vote():
    (train, y), (test, target) = blobs(40), blobs(20, seed=1)
    test = test + 3 * torch.randn_like(test)  # so that votes are contested
    hits = 0
    for x, wanted in zip(test, target.tolist(), strict=True):
        cosines = [float(x @ t / (x.norm() * t.norm())) for t in train]
        nearest = sorted(range(40), key=lambda i, c=cosines: -c[i])[:7]
        vote = [0.0] * 3
        for i in nearest:
            vote[int(y[i])] += math.exp(cosines[i] / 0.07)
        hits += vote.index(max(vote)) == wanted
    assert knn_probe(train, y, test, target, neighbors=7) == pytest.approx(100 * hits / 20)


def test_separable_features_are_found_by_both():
    (train, y), (test, target) = blobs(120), blobs(30, seed=1)
    assert knn_probe(train, y, test, target, neighbors=5) == 100
    assert linear_probe(train, y, test, target, epochs=60, progress=False) > 90
    shuffled = y[torch.randperm(120)]
    assert linear_probe(train, shuffled, test, target, epochs=60, progress=False) < 70


def test_bad_input_is_refused():
    (train, y), (test, target) = blobs(12), blobs(6)
    with pytest.raises(ConfigError, match=r"neighbors must be in \[1, 12\], got 13"):
        knn_probe(train, y, test, target, neighbors=13)
    with pytest.raises(ShapeError, match=r"linear_probe: train and test must be .* got \[12, 8\]"):
        linear_probe(train, y, test[:, :5], target, progress=False)
