"""Field to field: teacher and student at the same samples of virtual rays."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from potstill.core import ConfigError, Distiller, Losses
from potstill.nerf.distill.choice import RayChoice
from potstill.nerf.distill.objective import Progression, staged
from potstill.nerf.distill.pools import Pools
from potstill.nerf.distill.priors import PosePrior
from potstill.nerf.distill.targets import compared, targets_of
from potstill.nerf.distill.virtual import VirtualBatch
from potstill.nerf.fields.base import Field
from potstill.nerf.fields.factored import VMField
from potstill.nerf.render.march import march

__all__ = ["FieldToField"]


class FieldToField(Distiller):
    """A student learns the values of a teacher at points and along rays, without an image.

    Source: Fang et al., "One is All: Bridging the Gap Between Neural Radiance Fields
    Architectures with Progressive Volume Distillation", AAAI 2023, Section 3. Both fields are
    evaluated at the same samples, which lie in the student's occupancy grid (the teacher's,
    transferred) and stop where the teacher lets hardly any light through.

    As many rays are taken as fill the budget of samples, by the mean of the steps before.

    Args:
        student: A field in the space of the teacher.
        teacher: Any field.
        progression: Terms and the shares of the budget in which they count.
        samples: Samples a step, all processes together.
        prior: Pose prior that turns hard poses, where the progression has pools.
        views: Poses in a set, as in `VirtualRays`.
        steps: Steps that a set lasts, as in `VirtualRays`.
        projector: Map of the student's features to the teacher's width, where they differ.
        seed: Seed of what comes back from the pools.

    Raises:
        ConfigError: The fields are the same, or describe different spaces.
    """

    student: Field

    def __init__(
        self,
        student: Field,
        teacher: Field,
        progression: Progression,
        *,
        samples: int = 6144,
        prior: PosePrior | None = None,
        views: int = 100,
        steps: int = 50,
        projector: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        progression = _fitting(progression, student, teacher)
        super().__init__(student, staged(progression, lambda: self.progress, projector), teacher)
        self.progression = progression
        pools = Pools(views) if progression.pools else None
        self.choice = RayChoice(samples, seed, pools, prior, steps)

    def forward(self, batch: VirtualBatch, step: int) -> Losses:
        """Features, densities and colours of samples, and colours of rays, as far as they count."""
        assert self.teacher is not None
        student, wanted = self.student, {*self.objective.at(step)}
        chosen = self.choice.choose(batch, step)
        count = len(chosen.origins)
        rays = student.space.trace(chosen.origins, chosen.directions)
        samples = march(rays, student.space, student.occupancy, batch.jitter[:count])
        background, colors = batch.background[:count], bool({"color", "pixel"} & wanted)
        teacher, hidden = self.teacher.model, self.progression.hidden
        targets = targets_of(teacher, rays, samples, background, hidden, colors)
        tensors = compared(student, targets, rays, background, wanted)
        self.choice.learn(batch, chosen, step, len(targets.samples.t), tensors.get("pixel"))
        return self.objective(step, tensors)


def _fitting(progression: Progression, student: Field, teacher: Field) -> Progression:
    """The progression without terms that the fields cannot have."""
    if student.space != teacher.space:
        raise ConfigError(
            f"FieldToField: student must describe the space of the teacher, {teacher.space}, "
            f"got {student.space}"
        )
    if not (student.has_features and teacher.has_features):
        progression = progression.without_features()
    if not isinstance(student, VMField):
        progression = replace(progression, sparsity=0.0)
    return progression
