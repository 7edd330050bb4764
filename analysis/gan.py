"""Plots a run of the GAN: the report's Figures 4-7, losses, sample quality.

  python analysis/gan.py ~/ray_results/gan-report --out figures
  python analysis/gan.py ~/ray_results/gan-report --from 3 --to 8   only this
  python analysis/gan.py s3://BUCKET/gan/gan-report --out figures

Each figure is a PNG, with its data beside it as a CSV; training.gif shows the
images of the same latent vectors over the epochs. A running GAN can be plotted.
"""

from analysis import cli

if __name__ == "__main__":
    cli.start_script()  # before the imports, which take seconds

import argparse
import sys
from pathlib import Path

from analysis.gan_figures import plot_grids, plot_latest, read_run, write_training_gif
from analysis.interpolation import plot_interpolation
from models.classifier import load_classifier


def parse_args() -> argparse.Namespace:
    """Parses the command line; `pair` is the interpolation to plot, None for all figures."""
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("run", metavar="RUN", help="folder or URI of a run of jobs/gan.py")
    parser.add_argument(
        "--out",
        type=cli.expand_path,
        default=Path("figures"),
        help="folder of the figures (figures)",
    )
    for end in ("from", "to"):
        parser.add_argument(
            f"--{end}", type=int, choices=range(10), dest=end, metavar="DIGIT",
            help=f"digit to interpolate {end}, and plot nothing else (all figures)",
        )  # fmt: skip
    args = parser.parse_args()
    start, end = vars(args)["from"], args.to
    if (start is None) != (end is None):
        parser.error("--from and --to require each other")
    if start is not None and start == end:
        parser.error(f"--from {start} --to {end}: choose two different digits")
    args.pair = None if start is None else (start, end)
    return args


def main() -> int:
    args = parse_args()
    run, generators = read_run(args.run)
    cli.make_out_dir(args.out)
    out, classifier = args.out, load_classifier()
    if args.pair:
        latest, name = generators[max(generators)], "figure7_{}_to_{}".format(*args.pair)
        path, _ = plot_interpolation(latest, run.config["seed"], classifier, [args.pair], out, name)
        print(path)
        return 0
    paths, table, left_out = plot_latest(run, generators, classifier, out)
    for sentence in left_out:
        print(f"gan.py: {sentence}", file=sys.stderr)
    grids = plot_grids(run, generators, classifier, out)
    print(table, *grids, *paths, write_training_gif(run, generators, out), sep="\n")
    return 0


if __name__ == "__main__":
    cli.run_main(main)
