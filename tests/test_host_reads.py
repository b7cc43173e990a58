"""How often the host waits for a GPU, counted on a pretended one (`shadow_device`)."""

import itertools

import gymnasium as gym
import pytest
import torch
from helpers import letters
from shadow_device import ShadowDevice, to_shadow

from agents import REINFORCE, GPT2Config, GPT2Policy
from agents.evaluation import evaluate
from agents.rollout import Episodes

B, L = 6, 8
TINY = {"n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 2}


@pytest.fixture
def device(monkeypatch):
    """The pretended device. It knows no autocast: what runs is fp32."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(GPT2Policy, "autocast", lambda _: torch.autocast("cpu", enabled=False))
    with ShadowDevice() as device:
        yield device


def make_agent(**arguments):
    vocabulary = [*"abcdefghij", "<|endoftext|>"]
    envs = gym.make_vec(
        "TextSentiment-v0",
        num_envs=B,
        vocabulary=vocabulary,
        max_tokens=L,
        sentiment_model=letters,
        length_penalty=0,
        autoreset_mode="SameStep",
    )
    config = GPT2Config(vocab_size=len(vocabulary), **TINY)
    # AdamW would blow up differences of rounding, and has no kernel for the pretended device.
    kwargs = {"config": config, "optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}
    agent = REINFORCE(
        GPT2Policy,
        envs,
        learning_rate=1.0,
        ent_coef=0.01,
        kl_coef=0.1,
        policy_kwargs=kwargs,
        seed=0,
        device="cpu",
        **arguments,
    )
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return agent


def move(agent):
    """The same agent on the pretended device, its optimizer included."""
    before = [id(p) for p in agent.policy.parameters()]
    to_shadow(agent.policy)
    to_shadow(agent.reference)
    moved = dict(zip(before, agent.policy.parameters(), strict=True))
    for group in agent.policy.optimizer.param_groups:
        group["params"] = [moved[id(p)] for p in group["params"]]
    return agent


def make_texts(policy, lengths=(3, 8, 5, 1, 8, 4)):
    texts = torch.randint(policy.end_index, (B, L))
    written = torch.arange(L) < torch.tensor(lengths)[:, None]
    return texts.masked_fill(~written, policy.pad_index), written


def test_the_pretended_device_refuses_and_counts(device):
    x, mask = to_shadow(torch.arange(6)), to_shadow(torch.arange(6) > 2)
    with pytest.raises(RuntimeError, match="mixes devices"):
        x + torch.arange(6)
    with pytest.raises((RuntimeError, TypeError)):
        x.numpy()
    for read in (int, bool, float):
        with device.count() as counts:
            read(x[3])
        assert counts == [1, 0]
    reads = [
        lambda x: x.tolist(),
        torch.Tensor.cpu,
        lambda x: x[mask],
        lambda x: x.masked_select(mask),
        lambda x: x.nonzero(),
        lambda x: x.clone().index_put_((mask,), x[:3]),
    ]
    for read in reads:
        with device.count() as counts:
            read(x)
        assert counts == [1, 0], read
    with device.count() as counts:
        x[x[:2]], x.masked_fill(mask, 0), x.clone().masked_scatter_(mask, x)
        torch.arange(3).to(x.device, non_blocking=True)
    assert counts == [0, 0]
    with device.count() as counts:
        torch.arange(3).to(x.device), x[torch.arange(3)]
    assert counts == [0, 2]


@pytest.mark.parametrize("micro_batch_size", [None, 3, 1])
@pytest.mark.parametrize("baseline", ["rloo", "ema", "value"])
def test_an_update_equals_the_cpus_in_three_reads(device, baseline, micro_batch_size):
    """One of the mask and two of metrics."""
    arguments = {"baseline": baseline, "micro_batch_size": micro_batch_size}
    arguments["normalize_advantage"] = baseline == "value"
    on_cpu, agent = make_agent(**arguments), move(make_agent(**arguments))
    for model in (on_cpu, agent):
        model.learn(0)  # makes the logger
        for _ in range(2):  # a moving average begins with the second
            torch.manual_seed(0)
            texts, mask = make_texts(model.policy)
            batch = texts, mask, torch.rand(B, L) * mask
            if model is agent:
                batch = tuple(map(to_shadow, batch))
            episodes = Episodes(*batch, [{}] * B)
            with device.count() as counts:
                model.train(episodes)
    assert counts == [3, 0]
    for ours, theirs in zip(agent.policy.parameters(), on_cpu.policy.parameters(), strict=True):
        torch.testing.assert_close(ours.value, theirs.data, atol=1e-5, rtol=1e-4)


def test_texts_are_evaluated_in_one_read_or_none(device):
    policy = move(make_agent()).policy
    texts, mask = make_texts(policy)
    want, texts = make_agent().policy.evaluate_texts(texts, mask), to_shadow(texts)
    for where, reads in ((to_shadow(mask), 1), (mask, 0)):
        with device.count() as counts:
            evaluation = policy.evaluate_texts(texts, where)
        assert counts == [reads, 0]
        for ours, theirs in zip(evaluation, want, strict=True):
            torch.testing.assert_close(ours.value.detach(), theirs.detach(), atol=1e-5, rtol=1e-4)
    with device.count() as counts:
        policy.evaluate_actions(texts, texts[:, 0])
    assert counts == [1, 0]


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_batch_of_texts_is_written_in_one_read(device, deterministic):
    policy = move(make_agent()).policy
    ragged, _ = make_texts(policy, (3, 6, 5, 1, 6, 4))
    for prompts in (ragged, ragged[1:2].expand(B, L), torch.full((B, L), policy.pad_index)):
        with device.count() as counts:
            policy.generate_texts(to_shadow(prompts.clone()), 4, deterministic)
        assert counts == [1, 0]


@torch.no_grad()
def test_a_step_of_the_prefix_cache_is_one_read(device):
    policy, on_cpu = move(make_agent()).policy, make_agent().policy
    texts, _ = make_texts(policy)
    extended = texts.clone()
    extended[0, 3], extended[2, 5] = 1, 2
    mixed = extended.clone()
    mixed[0, 4], mixed[1, 0], mixed[5] = 3, (mixed[1, 0] + 1) % 5, policy.pad_index
    read = []
    for shown in (texts, extended, mixed, mixed):
        with device.count() as counts:
            actions, _, log_prob = policy(to_shadow(shown), deterministic=True)
        assert counts == [1, 0]
        wanted = on_cpu(shown, deterministic=True)
        assert torch.equal(actions.value, wanted[0])
        torch.testing.assert_close(log_prob.value, wanted[2], atol=1e-5, rtol=1e-4)
        read.append(policy.prefix_cache(B).tokens_read)
    # One token a row, all of the altered text's 8 in the mixed step.
    assert [b - a for a, b in itertools.pairwise(read)] == [B, B - 1 + 8, B]


def test_learning_and_evaluation_read_as_often_as_it_takes(device):
    """Whole updates and a whole evaluation; all that is read outside of `train` is read by the batch."""
    on_cpu, agent = make_agent(), move(make_agent())
    for model in (on_cpu, agent):
        torch.manual_seed(0)
        with device.count() as counts:
            model.learn(total_updates=2)
    reads, uploads = counts
    assert reads <= 2 * 11
    assert uploads <= 2 * 4
    assert agent.num_timesteps == on_cpu.num_timesteps
    for ours, theirs in zip(agent.policy.parameters(), on_cpu.policy.parameters(), strict=True):
        torch.testing.assert_close(ours.value, theirs.data, atol=1e-5, rtol=1e-4)
    with device.count() as counts:
        got = evaluate(agent.policy, agent.reference, agent.env, 2 * B)
    assert counts[0] <= 2 * 7
    want = evaluate(on_cpu.policy, on_cpu.reference, on_cpu.env, 2 * B)
    for ours, theirs in zip(got["samples"], want["samples"], strict=True):
        assert ours.pop("kl") == pytest.approx(theirs.pop("kl"), rel=1e-4)
        assert ours == theirs
    assert got["kl"] == pytest.approx(want["kl"], rel=1e-3)
