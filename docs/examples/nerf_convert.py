"""A radiance field becomes one of another kind, from poses alone (PVD).

python docs/examples/nerf_convert.py
"""

from potstill.nerf import SpherePrior, convert, load_scene, make_field, pinhole, train_field

scene = load_scene("analytic", downsample=8)
teacher, _ = train_field(make_field("vm", scene.space), scene, steps=15, progress=False)
prior = SpherePrior(pinhole(16, 16, angle=0.76), radius=(3.0, 3.0), elevation=(0.1, 1.2))
for kind in ("cp",):
    student, report = convert(teacher, kind, prior, steps=12, progress=False)
    dB = report.scores["teacher"]
    print(f"vm -> {kind}: {dB:.1f} dB to its teacher, {report.parameters:,} parameters")
