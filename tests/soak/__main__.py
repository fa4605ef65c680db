"""``python -m tests.soak --minutes 20 --seed 0``: exit status 1 if anything was wrong."""

from __future__ import annotations

import argparse
import sys

from .soak import soak, table


def main() -> int:
    """Run, and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Fits with faults, one after the other.")
    parser.add_argument("--minutes", type=float, default=20.0, help="how long")
    parser.add_argument("--seed", type=int, default=0, help="what the fits are drawn from")
    parser.add_argument("--first", type=int, default=0, help="number of the first plan, to repeat one")
    parser.add_argument("--most", type=int, default=None, help="how many plans at most")
    parser.add_argument("--fault", default="", help="only plans with faults whose name begins like this")
    given = parser.parse_args()
    print(f"seed {given.seed}, {given.minutes:g} minutes, from plan {given.first} on", flush=True)
    tally = soak(given.seed, minutes=given.minutes, first=given.first, most=given.most, fault=given.fault)
    print(table(tally, given.seed))
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
