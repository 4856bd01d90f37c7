"""A killed run ends with the same pixels, whatever the method."""

import pytest
import torch

from potstill.condense import Condense, CondenseConfig, FollowConfig, RecoverConfig
from potstill.core import Training

FOLLOW = FollowConfig(experts=2, epochs=2, expert_batch=4, last=2, span=1, steps=2, batch=4)
RECOVER = RecoverConfig(teacher="convnet-1-3-batch", teacher_steps=4)


class Killed(BaseException):
    """As hard as SIGKILL: nothing is written on the way out."""


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize("method", ["dm", "datm", "cda"])
def test_a_killed_run_ends_with_the_same_pixels(tmp_path, pool_of, monkeypatch, method) -> None:
    from potstill.core.engine import fit as engine

    pool = pool_of((5, 4))

    def job(name: str) -> Condense:
        training = Training(steps=6, lr=1.0, device="cpu", checkpoint_minutes=1e-9)
        return Condense(
            CondenseConfig(
                method=method, ipc=2, out=tmp_path / name, network="convnet-2-3-instance",
                follow=FOLLOW, recover=RECOVER, training=training,
            ),
            pool,
        )  # fmt: skip

    whole = job("whole")
    whole.run(progress=False)
    steps = len(whole.history)
    step = engine._Loop._step
    for kill in torch.randperm(steps, generator=torch.Generator().manual_seed(0))[:2].tolist():
        taken = 0

        def counted(loop, *arguments, kill=kill):
            nonlocal taken
            taken += 1
            if taken == kill + 1:
                raise Killed
            return step(loop, *arguments)

        monkeypatch.setattr(engine._Loop, "_step", counted)
        with pytest.raises(Killed):
            job(f"killed {kill}").run(progress=False)
        monkeypatch.setattr(engine._Loop, "_step", step)
        again = job(f"killed {kill}")
        again.run(progress=False)
        assert torch.equal(again.condensed.images, whole.condensed.images), kill
        if method == "datm":
            assert torch.equal(again.condensed.logits, whole.condensed.logits)
            assert again.condensed.lr == whole.condensed.lr
