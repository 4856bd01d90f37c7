"""Fine-tuning: from a pre-trained encoder to a classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from timm.data import Mixup
from timm.layers import DropPath, calculate_drop_path_rates
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from potstill.core import ConfigError, Distiller, Losses, Objective, accuracy, common_draws
from potstill.core.criteria import kd as soft_targets

__all__ = ["Classification", "adamw", "layer_decayed", "prepare_classifier", "top1"]


class Classification(Distiller):
    """Ordinary supervised training, with mixup and cutmix, and the logits of a teacher, if wanted.

    ``L = (1 - kd) * cross_entropy + kd * KL``; the teacher sees the images as they were mixed.

    Args:
        student: A classifier.
        teacher: A classifier of the same classes: images of the student [B C H W] to logits.
        kd: Weight of the teacher's logits, in [0, 1].
        temperature: Temperature of both sides' logits.
        mixup: Strength of mixup, 0 for none.
        cutmix: Strength of cutmix, 0 for none.
        smoothing: Label smoothing.

    Raises:
        ConfigError: Mixing without knowing the number of classes; a teacher of another number.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        *,
        kd: float = 0.5,
        temperature: float = 2.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        smoothing: float = 0.1,
    ) -> None:
        criterion: nn.Module = LabelSmoothingCrossEntropy(smoothing)
        mix: Any = None
        if mixup > 0 or cutmix > 0:
            classes = getattr(student, "num_classes", 0)
            if not classes:
                raise ConfigError(
                    "Classification: student must have num_classes when mixup or cutmix is on, "
                    f"got {classes}"
                )
            # timm draws from numpy's global stream, which `fit` sets before each step.
            mix = Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=classes)
            criterion = SoftTargetCrossEntropy()
        if teacher is None:
            terms: dict[str, Any] = {"task": (1.0, criterion)}
        else:
            require_classes(teacher, getattr(student, "num_classes", 0))
            terms = {"task": (1 - kd, criterion), "kd": (kd, partial(soft_targets, T=temperature))}
        super().__init__(student, Objective(terms), teacher)
        self.mix = mix

    def forward(self, batch: Any, step: int) -> Losses:
        """Cross-entropy of a batch ``(images [B C H W], labels [B])``."""
        images, labels = batch
        if self.mix is not None:
            images, labels = self.mix(images.clone(), labels)
        logits = self.student(images)
        if self.teacher is None:
            return self.objective(step, task=(logits, labels))
        return self.objective(step, task=(logits, labels), kd=(logits, self.teacher(images)))


def require_classes(model: nn.Module, classes: int | Sequence[str], whose: str = "teacher") -> None:
    """Compare a head with the classes of the images, as far as the head says its own.

    Raises:
        ConfigError: Another number of classes, or others by name.
    """
    inner: Any = getattr(model, "model", model)
    count = classes if isinstance(classes, int) else len(classes)
    if (own := getattr(inner, "num_classes", count)) != count:
        raise ConfigError(
            f"finetune: {whose} must have a head of {count} classes like the images, got {own}; "
            "fine-tune it on these folders first"
        )
    names = (getattr(inner, "pretrained_cfg", None) or {}).get("label_names")
    if names and not isinstance(classes, int) and list(names) != list(classes):
        raise ConfigError(
            f"finetune: {whose} must know the classes of the images in their order, "
            f"{', '.join(classes[:5])}, got {', '.join(names[:5])}"
        )


def prepare_classifier(
    vit: nn.Module, num_classes: int, *, pool: str | None = "avg", drop_path: float = 0.1
) -> Any:
    """Give a pre-trained timm encoder a new head, in place.

    As published for masked autoencoders: the mean of patch tokens, a fresh norm behind it, and a
    head close to zero.

    Source: He et al., CVPR 2022, appendix A.1.

    Args:
        vit: As :meth:`MaskedAutoencoder.export_student` returns it.
        num_classes: Classes of the new head.
        pool: ``avg`` or ``token``; None keeps the model's own.
        drop_path: Rate of stochastic depth at the last block, growing from 0 at the first.

    Returns:
        The same model, all of it trainable.

    Raises:
        ConfigError: Less than two classes.
    """
    if num_classes < 2:
        raise ConfigError(f"prepare_classifier: num_classes must be at least 2, got {num_classes}")
    model: Any = vit
    if hasattr(model, "head_dist"):  # reads class and distillation token whatever is asked for
        pool = None
    had_norm = not isinstance(model.norm, nn.Identity)
    model.reset_classifier(num_classes, pool)
    if pool == "avg" and had_norm:
        model.fc_norm, model.norm = model.norm, nn.Identity()
        model.fc_norm.reset_parameters()
    for head in (model.head, getattr(model, "head_dist", None)):
        if head is not None:
            nn.init.trunc_normal_(head.weight, std=2e-5)
            nn.init.zeros_(head.bias)
    rates: Any = calculate_drop_path_rates(drop_path, len(model.blocks))
    for block, rate in zip(model.blocks, rates, strict=True):
        for name in ("drop_path", "drop_path1", "drop_path2"):
            if hasattr(block, name):
                setattr(block, name, _DropPath(rate) if rate > 0 else nn.Identity())
    return model.requires_grad_(True)


class _DropPath(DropPath):
    """Stochastic depth of an image that does not depend on how many processes there are."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        draws, keep = common_draws(x.device), 1 - self.drop_prob
        drawn = x.new_empty(draws.world * len(x), *[1] * (x.ndim - 1))
        kept = drawn.bernoulli_(keep, generator=draws.generator)[draws.mine]
        return x * kept.div_(keep)


def adamw(
    weight_decay: float = 0.05, betas: tuple[float, float] = (0.9, 0.95)
) -> Callable[..., Optimizer]:
    """AdamW for ``fit`` without decay of vectors (biases, norms, tokens); betas as for MAE."""
    return partial(grouped_adamw, weight_decay=weight_decay, betas=betas)


def layer_decayed(
    vit: nn.Module,
    decay: float = 0.75,
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.999),
    prefix: str = "student.",
) -> Callable[..., Optimizer]:
    """AdamW for ``fit`` whose learning rate falls by ``decay`` per block towards the input.

    Source: Bao et al., BEiT, ICLR 2022; the grouping is timm's.

    Args:
        vit: The timm model that is tuned.
        decay: Factor per block, in (0, 1]; 1 is no decay.
        weight_decay: Weight decay of matrices; vectors have none.
        betas: Betas of AdamW.
        prefix: Path of the model in the distiller, with a dot.

    Raises:
        ConfigError: ``decay`` outside (0, 1].
    """
    scales = layer_scales(vit, decay, prefix)
    return partial(grouped_adamw, scales=scales, weight_decay=weight_decay, betas=betas)


def layer_scales(vit: nn.Module, decay: float, prefix: str = "student.") -> dict[str, float]:
    """The factor of the learning rate of each parameter, as `layer_decayed` uses it."""
    if not 0 < decay <= 1:
        raise ConfigError(f"layer_decayed: decay must be in (0, 1], got {decay}")
    names = {id(parameter): name for name, parameter in vit.named_parameters()}
    groups = param_groups_layer_decay(vit, layer_decay=decay)
    return {prefix + names[id(p)]: g["lr_scale"] for g in groups for p in g["params"]}


def grouped_adamw(
    named: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    *,
    scales: Mapping[str, float] = MappingProxyType({}),
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.95),
) -> Optimizer:
    """AdamW in groups of equal rate and decay; `adamw` and `layer_decayed` bind its options."""
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named:
        # Biases and norms, and class and mask tokens [1 1 D]; sharded tensors cannot be squeezed.
        vector = sum(size > 1 for size in parameter.shape) <= 1
        key = scales.get(name, 1.0), 0.0 if vector else weight_decay
        groups.setdefault(key, []).append((name, parameter))
    # The largest scale first: its rate is the one that `fit` logs.
    return AdamW(
        [
            {"params": members, "lr": lr * scale, "weight_decay": own_decay}
            for (scale, own_decay), members in sorted(groups.items(), reverse=True)
        ],
        lr=lr,
        betas=betas,
    )


@torch.no_grad()
def top1(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 500) -> float:
    """Accuracy in percent on images in memory, normalised, [N C H W]."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    logits = torch.cat([model(part.to(device)).cpu() for part in images.split(batch_size)])
    model.train(was_training)
    return 100 * float(accuracy(logits, labels))
