"""Makes one page of what runs found, for a browser: no server, no network.

  python analysis/report.py ~/ray_results/figures ~/ray_results/gan-report
  python analysis/report.py s3://BUCKET/sweeps/figures --out report.html

Sweeps and GANs in any number, finished or not: figures, a table of trials that
sorts and filters with each one's learning curve, the GAN's images over the
epochs, settings, machines, failures.
"""

from analysis.arguments import Parser, check_writable, end_quietly, exit_with

if __name__ == "__main__":
    end_quietly()  # for as long as it runs: the imports alone take seconds

import base64
import io
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from analysis import gan, horizon, sweep
from analysis.images import seen_table, tiled
from analysis.interpolation import PAIRS, draw_interpolation
from analysis.outcomes import kind_of
from analysis.results import NoResults, Trial, read_trials, trials_table
from analysis.trials import columns_to_show
from models import classifier, digits
from models.gan import draw

TEMPLATE = Path(__file__).with_name("report.html")
LARGEST = 5e6  # bytes of a page that is still sent by mail and opened on a phone

# What is drawn of a trial, a chart for each line, where it was reported.
CHARTS = [
    ["val_accuracy"],
    ["train_loss", "val_loss"],
    ["loss_d", "loss_g"],
    ["d_real", "d_fake"],
    ["frechet_distance"],
    ["precision", "recall"],
]
SHARES = ["val_accuracy", "d_real", "d_fake", "precision", "recall"]  # from 0 to 1


def picture(path: Path, caption: str = "", css: str = "chart") -> str:
    """Returns a PNG of analysis/figures.py as a part of the page, with its own words for it."""
    alt = Image.open(path).text["Description"]
    image = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return (
        f'<figure class="{css}"><img src="{image}" alt="{escape(alt)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def definitions(rows: dict[str, Any]) -> str:
    """Returns a list of names and what they stand for."""
    parts = (f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in rows.items())
    return f"<dl>{''.join(parts)}</dl>"


def table_of_trials(table: pd.DataFrame, run: int) -> str:
    """Returns a table that the page sorts and filters, with a button for each trial's curves."""
    columns = ["trial", *(name for name in columns_to_show(table) if name != "trial")]
    numeric = [name for name in columns if pd.api.types.is_numeric_dtype(table[name])]
    head = "".join(
        f'<th scope="col"{_css("number", name in numeric)}>'
        f'<button type="button">{escape(name)}</button></th>'
        for name in columns
    )
    lines = []
    for number, row in enumerate(table[columns].to_dict("records")):
        cells = (
            _number(value) if name in numeric else _text(name, value, run, number)
            for name, value in row.items()
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="filter"><label for="filter-{run}">Filter</label>'
        f'<input id="filter-{run}" type="search" placeholder="words, or length&gt;=20" '
        f'autocomplete="off"><span id="told-{run}" role="status">{len(table)} of {len(table)} '
        'trials</span></div><div class="scroll" tabindex="0" role="region" aria-label="trials">'
        f'<table class="trials" id="trials-{run}">'
        "<caption>A heading sorts; a trial's name opens what it learned by epoch.</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _css(name: str, yes: bool = True) -> str:
    return f' class="{name}"' if yes else ""


def _number(value: float) -> str:
    if value != value:  # NaN: there is none
        return "<td></td>"
    return f'<td class="number" data-value="{value!r}">{value:.4g}</td>'


def _text(name: str, value: Any, run: int, number: int) -> str:
    text = "" if value is None or value != value else escape(str(value))
    if name == "trial":
        return (
            f'<td><button type="button" aria-expanded="false" data-run="{run}" '
            f'data-trial="{number}">{text}</button></td>'
        )
    if name == "status":
        return f"<td{_css(text)}>{text}</td>"
    return f"<td{_css('text', len(text) > 40)}>{text}</td>"


def curves(trial: Trial) -> dict[str, Any]:
    """Returns what the page draws of a trial: its epochs, and a list of values for each name."""
    rows = pd.DataFrame(trial.rows)
    charts = [[name for name in names if name in rows] for names in CHARTS]
    charts = [names for names in charts if names]
    columns = {
        name: [None if not math.isfinite(v) else float(f"{v:.4g}") for v in rows[name]]
        for names in charts
        for name in names
    }
    charts = [names for names in charts if any(v is not None for n in names for v in columns[n])]
    return {
        "epochs": list(rows.get("epoch", [])),
        "charts": charts,
        "columns": columns,
    }


def settings_of(trials: list[Trial]) -> dict[str, str]:
    """Returns the trials' settings: one value, or all that there are."""
    names = dict.fromkeys(name for trial in trials for name in trial.config)
    return {name: _values(trial.config.get(name) for trial in trials) for name in names}


def _values(values: Iterable[Any]) -> str:
    """Returns different values, each once, in their order."""
    different = {str(value): value for value in values}
    try:
        ordered = sorted(different.values())
    except TypeError:  # of several types
        ordered = list(different.values())
    return ", ".join(map(str, ordered))


def circumstances(trials: list[Trial]) -> dict[str, str]:
    """Returns when, for how long and on what the epochs were computed, and with what."""
    rows = [row for trial in trials for row in trial.rows if "ended_at" in row]
    if not rows:
        return {}
    began = min(row["ended_at"] - row["epoch_seconds"] for row in rows)
    ended = max(row["ended_at"] for row in rows)
    hours = sum(row["epoch_seconds"] for row in rows) / 3600
    return {
        "first epoch began": time.strftime("%Y-%m-%d %H:%M", time.localtime(began)),
        "last epoch ended": time.strftime("%Y-%m-%d %H:%M", time.localtime(ended)),
        "hours of training, all trials together": f"{hours:.2f}",
        "machines": _values(row["machine"] for row in rows if "machine" in row) or "not recorded",
        "nodes": _values(row["node_ip"] for row in rows),
        "versions": _values(row["versions"] for row in rows if "versions" in row) or "not recorded",
    }


def summary(trials: list[Trial]) -> str:
    """Returns in one line how the trials stand."""
    counts = pd.Series([trial.status for trial in trials]).value_counts()
    retries = sum(trial.failures for trial in trials)
    epochs = sum(len(trial.rows) for trial in trials)
    parts = [f"{count} {status}" for status, count in counts.items()]
    parts += [f"{epochs} epochs", f"{retries} restarts after a failure"]
    return f"<p>{escape(', '.join(parts))}.</p>"


def failures(trials: list[Trial]) -> str:
    found = {trial.name: trial.error or "no reason was kept" for trial in trials
             if trial.status == "failed"}  # fmt: skip
    return f"<h3>Failures</h3>{definitions(found)}" if found else ""


def sweep_section(trials: list[Trial], tested: int, out: Path) -> str:
    """Returns the figures of a sweep, of the trials that are finished.

    They are those of the script that jobs/sweep.py names when such a sweep is done.
    """
    done = [trial for trial in trials if sweep.is_finished(trial)]
    if not done:
        return "<p>No trial is finished yet: no figures.</p>"
    if any(trial.config.get("hold") or kind_of(trial)[2] != "plain" for trial in trials):
        found, pictures = horizon.findings(done, trials), horizon.draw(done, trials, out)
    else:
        found, pictures = sweep.findings(done, trials), sweep.draw(done, trials, tested, out)
    lines = "".join(f"<p>{escape(line)}</p>" for line in found)
    return f'{lines}<div class="figures">{"".join(map(picture, pictures))}</div>'


def gan_section(results: str, run: int, out: Path) -> tuple[str, list[dict[str, Any]]]:
    """Returns the figures of a GAN's run, and its grid of images at each checkpoint."""
    try:
        trial, generators = gan.read_run(results)
        data = digits.load(trial.config["data"])
    except (NoResults, digits.DataError) as error:
        return f"<p>{escape(str(error))}</p>", []
    eye = classifier.load()
    grids = []
    for epoch, generator in generators.items():
        images = draw(generator, gan.grid_latents(trial))
        words = gan.told(seen_table(images, eye))
        grids.append({"epoch": epoch, "alt": words, "image": _jpeg(tiled(images, gan.GRID))})
    slider = (
        '<figure class="grid"><img src="" alt=""><figcaption>'
        f'<label for="epoch-{run}">The same latent vectors, <output></output></label>'
        f'<input type="range" id="epoch-{run}" data-run="{run}" min="0" max="{len(grids) - 1}" '
        f'value="{len(grids) - 1}"></figcaption></figure>'
    )
    pictures, said = gan.draw_measures(trial, generators, data, eye, out)
    parts = [slider, *map(picture, pictures)]
    try:
        seed, newest = trial.config["seed"], generators[max(generators)]
        path = draw_interpolation(newest, seed, eye, list(PAIRS), out)
        parts.append(picture(path, css="chart wide"))
    except NoResults as error:
        parts.append(f"<p>{escape(str(error))}</p>")
    measured = f'<div class="scroll" tabindex="0"><pre>{escape(said)}</pre></div>'
    return f'<div class="figures">{"".join(parts)}</div>{measured}', grids


def _jpeg(image: Any) -> str:
    """Returns pixels from -1 to 1 as an image within the page."""
    file = io.BytesIO()
    pixels = ((image + 1) * 127.5).round().byte().numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def page(places: list[str], tested: int) -> str:
    """Returns the whole page, of experiments in the order given.

    Raises:
        NoResults: at one of the places there is none.
    """
    found = [read_trials(place) for place in places]
    data: dict[str, Any] = {"shares": SHARES}
    sections = []
    for number, (place, trials) in enumerate(zip(places, found, strict=True)):
        if sys.stdout.isatty():
            print(f"{place}: drawing", flush=True)
        data[str(number)] = {str(i): curves(trial) for i, trial in enumerate(trials)}
        with tempfile.TemporaryDirectory() as out:
            if is_gan(trials):
                figures, grids = gan_section(place, number, Path(out))
                data[str(number)]["grids"] = grids
            elif is_sweep(trials):
                figures = sweep_section(trials, tested, Path(out))
            else:
                figures = ""
        sections.append(
            f"<section><h2>{escape(trials[0].experiment)}</h2>"
            f'<p class="faint">{escape(place)}</p>'
            f"{summary(trials)}{figures}<h3>Trials</h3>"
            f"{table_of_trials(trials_table(trials), number)}{failures(trials)}"
            f"<h3>Settings</h3>{definitions(settings_of(trials))}"
            f"<h3>Circumstances</h3>{definitions(circumstances(trials))}</section>"
        )
    content = {
        "title": " and ".join(dict.fromkeys(escape(trials[0].experiment) for trials in found)),
        "made": f"made {time.strftime('%Y-%m-%d %H:%M')} by analysis/report.py",
        "sections": "\n".join(sections),
        "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
    }
    return filled(TEMPLATE.read_text(), content)


def is_gan(trials: list[Trial]) -> bool:
    return "latent_dim" in trials[0].config


def is_sweep(trials: list[Trial]) -> bool:
    return all({*sweep.SETTING, "epochs", "hidden"} <= trial.config.keys() for trial in trials)


def filled(template: str, content: dict[str, str]) -> str:
    """Returns a template with what belongs at each {{name}}; what is put there is not looked at."""
    first, *rest = template.split("{{")
    parts = [first]
    for part in rest:
        name, text = part.split("}}", 1)
        parts += [content[name], text]
    return "".join(parts)


def main() -> int:
    parser = Parser(__doc__)
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="a run: folder or URI")
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), help="the page (report.html)"
    )
    parser.add_argument(
        "--tested", type=int, default=1000, metavar="N", help="palindromes of each test (1000)"
    )
    arguments = parser.parse_args()
    try:
        if arguments.tested < sweep.DIGITS:
            raise NoResults(f"--tested {arguments.tested}: {sweep.DIGITS} or more")
        check_writable(arguments.out)
        if arguments.out.is_dir():
            raise OSError(f"--out {arguments.out}: a folder; name a file")
        text = page(arguments.results, arguments.tested)
        arguments.out.write_text(text)
    except (NoResults, OSError) as error:
        print(f"analysis/report.py: {error}", file=sys.stderr)
        return 2
    size = len(text.encode())
    print(f"{arguments.out}: {size / 1e6:.1f} MB")
    if size > LARGEST:
        print(f"larger than {LARGEST / 1e6:.0f} MB: give fewer runs")
    return 0


if __name__ == "__main__":
    exit_with(main)
