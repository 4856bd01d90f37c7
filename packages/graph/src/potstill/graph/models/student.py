"""The student, which sees node features [N F] only, dense or CSR."""

from __future__ import annotations

import json
import warnings
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch_geometric.data import Data

from potstill.core import ConfigError, DataError, Pretrained, ShapeError
from potstill.graph.data.scaling import scale_rows
from potstill.graph.data.tensors import as_features, is_sparse, rows
from potstill.graph.models.activation import relu_dropout
from potstill.graph.models.propagate import (
    FeatureLinear,
)

__all__ = ["MLPStudent", "check_dropout", "widths_of"]


def widths_of(name: str, ends: tuple[int, int], hidden: int, layers: int) -> list[int]:
    """Widths before and after each layer of ``name``, checked."""
    sizes = {"in_channels": ends[0], "out_channels": ends[1], "hidden_channels": hidden}
    for field, value in {**sizes, "num_layers": layers}.items():
        if value < 1:
            raise ConfigError(f"{name}: {field} must be at least 1, got {value}")
    return [ends[0], *[hidden] * (layers - 1), ends[1]]


def check_dropout(name: str, dropout: float) -> float:
    """A dropout of ``name``, checked."""
    if not 0 <= dropout < 1:
        raise ConfigError(f"{name}: dropout must be in [0, 1), got {dropout}")
    return dropout


class MLPStudent(
    nn.Module, Pretrained, paper="Wu et al., Extracting Low-/High-Frequency Knowledge, AAAI 2023"
):
    """A multi-layer perceptron on the features of single nodes: what gets deployed.

    Linear, ReLU and dropout; no dropout on the input, no normalisation, as in FF-G2M. What serving
    needs beside the weights is saved with them: see `for_raw`.

    Args:
        in_channels: Features of a node.
        hidden_channels: Width of the hidden layers.
        num_layers: Linear layers, at least 1.
        out_channels: Classes, labels or values.
        dropout: After each hidden layer, in [0, 1).
        norm: ``"batch"`` normalises hidden layers before the ReLU.
        task: Kind of prediction: one of ``"classes"``, several ``"labels"``, or ``"values"``.
        classes: Names of the classes or labels; they have none where it is empty.
        nan: Treatment in `predict` of nodes whose features are not finite: ``"mark"`` gives them -1
            (NaN for values) and warns, ``"refuse"`` raises, ``"fill"`` takes ``fill`` instead.
        fill: The value of each feature that takes the place of NaN.
        scale_rows: Divide rows of features by their sums first.

    Raises:
        ConfigError: A size below 1, a dropout outside [0, 1), or an unknown or lacking option.

    Example:
        >>> student = MLPStudent(8, 16, 2, 3)
        >>> student.predict(torch.rand(4, 8)).shape
        torch.Size([4])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        dropout: float = 0.5,
        norm: Literal["none", "batch"] = "none",
        task: Literal["classes", "labels", "values"] = "classes",
        classes: tuple[str, ...] = (),
        nan: Literal["mark", "refuse", "fill"] = "mark",
        fill: tuple[float, ...] = (),
        scale_rows: bool = False,
    ) -> None:
        super().__init__()
        widths = widths_of("MLPStudent", (in_channels, out_channels), hidden_channels, num_layers)
        for option, value, known in (
            ("norm", norm, ("none", "batch")), ("task", task, ("classes", "labels", "values")),
            ("nan", nan, ("mark", "refuse", "fill")),
        ):  # fmt: skip
            if value not in known:
                raise ConfigError(f"MLPStudent: {option} must be {', '.join(known)}, got {value!r}")
        for option, values, size in (
            ("classes", classes, out_channels),
            ("fill", fill, in_channels),
        ):
            if len(values) not in (0, size) or (option == nan and not values):
                raise ConfigError(f"MLPStudent: {option} must have {size}, got {len(values)}")
        self.in_channels, self.task, self.classes = in_channels, task, tuple(classes)
        self.nan, self.fill, self.scale_rows = nan, tuple(fill), scale_rows
        self.dropout = check_dropout("MLPStudent", dropout)
        self.layers = nn.ModuleList(
            (nn.Linear if i else FeatureLinear)(a, b) for i, (a, b) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(width) for width in (widths[1:-1] if norm == "batch" else ())
        )

    def forward(self, x: Tensor) -> Float[Tensor, "nodes classes"]:
        """Logits [N C] of features [N F], dense or CSR."""
        if self.scale_rows:
            x = scale_rows(x)
        for i, layer in enumerate(self.layers[:-1]):
            h = layer(x)
            x = relu_dropout(self.norms[i](h) if self.norms else h, self.dropout, self.training)
        logits: Tensor = self.layers[-1](x)
        return logits

    def reset_parameters(self) -> None:
        """Draw new weights."""
        for layer in (*self.layers, *self.norms):
            layer.reset_parameters()

    @torch.no_grad()
    def for_raw(self, data: Data) -> MLPStudent:
        """A copy that takes the features as they were before `read_graph` scaled and filled them.

        Scales and shifts of features and values are folded into the first and the last layer, so
        that they cost nothing; names of classes, what is predicted and what becomes of NaN are
        arguments of the copy, and are saved with it.

        Args:
            data: The graph that the student was trained on.
        """
        values = json.loads(json.dumps(self._configuration()))
        about = {
            "task": data.get("task"), "classes": data.get("class_names"),
            "scale_rows": data.get("rows_scaled"),
        }  # fmt: skip
        values |= {name: value for name, value in about.items() if value is not None}
        if data.get("x_fill") is not None:
            values |= {"nan": "fill", "fill": tuple(data.x_fill.tolist())}
        raw = type(self)(**values)
        raw.load_state_dict(self.state_dict())
        first: Any = raw.layers[0]
        last: Any = raw.layers[-1]
        if data.get("x_scale") is not None:
            weight = first.weight.double() / data.x_scale
            first.bias.copy_(first.bias.double() - weight @ data.x_shift.double())
            first.weight.copy_(weight)
        if data.get("y_scale") is not None:
            last.weight.copy_(last.weight.double() * data.y_scale[:, None])
            last.bias.copy_(last.bias.double() * data.y_scale + data.y_shift)
        return raw.eval()

    @torch.no_grad()
    def logits(self, x: Any, batch_size: int | None = None) -> Float[Tensor, "nodes classes"]:
        """Logits of nodes that may never have been in a graph, in eval mode.

        Args:
            x: [N F]: a tensor (dense, CSR), a numpy array, a memory map or a scipy matrix.
            batch_size: Nodes at a time; all by default.

        Raises:
            ShapeError: The width of ``x`` is not what the student was trained on.
        """
        if not hasattr(x, "shape") or len(x.shape) != 2 or x.shape[1] != self.in_channels:
            got = list(x.shape) if hasattr(x, "shape") else type(x).__name__
            raise ShapeError(
                f"predict: x must be [N, {self.in_channels}], the features that the student was "
                f"trained on, got {got}; a single node is x[None]"
            )
        if self.training:
            self.eval()
            try:
                return self.logits(x, batch_size)
            finally:
                self.train()
        device = next(self.parameters()).device
        if batch_size is None or batch_size >= x.shape[0]:
            return self(self._filled(as_features(x)).to(device))
        parts = torch.arange(x.shape[0]).split(batch_size)
        filled = (self._filled(as_features(_take(x, part))) for part in parts)
        return torch.cat([self(part.to(device)) for part in filled])

    def _filled(self, x: Tensor) -> Tensor:
        """NaN of dense features replaced, where that is the policy."""
        if self.nan != "fill" or is_sparse(x):
            return x
        return x.where(~x.isnan(), torch.tensor(self.fill, device=x.device))

    def predict(self, x: Any, batch_size: int | None = None) -> Shaped[Tensor, "nodes ..."]:
        """The most likely class of each node; arguments and errors as of `logits`.

        Nodes whose logits are NaN or infinite, as those of NaN features are, get -1 and a warning,
        unless ``nan`` says something else.

        Returns:
            Classes [N] int64, labels [N K] of 0 and 1, or values [N K], by ``task``.

        Raises:
            DataError: Such nodes, with ``nan="refuse"``.
        """
        z, known = self._known(x, batch_size)
        if self.task == "values":
            return z.where(known[:, None], float("nan"))
        if self.task == "labels":
            return (z > 0).long().where(known[:, None], -1)
        return z.argmax(1).where(known, -1)

    def predict_proba(
        self, x: Any, batch_size: int | None = None
    ) -> Float[Tensor, "nodes classes"]:
        """The probability of each class or label; arguments and errors as of `predict`.

        Returns:
            [N C]; rows of nodes that are not known are NaN.

        Raises:
            ConfigError: A student of values, which has none.
        """
        if self.task == "values":
            raise ConfigError("predict_proba: task must be classes or labels, got values")
        z, known = self._known(x, batch_size)
        p = z.softmax(1) if self.task == "classes" else z.sigmoid()
        return p.where(known[:, None], float("nan"))

    def _known(self, x: Any, batch_size: int | None) -> tuple[Tensor, Tensor]:
        """Logits, and the nodes where they are finite."""
        z = self.logits(x, batch_size)
        known = z.isfinite().all(1)
        if not bool(known.all()):
            bad = (~known).nonzero().flatten()
            said = (
                f"predict: {len(bad)} of {len(z)} nodes have logits that are not finite (first: "
                f"{int(bad[0])})"
            )
            if self.nan == "refuse":
                raise DataError(f"{said}; fill or drop NaN features")
            warnings.warn(f"{said}; their class is -1: fill or drop NaN features", stacklevel=3)
        return z, known

    def fit(
        self,
        x: Any,
        y: Any,
        *,
        epochs: int = 200,
        batch_size: int = 4096,
        lr: float = 0.01,
        weight_decay: float = 5e-4,
        seed: int = 0,
    ) -> MLPStudent:
        """Train on features and what is known about them, as scikit-learn's estimators are.

        Args:
            x: [N F], as `logits` takes it.
            y: Classes [N], labels [N K] of 0 and 1, values [N K]; or what a teacher says [N C]:
                logits, for a student of classes.
            epochs: Passes over the nodes.
            batch_size: Nodes at a time.
            lr: Learning rate.
            weight_decay: Weight decay.
            seed: Seed of the order and the dropout.

        Returns:
            Itself, in eval mode.

        Raises:
            ShapeError: ``x`` or ``y`` of another size.
        """
        x, y = as_features(x), torch.as_tensor(y)
        if len(y) != x.shape[0] or x.shape[1] != self.in_channels or y.ndim > 2:
            raise ShapeError(
                f"fit: x must be [N, {self.in_channels}] and y [N] or [N, C], got {list(x.shape)} "
                f"and {list(y.shape)}"
            )
        taught = self.task == "classes" and y.ndim == 2
        goal = y.float().softmax(1) if taught else y if self.task == "classes" else y.float()
        loss = {"labels": F.binary_cross_entropy_with_logits, "values": F.mse_loss}.get(
            self.task, F.cross_entropy
        )
        optimizer = torch.optim.Adam(self.parameters(), lr=lr, weight_decay=weight_decay)
        self.train()
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            for _ in range(epochs):
                for part in torch.randperm(len(y)).split(batch_size):
                    optimizer.zero_grad()
                    loss(self(rows(x, part)), goal[part]).backward()  # type: ignore[operator]
                    optimizer.step()
        return self.eval()


def _take(x: Any, part: Tensor) -> Any:
    """Consecutive rows of whatever `as_features` takes."""
    if isinstance(x, Tensor) and is_sparse(x):
        return rows(x, part)
    return x[int(part[0]) : int(part[-1]) + 1]
