"""One set of weights for all candidates of a space."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from potstill.core import (
    CheckpointError,
    ConfigError,
    ShapeError,
    common_draws,
    count_parameters,
    reading,
    staging,
)
from potstill.core.schemes import Sandwich
from potstill.search.costs import arguments
from potstill.search.space import Choice, Space, label

__all__ = ["Elastic", "ElasticSandwich", "recalibrate"]

_PACKED = {"qkv": 3, "in_proj": 3}
_NORM = nn.modules.batchnorm._BatchNorm


class Elastic(nn.Module):
    """A supernet without layers of its own: candidates run on slices of the largest one's weights.

    A candidate is the ordinary model that the space builds, run with the leading part of each
    shared tensor along every axis. So any builder will do whose models have nested names: a block
    more is a name more, a wider layer is a larger tensor under the same name.

    Args:
        space: The candidates. The one with the most parameters is the largest.
        packed: Tensors that hold several projections one after the other along their first axis, by
            the end of their name without ``weight`` and ``bias``. Each projection is sliced by
            itself. By default those of queries, keys and values in timm and in torch.
        seed: Seed of the weights.

    Raises:
        ShapeError: A candidate has a tensor that the largest one lacks, or a larger one.
        ConfigError: A tensor is packed otherwise than it is said.

    Example:
        >>> space = Space(lambda width: nn.Linear(3, width), {"width": (2, 4)})
        >>> elastic = Elastic(space)
        >>> x = torch.ones(1, 3)
        >>> torch.equal(elastic(x, {"width": 2}), elastic(x)[:, :2])
        True
    """

    def __init__(
        self, space: Space, packed: Mapping[str, int] | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.space, self.packed = space, dict(_PACKED if packed is None else packed)
        self._skeletons: dict[str, nn.Module] = {}
        choices = list(space)
        self.largest = max(choices, key=self._size)
        self.least = min(choices, key=self._size)
        self.full = space.make(self.largest, seed)
        for choice in self._corners():
            self.views(choice)

    def forward(self, x: Any, choice: Choice | None = None) -> Any:
        """Outputs of a candidate; None is the largest. Several inputs are a tuple."""
        if choice is None:
            return self.full(*arguments(x))
        return functional_call(self.skeleton(choice), self.views(choice), arguments(x))

    def skeleton(self, choice: Choice) -> nn.Module:
        """The model of a choice, without memory for its weights."""
        name = label(choice)
        if name not in self._skeletons:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # initialising what has no memory
                self._skeletons[name] = self.space.build(**self.space.fixed, **choice)
        return self._skeletons[name].train(self.training)

    def views(self, choice: Choice) -> dict[str, Tensor]:
        """Parameters and buffers of a choice, as parts of the shared ones."""
        shared = {**dict(self.full.named_parameters()), **dict(self.full.named_buffers())}
        model, found = self.skeleton(choice), {}
        for name, like in (*model.named_parameters(), *model.named_buffers()):
            if name not in shared:
                raise ShapeError(
                    f"Elastic: names of {label(choice)} must be among those of the largest, "
                    f"{label(self.largest)}, got {name} besides; the builder does not nest"
                )
            found[name] = self._slice(name, shared[name], like.shape)
        return found

    def extract(self, choice: Choice, batches: Iterable[Any] | None = None) -> nn.Module:
        """A model of its own with the weights of a choice.

        Args:
            choice: The candidate.
            batches: Inputs, or tuples that begin with them, for `recalibrate`: the statistics of
                batch norms are those of all candidates mixed.
        """
        model = self.space.make(choice)
        state, wanted = self.views(choice), model.state_dict()
        model.load_state_dict({name: state[name].detach().clone() for name in wanted})
        model = model.to(next(self.full.parameters()).device).eval()
        return model if batches is None else recalibrate(model, batches)

    def save(self, folder: str | Path) -> Path:
        """Write the shared weights, and what space they are of."""
        folder = Path(folder)
        state = {k: v.detach().cpu().contiguous() for k, v in self.full.state_dict().items()}
        with staging(folder) as temporary:
            save_file(state, temporary / "model.safetensors")
            about = {"space": self.space.fingerprint(), "packed": self.packed}
            (temporary / "supernet.json").write_text(json.dumps(about), encoding="utf-8")
            for path in sorted(temporary.iterdir()):
                os.replace(path, folder / path.name)
        return folder

    @classmethod
    def load(
        cls, folder: str | Path, space: Space, packed: Mapping[str, int] | None = None
    ) -> Elastic:
        """Read what `save` has written.

        Raises:
            DataError: Nothing there, or something else.
            CheckpointError: It is of another space.
        """
        folder = Path(folder)
        with reading(folder, "a supernet of potstill search elastic"):
            about = json.loads((folder / "supernet.json").read_text(encoding="utf-8"))
            before, state = about["space"], load_file(folder / "model.safetensors")
        if before != space.fingerprint():
            raise CheckpointError(
                f"Elastic: {folder} must be of the same space, got one of another builder, other "
                "choices or other fixed arguments"
            )
        made = cls(space, packed)
        with reading(folder, "a supernet of potstill search elastic"):
            try:
                made.full.load_state_dict(state)
            except RuntimeError as error:
                raise ValueError(str(error).splitlines()[0]) from error
        return made

    def _slice(self, name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
        bare = re.sub(r"[._](weight|bias)$", "", name)
        parts = next((n for end, n in self.packed.items() if bare.endswith(end)), 1)
        if tensor.shape == shape:
            return tensor
        if tensor.ndim != len(shape) or any(
            small > big for small, big in zip(shape, tensor.shape, strict=True)
        ):
            packed = len(shape) > 1 and shape[0] == 3 * shape[1] and parts == 1
            raise ShapeError(
                f"Elastic: {name} must fit into that of the largest, {list(tensor.shape)}, got "
                f"{list(shape)}" + "; if it holds three projections, name it in packed=" * packed
            )
        if parts == 1:
            return tensor[tuple(slice(n) for n in shape)]
        if tensor.shape[0] % parts or shape[0] % parts:
            raise ConfigError(
                f"Elastic: {name} must hold {parts} projections, got {list(tensor.shape)} and "
                f"{list(shape)}; correct packed="
            )
        inner = (slice(None), slice(shape[0] // parts), *(slice(n) for n in shape[1:]))
        return tensor.unflatten(0, (parts, -1))[inner].flatten(0, 1)

    def _corners(self) -> list[Choice]:
        """The smallest, and the largest with each other value of each argument."""
        valid = self.space.valid
        some = [{**self.largest, k: v} for k, vs in self.space.choices.items() for v in vs]
        return [self.least, *(c for c in some if valid is None or valid(**c))]

    def _size(self, choice: Choice) -> int:
        return count_parameters(self.skeleton(choice))


class ElasticSandwich(Sandwich):
    """Train an `Elastic` by the sandwich rule: the largest, the smallest, some at random.

    Arguments as of `potstill.core.schemes.Sandwich`; with ``delay=0`` it is BigNAS. Candidates that
    ``valid`` refuses are not drawn.
    """

    def __init__(self, student: Elastic, steps: int, **options: Any) -> None:
        super().__init__(student, steps, **options)
        self.space, self.least, self.largest = student.space, student.least, None

    def run(self, part: Choice | None, x: Any) -> Tensor:
        """Logits of a candidate."""
        logits: Tensor = self.student(x, part)
        return logits

    def draw(self) -> Choice:
        """A candidate, all alike."""
        space, stream = self.space, common_draws().generator
        while True:
            choice = {
                name: values[int(torch.randint(len(values), (), generator=stream))]
                for name, values in space.choices.items()
            }
            if space.valid is None or space.valid(**choice):
                return choice


def recalibrate(model: nn.Module, batches: Iterable[Any], count: int = 20) -> nn.Module:
    """Take the statistics of batch norms anew, as plain means over batches, in place.

    Args:
        model: Any model; without batch norms it is left alone. It is left in eval mode.
        batches: Inputs, or tuples that begin with them.
        count: Largest number of batches.
    """
    norms = [module for module in model.modules() if isinstance(module, _NORM)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    if not norms:
        return model
    device = next(model.parameters()).device
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for batch, _ in zip(batches, range(count), strict=False):
            model((batch[0] if isinstance(batch, tuple | list) else batch).to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()
