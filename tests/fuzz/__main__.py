"""Fuzzes the parsers and goes on with the model: python -m tests.fuzz --help."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.parsers import PARSERS, PIECES, Coverage, Parser, check_cost, mutated

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CORPUS = HERE / "corpus"
WORK = ROOT / ".cache" / "fuzz"
FINDINGS = WORK / "findings"

TMPFS = "/dev/shm"  # noqa: S108 - where there is one: to the parsers in C each input is a file

NATIVE = "counters"  # the parsers in C
MODEL = "model"
ALL = (*PARSERS, NATIVE, MODEL)

CORE = ("control_file", "memory_events", "discovery")
SANITIZED = ("-std=c11", "-Icsrc", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")
EXAMPLES = 200  # of the model, in a row


def corpus(name: str) -> list[Path]:
    """The files to begin with."""
    return sorted((CORPUS / name).iterdir())


def command(*arguments: object) -> str:
    """For the reader, who is in the repository's folder."""
    return " ".join([".venv/bin/python -m tests.fuzz", *map(str, arguments)])


def found(name: str, how: str, why: str) -> bool:
    print(f"{name}: FOUND\n{why}\nto see it again: {how}", file=sys.stderr)
    return False


def tries(what: Callable[[], None]) -> str:
    """Why something does not hold, or nothing."""
    try:
        what()
    except Exception:  # whatever it is, it should not be
        return traceback.format_exc(limit=-3)
    return ""


def fuzz_parser(parser: Parser, seed: int, seconds: float) -> bool:
    dice = random.Random(f"{parser.name}/{seed}")
    pieces = PIECES[parser.name]
    coverage = Coverage(parser)
    pool: list[bytes] = []
    fresh = [path.read_bytes() for path in corpus(parser.name)]
    end = time.monotonic() + seconds
    count = 0
    while fresh or time.monotonic() < end:
        is_fresh = bool(fresh)
        data = fresh.pop() if fresh else mutated(dice, pool, pieces)
        count += 1
        with coverage:
            why = tries(lambda data=data: parser.check(data))  # type: ignore[misc]
        if coverage.grew() or is_fresh:
            why = why or tries(lambda data=data: check_cost(parser, data))  # type: ignore[misc]
            pool.append(data)
        if why:
            file = FINDINGS / f"{parser.name}-{seed}-{count}"
            file.write_bytes(data)
            return found(parser.name, command(parser.name, "--replay", file.relative_to(ROOT)), f"{data!r}\n{why}")
        key = f"{parser.name}/{seed}/{count}"
        if why := tries(lambda key=key: parser.make_up(random.Random(key))):  # type: ignore[misc]
            (FINDINGS / key.replace("/", "-")).write_text(f"made up: {key}\n{why}")
            return found(parser.name, command(parser.name, "--made-up", key), why)
    print(f"{parser.name}: {count} inputs mutated, {len(pool)} kept, as many made up; seed {seed}")
    return True


def build_native() -> Path:
    """The harness; the core alone is built so that it says where it is, the fuzzer around it is not."""
    WORK.mkdir(parents=True, exist_ok=True)
    objects = []
    for source in CORE:
        objects.append(WORK / f"{source}.o")
        told = ("-fsanitize-coverage=trace-pc", "-c", "-o", objects[-1], f"csrc/{source}.c")
        subprocess.run(["gcc", *SANITIZED, *told], check=True, cwd=ROOT)
    program = WORK / "fuzz_parsers"
    subprocess.run(["gcc", *SANITIZED, "-o", program, "tests/fuzz/fuzz_parsers.c", *objects], check=True, cwd=ROOT)
    return program


def run_native(*arguments: object) -> subprocess.CompletedProcess[str]:
    folder = tempfile.mkdtemp(prefix="memcg_oom_fuzz_", dir=TMPFS if os.access(TMPFS, os.W_OK) else None)
    try:
        filled = [folder if argument is None else str(argument) for argument in arguments]
        return subprocess.run([build_native(), *filled], check=False, capture_output=True, text=True)
    finally:
        shutil.rmtree(folder)


def fuzz_native(seed: int, seconds: float) -> bool:
    file = FINDINGS / f"{NATIVE}-{seed}"
    done = run_native(seed, max(1, round(seconds)), None, file, *corpus(NATIVE))
    if done.returncode:
        text = repr(file.read_bytes()) if file.exists() else "a file of the corpus"
        return found(NATIVE, command(NATIVE, "--replay", file.relative_to(ROOT)), f"{text}\n{done.stderr}")
    print(f"{NATIVE}: {done.stdout.strip()}; seed {seed}")
    return True


def fuzz_model(seed: int, seconds: float) -> bool:
    """One run of some examples after the other, each with a seed of its own."""
    end = time.monotonic() + seconds
    first = seed
    while time.monotonic() < end or seed == first:
        arguments = ["-m", "pytest", "-q", "tests/fake/test_model.py", f"--hypothesis-seed={seed}"]
        environment = {**os.environ, "MEMCG_OOM_EXAMPLES": str(EXAMPLES)}
        done = subprocess.run(
            [sys.executable, *arguments], check=False, capture_output=True, text=True, cwd=ROOT, env=environment
        )
        if done.returncode:
            file = FINDINGS / f"{MODEL}-{seed}"
            file.write_text(done.stdout + done.stderr)
            how = f"MEMCG_OOM_EXAMPLES={EXAMPLES} .venv/bin/python {' '.join(arguments)}"
            return found(MODEL, f"{how}\nall of it is in {file.relative_to(ROOT)}", done.stdout[-6000:] + done.stderr)
        seed += 1
    print(f"{MODEL}: {(seed - first) * EXAMPLES} orders; seeds {first} to {seed - 1}")
    return True


def replay(name: str, file: Path) -> bool:
    if name == NATIVE:
        done = run_native("replay", None, file.absolute())
        print(done.stdout + done.stderr, end="")
        return done.returncode == 0
    data = file.read_bytes()
    PARSERS[name].check(data)
    check_cost(PARSERS[name], data)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"any of {', '.join(ALL)}; without: all")
    parser.add_argument("--seconds", type=float, default=600.0, help="in all; the model gets as much as two parsers")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--replay", type=Path, metavar="FILE", help="tries that input alone")
    parser.add_argument("--made-up", metavar="KEY", help="makes that input up again")
    options = parser.parse_args()
    chosen = options.what or list(ALL)
    if unknown := set(chosen) - set(ALL):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    if options.replay:
        return not replay(chosen[0], options.replay)
    if options.made_up:
        PARSERS[chosen[0]].make_up(random.Random(options.made_up))
        return 0
    FINDINGS.mkdir(parents=True, exist_ok=True)
    part = options.seconds / (len(chosen) + (MODEL in chosen))
    print(f"seed {options.seed}: {command(*chosen, '--seed', options.seed)}", flush=True)
    good = True
    for name in chosen:
        if name == NATIVE:
            good &= fuzz_native(options.seed, part)
        elif name == MODEL:
            good &= fuzz_model(options.seed, 2 * part)
        else:
            good &= fuzz_parser(PARSERS[name], options.seed, part)
        sys.stdout.flush()
    return not good


if __name__ == "__main__":
    sys.exit(main())
