"""The measures of `evaluate` against sums over whole distributions, text by text."""

import copy
import itertools
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import letters
from reinforce_helpers import END, PAD, PROMPTS, VOCABULARY, learn, make_envs, make_model
from stable_baselines3.common.vec_env import VecNormalize

from agents import SB3VecEnv, evaluation
from agents.evaluation import evaluate
from agents.policy import masked_places
from agents.rollout import collect_episodes
from text_sentiment_env import Vocabulary

ROWS, N, SEED = 8, 20, 3


@pytest.fixture
def model():
    """A policy that is far from its start model."""
    return make_model(make_envs(ROWS, prompts=PROMPTS))


@pytest.fixture
def env():
    return SB3VecEnv(make_envs(ROWS, prompts=PROMPTS, autoreset_mode="SameStep"))


def run(model, env, n=N, seed=SEED, **arguments):
    return evaluate(model.policy, model.reference, env, n, seed, **arguments)


def written(model, env, n=N):
    """The batches that `evaluate` draws, cut to n texts: prompts' and written tokens, and rewards."""
    with torch.random.fork_rng([]):
        torch.manual_seed(SEED)
        env.seed(SEED)
        batches = [collect_episodes(model.policy, env) for _ in range(math.ceil(n / ROWS))]
    texts, masks, rewards = (
        torch.cat([getattr(batch, name) for batch in batches])[:n]
        for name in ("texts", "mask", "rewards")
    )
    return texts, masks, rewards


@torch.no_grad()
def log_softmax(gpt2, text):
    """That of the next token behind `text`, by one unpadded read."""
    return gpt2(torch.tensor([[END, *text]]))[0, -1].double().log_softmax(-1)


@pytest.mark.parametrize("name", ["sentiment", "reward", "kl", "perplexity", "episodes", "text"])
def test_a_judge_may_not_have_the_name_of_another_measure(model, env, name):
    with pytest.raises(ValueError, match=rf"judges has the names \['{name}'\]"):
        run(model, env, judges={name: lambda texts: [0.0] * len(texts)})


def test_measures_equal_sums_over_the_distributions(model, env):
    for bad in (np.nan, None, "good"):
        with pytest.raises(ValueError, match=r"^judges\['other'\] returned"):
            run(model, env, judges={"other": lambda texts, bad=bad: [bad] * len(texts)})
    with pytest.raises(ValueError, match=r"^judges\['other'\] returned an array of shape"):
        run(model, env, judges={"other": lambda texts: np.zeros((len(texts), 1))})
    result = run(model, env, judges={"other": lambda texts: [len(text) for text in texts]})
    texts, mask, rewards = written(model, env)
    entropy = kl = reference_log_prob = 0.0
    for text, own in zip(texts.tolist(), mask.tolist(), strict=True):
        for place in np.flatnonzero(own):
            log_p = log_softmax(model.policy.gpt2, text[:place])
            log_q = log_softmax(model.reference, text[:place])
            entropy -= (log_p.exp() * log_p).sum().item()
            kl += (log_p.exp() * (log_p - log_q)).sum().item()
            reference_log_prob += log_q[text[place]].item()
    tokens, paid = int(mask.sum()), rewards.sum(1).numpy()
    assert kl / N > 0.05
    assert result["entropy"] == pytest.approx(entropy / tokens, rel=1e-4)
    assert result["kl"] == pytest.approx(kl / N, rel=1e-3)
    assert result["perplexity"] == pytest.approx(math.exp(-reference_log_prob / tokens), rel=1e-4)
    assert result["reward"] == pytest.approx(paid.mean(), rel=1e-5)
    assert result["reward_standard_error"] == pytest.approx(paid.std(ddof=1) / N**0.5, rel=1e-5)
    ended = [END in text for text in texts.tolist()]
    assert 0 < sum(ended) < N
    assert result["end_rate"] == pytest.approx(sum(ended) / N)
    words = [
        [token for token, own in zip(*row, strict=True) if own and token != END]
        for row in zip(texts.tolist(), mask.tolist(), strict=True)
    ]
    pairs = [pair for text in words for pair in itertools.pairwise(text)]
    singles = [token for text in words for token in text]
    assert result["distinct_1"] == pytest.approx(len(set(singles)) / len(singles))
    assert result["distinct_2"] == pytest.approx(len(set(pairs)) / len(pairs))
    # The prompt counts for a text, and the end of the text does not.
    assert result["distinct_texts"] == len({s["text"] for s in result["samples"]}) / N
    assert result["other"] == np.mean([len(s["text"]) for s in result["samples"]])
    assert result["sentiment"] == pytest.approx(
        np.mean([s["sentiment"] for s in result["samples"]])
    )
    assert result["length"] == pytest.approx(np.mean([len(text) for text in words]))
    assert result["episodes"] == N


def test_samples_hold_a_texts_tokens_and_its_numbers(model, env):
    samples = run(model, env, judges={"other": lambda texts: [len(text) for text in texts]})[
        "samples"
    ]
    texts, mask, rewards = written(model, env)
    vocabulary = env.get_attr("vocabulary")[0]
    assert len(samples) == N
    assert {sample["prompt"].strip() for sample in samples} == set(PROMPTS)
    for sample, text, own, paid in zip(samples, texts, mask, rewards, strict=True):
        assert sample.keys() == {
            *("prompt", "text", "tokens", "reward", "kl", "sentiment", "length"),
            *("length_penalty", "repetition_penalty", "other"),
        }
        assert sample["prompt"] + "".join(sample["tokens"]) == sample["text"]
        assert len(sample["tokens"]) == sample["length"]
        assert sample["other"] == len(sample["text"])
        assert sample["prompt"] == vocabulary.decode(text[~own & (text < PAD)].tolist())
        assert sample["text"] == vocabulary.decode(text.tolist())
        assert sample["text"].startswith(sample["prompt"])
        assert sample["reward"] == pytest.approx(paid.sum().item())
        assert sample["sentiment"] == pytest.approx(letters([sample["text"]])[0])


def test_a_character_of_several_tokens_is_the_last_ones():
    vocabulary = Vocabulary.load("gpt2")
    ids = [*vocabulary.encode(" a naïve 日本 film"), vocabulary.end_index]
    pieces = evaluation._pieces(vocabulary, ids)
    assert len(pieces) == len(ids) - 1
    assert "".join(pieces) == " a naïve 日本 film"
    assert "" in pieces  # of a token that only begins a character
    cut = ids[: pieces.index("") + 1]
    assert "".join(evaluation._pieces(vocabulary, cut)) == vocabulary.decode(cut)
    assert evaluation._pieces(vocabulary, [vocabulary.end_index]) == []


def test_the_callers_random_numbers_are_left_as_they_were(model, env):
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = run(model, env)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    torch.rand(5)
    assert run(model, env) == first
    assert run(model, env, seed=SEED + 1)["samples"] != first["samples"]


def test_the_rows_random_numbers_are_left_as_they_were():
    """Prompts that the rows draw are those of a run without evaluations, from the first one on."""

    def prompts(evaluations):
        model = make_model(make_envs(ROWS, prompts=PROMPTS), baseline="none")
        drawn = []
        for _ in range(4):
            if evaluations:
                run(model, model.env)
            drawn.append(learn(model, 1, reset_num_timesteps=False)._last_obs[:, 0].tolist())
        return drawn

    assert prompts(True) == prompts(False)


def test_texts_are_cut_to_their_number(model, env):
    long = run(model, env)["samples"]
    for n in (1, ROWS, ROWS + 1):
        result = run(model, env, n)
        for sample, other in zip(result["samples"], long[:n], strict=True):
            # Matrix products of another number of rows round otherwise.
            assert sample.pop("kl") == pytest.approx(other["kl"], rel=1e-4, abs=1e-6)
            assert sample == {name: other[name] for name in sample}
        assert result["episodes"] == n
    assert run(model, env, 1)["reward_standard_error"] == 0


def test_no_episodes_are_refused(model, env):
    with pytest.raises(ValueError, match="n_episodes=0"):
        run(model, env, 0)


def test_a_model_does_not_diverge_from_itself(model, env):
    result = evaluate(model.policy, model.policy.gpt2, env, N, SEED)
    assert result["kl"] == 0
    assert result["perplexity"] > 1


def hidden_states(policy, texts, mask, gpt2):
    """The last hidden states that predict the masked tokens, (N, C)."""
    hidden, places = policy._hidden_at(texts, *masked_places(mask, texts.device), gpt2)
    return hidden[places]


def test_under_autocast_the_distributions_are_the_samplers(env):
    """Logits in full precision would be of another policy than the one that drew the tokens."""
    model = make_model(make_envs(ROWS, prompts=PROMPTS), precision="bf16")
    policy, reference = model.policy, model.reference
    result = run(model, env)
    texts, mask, _ = written(model, env)
    with torch.no_grad():
        own = policy.evaluate_texts(texts, mask)
        start = policy.evaluate_texts(texts, mask, reference)
        hidden, start_hidden = (hidden_states(policy, texts, mask, m) for m in (None, reference))
        with policy.autocast():
            heads = policy.gpt2.head(hidden), reference.head(start_hidden)
        log_p, log_q = (logits.double().log_softmax(-1) for logits in heads)
        other = policy.gpt2.head(hidden).double().log_softmax(-1)
    tokens = int(mask.sum())
    assert result["entropy"] == pytest.approx(own.entropy.sum().item() / tokens, rel=1e-6)
    perplexity = math.exp(-start.log_prob.sum().item() / tokens)
    assert result["perplexity"] == pytest.approx(perplexity, rel=1e-6)
    kl = (log_p.exp() * (log_p - log_q)).sum().item() / N
    assert result["kl"] == pytest.approx(kl, rel=1e-5)
    full_precision = -(other.exp() * other).sum().item() / tokens
    assert abs(result["entropy"] - full_precision) > 1e-5 * full_precision


def test_dropout_is_off(model, env):
    model.policy.set_training_mode(True)
    run(model, env, 1)
    assert not model.policy.training


def test_texts_that_a_time_limit_cut_off():
    """TimeLimit ends a text that the environment has not, so that its info has no text."""
    env = gym.make("TextSentiment-v0", vocabulary=VOCABULARY, max_tokens=8, sentiment_model=letters)
    model = make_model(gym.wrappers.TimeLimit(env, 2))
    model.learn(1)
    result = run(model, model.get_env())
    assert len(result["samples"]) == N
    cut = [sample for sample in result["samples"] if len(sample["tokens"]) == 2]
    assert cut
    assert all(sample["text"] == "".join(sample["tokens"]) for sample in result["samples"])


def test_a_vec_normalize_is_left_as_it_was(model, env):
    """And the reward is the environment's own."""
    normalized = VecNormalize(env, norm_obs=False)
    normalized.reset()
    normalized.step(np.full(ROWS, END))
    before = copy.deepcopy(vars(normalized.ret_rms))
    result = run(model, normalized)
    assert vars(normalized.ret_rms) == before
    assert normalized.training
    assert normalized.norm_reward
    assert result["reward"] == run(model, env)["reward"] != 0


def test_pending_options_are_left_as_they_were(model, env):
    without = run(model, env)
    env.set_options([{"prompt": "bad"}] * ROWS)
    assert run(model, env) == without
    env.reset()
    assert [info["prompt"] for info in env.reset_infos] == ["bad"] * ROWS
