import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
import transformers
from gpt2_helpers import SIZE, SIZES, huggingface, ours, random_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.gpt2 import END_OF_TEXT_ID, GPT2, GPT2Config, KVCache, _Decoding, sample
from agents.log_probs import Chunks, log_probs, log_probs_and_kl
from agents.sampling import apply_temperature_and_top_k

EXACT = {"rtol": 0, "atol": 1e-9}  # for float64


def logits_and_gradients(model, ids):
    """Logits, loss and gradients, under one set of names, of ours or transformers' model."""
    logits = model(ids) if isinstance(model, GPT2) else model(ids).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    if not isinstance(model, GPT2):  # transformers' own loss is float32 whatever the model's dtype
        own = model.loss_function(logits, ids, vocab_size=logits.shape[-1])
        torch.testing.assert_close(own, loss.float())
    model.zero_grad()
    loss.backward()
    body = model if isinstance(model, GPT2) else model.transformer
    gradients = {name: parameter.grad for name, parameter in body.named_parameters()}
    return logits.detach(), loss.detach(), gradients


def assert_equals_huggingface(hf, ids, **tolerance):
    gpt2 = ours(hf)
    logits, loss, gradients = logits_and_gradients(gpt2, ids)
    want_logits, want_loss, want_gradients = logits_and_gradients(hf, ids)
    torch.testing.assert_close(logits, want_logits, **tolerance)
    torch.testing.assert_close(loss, want_loss, **tolerance)
    assert gradients.keys() == want_gradients.keys()
    for name, want in want_gradients.items():
        linear = isinstance(gpt2.get_submodule(name.rpartition(".")[0]), torch.nn.Linear)
        want = want.T if linear and want.ndim == 2 else want
        torch.testing.assert_close(
            gradients[name], want, **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("size", SIZES)
def test_logits_loss_and_gradients_equal_huggingface_float64(size):
    hf = huggingface(torch.float64, **size)
    for length in (2, size["n_positions"]):
        assert_equals_huggingface(hf, random_ids(hf.config, 3, length), **EXACT)


@pytest.mark.parametrize("size", SIZES)
def test_logits_loss_and_gradients_equal_huggingface_float32(size):
    hf = huggingface(torch.float32, **size)
    ids = random_ids(hf.config, 3, size["n_positions"])
    assert_equals_huggingface(hf, ids, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_124m_shape_equals_huggingface():
    hf = huggingface(torch.float32, noise=0.0)
    assert sum(p.numel() for p in ours(hf).parameters()) == 124_439_808
    ids = torch.tensor([[464, 7328, 287, 428, 2646, 318, 922, END_OF_TEXT_ID]])
    assert_equals_huggingface(hf, ids, rtol=1e-4, atol=1e-4)


def test_layer_norm_epsilon_is_the_configs():
    hf = huggingface(layer_norm_epsilon=0.1, **SIZE)
    ids = random_ids(hf.config, 2, 9)
    torch.testing.assert_close(ours(hf)(ids), hf(ids).logits, **EXACT)


def test_dropout_is_off_by_default_in_training_mode():
    hf = huggingface(attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1, **SIZE)
    gpt2, ids = ours(hf).train(), random_ids(hf.config, 2, 9)
    torch.testing.assert_close(gpt2(ids), hf(ids).logits, **EXACT)


def test_dropout_acts_in_training_mode_only():
    gpt2 = GPT2(GPT2Config(**SIZE, dropout=0.5))
    ids = random_ids(gpt2.config, 2, 9)
    assert not torch.equal(gpt2.train()(ids), gpt2(ids))
    assert torch.equal(gpt2.eval()(ids), gpt2(ids))


def test_fresh_weights_are_drawn_as_gpt2s():
    gpt2 = GPT2(GPT2Config(vocab_size=500, n_positions=100, n_embd=96, n_layer=8, n_head=4))
    for name, parameter in gpt2.named_parameters():
        if name.endswith("c_proj.weight"):
            std = 0.02 / math.sqrt(2 * 8)
        elif parameter.ndim == 2:
            std = 0.02
        else:
            assert (parameter == (0 if name.endswith("bias") else 1)).all(), name
            continue
        assert parameter.std().item() == pytest.approx(std, rel=0.03), name
        assert abs(parameter.mean().item()) < std / 20, name


# Generation


@pytest.fixture(scope="module")
def prompts():
    """A model, ragged prompts and their lengths, and the prompts one by one."""
    hf = huggingface(**SIZE | {"n_positions": 40, "n_layer": 2})
    lengths = torch.tensor([5, 1, 7, 3])
    ids = random_ids(hf.config, 4, 7)
    return hf, ours(hf), ids, lengths, [ids[i : i + 1, :n] for i, n in enumerate(lengths)]


def greedy_by_huggingface(hf, prompt, n, end):
    """HF's own greedy continuation, filled up with `end` where it ended."""
    out = hf.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=n,
        eos_token_id=end,
        pad_token_id=0,
    )[0, prompt.shape[1] :]
    return F.pad(out, (0, n - len(out)), value=0 if end is None else end)


def test_greedy_generation_of_ragged_prompts_equals_huggingface(prompts):
    hf, gpt2, ids, lengths, alone = prompts
    free = gpt2.generate(ids, 16, greedy=True, lengths=lengths)
    want = torch.stack([greedy_by_huggingface(hf, prompt, 16, None) for prompt in alone])
    assert torch.equal(free, want)
    for row in range(4):  # a token that ends this row midway
        end = int(free[row, 6])
        got = gpt2.generate(ids, 16, greedy=True, lengths=lengths, end_index=end)
        want = torch.stack([greedy_by_huggingface(hf, prompt, 16, end) for prompt in alone])
        assert torch.equal(got, want)
        assert (got == end).any()


@pytest.mark.parametrize(
    ("temperature", "top_k"), [(1.0, None), (0.7, 5), (1.8, 1), (0.5, None), (1.0, 1000)]
)
def test_sampling_draws_from_huggingfaces_distribution(prompts, temperature, top_k):
    hf, gpt2, ids, lengths, alone = prompts
    processors = transformers.LogitsProcessorList(
        [transformers.TemperatureLogitsWarper(temperature)]
        + ([transformers.TopKLogitsWarper(top_k)] if top_k else [])
    )
    generator = torch.Generator().manual_seed(3)
    got = gpt2.generate(
        ids, 10, temperature=temperature, top_k=top_k, lengths=lengths, generator=generator
    )
    generator.manual_seed(3)
    texts = alone
    for step in range(10):
        u = torch.rand(4, dtype=torch.float64, generator=generator)
        logits = torch.cat([hf(text).logits[:, -1] for text in texts])
        want = processors(None, logits)
        torch.testing.assert_close(apply_temperature_and_top_k(logits, temperature, top_k), want)
        token = sample(want, u=u)
        assert torch.equal(got[:, step], token)
        texts = [torch.cat([text, t.view(1, 1)], 1) for text, t in zip(texts, token, strict=True)]


def test_warp_keeps_ties_of_the_kth_logit_as_huggingface_does():
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    want = transformers.TopKLogitsWarper(2)(None, logits)
    assert torch.equal(apply_temperature_and_top_k(logits, top_k=2), want)
    assert want.isfinite().sum() == 3


def test_a_seed_repeats_the_tokens_and_rows_do_not_depend_on_others_ends(prompts):
    _, gpt2, ids, lengths, _ = prompts

    def generate(end_index, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return gpt2.generate(ids, 20, lengths=lengths, end_index=end_index, generator=generator)

    free = generate(-1)
    assert torch.equal(free, generate(-1))
    assert not torch.equal(free, generate(-1, seed=1))
    for end in free[:, 4].unique().tolist():
        ended = generate(end)
        for row in range(4):
            stop = (free[row] == end).nonzero().flatten().tolist()
            n = stop[0] if stop else 20
            assert torch.equal(ended[row, :n], free[row, :n])
            assert (ended[row, n:] == end).all()


def test_generate_ends_with_the_models_own_end_of_text():
    gpt2 = GPT2(GPT2Config(**SIZE, eos_token_id=7))
    with torch.no_grad():  # every next token is the end
        gpt2.ln_f.weight.zero_()
        gpt2.ln_f.bias.copy_(gpt2.wte.weight[7] * 1e4)
    assert gpt2.generate(torch.tensor([[1, 2], [3, 4]]), 3).tolist() == [[7, 7, 7]] * 2


def test_generate_reaches_exactly_the_last_position():
    gpt2 = GPT2(GPT2Config(**SIZE))
    n = gpt2.config.n_positions
    assert gpt2.generate(torch.zeros(1, 4, dtype=torch.int64), n - 3).shape == (1, n - 3)
    assert gpt2.generate(torch.zeros(1, n, dtype=torch.int64), 1).shape == (1, 1)
    with pytest.raises(ValueError, match=f"max_new_tokens={n - 2} do not fit"):
        gpt2.generate(torch.zeros(1, 4, dtype=torch.int64), n - 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0: pass greedy=True"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"ids": torch.zeros(2, 0, dtype=torch.int64)}, "ids of 0 positions"),
        ({"ids": torch.zeros(0, 3, dtype=torch.int64)}, "ids holds no row"),
        ({"ids": torch.tensor([[1, 97]])}, r"ids hold 1 to 97: each must be .* in \[0, 97\)"),
        ({"ids": torch.tensor([[1, -1]])}, "ids hold -1 to 1"),
        ({"lengths": torch.tensor([3, 0])}, r"lengths holds \[3, 0\]"),
        ({"lengths": torch.tensor([4, 1])}, r"lengths holds \[4, 1\]"),
        ({"lengths": torch.tensor([3])}, r"lengths holds \[3\]"),
        ({"end_index": 97}, "end_index=97"),
        ({"end_index": -2}, "end_index=-2"),
    ],
)
def test_generate_refuses_what_it_cannot_do(arguments, message):
    gpt2 = GPT2(GPT2Config(**SIZE))
    ids = arguments.pop("ids", torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=message):
        gpt2.generate(ids, **{"max_new_tokens": 2, **arguments})


# The cache


@pytest.fixture(scope="module")
def small():
    return ours(huggingface(**SIZE | {"n_positions": 16, "n_layer": 2}))


ROWS = st.dictionaries(st.integers(0, 2), st.integers(1, 4), min_size=1)


@settings(max_examples=40, deadline=None)
@given(chunks=st.lists(st.tuples(ROWS, st.booleans()), max_size=8), narrow=st.booleans())
@torch.no_grad()
def test_cached_equals_uncached(small, chunks, narrow):
    """Any rows continue with chunks of any, even ragged, size, and may restart at any time."""
    cache = small.new_cache(3)
    texts = [[], [], []]
    for seed, (sizes, restart) in enumerate(chunks):
        width = max(sizes.values())
        rows = list(sizes)
        for row in rows:
            if restart or len(texts[row]) + width > 16:
                texts[row] = []
        new = random_ids(small.config, len(rows), width, seed=seed)  # behind `sizes`: padding
        starts = torch.tensor([len(texts[row]) for row in rows])
        got = small(
            new,
            starts[:, None] + torch.arange(width),
            cache=cache,
            cache_rows=None if rows == [0, 1, 2] else torch.tensor(rows),
            cache_length=None if narrow else 16,
        )
        for i, row in enumerate(rows):
            texts[row] += new[i, : sizes[row]].tolist()
            want = small(torch.tensor([texts[row]]))[0, -sizes[row] :]
            torch.testing.assert_close(got[i, : sizes[row]], want, **EXACT)


@torch.no_grad()
def test_prefill_writes_the_cache(small):
    ids = random_ids(small.config, 3, 9)
    cache = small.new_cache(5, 9)
    rows = torch.tensor([4, 0, 2])
    torch.testing.assert_close(
        small(ids[:, :6], cache=cache, cache_rows=rows), small(ids[:, :6]), **EXACT
    )
    positions = torch.arange(6, 9).expand(3, 3)
    torch.testing.assert_close(
        small(ids[:, 6:], positions, cache=cache, cache_rows=rows), small(ids)[:, 6:], **EXACT
    )


@torch.no_grad()
def test_half_precision_cache_follows_autocast(small):
    gpt2 = copy.deepcopy(small).float()
    ids = random_ids(gpt2.config, 2, 6)
    with torch.autocast("cpu", torch.bfloat16):
        cache = gpt2.new_cache(2)
        assert cache.layers[0][0].dtype == torch.bfloat16
        gpt2(ids[:, :5], cache=cache)
        got = gpt2(ids[:, 5:], torch.full((2, 1), 5), cache=cache)
    want = gpt2(ids)[:, 5:]
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05 * want.abs().max().item())


def test_padding_and_batch_size_do_not_matter(small):
    ids, lengths = random_ids(small.config, 6, 12), [12, 1, 5, 7, 2, 11]
    together = small(ids)
    for row, n in enumerate(lengths):
        torch.testing.assert_close(small(ids[row : row + 1, :n])[0], together[row, :n], **EXACT)
    torch.testing.assert_close(torch.cat([small(ids[:4]), small(ids[4:])]), together, **EXACT)
    other = ids.clone()
    other[:, 8:] = 0
    torch.testing.assert_close(small(other)[:, :8], together[:, :8], **EXACT)


def test_cache_that_does_not_fit_is_refused(small):
    ids, positions = random_ids(small.config, 2, 4), torch.arange(4).expand(2, 4)
    with pytest.raises(ValueError, match=r"under torch\.no_grad"):
        small(ids, cache=small.new_cache(2))
    with torch.no_grad():
        with pytest.raises(ValueError, match="ids holds 2 rows but the cache is read at 3"):
            small(ids, positions, cache=small.new_cache(3))
        for where in (None, positions):
            with pytest.raises(ValueError, match="max_length=3"):
                small(ids, where, cache=KVCache(small.config, 2, 3, dtype=torch.float64))
        with pytest.raises(ValueError, match="cache_length=3"):
            small(ids, positions, cache=small.new_cache(2), cache_length=3)


# Vocabulary restriction


def test_restricted_softmax_is_the_full_one_given_the_subset(small):
    subset = [96, 3, 50, 4]
    part, ids = small.restrict(subset), torch.tensor([[0, 3, 1, 2, 1]])
    full_ids = torch.tensor(subset)[ids]
    p = small(full_ids).softmax(-1)[..., subset]
    want = p / p.sum(-1, keepdim=True)
    torch.testing.assert_close(part(ids).softmax(-1), want, **EXACT)
    rows = small.head(small.hidden(full_ids), torch.tensor(subset))
    torch.testing.assert_close(rows.softmax(-1), want, **EXACT)
    assert (part.token_ids, part.config.vocab_size, part.end_index) == (subset, 4, None)
    assert not part.training
    assert part.wpe.weight.data_ptr() != small.wpe.weight.data_ptr()  # a model of its own


def test_restricting_twice_is_restricting_once(small):
    twice = small.restrict([96, 3, 50, 4]).restrict([50, 96])
    once = small.restrict([50, 96])
    assert twice.config == once.config
    for name, tensor in once.state_dict().items():
        assert torch.equal(twice.state_dict()[name], tensor), name


def test_restriction_knows_end_of_text():
    gpt2 = GPT2(GPT2Config(n_positions=4, n_embd=4, n_layer=1, n_head=1))
    assert gpt2.end_index == END_OF_TEXT_ID
    assert gpt2.restrict([5, END_OF_TEXT_ID, 9]).end_index == 1
    assert gpt2.restrict([5, 9]).end_index is None


def test_restriction_refuses_what_the_model_lacks(small):
    with pytest.raises(ValueError, match=r"token_ids holds \[97, -1\], which this model of 97"):
        small.restrict([3, 97, -1])
    with pytest.raises(ValueError, match=r"token_ids holds \[5\], which this model of 2 tokens"):
        small.restrict([3, 4]).restrict([3, 5])
    with pytest.raises(ValueError, match="token_ids holds 3 ids, 2 of them distinct"):
        small.restrict([3, 4, 3])
    with pytest.raises(ValueError, match="vocab_size=0"):
        small.restrict([])


# Bad input


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_layer": 0}, "n_layer=0 must be at least 1"),
        ({"n_embd": 10, "n_head": 4}, "n_embd=10 must be a multiple of n_head=4"),
        ({"dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"),
        ({"n_inner": 0}, "n_inner=0 must be at least 1"),
        ({"vocab_size": 3, "token_ids": (1, 2)}, "token_ids holds 2 ids"),
    ],
)
def test_config_refuses_sizes_that_make_no_gpt2(config, message):
    with pytest.raises(ValueError, match=message):
        GPT2Config(**config)


def test_ids_must_be_int64_rows_that_fit(small):
    with pytest.raises(TypeError, match=r"torch\.int32: token ids must be torch\.int64"):
        small(torch.zeros(1, 3, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"ids has shape \(3,\)"):
        small(torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="ids holds 17 positions, the model reads n_positions=16"):
        small(torch.zeros(1, 17, dtype=torch.int64))


# On a GPU


@pytest.fixture
def cuda(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    return torch.device("cuda")


@pytest.mark.gpu
def test_gpu_equals_cpu(cuda):
    hf = huggingface(torch.float32, **SIZES[2])
    gpt2, ids = ours(hf), random_ids(hf.config, 5, 32)
    on_gpu = copy.deepcopy(gpt2).to(cuda)
    want = logits_and_gradients(gpt2, ids)
    got = logits_and_gradients(on_gpu, ids.to(cuda))
    torch.testing.assert_close(got[0].cpu(), want[0], rtol=1e-4, atol=1e-4)
    for name, gradient in want[2].items():
        torch.testing.assert_close(got[2][name].cpu(), gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_gpu_equals_huggingface(cuda):
    hf = huggingface(torch.float32, **SIZES[2])
    ids = random_ids(hf.config, 5, 32).to(cuda)
    got, want = (logits_and_gradients(model.to(cuda), ids) for model in (ours(hf), hf))
    torch.testing.assert_close(got[0], want[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[1], want[1], rtol=1e-4, atol=1e-4)


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
@torch.no_grad()
def test_gpu_bfloat16_autocast_is_close(cuda):
    hf = huggingface(torch.float32, **SIZES[2])
    gpt2, ids = ours(hf).to(cuda), random_ids(hf.config, 5, 32).to(cuda)
    want = gpt2(ids).log_softmax(-1)
    with torch.autocast("cuda", torch.bfloat16):
        got = gpt2(ids).float().log_softmax(-1)
    assert (got - want).abs().mean() < 0.05 * want.std()


@pytest.mark.gpu
@torch.no_grad()
def test_gpu_cache_and_generation_equal_the_cpus(cuda):
    gpt2 = ours(huggingface(**SIZES[2]))  # float64: no near ties between the devices
    ids, lengths = random_ids(gpt2.config, 4, 6), torch.tensor([6, 1, 3, 5])
    on_gpu = copy.deepcopy(gpt2).to(cuda)
    want = gpt2.generate(ids, 20, greedy=True, lengths=lengths)
    got = on_gpu.generate(ids.to(cuda), 20, greedy=True, lengths=lengths.to(cuda))
    assert torch.equal(got.cpu(), want)
    u = torch.rand(1000, dtype=torch.float64)
    logits = torch.randn(1000, 50257, dtype=torch.float64)
    assert torch.equal(sample(logits.to(cuda), u=u.to(cuda)).cpu(), sample(logits, u=u))


# ------------------------------------------------------------------------------------------ packing


@pytest.mark.parametrize("lengths", [[5, 1, 3], [5, 5], [1], [2, 4, 5, 1]], ids=str)
def test_packed_texts_have_the_values_and_gradients_of_padded_ones(lengths):
    torch.manual_seed(0)
    gpt2 = GPT2(GPT2Config(vocab_size=23, n_positions=8, n_embd=16, n_layer=2, n_head=2)).double()
    ids = torch.randint(23, (len(lengths), 5))
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    outcomes = []
    for hidden in (gpt2.packed_hidden(ids, mask), gpt2.hidden(ids)[mask]):
        gradients = torch.autograd.grad(hidden.square().sum(), list(gpt2.parameters()))
        outcomes.append([hidden, *gradients])
    torch.testing.assert_close(*outcomes, atol=1e-12, rtol=1e-12)


# ----------------------------------------------------------------------------- log-probabilities


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
    *ours, start_log_prob = log_probs_and_kl(*both, tokens, Chunks(*chunks))
    torch.testing.assert_close(start_log_prob, plain_log_probs(start, start_hidden, tokens)[0])
    outcomes = []
    for values in (ours, plain):
        loss = sum(
            w * (v * torch.linspace(-1, 2, 11)).sum() for w, v in zip(weights, values, strict=True)
        )
        outcomes.append([*values, *torch.autograd.grad(loss, (hidden, gpt2.wte.weight))])
    torch.testing.assert_close(*outcomes, atol=1e-12, rtol=1e-12)


def test_log_probs_under_autocast_are_float32_and_near_those_of_full_precision():
    torch.manual_seed(0)
    gpt2 = GPT2(GPT2Config(vocab_size=50, n_positions=8, n_embd=32, n_layer=1, n_head=2))
    hidden, tokens = torch.randn(9, 32, requires_grad=True), torch.randint(50, (9,))
    arguments = hidden, gpt2.wte.weight, tokens, True, Chunks(2, 3, 0)
    exact = log_probs(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        half = log_probs(*arguments)
    assert half[0].dtype == torch.float32
    torch.testing.assert_close(half, exact, atol=0.02, rtol=0)
    gradients = [torch.autograd.grad(x[0].sum(), gpt2.wte.weight)[0] for x in (half, exact)]
    assert gradients[0].dtype == torch.float32
    torch.testing.assert_close(*gradients, atol=0.05, rtol=0)


# ------------------------------------------------------------------- generation where waiting is dear


def generation(end=3, **arguments):
    """A model of ragged prompts of which some end early, and what `generate` needs for them."""
    torch.manual_seed(0)
    gpt2 = GPT2(GPT2Config(vocab_size=12, n_positions=24, n_embd=16, n_layer=2, n_head=2))
    gpt2.wte.weight.data *= 5
    ids, lengths = torch.randint(12, (9, 5)), torch.randint(1, 6, (9,))
    return gpt2, {
        "ids": ids,
        "lengths": lengths,
        "max_new_tokens": 15,
        "end_index": end,
        **arguments,
    }


@pytest.mark.parametrize("ragged", [True, False], ids=["ragged prompts", "equal prompts"])
@pytest.mark.parametrize(
    "arguments", [{}, {"greedy": True}, {"top_k": 4}, {"end": None}, {"end": -1}], ids=str
)
@torch.no_grad()
def test_both_ways_of_decoding_write_the_same(arguments, ragged):
    """Rows that end are dropped on a CPU; on a GPU, and in a CUDA graph, all decode to the end."""
    gpt2, given = generation(**arguments)
    settings = _Decoding(15, 1.0, given.get("top_k"), given["end_index"])
    u = None if "greedy" in given else torch.rand(15, 9, dtype=torch.float64)
    inputs = given["ids"], given["lengths"] if ragged else None, u, settings
    expected = gpt2._decode_dropping(*inputs)
    assert torch.equal(gpt2._decode_static(*inputs), expected)
    if settings.end == 3:
        first = (expected == 3).long().argmax(1).tolist()
        assert "greedy" in given or len(set(first)) > 3, "rows end at many places"


def test_generate_is_one_of_them():
    gpt2, given = generation()
    torch.manual_seed(1)
    new = gpt2.generate(**given)
    torch.manual_seed(1)
    u = torch.rand(15, 9, dtype=torch.float64)
    settings = _Decoding(15, 1.0, None, 3)
    with torch.no_grad():
        assert torch.equal(new, gpt2._decode_static(given["ids"], given["lengths"], u, settings))


@pytest.mark.parametrize("ragged", [True, False], ids=["ragged prompts", "equal prompts"])
@torch.no_grad()
def test_static_decoding_reads_no_value(monkeypatch, ragged):
    """Tensors of the meta device have none: a look, as would break a CUDA graph, is an error."""
    gpt2, given = generation()
    new_cache = functools.partial(KVCache, gpt2.config, device="meta")
    monkeypatch.setattr(gpt2, "new_cache", new_cache)  # autocast knows of no such device
    u = torch.rand(15, 9, dtype=torch.float64, device="meta")
    lengths = given["lengths"].to("meta") if ragged else None
    settings = _Decoding(15, 1.0, 4, 3)
    new = gpt2.to("meta")._decode_static(given["ids"].to("meta"), lengths, u, settings)
    assert new.shape == (9, 15)


def test_a_cuda_graph_needs_cuda():
    gpt2, arguments = generation()
    with pytest.raises(ValueError, match="cuda_graph=True needs a CUDA device"):
        gpt2.generate(**arguments, cuda_graph=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("half", [False, True])
def test_cuda_graph_generates_what_eager_does(half):
    gpt2, arguments = generation()
    gpt2 = gpt2.cuda()
    arguments |= {name: arguments[name].cuda() for name in ("ids", "lengths")}
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        for _ in range(4):  # as it is, captured, replayed, and replayed with other weights
            seed = torch.cuda.initial_seed() + 1
            torch.cuda.manual_seed(seed)
            expected = gpt2.generate(**arguments)
            torch.cuda.manual_seed(seed)
            assert torch.equal(gpt2.generate(**arguments, cuda_graph=True), expected)
            with torch.no_grad():
                gpt2.wpe.weight.mul_(-1)
    copied = copy.deepcopy(gpt2)  # with graphs of its own
    assert copied.generate(**arguments, cuda_graph=True).shape == expected.shape
