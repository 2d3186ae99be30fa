"""Command line of the fuzzer: `make fuzz`, or `python -m tests.fuzz --variants 2000 --seed 0 --kinds images masks`."""

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.fuzz.judge import KINDS, judge


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--variants", type=int, default=2000, help="how many to try")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first one")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS, help="kinds that take turns")
    asked = parser.parse_args()
    outcomes, faults = Counter[str](), 0
    for seed in range(asked.seed, asked.seed + asked.variants):
        verdict = judge(seed, kinds=asked.kinds)
        outcomes[f"{verdict.what.partition(':')[0]} {verdict.outcome}"] += 1
        if verdict.fault is not None:
            faults += 1
            print(f"\nseed {seed}, {verdict.what}: {verdict.outcome}\n  {verdict.fault}", flush=True)
    print(*(f"{count:5} {outcome}" for outcome, count in sorted(outcomes.items())), sep="\n")
    print(f"{asked.variants} variants, {faults} faults")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
