"""A hash grid trained in seconds, and converted to every other kind without an image.

python -m apps.nerf.cuda                            the analytic scene, at 400x400
python -m apps.nerf.cuda --data lego --seconds 10   a Blender scene at its own size
python -m apps.nerf.cuda --view yes                 then opens the viewer
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from apps import card
from potstill.nerf import (
    Field,
    Scene,
    analytic,
    compare,
    convert,
    load_scene,
    make_field,
    prior_of,
    render_image,
    save_field,
    score,
    serve,
    train_field,
)

KINDS = ("vm", "cp", "mlp")


def trained(scene: Scene, seconds: float, steps: int | None) -> tuple[Field, float]:
    """A hash grid, and the seconds that it took."""
    start = time.perf_counter()
    budget = {"steps": steps} if steps else {"seconds": seconds}
    field, _ = train_field(make_field("hash", scene.space), scene, **budget, progress=False)
    return field, time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> Path:
    """Train, convert, compare; returns the page."""
    about = (__doc__ or "").splitlines()[0]
    options = card.options_of(
        about, arguments, data="folder of a scene", seconds="budget of each training (10)",
        view="yes: open the viewer at the end",
    )  # fmt: skip
    size = {"size": 16, "views": 6, "tests": 1} if options.small else {"size": 400, "views": 60}
    scene = load_scene(options.data) if options.data else analytic(**size)
    seconds, steps = float(options.seconds or 10), 4 if options.small else None
    teacher, took = trained(scene, seconds, steps)
    fields, found = {"hash": teacher}, {"hash": (score(teacher, scene.test), took)}
    prior = prior_of(scene.train.cameras, scene.space)
    for kind in KINDS:
        start = time.perf_counter()
        budget = {"steps": steps} if steps else {"seconds": seconds}
        fields[kind], _ = convert(teacher, kind, prior, **budget, progress=False)
        took = time.perf_counter() - start
        found[kind] = (score(fields[kind], scene.test), took)
    for kind, (quality, took) in found.items():
        print(f"{kind}: {quality:.1f} dB on views it has not seen, after {took:.1f} s", flush=True)
    sections, cameras = {}, scene.test.cameras
    for kind, field in fields.items():
        field.to(card.DEVICE)
        save_field(field, options.out / f"{kind}.safetensors")
        title = f"{kind}: {found[kind][0]:.1f} dB after {found[kind][1]:.1f} s"
        sections[title] = card.picture(compare(field, scene.test, options.out / f"{kind}.png"))
    draw = {  # marching in torch is the reference of every backend
        f"{kind}, marched by {backend}": partial(
            render_image, field, cameras, 0, field.space, field.occupancy, backend=backend
        )
        for kind, field in fields.items()
        for backend in ("torch", "auto")
    }
    times = card.turns(draw, rounds=2 if options.small else 5)
    sections["One image"] = card.table(times, "pixels", cameras.height * cameras.width)
    page = card.write(options, "Fields on a GPU", sections)
    if options.view:
        serve(teacher, cameras)
    return page


if __name__ == "__main__":
    main()
