"""The commands as users type them."""

import json

import numpy as np
import pytest
from PIL import Image

from potstill.core.command.cli import main
from potstill.sr import Picture, read_image, save_model, write_image
from potstill.sr.inference.batch import find_inputs


@pytest.fixture
def weights(tmp_path, tiny):
    return str(save_model(tiny, tmp_path / "weights" / "tiny.safetensors"))


@pytest.fixture
def folder(tmp_path, photograph):
    here = tmp_path / "photos"
    here.mkdir()
    write_image(Picture(photograph), here / "a.png")
    write_image(Picture(photograph[:20, :30].astype(np.uint16) * 257), here / "b.tiff")
    Image.fromarray(photograph).save(here / "größe.bmp")
    return here


def test_a_folder_and_one_bad_file(folder, weights, tmp_path, capsys):
    (folder / "bad.png").write_bytes(b"")
    out = tmp_path / "out"
    code = main(["sr", "upscale", str(folder), "-o", str(out), "--model", weights, "--json"])
    assert code == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "b.tiff", "größe.png"]
    assert read_image(out / "b.tiff").color.dtype == np.uint16
    (failed,) = [row for row in rows if "error" in row]
    assert "bad.png must be an image, got an empty file" in failed["error"]
    assert next(row for row in rows if row["input"].endswith("a.png"))["to"] == "120x96"


def test_table_overwrite_and_modes(folder, weights, tmp_path, capsys):
    words = ["sr", "upscale", str(folder / "a.png"), "-o", str(tmp_path / "x.png"), "--model"]
    words += [weights, "--tile", "16"]
    assert main(words) == 0
    assert "exact 16" in capsys.readouterr().out
    assert main(words) == 1
    assert "must not exist yet" in " ".join(capsys.readouterr().out.split())
    assert main([*words, "--overwrite", "--tile-mode", "recompute"]) == 0
    assert "recompute" in capsys.readouterr().out
    before = (tmp_path / "x.png").stat().st_mtime_ns
    assert main([*words, "--skip-existing"]) == 0
    assert "skipped" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "x.png").stat().st_mtime_ns == before
    assert main([*words, "--skip-existing", "--overwrite"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_the_mode_is_said_before_anything_is_computed(
    folder, weights, tmp_path, capsys, monkeypatch
):
    def stopped(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("potstill.sr.inference.planes.exact", stopped)
    words = ["sr", "upscale", str(folder / "a.png"), "-o", str(tmp_path / "x.png"), "--tile", "16"]
    assert main([*words, "--model", weights]) == 130
    assert "a.png: mode 'exact' in tiles of 16, about 0.05 GiB" in capsys.readouterr().err


def test_a_result_that_cannot_be_written_is_refused_before_it_is_computed(
    folder, weights, tmp_path, capsys, monkeypatch
):
    import potstill.sr.inference.batch as batch

    monkeypatch.setattr(batch, "upscale", None)
    monkeypatch.setattr("potstill.sr.images.writing._LARGEST", 20_000)
    words = ["sr", "upscale", str(folder / "a.png"), "-o", str(tmp_path / "x.png"), "--json"]
    assert main([*words, "--model", weights]) == 1
    assert "must stay below 4 GB uncompressed" in capsys.readouterr().out


def test_input_is_never_replaced(folder, weights, capsys):
    before = (folder / "a.png").read_bytes()
    path = str(folder / "a.png")
    words = ["sr", "upscale", path, "-o", path, "--overwrite", "--model", weights, "--json"]
    assert main(words) == 1
    assert "out must differ from the input" in capsys.readouterr().out
    assert (folder / "a.png").read_bytes() == before


def test_target_size(folder, weights, tmp_path):
    words = ["sr", "upscale", str(folder / "a.png"), "--model", weights, "--target"]
    assert main([*words, "100x0", "-o", str(tmp_path / "x.png")]) == 0
    assert read_image(tmp_path / "x.png").color.shape == (80, 100, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "wide"], "target must be WxH"),
        (["--scale", "3"], "scale must be 2 for"),
        (["--backend", "ncnn"], "ncnn"),
        (["--tile", "2"], "tile must be"),
    ],
)
def test_wrong_usage_ends_with_two_or_is_said(folder, weights, tmp_path, capsys, words, message):
    start = ["sr", "upscale", str(folder / "a.png"), "-o", str(tmp_path / "o"), "--model", weights]
    code = main([*start, *words, "--json"])
    said = capsys.readouterr()
    assert code in (1, 2)
    assert message in said.out + said.err


def test_nothing_found_and_one_file_for_many(folder, weights, tmp_path, capsys):
    assert main(["sr", "upscale", str(folder / "*.nef"), "-o", str(tmp_path / "o")]) == 2
    assert "must mean at least one image, got none" in capsys.readouterr().err
    words = ["sr", "upscale", str(folder), "-o", str(tmp_path / "x.png"), "--model", weights]
    assert main(words) == 2
    assert "out must be a folder for 3 inputs" in capsys.readouterr().err


def test_patterns(folder):
    assert [p.name for p in find_inputs([str(folder / "*.png")])] == ["a.png"]
    assert len(find_inputs([str(folder), str(folder / "a.png")])) == 3


def test_interrupted_batch_keeps_what_is_whole(folder, weights, tmp_path, monkeypatch):
    import potstill.sr.inference.batch as batch

    real, calls = batch.upscale, []

    def second_time_interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(batch, "upscale", second_time_interrupted)
    out = tmp_path / "out"
    assert main(["sr", "upscale", str(folder), "-o", str(out), "--model", weights]) == 130
    assert [p.name for p in out.iterdir()] == ["a.png"]
    read_image(out / "a.png")


def test_eval_writes_a_page(folder, weights, tmp_path, capsys):
    (folder / "b.tiff").unlink()
    words = ["sr", "eval", str(folder), "--model", weights, "--out", str(tmp_path / "page")]
    assert main(words) in (0, None)
    said = capsys.readouterr().out
    assert "mean" in said
    assert "bicubic" in said
    assert (tmp_path / "page" / "index.html").exists()


def test_eval_of_several_networks_compares_cost_and_quality(folder, weights, tmp_path, capsys):
    (folder / "b.tiff").unlink()
    words = ["sr", "eval", str(folder), "--model", "potstill-x2", weights]
    assert main([*words, "--out", str(tmp_path / "page")]) in (0, None)
    said = capsys.readouterr().out
    assert "potstill-x2" in said
    assert "tiny" in said
    assert "parameters" in said
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "potstill-x2 is best" in page
    assert "the area of a point is the number of parameters" in page


def test_compare_and_seams(folder, weights, tmp_path):
    for extra, name in (([], "strip.png"), (["--seams", "16"], "seams.png")):
        words = ["sr", "compare", str(folder / "a.png"), "--models", weights, "--size", "24"]
        assert main([*words, "--out", str(tmp_path / name), *extra]) == 0
        image = np.asarray(Image.open(tmp_path / name).convert("L"))
        assert image.std() > 20


def test_train_distil_and_export(folder, tmp_path, capsys):
    (folder / "b.tiff").unlink()
    quick = ["--steps", "3", "--batch", "2", "--patch", "8", "--device", "cpu"]
    shape = ["--channels", "8", "--blocks", "1"]
    words = ["sr", "train", str(folder), "--out", str(tmp_path / "t"), *quick, *shape]
    assert main(words) == 0
    teacher = tmp_path / "t" / "imdn-x2.safetensors"
    assert teacher.exists()
    words = ["sr", "distill", str(folder), "--out", str(tmp_path / "d"), "--teacher", str(teacher)]
    assert main([*words, *quick, *shape, "--affinity", "1", "--validate", str(folder)]) == 0
    assert (tmp_path / "d" / "curves.png").exists()
    out = tmp_path / "half.safetensors"
    assert main(["sr", "export", str(teacher), "--out", str(out), "--half"]) == 0
    assert out.stat().st_size < teacher.stat().st_size
    assert main(["sr", "export", str(teacher), "--out", str(tmp_path / "x.pt")]) == 2
    assert "must end in .onnx or .safetensors" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:upscale. this CPU has no bfloat16")
def test_time_says_what_is_missing(weights, capsys, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "openvino" else real(name, *a)
    )
    words = ["sr", "time", "--model", weights, "--size", "16", "--backends", "torch:fp32"]
    assert main([*words, "openvino:bf16"]) in (0, None)
    said = " ".join(capsys.readouterr().out.split())
    assert "torch:fp32" in said
    assert "openvino" in said
