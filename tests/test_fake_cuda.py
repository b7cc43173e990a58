"""What would fail on a GPU, found without one: tensors that claim to be on CUDA and hold no values.

Every mix of devices and every value read on the host is an exception here. Where a value has to be
read, the test supplies it and counts. The backward pass needs a real GPU.

A CPU build of torch cannot do this. To run it by hand, in an environment of its own:

    python -m venv cuda && . cuda/bin/activate
    pip install torch gymnasium stable-baselines3 transformers tiktoken safetensors rich tqdm \\
        vaderSentiment matplotlib pytest hypothesis
    python -m pytest tests/test_fake_cuda.py
"""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import letters
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from agents import GPT2, REINFORCE, GPT2Config, GPT2Policy
from agents.rollout import Episodes

pytestmark = pytest.mark.skipif(
    not torch.backends.cuda.is_built(),
    reason="needs a CUDA build of torch, but no GPU: this file says how to run it by hand",
)
V, L, B = 11, 8, 4
CONFIG = GPT2Config(vocab_size=V, n_positions=12, n_embd=16, n_layer=2, n_head=2)


class Host(TorchFunctionMode):
    """Answers what the host asks of CUDA tensors by supplied values; `reads` counts the questions.

    What the host computes from the answers alone is computed for real.
    """

    def __init__(self, *values):
        super().__init__()
        self.values, self.reads = list(values), 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        asked = func in (torch.Tensor.cpu, torch.Tensor.__int__)
        if asked and args[0].device.type == "cuda":
            self.reads += 1
            value = self.values.pop(0)
            with unset_fake_temporarily():
                return torch.tensor(value) if func is torch.Tensor.cpu else value
        real = bool(tensors) and not any(isinstance(x, FakeTensor) for x in tensors)
        if real and func is not torch.Tensor.to:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    """Lets autocast be enabled, which asks for a GPU; `tolist` is one copy, not a read an entry."""
    monkeypatch.setattr(FakeTensor, "tolist", lambda x: x.cpu().tolist())
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)


@pytest.fixture
def fake():
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def make_gpt2():
    with torch.device("cuda"):
        return GPT2(CONFIG).eval()


def make_policy(**arguments):
    space = spaces.Box(0, V, (L,), np.int64)
    with torch.device("cuda"):
        policy = GPT2Policy(space, spaces.Discrete(V), lambda _: 1e-3, config=CONFIG, **arguments)
    policy.set_training_mode(False)
    return policy


def random_ids(*shape):
    return torch.randint(V, shape, device="cuda")


def is_on_cuda(*tensors):
    return {x.device.type for x in tensors} == {"cuda"}


def test_devices_do_not_mix_and_values_are_not_read(fake):
    x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="device"):
        x + torch.ones(3)
    for read in (int, bool, torch.nonzero, lambda x: x[x > 0]):
        with pytest.raises((DataDependentOutputException, RuntimeError)):
            read(x.sum() if read in (int, bool) else x)


@pytest.mark.parametrize("half", [False, True])
def test_forward_and_log_probs(fake, half):
    gpt2, ids = make_gpt2(), random_ids(B, L)
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        logits = gpt2(ids)
        log_prob, entropy = gpt2.log_probs(gpt2.hidden(ids).flatten(0, 1), ids.flatten())
    assert logits.dtype == (torch.bfloat16 if half else torch.float32)
    assert is_on_cuda(logits, log_prob, entropy)


@torch.no_grad()
@pytest.mark.parametrize("half", [False, True])
def test_both_cached_paths(fake, half):
    gpt2 = make_gpt2()
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        cache = gpt2.new_cache(B, L)
        assert is_on_cuda(gpt2(random_ids(B, 4), cache=cache))
        rows = torch.arange(2, device="cuda")
        positions = 4 + torch.zeros(2, 1, dtype=torch.int64, device="cuda")
        out = gpt2(random_ids(2, 1), positions, cache=cache, cache_rows=rows, cache_length=5)
        assert is_on_cuda(out)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_generate_reads_nothing(fake, half, greedy, ragged):
    lengths = torch.full((B,), 3, device="cuda") if ragged else None
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        arguments = {"greedy": greedy, "lengths": lengths, "end_index": V - 1, "top_k": 5}
        new = make_gpt2().generate(random_ids(B, 4), 5, **arguments)
    assert new.shape == (B, 5)
    assert is_on_cuda(new)


def test_policy_steps_with_one_read(fake):
    policy, obs = make_policy(), random_ids(B, L)
    # Lengths, and how many tokens of each are cached: rows extended, restarted, and both.
    steps = ([3, 5, 2, 8], [0] * 4), ([4, 6, 3, 8], [3, 5, 2, 7]), ([5, 1, 4, 8], [4, 0, 3, 1])
    for step in steps:
        with torch.no_grad(), Host(list(step)) as host:
            assert is_on_cuda(*policy(obs))
        assert host.reads == 1
    with Host(8) as host:
        values, log_prob, entropy = policy.evaluate_actions(obs, obs[:, 0])
        assert is_on_cuda(values, log_prob, entropy)
    assert host.reads == 1


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("lengths", [[1, 1], [2, 5], [3, 3]])
def test_generate_texts_reads_once(fake, deterministic, lengths):
    with Host(lengths) as host:
        policy = make_policy(cuda_graphs=False)
        texts = policy.generate_texts(random_ids(B, L), 4, deterministic)
    assert texts.shape == (B, L)
    assert is_on_cuda(texts)
    assert host.reads == 1


@pytest.mark.parametrize("here", [False, True])
def test_texts_are_evaluated_in_one_read_or_none(fake, here):
    policy, texts, mask = make_policy(), random_ids(B, L), [[True] * 5 + [False] * 3] * B
    with unset_fake_temporarily():
        on_cpu = torch.tensor(mask)
    masks = on_cpu, torch.ones(B, L, dtype=torch.bool, device="cuda")
    for start in (None, make_gpt2()):
        with Host(mask) as host:
            result = policy.evaluate_texts(texts, masks[here], start=start)
        assert is_on_cuda(*result)
        assert host.reads == here


@pytest.mark.parametrize("micro_batch_size", [None, 2])
@pytest.mark.parametrize("baseline", ["rloo", "mean", "ema", "none", "value"])
def test_an_update_reads_its_mask_once_up_to_the_gradient(monkeypatch, baseline, micro_batch_size):
    """`train` until the backward pass, which the test replaces: it needs a real GPU."""
    envs = gym.make_vec(
        "TextSentiment-v0",
        num_envs=B,
        vocabulary=[*"abcdefghij"],
        max_tokens=L,
        sentiment_model=letters,
    )
    agent = REINFORCE(
        GPT2Policy,
        envs,
        baseline=baseline,
        kl_coef=0.1,
        ent_coef=0.1,
        micro_batch_size=micro_batch_size,
        policy_kwargs={"config": CONFIG},
        device="cpu",
    )
    agent.learn(0)  # makes the logger
    mask = [[True] * 5 + [False] * 3] * B
    with FakeTensorMode(), torch.device("cuda"):
        agent.policy, agent.reference = make_policy(), make_gpt2()
    losses = []
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: losses.append(loss))

    class ReachedError(Exception):
        """The gradient's norm is asked for: all parts have been evaluated."""

    def clip(*_):
        raise ReachedError

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    with FakeTensorMode(allow_non_fake_inputs=True), Host(mask) as host:
        on_cuda = torch.ones(B, L, dtype=torch.bool, device="cuda")
        batch = random_ids(B, L), on_cuda, torch.ones(B, L, device="cuda")
        with pytest.raises(ReachedError):
            agent.train(Episodes(*batch, [{}] * B))
    assert is_on_cuda(*losses)
    assert len(losses) == (1 if micro_batch_size is None else 2)
    assert host.reads == 1
