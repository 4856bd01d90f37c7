"""Fragments of the page."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image


def pictures(html: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")) for text in found
    ]


def test_a_film_holds_its_frames_side_by_side():
    from apps.tour.widgets import film

    frames = [np.full((2, 3, 3), value) for value in (0.0, 0.5, 1.0)]
    html = film({"a": frames, "b": frames[::-1]}, ["x", 'y "2"', "z"], slider="s", caption="<c>")
    a, b = pictures(html)
    assert a.shape == (2, 9, 3)
    assert a[0, ::3, 0].tolist() == [0, 128, 255]
    assert b[0, ::3, 0].tolist() == [255, 128, 0]
    assert "--count: 3" in html
    assert 'max="2"' in html
    assert "&lt;c&gt;" in html
    assert "button" not in html


def test_a_wipe_shows_both():
    from apps.tour.widgets import wipe

    after, before = pictures(wipe(np.zeros((2, 2, 3)), np.ones((2, 2, 3)), ("a", "b"), "c"))
    assert (after.mean(), before.mean()) == (255, 0)


@pytest.mark.parametrize(("count", "shape"), [(4, (5, 5, 3)), (3, (5, 5, 3)), (2, (2, 5, 3))])
def test_a_sheet_has_white_between_its_pictures(count, shape):
    from apps.tour.widgets import sheet

    out = sheet(np.zeros((count, 2, 2, 3), np.uint8), 2)
    assert out.shape == shape
    assert out.dtype == np.uint8
    assert (out == 0).sum() == count * 12
    assert (out[:, 2] == 255).all()
