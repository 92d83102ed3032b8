"""What `position_bias` and `time_bias` add to the attention of a model."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from support.factories import perturbed, random_batch, tiny_model
from support.padded import padded_inputs
from support.tolerances import assert_close, relative_error
from torch.nn import functional as F

from ssept_ext import SASREC, SSEPT
from ssept_ext.network.config import Architecture
from ssept_ext.network.layers import Dropout
from ssept_ext.training.options import TrainingOptions
from ssept_ext.training.step import make_loss, make_optimizer

every_architecture = pytest.mark.parametrize("architecture", get_args(Architecture))
every_backend = pytest.mark.parametrize("backend", ["auto", "reference"])
LENGTHS = (5, 1, 0, 8, 3)
BOTH = {"position_bias": True, "time_bias": True}


def model(architecture="recommenders", **changes):
    """Two blocks of two heads, in float64, with random parameters everywhere."""
    options = BOTH | {"seq_max_len": 8, "num_blocks": 2, "attention_num_heads": 2}
    return perturbed(tiny_model(architecture=architecture, **options | changes)).double()


def batch(*lengths, **changes):
    """Sequences with times: each event predicts the next one, and the last one some later event."""
    lengths = lengths or LENGTHS
    generator = torch.Generator().manual_seed(1)
    made = random_batch(*lengths, seq_max_len=8, generator=generator, **changes)
    gaps = torch.randint(1, 10**6, (sum(lengths) + 1,), generator=generator)
    times = gaps.cumsum(0)
    return replace(made, times=times[:-1], target_times=times[1:])


def part(b, sequence):
    """One sequence of a batch."""
    begin, end = b.cu_seqlens[sequence : sequence + 2].tolist()
    of_tokens = ("items", "positions", "positives", "negatives", "times", "target_times")
    return replace(
        b,
        users=b.users[sequence : sequence + 1],
        cu_seqlens=torch.tensor([0, end - begin], dtype=torch.int32),
        **{name: getattr(b, name)[begin:end] for name in of_tokens},
    )


@every_architecture
def test_a_model_starts_as_the_same_one_without_biases(architecture):
    torch.manual_seed(3)
    plain = tiny_model(architecture=architecture, seq_max_len=8)
    torch.manual_seed(3)
    biased = tiny_model(architecture=architecture, seq_max_len=8, **BOTH)

    assert torch.equal(biased.encode(batch()), plain.encode(batch()))


def test_each_block_has_a_table_for_every_option_that_is_on():
    names = {
        options: {n for n in model(**dict(options)).state_dict() if n.endswith("_bias")}
        for options in ((("time_bias", False),), (("position_bias", False),), tuple(BOTH.items()))
    }

    assert list(names.values()) == [
        {f"encoder.enc_layers.{i}.mha.{name}" for i in range(2) for name in which}
        for which in (["position_bias"], ["time_bias"], ["position_bias", "time_bias"])
    ]
    shapes = [tuple(p.shape) for n, p in model(num_blocks=1).named_parameters() if "_bias" in n]
    assert shapes == [(2, 8), (2, 128)]


@every_architecture
def test_a_token_reads_the_time_that_it_predicts_and_the_times_of_what_it_sees(architecture):
    m, b = model(architecture, num_blocks=1), batch(8)
    with torch.no_grad():
        m.encoder.enc_layers[0].mha.K.weight.div_(10)  # so that no key has all the weight
    hidden = m.encode(b)
    for changed in range(8):
        moved = torch.zeros(8, dtype=torch.int64).index_fill(0, torch.tensor([changed]), 10**9)
        of_target = m.encode(replace(b, target_times=b.target_times + moved))
        of_event = m.encode(replace(b, times=b.times - moved))
        # The first token sees a key alone, whose weight is 1 whatever its score.
        targets = (of_target != hidden).any(1).nonzero().flatten().tolist()
        events = (of_event != hidden).any(1).nonzero().flatten().tolist()
        assert targets == ([changed] if changed else [])
        assert events == list(range(max(changed, 1), 8))


@every_architecture
def test_only_differences_of_times_count(architecture):
    m, b = model(architecture), batch()
    later = replace(b, times=b.times + 10**12, target_times=b.target_times + 10**12)
    assert torch.equal(m.encode(later), m.encode(b))


@every_backend
@every_architecture
def test_the_last_tokens_alone_are_those_of_all_tokens(architecture, backend):
    m, b = model(architecture, backend=backend), batch()

    last = m.encode(b, last_only=True)

    full = m.encode(b)
    assert torch.isfinite(last).all()
    assert_close(last[[0, 1, 3, 4]], full[[4, 5, 13, 16]])


@every_architecture
def test_other_sequences_and_spare_rows_change_nothing(architecture):
    m, b = model(architecture), batch()
    of_tokens = ("items", "positions", "times", "target_times")
    spare = replace(b, **{name: F.pad(getattr(b, name), (0, 4)) for name in of_tokens})

    hidden = m.encode(b)

    assert_close(m.encode(spare)[:17], hidden)
    assert_close(torch.cat([m.encode(part(b, i)) for i in (0, 1, 3, 4)]), hidden)


@every_architecture
def test_gradients_with_dropout_are_the_same_on_every_backend(architecture):
    b, drop = batch(), Dropout(0.4, torch.tensor([11]))
    results = []
    for backend in ("auto", "reference"):
        torch.manual_seed(2)
        m = model(architecture, backend=backend)
        m.encode(b, drop).square().sum().backward()
        assert all(p.grad.any() for n, p in m.named_parameters() if n.endswith("_bias"))
        results.append(torch.cat([p.grad.flatten() for p in m.parameters()]))
    assert relative_error(*results) < 1e-10


@every_architecture
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_training_steps_change_the_biases(architecture, precision):
    m = tiny_model(architecture=architecture, seq_max_len=8, num_blocks=2, l2_reg=0.1, **BOTH)
    options = TrainingOptions(precision=precision)
    optimizer = make_optimizer(m, 0.01, options)

    make_loss(m, None, options)(batch(), torch.tensor([3])).backward()
    optimizer.step()

    biases = [p for n, p in m.named_parameters() if n.endswith("_bias")]
    assert len(biases) == 4
    assert all(p.dtype == torch.float32 and p.any() for p in biases)


def test_l2_leaves_the_biases_alone():
    m = model(l2_reg=0.1)
    groups = make_optimizer(m, 0.01, TrainingOptions()).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert not any(id(p) in decayed for n, p in m.named_parameters() if n.endswith("_bias"))


@pytest.mark.parametrize("missing", ["times", "target_times"])
def test_a_batch_without_times_is_an_error_that_names_the_option(missing):
    b = replace(batch(), **{missing: None})
    with pytest.raises(ValueError, match=r"must have times and target_times.* has time_bias"):
        model().encode(b)


def test_a_model_without_time_bias_needs_no_times():
    m = model(time_bias=False)
    b = batch()
    assert torch.equal(m.encode(b), m.encode(replace(b, times=None, target_times=None)))


@pytest.mark.parametrize("kind", [SASREC, SSEPT])
def test_padded_arrays_serve_a_position_bias_and_no_time_bias(kind):
    inputs = {"user": [1], "input_seq": [[0] * 5 + [3, 5, 7]], "candidate": [[1, 2]]}
    by_position = perturbed(tiny_model(kind, seq_max_len=8, position_bias=True))
    by_time = tiny_model(kind, seq_max_len=8, time_bias=True)

    assert by_position.predict(inputs).isfinite().all()
    with pytest.raises(ValueError, match="has time_bias: .*padded arrays have none"):
        by_time.predict(inputs)
    with pytest.raises(ValueError, match="has time_bias: .*padded arrays have none"):
        by_time(padded_inputs())


def test_parameters_of_a_model_without_biases_do_not_load_silently_into_one_with():
    with pytest.raises(RuntimeError, match="Missing key.*position_bias"):
        model().load_state_dict(model(position_bias=False, time_bias=False).state_dict())
