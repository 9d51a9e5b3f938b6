"""Real nodes against a nemesis::

    python -m tests.nemesis --seed 7 --seconds 45 --profile partition
    python -m tests.nemesis --hours 8             # run after run, with new seeds; ends at the first bad one
    python -m tests.nemesis --check DIR/history.jsonl

Exit status 0: nothing was found; 1: something was, and is told; the folder with the node logs is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path

from tests.nemesis import mounts, recording
from tests.nemesis.faults import PROFILES
from tests.nemesis.run import RATE, check_again, run

RANDOM_PROFILES = ("all", "crash", "pause", "partition", "storage", "membership")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.nemesis", description="Real nodes against a nemesis.")
    parser.add_argument("--seed", type=int, help="default: from the time of day, and told")
    parser.add_argument("--seconds", type=float, default=45.0, help="how long each run's faults go on (45)")
    parser.add_argument("--profile", choices=sorted(PROFILES), help="default: by the seed")
    parser.add_argument("--hours", type=float, help="go on with the next seed for so long")
    parser.add_argument("--rate", type=float, default=RATE, help=f"operations per second and client ({RATE:g})")
    parser.add_argument("--doctor", choices=sorted(recording.DOCTORS), help="falsify the history: must be found bad")
    parser.add_argument("--no-mounts", action="store_true", help="make disks full by a reserve that they cannot have")
    parser.add_argument("--forget", action="store_true", help="keep no folder even if the run was bad")
    parser.add_argument("--check", type=Path, metavar="FILE", help="only check a history again")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    if arguments.check is not None:
        verdict = check_again(arguments.check)
        print("\n".join([*(f"{count:6}  {name}" for name, count in verdict.counts().items()), *verdict.details()]))
        return 0 if verdict.good else 1
    may_mount = not arguments.no_mounts and mounts.enter_namespace()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seed = arguments.seed if arguments.seed is not None else int(time.time())
    began = time.monotonic()
    runs = 0
    while True:
        profile = arguments.profile or RANDOM_PROFILES[seed % len(RANDOM_PROFILES)]
        outcome = asyncio.run(
            run(
                seed,
                arguments.seconds,
                profile,
                rate=arguments.rate,
                doctor=arguments.doctor,
                forget=arguments.forget,
                may_mount=may_mount,
            )
        )
        print("\n".join(outcome.table()), flush=True)
        runs += 1
        if not outcome.verdict.good:
            return 1
        if arguments.hours is None or time.monotonic() - began > arguments.hours * 3600:
            print(f"{runs} runs, all good" if runs > 1 else "good", flush=True)
            return 0
        seed += 1


if __name__ == "__main__":
    sys.exit(main())
