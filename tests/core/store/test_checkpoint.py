import hashlib
import json

import pytest
import torch

from potstill.core.errors import CheckpointError
from potstill.core.store import checkpoint


@pytest.mark.parametrize(
    "manifest",
    ["{}", "[]", '{"format": 1, "step": 1, "files": {}}', '{"format": 1, "files": []}', "[" * 9999],
)
def test_a_manifest_that_names_no_files_is_not_a_whole_checkpoint(tmp_path, manifest):
    path = checkpoint.save(tmp_path, 1, {"weight": torch.ones(2)})
    (path / "manifest.json").write_text(manifest)
    assert checkpoint.newest(tmp_path) is None
    with pytest.raises(CheckpointError, match=path.name):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "state",
    ["{}", "[]", "3", '{"dict": 3}', '{"dict": [[1]]}', '{"tensor": "gone"}', "[" * 9999, "\xff"],
)
def test_a_state_of_a_stranger_is_refused_by_name(tmp_path, state):
    path = checkpoint.save(tmp_path, 1, {"weight": torch.ones(2)})
    data = state.encode("latin-1")
    (path / "state.json").write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_text())
    found = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["files"]["state.json"] = found
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=path.name):
        checkpoint.load(path)
