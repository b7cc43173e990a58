import copy

import pytest
import torch
from gpt2_helpers import EXACT, random_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.gpt2 import KVCache

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
@pytest.mark.parametrize("own", [True, False])
def test_cache_under_autocast(small, own):
    """On a CPU attention, and so the model's own cache, stays in single precision."""
    gpt2 = copy.deepcopy(small).float()
    ids = random_ids(gpt2.config, 2, 6)
    with torch.autocast("cpu", torch.bfloat16):
        cache = gpt2.new_cache(2) if own else KVCache(gpt2.config, 2, dtype=torch.bfloat16)
        assert cache.layers[0][0].dtype == (torch.float32 if own else torch.bfloat16)
        gpt2(ids[:, :5], cache=cache)
        got = gpt2(ids[:, 5:], torch.full((2, 1), 5), cache=cache)
    want = gpt2(ids)[:, 5:]
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05 * want.abs().max().item())


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


@pytest.mark.gpu
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 50])
def test_gpu_decode_attention_is_torchs(cuda, length, half):
    from agents.decode_attention import decode_attention

    torch.manual_seed(0)
    dtype = torch.bfloat16 if half else torch.float32
    qkv = torch.randn(5, 1, 3, 4, 32, device=cuda, dtype=dtype)
    stored = torch.randn(2, 5, 4, 60, 32, device=cuda, dtype=dtype)
    q, (k, v) = qkv[:, :, 0].transpose(1, 2), stored[..., :length, :]
    expected = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float())
    close = 1e-2 if half else 1e-5
    torch.testing.assert_close(decode_attention(q, k, v).float(), expected, atol=close, rtol=close)
