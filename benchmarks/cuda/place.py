"""Where the proof runs: a GPU, or in a dry run the CPU in its place; the engine is told once."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from potstill.core import Engine

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKEND = "inductor" if DEVICE == "cuda" else "eager"  # of torch.compile


class DrawnOnTheCPU(TorchDispatchMode):
    """Random numbers are those of the CPU's generators, so that both devices draw the same."""

    def __init__(self) -> None:
        super().__init__()
        self.twins: dict[torch.Generator, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        places: list[torch.device] = []

        def home(value: Any) -> Any:
            if isinstance(value, torch.Tensor | torch.device):
                places.append(value if isinstance(value, torch.device) else value.device)
                if isinstance(value, torch.device):
                    return torch.device("cpu")
                return value if value.is_meta else value.cpu()
            return self._twin(value) if isinstance(value, torch.Generator) else value

        random = torch.Tag.nondeterministic_seeded in func.tags
        moved = tree_map(home, (args, kwargs)) if random else None
        if moved is None or all(place.type in ("cpu", "meta") for place in places):
            return func(*args, **kwargs)
        target = next(place for place in places if place.type != "cpu")
        result = tree_map(
            lambda v: v.to(target) if isinstance(v, torch.Tensor) else v,
            func(*moved[0], **moved[1]),
        )
        written = [a for a in func._schema.arguments if a.is_write]
        if not written:
            return result
        named = dict(zip([a.name for a in func._schema.arguments], args, strict=False)) | kwargs
        return named[written[0].name].copy_(result)

    def _twin(self, generator: torch.Generator) -> torch.Generator:
        if generator.device.type == "cpu":
            return generator
        twin = self.twins.get(generator)
        if twin is None or twin.initial_seed() != generator.initial_seed():
            twin = torch.Generator().manual_seed(generator.initial_seed())
            self.twins[generator] = twin
        return twin


@contextmanager
def engines(device: str, precision: str = "fp32", compiled: bool = False) -> Iterator[None]:
    """Every engine of the block is on that device, in that precision, whatever was asked for."""
    start, wrap = Engine.__init__, Engine.wrap

    def init(self: Engine, *_: Any, **__: Any) -> None:
        start(self, device, "fp32" if _half_on_cpu(device, precision) else precision)  # type: ignore[arg-type]
        if _half_on_cpu(device, precision):
            _scale(self)

    def wrapped(self: Engine, module: Any, *rest: Any, **more: Any) -> Any:
        module.student.compile(backend=BACKEND)  # in place: no name changes
        return wrap(self, module, *rest, **more)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Engine, "__init__", init))
        if compiled:
            stack.enter_context(mock.patch.object(Engine, "wrap", wrapped))
        stack.enter_context(_exact())
        yield


def _half_on_cpu(device: str, precision: str) -> bool:
    return device == "cpu" and precision == "fp16"


def _scale(engine: Any) -> None:
    """What the engine refuses to users: float16 on the CPU, as a dry run of its loss scaling."""
    accelerator = engine._accelerator
    accelerator.scaler = torch.amp.GradScaler("cpu")
    engine.autocast = lambda: torch.autocast("cpu", torch.float16)
    engine.precision = "fp16"


@contextmanager
def _exact() -> Iterator[None]:
    """float32 is float32: without TF32, whose 10 bits would hide what is wrong."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def drawn_alike() -> Iterator[None]:
    """Compiled code draws what the same code draws that is not compiled."""
    from torch._inductor import config

    with config.patch(fallback_random=True):
        yield


def graphs() -> int:
    """How many graphs Dynamo has made."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
