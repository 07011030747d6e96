"""The labelling page: what is asked about, in which order, and that people can label and hand the file on."""

import base64
import json
import re
import struct
import zlib
from collections import Counter

import numpy as np
import pytest

from robustbench_inv.errors import BadParameter, BadResults
from robustbench_inv.reporting.labelling import (
    LabelSelection,
    choose_tasks,
    write_label_page,
)
from robustbench_inv.results.human_labels import read_labels
from robustbench_inv.results.pixels import pixel_digest, png_uri, to_pixels


def pictures(n, *, changed=None):
    """Clean images of n samples, all different, and ones that are brighter where ``changed``."""
    clean = np.zeros((n, 1, 4, 4), np.float32)
    clean[:, 0, 0, 0] = np.arange(n) / 255
    shown = clean.copy()
    shown[list(range(n) if changed is None else changed), 0, 3] = 1.0
    return {"samples": np.arange(n), "clean": clean, "adversarial": shown}


def labelled(writer, record, n=30, changed=None, **about):
    records = [record(i, label=i % 10) for i in range(n)]
    named = {"attack": "metamer", "goal": "keep-decision", "epsilons": [], "shape": [1, 4, 4]}
    return writer.cell(records, **{**named, "images": pictures(n, changed=changed), **about})


@pytest.fixture
def run(writer, record):
    return labelled(writer, record, changed=range(5, 30)).finish()


def test_every_changed_image_is_asked_about_once(run):
    trials, classes = choose_tasks([run], LabelSelection(catch=7))
    asked = [t for t in trials if t.known is None]
    assert classes == 10
    assert sorted(t.sample for t in asked) == list(range(5, 30))
    assert len({t.image for t in trials}) == len(trials) == 32
    shown = to_pixels(pictures(30, changed=range(5, 30))["adversarial"], (0.0, 1.0))
    assert {t.image for t in asked} == {pixel_digest(image) for image in shown[5:]}
    assert [t.sample for t in trials] != sorted(t.sample for t in trials)


def test_catch_trials_are_clean_and_of_every_class(run):
    trials, _ = choose_tasks([run], LabelSelection(catch=20))
    known = [t for t in trials if t.known is not None]
    assert set(Counter(t.known for t in known).values()) == {2}
    assert all(t.known == t.sample % 10 for t in known)
    clean = to_pixels(pictures(30)["clean"], (0.0, 1.0))
    assert {t.image for t in known} <= {pixel_digest(image) for image in clean}
    assert not [t for t in choose_tasks([run], LabelSelection(catch=0))[0] if t.known is not None]


def test_the_seed_decides_and_a_draw_is_part_of_the_whole(run):
    first, again, other = (choose_tasks([run], LabelSelection(seed=s))[0] for s in (0, 0, 1))
    assert first == again != other
    few, _ = choose_tasks([run], LabelSelection(images=6, catch=0))
    assert len(few) == 6
    assert {t.image for t in few} <= {t.image for t in first}


def test_cells_that_show_the_same_are_asked_about_once(writer, record):
    run = labelled(labelled(writer, record), record, model="mnist-vib").finish()
    assert len(choose_tasks([run], LabelSelection(catch=0))[0]) == 30
    trials, _ = choose_tasks([run], LabelSelection(("mnist-vib",), catch=0))
    vib = next(c for c in json.loads((run / "plan.json").read_text())["cells"] if c["model"] == "mnist-vib")  # fmt: skip
    assert {t.cell for t in trials} == {vib["digest"]}
    for pattern in ("metamer on mnist-v*", vib["digest"][:10], "*vib"):
        assert choose_tasks([run], LabelSelection((pattern,), catch=0))[0] == trials


@pytest.mark.parametrize(
    ("about", "choice", "says"),
    [
        ({"images": None}, LabelSelection(), "no images to label, got 'none were kept'"),
        ({}, LabelSelection(("none",)), "no cell like"),
        ({"changed": ()}, LabelSelection(), "no changed images"),
        ({"shape": [16]}, LabelSelection(), "no images to label"),
        ({"classes": 100}, LabelSelection(), "too many classes"),
    ],
)
def test_what_cannot_be_labelled_is_said(writer, record, about, choice, says):
    run = labelled(writer, record, **about).finish()
    with pytest.raises(BadResults, match=says) as error:
        choose_tasks([run], choice)
    assert "\n" not in str(error.value)


def test_unusable_numbers(run):
    for choice in (LabelSelection(images=0), LabelSelection(catch=-1)):
        with pytest.raises(BadParameter, match="unusable number of images"):
            choose_tasks([run], choice)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_what_was_seen(channels):
    image = np.arange(channels * 12, dtype=np.uint8).reshape(channels, 3, 4)
    data = base64.b64decode(png_uri(image).partition(",")[2])
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height, depth, kind = struct.unpack(">2I2B", data[16:26])
    assert (width, height, depth, kind) == (4, 3, 8, 0 if channels == 1 else 2)
    size = struct.unpack(">I", data[33:37])[0]
    rows = np.frombuffer(zlib.decompress(data[41 : 41 + size]), np.uint8).reshape(3, -1)
    assert (rows[:, 0] == 0).all()
    assert (rows[:, 1:].reshape(3, 4, channels).transpose(2, 0, 1) == image).all()
    assert zlib.crc32(data[37 : 41 + size]) == struct.unpack(">I", data[41 + size : 45 + size])[0]


@pytest.fixture
def page(run, tmp_path):
    trials, _ = choose_tasks([run], LabelSelection(catch=5))
    write_label_page(tmp_path / "label.html", trials, [str(k) for k in range(10)], "What <is> it?")
    return tmp_path / "label.html", trials


def test_the_page_needs_nothing_else_and_betrays_nothing(page):
    html = page[0].read_text()
    assert "default-src 'none'" in html
    assert "What &lt;is&gt; it?" in html
    assert not re.search(r"""(src|href)="(?!data:|\{)""", html)
    assert "mnist-cnn" not in html  # a rater is not told who was attacked, nor with what
    assert "metamer" not in html


def press(view, keys):
    for key in keys:
        view.keyboard.press(key)


def count(view):
    return int(view.locator("#count").inner_text().split()[0])


def test_all_is_labelled_by_keyboard_survives_a_reload_and_comes_back_as_csv(
    browser, page, tmp_path
):
    path, trials = page
    context = browser.new_context(offline=True, accept_downloads=True)
    view, troubles, requests = context.new_page(), [], []
    view.on("console", lambda message: troubles.append(message.text))
    view.on("pageerror", lambda error: troubles.append(str(error)))
    view.on("request", lambda request: requests.append(request.url))
    view.goto(path.as_uri())
    assert view.locator("#image").get_attribute("src") == trials[0].png
    press(view, ["1", "Backspace", "Backspace", "2", "u", " ", "x", "Enter"])
    assert count(view) == 3
    view.locator("#rater").fill('A. "B", C 7')
    assert count(view) == 3  # a digit of a name is no answer
    view.reload()
    assert (count(view), view.locator("#rater").input_value()) == (3, 'A. "B", C 7')
    view.locator("body").click(position={"x": 1, "y": 1})
    answers = [t.known if t.known is not None else (t.sample + 1) % 10 for t in trials[3:]]
    press(view, map(str, answers))
    press(view, ["5", "5"])  # nothing is left to answer
    assert view.locator("#done").is_visible()
    assert not view.locator("#trial").is_visible()
    with view.expect_download() as download:
        view.locator("#download").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert file.name.startswith("labels-")
    labels = read_labels(file)
    labels.check_classes(10)
    assert [each.label for each in labels.judgements] == [2, None, None, *answers]
    assert [(j.image, j.cell, j.sample, j.known) for j in labels.judgements] == [
        (t.image, t.cell, t.sample, t.known) for t in trials
    ]
    assert labels.raters == ('A. "B", C 7',)
    error = labels.error()
    said = view.locator("#caught").inner_text()
    assert f"Of {error.trials} unchanged images" in said
    assert f"you named {error.trials - error.errors - error.undecided} as" in said
    assert troubles == []
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [
        path.as_uri()
    ] * 2
    context.close()


def test_it_can_be_done_with_a_pointer_on_a_narrow_screen(browser, run, tmp_path):
    trials, _ = choose_tasks([run], LabelSelection(images=3, catch=0))
    names = [f"a rather long name of class {k}" for k in range(10)]
    write_label_page(tmp_path / "l.html", trials, names, "What do you see?")
    view = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    view.goto((tmp_path / "l.html").as_uri())
    assert view.evaluate("document.documentElement.scrollWidth") <= 390
    view.get_by_role("button", name="class 4").click()
    view.get_by_role("button", name="unclear").click()
    view.get_by_role("button", name="one back").click()
    assert count(view) == 1
    press(view, [" "])  # the button that was clicked last does not take the key
    assert count(view) == 2
    box = view.locator("#image").bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=1)
    view.close()
