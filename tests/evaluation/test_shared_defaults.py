"""The options of evaluations, which functions and the command line share."""

import inspect

import pytest

from ssept_ext.evaluation import draw_candidates, evaluate, evaluate_popularity, rank_candidates
from ssept_ext.evaluation.full import evaluate_full
from ssept_ext.evaluation.options import EvaluationOptions


@pytest.mark.parametrize(
    "function", [draw_candidates, evaluate, evaluate_full, evaluate_popularity, rank_candidates]
)
def test_functions_have_the_defaults_of_the_options(function):
    options = vars(EvaluationOptions())

    parameters = inspect.signature(function).parameters

    shared = options.keys() & parameters.keys()
    assert shared
    assert {name: parameters[name].default for name in shared} == {n: options[n] for n in shared}
