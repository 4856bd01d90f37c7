"""What follows a run from outside: a tracker of experiments, a page, a message at its end."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from potstill.core.engine.device import Engine
from potstill.core.engine.rows import Row
from potstill.core.errors import ConfigError

__all__ = ["Callback", "Callbacks", "TensorBoard", "followed"]


class Callback(Protocol):
    """What `fit` tells of a run; only the main process has callbacks.

    `begin` may fail, and the run with it: nothing is lost yet. After that a callback that raises is
    dropped with a warning, and training goes on: an outage of a tracker ends no run of days.
    """

    def begin(self, start: int) -> None:
        """Training begins with step ``start``.

        A run that was killed has sent more rows than it kept: drop those of ``start`` and later,
        they are computed and sent again, the same but for ``seconds``. A finished run that is asked
        for again begins behind its last step and sends nothing.
        """

    def row(self, row: Row) -> None:
        """The row of a step is complete, as in ``history.jsonl``."""

    def end(self, error: BaseException | None) -> None:
        """The run is over: None when it is finished, else what ended it, `Interrupted` too."""


class TensorBoard:
    """A `Callback` that writes event files (extra ``potstill-core[tensorboard]``).

    Rows that a killed run sent twice are shown once.

    Args:
        folder: Folder of the event files.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = folder

    def begin(self, start: int) -> None:
        """Open the files; earlier events of ``start`` and later do not count any more.

        Raises:
            ConfigError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "TensorBoard: the package tensorboard must be installed, got no such module; "
                "pip install 'potstill-core[tensorboard]'"
            ) from error
        self._writer: Any = SummaryWriter(self.folder, purge_step=start)

    def row(self, row: Row) -> None:
        """A scalar for each column."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))

    def end(self, error: BaseException | None) -> None:
        """Close the files."""
        self._writer.close()


class Callbacks:
    """Several as one; from `row` on those that fail are dropped.

    Args:
        callbacks: Callbacks to notify.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._all = list(callbacks)

    def begin(self, start: int) -> None:
        """Tell all, and let their errors through."""
        for callback in self._all:
            callback.begin(start)

    def row(self, row: Row) -> None:
        """Tell all."""
        self._tell(lambda callback: callback.row({**row}))

    def end(self, error: BaseException | None) -> None:
        """Tell all."""
        self._tell(lambda callback: callback.end(error))

    def _tell(self, say: Callable[[Callback], None]) -> None:
        for callback in list(self._all):
            try:
                say(callback)
            except Exception as error:  # whatever it is, it is no fault of the run
                self._all.remove(callback)
                warnings.warn(
                    f"fit: the callback {type(callback).__name__} failed and is told nothing more: "
                    f"{type(error).__name__}: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )


@contextmanager
def followed(callbacks: Sequence[Callback], start: int, engine: Engine) -> Iterator[Callbacks]:
    """The callbacks of the main process, from `begin` to `end`; none in the others.

    Raises:
        ConfigError: In the other processes, where `begin` failed in the main one.
    """
    told, ended = Callbacks(callbacks if engine.main else ()), None
    try:
        failed: Exception | None = None
        try:
            told.begin(start)
        except Exception as error:  # the others would wait
            failed = error
        said = engine.agree(failed and f"fit: a callback of the main process failed: {failed}")
        if said:
            raise failed or ConfigError(said)
        yield told
    except BaseException as error:
        ended = error
        raise
    finally:
        told.end(ended)
