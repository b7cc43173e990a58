"""The chunked head against a plain log-softmax."""

import pytest
import torch

from agents.fused_log_probs import fused_log_probs
from agents.gpt2 import GPT2, GPT2Config
from agents.log_probs import Chunks, log_probs, log_probs_and_kl


def plain_log_probs(gpt2, hidden, tokens):
    log_p = gpt2.head(hidden).log_softmax(-1)
    return log_p.gather(1, tokens[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize(
    "chunks",
    [(100, 100, 10**6), (1, 3, 10**6), (4, 3, 10**6), (3, 4, 252), (4, 4, 253)],
    ids="rows forwards, backwards and kept {}".format,
)
@pytest.mark.parametrize("weights", [(1, 0), (0, 1), (1, 1)], ids=["log-prob", "entropy", "both"])
def test_log_probs_have_the_values_and_gradients_of_a_plain_log_softmax(chunks, weights):
    torch.manual_seed(0)
    gpt2 = GPT2(GPT2Config(vocab_size=23, n_positions=8, n_embd=16, n_layer=1, n_head=2)).double()
    gpt2.wte.weight.data *= 30  # tokens far from equally likely
    hidden = torch.randn(11, 16, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(23, (11,))
    outcomes = []
    for values in (
        log_probs(hidden, gpt2.wte.weight, tokens, chunks=Chunks(*chunks)),
        plain_log_probs(gpt2, hidden, tokens),
    ):
        loss = sum(
            w * (v * torch.linspace(-1, 2, 11)).sum() for w, v in zip(weights, values, strict=True)
        )
        outcomes.append([*values, *torch.autograd.grad(loss, (hidden, gpt2.wte.weight))])
    torch.testing.assert_close(*outcomes, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("chunks", [(100, 100, 10**6), (4, 3, 10**6), (3, 4, 505)], ids=str)
@pytest.mark.parametrize(
    "weights",
    [(1, 0, 0), (0, 0, 1), (1, 0, -1), (0.5, 2, 1)],
    ids="log-prob, entropy, KL {}".format,
)
def test_exact_kl_has_the_values_and_gradients_of_a_plain_log_softmax(chunks, weights):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=23, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    gpt2, start = GPT2(config).double(), GPT2(config).double()
    for model in (gpt2, start):
        model.wte.weight.data *= 30
    hidden = torch.randn(11, 16, dtype=torch.float64, requires_grad=True)
    start_hidden, tokens = torch.randn(11, 16, dtype=torch.float64), torch.randint(23, (11,))
    log_p, log_q = gpt2.head(hidden).log_softmax(-1), start.head(start_hidden).log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    plain = *plain_log_probs(gpt2, hidden, tokens), kl
    both = hidden, gpt2.wte.weight, start_hidden, start.wte.weight
    *ours, start_log_prob = log_probs_and_kl(*both, tokens, chunks=Chunks(*chunks))
    torch.testing.assert_close(start_log_prob, plain_log_probs(start, start_hidden, tokens)[0])
    outcomes = []
    for values in (ours, plain):
        loss = sum(
            w * (v * torch.linspace(-1, 2, 11)).sum() for w, v in zip(weights, values, strict=True)
        )
        outcomes.append([*values, *torch.autograd.grad(loss, (hidden, gpt2.wte.weight))])
    torch.testing.assert_close(*outcomes, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("chunks", [(100, 100, 10**6), (2, 3, 10**6), (3, 2, 0)], ids=str)
@pytest.mark.parametrize("places", [[0, 0, 3, 3, 3, 4], [4, 0, 3, 0, 3, 3], [2]], ids=str)
def test_a_row_may_decide_several_tokens_or_none(chunks, places):
    torch.manual_seed(0)
    weight, start_weight = torch.randn(2, 23, 16, dtype=torch.float64, requires_grad=True)
    hidden, start_hidden = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    places, tokens = torch.tensor(places), torch.randint(23, (len(places),))
    outcomes = []
    for at in (places, None):  # without `places` each token has a row of its own
        row = slice(None) if at is not None else places
        both = hidden[row], weight, start_hidden[row], start_weight
        ours = log_probs_and_kl(*both, tokens, at, Chunks(*chunks))
        alone = log_probs(*both[:2], tokens, at, chunks=Chunks(*chunks))
        spread = places if at is not None else slice(None)
        values = [ours[0], ours[1][spread], ours[2][spread], ours[3], alone[0], alone[1][spread]]
        loss = sum((v * torch.linspace(-1, 2, len(v))).sum() for v in values)
        outcomes.append([*values, *torch.autograd.grad(loss, (hidden, weight))])
    torch.testing.assert_close(*outcomes, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("chunks", [(100, 100, 10**6), (4, 3, 0)], ids=str)
@pytest.mark.parametrize("kl", [False, True])
def test_fused_log_probs_are_those_of_the_chunks(chunks, kl):
    torch.manual_seed(0)
    weight, start_weight = 3 * torch.randn(2, 23, 16, dtype=torch.float64)
    hidden, start_hidden = torch.randn(2, 11, 16, dtype=torch.float64)
    hidden.requires_grad_()
    weight.requires_grad_()
    tokens = torch.randint(23, (11,))
    start = (start_hidden, start_weight) if kl else (None, None)
    fused = fused_log_probs(hidden, weight, tokens, *start, Chunks(*chunks), compile=False)
    expected = log_probs_and_kl(hidden, weight, start_hidden, start_weight, tokens)
    outcomes = []
    for values in (fused, expected):
        values = values[: 4 if kl else 2]
        loss = sum((v * torch.linspace(-1, 2, 11)).sum() * k for k, v in enumerate(values[:3], 1))
        outcomes.append([*values, *torch.autograd.grad(loss, (hidden, weight))])
    torch.testing.assert_close(*outcomes, atol=1e-12, rtol=1e-12)
    assert kl or not any(x.any() for x in fused[2:])


def test_fused_log_probs_of_no_token():
    weight = torch.randn(23, 16, requires_grad=True)
    values = fused_log_probs(torch.empty(0, 16), weight, torch.empty(0).long(), compile=False)
    assert [x.shape for x in values] == [(0,)] * 4
    assert not torch.autograd.grad(values[0].sum(), weight)[0].any()


def test_log_probs_under_autocast_are_float32_and_near_those_of_full_precision():
    torch.manual_seed(0)
    gpt2 = GPT2(GPT2Config(vocab_size=50, n_positions=8, n_embd=32, n_layer=1, n_head=2))
    hidden, tokens = torch.randn(9, 32, requires_grad=True), torch.randint(50, (9,))
    arguments = hidden, gpt2.wte.weight, tokens, None, True, Chunks(2, 3, 0)
    exact = log_probs(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        half = log_probs(*arguments)
    assert half[0].dtype == torch.float32
    torch.testing.assert_close(half, exact, atol=0.02, rtol=0)
    gradients = [torch.autograd.grad(x[0].sum(), gpt2.wte.weight)[0] for x in (half, exact)]
    assert gradients[0].dtype == torch.float32
    torch.testing.assert_close(*gradients, atol=0.05, rtol=0)


def test_without_entropies_they_are_zero():
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 8, requires_grad=True), torch.randn(7, 8, requires_grad=True)
    tokens = torch.randint(7, (5,))
    (log_prob, entropy), (expected, _) = (
        log_probs(hidden, weight, tokens, entropies=entropies) for entropies in (False, True)
    )
    assert torch.equal(log_prob, expected)
    assert torch.equal(entropy, torch.zeros(5))
    gradients = [torch.autograd.grad(x.sum(), (hidden, weight)) for x in (log_prob, expected)]
    torch.testing.assert_close(*gradients)


class Elsewhere(torch.Tensor):
    """A tensor that says that it is on a device of another kind."""

    is_cpu = property(lambda self: False)
    device = property(lambda self: torch.device("xpu"))


@pytest.mark.parametrize("rows", [3, 4099])
def test_any_device_will_do(rows):
    """Not CPU and CUDA alone: the size of the chunks is the only thing that depends on it."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(rows, 4), torch.randn(5, 4)
    tokens = torch.randint(5, (rows,))
    got = log_probs(hidden.as_subclass(Elsewhere), weight, tokens)
    expected = log_probs(hidden, weight, tokens)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.as_subclass(torch.Tensor), b)


@pytest.mark.gpu
def test_gpu_log_probs_equal_the_cpus(cuda):
    torch.manual_seed(0)
    gpt2 = GPT2(GPT2Config(vocab_size=97, n_positions=8, n_embd=16, n_layer=1, n_head=2)).double()
    hidden, tokens = torch.randn(11, 16, dtype=torch.float64), torch.randint(97, (11,))
    outcomes = []
    for device in ("cpu", cuda):
        weight = gpt2.to(device).wte.weight
        values = gpt2.log_probs(hidden.to(device), tokens.to(device))
        gradient = torch.autograd.grad(values[0].sum() + values[1].sum(), weight)[0]
        outcomes.append([x.detach().cpu() for x in (*values, gradient)])
    torch.testing.assert_close(*outcomes, rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("kept", [0, 10**6])
@pytest.mark.parametrize("half", [False, True])
def test_gpu_compiled_log_probs_equal_plain_ones(cuda, half, kept):
    torch.manual_seed(0)
    V = 1013  # odd, so that the head is padded
    weight, start_weight = torch.randn(2, V, 64, device=cuda) / 4
    hidden, start_hidden = torch.randn(2, 150, 64, device=cuda)
    tokens = torch.randint(V, (150,), device=cuda)
    both = hidden.requires_grad_(), weight.requires_grad_()
    outcomes = []
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        chunks = Chunks(64, 64, kept)
        fused = fused_log_probs(*both, tokens, start_hidden, start_weight, chunks)
        plain = log_probs_and_kl(*both, start_hidden, start_weight, tokens, None, chunks)
    for values in (fused, plain):
        loss = sum((v * torch.linspace(-1, 2, 150, device=cuda)).sum() for v in values[:3])
        outcomes.append([*values, *torch.autograd.grad(loss, both)])
    for got, expected in zip(*outcomes, strict=True):
        close = 3e-2 if half else 1e-4
        assert (got - expected).norm() < close * expected.norm()
