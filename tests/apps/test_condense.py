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
