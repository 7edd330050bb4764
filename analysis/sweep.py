"""Plots a sweep: the report's Figures 1-3, learning curves, tests.

  python analysis/sweep.py ~/ray_results/figures --out figures
  python analysis/sweep.py ~/ray_results/figures ~/ray_results/more-seeds
  python analysis/sweep.py s3://BUCKET/sweeps/figures --num-test-samples 200

Each figure is a PNG, with its data beside it as a CSV; sharp_drops.csv lists
accuracy drops of over 20 points within an epoch. The networks are tested on
unseen palindromes of all lengths. Of task copy-first: test MSE over length,
learning curves, and the gradients that --probe recorded. Unfinished trials are
left out, and counted.
"""

from analysis import cli

if __name__ == "__main__":
    cli.start_script()  # before the imports, which take seconds


from analysis.results import CONFIG_COLUMNS, read_finished
from analysis.run_figures import plot_sweep_of_task
from analysis.transfer import add_num_test_samples
from models.tasks import TASKS


def main() -> int:
    parser = cli.ArgumentParser(__doc__)
    cli.add_runs_and_out(parser, "figures")
    add_num_test_samples(parser)
    args = parser.parse_args()
    finished, trials = read_finished(args.runs, CONFIG_COLUMNS, tuple(TASKS))
    cli.make_out_dir(args.out)
    findings, figures = plot_sweep_of_task(finished, trials, args.num_test_samples, args.out)
    cli.print_summary(findings, figures, len(finished), len(trials))
    return 0


if __name__ == "__main__":
    cli.run_main(main)
