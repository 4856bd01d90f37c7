"""Align the draft of speculative sampling with its target, on digits made of tokens.

python docs/examples/speculative_digits.py

A class-conditional model of digits writes 16 tokens, each a patch of 2 x 2 pixels out of 32 kinds.
Its next token depends on class, token above and token to the left; a draft sees the left one only.
Speculative sampling (Leviathan et al., ICML 2023; Chen et al., 2023) takes tokens of the draft so
that what comes out has exactly the target's distribution: a chi-square test says so, and says no
to rules that accept more. Then the draft is distilled (Zhou et al., DistillSpec, ICLR 2024) with
each divergence of the core, on contexts of the data, of the target, and of the draft itself.

Both models are tables here: a call of the target costs no more than one of the draft, so at this
size nothing is faster. What is measured is how many tokens a call of the target gives.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from rich.console import Console
from scipy.stats import chisquare
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from torch import Tensor, nn

from potstill.core import Distiller, Objective, Report, fit
from potstill.core.criteria import (
    acceptance_rate,
    block_efficiency,
    gjsd,
    kd,
    reverse_kl,
    tvd,
)
from potstill.core.schemes import OnPolicy

CODES, SIDE, DRAFTS = 32, 4, 4
BORDER = CODES  # what lies above the first row and left of the first column
Rule = Literal["exact", "lenient", "always"]
Contexts = Tensor  # [n 3]: class, token above, token to the left


def tokens() -> tuple[Tensor, Tensor]:
    """Digits as tokens [n 16], and their classes."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float64)
    patches = images.unfold(1, 2, 2).unfold(2, 2, 2).reshape(-1, 4)
    codes = KMeans(CODES, n_init=1, max_iter=10, random_state=0).fit_predict(patches.numpy())
    return torch.from_numpy(codes).long().view(-1, SIDE * SIDE), torch.from_numpy(found.target)


def context(written: Tensor, label: Tensor, position: int) -> Contexts:
    """What is known when the token at ``position`` is written."""
    border = torch.full_like(label, BORDER)
    above = written[:, position - SIDE] if position >= SIDE else border
    left = written[:, position - 1] if position % SIDE else border
    return torch.stack([label, above, left], 1)


class Target(nn.Module):
    """Interpolated counts: all of the context, a part of it, and every token a little."""

    def __init__(self, written: Tensor, label: Tensor) -> None:
        super().__init__()
        counts = torch.zeros(10, CODES + 1, CODES + 1, CODES, dtype=torch.float64)
        for position in range(SIDE * SIDE):
            where = *context(written, label, position).mT, written[:, position]
            counts.index_put_(where, torch.ones(len(label)).double(), accumulate=True)
        parts = counts, counts.sum(0, keepdim=True), counts.sum((0, 1), keepdim=True)
        p = sum(w * _shares(part) for w, part in zip((0.5, 0.3, 0.15), parts, strict=True))
        self.register_buffer("table", (p + 0.05 / CODES).log())

    def forward(self, x: Contexts) -> Tensor:
        """Logits of the next token."""
        found: Tensor = self.table[tuple(x.mT)]
        return found


def _shares(counts: Tensor) -> Tensor:
    total = counts.sum(-1, keepdim=True)
    return torch.where(total > 0, counts / total.clamp_min(1), 1 / CODES)


class Draft(nn.Module):
    """1,056 logits: the next token from the left one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(CODES + 1, CODES, dtype=torch.float64))

    def forward(self, x: Contexts) -> Tensor:
        """Logits of the next token."""
        return self.table[x[:, 2]]


def speculate(
    target: nn.Module,
    draft: nn.Module,
    label: Tensor,
    rng: torch.Generator,
    rule: Rule = "exact",
    length: int = SIDE * SIDE,
) -> tuple[Tensor, float]:
    """Sequences [n length] by speculative sampling, and their tokens per call of the target.

    Up to four tokens are drafted in a block; a rejected one is drawn from what the draft has too
    little of, and after four accepted ones the target gives one more. The last block is cut.
    """
    written = torch.empty(len(label), length, dtype=torch.long)
    accepted = torch.zeros(len(label), dtype=torch.long)  # in the current block
    calls = torch.zeros(len(label))
    for position in range(length):
        x = context(written, label, position)
        p, q = (torch.softmax(model(x).detach(), -1) for model in (target, draft))
        drafted = torch.multinomial(q, 1, generator=rng)
        ratio = (p.gather(1, drafted) / q.gather(1, drafted)).squeeze(1)
        ratio = {"exact": ratio, "lenient": ratio / 0.5, "always": torch.ones_like(ratio)}[rule]
        taken = torch.rand(len(label), generator=rng, dtype=torch.float64) < ratio
        whole = accepted == DRAFTS
        rest = (p - q).clamp_min(0)
        rest = torch.where((whole | (rest.sum(1) == 0))[:, None], p, rest)  # p = q leaves no rest
        own = torch.multinomial(rest, 1, generator=rng)
        done = whole | ~taken
        written[:, position] = torch.where(done[:, None], own, drafted).squeeze(1)
        calls += done
        accepted = torch.where(done, 0, accepted + 1)
    calls += accepted > 0
    return written, float(written.numel() / calls.sum())


def p_value(target: nn.Module, draft: nn.Module, rule: Rule, draws: int = 40_000) -> float:
    """Chi-square test of the first two tokens of threes against the exact joint distribution."""
    label = torch.full((draws,), 3)
    rng = torch.Generator().manual_seed(0)
    written, _ = speculate(target, draft, label, rng, rule, length=2)
    seen = torch.bincount(written[:, 0] * CODES + written[:, 1], minlength=CODES**2).double()
    start = torch.tensor([[3, BORDER, BORDER]])
    after = torch.stack([torch.full((CODES,), v) for v in (3, BORDER, 0)], 1)
    after[:, 2] = torch.arange(CODES)
    exact = torch.softmax(target(start), -1).mT * torch.softmax(target(after), -1)
    expected = draws * exact.flatten()
    few = expected < 5  # these cells count as one
    cells = [torch.cat([v[~few], v[few].sum(0, keepdim=True)]).numpy() for v in (seen, expected)]
    return float(chisquare(*cells).pvalue)


class Align(Distiller):
    """Draft and target on the same contexts. Term: ``soft`` (logits of both)."""

    def forward(self, batch: Contexts, step: int) -> object:
        """Route contexts."""
        return self.objective(step, soft=(self.student(batch), self.teacher(batch)))


def contexts_of(model: nn.Module, size: int, rng: torch.Generator) -> Contexts:
    """Contexts that a model writes itself into."""
    label = torch.randint(10, (-(-size // (SIDE * SIDE)),), generator=rng)
    written = torch.empty(len(label), SIDE * SIDE, dtype=torch.long)
    for position in range(SIDE * SIDE):
        p = torch.softmax(model(context(written, label, position)).detach(), -1)
        written[:, position] = torch.multinomial(p, 1, generator=rng).squeeze(1)
    return every_context(written, label)[:size]


def every_context(written: Tensor, label: Tensor) -> Contexts:
    """Contexts of all positions, one after another."""
    return torch.cat([context(written, label, n) for n in range(SIDE * SIDE)])


def align(
    target: nn.Module, start: nn.Module, divergence: Callable[..., Tensor], batches: object,
    steps: int,
) -> nn.Module:  # fmt: skip
    """A draft that is distilled from ``start`` on; batches may need the draft that trains."""
    draft = Draft()
    draft.load_state_dict(start.state_dict())
    source = batches(draft) if callable(batches) else batches
    objective = Objective(soft=(1.0, divergence))
    fit(Align(draft, objective, target), source, steps=steps, lr=0.03, progress=False)
    return draft


def main(steps: int = 300) -> dict[str, float]:
    """Train, test and compare; the acceptance rate of each draft by name."""
    written, label = tokens()
    target, rng = Target(written, label), torch.Generator().manual_seed(0)
    judged = contexts_of(target, 20_000, rng)
    data = every_context(written, label)
    likely = Draft()  # by maximum likelihood: counts of pairs
    pairs = torch.ones(CODES + 1, CODES, dtype=torch.float64) / CODES
    pairs.index_put_((data[:, 2], written.mT.flatten()), torch.ones(len(data)).double(), True)
    likely.table.data = (pairs / pairs.sum(1, keepdim=True)).log()

    console = Console()
    for rule in ("exact", "lenient", "always"):
        console.print(f"{rule}: chi-square p = {p_value(target, likely, rule):.3g}")  # type: ignore[arg-type]
    kinds = {
        "kd": partial(kd, T=1.0), "reverse_kl": reverse_kl, "gjsd": gjsd, "tvd": tvd,
    }  # fmt: skip
    sources = {
        "data": [data[torch.randperm(len(data), generator=rng)[:4000]]],
        "target": [contexts_of(target, 4000, rng)],
        "draft": lambda draft: OnPolicy(draft, contexts_of, refresh=25, size=4000, batch=4000),
    }
    drafts = {"maximum likelihood": likely}
    for name, divergence in kinds.items():
        for where, source in sources.items():
            drafts[f"{name}, {where}"] = align(target, likely, divergence, source, steps)
    report, rates = Report("Drafts of digits", label="divergence, contexts", seed=0), {}
    for name, draft in drafts.items():
        rates[name] = float(acceptance_rate(draft(judged), target(judged)).mean())
        many = torch.arange(10).repeat(400)
        _, tokens_per_call = speculate(target, draft, many, torch.Generator().manual_seed(1))
        expected = float(block_efficiency(torch.tensor(rates[name]), DRAFTS))
        report.add(name, acceptance=rates[name], expected=expected, tokens=tokens_per_call)
    report.show(console)
    return rates


if __name__ == "__main__":
    main()
