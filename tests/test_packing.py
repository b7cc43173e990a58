"""Texts without their padding."""

import pytest
import torch

from agents import GPT2, GPT2Config


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
