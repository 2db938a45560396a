"""Runs seeds: `python -m tests.simulation --seed 7 --trace`, or fresh ones for some time."""

from __future__ import annotations

import argparse
import secrets
import sys
import time

from tests.simulation.scenes import SCENES
from tests.simulation.world import Story, run

_TELL_EVERY = 50


def main() -> int:
    """Run what was asked for; 1 where a seed fails."""
    asked = _arguments()
    weather = SCENES[asked.scene] if asked.scene else None
    if asked.seed is not None:
        story = run(asked.seed, print if asked.trace else lambda _: None, weather)
        print(_line(story))
        return 1 if story.fault else 0
    failed = 0
    end = time.monotonic() + asked.seconds
    count, seed = 0, asked.first if asked.first is not None else secrets.randbelow(1 << 40)
    while time.monotonic() < end and count < asked.count:
        story = run(seed, weather=weather)
        if story.fault or asked.verbose:
            print(_line(story), flush=True)
        failed += bool(story.fault)
        count, seed = count + 1, seed + 1
        if count % _TELL_EVERY == 0:
            print(f"{count} seeds up to {seed - 1}, {failed} failed", flush=True)
    print(f"{count} seeds up to {seed - 1}, {failed} failed")
    return 1 if failed else 0


def _line(story: Story) -> str:
    told = (
        f"seed {story.seed}: {story.steps} steps, {story.seconds:.0f} s, {story.commits} commits, "
        f"{story.crashes} crashes, trace {story.trace_digest[:12]}, book {story.book_digest[:12]}"
    )
    if not story.fault:
        return told
    return (
        f"{told}\n  FAILED: {story.fault}\n  python -m tests.simulation --seed {story.seed} --trace"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one")
    parser.add_argument("--trace", action="store_true", help="tell its whole story")
    parser.add_argument("--seconds", type=float, default=60, help="run fresh seeds for so long")
    parser.add_argument("--count", type=int, default=1 << 62, help="and at most so many")
    parser.add_argument("--first", type=int, help="start here instead of anywhere")
    parser.add_argument("--scene", choices=SCENES, help="in this world, not in the seed's own")
    parser.add_argument("--verbose", action="store_true", help="a line for each seed")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
