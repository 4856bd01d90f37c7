"""IMDN written naively from the paper: the baseline of the benchmarks and the oracle of the tests.

NCHW, a concatenation of all blocks, statistics in two passes, nothing folded. Its parameters have
the names of the published checkpoints, so that these load directly.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.05)


class Attention(nn.Module):
    """Hui et al., ACM MM 2019, Eq. (5)."""

    def __init__(self, n: int, hidden: int) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            nn.Conv2d(n, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, n, 1), nn.Sigmoid()
        )

    def forward(self, z: Tensor) -> Tensor:
        pixels = z.shape[2] * z.shape[3]
        mean = z.sum(3, keepdim=True).sum(2, keepdim=True) / pixels
        squares = (z - mean).pow(2).sum(3, keepdim=True).sum(2, keepdim=True)
        return z * self.conv_du((squares / pixels).pow(0.5) + mean)


class Block(nn.Module):
    """Hui et al., ACM MM 2019, Eqs. (2) to (4)."""

    def __init__(self, n: int, hidden: int) -> None:
        super().__init__()
        self.d, self.r = n // 4, n - n // 4
        self.c1 = nn.Conv2d(n, n, 3, padding=1)
        self.c2 = nn.Conv2d(self.r, n, 3, padding=1)
        self.c3 = nn.Conv2d(self.r, n, 3, padding=1)
        self.c4 = nn.Conv2d(self.r, self.d, 3, padding=1)
        self.c5 = nn.Conv2d(n, n, 1)
        self.cca = Attention(n, hidden)

    def forward(self, x: Tensor) -> Tensor:
        kept1, rest = torch.split(activate(self.c1(x)), (self.d, self.r), dim=1)
        kept2, rest = torch.split(activate(self.c2(rest)), (self.d, self.r), dim=1)
        kept3, rest = torch.split(activate(self.c3(rest)), (self.d, self.r), dim=1)
        z = torch.cat([kept1, kept2, kept3, self.c4(rest)], dim=1)
        return self.c5(self.cca(z)) + x


class NaiveIMDN(nn.Module):
    """Hui et al., ACM MM 2019, Fig. 2 and Eq. (1)."""

    def __init__(self, scale: int, n: int = 64, blocks: int = 6, strided: bool = False) -> None:
        super().__init__()
        if strided:  # IMDN_AS
            first = nn.Conv2d(3, n, 3, 2, 1)
            self.fea_conv = nn.Sequential(first, nn.LeakyReLU(0.05), nn.Conv2d(n, n, 3, 2, 1))
        else:
            self.fea_conv = nn.Conv2d(3, n, 3, padding=1)
        self.count = blocks
        for k in range(1, blocks + 1):
            setattr(self, f"IMDB{k}", Block(n, max(4, n // 16)))
        self.c = nn.Sequential(nn.Conv2d(blocks * n, n, 1))
        self.LR_conv = nn.Conv2d(n, n, 3, padding=1)
        self.upsampler = nn.Sequential(
            nn.Conv2d(n, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale)
        )

    def forward(self, x: Tensor) -> Tensor:
        shallow = y = self.fea_conv(x)
        outputs = []
        for k in range(1, self.count + 1):
            y = getattr(self, f"IMDB{k}")(y)
            outputs.append(y)
        fused = activate(self.c(torch.cat(outputs, dim=1)))
        return self.upsampler(self.LR_conv(fused) + shallow)
