"""Teachers: small seeded runs, resumption, pictures, exports and the command."""

import json
import signal
import sys

import numpy as np
import pytest
import torch

from potstill.core import Run
from potstill.core.command.cli import main
from potstill.core.errors import (
    BackendError,
    ConfigError,
    DataError,
    Interrupted,
    NonFiniteError,
)
from potstill.nerf import ImagesToField, RaySource, Space, load_scene, make_field, orbit, score
from potstill.nerf.export import export_mesh, export_points, export_tcnn, write_ply
from potstill.nerf.fields.factored import CPConfig, VMConfig
from potstill.nerf.fields.grid import GridConfig
from potstill.nerf.fields.hash import HashConfig, HashField
from potstill.nerf.from_images import train_field
from potstill.nerf.pictures import depth_colors, orbit_around, save_frames
from potstill.nerf.scenes.analytic import balls

SMALL = HashConfig(levels=6, log2_rows=12, base=8, finest=64, hidden=32)


@pytest.fixture(scope="module")
def scene():
    return load_scene("analytic", downsample=2)


def fresh(scene, kind="hash"):
    torch.manual_seed(0)
    config = {
        "hash": SMALL,
        "vm": VMConfig(resolution=32, density=4, color=8),
        "cp": CPConfig(resolution=48, density=24, color=24),
        "grid": GridConfig(resolution=24, degree=2),
    }.get(kind)
    return make_field(kind, scene.space, config, occupancy=24)


@pytest.fixture(scope="module")
def trained(scene):
    field, history = train_field(fresh(scene), scene, steps=220, samples=2500, progress=False)
    return field, history


def test_a_hash_field_learns_the_scene(scene, trained):
    field, history = trained
    assert score(field, scene.test) > 17.5
    assert score(fresh(scene), scene.test) < 14
    assert field.occupancy.share() < 0.6
    assert history[-1]["pixel"] < 0.2 * history[0]["pixel"]


def test_shuffled_poses_teach_nothing(scene, trained):
    field, _ = train_field(fresh(scene), scene.shuffled(), steps=220, samples=3000, progress=False)
    assert score(field, scene.test) < score(trained[0], scene.test) - 3


@pytest.mark.parametrize("kind", ["mlp", "vm", "cp", "grid", "composite"])
def test_every_kind_learns(kind, scene):
    field, history = train_field(fresh(scene, kind), scene, steps=60, samples=1000, progress=False)
    first = sum(row["pixel"] for row in history[:5]) / 5
    last = sum(row["pixel"] for row in history[-5:]) / 5
    assert last < 0.95 * first
    if kind == "grid":
        assert len(field.table) < field.config.resolution**3


def test_an_interrupted_run_continues_bit_by_bit(scene, tmp_path):
    def go(folder, stop_at=None):
        def progress(row, share):
            if stop_at is not None and row["step"] == stop_at:
                signal.raise_signal(signal.SIGTERM)

        return train_field(
            fresh(scene),
            scene,
            steps=24,
            samples=1000,
            run=Run(folder, every=50),
            progress=progress,
        )

    whole, history = go(tmp_path / "a")
    with pytest.raises(Interrupted):
        go(tmp_path / "b", stop_at=17)
    again, continued = go(tmp_path / "b")
    assert [row["pixel"] for row in continued] == [row["pixel"] for row in history]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_rays_that_never_meet_the_space_end_the_run(scene):
    field = make_field("hash", Space("box", (50.0,) * 3, (51.0,) * 3), SMALL, occupancy=4)
    with pytest.raises(DataError, match="got 100 batches without a sample"):
        train_field(field, scene, steps=200, progress=False)


def test_a_nan_ends_the_run(scene):
    field = fresh(scene)
    with torch.no_grad():
        field.net[0].weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="at step 0, from pixel"):
        train_field(field, scene, steps=2, progress=False)


def test_the_budget_of_samples_is_kept(scene, trained):
    field, _ = trained
    distiller = ImagesToField(field, samples=500)
    batch = RaySource(scene.train, 256)(0)
    losses = distiller(batch, step=1)
    assert losses.terms.keys() == {"pixel"}
    assert torch.isfinite(losses.total)


def test_bad_options_are_refused(scene):
    with pytest.raises(ConfigError, match="give a budget"):
        train_field(fresh(scene), scene, progress=False)
    with pytest.raises(ConfigError, match="background must be auto, white, black or random"):
        RaySource(scene.train, background="grey")


def read_ply(path):
    data = path.read_bytes()
    head, _, body = data.partition(b"end_header\n")
    return head.decode(), body


def test_the_mesh_is_the_surface(scene, trained, tmp_path):
    pytest.importorskip("skimage")
    similarity = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))
    vertices, faces = export_mesh(
        trained[0], tmp_path / "m.ply", resolution=48, similarity=similarity
    )
    head, body = read_ply(tmp_path / "m.ply")
    assert f"element vertex {vertices}" in head
    assert f"element face {faces}" in head
    kind = [("p", "<f4", 3), ("c", "u1", 3)]
    table = np.frombuffer(body, dtype=kind, count=vertices)
    # input coordinates are half of the field's
    density, _ = balls(torch.from_numpy(table["p"].copy()) * 2)
    assert np.median(np.abs(table["p"]).max(1)) < 0.5
    assert float((density > 1).float().mean()) > 0.2


def test_points_lie_in_the_balls(trained, tmp_path):
    assert export_points(trained[0], tmp_path / "p.ply", count=2000) == 2000
    _, body = read_ply(tmp_path / "p.ply")
    table = np.frombuffer(body, dtype=[("p", "<f4", 3), ("c", "u1", 3)])
    density, _ = balls(torch.from_numpy(table["p"].copy()))
    assert float((density > 1).float().mean()) > 0.7


def test_the_table_goes_out_in_tiny_cuda_nns_order(trained, tmp_path):
    from safetensors import safe_open

    field = trained[0]
    assert isinstance(field, HashField)
    with safe_open(export_tcnn(field, tmp_path / "t.safetensors"), framework="pt") as file:
        assert json.loads(file.metadata()["encoding"])["otype"] == "HashGrid"
        assert torch.equal(file.get_tensor("params"), field.grid.table.detach().flatten())
        assert "net.0.weight" in file.keys()  # noqa: SIM118
    with pytest.raises(ConfigError, match="must be of kind hash, got cp"):
        export_tcnn(make_field("cp", Space()), tmp_path / "x.safetensors")


def test_an_empty_field_has_no_points_and_no_surface(scene, tmp_path):
    field = fresh(scene)
    field.occupancy.binaries.zero_()
    with pytest.raises(DataError, match="export_points: the occupancy grid must have occupied"):
        export_points(field, tmp_path / "p.ply")
    if not pytest.importorskip("skimage"):
        return
    with pytest.raises(DataError, match="depth must be between"):
        export_mesh(field, tmp_path / "m.ply", resolution=8)


def test_ply_is_read_by_trimesh(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    corners = np.eye(3, dtype=np.float32)
    write_ply(tmp_path / "t.ply", corners, np.eye(3), np.array([[0, 1, 2]]))
    mesh = trimesh.load(tmp_path / "t.ply", process=False)
    assert np.allclose(mesh.vertices, corners)
    assert mesh.faces.tolist() == [[0, 1, 2]]
    assert mesh.visual.vertex_colors[:, :3].tolist() == (np.eye(3) * 255).astype(int).tolist()


def test_frames_and_depth(tmp_path, scene):
    from PIL import Image

    frames = [torch.rand(6, 8, 3) for _ in range(3)]
    with Image.open(save_frames(frames, tmp_path / "a.gif")) as image:
        assert (image.n_frames, image.size) == (3, (8, 6))
    with pytest.raises(ConfigError, match=r"must end in .gif, .mp4 or .png, got a.avi"):
        save_frames(frames, tmp_path / "a.avi")
    colors = depth_colors(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
    assert colors[0, 2].tolist() == [1.0, 1.0, 1.0]
    assert not torch.equal(colors[0, 0], colors[0, 1])
    path = orbit_around(scene.train.cameras, "box", 5, width=12)
    assert (len(path), path.width, path.height) == (5, 12, 12)
    torch.testing.assert_close(
        path.poses[:, :3, 3].norm(dim=1), torch.full((5,), 3.0), rtol=1e-4, atol=0
    )


def test_a_path_stays_on_the_side_that_was_photographed():
    cameras = orbit(60, 2.0, 8, 6, 0.7)
    turns = torch.arange(60) * (2 * torch.pi / 60)
    front = cameras[(turns < 1.2) | (turns > 2 * torch.pi - 0.6)]  # from -0.6 to 1.2
    path = orbit_around(front, "contracted", 12)
    places = path.poses[:, :3, 3]
    angles = torch.atan2(places[:, 1], places[:, 0])
    assert -0.6 < float(angles.min()) < -0.3
    assert 0.9 < float(angles.max()) < 1.2
    torch.testing.assert_close(places.norm(dim=1), torch.full((12,), 2.0))
    whole = orbit_around(cameras, "box", 8).poses[:, :3, 3]
    assert float(torch.atan2(whole[:, 1], whole[:, 0]).sort()[0].diff().max()) < 0.8
    assert float((whole.mean(0)[:2]).norm()) < 1e-5


# imageio leaves ffmpeg's pipes to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_video_shows_the_frames(tmp_path):
    imageio = pytest.importorskip("imageio.v3")
    pytest.importorskip("imageio_ffmpeg")
    shades = [0.1, 0.5, 0.9, 0.5]
    frames = [torch.full((33, 48, 3), shade) for shade in shades]
    path = save_frames(frames, tmp_path / "orbit.mp4", fps=12)
    shown = imageio.imread(path, plugin="FFMPEG")
    assert shown.shape == (4, 32, 48, 3)  # codecs want even sizes: the last row is cut
    means = shown.astype(float).mean((1, 2, 3)) / 255
    assert means == pytest.approx(shades, abs=0.03)
    assert imageio.immeta(path, plugin="FFMPEG")["fps"] == 12
    assert [p.name for p in tmp_path.iterdir()] == ["orbit.mp4"]


def test_a_video_without_its_package_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(BackendError, match=r"pip install 'potstill-nerf\[video\]', or"):
        save_frames([torch.zeros(4, 4, 3)] * 2, tmp_path / "orbit.mp4")
    assert not list(tmp_path.iterdir())


def test_a_mesh_without_its_package_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    with pytest.raises(BackendError, match=r"pip install 'potstill-nerf\[mesh\]'"):
        export_mesh(trained[0], tmp_path / "m.ply")


def test_the_command(tmp_path, capsys):
    out = str(tmp_path / "run")
    options = ["--steps", "12", "--samples", "800", "--every", "6", "--occupancy", "16"]
    sizes = ["--size.levels", "4", "--size.log2-rows", "10", "--downsample", "4"]
    assert main(["nerf", "train", "--out", out, *options, *sizes]) == 0
    shown = capsys.readouterr().out
    assert "backend" in shown
    assert "PSNR on the test views" in shown
    for name in ("field.safetensors", "config.yaml", "curves.png", "comparison.png"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    assert main(["nerf", "eval", out]) == 0
    assert "SSIM" in capsys.readouterr().out
    assert (tmp_path / "run" / "evaluation.csv").read_text().count("\n") == 5
    assert main(["nerf", "render", out, "--frames", "2", "--what", "depth"]) == 0
    assert (tmp_path / "run" / "depth.gif").exists()
    assert main(["nerf", "export", out, "--what", "points", "--count", "50"]) == 0
    assert (tmp_path / "run" / "points.ply").exists()


def test_the_command_lists_and_inspects(capsys):
    assert main(["nerf", "backends"]) == 0
    assert "nerfacc" in capsys.readouterr().out
    assert main(["nerf", "inspect"]) == 0
    assert "rays that miss the space" in capsys.readouterr().out


def test_the_command_refuses(tmp_path, capsys):
    assert main(["nerf", "train", "--kind", "has"]) == 2
    assert main(["nerf", "train", "--steps", "0"]) == 2
    assert "Training: steps must be positive, got 0" in capsys.readouterr().err
    assert (
        main(["nerf", "train", "--kind", "cp", "--size.levels", "3", "--out", str(tmp_path)]) == 2
    )
    assert "levels" in capsys.readouterr().err
    assert main(["nerf", "inspect", str(tmp_path / "no")]) == 1
    if not torch.cuda.is_available():
        assert main(["nerf", "train", "--backend", "tcnn", "--out", str(tmp_path / "x")]) == 1
        assert "'tcnn' cannot run here" in capsys.readouterr().err
        assert not (tmp_path / "x").exists()
