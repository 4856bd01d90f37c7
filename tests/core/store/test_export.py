"""Export: agreement on two shapes, and files that appear only when they agree."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from potstill.core.errors import BackendError, ConfigError, ShapeError
from potstill.core.store.export import ExportError, to_exported, to_onnx

WAYS = [(to_onnx, ".onnx"), (to_exported, ".pt2")]
both = pytest.mark.parametrize(("export", "suffix"), WAYS, ids=["onnx", "exported"])


class Upscaler(nn.Module):
    """Convolutions, attention by variance, pixel shuffle: what image students are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x))
        return nn.functional.pixel_shuffle(self.last(h * h.var((2, 3), keepdim=True)), 2)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, index: Tensor) -> dict[str, Tensor]:
        h = self.drop(x) + self.embed(index)
        return {"h": h, "mean": h.mean(-1)}


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class FixedAxis(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * len(x.unbind(0))


class OnlyTwo(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tensor([[1.0], [2.0]])


class Rounded(nn.Module):
    """Computes otherwise once it is exported, as a faulty exporter would make it."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-2 if torch.compiler.is_exporting() else x * 1.0


@both
def test_images_of_any_size(export, suffix: str, tmp_path: Path) -> None:
    model = Upscaler().train()
    path = tmp_path / "a" / f"up{suffix}"
    dynamic = {0: "batch", 2: "height", 3: "width"}
    result = export(model, torch.randn(2, 3, 9, 7), path, dynamic=dynamic)
    assert result.path == path
    assert path.stat().st_size > 1000
    assert result.error < 1e-5
    assert result.error_elsewhere is not None
    assert result.error_elsewhere < 1e-5
    assert all(module.training for module in model.modules())
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@both
def test_several_inputs_integers_and_outputs(export, suffix: str, tmp_path: Path) -> None:
    example = (torch.randn(3, 4), torch.tensor([6, 0, 2]))
    path = tmp_path / f"two{suffix}"
    result = export(TwoInputs(), example, path, dynamic=({0: "batch"}, {0: "batch"}))
    assert result.error < 1e-6
    assert export(TwoInputs(), example, path).error_elsewhere is None


def test_onnx_axes_have_their_names(tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "up.onnx"
    to_onnx(Upscaler(), torch.randn(2, 3, 8, 8), path, dynamic={0: "batch", 2: "height"}, opset=20)
    model = onnx.load(path)
    axes = model.graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in axes] == ["batch", 3, "height", 8]
    assert model.opset_import[0].version == 20


@both
@pytest.mark.parametrize("model", [Branching(), FixedAxis()], ids=["branching", "fixed axis"])
def test_what_cannot_be_exported_says_so(export, suffix: str, model, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=type(model).__name__):
        export(model, torch.randn(2, 3), tmp_path / f"m{suffix}", dynamic={0: "batch"})
    assert list(tmp_path.iterdir()) == []


@both
def test_a_difference_leaves_no_file(export, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    with pytest.raises(ExportError, match="must agree with the model to 0.0001, got a relative"):
        export(Rounded(), torch.rand(2, 3), path)
    assert list(tmp_path.iterdir()) == []
    path.write_text("old")
    with pytest.raises(ExportError):
        export(Rounded(), torch.rand(2, 3), path)
    assert path.read_text() == "old"
    assert export(Rounded(), torch.rand(2, 3), path, tolerance=0.5).error > 1e-3


@both
def test_another_shape_can_be_given_and_is_checked(export, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    model, example = nn.Linear(3, 2), torch.randn(4, 3)
    result = export(model, example, path, dynamic={0: "batch"}, other=torch.randn(7, 3))
    assert result.error_elsewhere is not None
    with pytest.raises(ExportError, match=r"must run on inputs of shape \[\[7, 3\]\]"):
        export(model, example, path, other=torch.randn(7, 3))


@both
def test_a_model_that_does_not_run_elsewhere_says_so(export, suffix: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"pass other=|OnlyTwo must be exportable"):
        export(OnlyTwo(), torch.randn(2, 3), tmp_path / f"m{suffix}", dynamic={0: "batch"})


@both
def test_wrong_arguments(export, suffix: str, tmp_path: Path) -> None:
    model, x, path = nn.Linear(3, 2), torch.randn(4, 3), tmp_path / f"m{suffix}"
    with pytest.raises(ConfigError, match=f"must end in {suffix}"):
        export(model, x, tmp_path / "m.bin")
    with pytest.raises(ShapeError, match="at least 2 long on dynamic axis 0"):
        export(model, x[:1], path, dynamic={0: "batch"})
    with pytest.raises(ConfigError, match="axes 0 to 1"):
        export(model, x, path, dynamic={2: "batch"})
    with pytest.raises(ConfigError, match="one mapping for each of the 1 inputs, got 2"):
        export(model, x, path, dynamic=({0: "batch"}, {}))


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_names_the_extra(package: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackendError, match=rf"got no {package}; pip install 'potstill-core\[exp"):
        to_onnx(nn.Linear(1, 1), torch.zeros(2, 1), tmp_path / "m.onnx")
