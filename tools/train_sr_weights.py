"""Train the weights that come with potstill-sr, on free photographs only.

    pip install scikit-image scikit-learn
    python tools/train_sr_weights.py --scale 2 --out runs/sr
    python tools/train_sr_weights.py --scale 3 --out runs/sr      # starts from x2
    python tools/train_sr_weights.py --scale 4 --out runs/sr

An interrupted command goes on where it was. The result is ``potstill-x<scale>.safetensors``, half
precision, under 0.5 MB; ``--install`` copies it into the package. No image of Set5, Set14 or any
other benchmark is read.
"""

import argparse
import hashlib
import importlib.util
from dataclasses import replace
from importlib import resources
from pathlib import Path

import torch

from potstill.core import DataError, Run, count_parameters, seed_all
from potstill.sr import (
    IMDN,
    TRAINING,
    degrade,
    imresize,
    load_model,
    read_image,
    save_model,
    train,
    warm_start,
)

# Photographs in the wheels of scikit-image and scikit-learn whose documentation says that they are
# in the public domain (PD), CC0, or CC BY 2.0. First 12 digits of the sha256 of each file.
PHOTOGRAPHS = {
    "skimage/data/astronaut.png": "PD, NASA",
    "skimage/data/brick.png": "CC0, cc0textures.com",
    "skimage/data/camera.png": "CC0, Lav Varshney",
    "skimage/data/chelsea.png": "CC0, Stefan van der Walt",
    "skimage/data/coffee.png": "CC0, Rachel Michetti",
    "skimage/data/grass.png": "CC0, linolafett",
    "skimage/data/gravel.png": "CC0, cc0textures.com",
    "skimage/data/hubble_deep_field.jpg": "PD, NASA",
    "skimage/data/rocket.jpg": "PD, SpaceX",
    "sklearn/datasets/images/china.jpg": "CC BY 2.0, danielbuechele",
    "sklearn/datasets/images/flower.jpg": "CC BY 2.0, vultilion",
}
ZOOMS = (1.0, 0.7, 0.5)
STEPS = {2: 9_000, 3: 3_000, 4: 3_000}
RATES = {2: 4e-3, 3: 2e-3, 4: 2e-3}  # x3 and x4 start from x2


def locate(relative: str) -> Path:
    package, _, rest = relative.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise DataError(
            f"train_sr_weights: {relative} must be installed, got no package {package}; pip "
            "install scikit-image scikit-learn"
        )
    return Path(spec.origin).parent / rest


def photographs() -> tuple[list, str]:
    """All photographs as bytes, JPEGs halved to lose their artefacts; and a digest of the files."""
    images, digest = [], hashlib.sha256()
    for name in PHOTOGRAPHS:
        path = locate(name)
        digest.update(path.read_bytes())
        image = read_image(path).rgb8()
        images.append(imresize(image, 0.5) if path.suffix == ".jpg" else image)
    return images, digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/sr"))
    parser.add_argument("--steps", type=int, default=None, help="default: what was shipped")
    parser.add_argument("--lr", type=float, default=None)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--install", action="store_true", help="copy into the package")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    images, digest = photographs()
    seed_all("weights", options.scale)
    model = IMDN(options.scale, channels=32, blocks=4, global_skip="bicubic")
    torch.nn.init.zeros_(model.upsampler.weight)  # so that it starts as bicubic
    if options.scale > 2:
        warm_start(model, load_model(options.out / "potstill-x2.safetensors"))
    training = replace(
        TRAINING,
        steps=options.steps or STEPS[options.scale],
        lr=options.lr or RATES[options.scale],
        precision=options.precision,
        device="cpu",
    )
    pairs = degrade(images, options.scale, ZOOMS)
    run = Run(options.out / f"x{options.scale}", keep=2)
    train(model, pairs, training, run=run, progress=f"x{options.scale}")
    name = f"potstill-x{options.scale}.safetensors"
    about = {
        "licence": "Apache-2.0",
        "data": "; ".join(f"{Path(k).name} ({v})" for k, v in PHOTOGRAPHS.items()),
        "data_sha256": digest,
        "recipe": f"tools/train_sr_weights.py, {training.steps} steps, seed {training.seed}",
    }
    path = save_model(model, options.out / name, dtype=torch.float16, **about)
    print(f"{path}: {count_parameters(model):,} parameters, {path.stat().st_size:,} bytes")
    if options.install:
        target = Path(str(resources.files("potstill.sr"))) / "pretrained" / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())


if __name__ == "__main__":
    main()
