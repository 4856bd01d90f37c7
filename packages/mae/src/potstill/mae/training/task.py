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
        device: Device of the task.
        dtype: Type of task tensors.
        verbose: As in timm.
        check_every: Steps from one look at the losses for NaN to the next; a look waits for the
            device. By default 1 on a CPU and 50 elsewhere.

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
        check_every: int | None = None,
    ) -> None:
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        self.trainable_module: nn.Module = distiller
        self.step = 0
        self.check_every = check_every or (1 if self.device.type == "cpu" else 50)
        self._unseen: list[tuple[int, dict[str, Tensor]]] = []
        self.to(device=self.device, dtype=self.dtype)

    def forward(self, input: Tensor, target: Tensor | None = None) -> dict[str, Tensor]:
        """Losses of a batch; labels are not looked at.

        Raises:
            NonFiniteError: A total since the last look is NaN or infinite; names step and part.
        """
        losses = self.trainable_module(input, self.step)
        found = {"loss": losses.total, **losses.terms}
        self._unseen.append((self.step, {name: value.detach() for name, value in found.items()}))
        if len(self._unseen) >= self.check_every:
            self._look()
        if self.training:
            self.step += 1
        return found

    def _look(self) -> None:
        seen, self._unseen = self._unseen, []
        finite = torch.stack([terms["loss"] for _, terms in seen]).isfinite().tolist()
        for (step, terms), fine in zip(seen, finite, strict=True):
            if not fine:
                total, *parts = (f"{name}={float(value):.6g}" for name, value in terms.items())
                raise NonFiniteError(
                    f"MaskedDistillTask: the {total.replace('=', ' is ')} at step {step} "
                    f"({', '.join(parts)}); check the inputs, or lower the learning rate"
                )

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
