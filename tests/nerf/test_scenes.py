"""Loaders on files written here, on the real scenes where they are, and on everything bad."""

import json
import math
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.core.errors import ConfigError, DataError
from potstill.core.store.data import root
from potstill.core.testing import requires_data
from potstill.nerf import Cameras, RaySource, Space, look_at, orbit
from potstill.nerf.inspection import inspect_scene
from potstill.nerf.lenses import undistort
from potstill.nerf.scenes.load import detect, load_scene
from potstill.nerf.scenes.scene import Scene, Split


def poses(count):
    return orbit(count, 4.0, 8, 6, 0.7).poses


def write_images(folder, count, size=(8, 6), mode="RGB", suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        array = np.full((size[1], size[0], len(mode)), 20 * k, dtype=np.uint8)
        Image.fromarray(array, mode=None).save(folder / f"{k:03d}{suffix}")


def write_transforms(folder, count=9, change=None, **more):
    write_images(folder / "images", count)
    frames = [
        {"file_path": f"images/{k:03d}.png", "transform_matrix": pose.tolist()}
        for k, pose in enumerate(poses(count))
    ]
    document = {"fl_x": 9.0, "fl_y": 8.0, "cx": 4.5, "cy": 2.5, "w": 8, "h": 6, "frames": frames}
    document.update(more)
    if change:
        change(document)
    (folder / "transforms.json").write_text(json.dumps(document))
    return folder


def write_blender(folder, alpha=True):
    for split in ("train", "test"):
        write_images(folder / split, 3, mode="RGBA" if alpha else "RGB")
        frames = [
            {"file_path": f"./{split}/{k:03d}", "transform_matrix": pose.tolist()}
            for k, pose in enumerate(poses(3))
        ]
        document = {"camera_angle_x": 0.8, "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(document))
    return folder


def write_llff(folder, images=9, rows=9, near=1.0, far=9.0):
    write_images(folder / "images_2", images)
    table = np.zeros((rows, 17))
    for k in range(rows):
        pose = np.eye(4)
        pose[:3, 3] = [0.1 * k, 0.05 * (k % 3), 0.0]
        down, right, back = -pose[:3, 1], pose[:3, 0], pose[:3, 2]
        columns = [down, right, back, pose[:3, 3], [12, 16, 18.0]]
        table[k, :15] = np.stack(columns, axis=1).ravel()
        table[k, 15:] = near, far
    np.save(folder / "poses_bounds.npy", table)
    return folder


def quaternion(rotation):
    """w x y z of a rotation matrix, through its eigenvector: independent of the loader."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(rotation).as_quat()
    return w, x, y, z


def write_colmap(folder, binary, model=1, count=9):
    write_images(folder / "images", count)
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    views = []
    for k, pose in enumerate(poses(count).double().numpy()):
        rotation = (pose[:3, :3] @ np.diag([1.0, -1, -1])).T
        views.append((quaternion(rotation), -rotation @ pose[:3, 3], f"{k:03d}.png"))
    if binary:
        camera = struct.pack("<QiiQQ4d", 1, 7, model, 8, 6, 9.0, 8.0, 4.5, 2.5)
        (sparse / "cameras.bin").write_bytes(camera)
        data = struct.pack("<Q", count)
        for k, (q, t, name) in enumerate(views):
            data += struct.pack("<i7di", k, *q, *t, 7) + name.encode() + b"\0"
            data += struct.pack("<Q", 2) + struct.pack("<ddq", 1.0, 2.0, 3) * 2
        (sparse / "images.bin").write_bytes(data)
    else:
        names = {1: "PINHOLE", 9: "MEI"}
        (sparse / "cameras.txt").write_text(f"# comment\n7 {names[model]} 8 6 9.0 8.0 4.5 2.5\n")
        lines = ["# comment"]
        for k, (q, t, name) in enumerate(views):
            lines += [f"{k} {' '.join(map(repr, map(float, [*q, *t])))} 7 {name}", ""]
        (sparse / "images.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_the_analytic_scene_needs_no_file():
    scene = load_scene("analytic", downsample=4)
    assert scene.train.images.shape == (24, 12, 12, 4)
    alpha = scene.train.images[..., 3].float() / 255
    assert 0.1 < float(alpha.mean()) < 0.6
    assert not inspect_scene(scene)[1]


def test_blender_files(tmp_path):
    scene = load_scene(write_blender(tmp_path))
    cameras = scene.train.cameras
    assert (scene.layout, len(cameras), scene.has_alpha) == ("blender", 3, True)
    focal = 8 / (2 * math.tan(0.4))
    torch.testing.assert_close(cameras.intrinsics[0], torch.tensor([focal, focal, 4.0, 3.0]))
    torch.testing.assert_close(cameras.poses, poses(3))


def test_the_principal_point_of_a_wide_image_is_its_middle(tmp_path):
    """cx = W / 2 and cy = H / 2, not the other way round: the image is 8 x 6."""
    scene = load_scene(write_blender(tmp_path))
    _, direction = scene.train.cameras.rays(
        torch.tensor([0]), torch.tensor([4.0]), torch.tensor([3.0])
    )
    ahead = -scene.train.cameras.poses[0, :3, 2]
    torch.testing.assert_close(direction[0], ahead)


@pytest.mark.parametrize("layout", ["transforms", "text", "binary"])
def test_transforms_and_colmap_see_the_same(layout, tmp_path):
    if layout == "transforms":
        write_transforms(tmp_path)
    else:
        write_colmap(tmp_path, binary=layout == "binary")
    scene = load_scene(tmp_path)
    assert scene.layout == ("transforms" if layout == "transforms" else "colmap")
    assert (len(scene.train.cameras), len(scene.test.cameras)) == (7, 2)
    assert scene.train.cameras.intrinsics[0].tolist() == [9.0, 8.0, 4.5, 2.5]
    # the cameras look at the origin from a distance of 4: normalised, from 1
    whole = Cameras(poses(9), torch.ones(9, 4), 8, 6).moved(scene.similarity)
    torch.testing.assert_close(scene.train.cameras.poses[0], whole.poses[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(whole.poses[:, :3, 3].norm(dim=1).max(), torch.tensor(1.0))


def test_llff_files(tmp_path):
    scene = load_scene(write_llff(tmp_path), downsample=2)
    assert (scene.layout, scene.space.kind) == ("llff", "ndc")
    assert scene.train.cameras.intrinsics[0].tolist() == [9.0, 9.0, 4.0, 3.0]
    backs = scene.train.cameras.poses[:, :3, 2]
    torch.testing.assert_close(backs, torch.tensor([[0.0, 0.0, 1.0]]).expand_as(backs))
    assert float(scene.train.cameras.poses[:, :3, 3].mean(0).norm()) < 0.1


def test_downsampling_averages_and_keeps_rays(tmp_path):
    write_transforms(tmp_path)
    full, half = load_scene(tmp_path), load_scene(tmp_path, downsample=2)
    assert half.train.images.shape[1:3] == (3, 4)
    at = (torch.tensor([0]), torch.tensor([3.0]), torch.tensor([2.0]))
    a = full.train.cameras.rays(*at)[1]
    b = half.train.cameras.rays(at[0], at[1] / 2, at[2] / 2)[1]
    torch.testing.assert_close(a, b)


def test_distortion_round_trip():
    k1, k2, p1, p2 = coefficients = (0.058, -0.08, -0.00098, 0.00016)
    x, y = torch.linspace(-0.7, 0.7, 41).double(), torch.linspace(0.6, -0.5, 41).double()
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2 * r2
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    v = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    back = undistort(u, v, torch.tensor([coefficients], dtype=torch.float64).expand(41, 4))
    torch.testing.assert_close(back, (x, y), rtol=0, atol=1e-9)


def test_rays_are_pure_functions_of_the_step():
    source = RaySource(load_scene("analytic", downsample=4).train, 64, "random", seed=3)
    torch.testing.assert_close(source(5, 0, 1), source(5, 0, 1), rtol=0, atol=0)
    assert not torch.equal(source(5).origins, source(6).origins)
    assert not torch.equal(source(5, rank=0).rgb, source(5, rank=1).rgb)


def test_shuffled_poses_are_a_permutation():
    scene = load_scene("analytic", downsample=4)
    other = scene.shuffled()
    assert not torch.equal(scene.train.cameras.poses, other.train.cameras.poses)
    ours, theirs = (s.train.cameras.poses.flatten(1).sum(1).sort()[0] for s in (scene, other))
    torch.testing.assert_close(ours, theirs)


# --- bad inputs: the message names what, which value, and what to do ------------------------------


def refused(folder, message, **options):
    with pytest.raises(DataError, match=message):
        load_scene(folder, **options)


def test_empty_absent_and_ambiguous_folders(tmp_path):
    refused(tmp_path / "no", "must be a folder, got nothing there")
    (tmp_path / "notes.txt").write_text("x")
    refused(tmp_path, "must hold transforms_train.json.*got notes.txt")
    write_transforms(tmp_path)
    write_llff(tmp_path)
    refused(tmp_path, "must hold one layout, got transforms, llff; choose with layout=")
    assert load_scene(tmp_path, "transforms").layout == "transforms"
    with pytest.raises(ConfigError, match="unknown layout 'lff'; did you mean 'llff'"):
        load_scene(tmp_path, "lff")
    with pytest.raises(ConfigError, match="downsample must be at least 1, or 0"):
        load_scene(tmp_path, downsample=-1)


def test_frames_without_image(tmp_path):
    write_transforms(tmp_path)
    for k in (2, 5):
        (tmp_path / "images" / f"{k:03d}.png").unlink()
    refused(tmp_path, "2 of 9 frames.*images/002.png, images/005.png; pass allow_missing=True")
    scene = load_scene(tmp_path, allow_missing=True)
    assert len(scene.train.cameras) + len(scene.test.cameras) == 7
    assert "2 of 9 frames" in inspect_scene(scene)[1][0]


def test_images_of_another_size_than_declared(tmp_path):
    write_transforms(tmp_path, w=16, h=12)
    refused(tmp_path, "says images are 16 x 12, they are 8 x 6; pass rescale=True")
    scene = load_scene(tmp_path, rescale=True)
    assert scene.train.cameras.intrinsics[0].tolist() == [4.5, 4.0, 2.25, 1.25]


def test_damaged_files(tmp_path):
    write_transforms(tmp_path)
    (tmp_path / "images" / "003.png").write_bytes(b"no image")
    refused(tmp_path, "003.png must be an image")
    (tmp_path / "transforms.json").write_text("{")
    refused(tmp_path, "must be JSON")
    for text in ('{"frames": []}', '{"frames": 3}', "[1]", '{"frames": [1]}'):
        (tmp_path / "transforms.json").write_text(text)
        refused(tmp_path, "must list frames, got .*; is it a scene")


def broken(document, row, column, value):
    document["frames"][3]["transform_matrix"][row][column] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: broken(d, 0, 3, float("nan")), "images/003.png must have a finite pose"),
        (lambda d: broken(d, 0, 0, 3.0), "images/003.png must have a rigid pose"),
        (lambda d: d.update(fl_x=-3.0), "must have finite intrinsics and positive focal len"),
        (lambda d: d.update(fl_x=math.inf), "must have finite intrinsics and positive focal len"),
        (lambda d: d.pop("fl_x"), "must give transform_matrix and a focal length"),
        (lambda d: d["frames"][0].pop("transform_matrix"), "must give transform_matrix"),
        (lambda d: d.update(frames=d["frames"][:2]), "must have at least 2 training views, got 1"),
    ],
)
def test_impossible_cameras(change, message, tmp_path):
    refused(write_transforms(tmp_path, change=change), message)


def test_mirrored_poses():
    mirrored = torch.diag(torch.tensor([-1.0, 1, 1, 1])).repeat(2, 1, 1)
    with pytest.raises(DataError, match="det > 0"):
        Cameras(mirrored, torch.ones(2, 4), 4, 4)
    with pytest.raises(DataError, match=r"intrinsics \[views, 4\], got"):
        Cameras(torch.eye(4)[None], torch.ones(2, 4), 4, 4)
    with pytest.raises(ConfigError, match="position must differ from target"):
        look_at(torch.zeros(3), torch.zeros(3), torch.tensor([0.0, 0, 1]))


def test_llff_files_that_do_not_fit(tmp_path):
    write_llff(tmp_path, images=8)
    refused(tmp_path, "one row for each image, got 9 rows and 8 images", downsample=2)
    refused(tmp_path, "there are images_2: choose downsample", downsample=4)
    np.save(tmp_path / "poses_bounds.npy", np.zeros((8, 15)))
    refused(tmp_path, r"must be \[views, 17\], got \[8, 15\]", downsample=2)
    (tmp_path / "poses_bounds.npy").write_bytes(b"no")
    refused(tmp_path, "must be a NumPy array", downsample=2)
    write_llff(tmp_path / "b", near=5.0, far=2.0)
    refused(tmp_path / "b", "near must be below far.*got 5.0 and 2.0", downsample=2)


def test_colmap_models_that_cannot_be_used(tmp_path):
    refused(write_colmap(tmp_path / "a", binary=False, model=9), "lens must be one of.*got MEI")
    write_colmap(tmp_path / "b", binary=True)
    path = tmp_path / "b" / "sparse" / "0" / "images.bin"
    path.write_bytes(path.read_bytes()[:300])
    refused(tmp_path / "b", "images.bin must hold what it counts, got 9 in 300 bytes")
    write_colmap(tmp_path / "c", binary=True)
    (tmp_path / "c" / "images" / "001.png").unlink()
    refused(tmp_path / "c", "1 of 9 views have no photo.*001.png; pass allow_missing")


def test_a_random_background_needs_alpha(tmp_path):
    scene = load_scene(write_blender(tmp_path, alpha=False))
    with pytest.raises(DataError, match="random background needs images with alpha"):
        RaySource(scene.train, background="random")
    with pytest.raises(DataError, match="images are needed to train"):
        RaySource(Split(scene.train.cameras))


def warned(scene, text):
    assert any(text in warning for warning in inspect_scene(scene)[1]), inspect_scene(scene)


def test_inspection_tells_what_is_wrong():
    cameras = orbit(4, 3.0, 8, 8, 0.7)
    split = Split(cameras)
    far = Space("box", (90.0,) * 3, (91.0,) * 3)
    warned(Scene("x", "x", split, split, far), "never meet the box")
    wide = Space("box", (-9.0,) * 3, (9.0,) * 3)
    warned(Scene("x", "x", split, split, wide), "all cameras are inside the box")
    swapped = Cameras(cameras.poses, torch.tensor([[9.0, 9, 4, 12]]).repeat(4, 1), 24, 8)
    warned(Scene("x", "x", Split(swapped), split, Space()), "cx and cy swapped")
    images = torch.full((4, 8, 8, 4), 100, dtype=torch.uint8)
    warned(Scene("x", "x", Split(cameras, images), split, Space()), "premultiplied")


@requires_data("nerf/fox_270", "nerf/fern", "nerf/lego_200")
def test_the_real_scenes():
    data = root() / "nerf"
    assert [detect(data / n) for n in ("lego_200", "fern", "fox_270")] == [
        "blender",
        "llff",
        "transforms",
    ]
    fox = load_scene(data / "fox_270", downsample=6)
    assert fox.train.cameras.distortion is not None
    assert inspect_scene(fox)[1] == []


@requires_data("nerf/fox_270")
def test_the_original_fox_lists_frames_without_image_and_another_size():
    from potstill.nerf.scenes.transforms import load_transforms

    folder, file = root() / "nerf" / "fox_270", "transforms_original_67frames.json"
    with pytest.raises(DataError, match="17 of 67 frames"):
        load_transforms(folder, file=file)
    with pytest.raises(DataError, match="says images are 1080 x 1920, they are 270 x 480"):
        load_transforms(folder, file=file, allow_missing=True)
    ours = load_transforms(folder)
    theirs = load_transforms(folder, file=file, allow_missing=True, rescale=True)
    torch.testing.assert_close(
        ours.train.cameras.intrinsics, theirs.train.cameras.intrinsics, rtol=1e-4, atol=1e-2
    )
