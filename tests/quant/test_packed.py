"""Packed files give back what was packed, or refuse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from potstill.core import CheckpointError, ConfigError
from potstill.quant import (
    Buckets,
    DualBinary,
    Grid,
    LearnedLevels,
    LearnedStep,
    bake,
    load_packed,
    lower,
    pack,
    save_packed,
    unpack,
)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 40), st.integers(0, 99))
def test_unpack_is_the_inverse_of_pack(bits, count, seed) -> None:
    codes = torch.randint(2**bits, (count,), generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits)
    assert len(packed) == -(-count * bits // 8)
    assert torch.equal(unpack(packed, bits, count), codes.to(torch.uint8))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 3))


@pytest.mark.parametrize("quantizer", [LearnedStep, Buckets, LearnedLevels, DualBinary])
@pytest.mark.parametrize("bits", [2, 3, 7, 8])
def test_a_packed_student_is_the_baked_one(quantizer, bits, tmp_path) -> None:
    if quantizer is DualBinary and bits != 2:
        return
    student = lower(small(), Grid(bits), keep={"3": 8} if bits < 8 else None, quantizer=quantizer)
    path = save_packed(student, tmp_path / "s.safetensors")
    again = load_packed(small(), path)
    kept = bake(student).state_dict().items()
    for (name, a), b in zip(kept, again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_files_of_others_are_refused(tmp_path) -> None:
    student, path = lower(small(), Grid(4)), tmp_path / "s.safetensors"
    with pytest.raises(ConfigError, match=r"path must end in .safetensors"):
        save_packed(student, tmp_path / "s.pt")
    with pytest.raises(ConfigError, match="0 lowered weights"):
        save_packed(small(), path)
    save_packed(student, path)
    with pytest.raises(CheckpointError, match=r"s.safetensors must fit Linear, got nothing for"):
        load_packed(nn.Linear(2, 2), path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"s.safetensors must be a packed student"):
        load_packed(small(), path)
    with torch.no_grad():
        student[0].bias[0] = torch.nan
    with pytest.raises(CheckpointError, match=r"0.bias must be read back as it was"):
        save_packed(student, path)
