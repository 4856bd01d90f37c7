"""Captures that are not the textbook's: understood, or refused with file, frame and field."""

import contextlib
import json
import math
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.core.command.cli import main
from potstill.core.errors import ConfigError, DataError, PotstillError
from potstill.nerf import (
    Cameras,
    FieldSize,
    RaySource,
    SceneConfig,
    Train,
    TrainConfig,
    load_field,
    load_path,
    load_scene,
    orbit,
)
from potstill.nerf.cli import _trained as trained
from potstill.nerf.config import OtherScene
from potstill.nerf.fields.make import make_field
from potstill.nerf.inspection import inspect_scene
from potstill.nerf.lenses import directions
from potstill.nerf.nerfstudio import export_views
from potstill.nerf.scenes.transforms import load_transforms

COUNT = 9


def capture(folder, change=None, frame=None, size=(8, 6), count=COUNT, **more):
    """A transforms.json; ``frame(k)`` gives more of frame k."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    frames = []
    for k, pose in enumerate(orbit(count, 4.0, *size, 0.7).poses):
        image = np.full((size[1], size[0], 3), 20 * k, dtype=np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{k:03d}.png")
        named = {"file_path": f"images/{k:03d}.png", "transform_matrix": pose.tolist()}
        frames.append({**named, **(frame(k) if frame else {})})
    document = {"fl_x": 9.0, "fl_y": 8.0, "cx": 4.5, "cy": 2.5, "w": size[0], "h": size[1],
                "frames": frames, **more}  # fmt: skip
    if change:
        change(document)
    (folder / "transforms.json").write_text(json.dumps(document))
    return folder


def local_rays(cameras, x, y):
    """Directions in the camera's axes (x right, y down, z ahead) of its first view."""
    at = torch.zeros(len(x), dtype=torch.int64)
    turned = cameras.rays(at, x, y)[1]
    return turned @ cameras.poses[0, :3, :3] * torch.tensor([1.0, -1, -1])


def spread(angle, count=200):
    """Directions within an angle of the axis, in float64, and their polar angles."""
    draw = np.random.default_rng(0)
    polar, turn = draw.uniform(0, angle, count), draw.uniform(0, 2 * np.pi, count)
    d = np.stack([np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.cos(polar)], 1)
    return d, polar


FISH = dict(k1=0.05, k2=-0.01, k3=0.004, k4=-0.001)
FULL = dict(k1=0.3, k2=0.1, p1=0.002, p2=-0.001, k3=0.05, k4=0.25, k5=0.05, k6=0.01)


def fisheye(d, polar):
    """OpenCV: the distance in the image is a polynomial of the angle."""
    a = polar * (1 + sum(k * polar ** (2 * n) for n, k in enumerate(FISH.values(), 1)))
    length = np.hypot(d[:, 0], d[:, 1])
    return a * d[:, 0] / length, a * d[:, 1] / length


def full_opencv(d, polar):
    k1, k2, p1, p2, k3, k4, k5, k6 = FULL.values()
    x, y = d[:, 0] / d[:, 2], d[:, 1] / d[:, 2]
    r = x * x + y * y
    s = (1 + k1 * r + k2 * r**2 + k3 * r**3) / (1 + k4 * r + k5 * r**2 + k6 * r**3)
    u = x * s + 2 * p1 * x * y + p2 * (r + 2 * x * x)
    return u, y * s + 2 * p2 * x * y + p1 * (r + 2 * y * y)


@pytest.mark.parametrize(
    ("more", "project", "angle"),
    [
        ({"camera_model": "OPENCV_FISHEYE", **FISH}, fisheye, 1.4),
        ({"is_fisheye": True, **FISH}, fisheye, 1.4),
        ({"camera_model": "FULL_OPENCV", **FULL}, full_opencv, 0.9),
    ],
)
def test_rays_of_a_lens_are_those_that_it_projects(more, project, angle, tmp_path):
    cameras = load_scene(capture(tmp_path, **more)).train.cameras
    d, polar = spread(angle)
    u, v = (torch.from_numpy(a).float() for a in project(d, polar))
    fx, fy, cx, cy = cameras.intrinsics[0].tolist()
    got = local_rays(cameras, u * fx + cx, v * fy + cy)
    assert float((got - torch.from_numpy(d).float()).norm(dim=1).max()) < 2e-4


def test_a_panorama_goes_once_around(tmp_path):
    cameras = load_scene(capture(tmp_path, camera_model="EQUIRECTANGULAR")).train.cameras
    x, y = torch.tensor([4.0, 6.0, 2.0, 4.0, 0.001]), torch.tensor([3.0, 3.0, 3.0, 0.001, 3.0])
    ahead, right, left, up, back = local_rays(cameras, x, y)
    for got, want in ((ahead, (0, 0, 1)), (right, (1, 0, 0)), (left, (-1, 0, 0)), (up, (0, -1, 0)),
                      (back, (0, 0, -1))):  # fmt: skip
        torch.testing.assert_close(got, torch.tensor(want).float(), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"camera_model": "VR180_L"}, "camera_model of .* must be one of .*got 'VR180_L'"),
        (
            {"camera_model": "FISHEYE624", "distortion_params": [0.1]},
            "must be 12 numbers .*got .0.1",
        ),
        ({"camera_model": "FISHEYE624", "k1": 0.1}, "k1 must be 0 for camera_model FISHEYE624"),
        ({"camera_model": "OPENCV", "distortion_params": [0.1]}, "must be no numbers .*OPENCV"),
        ({"camera_model": "OPENCV", "k4": 0.1}, "k4 must be 0 for camera_model OPENCV, got 0.1"),
        ({"camera_model": "OPENCV_FISHEYE", "p1": 0.1}, "p1 must be 0 .*OPENCV_FISHEYE, got 0.1"),
        ({"orthographic": True}, "orthographic must be absent, got True"),
        ({"rolling_shutter": [0.0, 0, 0.5, 0]}, "rolling_shutter must be absent"),
        ({"from_na": True}, "from_na must be absent"),
    ],
)
def test_rays_of_other_kinds_are_refused(more, message, tmp_path):
    with pytest.raises(DataError, match=message):
        load_scene(capture(tmp_path, **more))


def test_frames_have_lenses_and_sizes_of_their_own(tmp_path):
    def own(k):
        return {"w": 6, "h": 8, "fl_x": 12.0, "fl_y": 12.0, "cx": 3.0, "cy": 4.0} if k == 2 else {}

    capture(tmp_path, frame=own)
    Image.new("RGB", (6, 8), (7, 8, 9)).save(tmp_path / "images" / "002.png")
    train = load_scene(tmp_path).train
    assert [train.cameras.size(k) for k in range(3)] == [(8, 6), (6, 8), (8, 6)]
    assert train.image(1).shape == (8, 6, 3)
    x = torch.tensor([3.0])
    axis = train.cameras.rays(torch.tensor([1]), x, torch.tensor([4.0]))[1][0]
    torch.testing.assert_close(axis, -train.cameras.poses[1, :3, 2])
    # rays come from pixels that are there, with their colours
    source = RaySource(train, 4000, "white")
    seen = {tuple(v) for v in (source(0).rgb * 255).round().int().tolist()}
    assert seen == {(7, 8, 9), *((20 * k,) * 3 for k in (1, 3, 4, 5, 6, 7))}
    half = load_scene(tmp_path, downsample=1.5).train
    assert (half.cameras.size(0), half.cameras.size(1)) == ((5, 4), (4, 5))
    scale = torch.tensor([5 / 8, 4 / 6, 5 / 8, 4 / 6])
    torch.testing.assert_close(half.cameras.intrinsics[0], scale * torch.tensor([9, 8, 4.5, 2.5]))
    (tmp_path / "transforms.json").write_text(
        (tmp_path / "transforms.json").read_text().replace('"w": 6', '"w": 7')
    )
    with pytest.raises(DataError, match="says images are 7 x 8, they are 6 x 8.*images/002.png"):
        load_scene(tmp_path)


def test_any_factor_averages(tmp_path):
    capture(tmp_path, size=(9, 7), count=9, cx=4.5, cy=3.5)
    ramp = np.broadcast_to(np.arange(9, dtype=np.uint8) * 20, (7, 9))
    for k in range(9):
        Image.fromarray(np.stack([ramp] * 3, -1)).save(tmp_path / "images" / f"{k:03d}.png")
    image = load_scene(tmp_path, downsample=3.0).train.images[0, :, :, 0]
    assert image.tolist() == [[20, 80, 140]] * 2


def test_masks_are_neither_learned_from_nor_scored(tmp_path):
    capture(tmp_path, frame=lambda k: {"mask_path": f"masks/{k}.png"})
    (tmp_path / "masks").mkdir()
    mask = np.full((6, 8), 255, dtype=np.uint8)
    mask[:, :3] = 0
    for k in range(COUNT):
        Image.fromarray(mask).save(tmp_path / "masks" / f"{k}.png")
        image = np.full((6, 8, 3), 100, dtype=np.uint8)
        image[:, :3] = 255
        Image.fromarray(image).save(tmp_path / "images" / f"{k:03d}.png")
    scene = load_scene(tmp_path)
    assert not scene.unused
    rgb = RaySource(scene.train, 2000, "white")(0).rgb
    torch.testing.assert_close(rgb, torch.full_like(rgb, 100 / 255))
    rendered = torch.full((6, 8, 3), 110 / 255)
    rendered[:, :3] = 0
    assert scene.test.psnr(0, rendered) == pytest.approx(20 * math.log10(25.5), abs=1e-3)
    torch.testing.assert_close(scene.test.judged(0, rendered)[:, :3], torch.ones(6, 3, 3))
    # averaged pixels count where all of their parts do
    half = load_scene(tmp_path, downsample=2).train.masks[0]
    assert half.tolist() == [[False, False, True, True]] * 3
    assert "37.5%" in dict(inspect_scene(scene)[0])["masked"]


@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_depth_maps_are_distances_along_the_rays(suffix, tmp_path):
    capture(tmp_path, frame=lambda k: {"depth_file_path": f"d{k}{suffix}"}, cx=4.0, cy=3.0)
    depth = np.full((6, 8), 2500, dtype=np.uint16)
    depth[0] = 0
    for k in range(COUNT):
        path = tmp_path / f"d{k}{suffix}"
        np.save(path, depth) if suffix == ".npy" else Image.fromarray(depth).save(path)
    scene = load_scene(tmp_path)
    scale = float(torch.linalg.det(scene.similarity[:3, :3]) ** (1 / 3))
    x, y = 6.5, 4.5
    along = math.sqrt(1 + ((x - 4) / 9) ** 2 + ((y - 3) / 8) ** 2)
    assert float(scene.train.depths[0, 4, 6]) == pytest.approx(2.5 * scale * along, rel=1e-5)
    assert not scene.train.depths[0, 0].any()
    batch = RaySource(scene.train, 512, "white")(0)
    assert 0 < int((batch.depth == 0).sum()) < 200


def test_keys_without_a_use_are_named(tmp_path):
    scene = load_scene(capture(tmp_path, aabb_scale=4, frame=lambda k: {"sharpness": 3.0}))
    assert scene.unused == ("aabb_scale", "sharpness")
    assert ("keys that are not used", "aabb_scale, sharpness") in inspect_scene(scene)[0]


def test_splits_by_name_are_taken(tmp_path):
    names = [f"images/{k:03d}.png" for k in range(COUNT)]
    scene = load_scene(capture(tmp_path, train_filenames=names[:4], val_filenames=names[5:7]))
    assert scene.train.cameras.names == tuple(names[:4])
    assert scene.test.cameras.names == tuple(names[5:7])
    assert "3 frames are in neither" in scene.notes[0]


def write_llff(folder, poses, near=2.0, far=9.0):
    (folder / "images").mkdir(parents=True)
    table = np.zeros((len(poses), 17))
    for k, pose in enumerate(poses.numpy()):
        Image.new("RGB", (16, 12)).save(folder / "images" / f"{k}.png")
        columns = [-pose[:3, 1], pose[:3, 0], pose[:3, 2], pose[:3, 3], [12, 16, 18.0]]
        table[k, :15] = np.stack(columns, axis=1).ravel()
        table[k, 15:] = near, far
    np.save(folder / "poses_bounds.npy", table)
    return folder


def test_a_turn_around_in_the_layout_of_llff_is_contracted(tmp_path):
    scene = load_scene(write_llff(tmp_path, orbit(9, 4.0, 16, 12, 0.7).poses), downsample=2)
    assert (scene.layout, scene.space.kind) == ("llff", "contracted")
    assert scene.train.cameras.size(0) == (8, 6)  # there is no images_2: reduced here
    assert "look around" in inspect_scene(scene)[1][0]
    assert scene.space.near == pytest.approx(0.25, rel=1e-3)  # half of 2, at a scale of 1/4
    places = scene.train.cameras.poses[:, :3, 3].norm(dim=1)
    torch.testing.assert_close(places, torch.ones_like(places), atol=1e-3, rtol=0)


def save_grey(path, array):
    Image.fromarray(array).save(path)


def test_16_bit_grey_is_scaled(tmp_path):
    capture(tmp_path)
    grey = np.full((6, 8), 257 * 40, dtype=np.uint16)
    for k in range(COUNT):
        Image.fromarray(grey).save(tmp_path / "images" / f"{k:03d}.png")
    assert load_scene(tmp_path).train.images.unique().tolist() == [40]
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "images" / "000.tiff")
    document = json.loads((tmp_path / "transforms.json").read_text())
    document["frames"][0]["file_path"] = "images/000.tiff"
    (tmp_path / "transforms.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"000.tiff must hold bytes, got floating numbers"):
        load_scene(tmp_path)


def test_palettes_have_alpha_too(tmp_path):
    capture(tmp_path)
    image = Image.new("P", (8, 6), 1)
    image.putpalette([0, 0, 0, 50, 60, 70])
    image.save(tmp_path / "images" / "000.png", transparency=1)
    images = load_scene(tmp_path).test.images
    assert images.shape[-1] == 4
    assert images[0, 0, 0].tolist() == [50, 60, 70, 0]
    assert images[1, 0, 0].tolist() == [160, 160, 160, 255]


def test_pixels_that_a_lens_folds_over_are_masked(tmp_path):
    size, focal = (64, 48), 64 / (2 * math.tan(math.radians(65)))
    lens = dict(fl_x=focal, fl_y=focal, cx=32.0, cy=24.0, k1=-0.1)
    scene = load_scene(capture(tmp_path, size=size, **lens))
    # r (1 - 0.1 r^2) turns back at r = sqrt(10 / 3)
    x, y = np.meshgrid(np.arange(64) + 0.5 - 32, np.arange(48) + 0.5 - 24)
    edge = math.sqrt(10 / 3) * (2 / 3)
    folded = np.hypot(x, y) / focal > edge
    assert 0.6 < folded.mean() < 0.7
    assert (scene.train.masks[0].numpy() == ~folded).mean() > 0.998
    assert f"folds over {folded.mean():.0%}"[:12] in inspect_scene(scene)[1][0]
    # a ray of a folded pixel is that of the edge
    local = local_rays(scene.train.cameras, torch.tensor([0.5]), torch.tensor([0.5]))
    polar = math.degrees(math.acos(float(local[0, 2])))
    assert polar == pytest.approx(math.degrees(math.atan(math.sqrt(10 / 3))), abs=0.6)


def test_a_scene_has_the_frame_that_is_asked_for(tmp_path):
    capture(tmp_path)
    plain = load_scene(tmp_path)
    scaled = load_scene(tmp_path, scale=0.5, center=(1.0, 2, 3), near=0.4, far=60.0)
    turn = plain.similarity[:3, :3] / torch.linalg.det(plain.similarity[:3, :3]) ** (1 / 3)
    torch.testing.assert_close(scaled.similarity[:3, :3], 0.5 * turn)
    origin = scaled.similarity @ torch.tensor([1.0, 2, 3, 1])
    torch.testing.assert_close(origin[:3], torch.zeros(3), atol=1e-5, rtol=0)
    assert (scaled.space.near, scaled.space.far) == pytest.approx((0.2, 30.0))
    box = load_scene(tmp_path, aabb=(-1, -2, -3, 1, 2, 5))
    assert box.space.kind == "box"
    assert box.space.low == pytest.approx((-0.25, -0.5, -1))
    assert box.space.high == pytest.approx((0.25, 0.5, 1))
    torch.testing.assert_close(
        box.train.cameras.poses[0, :3, 3] * 4 + torch.tensor([0.0, 0, 1]),
        orbit(9, 4.0, 8, 6, 0.7).poses[1, :3, 3],
    )
    for options in ({"center": (1, 2)}, {"aabb": (1, 2)}, {"scale": 0.0}, {"scale": -1.0}):
        with pytest.raises(ConfigError, match="load_scene"):
            load_scene(tmp_path, **options)
    with pytest.raises(ConfigError, match="rays end at the box"):
        load_scene(tmp_path, aabb=(-1, -1, -1, 1, 1, 1), far=3.0)


def test_a_similarity_that_is_there_already_is_kept(tmp_path):
    """The frames at hand say nothing: 18.5 degrees between two halves of a capture."""
    capture(tmp_path)
    whole = load_scene(tmp_path)
    for k in range(4):
        (tmp_path / "images" / f"{k:03d}.png").unlink()
    part = load_scene(tmp_path, allow_missing=True)
    assert not torch.allclose(part.similarity, whole.similarity, atol=1e-2)
    same = load_scene(tmp_path, allow_missing=True, similarity=whole.similarity)
    at = whole.train.cameras.names.index(same.train.cameras.names[0])
    torch.testing.assert_close(same.train.cameras.poses[0], whole.train.cameras.poses[at])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["frames"][3].pop("file_path"), "frame 3 .None.: file_path must be the name"),
        (lambda d: d["frames"][3].update(file_path=7), "frame 3 .7.: file_path must be the name"),
        (lambda d: d.update(k1=None), r"frame 0 .images/000.png.: k1 must be a number, got None"),
        (lambda d: d["frames"][2].update(k1=None), "frame 2 .images/002.png.: k1 must be a number"),
        (lambda d: d.update(w="24.0"), "w must be a number, got '24.0'"),
        (lambda d: d.update(w=7.5), "w and h must be pixels, got 7.5"),
        (lambda d: d.update(camera_angle_x=9.0, fl_x=None), "fl_x must be a number, got None"),
        (lambda d: d["frames"][1].update(mask_path="no.png"), "frame 1 .*mask_path must exist"),
        (lambda d: d["frames"][1].update(depth_file_path=3), "depth_file_path must be the name"),
        (lambda d: d["frames"][1].update(transform_matrix=[[1, 2]]), "must be 4 x 4 or 3 x 4"),
        (lambda d: d.update(train_filenames="a", test_filenames=[]), "must be a list of names"),
    ],
)
def test_malformed_frames_are_named(change, message, tmp_path):
    with pytest.raises(DataError, match=r"transforms\.json.*" + message):
        load_scene(capture(tmp_path, change))


def test_odd_frames_are_warned_of(tmp_path):
    def odd(document):
        document["frames"].append(dict(document["frames"][3]))
        document["frames"][5]["transform_matrix"][0][3] = 5000.0

    warnings = inspect_scene(load_scene(capture(tmp_path, odd)))[1]
    assert any("named more than once: images/003.png" in w for w in warnings)
    assert any("images/005.png is" in w and "transform_matrix" in w for w in warnings)


def test_what_others_write_is_tolerated(tmp_path):
    def spoiled(document):
        for frame in document["frames"]:
            frame["file_path"] = frame["file_path"].replace("/", "\\").removesuffix(".png")
            frame["transform_matrix"].pop()

    capture(tmp_path / "a", spoiled)
    path = tmp_path / "a" / "transforms.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    for k in range(COUNT):
        image = tmp_path / "a" / "images" / f"{k:03d}.png"
        Image.open(image).save(image.with_suffix(".jpg"))
        image.unlink()
    ours, theirs = load_scene(tmp_path / "a"), load_scene(capture(tmp_path / "b"))
    torch.testing.assert_close(ours.train.cameras.poses, theirs.train.cameras.poses)


def colmap(folder, lens=(4, 8), parameters=(9.0, 8.0, 4.5, 2.5, 0.1, 0, 0, 0), points=0, count=9):
    """A binary model of COLMAP."""
    from scipy.spatial.transform import Rotation

    (folder / "images").mkdir(parents=True, exist_ok=True)
    model, size = lens
    data = struct.pack("<Q", count)
    for k, pose in enumerate(orbit(count, 4.0, 8, 6, 0.7).poses.double().numpy()):
        rotation = (pose[:3, :3] @ np.diag([1.0, -1, -1])).T
        x, y, z, w = Rotation.from_matrix(rotation).as_quat()
        data += struct.pack("<i7di", k, w, x, y, z, *(-rotation @ pose[:3, 3]), 7)
        data += f"{k:03d}.png".encode() + b"\0" + struct.pack("<Q", 0)
        Image.new("RGB", (8, 6)).save(folder / "images" / f"{k:03d}.png")
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True, exist_ok=True)
    (sparse / "images.bin").write_bytes(data)
    camera = struct.pack(f"<QiiQQ{size}d", 1, 7, model, 8, 6, *parameters[:size])
    (sparse / "cameras.bin").write_bytes(camera)
    draw = np.random.default_rng(0)
    table = struct.pack("<Q", points)
    for k in range(points):
        place = draw.normal(size=3) * 0.3 + [0.5, 0, 0]
        table += struct.pack("<Q3d3BdQii", k, *place, 1, 2, 3, 0.5, 1, 0, 0)
    (sparse / "points3D.bin").write_bytes(table)
    return folder


def test_points_say_where_a_scene_lies(tmp_path):
    scene = load_scene(colmap(tmp_path, points=300))
    assert scene.points.shape == (300, 3)
    torch.testing.assert_close(scene.points.median(0).values, torch.zeros(3), atol=1e-5, rtol=0)
    distance = torch.cdist(scene.train.cameras.poses[:, :3, 3], scene.points)
    assert scene.space.near < float(distance.min()) < 4 * scene.space.near
    assert scene.space.far / 4 < float(distance.max()) < scene.space.far
    # too few say nothing
    few = load_scene(colmap(tmp_path, points=20))
    assert (few.space.near, few.space.far) == (0.1, 40.0)


def test_a_box_around_the_points_ends_a_scene(tmp_path):
    colmap(tmp_path / "a", points=300)
    plain, scene = load_scene(tmp_path / "a"), load_scene(tmp_path / "a", bounded=True)
    assert scene.space.kind == "box"
    low, high = torch.tensor(scene.space.low), torch.tensor(scene.space.high)
    assert 0.97 <= float(((scene.points > low) & (scene.points < high)).all(1).float().mean()) < 1
    torch.testing.assert_close((high - low).max(), torch.tensor(2.0))
    # in the input: normal around (.5, 0, 0) with a deviation of .3, from the 1st to the 99th
    # percentile and a tenth more on both sides
    scale = float(torch.linalg.det(scene.similarity[:3, :3]) ** (1 / 3))
    assert (high - low).tolist() == pytest.approx([1.2 * 2 * 2.33 * 0.3 * scale] * 3, rel=0.15)
    origin = scene.similarity @ torch.tensor([0.5, 0, 0, 1])
    torch.testing.assert_close(origin[:3], torch.zeros(3), atol=0.2, rtol=0)
    named = ("points", "300, a box around them: ")
    assert any(k == named[0] and v.startswith(named[1]) for k, v in inspect_scene(plain)[0])
    with pytest.raises(ConfigError, match="bounded must be left out with aabb, got both"):
        load_scene(tmp_path / "a", bounded=True, aabb=(-1, -1, -1, 1, 1, 1))
    with pytest.raises(ConfigError, match="at least 100 points of a COLMAP model, got 20"):
        load_scene(colmap(tmp_path / "b", points=20), bounded=True)


# Each camera model as COLMAP's documentation has it, from a point (x, y, 1) or an angle on


def by_angle(distort):
    def project(d, polar, *k):
        scale = polar / np.hypot(d[:, 0], d[:, 1])
        return distort(d[:, 0] * scale, d[:, 1] * scale, *k)

    return project


def on_plane(distort):
    return lambda d, polar, *k: distort(d[:, 0] / d[:, 2], d[:, 1] / d[:, 2], *k)


def colmap_radial(x, y, k1=0, k2=0):
    r = x * x + y * y
    return x * (1 + k1 * r + k2 * r**2), y * (1 + k1 * r + k2 * r**2)


def colmap_opencv(x, y, k1, k2, p1, p2):
    u, v = colmap_radial(x, y, k1, k2)
    r = x * x + y * y
    return u + 2 * p1 * x * y + p2 * (r + 2 * x * x), v + 2 * p2 * x * y + p1 * (r + 2 * y * y)


def colmap_thin_prism(x, y, k1, k2, p1, p2, k3, k4, sx1, sy1):
    u, v = colmap_opencv(x, y, k1, k2, p1, p2)
    r = x * x + y * y
    return u + x * (k3 * r**3 + k4 * r**4) + sx1 * r, v + y * (k3 * r**3 + k4 * r**4) + sy1 * r


def colmap_624(x, y, *k):
    radial = 1 + sum(c * (x * x + y * y) ** n for n, c in enumerate(k[:6], 1))
    x, y = x * radial, y * radial
    p0, p1, s0, s1, s2, s3 = k[6:]
    r = x * x + y * y
    return (x + 2 * p1 * x * y + p0 * (r + 2 * x * x) + s0 * r + s1 * r * r,
            y + 2 * p0 * x * y + p1 * (r + 2 * y * y) + s2 * r + s3 * r * r)  # fmt: skip


def colmap_fov(x, y, omega):
    r = np.hypot(x, y)
    factor = np.arctan(2 * r * np.tan(omega / 2)) / (r * omega)
    return x * factor, y * factor


def colmap_division(x, y, k):
    factor = 2 / (1 + np.sqrt(1 - 4 * k * (x * x + y * y)))
    return x * factor, y * factor


def colmap_eucm(x, y, alpha, beta):
    below = alpha * np.sqrt(beta * (x * x + y * y) + 1) + 1 - alpha
    return x / below, y / below


def colmap_panorama(d, polar):
    return np.arctan2(d[:, 0], d[:, 2]), np.arcsin(d[:, 1])


ARIA = (0.05, -0.02, 0.004, -0.001, 0.0003, -0.0001, 0.002, -0.001, 0.003, -0.002, 0.001, 0.0005)
PRISM = (0.05, -0.01, 0.002, -0.001, 0.004, -0.001, 0.003, -0.002)
ONE, TWO = (9.0, 4.5, 2.5), (9.0, 8.0, 4.5, 2.5)
COLMAP = {
    "SIMPLE_PINHOLE": (0, ONE, (), on_plane(colmap_radial), 1.0),
    "PINHOLE": (1, TWO, (), on_plane(colmap_radial), 1.0),
    "SIMPLE_RADIAL": (2, ONE, (0.1,), on_plane(colmap_radial), 0.9),
    "RADIAL": (3, ONE, (0.1, -0.01), on_plane(colmap_radial), 0.9),
    "OPENCV": (4, TWO, (0.1, -0.01, 0.002, -0.001), on_plane(colmap_opencv), 0.9),
    "OPENCV_FISHEYE": (5, TWO, tuple(FISH.values()), lambda d, polar, *k: fisheye(d, polar), 1.4),
    "FULL_OPENCV": (6, TWO, tuple(FULL.values()), lambda d, polar, *k: full_opencv(d, polar), 0.9),
    "FOV": (7, TWO, (0.8,), on_plane(colmap_fov), 1.5),
    "FOV of nearly 0": (7, TWO, (1e-4,), on_plane(colmap_fov), 1.0),
    "SIMPLE_RADIAL_FISHEYE": (8, ONE, (0.02,), by_angle(colmap_radial), 1.5),
    "RADIAL_FISHEYE": (9, ONE, (0.02, -0.003), by_angle(colmap_radial), 1.5),
    "THIN_PRISM_FISHEYE": (10, TWO, PRISM, by_angle(colmap_thin_prism), 1.5),
    "RAD_TAN_THIN_PRISM_FISHEYE": (11, TWO, ARIA, by_angle(colmap_624), 1.5),
    "SIMPLE_DIVISION": (12, ONE, (-0.2,), on_plane(colmap_division), 1.4),
    "DIVISION": (13, TWO, (0.1,), on_plane(colmap_division), 0.9),
    "SIMPLE_FISHEYE": (14, ONE, (), by_angle(colmap_radial), 1.5),
    "FISHEYE": (15, TWO, (), by_angle(colmap_radial), 1.5),
    "EUCM": (16, TWO, (0.6, 1.1), on_plane(colmap_eucm), 1.4),
    "EQUIRECTANGULAR": (17, (8.0, 6.0), (), colmap_panorama, 1.5),
}


@pytest.mark.parametrize("name", COLMAP)
def test_lenses_of_colmap(name, tmp_path):
    model, base, extra, project, angle = COLMAP[name]
    parameters = (*base, *extra)
    cameras = load_scene(colmap(tmp_path, (model, len(parameters)), parameters)).train.cameras
    d, polar = spread(angle)
    u, v = (torch.from_numpy(a) for a in project(d, polar, *extra))
    fx, fy, cx, cy = (8 / (2 * math.pi), 6 / math.pi, 4, 3) if model == 17 else TWO
    if base == ONE:
        fy = fx
    got = local_rays(cameras, (u * fx + cx).float(), (v * fy + cy).float())
    assert float((got - torch.from_numpy(d).float()).norm(dim=1).max()) < 5e-4
    # and there and back in double precision
    kept = None if cameras.distortion is None else torch.zeros(1, cameras.distortion.shape[1])
    if kept is not None:
        kept = kept.double()
        kept[0, : len(extra)] = torch.tensor(extra, dtype=torch.float64)[: kept.shape[1]]
        kept = kept.expand(len(u), -1)
    back, reached = directions(cameras.lens, u, v, kept)
    assert bool(reached.all())
    back = torch.nn.functional.normalize(back, dim=1)
    assert float((back - torch.from_numpy(d)).norm(dim=1).max()) < 1e-9


@pytest.mark.parametrize(
    ("lens", "distortion", "edge"),
    [
        ("fov", [0.8], (math.pi / 2) / 0.8),
        ("division", [0.25], 2.0),
        ("division", [-0.25], 2.0),
        ("eucm", [0.8, 1.5], 1 / (0.8 * math.sqrt(1.5))),
    ],
)
def test_what_a_closed_lens_does_not_reach_is_said(lens, distortion, edge):
    u = torch.tensor([0.99, 1.01]).double() * edge
    table = torch.tensor([distortion]).double().expand(2, -1)
    rays, reached = directions(lens, u, torch.zeros(2).double(), table)
    assert reached.tolist() == [True, False]
    assert bool(rays.isfinite().all())


def test_fisheye624_of_nerfstudio_goes_in_and_out(tmp_path):
    more = {"camera_model": "FISHEYE624", "distortion_params": list(ARIA)}
    scene = load_scene(capture(tmp_path / "a", **more))
    assert scene.train.cameras.lens == "fisheye624"
    torch.testing.assert_close(scene.train.cameras.distortion[3], torch.tensor(ARIA))
    field = make_field("cp", scene.space, occupancy=8)
    export_views(field, scene.train.cameras, tmp_path / "b", scene.similarity)
    again = load_scene(tmp_path / "b").train.cameras
    torch.testing.assert_close(again.distortion[0], torch.tensor(ARIA))
    other = replace(scene.train.cameras, lens="fov", distortion=torch.full((8, 1), 0.5))
    with pytest.raises(ConfigError, match="lens must be one of perspective, .*got 'fov'"):
        export_views(field, other, tmp_path / "c", scene.similarity)
    with pytest.raises(DataError, match="distortion of fov must have 1 coefficients, got 4"):
        replace(other, distortion=torch.zeros(8, 4))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("images.bin", b"", "images.bin must be the images of a whole model"),
        ("images.bin", struct.pack("<Q", 0), "images.bin must hold views, got none"),
        ("points3D.bin", struct.pack("<Q", 2**63), "points3D.bin must hold what it counts"),
        ("cameras.bin", struct.pack("<QiiQQ", 1, 7, 77, 8, 6), "cameras.bin: lens .*number 77"),
    ],
)
def test_malformed_models_are_named(file, content, message, tmp_path):
    colmap(tmp_path)
    (tmp_path / "sparse" / "0" / file).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_scene(tmp_path)


def test_an_image_that_counts_2_to_the_63_points(tmp_path):
    colmap(tmp_path)
    path = tmp_path / "sparse" / "0" / "images.bin"
    data = bytearray(path.read_bytes())
    data[8 + 64 + 8 : 8 + 64 + 16] = struct.pack("<Q", 2**63)
    path.write_bytes(data)
    with pytest.raises(DataError, match="images.bin.*image 0 must have its points, got 9223"):
        load_scene(tmp_path)


def test_damaged_captures_never_get_past_the_reader(tmp_path):
    """Any value of a document replaced by a wrong one: our error, or a scene that is finite."""
    capture(tmp_path, mask_path=None, k1=0.01, camera_model="OPENCV")
    document = json.loads((tmp_path / "transforms.json").read_text())
    wrong = [None, "x", -1, 0, 1e300, [], {}, True, [[1]], math.nan]
    for place in (document, document["frames"][2]):
        for key in list(place):
            for value in wrong:
                kept, place[key] = place[key], value
                (tmp_path / "transforms.json").write_text(json.dumps(document))
                place[key] = kept
                with contextlib.suppress(PotstillError):
                    scene = load_transforms(tmp_path)
                    assert scene.train.cameras.poses.isfinite().all()


def test_lenses_and_sizes_are_checked():
    with pytest.raises(ConfigError, match="lens must be one of perspective, .*got 'round'"):
        Cameras(torch.eye(4)[None], torch.ones(1, 4), 4, 4, lens="round")


def test_commands_take_the_options_of_the_scene_from_the_run(tmp_path, capsys):
    """Also where frames are lost since: the field's coordinates are those in its header."""
    data, run = capture(tmp_path / "data", size=(24, 18)), tmp_path / "run"
    words = ["--kind", "cp", "--size.resolution", "8", "--steps", "1", "--every", "0",
             "--occupancy", "8", "--scale", "0.3", "--near", "0.5",
             "--downsample", "2"]  # fmt: skip
    assert main(["nerf", "train", "--data", str(data), "--out", str(run), *words]) == 0
    for k in range(3):
        (data / "images" / f"{k:03d}.png").unlink()
    field, header = load_field(run)
    assert field.space.near == pytest.approx(0.15)
    field, scene = trained(run, OtherScene(allow_missing=True), "torch", "cpu")
    assert scene.train.cameras.size(0) == (12, 9)
    torch.testing.assert_close(scene.similarity, torch.tensor(header["similarity"]))
    place = torch.tensor(header["similarity"])[:3] @ torch.tensor(
        [*(orbit(9, 4.0, 8, 6, 0.7).poses[4, :3, 3]).tolist(), 1.0]
    )
    at = scene.train.cameras.names.index("images/004.png")
    torch.testing.assert_close(scene.train.cameras.poses[at, :3, 3], place)
    capsys.readouterr()
    given = ["nerf", "eval", str(run), "--device", "cpu", "--backend", "torch"]
    assert main(given) == 1
    assert "pass allow_missing=True" in " ".join(capsys.readouterr().err.split())
    assert main([*given, "--allow-missing", "--downsample", "1"]) == 0
    assert "3 of 9 frames" in capsys.readouterr().out
    render = ["nerf", "render", str(run), "--allow-missing", "--frames", "1", "--out"]
    assert main([*render, str(tmp_path / "a.png"), "--device", "cpu"]) == 0


def test_depth_maps_are_learned_from_where_there_are_some(tmp_path):
    options = {"scene": SceneConfig(str(tmp_path / "a")), "occupancy": 8, "every": 0}
    size, steps = FieldSize(resolution=8), replace(TrainConfig().training, steps=2, device="cpu")
    data = capture(tmp_path / "a", frame=lambda k: {"depth_file_path": "d.npy"})
    np.save(data / "d.npy", np.full((6, 8), 4000.0))
    config = TrainConfig(out=tmp_path / "b", kind="cp", size=size, training=steps, depth=0.1,
                         **options)  # fmt: skip
    history = Train(config).run(progress=False).history
    assert history[0]["depth"] > 0
    capture(tmp_path / "a")
    with pytest.raises(DataError, match="depth needs depth maps"):
        Train(replace(config, out=tmp_path / "c")).run(progress=False)


def test_views_go_out_in_nerfstudios_layout_and_paths_come_in(tmp_path, capsys):
    run = tmp_path / "run"
    words = ["--kind", "cp", "--size.resolution", "8", "--steps", "1", "--every", "0",
             "--occupancy", "8", "--downsample", "2"]  # fmt: skip
    data = capture(tmp_path / "data", size=(24, 18), camera_model="OPENCV_FISHEYE", k1=0.01)
    assert main(["nerf", "train", "--data", str(data), "--out", str(run), *words]) == 0
    export = ["nerf", "export", str(run), "--what", "views", "--count", "3", "--device", "cpu"]
    assert main(export) == 0
    again = load_scene(run / "views")
    cameras = again.train.cameras
    assert (cameras.lens, cameras.size(0), len(cameras)) == ("fisheye", (12, 9), 2)
    assert float(cameras.distortion[0, 0]) == pytest.approx(0.01)
    # near the cameras of the data, in its coordinates
    places = again.train.moved(torch.linalg.inv(again.similarity)).cameras.poses[:, :3, 3]
    given = orbit(9, 4.0, 8, 6, 0.7).poses[:, :3, 3]
    assert float(torch.cdist(places, given).amin(1).max()) < 3
    poses = [pose.flatten().tolist() for pose in orbit(2, 4.0, 8, 6, 0.7).poses]
    frames = [{"camera_to_world": pose, "fov": 60.0, "aspect": 2.0} for pose in poses]
    document = {"camera_type": "perspective", "render_height": 8, "render_width": 16, "fps": 12,
                "camera_path": frames}  # fmt: skip
    path = tmp_path / "path.json"
    path.write_text(json.dumps(document))
    cameras, fps = load_path(path)
    assert (fps, cameras.size(0)) == (12, (16, 8))
    up = cameras.rays(torch.tensor([0]), torch.tensor([8.0]), torch.tensor([0.0]))[1][0]
    angle = math.degrees(math.acos(float(up @ -cameras.poses[0, :3, 2])))
    assert angle == pytest.approx(30, abs=1e-3)
    out = tmp_path / "a.gif"
    render = ["nerf", "render", str(run), "--path", str(path), "--out", str(out)]
    assert main([*render, "--device", "cpu"]) == 0
    with Image.open(out) as image:
        assert (image.n_frames, image.size, image.info["duration"]) == (2, (16, 8), 80)
    path.write_text(json.dumps(document | {"camera_type": "vr180"}))
    with pytest.raises(DataError, match=r"path.json must have cameras of type .*'vr180'"):
        load_path(path)
