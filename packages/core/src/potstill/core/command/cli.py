"""The ``potstill`` command: ``potstill <domain> <verb> [--config FILE] [--option ...]``.

Domains are plug-ins: entry points in the group ``potstill.domains`` that name a `cyclopts.App`
called like the entry point. A domain is imported when it is called, never before, so that
``potstill --help`` is quick and a broken domain does not break the others.

Exit codes:
    0    done
    1    the run failed; a known cause is one line on standard error, a bug is a traceback
    2    the command line, the configuration or an option of it cannot be used
    3    ``bench --check``: no target was missed, but some could not be judged
    130, 143    interrupted by SIGINT or SIGTERM, after writing a checkpoint of the run
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Group, Parameter
from cyclopts.argument import ArgumentCollection
from cyclopts.config import Dict
from cyclopts.exceptions import CycloptsError, UnknownCommandError

from potstill.core.command import config as configs
from potstill.core.errors import BackendError, ConfigError, Interrupted, PotstillError, nearest

__all__ = ["main"]

_GROUP = "potstill.domains"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``potstill`` command.

    Args:
        arguments: Words of the command line; those of the process by default.

    Returns:
        The exit code, as listed in this module's description.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    plugins = {point.name: point for point in entry_points(group=_GROUP)}
    try:
        run = _parse(words, plugins)
        result = run() if run is not None else 0
    except CycloptsError as error:
        return _fail(configs.explain(error), 2)
    except ConfigError as error:
        return _fail(str(error), 2)
    except Interrupted as error:
        return _fail(str(error), error.exit_code)
    except PotstillError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    return result if type(result) is int else 0


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"potstill: {message}\n")
    return code


def _parse(words: list[str], plugins: dict[str, EntryPoint]) -> Callable[[], Any] | None:
    """The call that ``words`` ask for; None when it was help or a version, already shown."""
    app = _app(plugins)

    @app.meta.default
    def launch(
        *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        config: Annotated[
            Path | None,
            Parameter(help="Options from a YAML, TOML or JSON file; flags win over it."),
        ] = None,
    ) -> Callable[[], Any]:
        sources = [] if config is None else [_file(config, app)]
        app.config = (*sources, configs.strict)
        command, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
        if tokens and tokens[0] in plugins and not hasattr(command, "several_processes"):
            _require_one_process(" ".join(app.parse_commands(tokens)[0]))
        return partial(command, *bound.args, **bound.kwargs)

    app.meta.group_parameters = Group("Everywhere", sort_key=9)
    try:
        run: Callable[[], Any] | None = app.meta(
            words, exit_on_error=False, print_error=False, result_action="return_value"
        )
        return run
    except UnknownCommandError as error:
        word = error.unused_tokens[0] if error.unused_tokens else ""
        if error.command_chain:
            raise
        raise ConfigError(_unknown(word, plugins)) from None
    except (CycloptsError, PotstillError):
        raise
    except Exception as error:
        called = next((plugins[word] for word in words if word in plugins), None)
        if called is not None and not _works(called):
            raise BackendError(_broken(called)) from error
        if isinstance(error, ValueError):  # from the ``__post_init__`` of a configuration
            raise ConfigError(str(error)) from error
        raise


def _require_one_process(verb: str) -> None:
    """Only jobs share their work and write once: each process would do all of another verb."""
    if (world := os.environ.get("WORLD_SIZE") or "1") != "1":
        raise ConfigError(
            f"potstill {verb}: runs in one process, got WORLD_SIZE={world}; start it without "
            "torchrun, which is for the verbs that train"
        )


def _app(plugins: dict[str, EntryPoint]) -> App:
    app = App(
        name="potstill",
        help="Distil large models into small ones, domain by domain.",
        version=lambda: version("potstill-core"),
        default_parameter=Parameter(consume_multiple=True),  # --methods glnn krd
        help_format="plaintext",  # markdown costs 0.05 s of imports
        help_epilogue="Exit codes: 0 done, 1 the run failed, 2 wrong usage, 130/143 interrupted.",
    )
    app.group_commands = Group("Core", sort_key=1)
    domains = Group("Domains", sort_key=0)
    for name, point in sorted(plugins.items()):
        summary = point.dist.metadata["Summary"] if point.dist is not None else ""
        app.command(point.value, name=name, help=summary, group=domains)
    app.command(_env, name="env")
    app.command(_bench, name="bench")
    app.command(_trust, name="trust")
    app.register_install_completion_command(name="--install-completion")
    return app


def _env(*, json: bool = False) -> None:
    """Show versions, devices and optional packages, and how to install what is missing.

    Args:
        json: Print JSON instead of tables.
    """
    from potstill.core.command.environment import environment, show_environment

    report = environment()
    if json:
        from json import dumps

        sys.stdout.write(dumps(report, indent=2) + "\n")
        return
    from rich.console import Console

    show_environment(report, Console())


def _bench(
    domain: str = "all",
    /,
    *names: str,
    check: bool = False,
    quick: bool = False,
    list: bool = False,
    pairs: int = 20,
    official: Path | None = None,
    out: Path | None = None,
) -> int:
    """Run registered benchmarks against their baselines; needs a clone of the repository.

    Args:
        domain: A domain, core or all.
        names: Benchmarks of that domain; all when none.
        check: Compare with the declared targets; exit code 1 when one is missed.
        quick: A smoke run: two pairs each, nothing recorded.
        list: Say what there is, and run nothing.
        pairs: Pairs of blocks.
        official: A checkout of a paper's own code, for the benchmarks that race against it.
        out: Folder of the results.
    """
    folder = _benchmarks()
    from potstill.core.measure import bench

    if str(folder.parent) not in sys.path:
        sys.path.insert(0, str(folder.parent))  # what `python -m benchmarks` does
    words = [domain, *names, "--pairs", str(pairs)]
    words += ["--check"] * check + ["--quick"] * quick + ["--list"] * list
    for option, path in (("--official", official), ("--out", out)):
        words += [option, str(path)] if path is not None else []
    return bench.main(folder, words)


def _trust(
    *command: Annotated[str, Parameter(allow_leading_hyphen=True)],
    kills: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (20,),
    processes: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (1,),
    disks: int = 2,
    neighbours: int = 1,
    seed: int = 0,
    may_differ: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ("seconds",),
    leave_out: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    across: float | None = None,
    limit: float = 3600.0,
    warm: bool = False,
    out: Annotated[Path, Parameter(alias="-o")] = Path("runs/trust"),
) -> int:
    """Kill a command at random moments, run it again, and compare what it leaves.

    potstill trust --kills 8 -- potstill graph distill --seeds 1 --out {out}

    Args:
        command: The command, behind ``--``, with its folder as --out FOLDER or as {out}.
        kills: Signals at random moments, for each number of processes; the last is for the rest.
        processes: Numbers of processes to try; torchrun starts them where there are several.
        disks: Full disks of each kind, for each number of processes.
        neighbours: Second runs in the same folder, for each number of processes.
        seed: Seed of kinds, moments and sizes.
        may_differ: Patterns of JSON fields that may differ.
        leave_out: Patterns of files that are not compared.
        across: Largest difference of a weight between the first number of processes and another.
        limit: Seconds after which a run counts as hanging.
        warm: Import once and fork, where the command is one of potstill: many short runs.
        out: Folder of the proof; the command gets its folder run.
    """
    from potstill.core.command.terminal import say
    from potstill.core.trust.proof import prove

    if warm and command[:1] != ("potstill",):
        raise ConfigError(f"trust: warm needs a command of potstill, got {' '.join(command)!r}")
    proof = prove(
        command, out, kills=kills, processes=processes, disks=disks, neighbours=neighbours,
        seed=seed, may_differ=may_differ, leave_out=leave_out, across=across, limit=limit, say=say,
        call=(lambda words: main(words[1:])) if warm else None,
    )  # fmt: skip
    say("\n".join(["", *proof.table(), *proof.lost, *proof.untried]))
    return 1 if proof.lost else 0


def _benchmarks() -> Path:
    """The benchmarks of the clone that we are in, or else of the one that this file is in."""
    here, home = Path.cwd(), Path(__file__).resolve()
    for folder in (here, *here.parents, *home.parents):
        if (folder / "benchmarks" / "__main__.py").is_file():
            return folder / "benchmarks"
    raise ConfigError(
        f"bench: the benchmarks are programs of the repository, got nothing at or above {here}; "
        "run this in a clone; what a domain measures by itself: potstill <domain> --help"
    )


def _file(path: Path, root: App) -> Callable[[App, tuple[str, ...], ArgumentCollection], None]:
    """A source of options for cyclopts: ``path``, by command (``graph: {distill: ...}``) or flat.

    A flat file is what a run leaves behind as ``config.yaml``. In a file by command the options of
    other commands are left alone, those of domains that are not installed too; what reads like a
    misspelt command is refused.
    """
    values = configs.read(path)

    def apply(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        section: Any = values
        known = set(root)
        if known & set(values):
            node = root
            for command in commands:
                for key in section:
                    if key in known:
                        continue
                    guess = nearest(key, known)
                    elsewhere = node is root and isinstance(section[key], dict)
                    if not elsewhere or guess.startswith("did"):
                        raise ConfigError(f"config: {key!r} in {path} is no command; {guess}")
                section, node = section.get(command) or {}, node[command]
                if not isinstance(section, dict):
                    raise ConfigError(
                        f"config: {command!r} in {path} must hold options by name, got {section!r}"
                    )
                known = {name for name in node if not name.startswith("-")}
        source = Dict(section, source=str(path), use_commands_as_keys=False)
        source(app, commands, arguments)

    return apply


def _unknown(word: str, plugins: dict[str, EntryPoint]) -> str:
    guess = nearest(word, {"env", "bench", "trust", *plugins})
    return (
        f"unknown command {word!r}" + (f"; {guess}" if guess.startswith("did") else "") + "\n"
        f"  installed: {', '.join(sorted(plugins)) or 'no domain'}; always: bench, env, trust\n"
        f"  if it is a domain of potstill: pip install potstill-{word}"
    )


def _works(point: EntryPoint) -> bool:
    try:
        return point.name in point.load().name
    except Exception:
        return False


def _broken(point: EntryPoint) -> str:
    """Why the plug-in behind ``point`` cannot be used, and what to do."""
    package = point.dist.metadata["Name"] if point.dist is not None else point.module
    try:
        found = point.load()
        reason = (
            f"it holds {getattr(found, 'name', found)!r} where App(name={point.name!r}) belongs"
        )
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    return (
        f"the domain {point.name!r} cannot be loaded from {point.value} of {package}: {reason}; "
        f"pip install --force-reinstall {package}"
    )
