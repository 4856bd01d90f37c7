"""The distiller as a timm training task, for timm's own training script."""

from __future__ import annotations

from typing import Any

import torch
from timm.task import TrainingTask
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from potstill.core import NonFiniteError
from potstill.mae.training.distiller import MaskedToMasked

__all__ = ["MaskedDistillTask"]


class MaskedDistillTask(TrainingTask):
    """timm's contract around :class:`MaskedToMasked`: images in, a dict with ``loss`` out.

    timm has tasks for logits, pooled features and a distillation token; this one is for tokens of
    intermediate blocks under a mask. ``potstill.core.fit`` does not need it.

    Args:
        distiller: Student, teacher and objective.
        device: Where the task runs.
        dtype: Of task tensors.
        verbose: As in timm.

    Example:
        >>> import timm
        >>> from potstill.mae import MaskedAutoencoder
        >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2)
        >>> student = MaskedAutoencoder(vit, {"depth": 1, "width": 32})
        >>> sorted(MaskedDistillTask(MaskedToMasked(student))(torch.zeros(2, 3, 32, 32)))
        ['loss', 'pixels']
    """

    def __init__(
        self,
        distiller: MaskedToMasked,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        self.trainable_module: nn.Module = distiller
        self.step = 0
        self.to(device=self.device, dtype=self.dtype)

    def forward(self, input: Tensor, target: Tensor | None = None) -> dict[str, Tensor]:
        """Losses of a batch; labels are not looked at.

        Raises:
            NonFiniteError: The total is NaN or infinite; names the part.
        """
        losses = self.trainable_module(input, self.step)
        total = losses.total.detach()
        if not bool(torch.isfinite(total)):
            shown = ", ".join(f"{name}={float(value):.6g}" for name, value in losses.terms.items())
            raise NonFiniteError(
                f"MaskedDistillTask: the loss is {float(total)} at step {self.step} "
                f"({shown}); check the inputs, or lower the learning rate"
            )
        if self.training:
            self.step += 1
        return {"loss": losses.total, **losses.terms}

    def prepare_distributed(
        self, device_ids: list[int] | None = None, **ddp_kwargs: Any
    ) -> MaskedDistillTask:
        """Wrap what is trained; the teacher is outside the module tree and stays unwrapped."""
        self.trainable_module = DistributedDataParallel(
            self.trainable_module,
            device_ids=device_ids,
            **{"broadcast_buffers": False, **ddp_kwargs},
        )
        return self

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> Any:
        """The plain encoder, which is what a checkpoint should hold."""
        trained = module or self.get_trainable_module(ema)
        trained = getattr(trained, "module", trained)
        return None if trained is None else trained.student.encoder.vit  # type: ignore[union-attr]
