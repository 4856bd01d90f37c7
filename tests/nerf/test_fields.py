"""Fields against explicit sums, and their files."""

import json
import math
from itertools import product

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from potstill.core.errors import BackendError, CheckpointError, ConfigError, ShapeError
from potstill.nerf import (
    KINDS,
    Activation,
    CompositeConfig,
    CPConfig,
    CPField,
    GridConfig,
    GridField,
    HashConfig,
    Levels,
    MLPConfig,
    Space,
    VMConfig,
    VMField,
    load_field,
    make_field,
    save_field,
)

SMALL = {
    "hash": HashConfig(levels=3, log2_rows=9, base=4, finest=32),
    "mlp": MLPConfig(depth=3, width=16, skip=1, bands=4),
    "vm": VMConfig(resolution=8, density=2, color=3),
    "cp": CPConfig(resolution=8, density=4, color=6),
    "grid": GridConfig(resolution=8, degree=2),
    "composite": CompositeConfig(("hash", "cp")),
}
BOX = Space("box", (-1.0, -2.0, -1.0), (1.0, 2.0, 3.0), steps=32)


def small(kind, **options):
    torch.manual_seed(0)
    field = make_field(kind, BOX, SMALL[kind], occupancy=4, **options)
    if kind == "grid":
        with torch.no_grad():
            field.table[:-1].normal_()
    return field


def inside(count=30, seed=0):
    u = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed))
    return BOX.points(u)


def views(count=30):
    return torch.nn.functional.normalize(torch.randn(count, 3), dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_two_blocks(kind):
    field, x, d = small(kind), inside(), views()
    out = field(x, d)
    width = 16 if field.has_features else 13
    assert out.feature.shape == (30, width)
    assert out.raw.shape == (30,)
    assert bool(((out.rgb >= 0) & (out.rgb <= 1)).all())
    torch.testing.assert_close(field.density(x), out.raw.exp())
    torch.testing.assert_close(field.head(field.features(x), d), out.rgb)
    sigma, color = field.query(x)
    torch.testing.assert_close(sigma, out.raw.exp())
    torch.testing.assert_close(color(torch.tensor([3, 5]), d[[3, 5]]), out.rgb[[3, 5]])
    (out.rgb.sum() + out.raw.sum()).backward()
    assert all(p.grad is not None for n, p in field.named_parameters()), kind


def linear(values, u):
    """Interpolate a row of samples on [-1, 1], the outermost on the ends, in plain python."""
    p = (u + 1) / 2 * (len(values) - 1)
    low = min(int(p), len(values) - 2)
    return values[low] * (1 - (p - low)) + values[low + 1] * (p - low)


def test_vm_is_the_explicit_sum():
    field = small("vm")
    assert isinstance(field, VMField)
    x = inside(4)
    unit = 2 * BOX.unit(x) - 1
    planes, lines = field.planes.detach(), field.lines.detach()
    for point, feature in zip(unit.tolist(), field.features(x).detach(), strict=True):
        total, products = 0.0, []
        for axis, ((a, b), c) in enumerate(zip([(0, 1), (0, 2), (1, 2)], [2, 1, 0], strict=True)):
            for r in range(5):
                # a plane's last axis is the first coordinate
                rows = [linear(row.tolist(), point[a]) for row in planes[axis, r]]
                value = linear(rows, point[b]) * linear(lines[axis, r, :, 0].tolist(), point[c])
                if r < 2:
                    total += value
                else:
                    products.append(value)
        assert float(feature[0]) == pytest.approx(total, abs=1e-6)
        expected = field.basis.weight.detach() @ torch.tensor(products)
        torch.testing.assert_close(feature[1:], expected, rtol=1e-4, atol=1e-6)


def test_cp_is_the_explicit_sum():
    field = small("cp")
    assert isinstance(field, CPField)
    x = inside(4)
    lines = field.lines.detach()[..., 0]
    for point, feature in zip((2 * BOX.unit(x) - 1).tolist(), field.features(x), strict=True):
        total = 0.0
        for r in range(4):
            value = 1.0
            for axis in range(3):
                value *= linear(lines[axis, r].tolist(), point[axis])
            total += value
        assert float(feature[0].detach()) == pytest.approx(total, abs=1e-6)


def test_grid_is_trilinear_and_zero_outside():
    field = small("grid")
    x = inside(6)
    volume = field.table.detach()[field.rows].reshape(8, 8, 8, -1).permute(3, 0, 1, 2)[None]
    # grid_sample wants z, y, x where our axes are x, y, z
    places = (2 * BOX.unit(x) - 1).flip(1)[None, :, None, None]
    expected = torch.nn.functional.grid_sample(volume, places, align_corners=True)[0, :, :, 0, 0].T
    torch.testing.assert_close(field.features(x), expected, rtol=1e-4, atol=1e-5)
    assert not field.features(torch.tensor([[9.0, 0.0, 0.0]])).any()


def test_grid_stores_what_is_occupied():
    field = small("grid")
    assert isinstance(field, GridField)
    field.occupancy.binaries.zero_()
    field.occupancy.binaries[0, 1, 1, 1] = True
    sparse = field.refined(16)
    assert len(sparse.table) < 0.6 * 16**3
    u = (torch.tensor([[1.0, 1.0, 1.0]]) + torch.rand(50, 3)) / 4  # in the occupied cell
    points = BOX.points(u)
    # where both store everything, the finer grid interpolates the coarser one
    torch.testing.assert_close(
        sparse.features(points).mean(0), field.features(points).mean(0), rtol=0, atol=0.2
    )
    assert not sparse.features(BOX.points(torch.full((1, 3), 0.97))).any()


def test_a_composite_adds_features():
    field = small("composite")
    x = inside()
    total = field.parts[0].features(x) + field.parts[1].features(x)
    torch.testing.assert_close(field.features(x), total)
    assert field.rate("parts.1.basis.weight") == 0.1
    with pytest.raises(ConfigError, match="parts must have features and the same space"):
        make_field("composite", BOX, CompositeConfig(("hash", "grid")))


def test_density_is_clamped_where_it_says():
    activation = Activation(shift=0.0, low=-2.0, high=7.0)
    feature = torch.tensor([-50.0, 0.5, 50.0], requires_grad=True)
    raw = activation.raw(feature)
    assert raw.tolist() == [-2.0, 0.5, 7.0]
    raw.exp().sum().backward()
    assert feature.grad.tolist() == pytest.approx([0.0, 1.6487212, 0.0])
    with pytest.raises(ConfigError, match="low must be below high"):
        Activation(low=1.0, high=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_files_give_the_same_field_back(kind, tmp_path):
    field = small(kind, activation=Activation(low=-2.0))
    field.occupancy.binaries[0, 0] = False
    similarity = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))
    path = save_field(field, tmp_path / "field.safetensors", similarity, note="here")
    again, header = load_field(tmp_path)
    x, d = inside(), views()
    for ours, theirs in zip(field(x, d), again(x, d), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert torch.equal(field.occupancy.binaries, again.occupancy.binaries)
    assert (header["kind"], header["note"]) == (kind, "here")
    assert header["similarity"] == similarity.tolist()
    assert again.space == BOX
    assert again.activation.low == -2.0
    assert path.read_bytes()[8:9] == b"{"  # safetensors: no pickle


def test_a_sparse_grid_survives_its_file(tmp_path):
    field = small("grid")
    field.occupancy.binaries[0, 1:] = False
    sparse = field.refined(12)
    save_field(sparse, tmp_path / "g.safetensors")
    again, _ = load_field(tmp_path / "g.safetensors")
    x = inside()
    torch.testing.assert_close(sparse.features(x), again.features(x), rtol=0, atol=0)


def test_the_same_pixels_from_every_backend(tmp_path):
    save_field(small("hash"), tmp_path / "f.safetensors")
    x, d = inside(), views()
    a, b = (load_field(tmp_path / "f.safetensors", backend=n)[0](x, d) for n in ("torch", "native"))
    torch.testing.assert_close(a.rgb, b.rgb, rtol=0, atol=1e-5)


def rewrite(path, change, drop=()):
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["potstill.nerf"])
        tensors = {k: file.get_tensor(k) for k in file.keys() if k not in drop}  # noqa: SIM118
    change(header)
    save_file(tensors, path, metadata={"potstill.nerf": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "drop", "message"),
    [
        (lambda h: h.update(format=99), (), "must have format 1, got 99"),
        (lambda h: h.update(kind="hush"), (), "did you mean 'hash'"),
        (lambda h: h.update(kind="mlp", config={}), (), "a mlp field must have 0 level tables"),
        (lambda h: h["config"].update(level=3), (), "Unknown option.*level.*levels"),
        (lambda h: None, ("net.0.weight",), "net.0.weight"),
        (
            lambda h: h.update(levels=[Levels.geometric(3, 2, 8, 4, 32).as_dict()]),
            (),
            r"must describe \d+ rows of 2, got one of",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(change, drop, message, tmp_path):
    path = save_field(small("hash"), tmp_path / "f.safetensors")
    rewrite(path, change, drop)
    with pytest.raises(CheckpointError, match=message):
        load_field(path)


@pytest.mark.parametrize("key", ["scale", "resolution", "rows", "offset", "features"])
def test_damaged_level_tables_never_reach_a_kernel(key, tmp_path):
    """Each number of the table replaced by wrong ones: some ended the process."""
    path = save_field(small("hash"), tmp_path / "f.safetensors")
    with safe_open(path, framework="pt") as file:
        good = json.loads(file.metadata()["potstill.nerf"])["levels"][0]
    places = [None] if key == "features" else range(len(good[key]))
    wrong = [-1, 0, 7, 2**31, 2**63, 1e300, math.nan, None, "x", [3], True]
    for place, value in product(places, wrong):
        table = json.loads(json.dumps(good))
        if place is None:
            table[key] = value
        elif table[key][place] == value:
            continue
        else:
            table[key][place] = value
        rewrite(path, lambda h, table=table: h.update(levels=[table]))
        with pytest.raises(CheckpointError):
            load_field(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="must be a field's file"):
        load_field(tmp_path / "absent.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="must be a field's file"):
        load_field(tmp_path / "x.safetensors")
    path = save_field(small("cp"), tmp_path / "f.safetensors")
    with pytest.raises(CheckpointError, match="must hold a hash field, got cp"):
        load_field(path, kind="hash")


def test_bad_arguments_are_refused():
    with pytest.raises(ConfigError, match="unknown kind 'has'; did you mean 'hash'"):
        make_field("has", BOX)
    with pytest.raises(ConfigError, match="config of 'vm' must be VMConfig, got CPConfig"):
        make_field("vm", BOX, CPConfig())
    with pytest.raises(ShapeError, match=r"views must be \[30, 3\] like points, got \[29, 3\]"):
        small("cp")(inside(), views(29))
    for config in (
        lambda: MLPConfig(skip=9),
        lambda: VMConfig(resolution=1),
        lambda: GridConfig(degree=7),
    ):
        with pytest.raises(ConfigError, match="must be"):
            config()
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="'triton' cannot run here"):
            make_field("hash", BOX, backend="triton")
