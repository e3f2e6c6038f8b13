"""Does anything stay behind of watches that were closed?

One process makes a million watches and closes them, one after the other, and by how many bytes its private memory and
what the kernel holds for it grow meanwhile is measured from outside, as in memory.py. Of 50,000 that go before nothing
counts: what the allocator keeps for the next time is there from then on.

- memcg_oom: Monitor.watch() and Watch.close(), and now and then wait(0), as a program that watches has it;
- the standard library: the same system calls, and a dict.

The target is what an allocator holds more or less of from one moment to the next: a byte for each of a million, when
there is no object that has less than 16. Whoever is killed elsewhere on the host meanwhile is remembered by a Monitor
for a while, for some 400 bytes: so nobody should be.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import common, designs

OURS = "memcg_oom"
LIBRARY = "Python standard library"
TARGET = 1024  # KiB

KIB = ("KiB", 1024)
CGROUPS = 16


def main() -> None:
    options = common.parser(__doc__, rounds=1)
    options.add_argument("--cycles", type=int, default=1_000_000, help="watches made and closed (default: %(default)s)")
    args = options.parse_args()

    with common.scratch(CGROUPS) as paths:
        home = Path(paths[0]).parent / "home"
        commands = {
            name: designs.python(design, "--cycles", str(args.cycles))
            for name, design in ((OURS, "memcg_oom-again"), (LIBRARY, "library-again"))
        }
        found = common.shuffled(args.rounds, commands, lambda name: designs.grown(commands[name], paths, home))

    grown = {f"user, {name}": [one.user for one in rounds] for name, rounds in found.items()}
    grown |= {f"kernel, {name}": [one.kernel for one in rounds] for name, rounds in found.items()}
    common.report(
        f"Growth by {args.cycles} watches that were made and closed",
        KIB,
        {name: common.distribution(values) for name, values in grown.items()},
        [common.figure(name, values, KIB, TARGET if OURS in name else None) for name, values in grown.items()],
        args.json,
        base="bytes",
    )


if __name__ == "__main__":
    main()
