"""The tour as a newcomer sees it: run, then opened in a real browser."""

import csv
import re

import numpy as np
import pytest

ORDER = ("sr", "nerf", "graph", "mae", "acm")


@pytest.fixture(scope="module")
def made(run_app, tmp_path_factory):
    """The folder of a quick tour."""
    out = tmp_path_factory.mktemp("tour")
    done = run_app("apps.tour", "--quick", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr
    return out


@pytest.mark.slow  # trains and times a teacher and a student in each of five domains
def test_all_domains_are_in_the_table(made):
    with (made / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"].partition(":")[0] for row in rows] == [
        f"{name} {role}" for name in ORDER for role in ("teacher", "student")
    ]
    for teacher, student in zip(rows[::2], rows[1::2], strict=True):
        for row in (teacher, student):
            assert float(row["quality"].split()[0]) > 0, row
            assert all(float(row[key]) > 0 for key in ("parameters", "MACs", "time")), row
        # not the parameters: an adaptive student is its teacher, re-cut, and the gates
        assert float(student["MACs"]) < float(teacher["MACs"])
        assert float(student["speed-up"]) > 0
        assert student["commit"] is not None
    assert {path.name for path in made.iterdir() if path.is_dir()} == set(ORDER)


@pytest.mark.slow  # as above
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_chromium(made, browser, width, dark):
    browser.open(made / "index.html", width, 900, dark)
    assert browser.errors() == []
    paper = browser.script("return getComputedStyle(document.body).backgroundColor")
    brightness = np.mean([int(v) for v in re.findall(r"\d+", paper)[:3]])
    assert (brightness < 64) == dark
    # nothing but tables and code scrolls sideways
    assert browser.script("return document.documentElement.scrollWidth") <= width
    assert browser.script(
        "return [...document.images].every(i => i.complete && i.naturalWidth > 0 && i.width > 40)"
    )
    assert browser.script("return document.images.length") >= 10
    assert browser.script("return document.querySelectorAll('svg').length") >= 4
    assert np.asarray(browser.screenshot().convert("L")).std() > 20

    # every slider moves what it belongs to
    wipes = browser.script("return document.querySelectorAll('.wipe').length")
    assert wipes == 1
    clip = browser.script(
        "const s = document.querySelector('.wipe input'); s.value = 80;"
        "s.dispatchEvent(new Event('input'));"
        "return getComputedStyle(document.querySelector('.wipe .before')).clipPath"
    )
    assert "20%" in clip, clip
    films = browser.script("return document.querySelectorAll('.film').length")
    assert films == 3
    for number in range(films):
        place = f"document.querySelectorAll('.film')[{number}]"
        before, after = browser.script(
            f"""const film = {place}, slider = film.querySelector('input');
            const state = () => [film.querySelector('output').value,
              getComputedStyle(film.querySelector('.pane img')).transform];
            const go = (at) => {{ slider.value = at; slider.dispatchEvent(new Event('input')); }};
            go(slider.min); const first = state(); go(slider.max); return [first, state()];"""
        )
        assert before[0] != after[0]
        assert before[1] != after[1]
    assert browser.errors() == []


@pytest.mark.slow  # as above
def test_the_pictures_hold_something(made, browser):
    browser.open(made / "index.html", 1280, 900, dark=False)
    spreads = browser.script(
        """return [...document.images].map((image) => {
          const canvas = document.createElement('canvas'), context = canvas.getContext('2d');
          canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
          context.drawImage(image, 0, 0);
          const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
          let low = 255, high = 0;
          for (let i = 0; i < data.length; i += 4) {
            low = Math.min(low, data[i]); high = Math.max(high, data[i]);
          }
          return [image.alt, high - low];
        })"""
    )
    assert all(spread > 30 for _, spread in spreads), spreads


@pytest.mark.slow  # as above
def test_the_orbit_plays(made, browser):
    browser.open(made / "index.html", 1280, 900, dark=False)
    button = "document.querySelector('.film button')"
    script = f"""
        const done = arguments[0], button = {button};
        const slider = button.parentElement.querySelector("input"), start = slider.value;
        button.click();
        const look = setInterval(() => {{
          if (slider.value === start) return;
          clearInterval(look);
          button.click();
          done(true);
        }}, 20);"""
    assert browser.ask("POST", "/execute/async", {"script": script, "args": []})  # or a time-out
    assert browser.script(f"return {button}.ariaLabel") == "play"
