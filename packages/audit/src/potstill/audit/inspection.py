"""All that can be asked of a teacher from a stranger with clean data of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from potstill.audit.attacks.success import check_classes, outputs
from potstill.audit.detect.disagreement import jsd
from potstill.audit.detect.invert import Inverted, invert
from potstill.core import Report

__all__ = ["Inspection", "inspect"]


@dataclass(frozen=True)
class Inspection:
    """Findings about a model.

    Attributes:
        inverted: Inverted triggers of the model.
        controls: The same of clean models of the same architecture, by name.
        accuracy: Accuracy by model (``teacher``, ``student``) and class.
        slices: By slice, accuracy of each model inside of it and outside.
        transfer: By class, share of the images of other classes that the teacher's inverted
            trigger sends there in the teacher, and in the student where there is one.
        disagreement: Mean divergence between teacher and student on clean images and on images
            with the trigger of the most suspicious class, in nats; None without a student.
    """

    inverted: Inverted
    controls: Mapping[str, Inverted] = field(default_factory=dict)
    accuracy: Mapping[str, list[float]] = field(default_factory=dict)
    slices: Mapping[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    transfer: Mapping[str, list[float]] = field(default_factory=dict)
    disagreement: tuple[float, float] | None = None

    @property
    def found(self) -> int | None:
        """Class with an anomalously small trigger, larger in index than any clean control's."""
        best = self.inverted.found
        most = max((max(c.index) for c in self.controls.values() if c.index), default=0.0)
        if best is None or self.inverted.index is None or self.inverted.index[best] <= most:
            return None
        return best

    def summary(self) -> str:
        """Found or not found, in a sentence; never "safe"."""
        text = self.inverted.summary()
        if self.inverted.found is not None and self.found is None:
            text = "Not found: a clean control has as small a trigger. This proves nothing."
        if not self.controls:
            text += " No clean control of the same architecture was given."
        return text

    def report(self, title: str = "Teacher from a stranger", **options: Any) -> Report:
        """A row for each class, tables of slices and controls, and pictures of the triggers."""
        report = Report(title, label="class", summary=self.summary(), **options)
        for k, size in enumerate(self.inverted.sizes):
            values: dict[str, Any] = {"trigger size": size}
            values["index"] = "none" if self.inverted.index is None else self.inverted.index[k]
            for name, shares in self.transfer.items():
                values[f"flips {name}, %"] = 100 * shares[k]
            for name, shares in self.accuracy.items():
                values[f"accuracy {name}, %"] = 100 * shares[k]
            report.add(str(k), **values)
        rows: list[tuple[Any, ...]]
        if self.controls:
            rows = [
                (name, min(control.sizes), max(control.index) if control.index else control.reason)
                for name, control in self.controls.items()
            ]
            report.table(("clean model", "smallest trigger", "largest index"), rows, "Controls")
        for name, models in self.slices.items():
            rows = [(m, 100 * inside, 100 * outside) for m, (inside, outside) in models.items()]
            report.table(("model", "inside, %", "outside, %"), rows, f"Accuracy on slice {name}")
        if self.disagreement is not None:
            names = "clean images", "with the smallest trigger"
            rows = list(zip(names, self.disagreement, strict=True))
            report.table(("inputs", "divergence, nats"), rows, "Disagreement with the student")
        self.inverted.draw(report)
        report.text(
            "Not found does not mean that nothing is there. A trigger spread over the image has no "
            "small mask, a backdoor may sleep in a teacher and wake in its student, and a bias in "
            "natural inputs has no trigger at all: distil with your own inputs, put your own "
            "labels into the loss, and look at slices.",
            "How to read this",
        )
        return report


def inspect(
    teacher: nn.Module,
    images: Float[Tensor, "items channels height width"],
    labels: Int[Tensor, " items"],
    *,
    classes: int | None = None,
    student: nn.Module | None = None,
    controls: Mapping[str, nn.Module] | None = None,
    slices: Mapping[str, Bool[Tensor, " items"]] | None = None,
    normalize: Callable[[Tensor], Tensor] = lambda x: x,
    count: int = 40,
    steps: int = 120,
    inverted: Inverted | None = None,
    **options: Any,
) -> Inspection:
    """Look for a backdoor and for bias in a model, with clean images of one's own.

    Args:
        teacher: From inputs to logits.
        images: Clean images in [0, 1].
        labels: Their true classes.
        classes: Number of classes; those of ``labels`` by default.
        student: A model of your own, from your own inputs and labels: what the teacher says
            beside it is the strongest test here.
        controls: Clean models of the teacher's architecture: an index means little without them.
        slices: Parts of the images by name, such as thick strokes: a bias shows only there.
        normalize: Applied to pixels before every model.
        count: Images for the inversion.
        steps: Steps of the inversion.
        inverted: Triggers of the teacher that were inverted before.
        **options: Other options of `potstill.core.fit` for the inversions.

    Raises:
        ConfigError: Images that are no pixels.
        ShapeError: A model with another number of classes.
    """
    classes = int(labels.max()) + 1 if classes is None else classes
    models = {"teacher": teacher} | ({} if student is None else {"student": student})
    for name, model in models.items():
        check_classes(f"inspect: {name}", model, normalize(images[:1]), classes)
    few = images[:: max(len(images) // count, 1)][:count]
    found = inverted or invert(
        teacher, few, classes=classes, steps=steps, normalize=normalize, **options
    )
    right = {n: outputs(m, normalize(images)).argmax(1) == labels for n, m in models.items()}
    of_class = [labels == k for k in range(classes)]
    transfer = {
        name: [_flips(model, normalize(found.trigger(k)(images[~own])), k)
               for k, own in enumerate(of_class)]
        for name, model in models.items()
    }  # fmt: skip
    disagreement = None
    if student is not None:
        worst = min(range(classes), key=lambda k: found.sizes[k])
        stamped = normalize(found.trigger(worst)(images))
        disagreement = tuple(
            float(jsd(outputs(teacher, x), outputs(student, x)).mean())
            for x in (normalize(images), stamped)
        )
    return Inspection(
        found,
        {n: invert(m, few, classes=classes, steps=steps, normalize=normalize, **options)
         for n, m in (controls or {}).items()},
        {n: [_mean(r[own]) for own in of_class] for n, r in right.items()},
        {s: {n: (_mean(r[inside]), _mean(r[~inside])) for n, r in right.items()}
         for s, inside in (slices or {}).items()},
        transfer,
        disagreement,  # type: ignore[arg-type]
    )  # fmt: skip


def _flips(model: nn.Module, x: Tensor, target: int) -> float:
    return _mean(outputs(model, x).argmax(1) == target)


def _mean(found: Tensor) -> float:
    return float(found.double().mean())
