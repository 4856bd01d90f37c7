"""The proof: a command alone, then under signals, on small disks and beside a second one."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path

from potstill.core.errors import BackendError, ConfigError
from potstill.core.trust.attempt import Attempt, Ended, Signal, small_disk_problem
from potstill.core.trust.compare import differences, distance, unsaved

__all__ = ["Case", "Proof", "prove"]

_CHAIN = 3  # signals before a run is let to its end
_KINDS = {} if os.name == "nt" else {
    "SIGKILL": Signal(signal.SIGKILL),
    "SIGTERM": Signal(signal.SIGTERM),
    "SIGTERM to the first process": Signal(signal.SIGTERM, all=False),
    "SIGINT": Signal(signal.SIGINT),
}  # fmt: skip


@dataclass
class Case:
    """What was tried in one way.

    Attributes:
        what: The way.
        processes: Number of processes of the command.
        times: Number of times.
        repeated: Steps that were done a second time.
        lost: One line for each loss.
    """

    what: str
    processes: int
    times: int = 0
    repeated: int = 0
    lost: list[str] = field(default_factory=list)


@dataclass
class Proof:
    """All that was tried with a command.

    Attributes:
        cases: Attempts that were made.
        untried: Attempts that could not be made here, with the reason.
        apart: By number of processes, the largest difference of a weight from the first number's.
    """

    cases: list[Case] = field(default_factory=list)
    untried: list[str] = field(default_factory=list)
    apart: dict[int, float] = field(default_factory=dict)

    @property
    def lost(self) -> list[str]:
        """All losses, one line each."""
        return [
            f"{c.what}, {c.processes} process(es): {line}" for c in self.cases for line in c.lost
        ]

    def table(self) -> list[str]:
        """Lines of at most 80 columns: what was tried, how often, and what was lost."""
        head = (
            f"{'what was tried':32}{'processes':>10}{'times':>7}{'lost':>6}{'steps repeated':>16}"
        )
        rows = [
            f"{c.what:32}{c.processes:10}{c.times:7}{len(c.lost):6}{c.repeated:16}"
            for c in self.cases
        ]
        apart = [f"{n} processes: weights differ by {far:.2g}" for n, far in self.apart.items()]
        return [head, *rows, *apart]


def prove(
    command: Sequence[str],
    out: Path,
    *,
    kills: Sequence[int] = (20,),
    processes: Sequence[int] = (1,),
    disks: int = 2,
    neighbours: int = 1,
    seed: int = 0,
    may_differ: Sequence[str] = ("seconds",),
    leave_out: Sequence[str] = (),
    across: float | None = None,
    limit: float = 3600.0,
    call: Callable[[list[str]], int] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Proof:
    """Run ``command`` alone twice, then disturb it, run it again, and compare what it leaves.

    Signals come at random moments of its work, by turns SIGKILL, SIGTERM (to all its processes, or
    to the first only) and SIGINT, up to three in a row before it may end. Disks are full at a
    random size of a file or of the folder. A neighbour is the same command in the same folder.

    Args:
        command: The words of a command that ends by itself after a fixed number of steps. Its
            folder is ``{out}``, or what follows ``--out`` or ``-o``; ``{share:16}`` is 16 by the
            number of processes, for batches that are each process's own.
        out: Folder for the proof; the command gets ``out/run``.
        kills: Number of signals, for each number of processes; the last one is for the rest too.
        processes: Numbers of processes; torchrun starts them where there are several.
        disks: Number of full disks of each kind, for each number of processes.
        neighbours: Number of second runs, for each number of processes.
        seed: Seed of kinds, moments and sizes.
        may_differ: Patterns of JSON fields that may differ.
        leave_out: Patterns of files that are not compared.
        across: Largest difference of a weight between the first number of processes and another;
            None where these need not agree.
        limit: Seconds after which a run counts as hanging.
        call: Function of the words, to be called in forks of this process instead of starting a
            program: quick, since imports are done once.
        say: Called with a line after each run.

    Raises:
        ConfigError: The command has no folder in it, or fails when nothing disturbs it.
        BackendError: A system without POSIX signals.
    """
    if not _KINDS:
        raise BackendError("trust: signals of POSIX are needed, got Windows; use WSL")
    out = out.absolute()
    words, proof = _with_folder(command, out / "run"), Proof()
    out.mkdir(parents=True, exist_ok=True)
    for number, count in enumerate(processes):
        shared = [_share(word, count) for word in words]
        attempt = Attempt(shared, out / "run", out / "log.txt", count, limit, call)
        tried = _Tried(attempt, may_differ, leave_out, random.Random(f"{seed}/{count}"), say)
        case = tried.alone()
        proof.cases.append(case)
        if case.lost:
            continue  # what does not repeat itself proves nothing
        if across is not None and count != processes[0]:
            far = distance(out / f"alone-{processes[0]}", tried.right)
            proof.apart[count] = far
            if not far <= across:
                case.lost.append(f"weights differ by {far:.2g} from {processes[0]} process(es)")
        proof.cases += tried.signals(kills[min(number, len(kills) - 1)])
        proof.cases += tried.full_disks(disks, proof.untried)
        proof.cases += tried.neighbours(neighbours)
    return proof


def _with_folder(command: Sequence[str], folder: Path) -> list[str]:
    """The command with ``folder`` for ``{out}``, or for what follows ``--out`` or ``-o``."""
    words = [word.replace("{out}", str(folder)) for word in command]
    if words != [*command]:
        return words
    for number, word in enumerate(words):
        if word in ("--out", "-o") and number + 1 < len(words):
            return [*words[: number + 1], str(folder), *words[number + 2 :]]
        if word.startswith("--out="):
            return [*words[:number], f"--out={folder}", *words[number + 1 :]]
    raise ConfigError(
        f"trust: the command must have its folder in it, as --out FOLDER or as {{out}}, got "
        f"{' '.join(command) or 'no command'}; write potstill trust -- COMMAND --out {{out}}"
    )


def _share(word: str, count: int) -> str:
    return re.sub(r"\{share:(\d+)\}", lambda found: str(int(found[1]) // count), word)


class _Tried:
    """A command with its number of processes, and what it leaves when it is alone."""

    def __init__(
        self, attempt: Attempt, fields: Sequence[str], files: Sequence[str],
        draw: random.Random, say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.attempt, self.fields, self.files = attempt, fields, files
        self.draw, self.say = draw, say
        self.right = attempt.out.with_name(f"alone-{attempt.processes}")
        self.work = 0.0

    def alone(self) -> Case:
        """Twice without disturbance: the first is right, the second must be the same."""
        case = self._case("nothing")
        first = self._first()
        if first.code or first.error:
            raise ConfigError(
                f"trust: the command must end with code 0 when nothing disturbs it, got "
                f"{first.code}: {first.error or first.said}; {self.attempt.log} has what it said"
            )
        shutil.rmtree(self.right, ignore_errors=True)
        self.attempt.out.rename(self.right)
        second = self._anew().finish()
        self.work = min(first.work, second.work)
        self._judge(case, second)
        case.times = 2
        return case

    def _first(self) -> Ended:
        """Run it to its end; what a fork of this process imports, this process imports then."""
        attempt = self._anew()
        if attempt.call is None:
            return attempt.finish()
        call, path = attempt.call, attempt.log.with_name("modules.json")

        def listing(words: list[str]) -> int:
            code = call(words)
            path.write_text(json.dumps(sorted(sys.modules)))
            return code

        ended = replace(attempt, call=listing).finish()
        for name in json.loads(path.read_text()) if path.exists() else []:
            with suppress(Exception):  # some are imported in one order only, or only once
                import_module(name)
        return ended

    def signals(self, count: int) -> Iterable[Case]:
        """Each kind in turn, in chains, until there were ``count``."""
        cases = {name: self._case(name) for name in _KINDS}
        missed = 0
        while (left := count - sum(case.times for case in cases.values())) > 0:
            case = min(cases.values(), key=lambda case: case.times)
            before = case.times
            self._chain(case, min(left, self.draw.randint(1, _CHAIN)))
            missed = 0 if case.times > before else missed + 1
            if missed == 20:
                case.lost.append("too short to be met: the command ended before 20 signals")
                break
        return [case for case in cases.values() if case.times or case.lost]

    def _chain(self, case: Case, length: int) -> None:
        """Up to ``length`` signals of a kind, and then the same command to its end."""
        kind, attempt, many = _KINDS[case.what], self._anew(), self.attempt.processes > 1
        for _ in range(length):
            ended = attempt.signalled(kind, self.draw.uniform(0, self.work))
            if not ended.signalled:
                break
            case.times += 1
            repeated = unsaved(attempt.out)
            case.repeated += repeated
            polite = kind.number != signal.SIGKILL
            if ended.error:
                case.lost.append(ended.error)
            elif not many and ended.code not in (0, -kind.number, 128 + kind.number):
                case.lost.append(f"ended with code {ended.code}: {ended.said}")
            if polite and repeated:
                case.lost.append(f"{repeated} steps were in no checkpoint: {ended.said}")
        self._judge(case, attempt.finish())

    def full_disks(self, count: int, untried: list[str]) -> Iterable[Case]:
        """Files that may not grow, and a disk that is full."""
        if not count:
            return []
        sizes = [path.stat().st_size for path in self.right.rglob("*") if path.is_file()]
        cases = [self._case("files of limited size"), self._case("small disk")]
        ways: list[tuple[Callable[[int], Ended], int]] = [
            (self.attempt.within, max(sizes)), (self.attempt.on_disk_of, sum(sizes)),
        ]  # fmt: skip
        probe = self._anew().out
        probe.mkdir()
        problem = small_disk_problem(probe)
        if problem:
            untried.append(f"small disk, {self.attempt.processes} process(es): {problem}")
            ways = ways[:1]
        for case, (run, most) in zip(cases, ways, strict=False):
            for _ in range(count):
                self._anew()
                ended = run(self.draw.randint(4096, max(most, 8192)))
                case.times += 1
                case.repeated += unsaved(self.attempt.out)
                self._judge(case, self.attempt.finish(), ended.error)
        return [case for case in cases if case.times]

    def neighbours(self, count: int) -> Iterable[Case]:
        """A second run in the folder while the first one is stopped in the middle."""
        case = self._case("second run in the folder")
        for _ in range(count):
            attempt = self._anew()
            other = replace(attempt, log=attempt.log.with_name("second.txt"))
            first, second = attempt.beside(other, self.draw.uniform(0.1, 0.6) * self.work)
            if second is None:
                continue
            case.times += 1
            problem = second.error or ("it was not refused" if second.code == 0 else "")
            self._judge(case, first, problem)
        return [case] if case.times else []

    def _case(self, what: str) -> Case:
        return Case(what, self.attempt.processes)

    def _anew(self) -> Attempt:
        shutil.rmtree(self.attempt.out, ignore_errors=True)
        return self.attempt

    def _judge(self, case: Case, last: Ended, problem: str = "") -> None:
        """The last run must have ended well, and have left what it leaves alone."""
        problems = [problem] if problem else []
        if last.error or last.code:
            problems.append(f"could not be continued: {last.error or last.said}")
        else:
            problems += differences(self.right, self.attempt.out, self.fields, self.files)
        if problems:
            case.lost.append("; ".join(problems[:3]))
        kept = self.attempt.out.with_name(f"lost-{self.attempt.processes}")
        if problems and not kept.exists():
            shutil.copytree(self.attempt.out, kept)  # the first one, to look at
        outcome = problems[0] if problems else "the same"
        self.say(f"{case.what}, {self.attempt.processes} process(es), {case.times}: {outcome}")
