"""The engine: where a step runs. Device, precision and processes, on Hugging Face accelerate.

accelerate is used for what it does well (device, autocast, loss scaling, reductions); it gets
neither the data order nor the checkpoints, and it is imported here only.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from potstill.core.errors import BackendError, ConfigError

__all__ = ["Engine", "resolve_device"]

# torch renamed the option in 2.15 and warns about the old name.
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in signature(DistributedDataParallel).parameters
)
Precision = Literal["fp32", "bf16", "fp16"]
Parallel = Literal["ddp", "fsdp"]


class Engine:
    """Device, precision and processes of a run; a context manager.

    Start several processes with ``torchrun``; each makes one engine and passes it to every `fit`.
    Leaving the block tears down in the order that does not abort: first the wrapped modules, then
    the process group.

    Args:
        device: ``"auto"`` (CUDA, else MPS, else CPU), ``"cpu"``, ``"cuda"`` or ``"mps"``.
        precision: ``"fp32"``; ``"bf16"`` or ``"fp16"`` by autocast, weights stay fp32.
        parallel: With several processes: ``"ddp"``, every process holds the model, or ``"fsdp"``,
            parameters, gradients and optimizer are sharded (FSDP2).
        find_unused: With DDP: search each step for parameters that took no part. Criteria whose
            weight is zero need it not; students that skip parts of themselves do.

    Raises:
        BackendError: The device is not there, or cannot run the precision.
        ConfigError: An unknown precision or way of parallelism.

    Example:
        >>> with Engine(device="cpu") as engine:
        ...     engine.device.type, engine.world
        ('cpu', 1)
    """

    def __init__(
        self,
        device: str = "auto",
        precision: Precision = "fp32",
        parallel: Parallel = "ddp",
        find_unused: bool = False,
    ) -> None:
        from accelerate import Accelerator

        on_cpu = _check(device, precision, parallel).type == "cpu"
        self.precision = precision
        self.parallel = parallel
        self.find_unused = find_unused
        self._accelerator = Accelerator(
            cpu=on_cpu, mixed_precision="no" if precision == "fp32" else precision
        )
        self._wrapped: list[nn.Module] = []

    @property
    def device(self) -> torch.device:
        """Where tensors go."""
        return self._accelerator.device

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self._accelerator.process_index

    @property
    def world(self) -> int:
        """How many processes there are."""
        return self._accelerator.num_processes

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether parameters are spread over the processes."""
        return self.world > 1 and self.parallel == "fsdp"

    def place(self, batch: Any) -> Any:
        """Move tensors, containers of tensors and anything with ``.to`` to the device."""
        from accelerate.utils import send_to_device

        return send_to_device(batch, self.device, non_blocking=True)

    def wrap(self, module: nn.Module, instead_of: nn.Module | None = None) -> nn.Module:
        """A view of ``module`` that trains in all processes; itself where there is one.

        The view is of the parameters that require a gradient now, so each set of them needs one;
        ``instead_of`` is a view that is not needed any more.
        """
        self._wrapped = [view for view in self._wrapped if view is not instead_of]
        if self.world == 1:
            return module
        if self.sharded:
            return module if _is_sharded(module) else _shard(module)
        options: dict[str, Any] = {_SYNC_BUFFERS: False}  # batch statistics stay each process's own
        wrapped = DistributedDataParallel(
            module,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            find_unused_parameters=self.find_unused,
            **options,
        )
        self._wrapped.append(wrapped)
        return wrapped

    def prepare_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Let the loss scaler of fp16, where there is one, skip steps of ``optimizer``."""
        if self._accelerator.scaler is None:
            return optimizer
        return self._accelerator.prepare_optimizer(optimizer)

    def autocast(self) -> AbstractContextManager[Any]:
        """The forward in the engine's precision."""
        return self._accelerator.autocast()

    def accumulating(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Around the forward and backward of a micro-batch: gradients travel with the last one."""
        if last or self.world == 1:
            return nullcontext()
        return _unsynchronised(module) if self.sharded else self._accelerator.no_sync(module)

    def exchange(self, module: nn.Module) -> None:
        """Between forward and backward: let sharded gradients travel with this one after all."""
        if self.sharded:
            module.set_requires_gradient_sync(True)  # type: ignore[operator]

    def backward(self, loss: Tensor, again: bool = False) -> None:
        """Backward, with the loss scaled where the precision needs it.

        ``again`` keeps what another backward through the same forward needs.
        """
        self._accelerator.backward(loss, retain_graph=again)

    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
        """Scale gradients to a total norm of at most ``limit``; returns the norm before."""
        norm: Any = self._accelerator.clip_grad_norm_(parameters, limit)
        whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return whole

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes of a 1-D tensor."""
        if self.world == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values

    def agree(self, value: Any) -> Any:
        """The main process's ``value``, in every process."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    @contextmanager
    def as_main(self, module: nn.Module) -> Iterator[None]:
        """In the block buffers are those of the main process: batch statistics differ."""
        own = {buffer: buffer.clone() for buffer in module.buffers() if self.world > 1}
        for buffer in own:
            dist.broadcast(buffer, src=0)
        try:
            yield
        finally:
            for buffer, value in own.items():
                buffer.copy_(value)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank, in each of them."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The others enter the block when the main process has left it: they find what it wrote."""
        if not self.main:
            self.barrier()
        try:
            yield
        finally:  # what fails in the main process fails in the others by itself
            if self.main:
                self.barrier()

    def state_of(self, module: nn.Module, copy: bool = True) -> dict[str, Any]:
        """The whole ``state_dict`` of ``module``, copied to the CPU, or as it is.

        Collective when sharded; then only the main process gets it, the others an empty one.
        """
        if self.sharded:
            state: dict[str, Any] = get_model_state_dict(module, options=_whole())
        else:
            state = {k: v.detach() for k, v in module.state_dict().items()}
            state = {k: v.to("cpu", copy=True) for k, v in state.items()} if copy else state
        return {plain_name(name): value for name, value in state.items()}

    def put_state(self, module: nn.Module, state: dict[str, Any]) -> None:
        """Load what `state_of` gave, compiled or not."""
        names = {plain_name(name): name for name in module.state_dict()}
        state = {names.get(name, name): value for name, value in state.items()}
        if self.sharded:
            set_model_state_dict(module, state, options=_from_main())
        else:
            module.load_state_dict(state)

    def tied(self, module: nn.Module) -> dict[str, str]:
        """Names of weights that are others under a second name, with the first one."""
        first: dict[Tensor, str] = {}
        found = {}
        for name, value in module.state_dict(keep_vars=True).items():
            kept = first.setdefault(value, plain_name(name))
            if kept != plain_name(name):
                found[plain_name(name)] = kept
        return found

    def pieces(
        self, module: nn.Module, optimizer: Optimizer
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What module and optimizer hold, by name: sharded tensors, and what each process has."""
        flat = _flat(module)
        for name, parameter in module.named_parameters():
            for key, value in _bare(optimizer).state.get(parameter, {}).items():
                flat[f"{_moments(name)}{key}"] = value
        shards: dict[str, Tensor] = {k: v for k, v in flat.items() if isinstance(v, DTensor)}
        return shards, {k: v for k, v in flat.items() if k not in shards}

    def put_pieces(
        self, module: nn.Module, optimizer: Optimizer | None, names: Sequence[str],
        rest: Mapping[str, Any], fill: Callable[[dict[str, Tensor]], None],
    ) -> None:  # fmt: skip
        """Load what `pieces` gave into modules that are sharded or whole.

        Args:
            module: Module whose weights are filled.
            optimizer: Its optimizer, whose options stay; None loads no moments.
            names: Names of the shards.
            rest: Part of each process.
            fill: Reads shards into tensors of these names.
        """
        flat, bare = _flat(module), None if optimizer is None else _bare(optimizer)
        own = {parameter: _moments(name) for name, parameter in module.named_parameters()}
        moments: dict[nn.Parameter, dict[str, Any]] = {
            parameter: {
                name.removeprefix(prefix): rest.get(name, torch.empty_like(parameter))
                for name in [*names, *rest]
                if name.startswith(prefix) and "." not in name.removeprefix(prefix)
            }
            for parameter, prefix in own.items()
            if bare is not None
        }
        flat |= {f"{own[p]}{k}": v for p, state in moments.items() for k, v in state.items()}
        fill({name: flat[name] for name in names if name in flat})
        for name in rest.keys() & _flat(module).keys():
            flat[name].copy_(rest[name])
        if bare is not None:
            groups = bare.state_dict()["param_groups"]
            numbers = [number for group in groups for number in group["params"]]
            params = [parameter for group in bare.param_groups for parameter in group["params"]]
            state = {n: moments[p] for n, p in zip(numbers, params, strict=True) if moments[p]}
            bare.load_state_dict({"state": state, "param_groups": groups})
            _lay_out_like_parameters(bare)

    def state_of_optimizer(self, module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state of ``optimizer`` and of the loss scaler; collective when sharded."""
        return {
            "optimizer": get_optimizer_state_dict(module, _bare(optimizer), options=_whole())
            if self.sharded
            else _bare(optimizer).state_dict(),
            "scaler": self.scaler,
        }

    @property
    def scaler(self) -> dict[str, Any] | None:
        """State of the loss scaler, where there is one."""
        scaler = self._accelerator.scaler
        return None if scaler is None else scaler.state_dict()

    @scaler.setter
    def scaler(self, state: dict[str, Any] | None) -> None:
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state)

    def put_state_of_optimizer(
        self, module: nn.Module, optimizer: Optimizer, state: dict[str, Any]
    ) -> None:
        """Load what `state_of_optimizer` gave."""
        if self.sharded:
            set_optimizer_state_dict(
                module, _bare(optimizer), state["optimizer"], options=_from_main()
            )
        else:
            _bare(optimizer).load_state_dict(state["optimizer"])
            _lay_out_like_parameters(_bare(optimizer))
        self.scaler = state["scaler"]

    def release(self) -> None:
        """Forget wrapped modules and optimizers: `fit` calls it when it is done."""
        self._wrapped.clear()
        if self.world > 1 or self._accelerator.scaler is not None:
            self._accelerator.free_memory()

    def close(self, failed: bool = False) -> None:
        """Tear down; the engine cannot be used afterwards.

        Args:
            failed: Do not wait for the other processes, which may never come.
        """
        from accelerate.state import AcceleratorState

        self.release()
        if dist.is_available() and dist.is_initialized():
            gc.collect()
            if not failed:
                dist.barrier()
            dist.destroy_process_group()
        # accelerate keeps its state per process and refuses a second engine with other settings.
        AcceleratorState._reset_state(reset_partial_state=True)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(failed=kind is not None)

    def __repr__(self) -> str:
        ranks = f", {self.parallel} {self.rank}/{self.world}" if self.world > 1 else ""
        return f"Engine({self.device}, {self.precision}{ranks})"


def plain_name(name: str) -> str:
    """The name of a parameter without what `torch.compile` puts into it."""
    return name.replace("_orig_mod.", "")


def resolve_device(device: str) -> torch.device:
    """The device that a word means on this machine.

    Args:
        device: ``"auto"`` (CUDA, else MPS, else CPU), ``"cpu"``, ``"cuda"``, ``"cuda:<number>"`` or
            ``"mps"``.

    Raises:
        ConfigError: Another word.
        BackendError: The device is not there.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,2})?|mps", device):
        raise ConfigError(f"device must be auto, cpu, cuda or mps, got {device!r}")
    found = torch.device(device)
    if found.type == "cuda" and not cuda:
        why = "finds no GPU and driver" if torch.version.cuda else "was built without CUDA"
        raise BackendError(
            f"device={device!r} was requested, but no CUDA device is available; this torch "
            f"({torch.__version__}) {why}: install a driver or another build, or pass device='cpu'"
        )
    if found.index is not None and found.index >= torch.cuda.device_count():
        raise BackendError(
            f"device={device!r} was requested, but there are {torch.cuda.device_count()} CUDA "
            "devices, counted from 0; pass device='cuda'"
        )
    if device == "mps" and not mps:
        raise BackendError(
            "device='mps' was requested, but no MPS device is available; pass device='cpu'"
        )
    return found


def _check(device: str, precision: str, parallel: str) -> torch.device:
    if precision not in ("fp32", "bf16", "fp16"):
        raise ConfigError(f"Engine: precision must be fp32, bf16 or fp16, got {precision!r}")
    if parallel not in ("ddp", "fsdp"):
        raise ConfigError(f"Engine: parallel must be ddp or fsdp, got {parallel!r}")
    if device not in ("auto", "cpu", "cuda", "mps"):  # accelerate chooses among several GPUs
        raise ConfigError(
            f"Engine: device must be auto, cpu, cuda or mps, got {device!r}; choose a single GPU "
            "with CUDA_VISIBLE_DEVICES"
        )
    found = resolve_device(device)
    if precision == "fp16" and found.type == "cpu":
        raise BackendError("Engine: fp16 needs a GPU; on the CPU use precision='bf16'")
    return found


def _bare(optimizer: Any) -> Optimizer:
    bare: Optimizer = getattr(optimizer, "optimizer", optimizer)
    return bare


def _lay_out_like_parameters(optimizer: Optimizer) -> None:
    """Give moments the strides of their parameters: fused kernels read raw memory."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _whole() -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, cpu_offload=True)


def _flat(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module as they are, by names of a checkpoint."""
    return {f"module.{plain_name(k)}": v.detach() for k, v in module.state_dict().items()}


def _moments(name: str) -> str:
    """What the names of a parameter's moments begin with."""
    return f"optimizer.{plain_name(name)}."


def _from_main() -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def _shard(distiller: nn.Module) -> nn.Module:
    """Shard the blocks of each stack, then the student, then the rest of the distiller."""
    from torch.distributed.fsdp import fully_shard

    for module in list(distiller.modules()):
        if isinstance(module, nn.ModuleList | nn.Sequential):
            for block in module.children():
                if next(block.parameters(), None) is not None:
                    fully_shard(block)
    fully_shard(distiller.student)  # type: ignore[arg-type]
    fully_shard(distiller)
    return distiller


def _is_sharded(module: nn.Module) -> bool:
    return hasattr(module, "set_requires_gradient_sync")


@contextmanager
def _unsynchronised(module: Any) -> Iterator[None]:
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)
