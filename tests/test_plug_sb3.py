"""Stock algorithms of stable-baselines3 and sb3-contrib on TextSentiment-v0."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import letters
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from agents import GPT2Policy, SB3VecEnv, TokenEmbedding

contrib = pytest.importorskip("sb3_contrib")

WORDS = [" good", " bad", " film", " not"]
ARGUMENTS = {"vocabulary": WORDS, "sentiment_model": letters, "max_tokens": 4}
EMBEDDING = {"features_extractor_class": TokenEmbedding}

ON_POLICY = {"n_steps": 16, "seed": 0}
ALGORITHMS = {
    "A2C": (A2C, "MlpPolicy", ON_POLICY),
    "PPO": (PPO, "MlpPolicy", ON_POLICY | {"batch_size": 16, "n_epochs": 2}),
    "DQN": (DQN, "MlpPolicy", {"learning_starts": 10, "buffer_size": 100, "seed": 0}),
    "TRPO": (contrib.TRPO, "MlpPolicy", ON_POLICY | {"batch_size": 16}),
    "MaskablePPO": (contrib.MaskablePPO, "MlpPolicy", ON_POLICY | {"batch_size": 16}),
    "RecurrentPPO": (
        contrib.RecurrentPPO,
        "MlpLstmPolicy",
        ON_POLICY | {"batch_size": 16, "n_epochs": 1, "policy_kwargs": {"lstm_hidden_size": 8}},
    ),
}


def native(num_envs=2, **arguments):
    envs = gym.make_vec("TextSentiment-v0", num_envs=num_envs, **(ARGUMENTS | arguments))
    return VecMonitor(SB3VecEnv(envs), info_keywords=("sentiment",))


ENVS = {
    "single": lambda: gym.make("TextSentiment-v0", **ARGUMENTS),
    "make_vec_env": lambda: make_vec_env("TextSentiment-v0", n_envs=2, env_kwargs=ARGUMENTS),
    "native": native,
}


@pytest.mark.parametrize("env", ENVS.values(), ids=ENVS)
@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_trains_evaluates_and_loads(algorithm, env, tmp_path):
    kind, policy, arguments = algorithm
    env = env()
    policy_kwargs = EMBEDDING | arguments.get("policy_kwargs", {})
    model = kind(policy, env, **(arguments | {"policy_kwargs": policy_kwargs}))
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(48)
    after = list(model.policy.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert model.num_timesteps >= 48
    assert all(1 <= episode["l"] <= 4 for episode in model.ep_info_buffer)
    reward, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=4)
    assert -1.5 <= reward <= 1

    model.save(tmp_path / "model")
    again = kind.load(tmp_path / "model", env=env)
    obs = model.get_env().reset()
    expected = model.predict(obs, deterministic=True)[0]
    assert again.predict(obs, deterministic=True)[0].tolist() == expected.tolist()
    again.learn(32, reset_num_timesteps=False)
    assert again.num_timesteps >= model.num_timesteps + 32


@pytest.mark.filterwarnings("error")
def test_make_vec_env_warns_of_nothing():
    assert ENVS["make_vec_env"]().render_mode is None


def test_gym_make_passes_a_render_mode_on_only_to_have_it_refused():
    with pytest.raises(TypeError, match="render_mode='rgb_array' must be"):
        gym.make("TextSentiment-v0", render_mode="rgb_array", **ARGUMENTS)
    frames = gym.make("TextSentiment-v0", render_mode="ansi_list", **ARGUMENTS)
    frames.reset(seed=0)
    frames.step(0)
    assert len(frames.render()) == 2


@pytest.mark.parametrize("policy", ["MlpPolicy", GPT2Policy])
def test_callbacks_progress_bar_and_normalised_rewards(policy, tmp_path):
    train = VecNormalize(native(), norm_obs=False, gamma=1.0)
    test = VecNormalize(native(), norm_obs=False, norm_reward=False, training=False)
    callbacks = [
        EvalCallback(test, n_eval_episodes=4, eval_freq=8, log_path=str(tmp_path), verbose=0),
        CheckpointCallback(16, str(tmp_path), name_prefix="text", save_vecnormalize=True),
    ]
    model = PPO(policy, train, n_steps=16, batch_size=16, n_epochs=1)
    model.learn(64, callback=callbacks, progress_bar=True)
    evaluations = np.load(tmp_path / "evaluations.npz")
    assert evaluations["results"].shape == (4, 4)
    assert train.ret_rms.count > 32
    assert {p.name for p in tmp_path.glob("text*")} == {
        f"text_{name}_steps.{ending}"
        for n in (32, 64)
        for name, ending in ((str(n), "zip"), (f"vecnormalize_{n}", "pkl"))
    }
    again = PPO.load(tmp_path / "text_64_steps", env=train)
    again.learn(32)
    assert "sentiment" in again.ep_info_buffer[-1]


def test_the_vector_env_gives_what_sb3s_own_vectorization_gives():
    """The same seeds, the same training: the adapter is invisible to the agent."""
    weights = []
    for env in (native(), make_vec_env("TextSentiment-v0", n_envs=2, env_kwargs=ARGUMENTS)):
        model = PPO("MlpPolicy", env, n_steps=16, batch_size=16, seed=3)
        weights.append([p.detach().clone() for p in model.learn(64).policy.parameters()])
    for a, b in zip(*weights, strict=True):
        assert torch.equal(a, b)


# --------------------------------------------------------------------------------- TokenEmbedding


def observations(size, *texts, width=6):
    obs = torch.full((len(texts), width), size)
    for row, text in enumerate(texts):
        obs[row, : len(text)] = torch.tensor(text)
    return obs


def extractor(size=50_257, width=6, **arguments):
    torch.manual_seed(0)
    return TokenEmbedding(spaces.Box(0, size, (width,), np.int64), **arguments)


def test_embedding_of_sb3s_floats_is_exact_at_gpt2s_vocabulary():
    embed = extractor()
    obs = observations(50_257, [50_255, 50_256], [50_254, 50_255], [])
    features = embed(obs.float())
    assert features.shape == (3, embed.features_dim)
    assert torch.equal(features, embed(obs))
    torch.testing.assert_close(features[0, :32], embed.tokens.weight[50_256])
    torch.testing.assert_close(features[0, 32:64], embed.tokens.weight[50_255])
    assert not torch.allclose(features[0, :32], features[1, :32])
    for half in (torch.float16, torch.bfloat16):
        with pytest.raises(TypeError, match="rounds token ids"):
            embed(obs.to(half))


def test_embedding_sees_last_tokens_mean_and_length():
    embed = extractor(9, embedding_dim=2, n_last=3)
    token, length = embed.tokens.weight, embed.lengths.weight
    [features] = embed(observations(9, [4, 7]))
    expected = [token[7], token[4], token[9], (token[4] + token[7]) / 2, length[2]]
    torch.testing.assert_close(features, torch.cat(expected))
    [features] = embed(observations(9, []))
    nothing = torch.zeros(2)
    torch.testing.assert_close(features, torch.cat([token[9]] * 3 + [nothing, length[0]]))


def test_embedding_is_the_same_whatever_the_width():
    """More padding, as other prompts would bring, changes nothing but the table of lengths."""
    short, long = extractor(9, width=3), extractor(9, width=8)
    long.tokens.load_state_dict(short.tokens.state_dict())
    cut = short.features_dim - 32
    a = short(observations(9, [1, 2, 3], width=3))
    b = long(observations(9, [1, 2, 3], width=8))
    torch.testing.assert_close(a[:, :cut], b[:, :cut])


@pytest.mark.parametrize(
    ("space", "arguments", "message"),
    [
        (spaces.MultiDiscrete([5] * 4), {}, "observation_space=.*one-hot"),
        (spaces.Box(0, 5, (4,)), {}, "observation_space=.*int64"),
        (spaces.Box(0, 5, (4,), np.int64), {"n_last": 0}, "n_last=0"),
        (spaces.Box(0, 5, (4,), np.int64), {"embedding_dim": 0}, "embedding_dim=0"),
    ],
)
def test_embedding_bad_arguments(space, arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenEmbedding(space, **arguments)


CHAIN = [
    *(" good", " bad", " film", " not", " the", " story"),
    *(" plot", " great", " boring", " love", " hate", " fun"),
]
FOLLOWER = dict(zip(CHAIN, np.random.default_rng(0).permutation(CHAIN), strict=True))


def follows(texts):
    """The share of a text's words that follow the one word they are to follow."""
    words = [[f" {word}" for word in text.split()] for text in texts]
    return [sum(FOLLOWER[a] == b for a, b in itertools.pairwise(w)) / 7 for w in words]


def learn_to_follow(policy_kwargs):
    env = native(
        16,
        vocabulary=CHAIN,
        sentiment_model=follows,
        max_tokens=8,
        length_penalty=0,
        shaping=True,
    )
    arguments = {"n_steps": 64, "batch_size": 256, "n_epochs": 4, "gamma": 0.9, "ent_coef": 0.01}
    model = PPO("MlpPolicy", env, 3e-3, policy_kwargs=policy_kwargs, seed=0, **arguments)
    model.learn(10_000)
    return evaluate_policy(model, env, 100, deterministic=False)[0]


def test_an_mlp_learns_with_the_embedding_what_it_hardly_learns_from_ids():
    assert learn_to_follow(EMBEDDING) > 0.7
    assert learn_to_follow({}) < 0.4
