"""SSIM: sums of shifted slices against the convolution that most code uses."""

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.core import ssim
from potstill.core.measure.bench import Pair, benchmark, close


def photographs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Four smooth RGB images of 256 x 256 in [0, 1], and noisy ones."""
    x = F.interpolate(torch.rand(4, 3, 16, 16), (256, 256), mode="bicubic").clamp(0, 1)
    y = (x + 0.05 * torch.randn_like(x)).clamp(0, 1)
    return x.to(dtype), y.to(dtype)


def window_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Wang et al. 2004, Eq. 13 as usually written: five 11x11 grouped convolutions."""
    position = torch.arange(-5, 6, dtype=x.dtype)
    line = (-position.square() / (2 * 1.5**2)).exp()
    window = torch.outer(line, line) / line.sum() ** 2
    channels = x.shape[1]
    window = window.expand(channels, 1, 11, 11).contiguous()

    def mean(image: Tensor) -> Tensor:
        return F.conv2d(image, window, groups=channels)

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (score / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean()


def race(dtype: torch.dtype, tolerance: float) -> Pair:
    x, y = photographs(dtype)
    return Pair(
        ours=lambda: ssim(x, y),
        baseline=lambda: window_ssim(x, y),
        check=close(rtol=0, atol=tolerance),
        work=len(x),
        unit="images/s",
        bytes=2 * x.nbytes,
    )


@benchmark(threads=1, clock="cpu")
def ssim_float32() -> Pair:
    """SSIM of 4 RGB images 256x256 in float32 against 11x11 convolutions, one thread."""
    return race(torch.float32, 1e-5)


@benchmark(threads=1, clock="cpu")
def ssim_float64() -> Pair:
    """The same in float64, as tables are computed."""
    return race(torch.float64, 1e-12)
