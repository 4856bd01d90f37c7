"""What leaves a run: meshes that face outwards and are cropped, in the coordinates of the data."""

import numpy as np
import pytest
import torch

from potstill.core.errors import ConfigError, DataError
from potstill.nerf import Occupancy, Space, export_mesh, export_points

NDC = Space("ndc", (-1.5, -1.67, -1.0), (1.5, 1.67, 1.0), near=1.0, lens=(1.2, 1.6))
BOX = Space("box", (-1.0,) * 3, (1.0,) * 3)


class Balls(torch.nn.Module):
    """A field of hard balls (centre, radius) in the unit cube."""

    def __init__(self, space, *balls):
        super().__init__()
        self.space, self.balls, self.occupancy = space, balls, Occupancy(8)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def density(self, points):
        unit = self.space.unit(points)
        near = [r - (unit - torch.tensor(c)).norm(dim=1) for c, r in self.balls]
        return torch.sigmoid(torch.stack(near).amax(0) * 60) * 200

    def features(self, points):
        return points

    def head(self, feature, views):
        return (views + 1) / 2


def read_mesh(path):
    head, body = path.read_bytes().split(b"end_header\n")
    count = int(head.split(b"element vertex ")[1].split()[0])
    kind = np.dtype([("p", "<f4", 3), ("c", "u1", 3)])
    vertices = np.frombuffer(body, kind, count)
    faces = np.frombuffer(body, np.dtype([("n", "u1"), ("v", "<i4", 3)]), offset=count * 15)
    return vertices["p"].astype(float), faces["v"], vertices["c"]


def volume(vertices, faces):
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


@pytest.mark.parametrize("space", [NDC, BOX])
def test_faces_look_outwards(space, tmp_path):
    pytest.importorskip("skimage")
    export_mesh(Balls(space, ((0.5, 0.5, 0.4), 0.2)), tmp_path / "m.ply", resolution=24)
    vertices, faces, colors = read_mesh(tmp_path / "m.ply")
    assert volume(vertices, faces) > 0  # in the world, where device coordinates are mirrored
    if space is NDC:  # colours as seen from the origin: along -z
        assert colors[:, 2].max() < 60


def test_a_mesh_is_cropped_and_small_parts_go(tmp_path):
    pytest.importorskip("skimage")
    field = Balls(BOX, ((0.3, 0.5, 0.5), 0.2), ((0.8, 0.5, 0.5), 0.08))
    similarity = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))
    path, options = tmp_path / "m.ply", {"resolution": 32, "similarity": similarity}
    export_mesh(field, path, **options)
    assert read_mesh(path)[0][:, 0].max() > 0.3
    export_mesh(field, path, components=0.5, **options)
    assert read_mesh(path)[0][:, 0].max() < 0.1
    export_mesh(field, path, crop=(0.1, -1, -1, 1, 1, 1), **options)  # of the data
    low = read_mesh(path)[0][:, 0].min()
    assert 0.1 < low < 0.3
    export_points(field, path, count=200, similarity=similarity, crop=(0.1, -1, -1, 1, 1, 1))
    body = path.read_bytes().split(b"end_header\n")[1]
    points = np.frombuffer(body, np.dtype([("p", "<f4", 3), ("c", "u1", 3)]))["p"]
    assert points[:, 0].min() >= 0.1
    with pytest.raises(DataError, match="crop must hold occupied cells"):
        export_points(field, path, crop=(5, 5, 5, 6, 6, 6))
    with pytest.raises(ConfigError, match="crop must be six numbers, .* got 2"):
        export_mesh(field, path, crop=(1, 2))
