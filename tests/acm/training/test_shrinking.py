import pytest
import torch
import torch.nn.functional as F

from potstill.acm import Shrinking, Subnet, acmize, acms, delayed, extract, set_mode, subnet
from potstill.core import fit
from potstill.core.errors import ConfigError


@torch.no_grad()
def test_a_subnet_is_a_narrower_and_shallower_model(adaptive, vit, images):
    whole = set_mode(adaptive, 4)(images)
    with subnet(adaptive, Subnet(2, 2)) as part:
        inside = part(images)
        assert len(part.blocks) == 2
    assert len(adaptive.blocks) == 3
    assert torch.equal(adaptive(images), whole)
    alone = extract(adaptive, Subnet(2, 2))
    assert not acms(alone)
    assert len(alone.blocks) == 2
    assert alone.blocks[0].mlp.fc1.out_features == 48
    torch.testing.assert_close(alone(images), inside, atol=1e-5, rtol=1e-4)
    largest = extract(adaptive, Subnet(4, 3))
    torch.testing.assert_close(largest(images), vit(images), atol=1e-5, rtol=1e-4)


def test_subnets_wait_and_then_rise():
    weight = delayed(100, delay=0.5, warmup=0.2)
    assert [weight(step) for step in (0, 50, 60, 70, 99)] == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_small_nets_run_only_when_they_count(adaptive, images):
    distiller = Shrinking(adaptive, 100)
    batch = (images, torch.randint(0, 5, (6,)))
    assert set(distiller(batch, 0).terms) == {"full"}
    losses = distiller(batch, 80)
    assert set(losses.terms) == {"full", "smallest", "random"}
    assert set(Shrinking(adaptive, 100, random=0)(batch, 80).terms) == {"full", "smallest"}


def test_the_full_network_teaches_and_is_not_taught(adaptive, images):
    """The distillation has no gradient through the full network's logits."""
    distiller = Shrinking(adaptive, 10, least=Subnet(1, 3), random=0, delay=0.0, warmup=0.0)
    labels = torch.randint(0, 5, (6,))
    set_mode(adaptive, 4)
    adaptive.zero_grad()
    F.cross_entropy(adaptive(images), labels).backward()
    last = adaptive.blocks[2].mlp.up.grad[72:].clone()  # learner 4 is in the full network only
    adaptive.zero_grad()
    distiller((images, labels), 5).total.backward()
    torch.testing.assert_close(adaptive.blocks[2].mlp.up.grad[72:], last, atol=1e-6, rtol=1e-4)


def test_training_brings_the_smallest_net_to_the_largest(vit):
    student = acmize(vit)
    batches = [(torch.randn(16, 3, 16, 16), torch.randint(0, 5, (16,))) for _ in range(2)]

    def gap():
        with torch.no_grad():
            images = batches[0][0]
            full = extract(student, Subnet(4, 3))(images).log_softmax(-1)
            small = extract(student, Subnet(1, 2))(images).log_softmax(-1)
            return float(F.kl_div(small, full, log_target=True, reduction="batchmean"))

    before = gap()
    distiller = Shrinking(student, 80, least=Subnet(1, 2), random=1)
    history = fit(distiller, batches, steps=80, lr=3e-3, progress=False)
    assert "smallest" not in history[10]
    assert history[-1]["full"] < history[0]["full"]
    assert gap() < 0.5 * before


def test_bad_input(adaptive, vit):
    for part in (Subnet(0, 1), Subnet(5, 1), Subnet(1, 0), Subnet(1, 4)):
        with (
            pytest.raises(ConfigError, match="width must be from 1 to 4 and depth from 1 to 3"),
            subnet(adaptive, part),
        ):
            pass
    with pytest.raises(ConfigError, match="shares that sum to at most 1, got 0.8 and 0.3"):
        delayed(10, 0.8, 0.3)
    with pytest.raises(ConfigError, match="steps, random and temperature must be positive"):
        Shrinking(adaptive, 0)
    with pytest.raises(ConfigError, match="must have adaptive modules"):
        Shrinking(vit, 10)
    with pytest.raises(ConfigError, match="blocks in model.blocks, got Sequential"):
        Shrinking(torch.nn.Sequential(adaptive), 10)
