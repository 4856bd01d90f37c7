"""A viewer in the browser, on viser."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import torch

from potstill.core import BackendError
from potstill.nerf.cameras import Cameras, rotations
from potstill.nerf.fields.base import Field
from potstill.nerf.pictures import depth_colors
from potstill.nerf.render.image import render_image

__all__ = ["look", "serve"]


def look(
    field: Field, position: Any, wxyz: Any, fov: float, aspect: float, width: int, what: str
) -> torch.Tensor:
    """What a viewer's camera sees, [H W 3].

    Args:
        field: The field.
        position: Position of the camera.
        wxyz: Rotation from OpenCV's axes to the world, as a quaternion.
        fov: Vertical field of view, radians.
        aspect: Width over height.
        width: Width of the image in pixels.
        what: "color" or "depth".
    """
    rotation = rotations(torch.as_tensor(wxyz, dtype=torch.float32)[None])[0]
    pose = torch.eye(4)
    pose[:3, :3] = rotation * torch.tensor([1.0, -1.0, -1.0])
    pose[:3, 3] = torch.as_tensor(position, dtype=torch.float32)
    height = max(round(width / aspect), 1)
    focal = height / (2 * math.tan(fov / 2))
    intrinsics = torch.tensor([[focal, focal, width / 2, height / 2]])
    cameras = Cameras(pose[None], intrinsics, width, height)
    rgb, opacity, depth = render_image(field, cameras, 0, field.space, field.occupancy)
    return rgb if what == "color" else depth_colors(depth, opacity)


def serve(
    field: Field, cameras: Cameras, port: int = 8080, stop: threading.Event | None = None
) -> None:
    """Show a field in the browser until interrupted: a small image while moving, then a sharp one.

    Args:
        field: The field.
        cameras: The first is where to start.
        port: Port of the server.
        stop: Ends the server when set.

    Raises:
        BackendError: viser is missing.
    """
    try:
        import viser
    except ImportError as error:
        raise BackendError("serve: viser is needed; pip install 'potstill-nerf[viewer]'") from error
    server = viser.ViserServer(port=port, verbose=False)
    server.scene.set_up_direction("+y" if field.space.kind == "ndc" else "+z")
    what = server.gui.add_dropdown("show", ("color", "depth"))
    sharp = server.gui.add_slider("width", min=64, max=1024, step=32, initial_value=320)
    shown: dict[int, tuple[Any, ...]] = {}

    @server.on_client_connect
    def _(client: Any) -> None:
        pose = cameras.poses[0]
        client.camera.position = tuple(pose[:3, 3].tolist())
        client.camera.look_at = tuple((pose[:3, 3] - pose[:3, 2]).tolist())

    try:
        while stop is None or not stop.is_set():
            for number, client in server.get_clients().items():
                camera = client.camera
                place = (*camera.position, *camera.wxyz, camera.fov, camera.aspect, what.value)
                moving = shown.get(number, ())[:-1] != place
                width = 96 if moving else int(sharp.value)
                if shown.get(number) != (*place, width):
                    arguments = (camera.position, camera.wxyz, camera.fov, camera.aspect)
                    image = look(field, *arguments, width, what.value)
                    client.scene.set_background_image((image * 255).byte().numpy())
                    shown[number] = (*place, width)
            time.sleep(0.02)
    except KeyboardInterrupt:
        pass
    finally:
        server.stop()
