"""analysis/report.py: the page in a real browser, without a screen."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from experiments import row, write_state, write_trial
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from analysis import gan as gan_figures
from analysis import images, report, sweep
from analysis.gan import GRID, grid_latents, read_run
from analysis.results import read_trials
from models import gan

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (chromium-driver)"
)
# None of its own errands: what the page asks for is all that is left.
FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
HOSTILE = "<img src=x onerror=window.owned=1>"


@pytest.fixture(scope="module")
def sweep_run(tiny, tmp_path_factory) -> Path:
    """The small sweep, and beside its trials one that failed, whose name and error are hostile."""
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("report") / "tiny")
    config = read_trials(str(folder))[0].config | {"length": 9}
    write_trial(folder, HOSTILE, config, None)
    (folder / HOSTILE / "error.txt").write_text("Boom: </script><script>window.owned=1</script>")
    (newest,) = folder.glob("experiment_state-*.json")
    statuses = {trial.name: "TERMINATED" for trial in read_trials(str(folder))}
    write_state(folder, statuses | {HOSTILE: "ERROR"}, newest.stem.partition("-")[2])
    return folder


@pytest.fixture(scope="module")
def page(sweep_run, gan_run) -> Path:
    out = sweep_run.parent / "with spaces" / "report.html"
    out.parent.mkdir()
    arguments = ["report.py", sweep_run, gan_run, "--out", out, "--tested", 100]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(map(str, arguments)))
        patch.setattr(gan, "SAMPLES", 500)  # as good as any for a page
        assert report.main() == 0
    return out


@pytest.fixture
def browser(page, tmp_path) -> Iterator[webdriver.Chrome]:
    """A browser that has opened the page; what it complained of or asked for fails the test."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path}/profile"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as driver:
        driver.get("about:blank")
        driver.get_log("performance")  # of the browser's own first page
        driver.get(page.as_uri())
        yield driver
        assert driver.get_log("browser") == []
        events = [
            json.loads(entry["message"])["message"] for entry in driver.get_log("performance")
        ]
        asked = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        assert page.as_uri() in asked  # so that this can fail
        assert [url for url in asked if not url.startswith(("data:", page.as_uri()))] == []
        assert driver.execute_script("return window.owned") is None


def shown(browser: webdriver.Chrome, column: str) -> list[str]:
    """Returns a column of the first table, as it is seen."""
    headings = [h.text for h in browser.find_elements(By.CSS_SELECTOR, "#trials-0 thead th")]
    (number,) = [i for i, text in enumerate(headings) if text.split(" ")[0] == column]
    rows = browser.find_elements(By.CSS_SELECTOR, "#trials-0 tbody tr")
    cells = [r.find_elements(By.TAG_NAME, "td") for r in rows if r.is_displayed()]
    return [cell[number].text for cell in cells if len(cell) > 1]


def button(browser: webdriver.Chrome, text: str) -> WebElement:
    (found,) = [
        b for b in browser.find_elements(By.CSS_SELECTOR, "#trials-0 button") if b.text == text
    ]
    return found


@needs_chromium
def test_a_heading_sorts_up_and_down_and_what_is_missing_comes_last(browser, sweep_run):
    trials = [t for t in read_trials(str(sweep_run)) if t.rows]
    expected = sorted(f"{t.rows[-1]['val_loss']:.4g}" for t in trials)
    assert len(set(expected)) == 8  # by text as by value: all between 2 and 3
    heading = button(browser, "val_loss")
    heading.click()
    assert shown(browser, "val_loss") == [*expected, ""]
    heading.send_keys(Keys.ENTER)  # by keyboard as well
    assert shown(browser, "val_loss") == [*reversed(expected), ""]
    button(browser, "length").click()
    assert shown(browser, "length") == ["3"] * 4 + ["5"] * 4 + ["9"]
    sorted_by = browser.find_elements(By.CSS_SELECTOR, "th[aria-sort]")
    assert [(h.text.split()[0], h.get_attribute("aria-sort")) for h in sorted_by] == [
        ("length", "ascending")
    ]


@needs_chromium
@pytest.mark.parametrize(
    ("words", "count"),
    [("lstm", 5), ("lstm length>=5 seed=1", 1), ("length<5", 4), ("FAILED", 1), ("nothing", 0)],
)
def test_the_filter_leaves_the_trials_that_it_describes(browser, words, count):
    browser.find_element(By.ID, "filter-0").send_keys(words)
    assert len(shown(browser, "trial")) == count
    assert browser.find_element(By.ID, "told-0").text == f"{count} of 9 trials"


@needs_chromium
def test_a_trial_opens_what_it_learned_and_closes_it(browser, sweep_run):
    trial = next(t for t in read_trials(str(sweep_run)) if t.rows)
    name = button(browser, trial.name)
    name.send_keys(Keys.ENTER)
    accuracy, losses = browser.find_elements(By.CSS_SELECTOR, "#trials-0 .curves svg")
    first, last = (row["val_accuracy"] for row in trial.rows)
    said = re.fullmatch(
        r"val_accuracy from (.*) to (.*), epochs 1 to 2", accuracy.get_attribute("aria-label")
    )
    assert [float(text) for text in said.groups()] == pytest.approx([first, last], rel=0.006)
    assert len(accuracy.find_elements(By.TAG_NAME, "circle")) == 2
    assert len(losses.find_elements(By.TAG_NAME, "path")) == 2
    assert name.get_attribute("aria-expanded") == "true"
    name.click()
    assert browser.find_elements(By.CSS_SELECTOR, "#trials-0 .curves") == []
    button(browser, HOSTILE).click()
    assert browser.find_element(By.CSS_SELECTOR, ".curves").text == "nothing reported yet"


@needs_chromium
def test_the_slider_shows_the_images_of_each_checkpoint(browser, gan_run):
    slider = browser.find_element(By.CSS_SELECTOR, "input[type=range]")
    image = browser.find_element(By.CSS_SELECTOR, "figure.grid img")
    assert image.get_attribute("alt").startswith("Epoch 2: 64 generated images.")
    trial, generators = read_run(str(gan_run))
    for key, epoch in ((Keys.HOME, 0), (Keys.ARROW_RIGHT, 1)):
        slider.send_keys(key)
        assert browser.find_element(By.CSS_SELECTOR, "figure.grid output").text == f"epoch {epoch}"
        assert image.get_attribute("alt").startswith(f"Epoch {epoch}: ")
        content = base64.b64decode(image.get_attribute("src").partition("base64,")[2])
        seen = torch.from_numpy(np.array(Image.open(io.BytesIO(content)))) / 127.5 - 1
        drawn = images.tiled(gan.draw(generators[epoch], grid_latents(trial)), GRID)
        assert (seen - drawn).abs().mean() < 0.1  # JPEG; of another epoch it is more
        others = [g for e, g in generators.items() if e != epoch]
        for other in others:
            far = seen - images.tiled(gan.draw(other, grid_latents(trial)), GRID)
            assert far.abs().mean() > 0.15


@needs_chromium
def test_names_and_errors_from_results_are_text(browser):
    assert HOSTILE in shown(browser, "trial")
    assert "Boom: </script><script>" in browser.find_element(By.TAG_NAME, "main").text


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_the_page_fits_a_phone_and_follows_light_and_dark(browser, scheme, width):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", paper))) / 3
    assert brightness > 200 if scheme == "light" else brightness < 60


@needs_chromium
def test_every_picture_and_field_says_what_it_is(browser):
    pictures = browser.find_elements(By.TAG_NAME, "img")
    assert len(pictures) > 12
    assert all(len(picture.get_attribute("alt")) > 30 for picture in pictures)
    assert all(browser.execute_script("return arguments[0].naturalWidth", p) for p in pictures)
    for field in browser.find_elements(By.TAG_NAME, "input"):
        assert field.accessible_name


def test_the_page_is_one_small_file_that_tells_settings_versions_and_failures(page, sweep_run):
    text = page.read_text()
    assert page.stat().st_size < 5e6
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]
    last = next(t for t in read_trials(str(sweep_run)) if t.rows).rows[-1]
    for told in ("8 finished, 1 failed", last["machine"], last["versions"], last["node_ip"]):
        assert told in text
    assert "<dt>batch_size</dt><dd>128</dd>" in text
    assert "<dt>length</dt><dd>3, 5, 9</dd>" in text


def test_runs_that_have_just_begun_have_a_page(called, gan_run, tmp_path):
    write_trial(tmp_path / "sweep", "one", {"cell": "lstm", "lr": 0.1}, [row(1, val_accuracy=0.5)])
    started = tmp_path / "gan"
    started.mkdir()
    for name in ("params.json", "settings.json"):
        shutil.copy(gan_run / name, started)
    out = tmp_path / "report.html"
    done = called(report.main, tmp_path / "sweep", started, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "no whole checkpoint is here yet" in out.read_text()


def test_variants_are_no_further_seeds(called, tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "variants")
    for trial in read_trials(str(tiny)):
        name = trial.name.replace("uniform", "uniform-clip")
        write_trial(folder, name, trial.config | {"variant": "clip"}, trial.rows)
    out = tmp_path / "report.html"
    done = called(report.main, folder, "--out", out)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"<p>([^<]*): effective length", out.read_text())
    assert found == ["LSTM, uniform, clip", "LSTM, uniform", "RNN, uniform, clip", "RNN, uniform"]


def test_what_cannot_be_shown_is_told_in_one_line(called, tiny, tmp_path):
    for arguments, told in (
        ([tmp_path / "none"], "no such folder"),
        ([tiny, "--tested", 1], "--tested 1: 10 or more"),
        ([tiny, "--out", tmp_path, "--tested", 10], "a folder; name a file"),
    ):
        done = called(report.main, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("analysis/report.py: ")
        assert told in line


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a read-only file system")
def test_an_out_that_is_read_only_is_told_by_every_script_before_it_draws(
    tiny, gan_run, tmp_path, called
):
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "none", str(tmp_path)]
    subprocess.run(mount, check=True)
    try:
        for script, results in ((sweep, tiny), (gan_figures, gan_run), (report, tiny)):
            name = script.__name__.replace(".", "/")
            for out in (tmp_path, tmp_path / "new"):
                done = called(script.main, results, "--out", out)
                assert (done.returncode, done.stdout) == (2, "")
                (line,) = done.stderr.splitlines()
                assert line.startswith(f"{name}.py: ")
                assert str(out) in line
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_what_is_put_into_the_template_is_not_looked_at():
    assert report.filled("a {{x}} b {{y}}", {"x": "{{y}}", "y": "1"}) == "a {{y}} b 1"
