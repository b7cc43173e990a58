import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import letters
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import GPT2, GPT2Config, GPT2Policy, SB3VecEnv

V, L = 6, 9


def make_policy(**arguments):
    torch.manual_seed(0)
    space = spaces.Box(0, V, (L,), np.int64)
    config = GPT2Config(vocab_size=V, n_positions=L + 1, n_embd=16, n_layer=2, n_head=2)
    policy = GPT2Policy(space, spaces.Discrete(V), lambda _: 1e-3, config=config, **arguments)
    for p in policy.parameters():  # fresh weights are too small to tell texts apart
        torch.nn.init.normal_(p, std=0.3)
    policy.set_training_mode(False)
    return policy


def observation(*texts):
    obs = np.full((len(texts), L), V)
    for row, text in enumerate(texts):
        obs[row, : len(text)] = text
    return torch.as_tensor(obs)


def uncached(policy, obs):
    """The last layer at each text's end, by one full read of each text alone, unpadded."""
    rows = []
    for row in obs:
        ids = torch.tensor([[V - 1, *row[row < V].tolist()]])
        rows.append(policy.gpt2.hidden(ids)[0, -1])
    return torch.stack(rows)


texts = st.lists(st.integers(0, V - 2), max_size=L)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), batch=st.integers(1, 4))
def test_prefix_cache_equals_full_reads(data, batch):
    """Whatever is shown next: extended, restarted, altered or repeated."""
    policy = make_policy()
    for _ in range(4):
        obs = observation(*(data.draw(texts) for _ in range(batch)))
        # From each text on, as an episode goes on.
        for _ in range(3):
            with torch.no_grad():
                torch.testing.assert_close(policy.last_hidden(obs), uncached(policy, obs))
            lengths = (obs < V).sum(1)
            for row in range(batch):
                if lengths[row] < L and data.draw(st.booleans()):
                    obs[row, lengths[row]] = data.draw(st.integers(0, V - 2))


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
@pytest.mark.parametrize("prompts", [None, ["good", "not bad film"]])
def test_prefix_cache_over_autoresetting_rollouts(mode, prompts):
    envs = gym.make_vec(
        "TextSentiment-v0",
        num_envs=5,
        vocabulary=[" good", " bad", " film", " not"],
        max_tokens=6,
        prompts=prompts,
        sentiment_model=letters,
        autoreset_mode=mode,
    )
    policy = GPT2Policy(envs.single_observation_space, envs.single_action_space, lambda _: 1e-3)
    policy.set_training_mode(False)
    obs, _ = envs.reset(seed=0)
    with torch.no_grad():
        for _ in range(40):
            obs = torch.as_tensor(obs)
            hidden = policy.last_hidden(obs)
            for row in range(5):
                text = obs[row][obs[row] < 5].tolist()
                expected = policy.gpt2.hidden(torch.tensor([[4, *text]]))[0, -1]
                torch.testing.assert_close(hidden[row], expected)
            obs = envs.step(policy(obs)[0].numpy())[0]
    cache = policy.prefix_cache(5)
    # `read` and `forward` each see every observation: the second re-reads only the last token.
    assert cache.tokens_reused > cache.tokens_read


def test_only_new_tokens_are_read():
    policy = make_policy()
    with torch.no_grad():
        policy.last_hidden(observation([1, 2, 3], [4]))
        cache = policy.prefix_cache(2)
        assert (cache.tokens_read, cache.tokens_reused) == (4 + 2, 0)
        policy.last_hidden(observation([1, 2, 3, 0], [4, 4]))
        assert (cache.tokens_read, cache.tokens_reused) == (6 + 2, 4 + 2)
        policy.last_hidden(observation([1, 2, 3, 0, 1], [2]))  # the second row restarts
        assert cache.tokens_read == 8 + 2


def change_by_optimizer(policy):
    obs = observation([1], [2])
    policy.evaluate_actions(obs, torch.tensor([0, 1]))[1].sum().backward()
    policy.optimizer.step()


def change_by_load(policy):
    other = copy.deepcopy(policy)
    with torch.no_grad():
        other.gpt2.wte.weight.mul_(2)
    policy.load_state_dict(other.state_dict())


def change_by_replacement(policy):
    policy.gpt2.wte.weight.data = policy.gpt2.wte.weight.data * 2


@pytest.mark.parametrize("change", [change_by_optimizer, change_by_load, change_by_replacement])
@pytest.mark.parametrize("copied", [False, True], ids=["original", "copy"])
def test_changed_weights_empty_the_cache(change, copied):
    policy = copy.deepcopy(make_policy()) if copied else make_policy()
    obs = observation([1, 2], [3])
    with torch.no_grad():
        before = policy.last_hidden(obs)
    change(policy)
    with torch.no_grad():
        after = policy.last_hidden(obs)
        torch.testing.assert_close(after, uncached(policy, obs))
    assert not torch.allclose(before, after)


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
