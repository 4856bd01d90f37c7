"""Jobs and their verbs: `config.yaml` repeats a run, options are honoured or refused."""

import json
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from potstill.core import ConfigError, Distiller, Engine, Interrupted, Objective, Training, fit
from potstill.core.command.cli import main
from potstill.core.errors import DataError
from potstill.nerf import (
    Convert,
    ConvertConfig,
    FieldSize,
    RowAdam,
    SceneConfig,
    Train,
    TrainConfig,
    load_field,
    make_field,
    with_rates,
)
from potstill.nerf.from_images import ImagesToField

SMALL = {"scene": SceneConfig(downsample=8), "samples": 400, "occupancy": 12, "every": 4}
TRAINING = {"steps": 8, "batch": 256, "optimizer": "row-adam", "device": "cpu"}


def training(**options):
    return Training(**{**TRAINING, "warmup": 0.02375, "final": 0.1, **options})


def train_config(out, kind="cp", **options):
    size = options.pop("size", FieldSize(resolution=16))
    return TrainConfig(out=out, kind=kind, size=size, training=training(**options), **SMALL)


def convert_config(teacher, out, **options):
    changes = {"kind": "vm", "size": FieldSize(resolution=12), "samples": 300, "every": 4}
    return ConvertConfig(teacher, out=out, **{**changes, "training": training(), **options})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return (
        Train(train_config(tmp_path_factory.mktemp("teacher") / "run")).run(progress=False).folder
    )


def weights(folder):
    return load_file(folder / "field.safetensors")


def assert_same_run(first, second):
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    drop = ("seconds", "field", "picture", "page")
    figures = [json.loads((f / "result.json").read_text()) for f in (first, second)]
    ours, theirs = ({k: v for k, v in each.items() if k not in drop} for each in figures)
    assert ours == theirs


VERBS = {
    "train": ["--kind", "grid", "--size.resolution", "16", "--occupancy", "12",
              "--downsample", "8"],
    "convert": ["--size.resolution", "12", "--hand-over", "0.5", "--data", "analytic",
                "--downsample", "8", "--erase=-1", "--erase=-1", "--erase=-1", "--erase=0",
                "--erase=1", "--erase=1"],
}  # fmt: skip
SHORT = ["--steps", "8", "--samples", "300", "--batch", "256", "--every", "4", "--device", "cpu"]


@pytest.mark.parametrize("verb", VERBS)
def test_config_yaml_repeats_the_run(verb, teacher, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    given = [str(teacher)] if verb == "convert" else []
    assert main(["nerf", verb, *given, *VERBS[verb], *SHORT, "--seed", "3", "-o", str(first)]) == 0
    again = ["nerf", verb, "--config", str(first / "config.yaml")]
    assert main([*again, "--out", str(second)]) == 0
    assert_same_run(first, second)
    # the same command again gives the finished run back, and another option is named
    before = (first / "field.safetensors").stat().st_mtime_ns, weights(first)
    assert main(again) == 0
    assert all(torch.equal(before[1][name], value) for name, value in weights(first).items())
    capsys.readouterr()
    assert main([*again, "--seed", "4", "--samples", "200"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "another samples (300, now 200)" in message
    assert "another training.seed (3, now 4)" in message


def test_the_backend_may_change_between_two_parts_of_a_run(tmp_path):
    options = {"size": FieldSize(levels=3, log2_rows=8, finest=16)}

    def run(folder, backend="auto", stop=None):
        def progress(row, share):
            if row["step"] == stop:
                signal.raise_signal(signal.SIGTERM)

        config = replace(train_config(folder, "hash", **options), backend=backend)
        return Train(config).run(progress=progress)

    with pytest.raises(Interrupted):
        run(tmp_path / "a", stop=3)
    result = run(tmp_path / "a", backend="torch")
    assert len(result.history) == 8


def test_a_killed_hand_over_continues_bit_by_bit(teacher, tmp_path):
    def run(folder, stop=None):
        def progress(row, share):
            seen.append(row["step"])
            if len(seen) == stop:
                signal.raise_signal(signal.SIGTERM)

        seen = []
        scene = SceneConfig(downsample=8)
        config = convert_config(teacher, tmp_path / folder, scene=scene, hand_over=0.5)
        return Convert(config).run(progress=progress).folder

    whole = run("a")
    with pytest.raises(Interrupted):
        run("b", stop=6)  # the second step on images
    assert_same_run(whole, run("b"))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_optimizers_of_torch_train_at_the_rates_of_the_field(optimizer, teacher, tmp_path):
    options = {"optimizer": optimizer, "lr": 0.01, "weight_decay": 0.01, "clip": 1.0, "ema": 0.5}
    history = Train(train_config(tmp_path / "a", "hash", size=FieldSize(levels=3, log2_rows=8),
                                 **options)).run(progress=False).history  # fmt: skip
    assert "grad_norm" in history[0]
    field = make_field("cp", load_field(teacher)[0].space)
    made = with_rates(Train.optimizers[optimizer], ImagesToField(field))
    named = [(f"student.{name}", value) for name, value in field.named_parameters()]
    groups = made([*named, ("objective.extra", torch.nn.Parameter(torch.zeros(1)))], lr=0.5)
    lr = {name: group["lr"] for group in groups.param_groups for name in group["param_names"]}
    assert lr["student.lines"] == lr["objective.extra"] == 0.5
    assert lr["student.basis.weight"] == 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16"}, "precision must be fp32 for fields, got bf16"),
        ({"parallel": "fsdp"}, "parallel must be ddp for fields, got fsdp"),
        ({"workers": 2}, "workers must be 0 for fields, got 2"),
        ({"weight_decay": 0.1}, "RowAdam: weight_decay must be 0, got 0.1"),
        ({"optimizer": "rowadam"}, "'rowadam'; did you mean 'row-adam'"),
        ({"final": 0.0}, "final must be positive, got 0"),
        ({"epochs": 1.0}, "epochs must be None for fields, got 1.0"),
    ],
)
def test_what_training_cannot_do_is_refused(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        Train(train_config(tmp_path / "a", **options)).run(progress=False)
    assert not (tmp_path / "a").exists()


def test_accumulated_batches_and_pools_exclude_each_other(teacher, tmp_path):
    twice = training(accumulate=2)
    with pytest.raises(ConfigError, match="accumulate must be 1 with pools, got 2"):
        convert_config(teacher, tmp_path / "a", pools=True, training=twice)
    result = Convert(convert_config(teacher, tmp_path / "b", training=twice)).run(progress=False)
    assert len(result.history) == 8


def test_wrong_input_leaves_no_folder(teacher, tmp_path):
    missing = replace(train_config(tmp_path / "a"), scene=SceneConfig(str(tmp_path / "no")))
    with pytest.raises(DataError, match="nothing there"):
        Train(missing)
    with pytest.raises(DataError, match="must be a pose prior"):
        Convert(convert_config(teacher, tmp_path / "a", prior=str(tmp_path / "no.json")))
    assert not (tmp_path / "a").exists()


def test_seconds_take_the_place_of_steps(tmp_path):
    words = ["--kind", "cp", "--size.resolution", "12", "--downsample", "8", "--every", "0"]
    out = ["--out", str(tmp_path / "a"), "--seconds", "0.3"]
    assert main(["nerf", "train", *words, *out]) == 0
    assert "steps: null" in (tmp_path / "a" / "config.yaml").read_text()


def test_a_table_keeps_its_name_in_groups():
    table = torch.nn.Parameter(torch.zeros(4, 2))
    optimizer = RowAdam([{"params": [("x.table", table)], "lr": 0.1}])
    table.sum().backward()
    table.grad[1:] = 0
    optimizer.step()
    assert table[0].tolist() == pytest.approx([-0.1, -0.1])
    assert table[1:].abs().sum() == 0


class Tables(torch.nn.Module):
    """A table as it comes or transposed, and a convolution with channels last."""

    def __init__(self, turned):
        super().__init__()
        table = torch.rand(12, 4)
        self.table = torch.nn.Parameter(table.t().contiguous().t() if turned else table)
        self.conv = torch.nn.Conv2d(4, 3, 2).to(memory_format=torch.channels_last)

    def forward(self, rows):
        return self.conv(self.table[rows].transpose(1, 3))


class Looked(Distiller):
    def forward(self, batch, step):
        z = self.student(batch)
        return self.objective(step, task=(z, torch.ones_like(z)))


@pytest.mark.parametrize("turned", [False, True], ids=["plain", "turned"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["native", "torch"])
def test_moments_of_row_adam_keep_the_layout(tmp_path, turned, precision, kind, monkeypatch):
    if kind == "torch":
        monkeypatch.setattr("potstill.nerf.optim._is_native", lambda tensors: False)

    def trained(folder, steps):
        torch.manual_seed(0)
        student = Tables(turned)
        distiller = Looked(student, Objective(task=(1.0, torch.nn.functional.mse_loss)))
        rows = [torch.randint(0, 9, (2, 3, 3)) for _ in range(3)]  # not all rows in each step
        with Engine("cpu", precision) as engine:
            fit(distiller, rows, steps=steps, lr=0.1, optimizer=RowAdam, run=folder,
                engine=engine, progress=False)  # fmt: skip
        return student.state_dict()

    whole = trained(None, 6)
    trained(tmp_path, 3)
    resumed = trained(tmp_path, 6)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.dist
def test_two_processes_do_what_one_does(teacher, on_two_processes):
    """They take the rays that one takes, and as many; in pixels alone Adam amplifies rounding."""
    share = ["--batch", "{share:256}", "--samples", "{share:300}"]
    short, turned = ["--steps", "4", "--every", "4"], [str(teacher), *VERBS["convert"]]
    on_two_processes({
        "train": ["nerf", "train", *VERBS["train"], *short, *share],
        "convert": ["nerf", "convert", *turned, *short, "--batch", "256", "--samples", "300"],
    }, losses=["convert"])  # fmt: skip
