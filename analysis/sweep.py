"""Plots a sweep: the report's Figures 1-3, learning curves, accuracy in tests.

  python analysis/sweep.py ~/ray_results/figures --out figures
  python analysis/sweep.py ~/ray_results/figures ~/ray_results/more-seeds
  python analysis/sweep.py s3://BUCKET/sweeps/figures --num-test-samples 200

Each figure is a PNG, with its data beside it as a CSV; accuracy_drops.csv lists
the sharp drops, of over 20 points within an epoch. The networks are tested on
unseen palindromes of all lengths. Unfinished trials are left out, and counted.
"""

from analysis import cli

if __name__ == "__main__":
    cli.start_script()  # before the imports, which take seconds


from analysis.results import read_finished
from analysis.sweep_figures import describe_sweep, plot_sweep
from analysis.transfer import add_num_test_samples


def main() -> int:
    parser = cli.ArgumentParser(__doc__)
    cli.add_runs_and_out(parser, "figures")
    add_num_test_samples(parser)
    args = parser.parse_args()
    finished, trials = read_finished(args.runs)
    cli.make_out_dir(args.out)
    figures = plot_sweep(finished, trials, args.num_test_samples, args.out)
    cli.print_summary(describe_sweep(finished, trials), figures, len(finished), len(trials))
    return 0


if __name__ == "__main__":
    cli.run_main(main)
