import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import letters
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_helpers import L, V, make_policy, observation

from agents import GPT2Policy


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


def test_predicting_in_inference_mode_leaves_the_cache_usable():
    policy = make_policy()
    texts = [observation([0]), observation([0, 1]), observation([0, 1, 2])]
    want = [uncached(policy, text) for text in texts]
    for mode, text, expected in zip(
        (torch.inference_mode, torch.no_grad, torch.inference_mode), texts, want, strict=True
    ):
        with mode():
            got = policy.last_hidden(text.clone())
        torch.testing.assert_close(got, expected.detach())
    cache = policy.prefix_cache(1)
    assert (cache.tokens_read, cache.tokens_reused) == (2 + 1 + 1, 2 + 3)


@torch.no_grad()
def test_only_the_caches_that_were_used_last_are_kept():
    policy = make_policy()
    for size in (1, 2, 3, 1, 4, 5):
        policy.last_hidden(observation(*[[0]] * size))
    assert list(policy._caches) == [1, 4, 5]


@pytest.mark.parametrize("gradients", [False, True])
def test_a_finished_text_that_leaves_no_position_is_named(gradients):
    space = spaces.Box(0, V, (L,), np.int64)
    config = {"n_positions": L, "n_embd": 16, "n_layer": 1, "n_head": 2}
    policy = GPT2Policy(space, spaces.Discrete(V), lambda _: 1e-3, config=config)
    policy.set_training_mode(False)
    with torch.set_grad_enabled(gradients):
        policy.last_hidden(observation([0] * (L - 1)))
        with pytest.raises(ValueError, match="obs holds a text that fills its 9 places, and so is"):
            policy.last_hidden(observation([0] * L, [1]))
