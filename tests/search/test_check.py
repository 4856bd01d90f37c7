"""Agreement of scores with accuracies, on toys and on the real tables."""

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from potstill.core import ConfigError, DataError, count_parameters
from potstill.core.store import root
from potstill.core.testing import requires_data
from potstill.search import Space, agreement, check_table, pareto, read_table, resnet, timm_model


def naive_tau(s: list[float], y: list[float]) -> float:
    pairs = [
        (np.sign(s[i] - s[j]), np.sign(y[i] - y[j])) for i, j in combinations(range(len(s)), 2)
    ]
    a, b = sum(p[0] != 0 for p in pairs), sum(p[1] != 0 for p in pairs)
    return float(sum(p[0] * p[1] for p in pairs) / math.sqrt(a * b))


def test_tau_is_kendalls_with_ties() -> None:
    rng = np.random.default_rng(0)
    s, y = rng.integers(5, size=20).tolist(), rng.normal(size=20).tolist()
    [row] = agreement({"s": s}, y)
    assert math.isclose(row.tau, naive_tau(s, y), rel_tol=1e-12)
    assert row.low < row.tau < row.high
    assert not row.few


def test_regret_is_what_the_choice_costs_also_under_a_budget() -> None:
    truth, score, cost = [60, 70, 65, 80], [1, 3, 2, 0], [1, 2, 3, 4]
    [row] = agreement({"s": score}, truth, cost=cost)
    assert row.regret == 10
    assert row.regrets == (0, 0, 0)  # within the quantiles 1.75, 2.5 and 3.25
    assert row.few


def test_a_random_score_has_the_deviation_of_independence() -> None:
    rng, count, draws = np.random.default_rng(1), 30, 200
    scores = {str(i): rng.normal(size=count).tolist() for i in range(draws)}
    taus = np.array([row.tau for row in agreement(scores, list(range(count)), resamples=1)])
    sd = math.sqrt(2 * (2 * count + 5) / (9 * count * (count - 1)))
    assert abs(taus.mean()) < 4 * sd / math.sqrt(draws)
    assert abs(taus.std() - sd) < 4 * sd / math.sqrt(2 * draws)


def test_values_that_are_not_finite_are_left_out_and_constants_have_no_tau() -> None:
    rows = agreement({"s": [1, 2, math.nan, 3], "same": [1, 1, 1, 1]}, [1, 2, 9, 3])
    assert [(row.name, row.count) for row in rows] == [("s", 3), ("same", 4)]
    assert rows[0].tau == 1
    assert math.isnan(rows[1].tau)
    with pytest.raises(ConfigError, match="s must have 2 values like truth, got 1"):
        agreement({"s": [1]}, [1, 2])


def test_the_front_is_what_no_other_point_beats() -> None:
    rng = np.random.default_rng(2)
    points = [(int(a), int(b)) for a, b in rng.integers(12, size=(60, 2))]
    free = [
        p for p in points
        if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)
    ]  # fmt: skip
    assert sorted(points[i] for i in pareto(points)) == sorted(free)


def test_a_table_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(
        json.dumps([{"arch": {"width": 4}, "top1": 60}, {"arch": {"width": 8}, "top1": 70}])
    )
    assert read_table(path)[1]["width"] == 8
    report = check_table(path, "top1", space=Space(resnet_of_width, {"width": (4, 8)}))
    assert {"width", "parameters", "macs", "random"} <= {
        r.split("|")[1].strip() for r in report.markdown().splitlines()
    }
    small = Space(resnet_of_width, {"width": (4, 8)})
    assert "synflow" in check_table(path, "top1", ["synflow"], space=small).markdown()
    with pytest.raises(DataError, match=r"no column 'top5'; did you mean 'top1'"):
        check_table(path, "top5")
    path.write_text("[]")
    with pytest.raises(DataError, match=r"t\.json"):
        read_table(path)
    with pytest.raises(DataError, match=r"none\.json"):
        read_table(tmp_path / "none.json")


def resnet_of_width(width: int):
    return resnet(10, depth=((1,), (2,)), width=(width,)).make({"depth": (1,), "width": width})


# --- real tables of distilled accuracies, as published ---------------------------------------


def taus(report) -> dict[str, float]:
    rows = [[cell.strip() for cell in row.split("|")] for row in report.markdown().splitlines()[2:]]
    return {row[1]: float(row[2]) for row in rows if len(row) > 2}


@requires_data("search/s1_cifar100_resnets.json")
def test_parameters_rank_the_residual_networks_of_diswot() -> None:
    space = resnet(100, depth=((1, 1, 1), (7, 7, 7)), width=(16,))
    space = Space(space.build, {"depth": space.choices["depth"]}, {"width": 16, "num_classes": 100})
    found = check_table(root() / "search/s1_cifar100_resnets.json", "distilled", space=space)
    tau = taus(found)
    assert (tau["parameters"], tau["macs"], tau["vanilla"]) == pytest.approx(
        (0.873, 0.657, 0.836), abs=5e-4
    )


@requires_data("search/gt_pit.json")
def test_parameters_rank_pooling_vision_transformers() -> None:
    def size(base_dim, mlp_ratio, depth, num_heads, **_):
        net = timm_model(
            "pit_ti_224", num_classes=0, img_size=32, base_dims=[base_dim] * 3, depth=depth,
            heads=num_heads, mlp_ratio=mlp_ratio, device="meta",
        )  # fmt: skip
        return count_parameters(net)

    rows = read_table(root() / "search/gt_pit.json")
    sizes = [size(**row["arch"]) for row in rows]
    found = [
        agreement({"size": sizes}, [row[f"{name}_kd_acc"] for row in rows], resamples=2)[0].tau
        for name in ("c100", "flower", "chaoyang")
    ]
    assert found == pytest.approx([0.818, 0.863, 0.564], abs=5e-4)  # without the head, at 32 pixels


@requires_data("search/gt_autoformer.json")
def test_vanilla_accuracy_ranks_students_backwards_on_autoformer() -> None:
    path = root() / "search/gt_autoformer.json"
    tau = taus(check_table(path, "c100_kd_acc", ["c100_base_acc", "depth"]))
    assert tau["c100_base_acc"] == pytest.approx(-0.266, abs=6e-4)
    assert tau["depth"] == pytest.approx(0.67, abs=5e-3)
