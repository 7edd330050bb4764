"""Does every fault to a cluster of three hosts several times, and then kills at random for a while.

python tests/soak.py            all of it (make soak): a table, line by line
python tests/soak.py --times 1
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import faults


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=2, help="how often each fault is done (2)")
    times = parser.parse_args().times
    print("| fault | times | outcome | seconds to recover (median, largest) |")
    print("| --- | --- | --- | --- |", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="soak", dir="/tmp") as place,
        faults.cluster(Path(place)) as cluster,
    ):
        for number, fault in enumerate(faults.FAULTS):
            seconds = [faults.suffer(cluster, fault, f"{number}-{i}") for i in range(times)]
            middle, most = statistics.median(seconds), max(seconds)
            print(f"| {fault} | {times} | same numbers | {middle:.0f}, {most:.0f} |", flush=True)
        began = time.monotonic()
        killed, typed = faults.soak(cluster, trials=200, seed=0)
        minutes = (time.monotonic() - began) / 60
        print(
            f"| 200 short trials, {killed} of them killed at random in {minutes:.0f} min | 1 "
            f"| same numbers, the command typed {typed} times | |",
            flush=True,
        )


if __name__ == "__main__":
    main()
