"""What `make fuzz` begins with, and a little of what it goes on to: the same each time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.parsers import PARSERS, PIECES, check_cost, mutated

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"
FILES = [file for name in PARSERS for file in sorted((CORPUS / name).glob("*"))]
ROUNDS = 300


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_the_corpus(file: Path) -> None:
    parser = PARSERS[file.parent.name]
    parser.check(file.read_bytes())
    check_cost(parser, file.read_bytes())


@pytest.mark.parametrize("name", PARSERS)
def test_a_few_inputs(name: str) -> None:
    dice = random.Random(name)
    pool = [file.read_bytes() for file in FILES if file.parent.name == name]
    if not pool:
        pytest.skip("the tests were copied without their corpus")
    for _ in range(ROUNDS):
        PARSERS[name].check(mutated(dice, pool, PIECES[name]))
        PARSERS[name].make_up(dice)
