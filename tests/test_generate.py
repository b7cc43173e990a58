"""Both loops that decode: against transformers, and against each other."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
import transformers
from gpt2_helpers import SIZE, SIZES, huggingface, ours, random_ids

from agents.gpt2 import GPT2, GPT2Config, KVCache, sample
from agents.sampling import Decoding, apply_temperature_and_top_k


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
    settings = Decoding(15, 1.0, given.get("top_k"), given["end_index"], False)
    u = None if "greedy" in given else torch.rand(15, 9, dtype=torch.float64)
    inputs = given["ids"], given["lengths"] if ragged else None, u, settings
    expected = gpt2._decode_dropping(*inputs)
    assert torch.equal(gpt2._decode_static(*inputs), expected)
    if settings.end == 3:
        first = (expected == 3).long().argmax(1).tolist()
        assert "greedy" in given or len(set(first)) > 3, "rows end at many places"


@pytest.mark.parametrize("ragged", [True, False], ids=["ragged prompts", "equal prompts"])
@torch.no_grad()
def test_texts_are_read_once_while_they_are_alike(monkeypatch, ragged):
    """Two prompts, each in several rows that draw the same three tokens and then go different ways."""
    gpt2, given = generation(max_new_tokens=6)
    ids, lengths = given["ids"][[4, 1, 1, 4, 1, 4, 1, 1, 4]], given["lengths"][4].expand(9).clone()
    if not ragged:
        lengths[:] = 5
    settings = Decoding(6, 1.0, None, 3, False)
    u = torch.rand(6, 1, dtype=torch.float64).repeat(1, 9)
    u[3:, 5:] = torch.rand(3, 4, dtype=torch.float64)  # rows part at the fourth token
    expected = gpt2._decode_static(ids, lengths, u, settings)
    read, blocks = [], gpt2._blocks

    def counted(ids, *arguments):
        read.append(len(ids))
        return blocks(ids, *arguments)

    monkeypatch.setattr(gpt2, "_blocks", counted)
    assert torch.equal(
        gpt2._decode_dropping(ids, lengths if ragged else None, u, settings), expected
    )
    beginnings = [
        {
            (*row[:n].tolist(), *text[:step].tolist())
            for row, n, text in zip(ids, lengths, expected, strict=True)
        }
        for step in range(6)
    ]
    distinct = [
        len({text for text in texts if 3 not in text[-step:] or not step})
        for step, texts in enumerate(beginnings)
    ]
    assert read == distinct


def test_generate_is_one_of_them():
    gpt2, given = generation()
    torch.manual_seed(1)
    new = gpt2.generate(**given)
    torch.manual_seed(1)
    u = torch.rand(15, 9, dtype=torch.float64)
    settings = Decoding(15, 1.0, None, 3, False)
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
    settings = Decoding(15, 1.0, 4, 3, False)
    new = gpt2.to("meta")._decode_static(given["ids"].to("meta"), lengths, u, settings)
    assert new.shape == (9, 15)


def test_a_cuda_graph_needs_cuda():
    gpt2, arguments = generation()
    with pytest.raises(ValueError, match="cuda_graph=True needs a CUDA device"):
        gpt2.generate(**arguments, cuda_graph=True)


def test_what_is_compiled_computes_what_the_blocks_do(monkeypatch):
    """On a CPU, uncompiled: a GPU compiles other functions than those of the plain pass."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=31, n_positions=20, n_embd=24, n_layer=3, n_head=2)
    gpt2, ids = GPT2(config).double(), torch.randint(31, (5, 4))
    expected = gpt2(ids)
    texts = gpt2.generate(ids, 9, end_index=-1, generator=torch.manual_seed(0))
    monkeypatch.setattr("agents.compiled.compiled", lambda function: function)
    monkeypatch.setattr("agents.sampling.compiled", lambda function: function)
    monkeypatch.setattr(GPT2, "_runs_compiled", lambda self, x: self._compiled)
    gpt2.use_compiled_kernels()
    torch.testing.assert_close(gpt2(ids), expected)
    assert torch.equal(gpt2.generate(ids, 9, end_index=-1, generator=torch.manual_seed(0)), texts)


@pytest.mark.gpu
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
