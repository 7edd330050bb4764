"""Injects faults into jobs on a cluster of three virtual hosts; prints a table.

All of it takes half an hour, and needs root.

  python tests/soak.py      each fault once, then random SIGKILLs (make soak)
  python tests/soak.py --times 3 --only "head node"
"""

import argparse
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import faults
import netns_hosts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=1, metavar="N", help="runs of each fault (1)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only faults that contain TEXT")
    args = parser.parse_args()
    if args.times < 1:
        parser.error(f"--times {args.times}: must be at least 1")
    selected = [fault for fault in faults.FAULTS if args.only in fault]
    if not selected:
        parser.error(f"--only {args.only!r}: choose from {', '.join(faults.FAULTS)}")
    if netns_hosts.MISSING:
        parser.error(f"hosts are namespaces: needs {netns_hosts.MISSING}")
    # As at Ctrl-C, the hosts end with this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print("| fault | runs | outcome | seconds to recover (median, largest) |")
    print("| --- | --- | --- | --- |", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="soak", dir="/tmp") as folder,
        faults.cluster(Path(folder)) as cluster,
    ):
        for number, fault in enumerate(selected):
            seconds = [faults.inject(cluster, fault, f"{number}-{i}") for i in range(args.times)]
            recovery = f"{statistics.median(seconds):.0f}, {max(seconds):.0f}"
            print(f"| {fault} | {args.times} | identical results | {recovery} |", flush=True)
        if args.only:
            return
        start = time.monotonic()
        killed, commands = faults.kill_at_random(cluster, trials=200, seed=0)
        minutes = (time.monotonic() - start) / 60
        print(
            f"| 200 short trials, {killed} random SIGKILLs in {minutes:.0f} min "
            f"| 1 | identical results, command run {commands} times | |",
            flush=True,
        )


if __name__ == "__main__":
    main()
