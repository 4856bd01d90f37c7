"""The criteria as one would write them from their formulas: oracles for tests, baselines for races.

Written from the design note, after no one's code: whole tensors, autograd, no care for memory or
for inputs at the edge of a number format.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def kd(z_s: Tensor, z_t: Tensor, y: Tensor, T: float = 4.0) -> Tensor:
    log_q, p = F.log_softmax(z_s / T, 1), F.softmax(z_t / T, 1)
    return F.kl_div(log_q, p, reduction="none").sum(1).mean() * T**2


def soft_ce(z_s: Tensor, z_t: Tensor, y: Tensor) -> Tensor:
    return -(F.softmax(z_t, 1) * F.log_softmax(z_s, 1)).sum(1).mean()


def logit_mse(z_s: Tensor, z_t: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(z_s, z_t)


def logit_std(z_s: Tensor, z_t: Tensor, y: Tensor, T: float = 2.0) -> Tensor:
    def standardized(z):
        return (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + 1e-7)

    return kd(standardized(z_s), standardized(z_t), y, T)


def wsld(z_s: Tensor, z_t: Tensor, y: Tensor, T: float = 4.0) -> Tensor:
    hard_s = F.cross_entropy(z_s.detach(), y, reduction="none")
    hard_t = F.cross_entropy(z_t, y, reduction="none")
    weight = 1 - torch.exp(-hard_s / (hard_t + 1e-7))
    soft = -(F.softmax(z_t / T, 1) * F.log_softmax(z_s / T, 1)).sum(1)
    return T**2 * (weight * soft).mean()


def dkd(
    z_s: Tensor, z_t: Tensor, y: Tensor, alpha: float = 1.0, beta: float = 8.0, T: float = 4.0
) -> Tensor:
    label = F.one_hot(y, z_s.shape[1]).bool()

    def two(z):
        p = F.softmax(z / T, 1)
        return torch.cat([(p * label).sum(1, True), (p * ~label).sum(1, True)], 1)

    target = F.kl_div(two(z_s).log(), two(z_t), reduction="batchmean")
    rest_t = F.softmax(z_t / T - 1000.0 * label, 1)
    rest_s = F.log_softmax(z_s / T - 1000.0 * label, 1)
    return T**2 * (alpha * target + beta * F.kl_div(rest_s, rest_t, reduction="batchmean"))


def nkd(z_s: Tensor, z_t: Tensor, y: Tensor, gamma: float = 1.5, T: float = 1.0) -> Tensor:
    n, c = z_s.shape
    others = torch.ones_like(z_s).scatter_(1, y[:, None], 0).bool()
    p_y = F.softmax(z_t, 1).gather(1, y[:, None])
    target = -(p_y * F.log_softmax(z_s, 1).gather(1, y[:, None])).mean()
    rest_s, rest_t = z_s[others].reshape(n, c - 1), z_t[others].reshape(n, c - 1)
    soft = -(F.softmax(rest_t / T, 1) * F.log_softmax(rest_s / T, 1)).sum(1).mean()
    return target + gamma * T**2 * soft


def dist(
    z_s: Tensor, z_t: Tensor, y: Tensor, beta: float = 1.0, gamma: float = 1.0, T: float = 1.0
) -> Tensor:
    def pearson(a, b):
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)

    q, p = F.softmax(z_s / T, 1), F.softmax(z_t / T, 1)
    inter, intra = 1 - pearson(q, p).mean(), 1 - pearson(q.t(), p.t()).mean()
    return T**2 * (beta * inter + gamma * intra)


def gjsd(z_s: Tensor, z_t: Tensor, y: Tensor, beta: float = 0.5) -> Tensor:
    log_q, log_p = F.log_softmax(z_s, 1), F.log_softmax(z_t, 1)
    at = torch.tensor(beta, dtype=z_s.dtype)
    log_m = torch.logsumexp(torch.stack([log_q + torch.log(1 - at), log_p + torch.log(at)]), 0)
    teacher = F.kl_div(log_m, log_p, reduction="none", log_target=True)
    student = F.kl_div(log_m, log_q, reduction="none", log_target=True)
    return (beta * teacher + (1 - beta) * student).sum(1).mean()


def reverse_kl(z_s: Tensor, z_t: Tensor, y: Tensor) -> Tensor:
    log_q, log_p = F.log_softmax(z_s, 1), F.log_softmax(z_t, 1)
    return (log_q.exp() * (log_q - log_p)).sum(1).mean()


def skew_fkl(z_s: Tensor, z_t: Tensor, y: Tensor, lam: float = 0.1) -> Tensor:
    p, q = F.softmax(z_t, 1), F.softmax(z_s, 1)
    return (p * (p.log() - (lam * p + (1 - lam) * q).log())).sum(1).mean()


def skew_rkl(z_s: Tensor, z_t: Tensor, y: Tensor, lam: float = 0.1) -> Tensor:
    p, q = F.softmax(z_t, 1), F.softmax(z_s, 1)
    return (q * (q.log() - ((1 - lam) * p + lam * q).log())).sum(1).mean()


def tvd(z_s: Tensor, z_t: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (F.softmax(z_s, 1) - F.softmax(z_t, 1)).abs().sum(1).mean()


def bdkd(z_s: Tensor, z_t: Tensor, y: Tensor, delta: float = 2.0) -> Tensor:
    log_q, log_p = F.log_softmax(z_s, 1), F.log_softmax(z_t, 1)
    q, p = log_q.exp(), log_p.exp()
    h_s, h_t = -(q * log_q).sum(1).detach(), -(p * log_p).sum(1)
    forward, reverse = torch.where(h_t > h_s, delta, 1.0), torch.where(h_s > h_t, delta, 1.0)
    gap = log_p - log_q
    return (forward * (p * gap).sum(1) - reverse * (q * gap).sum(1)).mean()


def alpha_beta(z_s: Tensor, z_t: Tensor, y: Tensor, a: float = 0.2, b: float = 0.7) -> Tensor:
    p, q = F.softmax(z_t, 1), F.softmax(z_s, 1)
    own = a / (a + b) * p ** (a + b) + b / (a + b) * q ** (a + b)
    return -((p**a * q**b - own).sum(1) / (a * b)).mean()


def renyi(z_s: Tensor, z_t: Tensor, y: Tensor, a: float = 0.5) -> Tensor:
    p, q = F.softmax(z_t, 1), F.softmax(z_s, 1)
    return ((p**a * q ** (1 - a)).sum(1).log() / (a - 1)).mean()


def amari(z_s: Tensor, z_t: Tensor, y: Tensor, a: float = 0.5) -> Tensor:
    p, q = F.softmax(z_t, 1), F.softmax(z_s, 1)
    return (((p**a * q ** (1 - a)).sum(1) - 1) / (a * (a - 1))).mean()


def taid(z_s: Tensor, z_t: Tensor, y: Tensor, tau: float = 0.4) -> Tensor:
    p = F.softmax((1 - tau) * z_s.detach() + tau * z_t, 1)
    return -(p * F.log_softmax(z_s, 1)).sum(1).mean()


def pld(z_s: Tensor, z_t: Tensor, y: Tensor) -> Tensor:
    order = z_t.scatter(1, y[:, None], torch.inf).argsort(dim=1, descending=True, stable=True)
    alpha = F.softmax(z_t, 1).gather(1, order)
    ranked = z_s.gather(1, order)
    tail = torch.logcumsumexp(ranked.flip(1), 1).flip(1)
    return (alpha * (tail - ranked)).sum(1).mean()


def topk_kl(z_s: Tensor, z_t: Tensor, y: Tensor, k: int = 10) -> Tensor:
    top = z_t.topk(k, 1).indices
    p, q = (F.softmax(z, 1).gather(1, top) for z in (z_t, z_s))
    p, q = (torch.cat([x, 1 - x.sum(1, keepdim=True)], 1) for x in (p, q))
    return (p * (p.log() - q.log())).sum(1).mean()


def mft(z_s: Tensor, z_t: Tensor, y: Tensor, lead: float = 0.2) -> Tensor:
    p = F.softmax(z_t, 1)
    hot = F.one_hot(y, p.shape[1])
    p_y, p_top = (p * hot).sum(1), p.max(1).values
    wrong = (p_top - p_y + lead) / (1 + p_top - p_y)
    right = ((p_y + lead).clamp_max(1) - p_top) / (1 - p_top)
    mix = torch.where(p.argmax(1) == y, right, wrong)[:, None]
    return F.kl_div(F.log_softmax(z_s, 1), (1 - mix) * p + mix * hot, reduction="batchmean")


def rkd_d(f_s: Tensor, f_t: Tensor) -> Tensor:
    def relative(f):
        d = (f[:, None] - f[None]).norm(dim=2)
        return d / d[d > 0].mean()

    return F.smooth_l1_loss(relative(f_s), relative(f_t))


def rkd_a(f_s: Tensor, f_t: Tensor) -> Tensor:
    def cosines(f):
        e = F.normalize(f[None] - f[:, None], dim=2)
        return torch.bmm(e, e.transpose(1, 2))

    return F.smooth_l1_loss(cosines(f_s), cosines(f_t))


def rkd(f_s: Tensor, f_t: Tensor, angle: float = 2.0) -> Tensor:
    """Distance and angle as one loss: the usual codes compute the angles also at weight 0."""
    return rkd_d(f_s, f_t) + angle * rkd_a(f_s, f_t)
