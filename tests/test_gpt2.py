import copy
import math

import pytest
import torch
import torch.nn.functional as F
from gpt2_helpers import EXACT, SIZE, SIZES, huggingface, ours, random_ids

from agents.gpt2 import END_OF_TEXT_ID, GPT2, GPT2Config


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


def test_padding_and_batch_size_do_not_matter(small):
    ids, lengths = random_ids(small.config, 6, 12), [12, 1, 5, 7, 2, 11]
    together = small(ids)
    for row, n in enumerate(lengths):
        torch.testing.assert_close(small(ids[row : row + 1, :n])[0], together[row, :n], **EXACT)
    torch.testing.assert_close(torch.cat([small(ids[:4]), small(ids[4:])]), together, **EXACT)
    other = ids.clone()
    other[:, 8:] = 0
    torch.testing.assert_close(small(other)[:, :8], together[:, :8], **EXACT)


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
        ({"n_layer": 0}, "n_layer=0 must be a whole number of at least 1"),
        ({"n_embd": 10, "n_head": 4}, "n_embd=10 must be a multiple of n_head=4"),
        ({"dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"),
        ({"n_inner": 0}, "n_inner=0 must be a whole number of at least 1"),
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
@torch.no_grad()
def test_gpu_bfloat16_autocast_is_close(cuda):
    hf = huggingface(torch.float32, **SIZES[2])
    gpt2, ids = ours(hf).to(cuda), random_ids(hf.config, 5, 32).to(cuda)
    want = gpt2(ids).log_softmax(-1)
    with torch.autocast("cuda", torch.bfloat16):
        got = gpt2(ids).float().log_softmax(-1)
    assert (got - want).abs().mean() < 0.05 * want.std()
