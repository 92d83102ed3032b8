"""Any value of any option: accepted within the limits, or refused in one line that names the option."""

import argparse
import contextlib
import io
from dataclasses import fields

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ssept_ext import SASREC, SSEPT
from ssept_ext.cli import app as cli
from ssept_ext.cli import train
from ssept_ext.evaluation.options import EvaluationOptions
from ssept_ext.network.config import SASRECConfig, SSEPTConfig
from ssept_ext.sampling.options import SamplerOptions
from ssept_ext.training.options import LoopOptions, TrainingOptions
from ssept_ext.training.recipe import Recipe

NUMBERS = st.integers() | st.integers(-(10**30), 10**30) | st.floats()
TEXTS = st.text(max_size=50) | st.sampled_from(
    ["", "1_0", "١", "0x10", "-", "--", "\0", "nan", "\udcff"]
)
WORDS = NUMBERS.map(str) | TEXTS | st.integers(1, 5000).map(lambda digits: "9" * digits)
REQUIRED = {
    "resume": ["run"],
    "update": ["run", "--data", "events.csv"],
    "plot": ["run"],
    "evaluate": ["run"],
    "export": ["run", "--out", "model.onnx"],
    "compare": ["run", "run"],
    "predict": ["run", "--users", "1"],
    "serve": ["run"],
    "prepare": ["raw", "--out", "out"],
}


def options_of(parser):
    """(command, option) for each flag and argument of each command."""
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return [
        (name, action)
        for name, command in commands.choices.items()
        for action in command._actions
        if not isinstance(action, argparse._HelpAction)
    ]


def decide(options):
    """Make the recipe that `ssept train` would train with."""
    if getattr(options, "model", None):
        kind = {"ssept": SSEPT, "sasrec": SASREC}[options.model]
        recipe = Recipe.of(kind, options.preset, train._given(options, kind), num_users=100)
        kind.config_class(
            **{"item_num": 30} | ({"user_num": 9} if kind is SSEPT else {}) | recipe.model
        )
    return 0


@pytest.fixture(scope="module")
def parser():
    parser = cli.make_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for command in commands.choices.values():
        command.set_defaults(command=decide)
    return parser


@given(data=st.data())
@settings(max_examples=1000)
def test_any_value_of_any_option_is_accepted_or_one_line_that_names_it(parser, data):
    command, option = data.draw(st.sampled_from(options_of(parser)))
    number = option.nargs if isinstance(option.nargs, int) else 1
    words = data.draw(st.lists(WORDS, min_size=number or 1, max_size=number or 1))
    if not option.option_strings:
        assume(not words[0].startswith("-"))
        argv = [command, *words, *REQUIRED.get(command, [])[1:]]
    elif len(words) == 1:
        argv = [command, *REQUIRED.get(command, []), f"{option.option_strings[0]}={words[0]}"]
    else:
        assume(not any(word.startswith("-") for word in words))
        argv = [command, *REQUIRED.get(command, []), option.option_strings[0], *words]

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as told:
        patch.setattr(cli, "make_parser", lambda argv: parser)
        code = cli.main(argv)

    error = told.getvalue()
    if code == 0:
        assert error == ""
        return
    assert code == 2
    assert error.startswith("ssept: error: ")
    assert error.endswith("\n")
    assert len(error.splitlines()) == 1
    names = [*option.option_strings, option.dest, option.metavar]
    if option.dest.endswith("embedding_dim"):
        names.append("attention_num_heads")  # which must divide the widths' sum
    assert any(name in error for name in names if name), error


@given(data=st.data())
@settings(max_examples=400)
@pytest.mark.parametrize(
    ("kind", "required"),
    [
        (SASRECConfig, {"item_num": 30}),
        (SSEPTConfig, {"item_num": 30, "user_num": 9}),
        (SamplerOptions, {}),
        (LoopOptions, {}),
        (TrainingOptions, {}),
        (EvaluationOptions, {}),
    ],
)
def test_any_value_of_any_keyword_is_accepted_or_an_error_that_names_it(kind, required, data):
    field = data.draw(st.sampled_from(fields(kind)))
    anything = NUMBERS | TEXTS | st.booleans() | st.none() | st.binary()
    value = data.draw(anything | st.lists(anything, max_size=3) | st.tuples(NUMBERS, NUMBERS))

    try:
        made = kind(**required | {field.name: value})
    except ValueError as error:
        message = str(error)
        hidden_size = ("conv_dims", "attention_num_heads") * field.name.endswith("embedding_dim")
        assert any(name in message for name in (field.name, *hidden_size)), message
        assert len(message) < 2000
    else:
        kept = getattr(made, field.name)
        limits = field.metadata.get("within")
        if isinstance(kept, (int, float)) and limits is not None:
            assert kept in limits
            assert isinstance(kept, float) or kept < 2**63
