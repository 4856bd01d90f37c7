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
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from potstill.core.command import config as configs
from potstill.core.errors import BackendError, CheckpointError, ConfigError, DataError, nearest
from potstill.core.files import staging

__all__ = ["MissingModelError", "Pretrained"]

_Model = TypeVar("_Model", bound="Pretrained")

_CONFIG, _WEIGHTS, _CARD = "config.json", "model.safetensors", "README.md"
_ABOUT = ("potstill_package", "potstill_version", "paper", "teacher", "metrics")


class MissingModelError(DataError, FileNotFoundError):
    """A folder of a model, or a file in it, that is not there."""


class Pretrained:
    """Gives a module ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.

    The arguments of ``__init__`` are remembered as the configuration: they must be numbers,
    strings, tuples of such, or dataclasses. The methods are those of Hugging Face's mixin, but
    loading is strict, a path is never taken for the name of a repository, pickles are not read,
    files are replaced whole, and folders need no ``huggingface-hub``; the Hub needs the extra
    ``potstill-core[hub]``. Name the source of the method as an argument of the class, and metadata
    of the card if you like: ``class MLP(nn.Module, Pretrained, paper="Authors, venue",
    license="mit", tags=["graphs"])``.

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

    _paper: ClassVar[str] = ""
    _metadata: ClassVar[dict[str, Any]] = {"library_name": "potstill", "tags": ["distillation"]}
    _given: dict[str, str | None]

    def __init_subclass__(cls, *, paper: str | None = None, **card: Any) -> None:
        super().__init_subclass__()
        cls._paper = cls._paper if paper is None else paper
        tags = [*cls._metadata["tags"], *card.pop("tags", ())]
        cls._metadata = {**cls._metadata, **card, "tags": sorted(set(tags))}

    def __new__(cls: type[_Model], *arguments: Any, **named: Any) -> _Model:
        """Remember the arguments; a copy gets none here, and those of its original afterwards."""
        model = super().__new__(cls)
        given = {**dict(zip(_parameters(cls), arguments, strict=False)), **named}
        model._given = {name: _encoded(value) for name, value in given.items()}
        return model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        teacher: str = "",
        metrics: Mapping[str, float] | None = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        **options: Any,
    ) -> str | None:
        """Write weights, configuration and model card into a folder.

        Args:
            save_directory: Folder, made when missing; other files in it stay, and so does a card.
            teacher: Name of the teacher, for the model card.
            metrics: Figures that were measured, for the card.
            repo_id: Repository on the Hub; called like the folder by default.
            push_to_hub: Also upload the model.
            **options: Options of `push_to_hub`.

        Returns:
            The address of the commit with ``push_to_hub=True``, else None.

        Raises:
            ConfigError: An argument of ``__init__`` cannot be written as JSON.
            BackendError: ``push_to_hub=True`` without ``huggingface-hub``.
        """
        target = Path(save_directory)
        self._write(target, target.name, teacher, metrics)
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or target.name, teacher=teacher, metrics=metrics, **options)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        teacher: str = "",
        metrics: Mapping[str, float] | None = None,
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        **options: Any,
    ) -> str:
        """Upload weights, configuration and model card to the Hugging Face Hub.

        Args:
            repo_id: Repository ``owner/name``, made when missing.
            teacher: Name of the teacher, for the model card.
            metrics: Figures that were measured, for the card.
            private: Visibility of a new repository; by default what its owner chose.
            token: Access token; by default the one of ``hf auth login``.
            branch: Branch, made when missing; the main one by default.
            **options: Options of ``HfApi.upload_folder``: ``commit_message``, ``create_pr``, ...

        Returns:
            The address of the commit.

        Raises:
            ConfigError: An argument of ``__init__`` cannot be written as JSON.
            BackendError: ``huggingface-hub`` is not installed.
        """
        api = _hub(f"{type(self).__name__}.push_to_hub").HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self._write(Path(folder), repo_id, teacher, metrics)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if branch is not None:
                api.create_branch(repo_id, branch=branch, exist_ok=True)
            where = {"repo_id": repo_id, "folder_path": folder, "revision": branch}
            return str(api.upload_folder(**where, **options))

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
            cache_dir: Folder of downloads.
            force_download: Download again what is in the cache.
            local_files_only: Use the cache, never the network.
            **arguments: Replace arguments of ``__init__`` from the configuration.

        Returns:
            The model, in eval mode.

        Raises:
            MissingModelError: The folder, or a file in it, is not there.
            CheckpointError: The configuration or the weights are damaged or do not fit.
            DataError: The Hub cannot be reached, or has no such model.
            BackendError: A repository was named, and ``huggingface-hub`` is not installed.
        """
        caller = f"{cls.__name__}.from_pretrained"
        folder = _local(cls.__name__, pretrained_model_name_or_path)
        if folder is None:
            hub = _hub(caller)
            try:
                fetched = hub.snapshot_download(
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
                    f"{caller}: {pretrained_model_name_or_path!r} must be a folder or a "
                    f"repository of the Hub that can be reached, got "
                    f"{type(error).__name__}: {error}"
                ) from error
            folder = Path(fetched)
        values = _read(caller, folder)
        try:
            model = cls(**{**cls._decoded(folder / _CONFIG, values, arguments), **arguments})
        except Exception as error:  # whatever a constructor does with arguments of a stranger
            raise CheckpointError(
                f"{caller}: {folder / _CONFIG} must hold the arguments of {cls.__name__}, got: "
                f"{error}"
            ) from error
        _fill(caller, model, folder / _WEIGHTS, map_location)
        return typing.cast(_Model, typing.cast(Any, model).to(map_location).eval())

    def _write(
        self, target: Path, name: str, teacher: str, metrics: Mapping[str, float] | None
    ) -> None:
        about = {**self._about(), "teacher": teacher, "metrics": dict(metrics or {})}
        values = {**dict(sorted(self._configuration().items())), **about}
        with staging(target) as new:
            save_model(typing.cast(Any, self), str(new / _WEIGHTS))
            (new / _CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            (new / _CARD).write_text(self._card(name, about), encoding="utf-8")
            for part in (_WEIGHTS, _CONFIG, _CARD):  # the configuration last of the two that count
                if part != _CARD or not (target / _CARD).exists():
                    os.replace(new / part, target / part)

    def _configuration(self) -> dict[str, Any]:
        """The arguments of ``__init__`` as JSON has them, those of ``config`` on the same level."""
        known = _parameters(type(self))
        texts = {n: _encoded(p.default) for n, p in known.items() if p.default is not p.empty}
        texts |= self._given
        required = [n for n, p in known.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        lacking = [n for n in dict.fromkeys([*required, *texts]) if texts.get(n) is None]
        if lacking:
            raise ConfigError(
                f"{type(self).__name__}.save_pretrained: arguments of __init__ must be numbers, "
                f"strings, tuples of such or dataclasses, got something else for "
                f"{', '.join(lacking)}"
            )
        values = {name: json.loads(text) for name, text in texts.items() if text is not None}
        config = values.pop("config", {})
        return {**values, **config} if isinstance(config, dict) else {**values, "config": config}

    @classmethod
    def _decoded(
        cls, path: Path, values: Mapping[str, Any], given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The arguments of ``__init__`` that ``values`` hold; refuses what is unknown or lacks."""
        known = _parameters(cls)
        found = {n: _decode(known[n].annotation, v) for n, v in values.items() if n in known}
        rest = {n: v for n, v in values.items() if n not in known and n not in _ABOUT}
        if "config" in known and "config" not in found:
            return {**found, "config": _decode(known["config"].annotation, rest)}
        if any(p.kind is p.VAR_KEYWORD for p in known.values()):
            return {**found, **rest}
        caller = f"{cls.__name__}.from_pretrained"
        for key in rest:
            raise CheckpointError(
                f"{caller}: {path} has {key!r}, which {cls.__name__} does not take; "
                f"{nearest(key, known)}"
            )
        needed = {name for name, parameter in known.items() if parameter.default is parameter.empty}
        if missing := needed - {*found, *given}:
            raise CheckpointError(
                f"{caller}: {path} must hold {', '.join(sorted(missing))}, got "
                f"{', '.join(values) or 'nothing'}"
            )
        return found

    @classmethod
    def _about(cls) -> dict[str, str]:
        package = "-".join(cls.__module__.split(".")[:2])
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:  # a model of the user's own
            package, version = "potstill-core", metadata.version("potstill-core")
        return {"potstill_package": package, "potstill_version": version, "paper": cls._paper}

    @classmethod
    def _card(cls, name: str, about: Mapping[str, Any]) -> str:
        parts = cls.__module__.split(".")
        module = ".".join(parts[:2]) if parts[0] == "potstill" else cls.__module__
        package = f"https://pypi.org/project/{about['potstill_package']}/"
        said = {"Teacher": about["teacher"], "Method": about["paper"]}
        paragraphs = [
            f"---\n{yaml.safe_dump(cls._metadata, allow_unicode=True)}---",
            f"# {cls.__name__}",
            f"A student distilled with [potstill]({package}).",
            f"```python\nfrom {module} import {cls.__name__}\n\n"
            f'model = {cls.__name__}.from_pretrained("{name}")\n```',
            *(f"{word}: {text}" for word, text in said.items() if text),
        ]
        if about["metrics"]:
            rows = [f"| {metric} | {value} |" for metric, value in about["metrics"].items()]
            paragraphs.append("\n".join(["| metric | value |", "|---|---|", *rows]))
        return "\n\n".join(paragraphs) + "\n"


def _hub(caller: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise BackendError(
            f"{caller}: the Hugging Face Hub needs huggingface-hub, which cannot be imported: "
            f"{error}; pip install 'potstill-core[hub]'"
        ) from error
    return huggingface_hub


def _parameters(cls: Any) -> dict[str, inspect.Parameter]:
    """The parameters of ``__init__`` without ``self``, with types for annotations."""
    try:
        signature = inspect.signature(cls.__init__, eval_str=True)
    except NameError:  # annotated with a name that is imported for type checkers only
        signature = inspect.signature(cls.__init__)
    return dict(list(signature.parameters.items())[1:])


def _encoded(value: Any) -> str | None:
    """JSON of an argument as it is now, dataclasses as objects; None where there is none."""
    try:
        return json.dumps(value, default=dataclasses.asdict)
    except (TypeError, ValueError):
        return None


def _decode(hint: Any, value: Any) -> Any:
    """Undo what JSON does: dataclasses became objects, tuples became lists."""
    for kind in (hint, *typing.get_args(hint)):  # of an optional one too
        if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
            return configs.build(typing.cast(type, kind), value, source=_CONFIG)
        if typing.get_origin(kind) is tuple and isinstance(value, list):
            return tuple(value)
    return value


def _read(caller: str, folder: Path) -> dict[str, Any]:
    """The configuration in a folder that is complete."""
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise MissingModelError(
                f"{caller}: {folder} must hold {_CONFIG} and {_WEIGHTS}, got no {name}"
            )
    path = folder / _CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{caller}: {path} must be JSON, got: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{caller}: {path} must be a JSON object, got {type(values).__name__}"
        )
    return values


def _fill(caller: str, model: Any, path: Path, device: str) -> None:
    """Load the weights, strictly."""
    try:
        load_model(model, path, strict=True, device=device)
    except SafetensorError as error:
        raise CheckpointError(
            f"{caller}: {path} must be a whole safetensors file, got: {error}; copy or save it "
            "again"
        ) from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{caller}: {path} must fit the {_CONFIG} beside it, got: {reason[:400]}; is this the "
            "folder of another model?"
        ) from error


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
