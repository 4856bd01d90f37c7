"""Configurations: typed frozen dataclasses, and the same thing as a file or as flags.

A configuration is a frozen dataclass beside its owner, nested where a part has an owner of its own,
checked in ``__post_init__``. cyclopts turns it into flags; this module gives it the same meaning as
a file, so that ``--optim.lr 0.3`` and ``optim: {lr: 0.3}`` are read, checked and refused alike.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import json
import os
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import lazy_loader as lazy
from cyclopts import App, Parameter, Token
from cyclopts.argument import ArgumentCollection
from cyclopts.config import Dict
from cyclopts.exceptions import CycloptsError, UnknownOptionError

from potstill.core.errors import ConfigError, nearest
from potstill.core.files import atomic

__all__ = ["as_dict", "build", "dump", "explain", "load", "read", "record", "strict", "taking"]

T = TypeVar("T")
yaml = lazy.load("yaml")  # on first use, since help needs none

_LARGEST, _MOST = 1 << 20, 20_000  # characters and values of a file
_SUFFIXES = (".yaml", ".yml", ".toml", ".json")


def load(cls: type[T], path: str | os.PathLike[str]) -> T:
    """Read a configuration of type ``cls`` from a YAML, TOML or JSON file.

    What the file does not name keeps its default.

    Raises:
        ConfigError: The file is missing, is not a file, has another suffix or no mapping in it; a
            key is unknown; a value has the wrong type or is refused by ``cls``. The message names
            file and key.
    """
    return build(cls, read(path), source=str(path))


def build(cls: type[T], values: Mapping[str, Any], source: str = "values") -> T:
    """Make a configuration of type ``cls`` from plain ``values``, as strictly as `load`.

    Args:
        cls: A dataclass.
        values: By field name; mappings for nested dataclasses.
        source: Origin of the values, for messages.

    Raises:
        ConfigError: A key is unknown, a value has the wrong type, or ``cls`` refuses it.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Optim:
        ...     lr: float = 1e-3
        >>> build(Optim, {"lr": 0.1})
        Optim(lr=0.1)
        >>> build(Optim, {"lrr": 0.1}, source="my.yaml")
        Traceback (most recent call last):
        ...
        potstill.core.errors.ConfigError: Unknown option: "[lrr]" from my.yaml; did you mean 'lr'?
    """
    given = Dict(dict(values), source=source, use_commands_as_keys=False)
    app = App(config=(given, strict), result_action="return_value")
    app.default(taking(cls, lambda config: config))
    try:
        made: T | None = app([], exit_on_error=False, print_error=False)
        return cls() if made is None else made
    except CycloptsError as error:
        raise ConfigError(explain(error, source)) from None
    except ValueError as error:  # from a ``__post_init__``
        if isinstance(error, ConfigError) and source in str(error):
            raise
        raise ConfigError(f"{source}: {error}") from error


def dump(config: Any, path: str | os.PathLike[str]) -> Path:
    """Write ``config`` as YAML, every field resolved; `load` gives an equal one back.

    Returns:
        The path.

    Raises:
        ConfigError: A field holds something that a file cannot.
    """
    # Escaped: PyYAML writes some control characters so that it cannot read them back.
    text = yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=False, width=100)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def as_dict(config: Any) -> dict[str, Any]:
    """The fields of ``config`` as plain values: what YAML and JSON can hold.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Out:
        ...     folder: Path = Path("runs")
        ...     sizes: tuple[int, ...] = (8, 4)
        >>> as_dict(Out())
        {'folder': 'runs', 'sizes': [8, 4]}
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise ConfigError(f"as_dict: config must be a dataclass instance, got {config!r}")
    return {
        f.name: _plain(getattr(config, f.name), f"{type(config).__name__}.{f.name}")
        for f in dataclasses.fields(config)
        if f.init
    }


def record(config: Any, folder: str | os.PathLike[str], *, ignore: tuple[str, ...] = ()) -> Path:
    """Make ``folder`` the folder of a run with ``config``, and write ``config.yaml`` into it.

    A folder of a run with the same configuration is accepted, since that run may be continued. An
    option that the run did not know yet counts as its default.

    Args:
        config: The resolved configuration.
        folder: Made when missing.
        ignore: Fields that may differ, by dotted name, e.g. ``("out", "training.device")``.

    Returns:
        The path of ``config.yaml``.

    Raises:
        ConfigError: The folder cannot be written, or holds a run with another configuration.
    """
    path = Path(folder, "config.yaml")
    if path.exists():
        before, now = _flat(_completed(read(path), config)), _flat(as_dict(config))
        differing = [
            f"{key} ({before.get(key, 'absent')}, now {now.get(key, 'absent')})"
            for key in dict.fromkeys([*before, *now])
            if before.get(key) != now.get(key)
            and not any(f"{key}.".startswith(f"{name}.") for name in ignore)
        ]
        if differing:
            raise ConfigError(
                f"record: {folder} holds a run with another {', another '.join(differing)}; choose "
                "another output folder, or delete that one"
            )
    try:
        return dump(config, path)
    except OSError as error:
        raise ConfigError(
            f"record: {folder} must be a folder that can be written, got: {error.strerror or error}"
        ) from error


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in a YAML, TOML or JSON file.

    Raises:
        ConfigError: It is missing, is not a file, has another suffix, does not parse, or holds
            something other than a mapping.
    """
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES and not path.is_dir():
        raise ConfigError(
            f"config: {path} must end in {', '.join(_SUFFIXES)}, got {path.suffix or 'no suffix'!r}"
        )
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise ConfigError(f"config: {path} must be a file, got nothing there") from None
    except IsADirectoryError:
        raise ConfigError(f"config: {path} must be a file, got a folder") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: {path} must be a readable text file, got: {error}") from error
    try:
        if len(text) > _LARGEST:
            raise ValueError(f"it is longer than {_LARGEST:,} characters")
        values = _parse(text, path.suffix.lower())
        _count(values, 0)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the decode errors of toml, json
        raise ConfigError(f"config: {path} does not parse: {error}") from error
    if not isinstance(values, dict):
        what = "nothing" if values is None else type(values).__name__
        raise ConfigError(
            f"config: {path} must hold options by name (`epochs: 3`), got {what}; "
            "an empty mapping is written {}"
        )
    return values


def strict(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuse what cyclopts would bend into shape; goes last into the ``config`` of an ``App``.

    cyclopts rounds 5.5 to 6 where an integer is asked for, and takes a lone value for a nested
    configuration as the value of its first field.
    """
    _choose_alternatives(arguments)
    for argument in arguments:
        hints = _leaves(argument.hint)
        for token in argument.tokens:
            name = token.keyword or argument.name
            origin = f" from {token.source}" if token.source not in ("", "cli") else ""
            if token.value and any(map(dataclasses.is_dataclass, hints)):
                raise CycloptsError(
                    f"{name}{origin} must be given by its parts ({argument.name}.<name>), got "
                    f"{token.value!r}"
                )
            if int in hints and not {float, str} & hints and _fraction(token.value):
                raise CycloptsError(f"{name}{origin} must be a whole number, got {token.value}")


def taking(cls: type[T], function: Callable[[T], Any]) -> Callable[..., Any]:
    """``function`` of a configuration, as a command whose options are the fields of ``cls``.

    cyclopts looks at classes alone, so that an option of a nested configuration would lose the
    defaults that ``cls`` gives the others; it gets classes with these defaults instead.
    """

    def command(config: Any = None) -> Any:
        return function(cls() if config is None else _given(config))

    if _has_required(cls):
        command.__defaults__ = None
    # An object, not a string: the class is local to this call.
    command.__annotations__ = {"config": Annotated[_with_defaults(cls), Parameter(name="*")]}
    return command


def _with_defaults(cls: type[Any], instance: Any = None) -> type[Any]:
    """A class like ``cls``, with the defaults of ``instance``, and so on for nested ones."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        value, hint = _default(field, instance), hints[field.name]
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            hint = _with_defaults(type(value), value)
            value = hint()
        options: dict[str, Any] = {"kw_only": field.kw_only}
        if value is not dataclasses.MISSING:
            options["default_factory"] = partial(copy.copy, value)
            if value is None or isinstance(value, bool | int | float | str | tuple | Path):
                options = {"kw_only": field.kw_only, "default": value}
        fields.append((field.name, hint, dataclasses.field(**options)))
    namespace = {"__doc__": cls.__doc__, "__module__": cls.__module__, "_stands_for": cls}
    return dataclasses.make_dataclass(
        cls.__name__, fields, bases=(cls,), frozen=True, namespace=namespace
    )


def _default(field: dataclasses.Field[Any], instance: Any) -> Any:
    if instance is not None:
        return getattr(instance, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _completed(values: Mapping[str, Any], config: Any, instance: Any = None) -> dict[str, Any]:
    """``values`` with the default of each option of ``config`` that they lack."""
    found = dict(values)
    for field in dataclasses.fields(config):
        value, now = _default(field, instance), getattr(config, field.name)
        if dataclasses.is_dataclass(now) and isinstance(inner := found.get(field.name, {}), dict):
            same = value if type(value) is type(now) else None
            found[field.name] = _completed(inner, now, same)
        elif field.init and value is not dataclasses.MISSING:
            found.setdefault(field.name, _plain(value, field.name))
    return found


def _given(config: Any) -> Any:
    """The configuration in its own classes again."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return config
    values = {f.name: _given(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}
    return getattr(config, "_stands_for", type(config))(**values)


def explain(error: CycloptsError, source: str = "") -> str:
    """The message of ``error`` in one line, with the option and the ``source`` in it."""
    message = " ".join(str(error).split())
    names = error.argument.names if error.argument is not None else ()
    tokens = error.argument.tokens if error.argument is not None else ()
    source = source or next((t.source for t in tokens if t.source not in ("", "cli")), "")
    if names and not any(name.lstrip("-").split(".")[-1] in message for name in names):
        message = f"{names[0]}: {message}"
    if isinstance(error, UnknownOptionError) and "Did you mean" not in message:
        keyword = error.token.keyword or error.token.value
        options = (argument.name.lstrip("-") for argument in error.argument_collection)
        known = [name for name in options if name != "*"]
        guess = nearest(keyword.replace("][", ".").strip("-[]"), known)
        message = f"{message.rstrip('.')}; {guess}"
    return message if source in message else f"{source}: {message}"


def _choose_alternatives(arguments: ArgumentCollection) -> None:
    """An option that is given takes the place of the defaults of its alternatives."""
    for parent in arguments:
        for cls in filter(dataclasses.is_dataclass, _leaves(parent.hint)):
            names = getattr(cls, "alternatives", ())
            children = [child for child in parent.children if child.keys[-1] in names]
            if any(child.tokens for child in children):
                for child in children:
                    if not child.tokens:
                        child.append(Token(value="null", source="default"))


def _parse(text: str, suffix: str) -> Any:
    if suffix == ".toml":
        return tomllib.loads(text) if text.strip() else None
    return json.loads(text) if suffix == ".json" and text.strip() else yaml.safe_load(text)


def _count(values: Any, before: int) -> int:
    """How many values there are, with ``before``; a few aliases of YAML stand for any number.

    Raises:
        ValueError: Too many, or an option whose name is not text.
    """
    before += 1
    if before > _MOST:
        raise ValueError(f"it holds more than {_MOST:,} values")
    if isinstance(values, dict) and (names := [key for key in values if not isinstance(key, str)]):
        raise ValueError(f"the name of an option must be text, got {names[0]!r}; quote it")
    inside = values.values() if isinstance(values, dict) else values
    for value in inside if isinstance(values, dict | list) else ():
        before = _count(value, before)
    return before


def _has_required(cls: Any) -> bool:
    missing = dataclasses.MISSING
    return any(
        f.init and f.default is missing and f.default_factory is missing
        for f in dataclasses.fields(cls)
    )


def _leaves(hint: Any) -> set[Any]:
    """The types that ``hint`` allows for one value: `int` and `None` in ``tuple[int | None]``."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple, list, set):
        return set().union(*map(_leaves, typing.get_args(hint)))
    return {hint}


def _fraction(text: str) -> bool:
    try:
        return not float(text).is_integer()
    except ValueError:
        return False


def _plain(value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_dict(value)
    if isinstance(value, enum.Enum):
        return value.name.lower().replace("_", "-")  # what cyclopts reads
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(
        f"dump: {where} must be made of numbers, strings, paths, tuples and dataclasses, got "
        f"{type(value).__name__}"
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
