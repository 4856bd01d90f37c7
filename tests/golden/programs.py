"""The distillers that ship, twenty steps each on tiny models and data.

Each program goes the way that a user goes, with the options of its domain, and gives the rows of
its training. The ones in float64 mean the same on every machine; where a domain computes in
float32, so does its program.
"""

import json
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

# All names of potstill that are needed, so that a move of modules changes these lines alone.
from potstill import acm, audit, condense, flow, graph, mae, nerf, quant, search, sr
from potstill.core import (
    Distiller,
    Objective,
    Stage,
    Training,
    Validation,
    accuracy,
    common_draws,
    cosine,
    decay,
    fit,
    schemes,
)
from potstill.core.criteria import RatioNet, dkd, kd
from potstill.core.schemes import (
    LogitDistiller,
    MixupDistiller,
    SnapshotDistiller,
    TalkingDistiller,
    TrilateralFusion,
    UnlabeledDistiller,
    multi_source,
    mutual,
    similarity_weights,
)
from potstill.flow import video
from potstill.graph.mirage import distill as mirage
from potstill.graph.mirage import train_classifier
from potstill.graph.training import GraphStore, distill_in_batches
from potstill.nerf import RATES

STEPS = 20
QUIET = {"steps": STEPS, "progress": False}


class Program(NamedTuple):
    run: Callable[[], list[dict[str, float]] | None]
    distiller: str  # name of the class
    dtype: torch.dtype


PROGRAMS: dict[str, Program] = {}


def program(distiller, dtype=torch.float32):
    """Register a function under its name; it returns rows, or None to have them watched."""

    def register(run):
        PROGRAMS[run.__name__] = Program(run, distiller, dtype)
        return run

    return register


def curve(name):
    """One row a step, without times."""
    return observe(name)[0]


def observe(name):
    """The curve, and the keys of what a checkpoint holds, by class of distiller."""
    run, _, dtype = PROGRAMS[name]
    watched, keys = [], {}

    def note(module, arguments, losses):
        if isinstance(module, Distiller):
            terms = {name: float(value) for name, value in losses.terms.items()}
            watched.append(
                {"step": float(len(watched)), "loss": float(losses.total.detach()), **terms}
            )
            keys[type(module).__name__] = list(module.state_dict())

    before = torch.get_default_dtype(), torch.get_num_threads()
    handle = nn.modules.module.register_module_forward_hook(note)
    torch.set_default_dtype(dtype)
    torch.set_num_threads(1)  # the order of sums is part of the printed digits
    torch.manual_seed(0)
    try:
        rows = run() or watched
    finally:
        handle.remove()
        torch.set_default_dtype(before[0])
        torch.set_num_threads(before[1])
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows], keys


# --- core: every scheme, and what `fit` can do ----------------------------------------------------


def mlp(classes=4, width=12):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, classes))


def labelled(batches=3, size=16):
    return [(torch.randn(size, 6), torch.randint(4, (size,))) for _ in range(batches)]


def terms(**more):
    return Objective(task=(0.3, F.cross_entropy), kd=(0.7, partial(kd, T=2.0)), **more)


@program("LogitDistiller", torch.float64)
def core_logits():
    data = labelled()
    x, y = data[0]
    return fit(
        LogitDistiller(mlp(), terms(dkd=(decay(0.2, 0.9), dkd)), teacher=mlp(width=24)),
        data,
        schedule=cosine(warmup=0.2),
        accumulate=2,
        clip=0.5,
        ema=0.9,
        validation=Validation(lambda student: accuracy(student(x), y), every=5),
        **QUIET,
    )


@program("LogitDistiller", torch.float64)
def core_stages():
    first = Objective(kd=(1.0, kd))
    stages = [
        Stage(steps=8, objective=first, trainable=["student.3.*"], lr=1e-2, schedule=cosine()),
        Stage(steps=12),
    ]
    return fit(
        LogitDistiller(mlp(), terms(), teacher=mlp(width=24)),
        [(x, y, 3 * torch.randn(16, 4)) for x, y in labelled()],
        stages=stages,
        **QUIET,
    )


@program("MixupDistiller", torch.float64)
def core_mixup():
    soft = Objective(task=(0.5, F.cross_entropy), kd=(0.5, lambda s, t, y: kd(s, t)))
    distiller = MixupDistiller(mlp(), soft, teacher=mlp(), num_classes=4, alpha=0.8, share=0.5)
    return fit(distiller, labelled(), **QUIET)


@program("MutualDistiller", torch.float64)
def core_mutual():
    peers = [mlp(), mlp(width=8), mlp(width=16)]
    return fit(mutual(peers, partial(kd, T=1.0), weight=decay(1.0, 0.95)), labelled(), **QUIET)


@program("SnapshotDistiller", torch.float64)
def core_snapshots():
    return fit(SnapshotDistiller(mlp(), terms(), k=2, every=3), labelled(), **QUIET)


@program("UnlabeledDistiller", torch.float64)
def core_unlabeled():
    distiller = UnlabeledDistiller(mlp(), Objective(kd=(1.0, kd)), teacher=mlp(width=24))
    return fit(distiller, labelled(), **QUIET)


@program("TalkingDistiller", torch.float64)
def core_talking():
    student, teacher = mlp(), mlp(width=24)
    layers = {"lower": ("1", "1"), "upper": ("3", "3"), "widths": (12, 24, 4, 4)}
    return fit(TalkingDistiller(student, teacher, message=5, **layers), labelled(), **QUIET)


@program("ArmDistiller", torch.float64)
def audit_arm():
    shape, x = (1, 4, 4), torch.rand(16, 1, 4, 4)
    student, teacher = (audit.Network(shape, 4, widths, "cnn") for widths in ((4, 6), (5, 8)))
    batches = [(x, torch.randint(4, (16,)))]
    return fit(audit.ArmDistiller(student, teacher, "hint", x), batches, **QUIET)


@program("Inversion", torch.float64)
def audit_inversion():
    audit.invert(audit.Network((1, 4, 4), 5, (8,)), torch.rand(6, 1, 4, 4), classes=5, **QUIET)


class Heads(nn.Module):
    def __init__(self, **heads):
        super().__init__()
        self.trunk = nn.Linear(6, 8)
        self.heads = nn.ModuleDict({name: nn.Linear(8, n) for name, n in heads.items()})

    def forward(self, x):
        h = self.trunk(x).relu()
        return {name: head(h) for name, head in self.heads.items()}


@program("MultiSourceDistiller", torch.float64)
def core_sources():
    weights = similarity_weights({"birds": 0.8, "cars": 0.2, "far": -0.1}, power=2.0)
    sources = {"birds": mlp(5), "cars": mlp(3), "far": mlp(2)}
    distiller = multi_source(Heads(task=4, birds=5, cars=3, far=2), sources, weights)
    return fit(distiller, [(x, y, torch.randn(8, 6)) for x, y in labelled()], **QUIET)


@program("TrilateralFusion", torch.float64)
def core_fusion():
    distiller = TrilateralFusion(mlp(), mlp(width=24), RatioNet(36), inner_lr=0.1)
    return fit(distiller, list(zip(labelled(), labelled(), strict=True)), **QUIET)


# --- graph ----------------------------------------------------------------------------------------

RECIPE = graph.Recipe(hidden=16, epochs=STEPS)


def nodes():
    """40 nodes of 3 classes, 8 of them without labels, and logits of a teacher."""
    y = torch.arange(40) % 3
    edges = torch.randint(40, (2, 90))
    edges = to_undirected(edges[:, edges[0] != edges[1]], num_nodes=40)
    part = torch.arange(40) // 8
    masks = {"train_mask": part < 2, "val_mask": part == 2, "test_mask": part == 3}
    data = Data(x=torch.randn(40, 8) + y[:, None], edge_index=edges, y=y, **masks)
    return graph.check_graph(data), 2 * torch.randn(40, 3) + F.one_hot(y)


def distilled(method):
    data, z = nodes()
    return graph.distill(data, z, RECIPE, method).history


@program("Supervised")
def graph_teacher():
    return graph.train_teacher(nodes()[0], RECIPE).history


@program("GraphToMLP")
def graph_ff_g2m():
    return distilled("ff-g2m")


@program("GraphToMLP")
def graph_krd():
    return distilled("krd-entropy")


@program("GraphToMLP")
def graph_hgmd():
    return distilled("hgmd-weight")


@program("BatchesToMLP")
def graph_batches():
    data, z = nodes()
    store = GraphStore.make(data.x, data.edge_index, z, data.y, data.train_mask)
    sizes = {"nodes": 16, "edges": 24, "labelled": 8}
    return distill_in_batches(store, RECIPE, **sizes, **QUIET)[1]


@program("_Classification")
def graph_mirage():
    graphs = []
    for label in torch.arange(12) % 2:
        edges = to_undirected(torch.randint(6, (2, 7 + int(label))), num_nodes=6)
        x = F.one_hot(torch.randint(3 - int(label), (6,)), 3).float()
        graphs.append(Data(x=x, edge_index=edges, y=label[None]))
    small = mirage(graphs, hops=2, graphs_per_class=3)
    train_classifier(small, graphs, hidden=8, steps=STEPS, batch_size=8)


# --- nerf -----------------------------------------------------------------------------------------

SIZES = {
    "hash": nerf.HashConfig(levels=4, log2_rows=10, base=4, finest=24, hidden=16),
    "mlp": nerf.MLPConfig(depth=2, width=16, skip=1, bands=4, hidden=16),
    "vm": nerf.VMConfig(resolution=12, density=2, color=4, hidden=16),
    "grid": nerf.GridConfig(resolution=16, degree=1),
}


def scene():
    return nerf.analytic(size=16, views=6, tests=1, steps=32)


def field_of(kind):
    return nerf.make_field(kind, scene().space, SIZES[kind], occupancy=12)


def trained(kind, **options):
    sizes = {"samples": 600, "rays": 256}
    return nerf.train_field(field_of(kind), scene(), **sizes, **options, **QUIET)[1]


@program("ImagesToField")
def nerf_hash():
    return trained("hash", distortion=2e-3)


@program("ImagesToField")
def nerf_vm():
    return trained("vm", variation=1e-3)


@program("ImagesToField")
def nerf_mlp():
    return trained("mlp", background="black", every=10)


@program("ImagesToField")
def nerf_grid():
    return trained("grid")


def known():
    """A teacher that needs no training, and where it is looked at from."""
    teacher = field_of("hash")
    with torch.no_grad():
        for values in teacher.parameters():
            values.add_(0.2 * torch.randn_like(values))
    teacher.refresh(torch.Generator().manual_seed(0), everywhere=True)
    return teacher, nerf.prior_of(scene().train.cameras, scene().space)


@program("FieldToField")
def nerf_convert():
    teacher, prior = known()
    schedule = nerf.Progression(
        feature_until=0.2, points_until=0.5, sparsity=1e-2, feature_decay=0.9
    )
    sizes = {"config": SIZES["vm"], "samples": 600, "rays": 256}
    return nerf.convert(teacher, "vm", prior, schedule, **sizes, **QUIET)[1].rows


@program("FieldToField")
def nerf_pools():
    teacher, prior = known()
    student = nerf.student_of(teacher, "mlp", SIZES["mlp"])
    nerf.transfer(teacher, student)
    sets = {"views": 10, "steps": 4}
    schedule = nerf.Progression(feature_until=0.0, points_until=0.1, pools=True)
    return fit(
        nerf.FieldToField(student, teacher, schedule, samples=600, prior=prior, **sets),
        nerf.VirtualRays(prior, 256, **sets),
        lr=RATES["mlp"],
        optimizer=nerf.RowAdam,
        schedule=cosine(final=0.02, warmup=0.01),
        **QUIET,
    )


# --- mae ------------------------------------------------------------------------------------------


def encoder(width, depth):
    shape = {"image_size": 16, "patch_size": 4, "width": width, "depth": depth}
    return mae.Encoder("vit_tiny_patch16_224", heads=2, **shape)


@contextmanager
def pictures():
    """A folder with 16 small images of two classes below ``images``."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for k in range(16):
            path = folder / "images" / "ab"[k % 2] / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
        yield folder


def training_of(**options):
    known = {"batch": 8, "optimizer": "adamw", "weight_decay": 0.05, "warmup": 0.2, "device": "cpu"}
    return Training(**known, **options)


def rows_in(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@program("MaskedToMasked")
def mae_pretrain():
    with pictures() as folder:
        teacher = mae.Student(encoder(24, 4), mae.Decoder(depth=0), fixed_positions=False)
        teacher.save_pretrained(folder / "teacher")
        config = mae.Pretrain(
            folder / "run",
            student=encoder(16, 2),
            decoder=mae.Decoder(depth=1, width=16, heads=2),
            align=mae.Align(norm="l2"),
            teacher=mae.Teacher(str(folder / "teacher")),
            data=mae.Data(str(folder / "images"), resident=True),
            normalize_pixels=True,
            training=training_of(epochs=STEPS, accumulate=2, ema=0.9, final=0.0),
            lr_per_256=5e-2,
        )
        mae.pretrain(config, progress=False)
        return rows_in(folder / "run")


@program("MaskedToMasked", torch.float64)
def mae_align():
    vits = [timm.create_model(e.name, **e.options()) for e in (encoder(16, 4), encoder(24, 4))]
    student = mae.MaskedAutoencoder(vits[0], decoder=None, fixed_positions=True)
    teacher = mae.MaskedViT(vits[1]).prune(2)
    distance = mae.FeatureDistance("l1", "l2")
    options = {"layers": [(1, 2), (2, 2)], "projector": "mlp", "distance": distance}
    return fit(
        mae.MaskedToMasked(student, teacher, masking=mae.BlockMasking(0.5, 2), **options),
        [torch.randn(4, 3, 16, 16) for _ in range(3)],
        optimizer=mae.adamw(),
        schedule=cosine(warmup=0.2),
        clip=1.0,
        **QUIET,
    )


@program("MapToMasked", torch.float64)
def mae_map():
    vit = timm.create_model(encoder(24, 4).name, **encoder(24, 4).options())
    student = timm.create_model("test_resnet", num_classes=0)
    return fit(
        mae.MapToMasked(student, vit, masking=mae.BlockMasking(0.5, 2)),
        [torch.randn(4, 3, 16, 16) for _ in range(3)],
        **QUIET,
    )


@program("Classification")
def mae_finetune():
    with pictures() as folder:
        config = mae.Finetune(
            folder / "run",
            encoder=encoder(16, 2),
            data=mae.Data(str(folder / "images"), resident=True),
            training=training_of(epochs=10, final=0.1),
            lr_per_256=0.3,
            layer_decay=0.75,
        )
        mae.finetune(config, progress=False)
        return rows_in(folder / "run")


@program("_Linear", torch.float64)
def mae_probe():
    features, labels = torch.randn(32, 8), torch.arange(32) % 4
    part = (features, labels)
    mae.linear_probe(*part, *part, epochs=STEPS // 2, batch_size=16, progress=False)


# --- sr -------------------------------------------------------------------------------------------


def upscaled(**weights):
    rng = np.random.default_rng(0)
    pairs = sr.degrade([rng.integers(0, 256, (24, 32, 3), dtype=np.uint8) for _ in range(3)], 2)
    student = sr.IMDN(2, channels=8, blocks=2, global_skip="bicubic")
    teacher = sr.IMDN(2, channels=12, blocks=4)
    training = replace(sr.TRAINING, steps=STEPS, batch=4, device="cpu", ema=0.9)
    options = {"terms": sr.Terms(**weights), "teacher": teacher, "patch": 8}
    return sr.train(student, pairs, training, **options, progress=False)


@program("UpscalerToUpscaler")
def sr_output():
    return upscaled(output=0.5)


@program("UpscalerToUpscaler")
def sr_all_terms():
    return upscaled(task=0.5, output=0.5, affinity=10.0, wavelet=0.1, contrastive=0.01)


# --- acm ------------------------------------------------------------------------------------------


def vit():
    """A small model, lively everywhere (timm starts heads and biases at zero), and batches."""
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, global_pool="avg", **shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, [(torch.randn(6, 3, 16, 16), torch.randint(5, (6,))) for _ in range(3)]


@program("ModuleDistillation", torch.float64)
def acm_distill():
    model, batches = vit()
    adaptive = acm.acmize(model, ("mlp", "qkvo"), layers=[1])
    return acm.distill(adaptive, model, batches, distance="huber", boosted=True, **QUIET)


@program("GatePretraining", torch.float64)
def acm_gates():
    model, batches = vit()
    return acm.pretrain_gates(acm.acmize(model), model, batches, threshold=0.9, **QUIET)


@program("EndToEnd")
def acm_finetune():
    model, batches = vit()
    adaptive = acm.acmize(model)
    adaptive.acm_phases = ("distill", "gate")
    with torch.no_grad():  # gates that choose differently for different tokens
        for module in acm.acms(adaptive).values():
            module.gate.choose.weight.normal_(std=2.0)
            module.gate.choose.bias.normal_(std=0.1)
    return acm.finetune(adaptive, batches, budget=0.4, lr=1e-3, **QUIET)


@program("Shrinking", torch.float64)
def acm_shrinking():
    model, batches = vit()
    return fit(acm.Shrinking(acm.acmize(model), STEPS, delay=0.3), batches, **QUIET)


@program("LogitDistiller", torch.float64)
def quant_distill():
    """What `potstill quant distill` does: steps of GPTQ, then weights and steps with a teacher."""
    data = labelled()
    start = quant.post_training(mlp(), quant.Grid(4), [x for x, _ in data], method="gptq").student
    return fit(LogitDistiller(start, terms(), mlp(width=16)), data, lr=1e-2, **QUIET)


@program("ModuleToModule", torch.float64)
def quant_reconstruct():
    inputs = [x for x, _ in labelled()]
    quant.reconstruct(mlp(), quant.Grid(4), inputs, steps=STEPS)


# --- condense -------------------------------------------------------------------------------------


def images():
    """Six images of each of two classes."""
    pixels, labels = torch.rand(12, 3, 8, 8), torch.arange(2).repeat_interleave(6)
    return condense.Pool(pixels, labels, ("a", "b"), ((0.5,) * 3, (0.25,) * 3))


def fresh(norm="instance"):
    return condense.make_network(f"convnet-2-4-{norm}", 2, (3, 8, 8))


def synthetic(pool, **more):
    rows = torch.tensor([0, 1, 6, 7])
    return condense.SyntheticImages(pool.normalized(rows), pool.labels[rows], **more)


@program("DistributionMatching", torch.float64)
def condense_dm():
    pool = images()
    distiller = condense.DistributionMatching(synthetic(pool), fresh())
    return fit(distiller, condense.EqualClasses(pool, 4), lr=0.1, **QUIET)


@program("AttentionMatching", torch.float64)
def condense_datadam():
    pool = images()
    distiller = condense.AttentionMatching(synthetic(pool), fresh("batch"))
    return fit(distiller, condense.EqualClasses(pool, 4), lr=0.1, **QUIET)


@program("TrajectoryMatching", torch.float64)
def condense_datm():
    pool, network = images(), fresh()
    size = sum(parameter.numel() for parameter in network.parameters())
    start = 0.3 * torch.randn(size)
    pair = start, start + 0.03 * torch.randn(size)
    student = synthetic(pool, lr=0.05, logits=torch.randn(4, 2))
    distiller = condense.TrajectoryMatching(student, network, steps=3, batch=4)
    return fit(distiller, [pair], lr=0.1, **QUIET)


@program("Recovery", torch.float64)
def condense_recovery():
    pool = images()
    distiller = condense.Recovery(synthetic(pool), fresh("batch"), pool)
    return fit(distiller, [torch.zeros(1)], lr=0.1, **QUIET)


@program("Learner", torch.float64)
def condense_learner():
    pool = images()
    samples = condense.Samples(pool, pool.labels, 6)
    return fit(condense.Learner(fresh(), condense.Siamese()), samples, lr=0.1, **QUIET)


@program("Expert", torch.float64)
def condense_expert():
    pool = images()
    samples = condense.Samples(pool, pool.labels, 6)
    expert = condense.Expert(
        fresh(), condense.Siamese(), STEPS // 2, 2, condense.Flatness(), torch.float32
    )
    return fit(expert, samples, lr=0.1, **QUIET)


# --- flow -----------------------------------------------------------------------------------------


def points(pairs=False):
    """Points of three modes on a ring as data, with noise that they came from for pairs."""
    values, _ = modes().model.draw(64, torch.Generator().manual_seed(0))
    items = flow.Items(values)
    ends = items._replace(noise=values.flip(0)) if pairs else None
    return flow.Prior((2,), 8, data=items, pairs=ends)


def velocity():
    return flow.Velocity(flow.PointNet(2, 8, 2))


def modes(count=3):
    return flow.Teacher(flow.ring(count).to(torch.get_default_dtype()))


def clips():
    items = flow.Items(
        video.moving_digits(torch.ones(1, 1, 3, 3), 8, 6, 8).to(torch.get_default_dtype())
    )
    return flow.Prior((6, 1, 8, 8), 4, data=items)


@program("OneStep", torch.float64)
def flow_freeflow():
    own, critic_terms = flow.objectives(flow_map=1.0, match=decay(0.3, 0.9))
    student = flow.Student(velocity(), 0.0)
    distiller = flow.OneStep(student, modes(), own, flow.Critic(velocity()), derivative="jvp")
    stages = [flow.players(critic_terms, updates=2)]
    return fit(distiller, points(), lr=1e-2, stages=stages, **QUIET)


@program("OneStep", torch.float64)
def flow_dmd2():
    own, critic_terms = flow.objectives(match=1.0, adversarial=0.1, regression=0.25)
    start = velocity()
    critic = flow.Critic(start.trainable(), flow.bottleneck(start.model))
    nodes = {"nodes": [modes(5)], "interval": 6}
    distiller = flow.OneStep(flow.Student(start), modes(), own, critic, **nodes)
    stages = [flow.players(critic_terms, updates=2)]
    return fit(distiller, points(pairs=True), lr=1e-2, stages=stages, **QUIET)


@program("Phases", torch.float64)
def flow_phased():
    start = velocity()
    student = flow.Phased([start.trainable() for _ in range(2)], (1.0, 0.5))
    distiller = flow.Phases(student, modes(), flow.Critic(start))
    stages = flow.phases(student, updates=2)
    rows = fit(distiller, flow.Prior((2,), 8), lr=1e-2, stages=stages, **QUIET)
    return [{key.replace(" ", "-"): value for key, value in row.items()} for row in rows]


@program("TwinFlow", torch.float64)
def flow_twin():
    twin = flow.Twin(flow.PointNet(3, 8, 2))
    return fit(flow.TwinFlow(twin, {"rectify": 0.5}), points(), lr=1e-2, **QUIET)


@program("Denoising", torch.float64)
def flow_teacher():
    values, labels = torch.randn(64, 2), torch.arange(64) % 3
    source = flow.Prior((2,), 8, data=flow.Items(values + labels[:, None], labels))
    net = flow.Velocity(flow.PointNet(2, 8, 2, classes=3))
    return fit(flow.Denoising(net, drop=0.2, null=3), source, lr=1e-2, **QUIET)


@program("Degrading", torch.float64)
def flow_degrading():
    start = velocity()
    distiller = flow.Degrading(start.trainable(), flow.Student(start))
    return fit(distiller, flow.Prior((2,), 8), lr=1e-2, **QUIET)


@program("ScoreMatching", torch.float64)
def flow_scores():
    return fit(flow.ScoreMatching(velocity(), modes()), points(), lr=1e-2, **QUIET)


@program("Streaming", torch.float64)
def flow_streaming():
    buffers = video.Buffer(2, 2, reference=2), video.Buffer(4, 1, reference=2)
    return fit(video.Streaming(video.ClipNet(1, 8, 1), *buffers), clips(), **QUIET)


@program("Merging", torch.float64)
def flow_merging():
    student, teacher = (video.ClipNet(1, 8, 1) for _ in range(2))
    return fit(
        video.Merging(student, teacher, video.Buffer(2, 2, 4, reference=2)), clips(), **QUIET
    )


@program("MotionConsistency", torch.float64)
def flow_motion():
    teacher = flow.Teacher(video.ClipNet(1, 8, 1), shape=(6, 1, 8, 8))
    student = flow.Student(teacher.trainable(), shape=teacher.shape)
    distiller = video.MotionConsistency(student, teacher, kind="learn")
    return fit(distiller, clips(), **QUIET)


@program("Learning", torch.float64)
def flow_judge():
    items = flow.Items(torch.randn(24, 1, 8, 8), torch.arange(24) % 3)
    source = flow.Prior((1, 8, 8), 8, data=items)
    return fit(flow.Learning(flow.Judge(1, 3, width=8)), source, **QUIET)


# --- search, and the scheme under it --------------------------------------------------------------


def lively(model):
    """Away from the zeros with which timm starts heads and biases."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def vits(**choices):
    return search.vit(3, **{"size": 8, "patch": 4, "heads": (2,), "mlp": (2,), **choices})


def small_images():
    return [(torch.randn(5, 3, 8, 8), torch.randint(3, (5,))) for _ in range(3)]


@program("Sandwich", torch.float64)
def core_sandwich():
    class Sandwich(schemes.Sandwich):  # what a subnet is: the first hidden units
        largest, least = 12, 3

        def run(self, part, x):
            first, last = self.student[0], self.student[-1]
            h = F.linear(x, first.weight[:part], first.bias[:part]).relu()
            return F.linear(h, last.weight[:, :part], last.bias)

        def draw(self):
            return int(torch.randint(3, 13, (), generator=common_draws().generator))

    options = {"delay": 0.2, "warmup": 0.3, "temperature": 2.0, "teacher": mlp(width=24)}
    return fit(Sandwich(mlp(), STEPS, **options), labelled(), **QUIET)


@program("ElasticSandwich", torch.float64)
def search_elastic():
    elastic = search.Elastic(search.resnet(3, depth=((1, 1), (2, 1)), width=(2, 4)))
    return fit(search.ElasticSandwich(elastic, STEPS, delay=0.2), small_images(), **QUIET)


@program("RelationSandwich", torch.float64)
def search_relation_sandwich():
    elastic = lively(search.Elastic(vits(depth=(1, 2), dim=(8, 16), mlp=(1, 2))))
    *_, largest = teachers = vits(depth=(2, 3), dim=(24,))
    teacher = lively(teachers.make(largest))
    distiller = search.RelationSandwich(elastic, STEPS, teacher=teacher)
    return fit(distiller, small_images(), lr=3e-3, **QUIET)


@program("RelationDistiller", torch.float64)
def search_relations():
    space = vits(depth=(1, 2), dim=(8, 16))
    small, *_, large = space
    student, teacher = lively(space.make(small)), lively(space.make(large))
    relation = partial(search.qkv_relation, heads=2)
    objective = Objective(relation=(1.0, relation), kd=(0.5, kd), task=(0.5, F.cross_entropy))
    distiller = search.RelationDistiller(student, teacher, objective=objective)
    return fit(distiller, small_images(), lr=3e-3, **QUIET)


@program("Darts", torch.float64)
def search_darts():
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)
    student = nn.Sequential(nn.Conv2d(3, 2, 1), search.Cell(2, nodes=3), *head)
    halves = list(zip(small_images(), small_images(), strict=True))
    distiller = search.Darts(student, distil=0.5, k=2, every=3)
    return fit(distiller, halves, stages=[search.two_turns(lr=0.1)], **QUIET)
