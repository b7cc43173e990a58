from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from policy_helpers import L, V, make_policy, observation

from agents import GPT2, REINFORCE, GPT2Config, GPT2Policy, SB3VecEnv
from agents import policy as policy_module


def test_forward_agrees_with_evaluate_actions():
    policy = make_policy()
    obs = observation([1, 2, 3], [], [4])
    with torch.no_grad():
        actions, values, log_prob = policy(obs)
    values2, log_prob2, entropy = policy.evaluate_actions(obs, actions)
    torch.testing.assert_close(values, values2)
    torch.testing.assert_close(log_prob, log_prob2)
    torch.testing.assert_close(entropy, policy.get_distribution(obs).entropy())
    torch.testing.assert_close(values, policy.predict_values(obs))


def test_score_agrees_with_step_by_step_reading():
    policy = make_policy()
    texts = observation([1, 2, 3, V - 1], [4, 0], [2, 2, 2, 2, 2, 2, 2, 2, 2])
    starts = [1, 0, 3]
    mask = texts < V
    for row, start in enumerate(starts):
        mask[row, :start] = False
    scores = policy.evaluate_texts(texts, mask)
    assert scores.log_prob.shape == texts.shape
    for row in range(3):
        for column in range(L):
            if not mask[row, column]:
                assert scores.log_prob[row, column] == scores.values[row, column] == 0
                continue
            before = observation(texts[row, :column].tolist())
            value, log_prob, entropy = policy.evaluate_actions(before, texts[row, column, None])
            torch.testing.assert_close(scores.log_prob[row, column], log_prob[0])
            torch.testing.assert_close(scores.values[row, column], value[0, 0])
            torch.testing.assert_close(scores.entropy[row, column], entropy[0])


def test_padding_changes_nothing():
    policy = make_policy()
    short, long = observation([1, 2]), observation([1, 2], [3] * L)
    mask = short < V
    alone = policy.evaluate_texts(short, mask)
    beside = policy.evaluate_texts(long, torch.cat([mask, long[1:] < V]))
    for a, b in zip(alone, beside, strict=True):
        torch.testing.assert_close(a[0], b[0])


def test_nothing_is_evaluated_of_empty_texts():
    policy, texts = make_policy(), observation([], [])
    for values in policy.evaluate_texts(texts, texts < V, start=policy.gpt2):
        assert torch.equal(values, torch.zeros(2, L))


def test_the_states_of_a_text_are_read_once(monkeypatch):
    """PPO and A2C evaluate an episode's states one by one, and in any order."""
    policy = make_policy()
    states = observation([], [1], [1, 2], [1, 2, 3], [4], [1, 2], [4, 0])[torch.randperm(7)]
    actions, weights = torch.randint(V, (7,)), torch.linspace(-1, 2, 7)
    read, blocks = [], policy.gpt2._blocks

    def counted(ids, *arguments, **keywords):
        read.append(ids.numel())
        return blocks(ids, *arguments, **keywords)

    monkeypatch.setattr(policy.gpt2, "_blocks", counted)
    together = policy.evaluate_actions(states, actions)
    assert read == [6], "<|endoftext|>, 1, 1 2, 1 2 3, 4 and 4 0"
    alone = [policy.evaluate_actions(states[i : i + 1], actions[i : i + 1]) for i in range(7)]
    alone = [torch.cat(column) for column in zip(*alone, strict=True)]
    torch.testing.assert_close(list(together), alone)
    gradients = [
        torch.autograd.grad(
            sum((x.flatten() * weights).sum() for x in values), list(policy.gpt2.parameters())
        )
        for values in (together, alone)
    ]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def fresh_policy(initial_length):
    torch.manual_seed(0)
    space = spaces.Box(0, 101, (L,), np.int64)
    return GPT2Policy(space, spaces.Discrete(101), lambda _: 0.0, initial_length=initial_length)


@pytest.mark.parametrize("length", [2, 4, 8])
def test_fresh_weights_end_texts_after_about_the_initial_length(length):
    obs = torch.full((3, L), 101)
    obs[1, 0], obs[2, :2] = 1, 2
    with torch.no_grad():
        p = fresh_policy(length).get_distribution(obs).distribution.probs
    torch.testing.assert_close(p[:, 100], torch.full((3,), 1 / length), rtol=0.4, atol=0)


@pytest.mark.parametrize("length", [1, 0.5, float("inf"), float("nan")])
def test_initial_length_must_be_above_one(length):
    with pytest.raises(ValueError, match="initial_length"):
        fresh_policy(length)


def test_draws_follow_the_distribution():
    policy = make_policy()
    obs = observation([1, 2]).repeat(20_000, 1)
    with torch.no_grad():
        actions = policy(obs)[0]
        p = policy.get_distribution(obs[:1]).distribution.probs[0]
    counts = torch.bincount(actions, minlength=V)
    chi2 = ((counts - 20_000 * p) ** 2 / (20_000 * p)).sum()
    assert chi2 < 20.5  # 0.999 quantile with 5 degrees of freedom
    assert (policy(obs[:3], deterministic=True)[0] == p.argmax()).all()


def test_predict_takes_one_observation_or_many():
    policy = make_policy()
    obs = observation([1], [2]).numpy()
    assert policy.predict(obs)[0].shape == (2,)
    assert policy.predict(obs[0])[0].shape == ()


def test_decay_is_on_matrices_only():
    policy = make_policy(optimizer_kwargs={"weight_decay": 0.1})
    decayed = {
        id(p) for g in policy.optimizer.param_groups if g["weight_decay"] for p in g["params"]
    }
    for name, p in policy.named_parameters():
        assert (id(p) in decayed) == (p.ndim == 2 and "value_head" not in name), name


def test_policy_save_and_load(tmp_path):
    policy = make_policy()
    policy.save(tmp_path / "policy")
    again = GPT2Policy.load(tmp_path / "policy")
    obs = observation([1, 2, 3])
    torch.testing.assert_close(again.predict_values(obs), policy.predict_values(obs))


def test_bf16_keeps_ids_and_probabilities_out():
    policy = make_policy(precision="bf16")
    obs = observation([1, 2, 3])
    with torch.no_grad():
        _, values, log_prob = policy(obs)
    assert values.dtype == log_prob.dtype == torch.float32
    exact = make_policy()
    mask = obs < V
    half = policy.evaluate_texts(obs, mask).log_prob
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact.evaluate_texts(obs, mask).log_prob, atol=0.15, rtol=0)
    total = policy.get_distribution(obs).distribution.logits.exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0))


@pytest.mark.parametrize("instructions", [True, False])
def test_fast_is_bf16_where_the_cpu_has_instructions_for_it(instructions, monkeypatch):
    monkeypatch.setattr("agents.policy._cpu_multiplies_bf16", lambda: instructions)
    obs, computed = observation([1, 2, 3]), {}
    for precision in ("fp32", "bf16", "auto", "fast"):
        policy = make_policy(precision=precision)
        computed[precision] = policy.computes_in
        with policy.autocast(), torch.no_grad():
            expected = torch.bfloat16 if policy.computes_in == "bf16" else torch.float32
            assert policy.gpt2.h[0].mlp.c_fc(torch.ones(1, policy.config.n_embd)).dtype == expected
    fast = "bf16" if instructions else "fp32"
    assert computed == {"fp32": "fp32", "bf16": "bf16", "auto": "fp32", "fast": fast}
    mask, policies = obs < V, [make_policy(precision=p) for p in ("fast", fast)]
    one, other = (policy.evaluate_texts(obs, mask).log_prob for policy in policies)
    assert torch.equal(one, other)


def test_instructions_for_bf16_are_those_of_this_processor():
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or not torch.backends.mkldnn.is_available():
        pytest.skip("the kernel lists no instructions here, or torch has no oneDNN to use them")
    known = {"avx512_bf16", "amx_tile"} & set(flags.read_text().split())
    assert policy_module._cpu_multiplies_bf16() == bool(known)


def test_attention_on_a_cpu_is_in_single_precision_under_autocast(monkeypatch):
    """In rollout and training step: the kernels in bf16 are slower than those in fp32."""
    attend, seen = F.scaled_dot_product_attention, []

    def watched(q, k, v, *rest):
        seen.append({q.dtype, k.dtype, v.dtype})
        return attend(q, k, v, *rest)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    policy = make_policy(precision="bf16")
    obs = observation([1, 2, 3])
    policy.evaluate_texts(obs, obs < V).log_prob.sum().backward()
    policy.generate_texts(observation([]), 3)
    assert len(seen) > 2 * policy.config.n_layer
    assert all(dtypes == {torch.float32} for dtypes in seen)


@pytest.mark.parametrize(
    ("space", "actions", "arguments", "message"),
    [
        (spaces.Box(0, V, (L,), np.int64), spaces.Box(0, 1, (2,)), {}, "action_space=.*Discrete"),
        (spaces.Box(0, 1, (L,)), spaces.Discrete(V), {}, r"observation_space=.*Box\(0, 6, \(L,\)"),
        (spaces.Discrete(3), spaces.Discrete(V), {}, "observation_space="),
        (
            spaces.Box(0, V, (L,), np.int64),
            spaces.Discrete(V),
            {"config": {"model_type": "gpt2", "vocab_size": 7, "n_embd": 4, "n_head": 1}},
            "vocab_size=7 but the environment 6",
        ),
        (
            spaces.Box(0, V, (L,), np.int64),
            spaces.Discrete(V),
            {"config": GPT2Config(V, n_positions=4, n_embd=4, n_head=1)},
            "n_positions=4 but observations hold 9",
        ),
        (
            spaces.Box(0, V, (L,), np.int64),
            spaces.Discrete(V),
            {"precision": "fp8"},
            "precision='fp8'",
        ),
        (spaces.Box(0, V, (L,), np.int64), spaces.Discrete(V), {"use_sde": True}, "use_sde"),
    ],
)
def test_bad_arguments(space, actions, arguments, message):
    with pytest.raises(ValueError, match=message):
        GPT2Policy(space, actions, lambda _: 1e-3, **arguments)


@pytest.mark.parametrize("name", ["PPO", "A2C"])
def test_stock_algorithms_train_a_pretrained_model(name, tmp_path):
    import stable_baselines3

    envs = gym.make_vec("TextSentiment-v0", num_envs=4, sentiment_model="vader", max_tokens=5)
    torch.manual_seed(1)
    full = GPT2(GPT2Config(n_positions=8, n_embd=8, n_layer=1, n_head=1))
    gpt2 = full.restrict(envs.vocabulary.token_ids)
    algorithm = getattr(stable_baselines3, name)
    model = algorithm(
        GPT2Policy,
        SB3VecEnv(envs),
        n_steps=8,
        policy_kwargs={"config": gpt2.config.to_dict()},
        seed=0,
    )
    model.policy.gpt2.load_state_dict(gpt2.state_dict())
    model.learn(64)
    assert not torch.equal(model.policy.gpt2.wte.weight, gpt2.wte.weight)
    obs = envs.reset(seed=0)[0]
    model.save(tmp_path / "model")
    again = algorithm.load(tmp_path / "model")
    expected = model.predict(obs, deterministic=True)[0]
    assert again.predict(obs, deterministic=True)[0].tolist() == expected.tolist()


def test_a_start_model_leaves_no_room_for_an_initial_length():
    envs = gym.make_vec("TextSentiment-v0", num_envs=2, sentiment_model=len)
    with pytest.raises(ValueError, match="initial_length is for fresh weights"):
        REINFORCE(
            GPT2Policy, envs, pretrained=GPT2(GPT2Config(101)), policy_kwargs={"initial_length": 4}
        )
