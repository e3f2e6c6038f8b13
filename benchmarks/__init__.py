"""Benchmarks: what the package costs, against C that does the same and against the standard library.

Each script answers one question, as root on a host with a v1 memory hierarchy: `python -m benchmarks.register`. All
competitors run in the same run and in a new order each round, so what counts is the ratios; `limits/` holds those
in C, which show how fast it could be. `--json` prints one JSON document, with every sample in it.

`python -m benchmarks` runs them all, keeps what they found in `results/`, and makes `report.md` and `plots/` of that.
"""
