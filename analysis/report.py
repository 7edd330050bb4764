"""Makes one HTML page of runs, for a browser: no server, no network.

  python analysis/report.py ~/ray_results/figures ~/ray_results/gan-report
  python analysis/report.py s3://BUCKET/sweeps/figures --out report.html

Sweeps and GANs in any number, finished or not: figures, a sortable, filterable
table of trials with their learning curves, the GAN's images over the epochs,
settings, hardware, failures.
"""

from analysis import cli

if __name__ == "__main__":
    cli.start_script()  # before the imports, which take seconds

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

from analysis import gan_figures
from analysis.cli import ResultsError
from analysis.images import describe_predictions, image_grid, prediction_table
from analysis.results import Trial, read_trials
from analysis.run_figures import is_gan, is_sweep, plot_finished
from analysis.tables import default_columns, trials_table
from analysis.transfer import add_num_test_samples
from models.classifier import load_classifier
from models.gan import generate

TEMPLATE = Path(__file__).with_name("report.html")
MAX_PAGE_BYTES = 5e6  # of a page that can be mailed and opened on a phone

# The metrics in each chart of a trial's learning curves, where they were reported.
CHARTS = [
    ["val_accuracy"],
    ["train_loss", "val_loss"],
    ["loss_d", "loss_g"],
    ["d_real", "d_fake"],
    ["frechet_distance"],
    ["precision", "recall"],
]
FRACTIONS = ["val_accuracy", "d_real", "d_fake", "precision", "recall"]  # plotted from 0 to 1


def figure_html(path: Path, caption: str = "", css: str = "chart") -> str:
    """Returns a PNG with its alternative text as an HTML figure."""
    alt = Image.open(path).info["Description"]
    image = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return (
        f'<figure class="{css}"><img src="{image}" alt="{escape(alt)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def definition_list(items: dict[str, Any]) -> str:
    parts = (f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in items.items())
    return f"<dl>{''.join(parts)}</dl>"


def trials_table_html(table: pd.DataFrame, run: int) -> str:
    """Returns a table that the page sorts and filters, with a button for each trial's curves."""
    columns = ["trial", *(name for name in default_columns(table) if name != "trial")]
    numeric = [name for name in columns if pd.api.types.is_numeric_dtype(table[name])]
    head = "".join(
        f'<th scope="col"{_css("number", name in numeric)}>'
        f'<button type="button">{escape(name)}</button></th>'
        for name in columns
    )
    lines = []
    for number, row in enumerate(table[columns].to_dict("records")):
        cells = (
            _number_cell(value) if name in numeric else _text_cell(name, value, run, number)
            for name, value in row.items()
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="filter"><label for="filter-{run}">Filter</label>'
        f'<input id="filter-{run}" type="search" placeholder="words, or length&gt;=20" '
        f'autocomplete="off"><span id="count-{run}" role="status">{len(table)} of {len(table)} '
        'trials</span></div><div class="scroll" tabindex="0" role="region" aria-label="trials">'
        f'<table class="trials" id="trials-{run}">'
        "<caption>Column headings sort; trial names open learning curves.</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _css(name: str, applies: bool = True) -> str:
    return f' class="{name}"' if applies else ""


def _number_cell(value: float) -> str:
    if value != value:  # NaN: missing
        return "<td></td>"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f'<td class="number" data-value="{float(value)!r}">{text}</td>'


def _text_cell(name: str, value: Any, run: int, number: int) -> str:
    text = "" if value is None or value != value else escape(str(value))
    if name == "trial":
        return (
            f'<td><button type="button" aria-expanded="false" data-run="{run}" '
            f'data-trial="{number}">{text}</button></td>'
        )
    if name == "status":
        return f"<td{_css(text)}>{text}</td>"
    return f"<td{_css('text', len(text) > 40)}>{text}</td>"


def learning_curves(trial: Trial) -> dict[str, Any]:
    """Returns the data of a trial's charts: its epochs, and a list of values for each metric."""
    rows = pd.DataFrame(trial.rows)
    charts = [[name for name in names if name in rows] for names in CHARTS]
    charts = [names for names in charts if names]
    columns = {
        name: [
            None if not math.isfinite(v) else float(f"{v:.4g}")
            for v in pd.to_numeric(rows[name], errors="coerce")  # other projects report text, too
        ]
        for names in charts
        for name in names
    }
    charts = [names for names in charts if any(v is not None for n in names for v in columns[n])]
    return {
        "epochs": [row.get("epoch", row["training_iteration"]) for row in trial.rows],
        "charts": charts,
        "columns": columns,
    }


def settings_of(trials: list[Trial]) -> dict[str, str]:
    """Returns each setting of the trials with all of its values."""
    names = dict.fromkeys(name for trial in trials for name in trial.config)
    return {name: _distinct(trial.config.get(name) for trial in trials) for name in names}


def _distinct(values: Iterable[Any]) -> str:
    """Returns the distinct values, sorted; None is written as on the command line."""
    distinct = {"none" if value is None else str(value): value for value in values}
    try:
        return ", ".join(sorted(distinct, key=distinct.__getitem__))
    except TypeError:  # of several types
        return ", ".join(distinct)


def provenance(trials: list[Trial]) -> dict[str, str]:
    """Returns when, how long, on which hardware and with which libraries trials were trained."""
    rows = [row for trial in trials for row in trial.rows if "epoch_end_time" in row]
    if not rows:
        return {}
    start = min(row["epoch_end_time"] - row["epoch_seconds"] for row in rows)
    end = max(row["epoch_end_time"] for row in rows)
    hours = sum(row["epoch_seconds"] for row in rows) / 3600
    return {
        "start of the first epoch": time.strftime("%Y-%m-%d %H:%M", time.localtime(start)),
        "end of the last epoch": time.strftime("%Y-%m-%d %H:%M", time.localtime(end)),
        "hours of training, sum over trials": f"{hours:.2f}",
        "hardware": _distinct(row["hardware"] for row in rows if "hardware" in row) or "unknown",
        "nodes": _distinct(row["node_ip"] for row in rows),
        "library versions": _distinct(
            row["library_versions"] for row in rows if "library_versions" in row
        )
        or "unknown",
    }


def status_line(trials: list[Trial]) -> str:
    """Returns the number of trials by status, of epochs and of resumes, as a paragraph."""
    counts = pd.Series([trial.status for trial in trials]).value_counts()
    resumes = sum(trial.resumes() for trial in trials)
    epochs = sum(len(trial.rows) for trial in trials)
    parts = [f"{count} {status}" for status, count in counts.items()]
    parts += [f"{epochs} epochs", f"resumed {resumes} times"]
    return f"<p>{escape(', '.join(parts))}.</p>"


def failures(trials: list[Trial]) -> str:
    errors = {trial.name: trial.failure or "unknown error" for trial in trials
              if trial.status == "failed"}  # fmt: skip
    return f"<h3>Failures</h3>{definition_list(errors)}" if errors else ""


def sweep_section(trials: list[Trial], num_test_samples: int, out: Path) -> str:
    """Returns the findings and figures of a sweep's finished trials."""
    finished = [trial for trial in trials if trial.is_finished()]
    if not finished:
        return "<p>No finished trial yet: no figures.</p>"
    findings, paths = plot_finished(finished, trials, num_test_samples, out)
    lines = "".join(f"<p>{escape(line)}</p>" for line in findings)
    return f'{lines}<div class="figures">{"".join(map(figure_html, paths))}</div>'


def gan_section(results: str, run: int, out: Path) -> tuple[str, list[dict[str, Any]]]:
    """Returns the figures of a run of the GAN, and its grid of images at each checkpoint."""
    try:
        trial, generators = gan_figures.read_run(results)
    except ResultsError as error:
        return f"<p>{escape(str(error))}</p>", []
    classifier = load_classifier()
    grids = []
    for epoch, generator in generators.items():
        images = generate(generator, gan_figures.grid_latents(trial))
        alt = describe_predictions(prediction_table(images, classifier))
        image = _jpeg(image_grid(images, gan_figures.GRID))
        grids.append({"epoch": epoch, "alt": alt, "image": image})
    slider = (
        '<figure class="grid"><img src="" alt=""><figcaption>'
        f'<label for="epoch-{run}">The same latent vectors, <output></output></label>'
        f'<input type="range" id="epoch-{run}" data-run="{run}" min="0" max="{len(grids) - 1}" '
        f'value="{len(grids) - 1}"></figcaption></figure>'
    )
    paths, table, left_out = gan_figures.plot_latest(trial, generators, classifier, out)
    figures = [
        figure_html(path, css="chart wide" if path.stem == "figure7" else "chart")
        for path in paths
        if path.suffix == ".png"
    ]
    notes = "".join(f"<p>{escape(sentence)}</p>" for sentence in left_out)
    metrics = f'<div class="scroll" tabindex="0"><pre>{escape(table)}</pre></div>'
    return f'{notes}<div class="figures">{slider}{"".join(figures)}</div>{metrics}', grids


def _jpeg(image: Any) -> str:
    """Returns pixels from -1 to 1 as a data URI."""
    file = io.BytesIO()
    pixels = ((image + 1) * 127.5).round().byte().numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def page(results: list[str], num_test_samples: int) -> str:
    """Returns the HTML page of experiments, in the order given.

    Raises:
        ResultsError: a path is not an experiment.
    """
    experiments = [read_trials(path) for path in results]
    data: dict[str, Any] = {"fractions": FRACTIONS}
    sections = []
    for run, (path, trials) in enumerate(zip(results, experiments, strict=True)):
        if sys.stdout.isatty():
            print(f"{path}: plotting", flush=True)
        data[str(run)] = {str(i): learning_curves(trial) for i, trial in enumerate(trials)}
        with tempfile.TemporaryDirectory() as out:
            if is_gan(trials):
                figures, grids = gan_section(path, run, Path(out))
                data[str(run)]["grids"] = grids
            elif is_sweep(trials):
                figures = sweep_section(trials, num_test_samples, Path(out))
            else:
                figures = ""
        sections.append(
            f"<section><h2>{escape(trials[0].experiment)}</h2>"
            f'<p class="faint">{escape(path)}</p>'
            f"{status_line(trials)}{figures}<h3>Trials</h3>"
            f"{trials_table_html(trials_table(trials), run)}{failures(trials)}"
            f"<h3>Settings</h3>{definition_list(settings_of(trials))}"
            f"<h3>Provenance</h3>{definition_list(provenance(trials))}</section>"
        )
    content = {
        "title": " and ".join(
            dict.fromkeys(escape(trials[0].experiment) for trials in experiments)
        ),
        "byline": f"created {time.strftime('%Y-%m-%d %H:%M')} by analysis/report.py",
        "sections": "\n".join(sections),
        "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
    }
    return render(TEMPLATE.read_text(), content)


def render(template: str, content: dict[str, str]) -> str:
    """Replaces each {{name}} of a template; the inserted text is not searched again."""
    first, *rest = template.split("{{")
    parts = [first]
    for part in rest:
        name, text = part.split("}}", 1)
        parts += [content[name], text]
    return "".join(parts)


def main() -> int:
    parser = cli.ArgumentParser(__doc__)
    cli.add_runs_and_out(parser, "report.html", runs="runs")
    add_num_test_samples(parser)
    args = parser.parse_args()
    if args.out.is_dir():
        parser.error(f"--out {args.out}: is a folder, give a file")
    cli.check_writable(args.out)
    text = page(args.runs, args.num_test_samples)
    args.out.write_text(text)
    size = len(text.encode())
    print(f"{args.out}: {size / 1e6:.1f} MB")
    if size > MAX_PAGE_BYTES:
        print(f"larger than {MAX_PAGE_BYTES / 1e6:.0f} MB: give fewer runs")
    return 0


if __name__ == "__main__":
    cli.run_main(main)
