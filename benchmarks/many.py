"""Does it cost more to tell an OOM of one cgroup when 65,000 others are watched?

The same as of 100, 1,000 and 10,000 watches (event_cost.py), with as many cgroups as the kernel can hold. So many
descriptors are not to be had on every host, and cgroups that nobody else uses on hardly any: this runs in a virtual
machine, emulated instruction by instruction, of which only the ratios mean something.
"""

from __future__ import annotations

from benchmarks import common, emulated, event_cost

MOST = 65_000  # the kernel numbers memory cgroups with 16 bits (MEM_CGROUP_ID_MAX)
MEMORY = 6144  # MiB
DESCRIPTORS = 200_000  # of each process: all sets of watches are there at once


def main() -> None:
    options = common.parser(__doc__, rounds=3)
    options.add_argument("--events", type=int, default=50, help="of each set in a round (default: %(default)s)")
    args = options.parse_args()
    sizes = ["--counts", *event_cost.COUNTS, MOST, "--events", args.events, "--rounds", args.rounds]
    emulated.show(emulated.run("event_cost", sizes, "v1", memory=MEMORY, before=f"ulimit -n {DESCRIPTORS}"), args.json)


if __name__ == "__main__":
    main()
