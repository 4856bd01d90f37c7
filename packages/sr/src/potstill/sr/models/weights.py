"""Weight files: what network they hold, under which names, and how to write them."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Mapping
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from potstill.core import ConfigError, DataError, atomic, nearest
from potstill.sr.models.base import Upscaler
from potstill.sr.models.challenge import IMDN_RTC, IMDN_RTE
from potstill.sr.models.foreign import load_foreign
from potstill.sr.models.imdn import IMDN, IMDN_AS

__all__ = [
    "PRETRAINED",
    "Description",
    "detect",
    "load_model",
    "load_tensors",
    "renamed",
    "save_model",
]

PRETRAINED = {f"potstill-x{scale}": f"potstill-x{scale}.safetensors" for scale in (2, 3, 4)}
"""Our own weights, which come with the package: small students, trained on free photographs."""

_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")

ARCHITECTURES: dict[str, type[Upscaler]] = {
    cls.architecture: cls for cls in (IMDN, IMDN_AS, IMDN_RTC, IMDN_RTE)
}

_WRAPPERS = ("params_ema", "params", "net_g", "state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "net_g.", "generator.", "model.")  # of every tensor

# Official name -> ours; what matches none is kept, so that our own names pass through.
_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^fea_conv\.", "head."),
        (r"^IMDB(\d+)\.", "blocks.{0}."),
        (r"^block(\d+)\.", "blocks.{0}."),
        (r"^model\.1\.sub\.(\d+)\.(?=c\d)", "blocks.{=0}."),
        (r"^model\.1\.sub\.\d+\.", "body_out."),
        (r"^model\.0\.", "head."),
        (r"^model\.2\.", "upsampler."),
        (r"^c\.0\.", "collect."),
        (r"^LR_conv\.", "body_out."),
        (r"^upsampler\.0\.", "upsampler."),
    )
]


class Description(NamedTuple):
    """What the shapes in a file say.

    Attributes:
        architecture: "imdn", "imdn_as", "imdn_rtc" or "imdn_rte".
        config: Arguments of that class.
    """

    architecture: str
    config: dict[str, Any]

    def build(self) -> Upscaler:
        """The network, with random weights."""
        return ARCHITECTURES[self.architecture](**self.config)


def load_model(
    source: str | os.PathLike[str],
    *,
    scale: int | None = None,
    expect: type[Upscaler] = Upscaler,
    strict: bool = True,
) -> Upscaler:
    """Read a network of the family from a file or by name, in eval mode on the CPU.

    The file's tensors may have the official names, with or without ``module.``, or ours; they say
    which variant, factor, width and depth it is. The bicubic skip leaves no tensor: it is read from
    the file's metadata.

    With ``potstill-sr[spandrel]``, files of the architectures that spandrel knows are read too.

    Args:
        source: ``.safetensors`` or ``.pth`` file, or one of ``PRETRAINED``.
        scale: Factor that is expected.
        expect: Class that is expected, such as `IMDN`; any network of the family by default.
        strict: Every tensor must be there, and no other.

    Raises:
        DataError: Nothing there, or a damaged file.
        ConfigError: An unknown name, another architecture or factor, or tensors that do not fit.

    Example:
        >>> load_model("potstill-x2", expect=IMDN).channels
        32
    """
    path = _resolve(source)
    tensors, metadata = load_tensors(path)
    try:
        described = detect(tensors, name=str(source), metadata=metadata)
    except ConfigError:
        if expect is not Upscaler or find_spec("spandrel") is None:
            raise
        foreign = load_foreign(path)
        _check_scale(source, foreign, scale)
        return foreign
    model = described.build()
    if not isinstance(model, expect):
        raise ConfigError(
            f"load_model: {source} must hold {expect.__name__} weights, got "
            f"{type(model).__name__}; choose other weights or leave expect out"
        )
    _check_scale(source, model, scale)
    state = {key: value.float() for key, value in renamed(tensors).items()}
    wanted = model.state_dict()
    odd = _some("missing", set(wanted) - set(state)) + _some("unknown", set(state) - set(wanted))
    if strict and odd:
        raise ConfigError(
            f"load_model: {source} must hold exactly the tensors of {described.architecture}, got "
            f"{odd}; pass strict=False to ignore"
        )
    for key in set(state) & set(wanted):
        if state[key].shape != wanted[key].shape:
            raise ConfigError(
                f"load_model: {key} of {source} must be {list(wanted[key].shape)}, got "
                f"{list(state[key].shape)}; the file mixes architectures"
            )
    model.load_state_dict(state, strict=False)
    return model.eval()


def _check_scale(source: str | os.PathLike[str], model: Upscaler, scale: int | None) -> None:
    if scale is not None and scale != model.scale:
        raise ConfigError(
            f"load_model: scale must be {model.scale} for {source}, got {scale}; choose other "
            "weights or leave scale out"
        )


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a weight file; nothing in it is executed.

    Dictionaries around the weights (``params``, ``params_ema``, ``state_dict``) are opened.

    Raises:
        DataError: The file is missing, empty, damaged or something else, holds more than tensors,
            or its suffix is none of ``.safetensors``, ``.pth``, ``.pt``, ``.ckpt``, ``.bin``.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"load_model: {path} must be a file, got nothing there; check the path")
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(
            f"load_model: {path} must end in {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}, got "
            f"{path.suffix or 'no suffix'!r}"
        )
    if _looks_like(path) == "safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        except (SafetensorError, ValueError) as error:
            raise DataError(
                f"load_model: {path} must be a whole safetensors file, got: {error}; fetch it again"
            ) from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"load_model: {path} must hold nothing but tensors, got a pickle that wants to run "
            "code, which was refused; ask its author for safetensors"
        ) from error
    except Exception as error:  # torch raises a dozen kinds here, from KeyError to EOFError
        raise DataError(
            f"load_model: {path} must be a whole checkpoint, got: {error}; fetch it again"
        ) from error
    return _unwrap(loaded, path), {}


def _looks_like(path: Path) -> str:
    """Kind of a weight file by its first bytes, whatever its suffix is.

    Raises:
        DataError: It is none; says what it is.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return "torch"
    if path.suffix.lower() == ".safetensors" or head[8:9] == b"{":
        return "safetensors"
    text = head.lstrip().lower()
    if not head:
        found = "an empty file"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml")):
        found = "a web page, so the download went wrong"
    elif text.startswith(b"version https://git-lfs"):
        found = "a pointer of Git LFS, which stands for the file"
    else:
        found = "something else"
    raise DataError(
        f"load_model: {path} must be a checkpoint or safetensors, got {found}; fetch it again"
    )


def detect(
    tensors: Mapping[str, Tensor],
    *,
    name: str = "weights",
    metadata: Mapping[str, str] | None = None,
) -> Description:
    """Say which network ``tensors`` belong to, from their names and shapes.

    IMDN_AS has the upsampler of a factor of 4, so the head decides. RTC has no attention, RTE six
    convolutions in a block.

    Raises:
        ConfigError: They belong to another architecture.
    """
    state = renamed(tensors)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    indices = {int(m[1]) for key in shapes if (m := re.match(r"blocks\.(\d+)\.", key))}
    head = shapes.get("head.weight") or shapes.get("head.0.weight")
    tail = shapes.get("upsampler.weight")
    if not indices or head is None or tail is None or indices != set(range(len(indices))):
        raise ConfigError(
            f"load_model: {name} must be weights of IMDN, IMDN_AS, IMDN_RTC or IMDN_RTE, got "
            f"{len(shapes)} tensors such as {', '.join(sorted(tensors)[:3]) or 'none'}; with "
            "potstill-sr[spandrel] many other architectures load"
        )
    channels, blocks = head[0], len(indices)
    sizes: dict[str, Any] = {"channels": channels, "blocks": blocks}
    if "blocks.0.convs.0.weight" in shapes:
        return Description("imdn_rte", sizes)
    if "blocks.0.gate.down.weight" not in shapes:
        if "collect.weight" in shapes:
            raise ConfigError(
                f"load_model: {name} must be weights with channel attention, got {blocks} blocks "
                "without it, the layout of the NTIRE 2022 baseline; that network is not supported"
            )
        return Description("imdn_rtc", sizes)
    if "head.0.weight" in shapes:
        return Description("imdn_as", sizes)
    skip = json.loads((metadata or {}).get("config", "{}")).get("global_skip")
    scale = round((tail[0] / 3) ** 0.5)
    return Description("imdn", {"scale": scale, **sizes, "global_skip": skip})


def save_model(
    model: Upscaler,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    **metadata: str,
) -> Path:
    """Write weights, with what is needed to build the network again, as safetensors.

    Args:
        model: Network of the family.
        path: File; its folder is made when missing.
        dtype: Type to store in: float16 halves the file.
        **metadata: Texts for the header, e.g. ``licence`` or ``data``.

    Returns:
        The path.

    Raises:
        ConfigError: ``model`` is of another family.
    """
    architecture = getattr(model, "architecture", None)
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"save_model: model must be one of {', '.join(ARCHITECTURES)}, got "
            f"{type(model).__name__}"
        )
    state = {k: v.detach().to("cpu", dtype).contiguous() for k, v in model.state_dict().items()}
    header = {"architecture": architecture, "config": json.dumps(model.config), **metadata}
    with atomic(path) as temporary:
        save_file(state, temporary, header)
    return Path(path)


def _resolve(source: str | os.PathLike[str]) -> Path:
    """The file behind a name or a path."""
    text = os.fspath(source)
    if text in PRETRAINED:
        return Path(str(resources.files("potstill.sr") / "pretrained" / PRETRAINED[text]))
    if Path(text).suffix or os.sep in text or Path(text).exists():
        return Path(text)
    raise ConfigError(
        f"load_model: {text!r} is neither a file nor a name of ours; {nearest(text, PRETRAINED)}"
    )


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise DataError(
            f"load_model: {path} must hold tensors by name, got {type(loaded).__name__}"
        )
    tensors = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
    if not tensors:
        raise DataError(
            f"load_model: {path} must hold tensors by name, got the keys "
            f"{', '.join(map(str, list(loaded)[:5])) or 'none'}"
        )
    return tensors


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names, whether they have the official ones or these."""
    bare = dict(tensors)
    while prefix := next((p for p in _PREFIXES if _common(p, bare)), None):
        bare = {key.removeprefix(prefix): value for key, value in bare.items()}
    large = any(re.match(r"block\d+\.c7\.", key) for key in bare)
    return {_rename(key, large): value for key, value in bare.items()}


def _common(prefix: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether every tensor has a prefix that says nothing; the official RTC begins with model.0."""
    official = any(re.match(r"model\.\d", key) for key in tensors)
    return bool(tensors) and not official and all(key.startswith(prefix) for key in tensors)


def _rename(key: str, large: bool) -> str:
    for pattern, replacement in _RENAMES:
        if match := pattern.match(key):
            first = int(match[1]) - ("=" not in replacement) if match.groups() else 0
            key = replacement.replace("=", "").format(first) + key[match.end() :]
            break
    if key.startswith("blocks."):
        key = re.sub(r"\.cca\.conv_du\.0\.", ".gate.down.", key)
        key = re.sub(r"\.cca\.conv_du\.2\.", ".gate.up.", key)
        fuse = 7 if large else 5
        key = re.sub(rf"\.c{fuse}\.", ".fuse.", key)
        key = re.sub(
            r"\.c(\d)\.", lambda m: f".convs.{int(m[1]) - 1}." if large else f".conv{m[1]}.", key
        )
    return key


def _some(label: str, names: set[str]) -> str:
    some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {label} ({some}) " if names else ""
