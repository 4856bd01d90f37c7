"""Loaders of other libraries through `fit`: a script as people write it, killed and continued."""

import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import Distiller, Objective, Run, fit

SCRIPT = """
import os, signal, sys
import timm, torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from potstill.core import Objective, fit
from potstill.core.criteria import kd
from potstill.core.schemes import LogitDistiller

torch.manual_seed(0)
make = lambda width: timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2,
                                       embed_dim=width, num_heads=2, num_classes=2, drop_rate=0.1)
flip = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.ToTensor()])
run, workers, killed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
images = datasets.ImageFolder("images", flip)
loader = DataLoader(images, 4, shuffle=True, num_workers=workers)
objective = Objective(task=(0.1, F.cross_entropy), kd=(0.9, kd))
kill = lambda row, share: row["step"] == killed and os.kill(os.getpid(), signal.SIGKILL)
distiller = LogitDistiller(make(16), objective, make(32))
fit(distiller, loader, epochs=2, lr=1e-3, run=run, progress=kill)
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    from PIL import Image

    folder = tmp_path_factory.mktemp("script")
    draw = torch.Generator().manual_seed(0)
    for name in ("cats", "dogs"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(9):
            pixels = torch.randint(256, (32, 32, 3), generator=draw, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
    (folder / "train.py").write_text(SCRIPT)
    return folder


def call(folder, run, workers=0, killed=-1):
    words = [sys.executable, "train.py", run, str(workers), str(killed)]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True)


def weights(folder, run):
    from safetensors.torch import load_file

    return load_file(folder / run / "student.safetensors")


def test_a_script_over_an_image_folder_is_killed_and_goes_on_to_the_same_weights(images):
    assert len(SCRIPT.strip().splitlines()) <= 20
    done = call(images, "whole")
    assert done.returncode == 0, done.stderr
    assert len((images / "whole" / "history.jsonl").read_text().splitlines()) == 10
    # The first checkpoint comes after a minute: a kill before it starts from the beginning.
    assert call(images, "killed", workers=1, killed=6).returncode == -9
    done = call(images, "killed", workers=1)
    assert done.returncode == 0, done.stderr
    whole, found = weights(images, "whole"), weights(images, "killed")
    assert all(torch.equal(whole[name], found[name]) for name in whole)


class Regression(Distiller):
    def forward(self, batch, step):
        x = batch["x"] if isinstance(batch, dict) else batch
        x = torch.as_tensor(x[0] if isinstance(x, list | tuple) else x).float().reshape(-1, 4)
        return self.objective(step, task=(self.student(x), x))


class Stop(Exception):
    pass


def stop_at(step):
    def stop(row, share):
        if row["step"] == step:
            raise Stop

    return stop


def train(batches, run=None, steps=17, progress=False):
    torch.manual_seed(0)
    distiller = Regression(nn.Linear(4, 4), Objective(task=(1.0, F.mse_loss)))
    run = None if run is None else Run(run, every=1)
    rows = fit(distiller, batches, steps=steps, lr=0.05, run=run, progress=progress)
    return [row["loss"] for row in rows], distiller.student.weight.detach().clone()


def stateful(workers=0):
    data = pytest.importorskip("torchdata.stateful_dataloader")
    x = torch.randn(23, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(7)  # its sampler draws a seed when it is made
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'set_vital' is deprecated")  # torchdata calls it
        return data.StatefulDataLoader(list(x), 4, shuffle=True, num_workers=workers)


@pytest.mark.parametrize("killed", [2, 5, 6, 11])
def test_a_stateful_loader_continues_exactly(tmp_path, killed):
    losses, whole = train(stateful())
    with pytest.raises(Stop):
        train(stateful(), tmp_path, progress=stop_at(killed))
    loader = stateful()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, weight = train(loader, tmp_path)
    assert again == losses
    assert torch.equal(weight, whole)


def streaming():
    datasets = pytest.importorskip("datasets")
    rows = [{"x": [float(n), 1.0, 0.0, 2.0]} for n in range(12)]
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    return torch.utils.data.DataLoader(stream.with_format("torch"), batch_size=4)


def shards(folder):
    wds = pytest.importorskip("webdataset")
    path = folder / "data-000.tar"
    if not path.exists():
        with wds.TarWriter(str(path)) as sink:
            for n in range(12):
                sink.write({"__key__": f"{n:03d}", "x.pth": torch.full((4,), float(n))})
    pipeline = wds.WebDataset(path.as_uri(), shardshuffle=False, empty_check=False)
    return pipeline.decode().to_tuple("x.pth").batched(4)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's, when stopped
@pytest.mark.parametrize(
    "make", [lambda folder: streaming(), shards], ids=["datasets", "webdataset"]
)
def test_a_stream_trains_is_begun_again_and_says_what_resuming_does_not_promise(tmp_path, make):
    first = train(make(tmp_path), steps=3)[0]
    assert train(make(tmp_path), steps=6)[0][:3] == first  # two epochs of three batches
    run = tmp_path / "run"
    with pytest.warns(UserWarning, match="begins its epoch of .* anew"), pytest.raises(Stop):
        train(make(tmp_path), run, steps=6, progress=stop_at(4))
    with pytest.warns(UserWarning, match="begins its epoch of .* anew"):
        losses, _ = train(make(tmp_path), run, steps=6)
    assert len(losses) == 6
