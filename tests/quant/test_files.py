"""ONNX and OpenVINO files: packed, run again on real inputs, and refused when they disagree."""

from collections import Counter

import pytest
import torch
from torch import nn

from potstill.core import ConfigError
from potstill.core.store import ExportError
from potstill.quant import (
    Buckets,
    Grid,
    bake,
    calibrate,
    export_onnx,
    export_openvino,
    load_lowered,
    lower,
    lowered,
    run_onnx,
    save_packed,
)

onnx = pytest.importorskip("onnx")


class Net(nn.Module):
    """Convolutions, one weight that the forward uses itself, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.last = nn.Linear(8, 5, bias=False)

    def forward(self, x):
        y = torch.relu(self.first(x))
        a, b = self.second.weight.split(8, dim=1)
        y = nn.functional.conv2d(y, a, self.second.bias) + nn.functional.conv2d(y.relu(), b)
        return self.last(y.mean((2, 3)))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().eval(), [torch.rand(2, 3, 8, 8) for _ in range(3)]


STORED = {2: ("INT2", 2), 3: ("INT4", 4), 4: ("INT4", 4), 8: ("INT8", 8)}


@pytest.mark.parametrize(("bits", "keep"), [(4, {"first": 8, "last": 3}), (2, {})])
def test_weights_are_packed_and_the_file_agrees(net, bits, keep, tmp_path) -> None:
    model, inputs = net
    student = lower(model, Grid(bits), keep=keep)
    made = export_onnx(student, inputs, tmp_path / "s.onnx", dynamic={0: "n", 2: "h", 3: "w"})
    assert made.error < 1e-5
    expected, found = Counter(), Counter()
    for each in lowered(student):
        kind, stored = STORED[each.quantizer.grid.bits]
        expected[kind] += each.original.numel() * stored // 8
    for tensor in onnx.load(made.path).graph.initializer:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        found[kind] += len(tensor.raw_data) if kind in expected else 0
    assert found & expected == expected
    assert not any(node.metadata_props for node in onnx.load(made.path).graph.node)
    assert run_onnx(made.path)(torch.rand(3, 3, 5, 7)).shape == (3, 5)
    if bits > 2:
        pytest.importorskip("openvino")
        assert export_openvino(student, inputs, tmp_path / "s.xml").error < 1e-4


def test_inputs_of_layers_are_rounded_as_in_training(net, tmp_path) -> None:
    model, inputs = net
    student = lower(model, Grid(7, form="restricted"))
    assert calibrate(student, inputs, keep=["last"], outputs=True) == ["second"]
    made = export_onnx(student, inputs, tmp_path / "s.onnx")
    nodes = [node.op_type for node in onnx.load(made.path).graph.node]
    assert nodes.count("QuantizeLinear") == 2
    assert nodes.index("QuantizeLinear") < nodes.index("Conv")
    difference = run_onnx(made.path)(inputs[0]) - bake(student)(inputs[0]).detach()
    assert 1e-5 < float(difference.abs().max()) < 0.01
    with pytest.raises(ExportError, match=r"x.onnx must agree .* -1, got .* lower to Grid\(bits=7"):
        export_onnx(student, inputs, tmp_path / "x.onnx", tolerance=-1)
    assert not (tmp_path / "x.onnx").exists()


def test_what_a_format_cannot_hold_is_refused(net, tmp_path) -> None:
    model, inputs = net
    for student, message in [
        (model, "got 0 lowered weights"),
        (lower(model, Grid(4, block=4)), "first.weight must have 2 to 8 bits in learned steps"),
        (lower(model, Grid(1)), "use save_packed"),
        (lower(model, Grid(4), quantizer=Buckets), "got Buckets of"),
    ]:
        with pytest.raises(ConfigError, match=message):
            export_onnx(student, inputs, tmp_path / "s.onnx")
    with pytest.raises(ConfigError, match="0 inputs"):
        export_onnx(lower(model, Grid(4)), [], tmp_path / "s.onnx")
    with pytest.raises(ConfigError, match=r"weights have 3 bits or more, got .*3 narrower weights"):
        export_openvino(lower(model, Grid(2)), inputs, tmp_path / "s.xml")


def test_a_packed_student_is_lowered_again(net, tmp_path) -> None:
    model, inputs = net
    student = lower(model, Grid(4), keep={"first": 8, "last": 32})
    again = load_lowered(model, save_packed(student, tmp_path / "s.safetensors"))
    assert torch.equal(again(inputs[0]), student(inputs[0]))
    assert [each.quantizer.grid for each in lowered(again)] == [Grid(8), Grid(4)]
