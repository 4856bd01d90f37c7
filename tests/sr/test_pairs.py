"""Evaluation on pairs, and on trees of other programs."""

import pytest

from potstill.core.command.cli import main
from potstill.core.errors import DataError
from potstill.sr import Picture, imresize, write_image
from potstill.sr.evaluation import evaluate, find_pairs, find_set


@pytest.fixture
def tree(tmp_path, photograph):
    """Originals in GTmod4, their halves in LRbicx2, quarters in named/."""
    for name in ("a", "b"):
        image = photograph if name == "a" else photograph[::-1].copy()
        write_image(Picture(image), tmp_path / "My" / "GTmod4" / f"{name}.png")
        write_image(Picture(imresize(image, 1 / 2)), tmp_path / "My" / "LRbicx2" / f"{name}.png")
        write_image(Picture(imresize(image, 1 / 4)), tmp_path / "named" / f"{name}x4.png")
    return tmp_path / "My"


def test_pairs_are_found_and_give_what_the_originals_give(tree, tiny):
    pairs = find_pairs(tree, 2)
    assert [path.parent.name for path in pairs.lows] == ["LRbicx2"] * 2
    by_pairs = evaluate(tiny, pairs.originals, lows=pairs.lows)
    for found, expected in zip(by_pairs, evaluate(tiny, find_set(tree)), strict=True):
        assert (found.name, found.ours, found.bicubic) == expected[:3]
    assert find_pairs(tree, 4).lows is None
    named = find_pairs(tree, 4, lr=tree.parent / "named", pattern="GTmod4/a*")
    assert [path.name for path in named.originals + named.lows] == ["a.png", "ax4.png"]


def test_what_does_not_fit_is_named(tree, tiny, photograph):
    with pytest.raises(DataError, match="ax4.png must be a.png reduced by 2, got 15 x 12 for 60 x"):
        evaluate(tiny, find_pairs(tree, 2).originals[:1],
                 lows=find_pairs(tree, 4, lr=tree.parent / "named").lows[:1])  # fmt: skip
    with pytest.raises(DataError, match="must have files like '.*jpg', got none"):
        find_pairs(tree, 2, pattern="*.jpg")
    write_image(Picture(photograph), tree / "GTmod4" / "c.png")
    with pytest.raises(DataError, match="must have one image for c.png, got 0"):
        find_pairs(tree, 2)


def test_a_mistyped_path_is_never_another_set(tmp_path, photograph, monkeypatch):
    write_image(Picture(photograph), tmp_path / "data" / "sr" / "Set5" / "a.png")
    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path / "data"))
    assert [path.name for path in find_set("Set5")] == ["a.png"]
    with pytest.raises(DataError, match="no such folder: .*typo/Set5; check the path"):
        find_set(tmp_path / "typo" / "Set5")


def test_the_command(tree, capsys):
    low = str(tree / "LRbicx2")
    assert main(["sr", "eval", "--gt", str(tree), "--lr", low, "--glob", "GTmod4/b*"]) in (0, None)
    said = capsys.readouterr().out
    assert "My x2" in said
    assert main(["sr", "eval", "Set5", "--gt", str(tree)]) == 2
