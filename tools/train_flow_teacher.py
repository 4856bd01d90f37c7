"""Train the teacher that comes with potstill-flow: `load_teacher("digits")`.

    pip install scikit-learn
    python tools/train_flow_teacher.py --install

A class-conditional flow teacher of 8x8 digits, a UNet of diffusers of about 150,000 parameters, on
1,297 of the 1,797 images of scikit-learn's digits (E. Alpaydin and C. Kaynak, UCI, CC BY 4.0); the
other 500 are there to judge by: `load_data("digits").split(1297 / 1797)`. An interrupted command
goes on where it was.
"""

import argparse
from importlib import resources
from pathlib import Path

import torch

from potstill.core import Training, count_parameters
from potstill.flow import TeacherConfig, TrainTeacher, load_data, load_teacher, save_teacher


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/flow"))
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--install", action="store_true", help="copy into the package")
    options = parser.parse_args()

    torch.set_num_threads(1)  # other threads add in another order
    train, _ = load_data("digits").split(1297 / 1797)
    training = Training(
        steps=options.steps, batch=64, lr=2e-3, final=0.0, ema=0.999, device="cpu",
        checkpoint_minutes=0.5,
    )  # fmt: skip
    config = TeacherConfig(out=options.out / "run", widths=(16, 32), training=training)
    TrainTeacher(config, train).run(progress="teacher")
    teacher = load_teacher(options.out / "run" / "teacher")
    teacher.half()
    target = options.out / "digits"
    if options.install:
        target = Path(str(resources.files("potstill.flow"))) / "pretrained" / "digits"
    save_teacher(
        teacher, target, licence="Apache-2.0",
        data="1,297 of scikit-learn's digits, UCI optdigits, CC BY 4.0",
        recipe=f"tools/train_flow_teacher.py, {training.steps} steps, seed {training.seed}",
    )  # fmt: skip
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {count_parameters(teacher):,} parameters, {size:,} bytes")


if __name__ == "__main__":
    main()
