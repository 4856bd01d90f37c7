"""The table of the gallery of condensed sets."""

from types import SimpleNamespace


def test_what_brings_nothing_is_said_in_bold():
    from apps.condense.gallery import compared

    arms = {"random": [70.0, 72.0], "all images": [98.0, 98.0]}
    found = {
        n: SimpleNamespace(accuracies={"net": {"condensed": [own, own], **arms}})
        for n, own in ((1, 90.0), (10, 69.0))
    }
    html = compared(found)
    assert ">+19.0</td>" in html
    assert 'best">-2.0: brings nothing</td>' in html
    assert "&lt;" not in html


def test_benchmarks_for_a_gpu_say_that_there_is_none(monkeypatch):
    import benchmarks.condense.gpu  # noqa: F401
    from potstill.core.measure.bench import registered, run

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    entries = [entry for entry in registered("condense") if entry.device == "cuda"]
    assert len(entries) == 6
    for entry in entries:
        result = run(entry, quick=True)
        assert (result.status, entry.targets != {}) == ("skipped", True)
        assert "no CUDA device" in result.reason


def test_the_loop_over_classes_has_the_same_loss():
    from benchmarks.condense.speed import step_pair

    for attention in (False, True):
        pair = step_pair(attention)
        pair.check(pair.ours(), pair.baseline())
