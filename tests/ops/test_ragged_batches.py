"""Random ragged batches through every op, forward and backward: native against the reference in float64."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.implementations import implementation
from support.samples import Ragged, outputs_and_gradients, random_ids
from support.tolerances import assert_close

from ssept_ext.ops import reference
from ssept_ext.ops.relative_bias import TIME_BUCKETS

ITEM_NUM, USER_NUM, SEQ_MAX_LEN = 29, 5, 24
BIASES = ("position_bias", "time_bias", "query_times", "key_times")

every_batch = settings(max_examples=80)

ragged_batches = st.builds(
    Ragged,
    st.just("random"),
    st.lists(st.one_of(st.just(0), st.integers(1, 70)), max_size=7).map(tuple),
    st.integers(0, 5),
)
generators = st.integers(0, 2**32).map(lambda seed: torch.Generator().manual_seed(seed))
dtypes = st.sampled_from([torch.float32, torch.float64])
widths = st.integers(3, 70)
dropouts = st.tuples(
    st.sampled_from([0.0, 0.1, 0.7]),
    st.integers(-(2**63), 2**63 - 1).map(lambda seed: torch.tensor([seed])),
    st.integers(0, 2**32 - 1),
)


def widened(x):
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def assert_native_matches_reference(op, generator, shape, *arguments):
    """`shape` is that of the first output."""
    dtype = next(x.dtype for x in arguments if isinstance(x, torch.Tensor))
    native = implementation("native").op(op)
    grad = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    actual = outputs_and_gradients(native, arguments, grad)
    exact = outputs_and_gradients(
        getattr(reference, op), [widened(x) for x in arguments], grad.double()
    )
    assert len(actual) == len(exact)
    for x, y in zip(actual, exact, strict=True):
        assert x.dtype == dtype
        # A gradient that is 0 but for the rounding of float64 is 0.
        assert_close(x, torch.where(y.abs() < 1e-14, 0, y))


def normal(generator, dtype, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def tables(generator, dtype, item_width, user_width):
    item_weight = normal(generator, dtype, ITEM_NUM + 1, item_width)
    user_weight = normal(generator, dtype, USER_NUM + 1, user_width) if user_width else None
    return item_weight, user_weight


def users_of(ragged, generator, user_width):
    shape = (len(ragged.lengths),)
    return random_ids(generator, shape, USER_NUM, padding=0.2) if user_width else None


@every_batch
@given(ragged_batches, generators, dtypes, widths, st.one_of(st.just(0), widths), dropouts)
def test_user_item_embedding(ragged, generator, dtype, item_width, user_width, dropout):
    n = ragged.num_tokens
    assert_native_matches_reference(
        "user_item_embedding",
        generator,
        (n, item_width + user_width),
        *tables(generator, dtype, item_width, user_width),
        normal(generator, dtype, SEQ_MAX_LEN, item_width + user_width),
        random_ids(generator, (n,), ITEM_NUM, padding=0.1),
        users_of(ragged, generator, user_width),
        torch.randint(SEQ_MAX_LEN, (n,), generator=generator),
        ragged.cu_seqlens(),
        *dropout,
    )


@every_batch
@given(ragged_batches, generators, dtypes, st.integers(8, 130), st.booleans())
def test_position_layer_norm(ragged, generator, dtype, width, by_position):
    n = ragged.num_tokens
    of_parameters = (SEQ_MAX_LEN, width) if by_position else (width,)
    assert_native_matches_reference(
        "position_layer_norm",
        generator,
        (n, width),
        normal(generator, dtype, n, width),
        normal(generator, dtype, *of_parameters),
        normal(generator, dtype, *of_parameters),
        torch.randint(SEQ_MAX_LEN, (n,), generator=generator),
        ragged.cu_seqlens(),
    )


@every_batch
@given(
    ragged_batches,
    generators,
    dtypes,
    st.integers(1, 4),
    st.integers(1, 70),
    st.booleans(),
    dropouts,
)
def test_causal_attention(ragged, generator, dtype, heads, head_size, newest_only, dropout):
    queries = ragged
    if newest_only:  # of each sequence, some of the newest tokens
        lengths = [
            int(torch.randint(length + 1, (), generator=generator)) for length in ragged.lengths
        ]
        queries = Ragged("random", tuple(lengths), ragged.spare)
    shape_q, shape_k = ((x.num_tokens, heads, head_size) for x in (queries, ragged))
    assert_native_matches_reference(
        "causal_attention",
        generator,
        shape_q,
        *(normal(generator, dtype, *shape) for shape in (shape_q, shape_k, shape_k)),
        queries.cu_seqlens(),
        ragged.cu_seqlens(),
        queries.max_seqlen,
        ragged.max_seqlen,
        head_size**-0.5,
        *dropout,
    )


@every_batch
@given(
    ragged_batches,
    generators,
    dtypes,
    st.integers(1, 4),
    st.integers(1, 40),
    dropouts,
    st.booleans(),
    st.booleans(),
)
def test_multi_head_attention(
    ragged, generator, dtype, heads, head_size, dropout, residual, biased
):
    n, width = ragged.num_tokens, heads * head_size
    x_q, x_k = (normal(generator, dtype, n, width) for _ in range(2))
    weights = [normal(generator, dtype, width, width) / width**0.5 for _ in "qkv"]
    biases = [normal(generator, dtype, width) for _ in "qkv"]
    offsets, lengths = (ragged.cu_seqlens(),) * 2, (ragged.max_seqlen,) * 2
    arguments = (*offsets, *lengths, heads, head_size**-0.5, *dropout, residual)
    wide = torch.promote_types(dtype, torch.float32)
    widths = (ragged.max_seqlen + 1, TIME_BUCKETS) if biased else ()
    tables = [normal(generator, wide, heads, columns) for columns in widths]
    times = [torch.randint(10**6, (n,), generator=generator) for _ in tables]

    def only_out(op):
        def of(x_q, x_k, q_weight, q_bias, k_weight, v_weight, v_bias, *tables):
            layers = (q_weight, q_bias, k_weight, biases[1].to(x_q.dtype), v_weight, v_bias)
            bias = dict(zip(BIASES, (*tables, *times), strict=False))
            return op(x_q, x_k, *layers, *arguments, **bias)[0]

        return of

    leaves = (x_q, x_k, weights[0], biases[0], *weights[1:], biases[2], *tables)
    grad = normal(generator, torch.float64, n, width)
    actual = outputs_and_gradients(
        only_out(torch.ops.ssept_ext.multi_head_attention), leaves, grad.to(dtype)
    )
    exact = outputs_and_gradients(
        only_out(reference.multi_head_attention),
        [x.double() for x in leaves],
        grad.to(dtype).double(),
    )
    assert_close(actual[0], exact[0])
    # Together, as one can be a small difference of large sums, which float32 does not hold.
    assert_close(*(torch.cat([x.flatten() for x in kind[1:]]) for kind in (actual, exact)))


@every_batch
@given(
    st.integers(0, 300),
    st.integers(1, 130),
    st.integers(0, 130),
    generators,
    dtypes,
    dropouts,
    st.booleans(),
)
def test_feed_forward(rows, width, inner, generator, dtype, dropout, has_residual):
    p, seed, site = dropout

    def whole_numbers(*shape):
        return torch.randint(-2, 3, shape, generator=generator).to(dtype)

    assert_native_matches_reference(
        "feed_forward",
        generator,
        (rows, width),
        whole_numbers(rows, width),
        whole_numbers(inner, width),
        whole_numbers(inner) + 0.5,  # so that no rounding takes an input of the ReLU across 0
        normal(generator, dtype, width, inner),
        normal(generator, dtype, width),
        p,
        seed,
        min(site, 2**32 - 2),
        normal(generator, dtype, rows, width) if has_residual else None,
    )


@every_batch
@given(st.integers(0, 300), st.integers(0, 130), generators, dtypes, dropouts, st.booleans())
def test_gated_residual(rows, width, generator, dtype, dropout, has_gate):
    x, y, gate = (normal(generator, dtype, rows, width) for _ in range(3))
    gate = gate if has_gate else None
    assert_native_matches_reference(
        "gated_residual", generator, (rows, width), x, y, gate, *dropout
    )


@every_batch
@given(st.integers(0, 300), st.integers(0, 130), generators, dtypes, dropouts)
def test_swiglu(rows, width, generator, dtype, dropout):
    u = normal(generator, dtype, rows, 2 * width)
    assert_native_matches_reference("swiglu", generator, (rows, width), u, *dropout)


@every_batch
@given(
    ragged_batches,
    generators,
    dtypes,
    st.integers(0, 40),
    widths,
    st.one_of(st.just(0), widths),
)
def test_sampled_logits(ragged, generator, dtype, num_items, item_width, user_width):
    n = ragged.num_tokens
    assert_native_matches_reference(
        "sampled_logits",
        generator,
        (n, num_items),
        normal(generator, dtype, n, item_width + user_width),
        *tables(generator, dtype, item_width, user_width),
        random_ids(generator, (n, num_items), ITEM_NUM, padding=0.1),
        users_of(ragged, generator, user_width),
        ragged.cu_seqlens(),
    )


@every_batch
@given(
    ragged_batches,
    generators,
    st.integers(0, 40),
    widths,
    st.one_of(st.just(0), widths),
    st.sampled_from(["bce", "bpr", "sampled_softmax"]),
    st.booleans(),
    st.sampled_from(["event", "sequence", "batch"]),
)
def test_sampled_and_shared_loss(
    ragged, generator, num_negatives, item_width, user_width, loss, corrects_positive, per
):
    # A user's gradient can be the small difference of large sums, which float32 does not hold.
    n, dtype = ragged.num_tokens, torch.float64
    sets = {"event": n, "sequence": len(ragged.lengths), "batch": 1}[per]
    assert_native_matches_reference(
        "sampled_loss" if per == "event" else "shared_loss",
        generator,
        (),
        normal(generator, dtype, n, item_width + user_width) / item_width,
        *tables(generator, dtype, item_width, user_width),
        random_ids(generator, (n,), ITEM_NUM, padding=0.1),
        random_ids(generator, (sets, num_negatives), ITEM_NUM, padding=0.1),
        users_of(ragged, generator, user_width),
        ragged.cu_seqlens(),
        *([] if per == "event" else [ragged.max_seqlen]),
        loss,
        0.5,
        normal(generator, dtype, ITEM_NUM + 1),
        corrects_positive,
    )
