"""Does every fault to a cluster of three hosts, and then kills at random.

python tests/soak.py            all of it (make soak): a table, line by line
python tests/soak.py --times 3 --only "the head"
"""

import argparse
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import faults
import hosts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--times", type=int, default=1, metavar="N", help="how often each fault is done (1)"
    )
    parser.add_argument("--only", default="", metavar="WORDS", help="faults that these are part of")
    asked = parser.parse_args()
    if asked.times < 1:
        parser.error("--times must be 1 or more")
    if hosts.lacking:
        parser.error(f"hosts are namespaces: needs {hosts.lacking}")
    # As Ctrl-C: what was started ends with the program.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    wanted = [fault for fault in faults.FAULTS if asked.only in fault]
    print("| fault | times | outcome | seconds to recover (median, largest) |")
    print("| --- | --- | --- | --- |", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="soak", dir="/tmp") as place,
        faults.cluster(Path(place)) as cluster,
    ):
        for number, fault in enumerate(wanted):
            seconds = [faults.suffer(cluster, fault, f"{number}-{i}") for i in range(asked.times)]
            row = f"{statistics.median(seconds):.0f}, {max(seconds):.0f}"
            print(f"| {fault} | {asked.times} | same numbers | {row} |", flush=True)
        if asked.only:
            return
        began = time.monotonic()
        killed, typed = faults.soak(cluster, trials=200, seed=0)
        minutes = (time.monotonic() - began) / 60
        print(
            f"| 200 short trials, {killed} processes killed at random in {minutes:.0f} min "
            f"| 1 | same numbers, the command typed {typed} times | |",
            flush=True,
        )


if __name__ == "__main__":
    main()
