"""Students as folders: ``model.safetensors``, ``config.json``, a model card; local or on the Hub.

Loading executes nothing: the weights are safetensors and the configuration is plain JSON without
class paths. The teacher and the projectors of a distillation are not part of the student.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import tempfile
import typing
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from potstill.core.command import config as configs
from potstill.core.errors import CheckpointError, ConfigError, DataError, nearest

__all__ = ["MissingModelError", "Pretrained"]

_Model = TypeVar("_Model", bound="Pretrained")

_CONFIG, _WEIGHTS, _CARD = "config.json", "model.safetensors", "README.md"
_ABOUT = ("potstill_package", "potstill_version", "paper", "teacher", "metrics")

_TEMPLATE = """\
---
{{ card_data }}
---

# {{ model_name }}

A student distilled with [potstill](https://pypi.org/project/{{ package }}/).

```python
from {{ module }} import {{ model_name }}

model = {{ model_name }}.from_pretrained("{{ folder }}")
```
{% if teacher %}
Teacher: {{ teacher }}
{% endif %}{% if paper %}
Method: {{ paper }}{% if paper_url %} ({{ paper_url }}){% endif %}
{% endif %}{% if metrics %}
| metric | value |
|---|---|
{% for name, value in metrics.items() %}| {{ name }} | {{ value }} |
{% endfor %}{% endif %}"""


class MissingModelError(DataError, FileNotFoundError):
    """A folder of a model, or a file in it, that is not there."""


class Pretrained(
    PyTorchModelHubMixin,
    library_name="potstill",
    tags=["distillation"],
    model_card_template=_TEMPLATE,
):
    """Gives a module ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.

    Built on Hugging Face's mixin, which remembers the arguments of ``__init__`` as the
    configuration: they must be numbers, strings, tuples of such, or dataclasses. Unlike there,
    loading is strict, a path is never taken for the name of a repository, pickles are not read,
    and files are replaced whole. Name the source of the method as an argument of the class:
    ``class MLP(nn.Module, Pretrained, paper="Authors, venue")``.

    Example:
        >>> import torch
        >>> class Tiny(torch.nn.Linear, Pretrained):
        ...     def __init__(self, width: int = 2):
        ...         super().__init__(width, 1)
        >>> model = Tiny(3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder, metrics={"accuracy": 0.9})
        ...     again = Tiny.from_pretrained(folder)
        >>> again.in_features, torch.equal(again.weight, model.weight)
        (3, True)
    """

    _paper = ""

    def __init_subclass__(cls, *, paper: str | None = None, **card: Any) -> None:
        super().__init_subclass__(**card)
        if paper is not None:
            cls._paper = paper
        try:
            # The mixin compares annotations with types, which `from __future__ import annotations`
            # has turned into strings.
            signature = inspect.signature(cls.__init__, eval_str=True)
            cls._hub_mixin_init_parameters = dict(signature.parameters)
        except NameError:
            pass  # annotated with a name that is imported for type checkers only: stays a string

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        teacher: str = "",
        metrics: Mapping[str, float] | None = None,
        **options: Any,
    ) -> str | None:
        """Write weights, configuration and, where there is none yet, a model card.

        Args:
            save_directory: Made when missing; other files in it stay.
            teacher: What the student learned from, for the card.
            metrics: Figures that were measured, for the card.
            **options: Of the mixin: ``config``, ``repo_id``, ``push_to_hub`` and its options.

        Returns:
            The address of the commit with ``push_to_hub=True``, else None.

        Raises:
            ConfigError: An argument of ``__init__`` cannot be written as JSON.
        """
        target = Path(save_directory)
        about = {**self._about(), "teacher": teacher, "metrics": dict(metrics or {})}
        card = {
            **about,
            **self._origin(),
            "folder": target.name,
            **options.pop("model_card_kwargs", {}),
        }
        push = options.pop("push_to_hub", False)
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=target) as temporary:
            super().save_pretrained(temporary, config=options.get("config"), model_card_kwargs=card)
            self._complete_config(Path(temporary, _CONFIG), about)
            for name in (_WEIGHTS, _CONFIG, _CARD):  # the configuration last of the two that count
                if name != _CARD or not (target / _CARD).exists():
                    os.replace(Path(temporary, name), target / name)
        if push:
            name = options.pop("repo_id", None) or target.name
            return str(self.push_to_hub(name, model_card_kwargs=card, **options))
        return None

    @classmethod
    def from_pretrained(
        cls: type[_Model],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        map_location: str = "cpu",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **arguments: Any,
    ) -> _Model:
        """Load a model from a folder, or from a repository ``owner/name`` of the Hub.

        Args:
            pretrained_model_name_or_path: A name counts as a path when it exists, when its first
                part is a folder here, or when it is not of the form ``owner/name``.
            map_location: Device of the weights.
            revision: Branch, tag or commit on the Hub.
            token: For private repositories.
            cache_dir: Where downloads are kept.
            force_download: Download again what is in the cache.
            local_files_only: Use the cache, never the network.
            **arguments: Replace arguments of ``__init__`` from the configuration.

        Returns:
            The model, in eval mode.

        Raises:
            MissingModelError: The folder, or a file in it, is not there.
            CheckpointError: The configuration or the weights are damaged or do not fit.
            DataError: The Hub cannot be reached, or has no such model.
        """
        folder = _local(cls.__name__, pretrained_model_name_or_path)
        if folder is None:
            try:
                fetched = snapshot_download(
                    str(pretrained_model_name_or_path),
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    allow_patterns=[_CONFIG, _WEIGHTS],
                )
            except Exception as error:  # of several libraries below the Hub client
                raise DataError(
                    f"{cls.__name__}.from_pretrained: {pretrained_model_name_or_path!r} must be a "
                    f"folder or a repository of the Hub that can be reached, got "
                    f"{type(error).__name__}: {error}"
                ) from error
            folder = Path(fetched)
        cls._check_folder(folder, arguments)
        try:
            return super().from_pretrained(folder, map_location=map_location, **arguments)
        except (ConfigError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{cls.__name__}.from_pretrained: {folder / _CONFIG} must hold the arguments of "
                f"{cls.__name__}, got: {error}"
            ) from error

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        map_location: str = "cpu",
        **arguments: Any,
    ) -> Any:
        """Build the model from ``arguments`` and fill it from the folder ``model_id``, strictly."""
        model: Any = cls(**arguments)
        path = Path(model_id, _WEIGHTS)
        try:
            load_model(model, path, strict=True, device=map_location)
        except SafetensorError as error:
            raise CheckpointError(
                f"{cls.__name__}.from_pretrained: {path} must be a whole safetensors file, got: "
                f"{error}; copy or save it again"
            ) from error
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{cls.__name__}.from_pretrained: {path} must fit the {_CONFIG} beside it, got: "
                f"{reason[:400]}; is this the folder of another model?"
            ) from error
        return model.to(map_location).eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        # Not the mixin's, which takes an attribute called `module` for a wrapper.
        save_model(typing.cast(Any, self), str(save_directory / _WEIGHTS))

    @classmethod
    def _decode_arg(cls, expected_type: Any, value: Any) -> Any:
        """Undo what JSON does: dataclasses became objects, tuples became lists."""
        if dataclasses.is_dataclass(expected_type) and isinstance(value, Mapping):
            fields = {field.name for field in dataclasses.fields(expected_type)}
            values = {k: v for k, v in value.items() if k in fields or k not in _ABOUT}
            return configs.build(typing.cast(type, expected_type), values, source=_CONFIG)
        if isinstance(value, list) and typing.get_origin(expected_type) is tuple:
            return tuple(value)
        return super()._decode_arg(expected_type, value)

    @classmethod
    def _about(cls) -> dict[str, str]:
        package = "-".join(cls.__module__.split(".")[:2])
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:  # a model of the user's own
            package, version = "potstill-core", metadata.version("potstill-core")
        return {"potstill_package": package, "potstill_version": version, "paper": cls._paper}

    @classmethod
    def _origin(cls) -> dict[str, str]:
        parts = cls.__module__.split(".")
        module = ".".join(parts[:2]) if parts[0] == "potstill" else cls.__module__
        about = cls._about()
        return {"module": module, "model_name": cls.__name__, "package": about["potstill_package"]}

    def _complete_config(self, path: Path, about: Mapping[str, Any]) -> None:
        values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        needed = [
            name
            for name, parameter in _arguments(type(self)).items()
            if parameter.default is parameter.empty and name not in ("config", *values)
        ]
        if needed:
            raise ConfigError(
                f"{type(self).__name__}.save_pretrained: arguments of __init__ must be numbers, "
                f"strings, tuples of such or dataclasses, got something else for "
                f"{', '.join(needed)}"
            )
        path.write_text(json.dumps({**values, **about}, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def _check_folder(cls, folder: Path, given: Mapping[str, Any]) -> None:
        """Refuse a folder that is incomplete, or whose configuration is not one of this class."""
        for name in (_CONFIG, _WEIGHTS):
            if not (folder / name).is_file():
                raise MissingModelError(
                    f"{cls.__name__}.from_pretrained: {folder} must hold {_CONFIG} and {_WEIGHTS}, "
                    f"got no {name}"
                )
        path = folder / _CONFIG
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(
                f"{cls.__name__}.from_pretrained: {path} must be JSON, got: {error}"
            ) from error
        if not isinstance(values, dict):
            raise CheckpointError(
                f"{cls.__name__}.from_pretrained: {path} must be a JSON object, got "
                f"{type(values).__name__}"
            )
        known = _arguments(cls)
        if "config" in known or any(p.kind is p.VAR_KEYWORD for p in known.values()):
            return  # checked where the configuration is built
        _refuse_unknown(cls.__name__, path, (k for k in values if k not in _ABOUT), known)
        missing = [
            name
            for name, parameter in known.items()
            if parameter.default is parameter.empty and name not in values and name not in given
        ]
        if missing:
            raise CheckpointError(
                f"{cls.__name__}.from_pretrained: {path} must hold {', '.join(missing)}, got "
                f"{', '.join(values) or 'nothing'}"
            )


def _arguments(cls: Any) -> dict[str, inspect.Parameter]:
    """The parameters of ``__init__`` that a configuration can fill."""
    found: Mapping[str, inspect.Parameter] = cls._hub_mixin_init_parameters
    return {n: p for n, p in found.items() if n != "self" and p.kind is not p.VAR_POSITIONAL}


def _refuse_unknown(model: str, path: Path, keys: Iterable[str], known: Iterable[str]) -> None:
    for key in keys:
        if key not in known:
            raise CheckpointError(
                f"{model}.from_pretrained: {path} has {key!r}, which {model} does not take; "
                f"{nearest(key, known)}"
            )


def _local(model: str, name: str | os.PathLike[str]) -> Path | None:
    """The folder that ``name`` stands for; None for a repository of the Hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise MissingModelError(f"{model}.from_pretrained: {path} must be a folder, got a file")
    is_name = isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name)
    if is_name and not Path(path.parts[0]).is_dir():
        return None
    raise MissingModelError(
        f"{model}.from_pretrained: {path} must be a folder with {_CONFIG} and {_WEIGHTS}, got "
        "nothing there; a model of the Hub is called owner/name"
    )
