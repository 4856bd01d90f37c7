"""Damage files at random, and say what their readers do.

python tools/mutate.py --count 10000 [--seed 0] [--out runs/trust/mutations.json] [reader ...]

Every input must be read, or refused by an error of ours that names it, within 5 s and 2 GiB. The
readers run in a forked child with these limits, so that a crash, a hang or a memory bomb is counted
and the rest goes on.
"""

import argparse
import base64
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workspace import ROOT

SECONDS, BYTES = 5, 2 << 30
SPECIAL = [
    b"",
    b"\x00",
    b"\xff" * 8,
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"[]",
    b"{}",
    b"2" * 30,
    b"\n",
]

WORD = re.compile(rb'-?\d+(\.\d+)?(e-?\d+)?|"[^"\n]{0,80}"|true|false|null')  # of JSON, mostly

Make = Callable[[Path], Path]
Read = Callable[[Path], Any]


def readers() -> dict[str, tuple[Make, Read]]:
    """By name: what writes a whole input below a folder and returns its path, and what reads it."""
    from unittest import mock

    import numpy as np
    import scipy.sparse as sp
    import timm
    import torch
    from PIL import Image
    from torch import nn
    from torch_geometric.data import Data

    from potstill.acm import Activations, acmize, cache_activations, from_pretrained
    from potstill.acm import save_pretrained as save_adaptive
    from potstill.core import Files, TeacherCache
    from potstill.core.command import dump
    from potstill.core.command import load as load_config
    from potstill.core.engine import History, Run
    from potstill.core.images import ImageSet
    from potstill.core.measure.bench import read as read_record
    from potstill.core.store import checkpoint, lock
    from potstill.graph import MLPStudent, check_logits, read_graph
    from potstill.graph import load as load_graph
    from potstill.graph.data import read_features
    from potstill.graph.mirage import DistilledDataset
    from potstill.mae import Pretrain, load_weights, write_weights
    from potstill.mae import load_model as load_transformer
    from potstill.nerf import (
        Conversion,
        HashConfig,
        NearPrior,
        Progression,
        Space,
        load_conversion,
        load_field,
        load_prior,
        load_scene,
        make_field,
        orbit,
        save_field,
    )
    from potstill.quant import Grid, load_lowered, load_packed, lower, save_packed
    from potstill.sr import IMDN, load_model, prepare, read_image, save_model

    teacher, items = nn.Linear(3, 4), [torch.ones(3) * i for i in range(6)]

    def cache(folder: Path) -> Path:
        TeacherCache.write(folder / "cache", teacher, items, progress=False)
        return folder / "cache"

    def sparse(folder: Path) -> Path:
        options: dict[str, Any] = {"kind": "topk", "k": 2, "progress": False}
        TeacherCache.write(folder / "cache", teacher, items, **options)
        return folder / "cache"

    def rows(folder: Path) -> Path:
        lines = [json.dumps({"step": float(i), "loss": 1 / (i + 1)}) for i in range(5)]
        (folder / "history.jsonl").write_text("\n".join(lines) + "\n")
        return folder / "history.jsonl"

    def history(path: Path) -> None:
        kept = History(Run(path.parent), 5)
        list(kept.rows)
        kept.close()

    def point(folder: Path) -> Path:
        checkpoint.save(folder / "points", 3, {"a": torch.ones(4), "b": [1, {"c": "d"}, None]})
        return folder / "points"

    def student(folder: Path) -> Path:
        MLPStudent(4, 8, 2, 3).save_pretrained(folder / "student")
        return folder / "student"

    def sealed(path: Path) -> Any:
        """The manifest is made anew, so that what it seals is read."""
        files = {}
        for file in (path / "state.safetensors", path / "state.json"):
            content = file.read_bytes()
            files[file.name] = {
                "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()
            }  # fmt: skip
        (path / "manifest.json").write_text(json.dumps({"format": 1, "step": 3, "files": files}))
        return checkpoint.load(path)

    def picture(folder: Path, suffix: str = ".png") -> Path:
        Image.effect_noise((24, 20), 80).convert("RGB").save(folder / f"picture{suffix}")
        return folder / f"picture{suffix}"

    def archive(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "files.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for name in ("a/1.txt", "b/2.txt"):
                file.writestr(name, "some text " * 20)
        return folder / "files.zip"

    def unpacked(path: Path) -> Any:
        files = Files(path)
        return [files.read(name) for name in files]

    def zipped(folder: Path) -> Path:
        content = io.BytesIO()
        Image.effect_noise((24, 20), 80).convert("RGB").save(content, "png")
        with zipfile.ZipFile(folder / "pictures.zip", "w") as file:
            file.writestr("a/1.png", content.getvalue())
        return folder / "pictures.zip"

    def pth(folder: Path) -> Path:
        torch.save({"params": IMDN(2, channels=8, blocks=1).state_dict()}, folder / "weights.pth")
        return folder / "weights.pth"

    def pictures(folder: Path) -> Path:
        (folder / "pictures" / "a").mkdir(parents=True)
        picture(folder / "pictures" / "a")
        return folder / "pictures"

    def distilled(folder: Path) -> Path:
        edges = torch.tensor([[0, 1], [1, 0]])
        one = Data(x=torch.ones(2, 3), edge_index=edges, y=torch.tensor([1]),
                   weight=torch.ones(1), root_mask=torch.ones(2, dtype=torch.bool))  # fmt: skip
        DistilledDataset([one, one]).save(folder / "set.npz")
        return folder / "set.npz"

    def logits(folder: Path) -> Path:
        np.save(folder / "logits.npy", np.ones((5, 3), np.float32))
        return folder / "logits.npy"

    ring = np.stack([np.arange(9), (np.arange(9) + 1) % 9])
    nodes = {"x": np.eye(9, 4, dtype=np.float32), "edge_index": ring, "y": np.arange(9) % 3}

    def arrays(folder: Path) -> Path:
        np.savez(folder / "graph.npz", **nodes)
        return folder / "graph.npz"

    def pyg(folder: Path) -> Path:
        tensors = {k: torch.from_numpy(v) for k, v in nodes.items()}
        torch.save(Data(**tensors), folder / "graph.pt")
        return folder / "graph.pt"

    def tables(folder: Path) -> Path:
        (folder / "tables").mkdir()
        rows = [f"n{i},{i},.5,{'abc'[i % 3]}" for i in range(9)]
        (folder / "tables/features.csv").write_text("\n".join(["id,f,g,label", *rows]))
        links = [f"n{a},n{b},1.5" for a, b in ring.T]
        (folder / "tables/edges.csv").write_text("\n".join(["source,target,weight", *links]))
        return folder / "tables"

    def ogb(folder: Path) -> Path:
        (folder / "ogb/raw").mkdir(parents=True)
        for name, rows in (("edge", ring.T), ("node-feat", nodes["x"]), ("node-label", nodes["y"])):
            text = "\n".join(",".join(map(str, np.atleast_1d(row))) for row in rows)
            (folder / f"ogb/raw/{name}.csv.gz").write_bytes(gzip.compress(text.encode()))
        return folder / "ogb"

    def planetoid(folder: Path) -> Path:
        raw = folder / "graph/planetoid/PubMed/raw"
        raw.mkdir(parents=True)
        x = sp.csr_matrix(np.eye(4, dtype=np.float32)[np.arange(510) % 4])
        y, links = np.eye(3)[np.arange(510) % 3], {i: [(i + 1) % 510] for i in range(510)}
        parts = {"x": x[:3], "tx": x[507:], "allx": x[:507]}
        parts |= {"y": y[:3], "ty": y[507:], "ally": y[:507]}
        for name, part in {**parts, "graph": links}.items():
            content = pickle.dumps(part, 3)  # with the names of old
            content = content.replace(b"numpy._core", b"numpy.core").replace(b"._csr", b".csr")
            (raw / f"ind.pubmed.{name}").write_bytes(content)
        (raw / "ind.pubmed.test.index").write_text("507\n508\n509\n")
        return raw

    def stored(folder: Path) -> Path:
        (folder / "graph/heterophilous_small").mkdir(parents=True)
        turn = np.arange(9) % 3 == np.arange(3)[:, None]
        masks = {f"{m}_masks": np.roll(turn, i, 0) for i, m in enumerate(("train", "val", "test"))}
        path = folder / "graph/heterophilous_small/texas.npz"
        np.savez(path, node_features=nodes["x"], node_labels=nodes["y"], edges=ring.T, **masks)
        return path

    def shop(folder: Path) -> Path:
        path = folder / "graph/cpf/cora.npz"
        path.parent.mkdir(parents=True)
        adjacency = sp.csr_matrix((np.ones(180), (np.arange(180), np.roll(np.arange(180), 1))))
        both = {"attr": sp.eye(180, 4, format="csr", dtype=np.float32), "adj": adjacency}
        parts = {f"{name}_{key}": getattr(m, key) for name, m in both.items()
                 for key in ("data", "indices", "indptr", "shape")}  # fmt: skip
        np.savez(path, labels=np.arange(180) % 3, **parts)
        return path

    def below(name: str, up: int) -> Read:
        """The graph of that name below the data root, ``up`` folders above the input."""

        def read(path: Path) -> Any:
            with mock.patch.dict(os.environ, {"POTSTILL_DATA": str(path.parents[up])}):
                return load_graph(name)

        return read

    def record(folder: Path) -> Path:
        with (ROOT / "benchmarks" / "results" / "core.csv").open() as file:
            columns = file.readline().strip().split(",")
        row = dict.fromkeys(columns, "1") | {"benchmark": "kd", "figure": "ratio", "target": ">= 1"}
        lines = [",".join(columns), *[",".join(row.values())] * 3]
        (folder / "core.csv").write_text("\n".join(lines) + "\n")
        return folder / "core.csv"

    def locked(folder: Path) -> Path:
        about = {"host": "a", "process": 2**22 + 1, "began": 1e9, "machine": lock.machine()}
        (folder / "run.lock").write_text(json.dumps(about))
        return folder / "run.lock"

    def take(path: Path) -> None:
        """As where the file system has no locks: the file alone decides."""
        with (
            mock.patch.object(lock.fcntl, "lockf", side_effect=OSError),
            lock.Lock(path.parent),
        ):
            pass

    def conversion(folder: Path) -> Path:
        row = {"step": 1.0, "loss": 0.5, "seconds": 2.0, "teacher": 20.0}
        shown = {"teacher": base64.b64encode(picture(folder).read_bytes()).decode()}
        return Conversion("vm", "cp", Progression(), "wall", [row, row], 0.5, False, 9, 9,
                          {"teacher": 20.0}, [shown]).save(folder / "conversion.json")  # fmt: skip

    def photographs(folder: Path) -> Path:
        picture(folder)
        prepare(folder, 2, folder / "cache")
        return folder / "cache"

    def described(folder: Path) -> Path:
        write_weights(vit, folder / "w.safetensors", "timm")
        (folder / "w.json").write_text(json.dumps({"kwargs": shape, "mean": [0.5] * 3}))
        return folder / "w.json"

    def field(folder: Path) -> Path:
        small = HashConfig(levels=4, log2_rows=9, finest=32)
        space = Space("box", (-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))
        save_field(make_field("hash", space, small, occupancy=8), folder / "field.safetensors")
        return folder / "field.safetensors"

    def photos(folder: Path, count: int) -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"{i}.png" for i in range(count)]
        for name in names:
            Image.new("RGB", (8, 6)).save(folder / name)
        return names

    def transforms(folder: Path) -> Path:
        names = photos(folder / "scene" / "images", 9)
        pose = np.eye(4).tolist()
        frames = [{"file_path": f"images/{n}", "transform_matrix": pose} for n in names]
        about = {"fl_x": 8.0, "fl_y": 8.0, "cx": 4.0, "cy": 3.0, "w": 8, "h": 6, "frames": frames}
        (folder / "scene" / "transforms.json").write_text(json.dumps(about))
        return folder / "scene"

    def colmap(folder: Path) -> Path:
        names = photos(folder / "scene" / "images", 9)
        lines = [f"{i} 1 0 0 0 {i} 0 0 1 {n}\n\n" for i, n in enumerate(names)]
        (folder / "scene" / "cameras.txt").write_text("1 PINHOLE 8 6 8 8 4 3\n")
        (folder / "scene" / "images.txt").write_text("".join(lines))
        return folder / "scene"

    def binary(folder: Path) -> Path:
        names = photos(folder / "scene" / "images", 9)
        lens = struct.pack("<QiiQQ4d", 1, 7, 1, 8, 6, 9.0, 8.0, 4.5, 2.5)
        (folder / "scene" / "cameras.bin").write_bytes(lens)
        views = struct.pack("<Q", len(names))
        for i, name in enumerate(names):
            views += struct.pack("<i7di", i, 1, 0, 0, 0, i, 0, 0, 7) + name.encode() + bytes(9)
        (folder / "scene" / "images.bin").write_bytes(views)
        return folder / "scene"

    def forward(folder: Path) -> Path:
        photos(folder / "scene" / "images_8", 9)
        table = np.zeros((9, 17))
        table[:, :15] = np.array([[0, 1, 0, 0, 48], [-1, 0, 0, 0, 64], [0, 0, 1, 0, 70]]).ravel()
        table[:, 15:] = 1, 9
        np.save(folder / "scene" / "poses_bounds.npy", table)
        return folder / "scene"

    def prior(folder: Path) -> Path:
        NearPrior(orbit(6, 3.0, 20, 10, 0.7)).save(folder / "prior.json")
        return folder / "prior.json"

    plain = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2))

    def packed(folder: Path) -> Path:
        return save_packed(lower(plain, Grid(4), keep={"2": 8}), folder / "packed.safetensors")

    shape = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}
    vit: Any = timm.create_model("vit_tiny_patch16_224", num_classes=2, **shape).eval()
    vit.acm_origin = ("vit_tiny_patch16_224", {"num_classes": 2, **shape})

    def adaptive(folder: Path) -> Path:
        save_adaptive(acmize(vit), folder / "adaptive", budget=0.5)
        return folder / "adaptive"

    def activations(folder: Path) -> Path:
        images = [torch.zeros(2, 3, 16, 16)]
        cache_activations(acmize(vit).eval(), vit, images, folder / "activations")
        return folder / "activations"

    def weights(folder: Path) -> Path:
        save_model(IMDN(2, channels=8, blocks=1), folder / "weights.safetensors")
        return folder / "weights.safetensors"

    def config(folder: Path) -> Path:
        return dump(Pretrain(Path("run")), folder / "config.yaml")

    def toml(folder: Path) -> Path:
        (folder / "config.toml").write_text('out = "run"\n[training]\nlr = 0.1\nsteps = 3\n')
        return folder / "config.toml"

    return {
        "acm.activations": (activations, lambda path: Activations(path)[0]),
        "acm.model": (adaptive, from_pretrained),
        "core.archive": (archive, unpacked),
        "core.cache": (cache, lambda path: TeacherCache.open(path, teacher=teacher, dataset=items)),
        "core.checkpoint": (
            point, lambda path: (found := checkpoint.newest(path)) and checkpoint.load(found)
        ),
        "core.checkpoint.sealed": (lambda folder: point(folder) / "step-000000003", sealed),
        "core.config": (config, lambda path: load_config(Pretrain, path)),
        "core.cache.topk": (
            sparse, lambda path: TeacherCache.open(path, teacher=teacher, dataset=items)
        ),
        "core.config.toml": (toml, lambda path: load_config(Pretrain, path)),
        "core.history": (rows, history),
        "core.lock": (locked, take),
        "core.record": (record, read_record),
        "core.images.zip": (zipped, lambda path: ImageSet(path)[0]),
        "core.images": (pictures, lambda path: ImageSet(path)[0]),
        "core.pretrained": (student, MLPStudent.from_pretrained),
        "graph.distilled": (distilled, DistilledDataset.load),
        "graph.features": (
            lambda folder: tables(folder) / "features.csv", lambda path: read_features(path, 2)
        ),
        "graph.cpf": (shop, below("cpf-cora", 2)),
        "graph.planetoid": (planetoid, below("pubmed", 3)),
        "graph.platonov": (stored, below("texas", 2)),
        "graph.logits": (logits, lambda path: check_logits(path, 5, 3)),
        "graph.npz": (arrays, read_graph),
        "graph.ogb": (ogb, read_graph),
        "graph.pt": (pyg, read_graph),
        "graph.tables": (tables, read_graph),
        "mae.described": (
            described, lambda path: load_transformer(str(path.with_suffix(".safetensors")))
        ),
        "mae.pth": (
            lambda folder: write_weights(vit, folder / "w.pth", "timm"),
            lambda path: load_weights(vit, path),
        ),
        "mae.safetensors": (
            lambda folder: write_weights(vit, folder / "w.safetensors", "timm"),
            lambda path: load_weights(vit, path),
        ),
        "nerf.colmap": (colmap, lambda path: load_scene(path, layout="colmap")),
        "nerf.colmap.bin": (binary, lambda path: load_scene(path, layout="colmap")),
        "nerf.conversion": (conversion, load_conversion),
        "nerf.field": (field, load_field),
        "nerf.llff": (forward, lambda path: load_scene(path, layout="llff")),
        "nerf.prior": (prior, load_prior),
        "nerf.transforms": (transforms, lambda path: load_scene(path, layout="transforms")),
        "quant.lowered": (packed, lambda path: load_lowered(plain, path)),
        "quant.packed": (packed, lambda path: load_packed(plain, path)),
        "sr.cache": (photographs, lambda path: prepare(path.parent, 2, path)),
        "sr.image": (picture, read_image),
        "sr.image.gif": (lambda folder: picture(folder, ".gif"), read_image),
        "sr.image.jpg": (lambda folder: picture(folder, ".jpg"), read_image),
        "sr.image.tiff": (lambda folder: picture(folder, ".tiff"), read_image),
        "sr.pth": (pth, load_model),
        "sr.weights": (weights, load_model),
    }  # fmt: skip


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, doubled, inserted, or a word, number or length replaced."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, size = rng.randrange(len(content) + 1), rng.choice((1, 2, 4, 8, 100))
        match rng.randrange(9):
            case 0:
                flipped = bytes(b ^ (1 << rng.randrange(8)) for b in content[at : at + size])
                content = content[:at] + flipped + content[at + size :]
            case 1:
                content = content[:at]
            case 2:
                content = content[:at] + content[at : at + size] + content[at:]
            case 3:
                content = content[:at] + rng.randbytes(size) + content[at:]
            case 4:
                content = content[:at] + rng.choice(SPECIAL) + content[at + size :]
            case 5:
                content = content[:at] + content[at + size :]
            case 6:  # a length in a header
                number = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1))
                at, size = rng.randrange(min(len(content), 256) + 1), rng.choice((2, 4, 8))
                packed = struct.pack("<Q", number)[:size]
                content = content[:at] + packed + content[at + size :]
            case _ if words := list(WORD.finditer(content[:8192])):
                word = rng.choice(words)
                put = rng.choice([*SPECIAL, b'""', b"[" * 20_000])
                content = content[: word.start()] + put + content[word.end() :]
    return content


def verdict(read: Read, path: Path) -> str:
    """What the reader makes of it."""
    from potstill.core import PotstillError

    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of this process: the machine may be busy
    signal.setitimer(signal.ITIMER_REAL, 12 * SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(path)
        return "read"
    except PotstillError as error:
        named = path.name in str(error) or path.parent.name in str(error)
        return "refused" if named else f"nameless: {type(error).__name__}: {error}"
    except TimeoutError:
        return "slow"
    except Exception as error:
        return f"foreign: {type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _child(name: str, first: int, count: int, seed: int, said: Any) -> None:
    def late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.signal(signal.SIGPROF, late)
    make, read = readers()[name]
    with tempfile.TemporaryDirectory() as home:
        whole = make(Path(home))
        files = sorted(p for p in ([whole] if whole.is_file() else whole.rglob("*")) if p.is_file())
        kept = {path: path.read_bytes() for path in files}
        if (found := verdict(read, whole)) != "read":
            read(whole)
            raise SystemExit(f"{name}: a whole input must be read, got {found}")
        sys.stderr = io.StringIO()  # decoders write to it
        # Now, when everything is imported.
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + BYTES, now + BYTES))
        for number in range(first, count):
            rng = random.Random(f"{seed} {name} {number}")
            path = rng.choice(files)
            path.write_bytes(damaged(kept[path], rng))
            said.send((number, verdict(read, whole)))
            shutil.rmtree(whole, ignore_errors=True)
            for path, content in kept.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    said.send(None)


def mutate(name: str, count: int, seed: int = 0) -> dict[str, Any]:
    """Counts of what a reader did with ``count`` damaged inputs, and the first faults by text."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    first, context = 0, multiprocessing.get_context("fork")
    while first < count:
        mine, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(name, first, count, seed, theirs))
        child.start()
        theirs.close()
        try:
            while (told := mine.recv()) is not None:
                number, found = told
                kind = found.partition(":")[0]
                counts[kind] += 1
                if kind not in ("read", "refused"):
                    faults.append(f"{number}: {found}")
                first = number + 1
            first = count
        except EOFError:  # it died
            child.join()
            if not (child.exitcode or 0) < 0:
                raise RuntimeError(f"{name}: the child ended with code {child.exitcode}") from None
            counts["crash"] += 1
            faults.append(f"{first}: crash by signal {-child.exitcode}")
            first += 1
        finally:
            child.join()
    kinds = ("read", "refused", "nameless", "foreign", "slow", "crash")
    row = {"reader": name, "inputs": count, **{kind: counts[kind] for kind in kinds}}
    first_ones = [f for kind in kinds for f in [x for x in faults if f": {kind}" in x][:3]]
    return {**row, "faults": first_ones}


def keep(path: Path, row: dict[str, Any]) -> None:
    """Put the row among those of the other readers."""
    rows = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(sorted({**rows, row["reader"]: row}.items())), indent=1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", help="all by default")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON that keeps the last row of each reader")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    bad = 0
    for name in options.readers or readers():
        row = mutate(name, options.count, options.seed)
        if options.out:
            keep(options.out, row)
        faults = row.pop("faults")
        print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
        print(*(f"    {fault[:200]}" for fault in faults), sep="\n" if faults else "", flush=True)
        bad += len(faults)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
