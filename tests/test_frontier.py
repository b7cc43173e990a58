import itertools
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import Recorder, letters
from hypothesis import given
from hypothesis import strategies as st

from agents import GPT2Config, GPT2Policy, SB3VecEnv
from agents.evaluation import evaluate
from agents.frontier import Frontier, read_frontier, start_frontier
from agents.sb3_vec_env import wrap_token_env

ROOT = Path(__file__).parents[1]
VOCABULARY = [" good", " bad"]  # with <|endoftext|>: a toy of three tokens
END, PAD, STEPS = 2, 3, 3
TINY = {"n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}

counts = st.lists(st.integers(1, 5), min_size=3, max_size=6)
betas = st.floats(0.05, 5)


def kl(p, q):
    return float(np.sum(p * np.log(p / q)))


# --------------------------------------------------------------------- distributions of a few texts


@given(data=st.data(), start=counts, beta=betas)
def test_gap_is_the_divergence_from_the_optimum(data, start, beta):
    """Each text is written as often as it is likely, so that samples are the distribution."""
    policy = data.draw(st.lists(st.integers(1, 5), min_size=len(start), max_size=len(start)))
    rewards = np.array(
        data.draw(st.lists(st.floats(-1, 1), min_size=len(start), max_size=len(start)))
    )
    p0, p = np.array(start) / sum(start), np.array(policy) / sum(policy)
    best = p0 * np.exp(rewards / beta)
    best /= best.sum()
    frontier = Frontier(np.repeat(rewards, start))
    gap = frontier.gap(np.repeat(rewards, policy), np.repeat(np.log(p / p0), policy), beta)
    assert gap.value == pytest.approx(kl(p, best), abs=1e-9)
    point = frontier.optimum(beta)
    assert point.kl == pytest.approx(kl(best, p0), abs=1e-9)
    assert point.means["reward"] == pytest.approx(best @ rewards, abs=1e-9)
    value = point.means["reward"] - beta * point.kl
    assert frontier.value(beta).value == pytest.approx(value, abs=1e-9)


@given(
    rewards=st.lists(st.sampled_from([-1.0, 0.0, 0.25, 1.0]), min_size=1, max_size=7),
    data=st.data(),
)
def test_best_of_n_by_brute_force(rewards, data):
    """All subsets of n texts; where several are best, each as often as the others."""
    n = data.draw(st.integers(1, len(rewards)))
    length = np.arange(len(rewards)) ** 2.0
    reward, mean_length, win = [], [], []
    for subset in itertools.combinations(range(len(rewards)), n):
        top = max(rewards[i] for i in subset)
        # Ties among all texts, not only the subset's, are exchangeable.
        tied = [i for i in range(len(rewards)) if rewards[i] == top]
        reward.append(top)
        mean_length.append(length[tied].mean())
        win.append(np.mean([(top > r) + 0.5 * (top == r) for r in rewards]))
    point = Frontier(rewards, {"length": length}).best_of(n)
    assert point.means["reward"] == pytest.approx(np.mean(reward))
    assert point.means["length"] == pytest.approx(np.mean(mean_length))
    assert point.means["win_rate"] == pytest.approx(np.mean(win))


def test_best_of_n_lies_below_the_optimum_and_above_the_start():
    generator = np.random.default_rng(0)
    frontier = Frontier(generator.normal(size=4000))
    for n in (2, 4, 16):
        point = frontier.best_of(n)
        assert point.means["win_rate"] == pytest.approx(n / (n + 1), abs=1e-3)
        for beta in (0.2, 0.5, 1.0):
            value = point.means["reward"] - beta * point.kl
            assert frontier.rewards.mean() < point.means["reward"]
            assert value < frontier.value(beta).value


def test_limits():
    frontier = Frontier([-1.0, 0.0, 0.5, 1.0])
    assert frontier.optimum(1e6).kl == pytest.approx(0, abs=1e-9)
    assert frontier.optimum(1e6).effective_samples == pytest.approx(4)
    sure = frontier.optimum(1e-3)  # the rewards divided by it would overflow
    assert sure.means["reward"] == pytest.approx(1)
    assert sure.kl == pytest.approx(np.log(4))
    assert sure.effective_samples == pytest.approx(1)
    assert frontier.win_rate(frontier.rewards).value == pytest.approx(0.5)
    assert frontier.win_rate([2.0]).value == 1
    assert frontier.best_of(4).means["reward"] == 1


def test_value_is_within_its_error():
    """A thousand samples of a normal reward, whose J* is μ + σ²/2β, a hundred times."""
    generator = np.random.default_rng(1)
    scores = []
    for _ in range(100):
        estimate = Frontier(generator.normal(0.3, 0.4, 1000)).value(0.5)
        scores.append((estimate.value - (0.3 + 0.4**2 / (2 * 0.5))) / estimate.standard_error)
    assert abs(np.mean(scores)) < 0.5  # the logarithm's bias is small beside it
    assert 0.8 < np.std(scores) < 1.25


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Frontier([]), r"reward has shape \(0,\)"),
        (lambda: Frontier([1.0], {"length": [1, 2]}), r"length has shape \(2,\)"),
        (lambda: Frontier([np.nan]), "reward holds NaN"),
        (lambda: Frontier([1.0]).optimum(0), "kl_coef=0 must be above 0"),
        (lambda: Frontier([1.0]).best_of(2), "n=2 must lie between 1 and the 1 texts"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_texts_too_unlikely_for_a_float_are_all_different():
    frontier = Frontier([0.1, 0.3] * 50, {"log_prob": [-800.0] * 100, "tokens": [100.0] * 100})
    assert frontier.distinct_texts(0.1, 1000) == pytest.approx(1)


def test_an_optimum_of_one_text_repeats_it():
    frontier = Frontier([1.0, 0.0], {"log_prob": [math.log(0.5)] * 2, "tokens": [2, 4]})
    assert frontier.distinct_texts(1e-3, 10) == pytest.approx(0.1)
    assert frontier.optimum(1e-3).means["perplexity"] == pytest.approx(2**0.5)
    assert frontier.distinct_texts(1e9, 2) == pytest.approx(0.75)  # two texts, a half each


# -------------------------------------------------------------------------- a policy, by enumeration


def make_env(judge=letters, rows=256, **arguments):
    envs = gym.make_vec(
        "TextSentiment-v0",
        num_envs=rows,
        vocabulary=VOCABULARY,
        max_tokens=STEPS,
        sentiment_model=judge,
        **arguments,
    )
    return SB3VecEnv(envs)


def make_policy(env, seed=0):
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=3, **TINY)
    policy = GPT2Policy(
        env.observation_space, env.action_space, lambda _: 1e-3, config=config, precision="fp32"
    )
    with torch.no_grad():  # so that tokens are far from equally likely
        for p in policy.gpt2.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return policy


def all_texts():
    for n in range(STEPS + 1):
        for words in itertools.product(range(END), repeat=n):
            yield [*words, END] if n < STEPS else list(words)


def probabilities(policy):
    texts = list(all_texts())
    places = torch.full((len(texts), STEPS), PAD)
    for row, text in enumerate(texts):
        places[row, : len(text)] = torch.tensor(text)
    with torch.no_grad():
        return places, policy.evaluate_texts(places, places < PAD).log_prob.double().sum(
            1
        ).exp().numpy()


def test_several_prompts_have_no_frontier():
    env = make_env(rows=4, prompts=[" good", " bad"])
    with pytest.raises(ValueError, match="2 prompts"):
        start_frontier(make_policy(env), env, 8)


def test_too_few_start_texts_give_no_gap():
    env = make_env(rows=64)
    policy = make_policy(env)
    arguments = {"frontier": Frontier(np.linspace(-1, 1, 60)), "n_episodes": 16}
    few = evaluate(policy, policy.gpt2, env, **arguments, kl_coef=0.01)
    assert "win_rate" in few
    assert not {"gap", "gap_standard_error"} & few.keys()
    assert "gap" in evaluate(policy, policy.gpt2, env, **arguments, kl_coef=100.0)


@pytest.mark.parametrize("name", ["reward", "fluency"])
def test_a_judge_may_not_have_the_name_of_another_column(name):
    env = make_env(rows=4, extra_terms={"fluency": letters})
    with pytest.raises(ValueError, match=rf"judges has the names \['{name}'\]"):
        start_frontier(make_policy(env), env, 8, judges={name: letters})


def test_sampled_frontier_and_gap_are_the_enumerated_ones():
    env = make_env(length_penalty=0)
    start, policy = make_policy(env, 0), make_policy(env, 1)
    places, p0 = probabilities(start)
    p = probabilities(policy)[1]
    vocabulary = env.get_attr("vocabulary")[0]
    texts = [vocabulary.decode([i for i in row if i < END]) for row in places.tolist()]
    rewards = np.where([bool(text) for text in texts], letters(texts), 0)
    beta = 0.4
    best = p0 * np.exp(rewards / beta)
    best /= best.sum()

    frontier = start_frontier(start, env, 4096, seed=3)
    assert len(frontier) == 4096
    value = frontier.value(beta)
    exact = beta * np.log(p0 @ np.exp(rewards / beta))
    assert abs(value.value - exact) < 4 * value.standard_error < 0.1
    optimum, tokens = frontier.optimum(beta), (places < PAD).sum(1).numpy()
    perplexity = np.exp(-(best @ np.log(p0)) / (best @ tokens))
    assert optimum.means["perplexity"] == pytest.approx(perplexity, rel=0.05)
    for n in (1, 2, 8, 100):
        distinct = -np.expm1(n * np.log1p(-best)).sum() / n
        assert frontier.distinct_texts(beta, n) == pytest.approx(distinct, rel=0.05)
    result = evaluate(policy, start.gpt2, env, 2048, 5, frontier=frontier, kl_coef=beta)
    assert result["kl"] == pytest.approx(np.mean([s["kl"] for s in result["samples"]]))
    assert abs(result["gap"] - kl(p, best)) < 4 * result["gap_standard_error"] < 0.4
    quantile = [p0 @ ((rewards < r) + 0.5 * (rewards == r)) for r in rewards]
    assert result["win_rate"] == pytest.approx(p @ quantile, abs=0.05)


def test_a_frontier_of_texts_of_which_a_wrapper_cuts_some_off():
    """A text that is cut off has no sentiment: then the frontier has none."""
    env = gym.make(
        "TextSentiment-v0", vocabulary=[" a", " b"], max_tokens=4, sentiment_model=letters
    )
    env = wrap_token_env(gym.wrappers.TimeLimit(env, 2))  # a batch is one text
    policy = make_policy(env)
    first = start_frontier(policy, env, 1).columns
    frontier = start_frontier(policy, env, 32)
    assert "sentiment" in first
    assert frontier.columns.keys() < first.keys()
    assert len(frontier) == 32


# ------------------------------------------------------------------------------------------ the cache


def test_start_texts_are_written_once(tmp_path):
    judge, file = Recorder(), tmp_path / "run" / "start.npz"
    env = make_env(judge, rows=16)
    policy = make_policy(env)
    state = torch.get_rng_state()
    frontier = start_frontier(policy, env, 64, judges={"other": letters}, cache=file)
    assert torch.equal(torch.get_rng_state(), state)
    written = sum(map(len, judge.calls))
    again = start_frontier(policy, env, 64, judges={"other": letters}, cache=file)
    assert sum(map(len, judge.calls)) - written < written / 2  # the first batch alone
    assert frontier.columns.keys() == again.columns.keys() >= {"sentiment", "length", "other"}
    for name, column in frontier.columns.items():
        np.testing.assert_array_equal(column, again.columns[name])
    assert [path.name for path in file.parent.iterdir()] == ["start.npz"]


def test_a_cache_with_any_bit_damaged_is_read_or_is_none(tmp_path):
    file = tmp_path / "start.npz"
    env = make_env(rows=16)
    start_frontier(make_policy(env), env, 16, cache=file)
    content = file.read_bytes()
    start = content.find(b"PK\x01\x02")  # of the first entry in the zip's directory
    for place in range(start, start + 46):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            file.write_bytes(damaged)
            read_frontier(file)


@pytest.mark.parametrize("change", ["weights", "reward", "size", "damage"])
def test_cache_of_something_else_is_not_read(tmp_path, change):
    file = tmp_path / "start.npz"
    env = make_env(rows=16)
    policy = make_policy(env)
    old = start_frontier(policy, env, 32, cache=file)
    n = 32
    if change == "weights":
        with torch.no_grad():
            policy.gpt2.ln_f.bias += 0.1
    elif change == "reward":
        env = make_env(rows=16, length_penalty=2.0)
    elif change == "size":
        n = 48
    else:
        file.write_bytes(file.read_bytes()[:100])
    new = start_frontier(policy, env, n, cache=file)
    fresh = start_frontier(policy, env, n)
    np.testing.assert_array_equal(new.rewards, fresh.rewards)
    same = len(old) == len(new) and Counter(old.rewards) == Counter(new.rewards)
    assert same == (change == "damage")


# ---------------------------------------------------------------------------------------- the example


@pytest.mark.parametrize("flag", ["--betas", "--updates", "--start-episodes", "--eval-episodes"])
def test_example_names_the_flag_that_is_zero(tmp_path, flag):
    command = [sys.executable, str(ROOT / "examples" / "frontier.py"), "--smoke", flag, "0"]
    command += ["--out", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert ended.returncode
    assert flag in ended.stderr
    assert "Traceback" not in ended.stderr


def test_example_names_too_few_start_texts(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "frontier.py"), "--smoke"]
    command += ["--start-episodes", "49", "--out", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert "--start-episodes 49: must be at least 50" in ended.stderr


def test_example(tmp_path):
    out = tmp_path / "frontier"
    command = [sys.executable, str(ROOT / "examples" / "frontier.py"), "--smoke", "--out", str(out)]
    command += ["--betas", "0.2", "0.4"]  # given: not those of --smoke
    subprocess.run(command, check=True, cwd=ROOT, timeout=120)
    assert (out / "frontier.png").stat().st_size > 10_000
    result = json.loads((out / "frontier.json").read_text())
    assert {run["beta"] for run in result["trained"]} == {0.2, 0.4}
    assert result["arguments"]["updates"] == 2
    for run in result["trained"]:
        assert run["kl"] >= 0
        assert np.isfinite(run["gap"])
    sentiments = [point["sentiment"] for point in result["optimum"]]
    assert sentiments[-1] > sentiments[0]
