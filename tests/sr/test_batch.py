"""Batches of files: where outputs go, what is read as input, and what one bad file may cost."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.core.command.cli import main
from potstill.sr import Picture, read_image, save_model, upscale, write_image
from potstill.sr.inference.batch import find_inputs, resized

SMALL = np.add.outer(np.arange(20), np.arange(24)).astype(np.uint8)[..., None] * np.uint8([5, 4, 3])


@pytest.fixture
def run(tmp_path, tiny, capsys):
    """Runs `sr upscale` with the tiny network; gives the code and the rows, or what was said."""
    weights = str(save_model(tiny, tmp_path / "weights" / "tiny.safetensors"))

    def run(*words, json_rows=True):
        extra = ["--json"] if json_rows else []
        code = main(["sr", "upscale", *map(str, words), "--model", weights, *extra])
        said = capsys.readouterr()
        if code == 2 or not json_rows:
            return code, said.out + said.err
        return code, [json.loads(line) for line in said.out.splitlines()]

    return run


def test_two_files_for_one_output_are_refused_before_any_work(tmp_path, run):
    for side in ("a", "b"):
        write_image(Picture(SMALL), tmp_path / "in" / side / "same.png")
    inputs = [tmp_path / "in" / side / "same.png" for side in ("a", "b")]
    code, said = run(*inputs, "-o", tmp_path / "out")
    assert (code, "outputs must differ" in " ".join(said.split())) == (2, True)
    assert not (tmp_path / "out").exists()
    code, _ = run(tmp_path / "in", "-o", tmp_path / "out", "--recursive", "--suffix",
                     "_x{scale}_{model}")  # fmt: skip
    assert code == 0
    made = sorted(p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.rglob("*_x2_*"))
    assert made == ["a/same_x2_tiny.png", "b/same_x2_tiny.png"]
    code, said = run(tmp_path / "in", "-o", tmp_path / "o", "--recursive", "--suffix", "{size}")
    assert (code, "suffix must have no fields but" in " ".join(said.split())) == (2, True)


def test_hidden_and_unfinished_files_are_no_inputs(tmp_path):
    for name in ("a.png", ".p3.123.tmp.png", "._a.png", ".cache/b.png", "below/c.png"):
        write_image(Picture(SMALL), tmp_path / name)
    assert [p.name for p in find_inputs([str(tmp_path)])] == ["a.png"]
    assert [p.name for p in find_inputs([str(tmp_path)], recursive=True)] == ["a.png", "c.png"]


def test_any_error_of_one_file_is_that_files(tmp_path, run, monkeypatch):
    import potstill.sr.inference.batch as batch

    for name in "abc":
        write_image(Picture(SMALL), tmp_path / "in" / f"{name}.png")
    real = batch.read_image

    def spoilt(path, **options):
        if path.name == "b.png":
            raise RuntimeError("something that nobody expected")
        return real(path, **options)

    monkeypatch.setattr(batch, "read_image", spoilt)
    code, rows = run(tmp_path / "in", "-o", tmp_path / "out")
    assert (code, [row.get("error") for row in rows]) == (
        1,
        [None, f"{tmp_path / 'in' / 'b.png'}: RuntimeError: something that nobody expected", None],
    )


def test_short_memory_is_tried_again_in_smaller_tiles(tiny, photograph, monkeypatch):
    import potstill.sr.inference.planes as planes

    expected = upscale(photograph, tiny, tile=32).image
    real, sides = planes.exact, []

    def short(stages, frame, tile, *rest, **options):
        sides.append(tile)
        if tile > 32:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(stages, frame, tile, *rest, **options)

    monkeypatch.setattr(planes, "exact", short)
    result = upscale(photograph, tiny, tile=128)
    assert (sides, result.tile) == ([128, 64, 32], 32)
    np.testing.assert_array_equal(result.image, expected)
    monkeypatch.setattr(planes, "exact", lambda *a, **b: planes.plain(None, *a[1:], 0))
    with pytest.raises(TypeError):  # not of memory: said at once
        upscale(photograph, tiny, tile=64)


def test_brackets_in_names_are_shown(tmp_path, run):
    write_image(Picture(SMALL), tmp_path / "a [final].png")
    (tmp_path / "b [bold].png").write_bytes(b"")
    files = sorted(tmp_path.glob("*.png"))
    code, said = run(*files, "-o", tmp_path / "out [1]", json_rows=False)
    said = "".join(said.split())
    assert code == 1
    assert "[final]" in said
    assert "[bold]" in said
    assert "[1]" in said


def test_formats_quality_and_sizes(tmp_path, run):
    source = write_image(Picture(SMALL), tmp_path / "a.png")
    assert run(source, "-o", tmp_path / "x.bmp")[0] == 0
    with Image.open(tmp_path / "x.bmp") as image:
        assert (image.format, image.size) == ("BMP", (48, 40))
    code, rows = run(source, "-o", tmp_path / "x.jp2")
    assert "must end in .png" in rows[0]["error"]
    for quality in (5, 95):
        assert run(source, "-o", tmp_path / f"{quality}.jpg", "--quality", quality)[0] == 0
    assert (tmp_path / "5.jpg").stat().st_size < (tmp_path / "95.jpg").stat().st_size
    assert run(source, "-o", tmp_path / "x.jpg", "--quality", 500)[0] == 2
    code, rows = run(source, "-o", tmp_path / "y.png", "--megapixels", 0.0001)
    assert "must have at most 0.0001 megapixels" in rows[0]["error"]
    long = write_image(Picture(SMALL), tmp_path / ("x" * 246 + ".png"))
    assert run(long, "-o", tmp_path / "out")[0] == 0
    code, rows = run(long, "-o", tmp_path / "out", "--format", "tiff")
    assert "must have at most 255 bytes, got 251" in rows[0]["error"] if code else True


def test_a_far_target_uses_the_network_as_often_as_it_takes(tmp_path, run, monkeypatch):
    import potstill.sr.inference.batch as batch

    sizes = []
    real = batch.upscale
    monkeypatch.setattr(
        batch, "upscale", lambda p, *a, **b: sizes.append(p.color.shape[1]) or real(p, *a, **b)
    )
    source = write_image(Picture(SMALL), tmp_path / "a.png")
    assert run(source, "-o", tmp_path / "b.png", "--target", "180x0")[0] == 0
    assert sizes == [24, 48, 96]
    assert read_image(tmp_path / "b.png").color.shape == (150, 180, 3)


def test_resizing_weighs_colour_by_alpha():
    color = np.zeros((16, 16, 3), np.uint8)
    color[:, :8] = 200
    alpha = np.zeros((16, 16), np.uint8)
    alpha[:, :8] = 255
    made = resized(Picture(color, alpha), 24, 24)
    assert np.abs(made.color[made.alpha > 12].astype(int) - 200).max() <= 2


@pytest.mark.parametrize("form", ["gif", "png", "webp"])
def test_animations_are_enlarged_with_shared_gates_and_written_back(tmp_path, run, form, tiny):
    frames = [Image.fromarray(np.roll(SMALL, 5 * n, axis=1)) for n in range(3)]
    source = tmp_path / f"a.{form}"
    exact = {"lossless": True} if form == "webp" else {}
    frames[0].save(source, save_all=True, append_images=frames[1:], duration=[100, 200, 300],
                   loop=2, **exact)  # fmt: skip
    code, rows = run(source, "-o", tmp_path / "out")
    assert (code, rows[0]["frames"], rows[0]["to"]) == (0, 3, "48x40")
    gates = upscale(read_first(source), tiny, tile_mode="exact").gates
    with Image.open(tmp_path / "out" / f"a.{form}") as made:
        assert (made.n_frames, made.info["loop"]) == (3, 2)
        for number, duration in enumerate((100, 200, 300)):
            made.seek(number)
            found = np.asarray(made.convert("RGB")).astype(int)
            assert made.info["duration"] == duration
            with Image.open(source) as original:
                original.seek(number)
                frame = np.asarray(original.convert("RGB"))
            expected = upscale(frame, tiny, gates=gates).image
            assert np.abs(found - expected).mean() <= (12 if form == "gif" else 0.01)


def read_first(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("form", ["png", "jpg", "tiff", "webp", "bmp", "gif"])
def test_a_gif_becomes_anything(tmp_path, run, form):
    frames = [Image.fromarray(SMALL), Image.fromarray(SMALL[::-1].copy())]
    frames[0].save(tmp_path / "one.gif")
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    for name in ("one", "two"):
        code, rows = run(tmp_path / f"{name}.gif", "-o", tmp_path / f"{name}.{form}",
                         "--overwrite")  # fmt: skip
        if (tmp_path / f"{name}.{form}") == tmp_path / f"{name}.gif":
            assert "out must differ from the input" in rows[0]["error"]
            continue
        assert code == 0
        kept = rows[0]["frames"] == (2 if name == "two" and form in ("png", "webp") else 1)
        assert kept
        assert name == "one" or form in ("png", "webp") or "animated" in rows[0]["warnings"][0]
