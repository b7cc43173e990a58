"""What only a GPU can show; `pytest -m gpu` runs these and their like in the other files."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import letters

from agents import REINFORCE, GPT2Config, GPT2Policy
from agents.evaluation import evaluate
from agents.rollout import Episodes
from agents.sampling import at_least_float32
from text_sentiment_env import load_sentiment_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
B, STEPS, LETTERS = 64, 6, "abcdefgh"


def make_agent(**arguments):
    envs = gym.make_vec(
        "TextSentiment-v0",
        num_envs=B,
        vocabulary=[*LETTERS],
        max_tokens=STEPS,
        sentiment_model=letters,
        autoreset_mode="SameStep",
    )
    config = GPT2Config(vocab_size=9, n_positions=16, n_embd=64, n_layer=2, n_head=4)
    arguments = {"policy_kwargs": {"config": config}, "device": "cuda", "seed": 0, **arguments}
    agent = REINFORCE(GPT2Policy, envs, **arguments)
    agent.learn(0)  # makes the logger
    with torch.no_grad():
        for p in agent.policy.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return agent


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_measures_the_distribution_that_is_sampled(precision):
    """Entropy and KL of `evaluate` equal those of the logits which `forward` samples from, step by step."""
    agent = make_agent(precision=precision)
    result = evaluate(agent.policy, agent.reference, agent.env, B)
    policy = agent.policy
    obs = torch.full((B, STEPS), policy.pad_index, device="cuda")
    texts = [[LETTERS.index(letter) for letter in sample["text"]] for sample in result["samples"]]
    texts = [text + [policy.end_index] * (len(text) < STEPS) for text in texts]
    entropy = kl = tokens = 0.0
    for step in range(STEPS):
        rows = torch.tensor([step < len(text) for text in texts], device="cuda")
        log_p = policy.get_distribution(obs).distribution.logits.double()
        ids, lengths = policy.to_model_input(obs)
        with policy.autocast():
            ends = torch.arange(B, device="cuda"), lengths - 1
            log_q = at_least_float32(agent.reference(ids)[ends]).double().log_softmax(-1)
        p = log_p.exp()
        entropy -= float((p * log_p).sum(-1)[rows].sum())
        kl += float((p * (log_p - log_q)).sum(-1)[rows].sum())
        tokens += int(rows.sum())
        shown = [text[step] if step < len(text) else policy.pad_index for text in texts]
        obs[:, step] = torch.tensor(shown, device="cuda")
    close = 1e-4 if precision == "fp32" else 2e-2  # the cached pass rounds otherwise than one pass
    assert result["entropy"] == pytest.approx(entropy / tokens, rel=close)
    assert result["kl"] == pytest.approx(kl / B, rel=close, abs=close)


def test_the_bundled_judge_agrees_with_the_cpu():
    texts = ["", "A wonderful film.", "The worst thing I ever saw", "not bad at all", "ok " * 50]
    on_cpu, on_gpu = (load_sentiment_model("bundled", device=d) for d in ("cpu", "cuda"))
    np.testing.assert_allclose(on_gpu(texts), on_cpu(texts), atol=2e-3)


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_an_update_waits_for_the_gpu_three_times(micro_batch_size):
    """Once for the mask, and twice for metrics behind the backward pass."""
    agent = make_agent(micro_batch_size=micro_batch_size, kl_coef=0.1)
    agent.policy.set_training_mode(True)
    texts = torch.randint(8, (B, STEPS), device="cuda")
    mask = torch.ones_like(texts, dtype=torch.bool)
    episodes = Episodes(texts, mask, torch.rand(B, STEPS, device="cuda"), [{}] * B)
    agent.train(episodes)  # optimizer's state
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchroniz") as waits:
            agent.train(episodes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    messages = [str(w.message) for w in waits if "synchroniz" in str(w.message)]
    assert len(messages) <= 3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kl_estimator", ["k1", "exact"])
def test_a_compiled_update_is_the_plain_one(precision, kl_estimator):
    arguments = {"precision": precision, "kl_coef": 0.1, "ent_coef": 0.01, "learning_rate": 0.1}
    sgd = {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}
    config = GPT2Config(vocab_size=9, n_positions=16, n_embd=64, n_layer=2, n_head=4)
    texts = torch.randint(8, (B, STEPS), device="cuda")
    rewards = torch.rand(B, STEPS, device="cuda")
    weights, start = [], None
    for compile in (False, True):
        policy_kwargs = {"config": config, "compile": compile, **sgd}
        agent = make_agent(kl_estimator=kl_estimator, policy_kwargs=policy_kwargs, **arguments)
        start = copy.deepcopy(agent.policy.state_dict()) if start is None else start
        agent.policy.load_state_dict(start)
        mask = torch.ones_like(texts, dtype=torch.bool)
        agent.train(Episodes(texts, mask, rewards, [{}] * B))
        after = agent.policy.state_dict()
        weights.append(torch.cat([(after[name] - start[name]).flatten() for name in start]))
    plain, compiled = weights
    assert plain.norm() > 0.01
    assert (compiled - plain).norm() < (1e-3 if precision == "fp32" else 0.03) * plain.norm()


@torch.no_grad()
@pytest.mark.parametrize("half", [False, True])
def test_compiled_generation_draws_what_plain_generation_does(half):
    """In all but a few texts: where a uniform number falls between two tokens, rounding decides."""
    plain = make_agent(precision="bf16" if half else "fp32").policy
    compiled = copy.deepcopy(plain)
    compiled.gpt2.use_compiled_kernels()
    obs = torch.full((B, STEPS), plain.pad_index, device="cuda")
    same = []
    for seed in range(4):  # eager, captured, replayed
        written = []
        for policy in (plain, compiled):
            torch.cuda.manual_seed(seed)
            written.append(policy.generate_texts(obs, STEPS))
        same.append((written[0] == written[1]).all(1).float().mean())
    assert min(same) > 0.9


@torch.no_grad()
@pytest.mark.parametrize("half", [False, True])
def test_generated_texts_by_graph_equal_eager_ones(half):
    agent = make_agent(precision="bf16" if half else "fp32")
    graphs = copy.deepcopy(agent.policy)
    agent.policy.cuda_graphs = False
    obs = torch.full((B, STEPS), agent.policy.pad_index, device="cuda")
    for seed in range(4):  # eager, captured, replayed
        written = []
        for policy in (agent.policy, graphs):
            torch.cuda.manual_seed(seed)
            written.append(policy.generate_texts(obs, STEPS))
        assert torch.equal(*written)
