"""Every op's kernels, forward and backward, run on torch's current stream and on the device of the tensors."""

import pytest
import torch
from support.samples import Ragged, outputs_and_gradients, random_ids

pytestmark = pytest.mark.cuda

BATCH = Ragged("", (200, 0, 150, 3))
WIDTH, ITEM_NUM, USER_NUM, SEQ_MAX_LEN = 48, 500, 20, 200


def attention_arguments(generator):
    q, k, v = torch.randn(3, BATCH.num_tokens, 2, WIDTH, generator=generator)
    lengths = (BATCH.cu_seqlens(), BATCH.cu_seqlens(), BATCH.max_seqlen, BATCH.max_seqlen)
    return q, k, v, *lengths, WIDTH**-0.5, 0.2, torch.tensor([1]), 3


def multi_head_arguments(generator):
    x_q, x_k = torch.randn(2, BATCH.num_tokens, WIDTH, generator=generator)
    weights = torch.randn(3, WIDTH, WIDTH, generator=generator) / WIDTH**0.5
    biases = torch.randn(3, WIDTH, generator=generator)
    layers = [x for layer in zip(weights, biases, strict=True) for x in layer]
    lengths = (BATCH.cu_seqlens(), BATCH.cu_seqlens(), BATCH.max_seqlen, BATCH.max_seqlen)
    return x_q, x_k, *layers, *lengths, 2, 0.2, 0.2, torch.tensor([1]), 3


def layer_norm_arguments(generator):
    x = torch.randn(BATCH.num_tokens, WIDTH, generator=generator)
    gamma, beta = torch.randn(2, SEQ_MAX_LEN, WIDTH, generator=generator)
    positions = torch.randint(SEQ_MAX_LEN, (BATCH.num_tokens,), generator=generator)
    return x, gamma, beta, positions, BATCH.cu_seqlens()


def feed_forward_arguments(generator):
    x = torch.randn(BATCH.num_tokens, WIDTH, generator=generator)
    weights = torch.randn(2, WIDTH, WIDTH, generator=generator)
    biases = torch.randn(2, WIDTH, generator=generator)
    return x, weights[0], biases[0], weights[1], biases[1], 0.2, torch.tensor([1]), 3


def gated_arguments(generator):
    x, y, gate = torch.randn(3, BATCH.num_tokens, WIDTH, generator=generator)
    return x, y, gate, 0.2, torch.tensor([1]), 3


def swiglu_arguments(generator):
    return torch.randn(BATCH.num_tokens, WIDTH, generator=generator), 0.2, torch.tensor([1]), 3


def tables(generator):
    return (
        torch.randn(ITEM_NUM + 1, WIDTH, generator=generator),
        torch.randn(USER_NUM + 1, WIDTH, generator=generator),
    )


def users(generator):
    return random_ids(generator, (len(BATCH.lengths),), USER_NUM)


def embedding_arguments(generator):
    positional = torch.randn(SEQ_MAX_LEN, 2 * WIDTH, generator=generator)
    items = random_ids(generator, (BATCH.num_tokens,), ITEM_NUM, padding=0.1)
    positions = torch.randint(SEQ_MAX_LEN, (BATCH.num_tokens,), generator=generator)
    ids = (items, users(generator), positions, BATCH.cu_seqlens())
    return *tables(generator), positional, *ids, 0.2, torch.tensor([1]), 3


def logits_arguments(generator):
    x = torch.randn(BATCH.num_tokens, 2 * WIDTH, generator=generator)
    items = random_ids(generator, (BATCH.num_tokens, 5), ITEM_NUM, padding=0.1)
    return x, *tables(generator), items, users(generator), BATCH.cu_seqlens()


def loss_arguments(generator):
    x = torch.randn(BATCH.num_tokens, 2 * WIDTH, generator=generator)
    positives, negatives = (
        random_ids(generator, shape, ITEM_NUM, padding=0.1)
        for shape in ((BATCH.num_tokens,), (BATCH.num_tokens, 5))
    )
    ids = (positives, negatives, users(generator), BATCH.cu_seqlens())
    return x, *tables(generator), *ids, "sampled_softmax"


OPS = {
    "causal_attention": attention_arguments,
    "feed_forward": feed_forward_arguments,
    "gated_residual": gated_arguments,
    "multi_head_attention": multi_head_arguments,
    "position_layer_norm": layer_norm_arguments,
    "sampled_logits": logits_arguments,
    "sampled_loss": loss_arguments,
    "swiglu": swiglu_arguments,
    "user_item_embedding": embedding_arguments,
}
every_op = pytest.mark.parametrize("name", OPS)


@pytest.fixture(autouse=True)
def _in_a_fixed_order():
    """So that results can be compared bit for bit."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def arguments_on(name, device):
    arguments = OPS[name](torch.Generator().manual_seed(0))
    return [x.to(device) if isinstance(x, torch.Tensor) else x for x in arguments]


def run(name, arguments):
    """Outputs, and gradients for a gradient of ones."""
    return outputs_and_gradients(getattr(torch.ops.ssept_ext, name), arguments)


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    assert all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(actual, expected, strict=True))


@every_op
def test_work_is_queued_on_the_current_stream(name):
    arguments = arguments_on(name, "cuda")
    expected = run(name, arguments)
    late = [arguments[0].clone(), *arguments[1:]]
    late[0].zero_()
    torch.cuda.synchronize()

    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)  # kernels on another stream would now read zeros
        late[0].copy_(arguments[0])
        actual = run(name, late)
    torch.cuda.synchronize()

    assert_same(actual, expected)


@every_op
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_work_is_queued_on_the_tensors_device(name):
    expected = run(name, arguments_on(name, "cuda:0"))

    actual = run(name, arguments_on(name, "cuda:1"))  # while cuda:0 is the current one

    assert actual[0].device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    assert_same(actual, expected)
