"""The page of analysis/report.py, opened in a headless browser."""

import base64
import io
import itertools
import json
import math
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_experiments import make_row, write_settings, write_trial
from fake_trials import make_trial, write_trials
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from analysis import report
from analysis.gan_figures import GRID, grid_latents, read_run
from analysis.images import image_grid
from analysis.results import read_trials
from models import gan

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (chromium-driver)"
)
# Without requests of the browser's own: those that are left are the page's.
FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
HOSTILE = "<img src=x onerror=window.owned=1>"


@pytest.fixture(scope="module")
def sweep_run(tiny, tmp_path_factory) -> Path:
    """A copy of the small sweep with a failed trial, whose name and error contain scripts."""
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("report") / "tiny")
    config = read_trials(str(folder))[0].config | {"length": 9}
    write_trial(folder, HOSTILE, config, None)
    (folder / HOSTILE / "failure.txt").write_text("Boom: </script><script>window.owned=1</script>")
    configs = {trial.name: trial.config for trial in read_trials(str(folder))}
    write_settings(folder, configs | {HOSTILE: config})
    return folder


@pytest.fixture(scope="module")
def page(sweep_run, gan_run) -> Path:
    out = sweep_run.parent / "with spaces" / "report.html"
    out.parent.mkdir()
    arguments = ["report.py", sweep_run, gan_run, "--out", out, "--num-test-samples", 100]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(map(str, arguments)))
        patch.setattr(gan, "NUM_EVAL_SAMPLES", 500)  # faster
        assert report.main() == 0
    return out


@pytest.fixture
def browser(page, tmp_path) -> Iterator[webdriver.Chrome]:
    """A browser that has opened the page. Errors in its log and requests fail the test."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path}/profile"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as driver:
        driver.get("about:blank")
        driver.get_log("performance")  # the blank page is not of interest
        driver.get(page.as_uri())
        yield driver
        assert driver.get_log("browser") == []
        events = [
            json.loads(entry["message"])["message"] for entry in driver.get_log("performance")
        ]
        requested = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        assert page.as_uri() in requested  # so that the next line can fail
        assert [url for url in requested if not url.startswith(("data:", page.as_uri()))] == []
        assert driver.execute_script("return window.owned") is None


def visible_cells(browser: webdriver.Chrome, column: str) -> list[str]:
    """Returns the visible cells of a column of the first table."""
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
def test_headings_sort_in_both_directions_with_missing_values_last(browser, sweep_run):
    trials = [t for t in read_trials(str(sweep_run)) if t.rows]
    expected = sorted(f"{t.rows[-1]['val_loss']:.4g}" for t in trials)
    assert len(set(expected)) == 8  # sorted as text as by value: all are between 2 and 3
    heading = button(browser, "val_loss")
    heading.click()
    assert visible_cells(browser, "val_loss") == [*expected, ""]
    heading.send_keys(Keys.ENTER)  # the keyboard works, too
    assert visible_cells(browser, "val_loss") == [*reversed(expected), ""]
    button(browser, "length").click()
    assert visible_cells(browser, "length") == ["3"] * 4 + ["5"] * 4 + ["9"]
    sorted_by = browser.find_elements(By.CSS_SELECTOR, "th[aria-sort]")
    assert [(h.text.split()[0], h.get_attribute("aria-sort")) for h in sorted_by] == [
        ("length", "ascending")
    ]


@needs_chromium
def test_filter_matches_words_and_comparisons(browser):
    field = browser.find_element(By.ID, "filter-0")
    for text, count in {
        "lstm": 5, "lstm length>=5 seed=1": 1, "length<5": 4, "FAILED": 1, "nothing": 0
    }.items():  # fmt: skip
        field.clear()
        field.send_keys(text)
        assert len(visible_cells(browser, "trial")) == count
        assert browser.find_element(By.ID, "count-0").text == f"{count} of 9 trials"


@needs_chromium
@pytest.mark.parametrize(
    ("values", "heights", "log"),
    [
        ([1, 0.1, 0.001], [0, 1 / 3, 1], True),
        ([2, 1, 0.5], [0, 2 / 3, 1], False),
        ([1, 0.5, 0], [0, 0.5, 1], False),
        ([3, 3, 3], [0.5, 0.5, 0.5], False),
    ],
)
def test_losses_over_several_decades_have_a_log_scale(browser, values, heights, log):
    chart = browser.execute_script(
        "return chart(['val_loss'], [1, 2, 3], {val_loss: arguments[0]}).outerHTML", values
    )
    points = [float(y) for y in re.findall(r'cy="([\d.]+)"', chart)]
    bottom, top = 180, 24
    assert points == pytest.approx([top + (bottom - top) * height for height in heights])
    assert ("log scale" in chart) == log


@needs_chromium
def test_trial_button_toggles_learning_curves(browser, sweep_run):
    trial = next(t for t in read_trials(str(sweep_run)) if t.rows)
    name = button(browser, trial.name)
    name.send_keys(Keys.ENTER)
    accuracy, losses = browser.find_elements(By.CSS_SELECTOR, "#trials-0 .curves svg")
    first, last = (row["val_accuracy"] for row in trial.rows)
    label = re.fullmatch(
        r"val_accuracy from (.*) to (.*), epochs 1 to 2", accuracy.get_attribute("aria-label")
    )
    assert [float(text) for text in label.groups()] == pytest.approx([first, last], rel=0.006)
    assert len(accuracy.find_elements(By.TAG_NAME, "circle")) == 2
    assert len(losses.find_elements(By.TAG_NAME, "path")) == 2
    assert name.get_attribute("aria-expanded") == "true"
    name.click()
    assert browser.find_elements(By.CSS_SELECTOR, "#trials-0 .curves") == []
    button(browser, HOSTILE).click()
    assert browser.find_element(By.CSS_SELECTOR, ".curves").text == "no metrics yet"


@needs_chromium
def test_slider_shows_the_images_of_each_checkpoint(browser, gan_run):
    slider = browser.find_element(By.CSS_SELECTOR, "input[type=range]")
    image = browser.find_element(By.CSS_SELECTOR, "figure.grid img")
    assert image.get_attribute("alt").startswith("Epoch 2: 64 generated images.")
    trial, generators = read_run(str(gan_run))
    for key, epoch in ((Keys.HOME, 0), (Keys.ARROW_RIGHT, 1)):
        slider.send_keys(key)
        assert browser.find_element(By.CSS_SELECTOR, "figure.grid output").text == f"epoch {epoch}"
        assert image.get_attribute("alt").startswith(f"Epoch {epoch}: ")
        content = base64.b64decode(image.get_attribute("src").partition("base64,")[2])
        shown = torch.from_numpy(np.array(Image.open(io.BytesIO(content)))) / 127.5 - 1
        for other, generator in generators.items():
            grid = image_grid(gan.generate(generator, grid_latents(trial)), GRID)
            difference = (shown - grid).abs().mean()
            assert difference < 0.1 if other == epoch else difference > 0.15  # JPEG


@needs_chromium
def test_names_and_errors_are_shown_as_text(browser):
    assert HOSTILE in visible_cells(browser, "trial")
    assert "Boom: </script><script>" in browser.find_element(By.TAG_NAME, "main").text


@needs_chromium
def test_page_fits_a_phone_and_follows_the_color_scheme(browser):
    for width, scheme in itertools.product((360, 1400), ("light", "dark")):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        color = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, re.findall(r"\d+", color))) / 3
        assert brightness > 200 if scheme == "light" else brightness < 60


@needs_chromium
def test_images_and_fields_have_accessible_names(browser):
    images = browser.find_elements(By.TAG_NAME, "img")
    assert len(images) > 12
    assert all(len(image.get_attribute("alt")) > 30 for image in images)
    assert all(browser.execute_script("return arguments[0].naturalWidth", i) for i in images)
    for field in browser.find_elements(By.TAG_NAME, "input"):
        assert field.accessible_name


def test_page_is_one_small_file_with_settings_failures_and_provenance(page, sweep_run):
    text = page.read_text()
    assert page.stat().st_size < report.MAX_PAGE_BYTES
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]
    last = next(t for t in read_trials(str(sweep_run)) if t.rows).rows[-1]
    for found in ("8 finished, 1 failed", last["hardware"], last["library_versions"]):
        assert found in text
    for name, value in {"batch_size": 128, "length": "3, 5, 9", "nodes": last["node_ip"]}.items():
        assert f"<dt>{name}</dt><dd>{value}</dd>" in text


def test_settings_are_listed_as_on_the_command_line():
    trials = [make_trial([0.5], length=length) for length in (10, 9)]
    for trial in trials:
        trial.config["grad_clip"] = None
    settings = report.settings_of(trials)
    assert (settings["length"], settings["grad_clip"]) == ("9, 10", "none")


@pytest.mark.parametrize(
    ("value", "text"), [(20001, "20001"), (0.12345, "0.1235"), (False, "False"), (math.nan, "")]
)
def test_only_fractions_are_rounded_in_the_table(value, text):
    cell = report._number_cell(value)
    assert re.sub("<[^>]*>", "", cell) == text
    assert text == "" or float(re.search('data-value="([^"]*)"', cell)[1]) == value


def test_runs_without_results_have_a_page(call_main, gan_run, tmp_path):
    write_trials(tmp_path / "sweep", make_trial([0.5]))
    write_trial(tmp_path / "other", "one", {"lr": 0.1}, [make_row(1)])
    started = tmp_path / "gan"
    started.mkdir()
    shutil.copy(gan_run / "settings.json", started)
    out = tmp_path / "report.html"
    runs = [tmp_path / "sweep", tmp_path / "other", started]
    done = call_main(report.main, *runs, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    text = out.read_text()
    assert "<p>No finished trial yet: no figures.</p>" in text
    assert f"<p>{started}: no valid checkpoint yet</p>" in text


def test_runs_of_other_projects_have_a_page(call_main, third_party_experiment, tmp_path):
    rows = [
        {"training_iteration": 1, "val_accuracy": "n/a", "train_loss": math.nan, "error": 0.5},
        {"training_iteration": 2, "val_accuracy": 0.5, "train_loss": math.inf, "note": "text"},
    ]
    write_trial(third_party_experiment, "odd", {"lr": 0.1}, rows)
    out = tmp_path / "report.html"
    done = call_main(report.main, third_party_experiment, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    (trial,) = (t for t in read_trials(str(third_party_experiment)) if t.name == "odd")
    curves = report.learning_curves(trial)
    assert curves["epochs"] == [1, 2]
    assert curves["columns"]["val_accuracy"] == [None, 0.5]


def test_variants_are_separate_groups(tmp_path):
    trials = [make_trial([0.1, 1, 1], variant=variant) for variant in ("full", "no-clip")]
    text = report.sweep_section(trials, num_test_samples=10, out=tmp_path)
    assert re.findall(r"<p>([^<]*): effective length", text) == [
        "LSTM, chrono",
        "LSTM, chrono, no-clip",
    ]


def test_inserted_text_is_not_searched_for_placeholders():
    assert report.render("a {{x}} b {{y}}", {"x": "{{y}}", "y": "1"}) == "a {{y}} b 1"
