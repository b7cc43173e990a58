"""Texts without their padding, and with each shared prefix once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import GPT2, GPT2Config
from agents.packing import Packing

TEXTS = {
    "one text": [[1, 2, 3]],
    "nothing shared": [[5, 1, 3], [2], [4, 4]],
    "of full length": [[1, 2, 3, 4, 5], [3, 2, 1, 0, 0]],
    "one the prefix of another": [[1, 2], [1, 2, 3], [1]],
    "twice the same": [[1, 2], [3, 4, 5], [1, 2], [3, 4, 5]],
    "apart and alike again": [[1, 2, 7], [1, 3, 7], [1, 2, 8]],
    "zeros": [[0], [0, 0], [0, 0, 0]],
}


def padded(texts):
    """Ids with other tokens behind the texts, and the mask of the texts."""
    longest = max(map(len, texts))
    rows = [text + [(9 + i) % 11] * (longest - len(text)) for i, text in enumerate(texts)]
    mask = torch.arange(longest) < torch.tensor([len(text) for text in texts])[:, None]
    return torch.tensor(rows), mask


@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS)
def test_packed_texts_have_the_values_and_gradients_of_padded_ones(texts):
    torch.manual_seed(0)
    gpt2 = GPT2(GPT2Config(vocab_size=11, n_positions=8, n_embd=16, n_layer=2, n_head=2)).double()
    ids, mask = padded(texts)
    packed, nodes = gpt2.packed_hidden(ids, mask)
    outcomes = []
    for hidden in (packed[nodes[mask]], gpt2.hidden(ids)[mask]):
        weights = torch.linspace(-1, 2, hidden.numel()).view_as(hidden)
        loss = (hidden.square() * weights).sum()
        outcomes.append([hidden, *torch.autograd.grad(loss, list(gpt2.parameters()))])
    torch.testing.assert_close(*outcomes, atol=1e-12, rtol=1e-12)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8),
)
def test_each_distinct_prefix_is_packed_once(texts):
    ids, mask = padded(texts)
    packing = Packing(ids, mask)
    prefixes = {tuple(text[: i + 1]) for text in texts for i in range(len(text))}
    assert len(packing.tokens) == len(prefixes)
    found = {}
    for text, nodes in zip(texts, packing.nodes.tolist(), strict=True):
        for i, node in enumerate(nodes[: len(text)]):
            assert found.setdefault(node, text[: i + 1]) == text[: i + 1]
            assert packing.tokens[node] == text[i]
            assert packing.positions[node] == i
    places = torch.arange(len(packing.tokens))
    torch.testing.assert_close(packing.pack(packing.pad(places)), places)
