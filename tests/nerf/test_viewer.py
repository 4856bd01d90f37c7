"""The viewer's camera against the renderer's; the server itself starts and stops."""

import socket
import threading

import pytest
import torch

from potstill.core.testing import with_package
from potstill.nerf import HashConfig, Space, make_field, orbit, render_image
from potstill.nerf.viewer import look, serve


@pytest.fixture
def field():
    torch.manual_seed(0)
    space = Space("box", (-1.0,) * 3, (1.0,) * 3, steps=32)
    field = make_field("hash", space, HashConfig(levels=3, log2_rows=8, base=4, finest=16))
    with torch.no_grad():
        field.grid.table.uniform_(-3, 3)
    return field


def test_a_viewers_camera_is_ours(field):
    from scipy.spatial.transform import Rotation

    cameras = orbit(3, 3.0, 12, 8, 0.7)
    pose = cameras.poses[1]
    turn = (pose[:3, :3] * torch.tensor([1.0, -1.0, -1.0])).double().numpy()
    x, y, z, w = Rotation.from_matrix(turn).as_quat()
    fov = 2 * torch.atan(torch.tensor(4.0) / cameras.intrinsics[0, 1]).item()
    seen = look(field, pose[:3, 3], (w, x, y, z), fov, 12 / 8, 12, "color")
    expected, _, _ = render_image(field, cameras, 1, field.space, field.occupancy)
    torch.testing.assert_close(seen, expected, rtol=0, atol=2e-3)
    assert look(field, pose[:3, 3], (w, x, y, z), fov, 1.5, 12, "depth").shape == (8, 12, 3)


@with_package("viser")
@pytest.mark.filterwarnings("ignore")  # of the web server's own dependencies
def test_the_server_starts_and_stops(field):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stop = threading.Event()
    stop.set()
    serve(field, orbit(2, 3.0, 8, 8, 0.7), port, stop)
