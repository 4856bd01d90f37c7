"""Graphs of the gated model, on other batch sizes too."""

import pytest
import torch

from potstill.acm import acms, export, set_mode
from potstill.core.errors import ConfigError
from potstill.core.testing import with_package

CLOSE = {"atol": 1e-5, "rtol": 1e-4}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def lively(lively):
    """One block is enough for a graph."""
    lively.blocks = lively.blocks[:1]
    return lively


@pytest.mark.parametrize("form", ["gathered", "dense_masked"])
def test_torch_export(lively, images, tmp_path, form):
    result = export(lively, tmp_path / "m.pt2", images[:2], form=form)
    assert result.error < 1e-5
    assert result.error_elsewhere < 1e-5
    program = torch.export.load(tmp_path / "m.pt2").module()
    for batch in (2, 5):
        torch.testing.assert_close(program(images[:batch]), lively(images[:batch]))
    assert {acm.backend for acm in acms(lively).values()} == {"auto"}


@with_package("onnx", "onnxscript", "onnxruntime")
def test_onnx_skips_learners_for_any_batch(lively, images, tmp_path):
    import onnx
    import onnxruntime

    result = export(lively, tmp_path / "m.onnx", images[:2])
    assert result.error_elsewhere < 1e-5
    operators = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert "NonZero" in operators
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    name = session.get_inputs()[0].name
    with torch.no_grad():
        for batch in (2, 3, 6):
            (out,) = session.run(None, {name: images[:batch].numpy()})
            torch.testing.assert_close(torch.from_numpy(out), lively(images[:batch]), **CLOSE)


def test_a_fixed_number_of_learners_exports_too(lively, images, tmp_path):
    assert export(set_mode(lively, 2), tmp_path / "m.pt2", images[:2]).error < 1e-5


@torch.no_grad()
def test_compile(lively, images):
    torch._dynamo.reset()
    expected = lively(images)
    torch.testing.assert_close(
        torch.compile(lively, backend="aot_eager")(images), expected, **CLOSE
    )
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        whole = torch.compile(lively, fullgraph=True, dynamic=True, backend="aot_eager")
        torch.testing.assert_close(whole(images), expected, **CLOSE)
        torch.testing.assert_close(whole(images[:4]), expected[:4], **CLOSE)
    torch._dynamo.reset()


def test_bad_input(lively, images, tmp_path):
    with pytest.raises(ConfigError, match=r"path must end in \.onnx or \.pt2, got 'm\.pth'"):
        export(lively, "m.pth", images)
    with pytest.raises(ConfigError, match="form must be gathered or dense_masked"):
        export(lively, tmp_path / "m.pt2", images, form="sorted")
    with pytest.raises(ConfigError, match="must have adaptive modules"):
        export(torch.nn.Linear(2, 2), tmp_path / "m.pt2", images)
