"""The shapes in public signatures are true: jaxtyping's import hook checks them at each call."""

import subprocess
import sys

PROGRAM = """
import torch
from jaxtyping import install_import_hook

with install_import_hook("potstill", "beartype.beartype"):
    from potstill.core import accuracy, psnr
    from potstill.core.criteria import kd, rkd_d, sp

torch.manual_seed(0)
z_s, z_t = torch.randn(2, 4, 7).unbind()
kd(z_s, z_t), rkd_d(z_s, z_t), sp(z_s, z_t)
accuracy(z_s, torch.randint(7, (4,)))
psnr(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8), data_range=1.0)
try:
    kd(z_s, z_t[:, :5])
except Exception as error:
    print(type(error).__module__.split(".")[0], flush=True)
"""


def test_public_calls_pass_the_shape_hook_and_wrong_ones_do_not() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() in ("jaxtyping", "beartype"), done.stdout
