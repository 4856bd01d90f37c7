"""The main job of each domain on a GPU: ``python -m tests.devices.jobs graph``.

It is the pretended one where there is no other. The data start on the CPU, as a user's do, and
results are used as the READMEs use them. Prints what every training step waits for.
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tests.devices.syncs import any_gpu, counted  # first: it changes what the others import

warnings.simplefilter("ignore")


def core() -> None:
    """A step waits twice, for its values and for the norm, however many micro-batches it has."""
    import torch.nn.functional as F
    from torch import nn

    from potstill.core import Distiller, Mean, Objective, fit
    from tests.devices.pretend import waits

    class Several(Distiller):
        def forward(self, batch, step):
            x, y, mask = batch
            z, t = self.student(x), self.teacher(x)
            return self.objective(
                step, task=(z, y), weighted=(z, y), hint=(z, t), masked=(z, t, mask)
            )

    def masked(z, t, mask):
        return Mean(((z - t).square().mean(1) * mask).sum(), mask.sum())

    weighted = nn.CrossEntropyLoss(torch.tensor([0.5, 1.0, 0.0, 2.0]))
    terms = {"task": F.cross_entropy, "weighted": weighted, "hint": F.mse_loss}
    objective = Objective({k: (1.0, v) for k, v in {**terms, "masked": masked}.items()})
    y = torch.tensor([0, 1, 3, -100, 1, 0])
    batch = torch.randn(6, 5), y, torch.tensor([1.0, 0, 1, 1, 0, 1])

    def count(steps: int, micros: int) -> int:
        waits.clear()
        distiller = Several(nn.Linear(5, 4), objective, nn.Linear(5, 4))
        fit(distiller, [batch], steps=steps, accumulate=micros, clip=1.0, progress=False)
        return waits.total()

    for micros in (1, 4):
        more, before = count(5, micros), count(3, micros)
        assert more - before == 2 * 2, (micros, more - before, waits)


def graph() -> None:
    from potstill.graph import Recipe, load
    from potstill.graph.analysis import compare, diagnose

    data, recipe = load("digits"), Recipe(epochs=3)
    compared = compare(lambda seed: data, recipe, ("glnn", "ff-g2m"), [0], hold_out_rate=0.2)
    compared.report("digits")
    diagnose(data, recipe, ("glnn",), every=2)
    student = compared.best("ff-g2m").model
    assert data.x.device.type == "cpu" == student.predict(data.x[:5]).device.type


def mirage() -> None:
    from torch_geometric.data import Data

    from potstill.graph.mirage import auc, distill, train_classifier

    rng = torch.Generator().manual_seed(0)
    graphs = [
        Data(
            x=torch.eye(3)[torch.randint(0, 3, (6,), generator=rng)],
            edge_index=torch.randint(0, 6, (2, 12), generator=rng),
            y=torch.tensor([k % 2]),
        )
        for k in range(12)
    ]
    model = train_classifier(distill(graphs, 1, graphs_per_class=2), graphs, layers=1, steps=2)
    assert 0 <= auc(model, graphs) <= 1


def sr() -> None:
    from dataclasses import replace

    import numpy as np

    from potstill.sr import IMDN, TRAINING, Terms, degrade, train, upscale
    from potstill.sr.backends import runners

    if not torch.cuda.is_available():
        from tests.devices.pretend import GPU

        runners.resolve_device = lambda name: GPU  # which asks CUDA itself
    photograph = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    student, teacher = IMDN(2, 16, 2, "bicubic"), IMDN(2, 16, 3, "bicubic")
    terms = Terms(output=1.0, affinity=0.1, wavelet=0.1, contrastive=0.1)
    training = replace(TRAINING, steps=4, batch=2)

    def score(network: IMDN) -> float:
        return float(upscale(photograph[:16, :16], network, backend="torch").image.mean())

    options = {"terms": terms, "teacher": teacher, "score": score, "validate_every": 2}
    train(student, degrade([photograph], 2), training, **options, progress=False)
    for mode in ("exact", "recompute", "gates", "independent"):
        assert upscale(photograph, student, backend="torch", tile=32, tile_mode=mode).mode == mode


def mae() -> None:
    import timm

    from potstill.core import fit
    from potstill.mae import (
        MaskedAutoencoder,
        MaskedToMasked,
        RandomMasking,
        adamw,
        block_similarity,
        features_of,
        linear_probe,
        patch_errors,
        step_times,
    )

    options = {"img_size": 32, "patch_size": 8, "depth": 4, "num_classes": 0}
    teacher = timm.create_model("vit_tiny_patch16_224", **options)
    student = timm.create_model("vit_tiny_patch16_224", embed_dim=96, **options)
    student = MaskedAutoencoder(student, {"depth": 1, "width": 64}, fixed_positions=True)
    distiller = MaskedToMasked(student, teacher, masking=RandomMasking(0.75), layers=0.75)
    batches = [torch.randn(4, 3, 32, 32) for _ in range(2)]
    fit(distiller, batches, steps=2, optimizer=adamw(), progress=False)
    patch_errors(distiller, batches[0])
    step_times({"one": distiller}, batches[0], repeats=1)
    block_similarity(distiller.student.encoder, distiller.teacher.model, batches, at_least=1)
    labels = torch.arange(4) % 2
    features = features_of(distiller.export_student(), [(batches[0], labels)])[0]
    linear_probe(features, labels, features, labels, epochs=1, progress=False)
    with TemporaryDirectory() as name:
        run_mae_jobs(Path(name))


def run_mae_jobs(folder: Path) -> None:
    from PIL import Image

    from potstill.core import Training
    from potstill.mae import (
        Data,
        Decoder,
        Encoder,
        Finetune,
        Pretrain,
        Probe,
        finetune,
        pretrain,
        probe,
    )

    for number in range(8):
        path = folder / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (30 * number, 0, 0)).save(path)
    images = str(folder / "images")
    data, training = (
        Data(images, images, resident=True),
        Training(steps=2, batch=4, optimizer="adamw"),
    )
    small = Encoder("vit_tiny_patch16_224", image_size=16, patch_size=4, width=16, depth=2, heads=2)
    before = folder / "before"
    decoder = Decoder(depth=1, width=16, heads=2)
    pretrain(
        Pretrain(before, student=small, decoder=decoder, data=data, training=training),
        progress=False,
    )
    after = Finetune(folder / "after", init=str(before), data=data, training=training)
    finetune(after, progress=False)
    probe(Probe(str(before), data=data, neighbors=2, epochs=1), progress=False)


def acm() -> None:
    import timm

    from potstill.acm import (
        acmize,
        calibrate,
        costs,
        distill,
        finetune,
        predict,
        pretrain_gates,
        profile,
    )

    teacher = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2)
    images = [torch.randn(4, 3, 32, 32) for _ in range(2)]
    labelled = [(batch, torch.zeros(4, dtype=torch.long)) for batch in images]
    model = acmize(teacher)
    distill(model, teacher, images, steps=2, progress=False)
    pretrain_gates(model, teacher, images, steps=2, progress=False)
    finetune(model, labelled, steps=2, budget=0.5, progress=False)
    calibrate(model, images, budget=0.5)
    costs(model, images[0][:1])
    predict(model, labelled)
    profile(model, images, dense=teacher, blocks=1)


def nerf() -> None:
    from potstill.nerf import (
        HashConfig,
        SpherePrior,
        VMConfig,
        convert,
        export_points,
        load_scene,
        make_field,
        pinhole,
        train_field,
    )
    from potstill.nerf import score as quality

    scene = load_scene("analytic", downsample=10)
    fields = {}
    sizes = {
        "hash": HashConfig(levels=4, log2_rows=10, base=4, finest=24, hidden=16),
        "vm": VMConfig(resolution=12, density=2, color=4, hidden=16),
    }
    for kind in sizes:  # a grid is trained below
        field = make_field(kind, scene.space, sizes[kind], occupancy=16)
        fields[kind], _ = train_field(field, scene, steps=3, progress=False)
    quality(fields["hash"], scene.test)
    with TemporaryDirectory() as folder:
        export_points(fields["hash"], Path(folder, "points.ply"), count=100)
    camera = pinhole(12, 12, angle=0.76)
    prior = SpherePrior(camera, radius=(3.0, 3.0), elevation=(0.1, 1.2))
    for kind in ("cp", "grid"):
        convert(fields["hash"], kind, prior, steps=4, progress=False)


def flow() -> None:
    """Every kind of term: maps, a critic with its head, nodes, experts, several students."""
    from potstill.core import Training
    from potstill.flow import (
        CriticConfig,
        Data,
        Items,
        StudentConfig,
        TeacherConfig,
        TrainTeacher,
        distill,
        load_teacher,
        ring,
    )

    points, modes = ring(3).draw(64, torch.Generator().manual_seed(0))
    data, training = Data(Items(points, modes), ("a", "b", "c")), Training(steps=2, batch=8)
    critic = CriticConfig(updates=1, pairs=8, pair_steps=1, nodes=2, node_steps=1, interval=1)
    with TemporaryDirectory() as name:
        folder, options = Path(name), {"training": training, "critic": critic, "progress": False}
        config = TeacherConfig(
            out=folder / "teacher", network="points", widths=(8,), training=training
        )  # fmt: skip
        TrainTeacher(config, data).run(progress=False)
        teacher = load_teacher(folder / "teacher" / "teacher", guidance=2.0)
        for method in ("boot", "freeflow", "dmd", "dmd2", "disback", "phased"):
            parts = StudentConfig(students=2 if method == "boot" else 1)
            real = {"data": data, "check": False} if method == "dmd2" else {}
            distill(
                teacher, method, out=folder / method, student=parts, **options, **real
            ).sample(5)  # fmt: skip


def search() -> None:
    from potstill.core import Training, fit
    from potstill.core.engine import resolve_device
    from potstill.core.images import Images
    from potstill.search import (
        Budget,
        Elastic,
        ElasticSandwich,
        SmallResNet,
        image_task,
        measure_costs,
        resnet,
        suggest,
    )

    labels = torch.arange(24) % 3
    pixels = torch.randint(0, 256, (24, 3, 8, 8)).byte()
    images = Images(pixels, labels, tuple(map(str, labels)), ("a", "b", "c"))
    teacher, space = SmallResNet((1, 1), 8, 3), resnet(3, depth=((1, 1),), width=(2, 4))
    measure_costs(space, (1, 3, 8, 8))
    with TemporaryDirectory() as folder:
        task = image_task(
            teacher, images, images, folder=folder, batch=8, device=resolve_device("auto")
        )
        training = Training(steps=2)
        for score in ("parameters", "synflow", "diswot_relation"):
            options = {"score": score, "shortlist": 2, "training": training}
            suggest(space, task, Budget(macs=1e9), **options)
        elastic = Elastic(space)
        fit(ElasticSandwich(elastic, 2, delay=0.0, teacher=teacher), images.draws(8), steps=2,
            progress=False)  # fmt: skip
        task.accuracy(elastic.extract(elastic.least, task.calibration))


JOBS: dict[str, Callable[[], None]] = {
    job.__name__: job for job in (core, graph, mirage, sr, mae, acm, nerf, flow, search)
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with any_gpu() as device, counted(device) as syncs:
        for name in sys.argv[1:] or JOBS:
            JOBS[name]()
    for distiller, places in syncs.each_step().items():
        print(f"{distiller}: {dict(places) or 'waits for nothing'}")
