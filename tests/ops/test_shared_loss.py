"""`shared_loss`, forward and backward, in every implementation, against the losses of each token's own logits."""

import math
from dataclasses import replace

import pytest
import torch
from support.implementations import CPU
from support.loss_calls import (
    ITEM_NUM,
    OPTIONS,
    RAGGED_BATCH,
    SIZES,
    USER_NUM,
    Sizes,
    in_plain_pytorch,
    of_logits,
)
from support.loss_calls import arguments as arguments_of_own
from support.samples import RAGGED, Ragged, outputs_and_gradients, ragged_id, random_ids
from support.tolerances import HALF_TYPES, assert_close

from ssept_ext import ops
from ssept_ext.ops import reference

every_implementation = pytest.mark.parametrize("implementation", CPU, indirect=True)
every_kernel = pytest.mark.parametrize("implementation", CPU[1:], indirect=True)
every_loss = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
each_way = pytest.mark.parametrize("per", ["sequence", "batch"])


def arguments(per="sequence", ragged=RAGGED_BATCH, sizes=SIZES[1], **options):
    """Those of `sampled_loss`, with negatives that the tokens of a sequence, or all of them, share."""
    rows = len(ragged.lengths) if per == "sequence" else 1
    shape = (rows, sizes.num_negatives)
    generator = torch.Generator().manual_seed(2)
    negatives = random_ids(generator, shape, ITEM_NUM, padding=0.2)
    return replace(arguments_of_own(ragged, sizes, **options), negatives=negatives)


def sharing(op):
    """The op, called as `sampled_loss` is."""

    def call(*args):
        max_seqlen = int(args[6].diff().max()) if len(args[6]) > 1 else 0
        return op(*args[:7], max_seqlen, *args[7:])

    return call


def owning(logits_of):
    """The definition: each token scores the negatives as its own, and those that do not count have no weight."""

    def counted(hidden, item_weight, user_weight, items, users, cu_seqlens):
        logits = logits_of(hidden, item_weight, user_weight, items, users, cu_seqlens)
        left_out = (items == 0) | (items == items[:, :1])
        left_out[:, 0] = False
        return logits.masked_fill(left_out, -math.inf)

    def call(hidden, items, users, positives, negatives, u, cu_seqlens, *options):
        lengths = cu_seqlens.diff().long()
        own = negatives.expand(len(lengths), -1).repeat_interleave(lengths, 0)
        own = torch.cat([own, own.new_zeros(len(positives) - len(own), own.shape[1])])
        return of_logits(counted)(hidden, items, users, positives, own, u, cu_seqlens, *options)

    return call


definition = owning(reference.sampled_logits)


def but_for_rounding(x):
    """A user's gradient is 0 in "bpr" and "sampled_softmax", where the user's part of the logits cancels."""
    return torch.where(x.abs() < 1e-14, 0, x)


def assert_as_defined(implementation, a):
    actual = a.results(sharing(implementation.op("shared_loss")))
    for x, y in zip(actual, a.results(definition), strict=True):
        assert_close(x, but_for_rounding(y))


@each_way
@every_loss
@pytest.mark.parametrize("ragged", RAGGED, ids=ragged_id)
@every_implementation
def test_loss_and_gradients_are_those_of_negatives_of_its_own(implementation, ragged, options, per):
    assert_as_defined(implementation, arguments(per, ragged, options=options))


@each_way
@every_loss
@pytest.mark.parametrize("sizes", [*SIZES, Sizes(300, 5, 4)], ids=str)
@every_implementation
def test_any_number_of_negatives_and_any_width_will_do(implementation, sizes, options, per):
    assert_as_defined(implementation, arguments(per, sizes=sizes, options=options))


@each_way
@every_implementation
def test_sequences_may_be_long(implementation, per):
    ragged = Ragged("long", (700, 3, 259))
    assert_as_defined(implementation, arguments(per, ragged, SIZES[3]))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES], ids=str)
@each_way
@every_loss
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@every_implementation
def test_each_type_is_as_exact_as_the_policy_asks(implementation, sizes, options, per, dtype):
    a = arguments(per, sizes=sizes, options=options, dtype=dtype)
    exact = a.to(torch.float64).results(definition)
    plain = a.results(owning(in_plain_pytorch))
    loss, *gradients = a.results(sharing(implementation.op("shared_loss")))
    assert loss.dtype == torch.float32
    assert_close(loss, exact[0], plain[0], tf32=dtype != torch.float32)
    for x, y, z in zip(gradients, exact[1:], plain[1:], strict=True):
        assert x.dtype == dtype
        assert_close(x, but_for_rounding(y), z)


@every_loss
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@every_implementation
def test_a_logit_that_is_not_finite_shows_in_the_loss(implementation, value, options):
    a = arguments(ragged=Ragged("", (2, 3)), options=options, dtype=torch.float32)
    a.positives[:] = torch.tensor([5, 5, 0, 0, 0])
    a.negatives[:] = 6
    a.hidden[:, 0] = torch.tensor([1, 1, 0, 0, 0])
    a.item_weight[6, 0] = value

    actual, *_ = a.results(sharing(implementation.op("shared_loss")))

    torch.testing.assert_close(actual, a.results(definition)[0], equal_nan=True)


@every_loss
@every_implementation
def test_a_sequence_without_a_target_and_spare_capacity_count_for_nothing(implementation, options):
    a = arguments(ragged=Ragged("spare", (3, 2), spare=2), options=options)
    a.positives[:] = torch.tensor([4, 7, 5, 0, 0, 7, 8])
    a.hidden[5:] = torch.nan
    a.item_weight[0] = torch.nan
    a.user_weight[0] = torch.nan
    op = sharing(implementation.op("shared_loss"))
    loss, grad_hidden, grad_item, grad_user = a.results(op)

    a.hidden[[3, 4]] += 1
    a.negatives[1] = 3

    assert torch.equal(loss, a.results(op)[0])
    for unused in (grad_hidden[3:], grad_item[0], grad_user[0]):
        assert (unused == 0).all()


@each_way
@every_implementation
def test_a_negative_that_is_the_positive_is_as_if_it_was_not_there(implementation, per):
    a = arguments(per, options=("sampled_softmax", 1.0, False, True))
    a.positives[:] = 5
    a.negatives[:, 0] = 5
    op = sharing(implementation.op("shared_loss"))

    without = replace(a, negatives=a.negatives[:, 1:].contiguous())

    for x, y in zip(a.results(op), without.results(op), strict=True):
        assert_close(x, but_for_rounding(y))


@every_implementation
def test_gradients_are_multiplied_by_what_comes_in(implementation):
    a = arguments(options=OPTIONS["gbce"])
    op = sharing(implementation.op("shared_loss"))
    actual = outputs_and_gradients(op, vars(a).values(), torch.tensor(-3.0, dtype=torch.float64))
    for x, y in zip(actual[1:], a.results(op)[1:], strict=True):
        assert_close(x, -3 * y)


@pytest.mark.parametrize(
    ("name", "id_"),
    [("positives", ITEM_NUM + 1), ("negatives", -1), ("users", USER_NUM + 1)],
)
@every_implementation
def test_an_id_outside_its_table_is_an_index_error_that_names_it(implementation, name, id_):
    a = arguments()
    getattr(a, name).view(-1)[1] = id_
    rows = (USER_NUM if name == "users" else ITEM_NUM) + 1
    with pytest.raises(IndexError, match=f"{name} has id {id_}, outside its table of {rows} rows"):
        a.results(sharing(implementation.op("shared_loss")))


@every_implementation
def test_inputs_need_not_be_contiguous(implementation):
    a = arguments()
    strided = {
        n: torch.stack([x, torch.zeros_like(x)], -1)[..., 0]
        for n, x in vars(a).items()
        if isinstance(x, torch.Tensor)
    }
    op = sharing(implementation.op("shared_loss"))
    for x, y in zip(replace(a, **strided).results(op), a.results(op), strict=True):
        assert_close(x, y)


WRONG = [
    ("hidden must have (size 10|shape)", lambda a: {"hidden": a.hidden[:, 1:]}),
    ("positives must have 1 dimension", lambda a: {"positives": a.positives[:, None]}),
    ("positives must (be int64|be Long)", lambda a: {"positives": a.positives.int()}),
    ("negatives must have 2 dimensions", lambda a: {"negatives": a.negatives[:, 0]}),
    ("negatives must have 1 or 5 rows, got", lambda a: {"negatives": a.negatives[1:]}),
    ("negatives must (be int64|be Long)", lambda a: {"negatives": a.negatives.int()}),
    ("user_weight and users must be given together", lambda a: {"users": None}),
    ("log_q must have (size 24|shape)", lambda a: {"log_q": a.log_q[1:]}),
    ("log_q must be (torch.float64|Double)", lambda a: {"log_q": a.log_q.float()}),
    ("loss must be bce, bpr or sampled_softmax, got hinge", lambda a: {"loss": "hinge"}),
    ("beta must be finite, got nan", lambda a: {"beta": math.nan}),
]


@pytest.mark.parametrize(("match", "change"), WRONG, ids=[match for match, _ in WRONG])
@every_implementation
def test_a_wrong_argument_is_named(implementation, match, change):
    a = arguments()
    changed = replace(a, **change(a))
    with pytest.raises(ValueError, match=match):
        changed.results(sharing(implementation.op("shared_loss")))


@each_way
@every_loss
@every_implementation
def test_gradcheck(implementation, options, per):
    a = arguments(per, Ragged("small", (2, 0, 3), spare=1), options=options)
    floats = [a.hidden, a.item_weight, a.user_weight]
    others = list(vars(a).values())[3:]

    def loss(*tables):
        return sharing(implementation.op("shared_loss"))(*tables, *others)

    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in floats])


@each_way
@every_kernel
def test_opcheck(implementation, per):
    a = arguments(per, dtype=torch.float32)
    for x in (a.hidden, a.item_weight, a.user_weight):
        x.requires_grad_()
    values = list(vars(a).values())
    values.insert(7, 17)
    torch.library.opcheck(torch.ops.ssept_ext.shared_loss.default, tuple(values))


@each_way
@every_kernel
def test_results_do_not_depend_on_the_number_of_threads(implementation, per):
    a = arguments(per, Ragged("long", (600, 1, 0, 900, 77)), SIZES[3], dtype=torch.float32)
    op = sharing(implementation.op("shared_loss"))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(a.results(op))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_compiling_for_changing_lengths_makes_at_most_two_graphs():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ops.shared_loss, backend=counter, fullgraph=True, dynamic=True)
    for lengths in [(5, 4), (4, 9), (1, 12), (7, 7), (2, 30)]:
        ragged = Ragged("", lengths)
        given = vars(arguments(ragged=ragged))
        loss = compiled(**given, max_seqlen=ragged.max_seqlen)
        assert_close(loss, definition(*given.values()))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_under_autocast_logits_have_the_type_of_the_tables(dtype):
    given = vars(arguments(dtype=torch.float32)) | {"max_seqlen": 17}
    hidden = given["hidden"].to(dtype)

    with torch.autocast("cpu", dtype):
        loss = ops.shared_loss(**given | {"hidden": hidden})

    assert_close(loss, ops.shared_loss(**given | {"hidden": hidden.float()}))
