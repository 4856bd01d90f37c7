"""Damage files at random, and say what their readers do.

python tools/mutate.py --count 10000 [--seed 0] [reader ...]

Every input must be read, or refused by an error of ours that names it, within 5 s and 2 GiB. The
readers run in a forked child with these limits, so that a crash, a hang or a memory bomb is counted
and the rest goes on.
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

Make = Callable[[Path], Path]
Read = Callable[[Path], Any]


def readers() -> dict[str, tuple[Make, Read]]:
    """By name: what writes a whole input below a folder and returns its path, and what reads it."""
    import numpy as np
    import torch
    from PIL import Image
    from torch import nn
    from torch_geometric.data import Data

    from potstill.core import TeacherCache
    from potstill.core.command import dump
    from potstill.core.command import load as load_config
    from potstill.core.images import ImageSet
    from potstill.core.store import checkpoint
    from potstill.graph import MLPStudent, check_logits
    from potstill.graph.mirage import DistilledDataset
    from potstill.mae import Pretrain
    from potstill.nerf import HashConfig, Space, load_field, load_scene, make_field, save_field
    from potstill.sr import IMDN, load_model, read_image, save_model

    teacher, items = nn.Linear(3, 4), [torch.ones(3) * i for i in range(6)]

    def cache(folder: Path) -> Path:
        TeacherCache.write(folder / "cache", teacher, items, progress=False)
        return folder / "cache"

    def point(folder: Path) -> Path:
        checkpoint.save(folder / "points", 3, {"a": torch.ones(4), "b": [1, {"c": "d"}, None]})
        return folder / "points"

    def student(folder: Path) -> Path:
        MLPStudent(4, 8, 2, 3).save_pretrained(folder / "student")
        return folder / "student"

    def picture(folder: Path) -> Path:
        Image.effect_noise((24, 20), 80).convert("RGB").save(folder / "picture.png")
        return folder / "picture.png"

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

    def weights(folder: Path) -> Path:
        save_model(IMDN(2, channels=8, blocks=1), folder / "weights.safetensors")
        return folder / "weights.safetensors"

    def config(folder: Path) -> Path:
        return dump(Pretrain(Path("run")), folder / "config.yaml")

    return {
        "core.cache": (cache, lambda path: TeacherCache.open(path, teacher=teacher, dataset=items)),
        "core.checkpoint": (
            point, lambda path: (found := checkpoint.newest(path)) and checkpoint.load(found)
        ),
        "core.config": (config, lambda path: load_config(Pretrain, path)),
        "core.images": (pictures, lambda path: ImageSet(path)[0]),
        "core.pretrained": (student, MLPStudent.from_pretrained),
        "graph.distilled": (distilled, DistilledDataset.load),
        "graph.logits": (logits, lambda path: check_logits(path, 5, 3)),
        "nerf.colmap": (colmap, lambda path: load_scene(path, layout="colmap")),
        "nerf.field": (field, load_field),
        "nerf.transforms": (transforms, lambda path: load_scene(path, layout="transforms")),
        "sr.image": (picture, read_image),
        "sr.weights": (weights, load_model),
    }  # fmt: skip


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, doubled, inserted, or a word or number replaced."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, size = rng.randrange(len(content) + 1), rng.choice((1, 2, 4, 8, 100))
        match rng.randrange(6):
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
    return content


def verdict(read: Read, path: Path) -> str:
    """What the reader makes of it."""
    from potstill.core import PotstillError

    signal.setitimer(signal.ITIMER_REAL, SECONDS)
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
        signal.setitimer(signal.ITIMER_REAL, 0)


def _child(name: str, first: int, count: int, seed: int, said: Any) -> None:
    def late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    make, read = readers()[name]
    with tempfile.TemporaryDirectory() as home:
        whole = make(Path(home))
        files = sorted(p for p in ([whole] if whole.is_file() else whole.rglob("*")) if p.is_file())
        kept = {path: path.read_bytes() for path in files}
        if (found := verdict(read, whole)) != "read":
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
    return {**row, "faults": faults[:5]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", help="all by default")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    bad = 0
    for name in options.readers or readers():
        row = mutate(name, options.count, options.seed)
        faults = row.pop("faults")
        print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
        print(*(f"    {fault[:200]}" for fault in faults), sep="\n" if faults else "", flush=True)
        bad += len(faults)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
