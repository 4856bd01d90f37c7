"""Edited teachers: what is erased has neither density nor cells, and students inherit that."""

import pytest
import torch

from potstill.core.errors import ConfigError, DataError
from potstill.nerf.distill.convert import convert
from potstill.nerf.distill.edit import EditedField

LEFT = ((-1.0, -1.0, -1.0), (0.0, 1.0, 1.0))


@torch.no_grad()
def test_nothing_is_left_in_the_box_and_all_around_it(teacher):
    points = teacher.space.points(torch.rand(500, 3, generator=torch.Generator().manual_seed(0)))
    erased, kept = EditedField(teacher, *LEFT), EditedField(teacher, *LEFT, mode="keep")
    inside = points[:, 0] <= 0
    before = teacher.density(points)
    for field, gone in ((erased, inside), (kept, ~inside)):
        density = field.density(points)
        assert float(density[gone].max()) < 1e-40  # exp(-100)
        torch.testing.assert_close(density[~gone], before[~gone])
    share = teacher.occupancy.share()
    assert 0 < erased.occupancy.share() < share
    both = erased.occupancy.binaries | kept.occupancy.binaries
    assert torch.equal(both, teacher.occupancy.binaries)


def test_a_student_inherits_the_edit(teacher, prior, sizes):
    edited = EditedField(teacher, *LEFT)
    options = {"config": sizes["cp"], "samples": 1000, "progress": False}
    student, report = convert(edited, "cp", prior, steps=40, **options)
    assert (student.kind, report.teacher, report.head) == ("cp", "hash", True)
    assert student.activation.low == -100
    cells = student.occupancy.binaries[0]
    assert not bool(cells[:12].any())  # x below 0
    assert bool(cells[12:].any())
    assert bool(teacher.occupancy.binaries[0, :12].any())


def test_impossible_boxes_are_refused(teacher):
    with pytest.raises(ConfigError, match="low must be below high"):
        EditedField(teacher, (0.0,) * 3, (0.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="mode must be erase or keep"):
        EditedField(teacher, *LEFT, mode="cut")
    with pytest.raises(DataError, match="got nothing to erase"):
        EditedField(teacher, (5.0,) * 3, (6.0,) * 3)
    with pytest.raises(DataError, match="got everything to keep"):
        EditedField(teacher, (5.0,) * 3, (6.0,) * 3, mode="keep")
