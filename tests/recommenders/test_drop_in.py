"""A script written for recommenders' torch port ends with the port's numbers if only the package's name is replaced."""

import json
from pathlib import Path

import pytest
from recommenders.script import run

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    return run("ssept_ext.recommenders", tmp_path_factory.mktemp("script"))


def leaves(value, name=""):
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in pairs for k, v in leaves(part, f"{name}/{key}").items()}
    return {name: value}


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("name", GOLDEN)
def test_the_script_ends_with_the_numbers_of_the_port(numbers, name):
    assert leaves(numbers[name]) == pytest.approx(leaves(GOLDEN[name]), rel=1e-9, abs=1e-9)


def test_the_script_names_no_number_that_golden_json_lacks(numbers):
    assert numbers.keys() == GOLDEN.keys()
