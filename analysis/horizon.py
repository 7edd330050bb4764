"""Plots how far back networks remember, how soon they learn, their gradients.

  python analysis/horizon.py ~/ray_results/horizon --out horizon
  python analysis/horizon.py ~/ray_results/horizon-ablate --out ablation

Gradients are plotted for trials that were trained with --probe, and ablations
where there are variants. Unfinished trials are left out, and counted.
"""

from analysis import cli

if __name__ == "__main__":
    cli.start_script()  # before the imports, which take seconds


from analysis.horizon_figures import describe_horizon, plot_horizon
from analysis.results import CONFIG_COLUMNS, read_finished


def main() -> int:
    parser = cli.ArgumentParser(__doc__)
    cli.add_runs_and_out(parser, "horizon")
    args = parser.parse_args()
    finished, trials = read_finished(args.runs, [*CONFIG_COLUMNS, "variant"])
    cli.make_out_dir(args.out)
    figures = plot_horizon(finished, trials, args.out)
    cli.print_summary(describe_horizon(finished, trials), figures, len(finished), len(trials))
    return 0


if __name__ == "__main__":
    cli.run_main(main)
