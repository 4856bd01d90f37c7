from __future__ import annotations

import pytest
import torch

from potstill.core import tap
from potstill.core.errors import ConfigError, ShapeError
from potstill.mae import MaskedViT, block_similarity, linear_cka


def test_cka_against_the_gram_matrix_form():
    x, y = torch.randn(40, 6), torch.randn(40, 9)
    center = torch.eye(40) - 1 / 40
    k, m = center @ (x @ x.T) @ center, center @ (y @ y.T) @ center
    expected = (k * m).sum() / (k.norm() * m.norm())
    torch.testing.assert_close(linear_cka(x, y), expected, rtol=1e-4, atol=1e-5)


def test_rotation_scale_and_shift_do_not_matter():
    x = torch.randn(50, 5)
    rotation = torch.linalg.qr(torch.randn(5, 5)).Q
    torch.testing.assert_close(linear_cka(x, 3 * x @ rotation + 2), torch.tensor(1.0))
    assert linear_cka(x, torch.randn(50, 5)) < 0.5


def test_unequal_examples_are_refused():
    with pytest.raises(ShapeError, match="same n > 1 rows, got 4, 5"):
        linear_cka(torch.zeros(4, 2), torch.zeros(5, 2))


def unbiased_hsic(k, m):
    """Song et al. 2012, Eq. (5), with loops over the definition's three sums."""
    n = len(k)
    k, m = k.clone().fill_diagonal_(0), m.clone().fill_diagonal_(0)
    ones = torch.ones(n, dtype=k.dtype)
    first = (k @ m).trace()
    second = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    third = 2 * (ones @ k @ m @ ones) / (n - 2)
    return (first + second - third) / (n * (n - 3))


def test_blocks_against_the_unbiased_estimator(make_vit):
    student, teacher = MaskedViT(make_vit(depth=2)), MaskedViT(make_vit(depth=3, seed=1))
    batches = list(torch.randn(6, 3, 64, 64).split(3))
    got = block_similarity(student, teacher, batches, at_least=10)

    def grams(model, images):
        names = [MaskedViT.block(i) for i in range(model.depth)]
        with torch.no_grad(), tap(model.eval(), *names) as readings:
            model(images)
        tokens = [readings[n].output[:, 1:].flatten(0, 1).double() for n in names]
        return [t @ t.T for t in tokens]

    for s in range(2):
        for t in range(3):
            sums = torch.zeros(3, dtype=torch.float64)
            for images in batches:
                k, m = grams(student, images)[s], grams(teacher, images)[t]
                sums += torch.stack([unbiased_hsic(*p) for p in ((k, m), (k, k), (m, m))])
            expected = (sums[0] / (sums[1] * sums[2]).sqrt()).float().clamp(0, 1)
            torch.testing.assert_close(got[s, t], expected, rtol=1e-4, atol=1e-5)


def test_a_model_is_like_itself(make_vit):
    model = MaskedViT(make_vit(depth=3))
    values = block_similarity(model, model, [torch.randn(4, 3, 64, 64)], at_least=10)
    torch.testing.assert_close(values.diagonal(), torch.ones(3))


def test_too_few_tokens_are_refused(make_vit):
    model = MaskedViT(make_vit(depth=1))
    with pytest.raises(ConfigError, match="at least 1000 tokens, got 64"):
        block_similarity(model, model, [torch.randn(4, 3, 64, 64)])
