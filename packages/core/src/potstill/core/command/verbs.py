"""Verbs: a job and its configuration as a command."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from cyclopts import App

from potstill.core.command.config import taking
from potstill.core.command.terminal import say, table

__all__ = ["verb"]


def verb(app: App, name: str, job: str, config: type) -> None:
    """Register a job as the command ``name`` of a domain.

    The summary of the configuration is the help of the command. Fields before ``_: KW_ONLY`` may be
    given by position, all of them by name or with ``--config``, so the ``config.yaml`` that a run
    leaves behind repeats it.

    Args:
        app: Command of the domain.
        name: Name of the verb.
        job: Class of the job, ``"module:Class"``; imported when the command runs.
        config: Its configuration, a frozen dataclass.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Config:
        ...     \"\"\"Train a student.\"\"\"
        >>> app = App(name="demo")
        >>> verb(app, "train", "demo.job:Train", Config)
        >>> app["train"].help
        'Train a student.'
    """

    def run(config: Any) -> int:
        module, _, attribute = job.partition(":")
        made = getattr(import_module(module), attribute)(config)
        result = made.run(progress=name)
        if result.report is not None:
            result.report.show()
            say(f"page: {result.folder / 'index.html'}")
        elif result.summary:
            table(f"{' '.join(app.name)} {name}", result.summary)
        if result.summary:  # of several processes, the main one
            say(f"folder: {result.folder}")
        return int(made.exit_code)

    summary = (config.__doc__ or "").partition("\n\n")[0]
    command: Any = taking(config, run)
    command.several_processes = True
    app.command(command, name=name, help=" ".join(summary.split()))
