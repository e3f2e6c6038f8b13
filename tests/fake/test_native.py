"""The stub of the native module against what the module exports and what its C declarations say."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import memcg_oom
from memcg_oom._native import ffi, lib

STUB = Path(memcg_oom.__file__).with_name("_native.pyi")
DECLARATIONS = Path(__file__).parents[2] / "csrc" / "declarations.h"


def class_of_stub(name: str) -> list[ast.stmt]:
    (found,) = (
        node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ClassDef) and node.name == name
    )
    return found.body


def functions_of_stub(name: str) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in class_of_stub(name) if isinstance(node, ast.FunctionDef)}


def values_of_stub(name: str) -> set[str]:
    return {
        node.target.id
        for node in class_of_stub(name)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


@pytest.fixture(scope="module")
def declarations() -> str:
    if not DECLARATIONS.exists():
        pytest.skip("the tests were copied without the C declarations (csrc)")
    return re.sub(r"/\*.*?\*/", "", DECLARATIONS.read_text(), flags=re.DOTALL)


def functions_of_c(declarations: str) -> dict[str, tuple[str, list[str]]]:
    """Each one's result type and parameters."""
    return {
        name: (result.strip(), [] if arguments.strip() == "void" else re.split(r",\s*", arguments))
        for result, name, arguments in re.findall(
            r"^([a-z][\w ]*?)\b(memcg_\w+)\(([^)]*)\);", declarations, re.MULTILINE
        )
    }


def test_the_stub_names_exactly_what_is_exported() -> None:
    assert set(functions_of_stub("lib")) | values_of_stub("lib") == set(dir(lib))


def test_functions_are_functions_and_values_are_values() -> None:
    assert all(callable(getattr(lib, name)) for name in functions_of_stub("lib"))
    assert all(isinstance(getattr(lib, name), int) for name in values_of_stub("lib"))
    assert all(
        [getattr(decorator, "id", "") for decorator in function.decorator_list] == ["staticmethod"]
        for function in functions_of_stub("lib").values()
    )


def test_the_stub_of_ffi_names_what_there_is() -> None:
    assert [name for name in (*functions_of_stub("ffi"), *values_of_stub("ffi")) if not hasattr(ffi, name)] == []


def test_the_parameters_are_those_of_the_declarations(declarations: str) -> None:
    in_c = functions_of_c(declarations)
    in_stub = functions_of_stub("lib")
    assert set(in_c) == set(in_stub)
    for name, (_, parameters) in in_c.items():
        names = [re.findall(r"\w+", parameter)[-1] for parameter in parameters]
        assert [argument.arg for argument in in_stub[name].args.args] == names, name


def test_the_results_are_those_of_the_declarations(declarations: str) -> None:
    in_stub = functions_of_stub("lib")
    for name, (result, _) in functions_of_c(declarations).items():
        returns = in_stub[name].returns
        assert returns is not None
        assert ast.unparse(returns) == ("None" if result == "void" else "int"), name


def test_the_constants_are_those_of_the_declarations(declarations: str) -> None:
    constants = set(re.findall(r"^#define (MEMCG_\w+)", declarations, re.MULTILINE))
    (members,) = re.findall(r"enum memcg_step \{(.*?)\}", declarations, re.DOTALL)
    steps = re.findall(r"MEMCG_\w+", members)
    assert constants | set(steps) == values_of_stub("lib")
    assert [getattr(lib, name) for name in steps] == list(range(len(steps)))


def test_the_number_of_arguments_is_checked() -> None:
    for name, function in functions_of_stub("lib").items():
        surplus = [ffi.NULL] * (len(function.args.args) + 1)
        with pytest.raises(TypeError, match="argument"):
            getattr(lib, name)(*surplus)
