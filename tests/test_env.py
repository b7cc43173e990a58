import importlib
import json
import pickle
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from helpers import Recorder, letters
from hypothesis import given, settings
from hypothesis import strategies as st

import text_sentiment_env

VOCABULARY = [" good", " bad", " film", " not"]  # with <|endoftext|>: actions 0 to 4, PAD 5
END = 4


def make(**arguments):
    arguments = {"vocabulary": VOCABULARY, "sentiment_model": letters, **arguments}
    return gym.make("TextSentiment-v0", **arguments).unwrapped


def write(env, actions, **reset):
    """Plays one episode of the given actions; the last step's results."""
    env.reset(**reset)
    rewards = []
    for action in actions:
        *_, reward, terminated, truncated, info = env.step(action)
        assert not truncated
        rewards.append(reward)
    assert terminated
    return rewards, info


# ------------------------------------------------------------------------------------ registration


@pytest.mark.parametrize(
    "code",
    [
        "import text_sentiment_env, gymnasium; gymnasium.make('TextSentiment-v0')",
        "import gymnasium; gymnasium.make('text_sentiment_env:TextSentiment-v0')",
        "import gymnasium; gymnasium.make_vec('text_sentiment_env:TextSentiment-v0', num_envs=2)",
    ],
)
def test_made_by_id_in_a_fresh_process(code):
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], check=True)


def test_import_needs_no_heavy_library():
    code = (
        "import sys, text_sentiment_env as t; t.Vocabulary.load('small');"
        "print([m for m in ('torch', 'transformers', 'stable_baselines3', 'agents')"
        " if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


def test_reload_registers_once():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(text_sentiment_env)


def test_spec_is_json_and_has_no_time_limit():
    spec = gym.make("TextSentiment-v0", prompts=["the movie"], sentiment_model="vader").spec
    assert json.loads(spec.to_json())["max_episode_steps"] is None
    env = gym.make(gym.envs.registration.EnvSpec.from_json(spec.to_json()))
    assert env.unwrapped.prompts == ["the movie"]


@pytest.mark.parametrize("mode", ["sync", "async", "vector_entry_point"])
def test_every_vectorization_mode(mode):
    envs = gym.make_vec(
        "text_sentiment_env:TextSentiment-v0",
        num_envs=2,
        vectorization_mode=mode,
        sentiment_model="vader",
    )
    observations, _ = envs.reset(seed=0)
    assert observations.shape == (2, 20)
    envs.close()


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_unknown_argument(make):
    with pytest.raises(TypeError, match="TextSentiment-v0 has no argument 'foo': .*max_tokens"):
        make("TextSentiment-v0", foo=1)


# ---------------------------------------------------------------------------------------- checkers


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"vocabulary": "gpt2", "max_tokens": 64},
        {"prompts": ["the film", "a very good story"]},
        {"vocabulary": VOCABULARY, "shaping": True, "reward_type": "binary", "max_tokens": 5},
        {"render_mode": "ansi"},
    ],
)
def test_checkers_find_nothing(arguments):
    from stable_baselines3.common.env_checker import check_env as sb3_check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("TextSentiment-v0", sentiment_model="vader", **arguments)
        check_env(env.unwrapped)
        sb3_check_env(env.unwrapped)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), steps=st.integers(1, 30))
def test_same_seed_same_rollout(seed, steps):
    first, second = (make(prompts=["good", "not bad film", " bad"], max_tokens=6) for _ in range(2))
    assert data_equivalence(first.reset(seed=seed), second.reset(seed=seed), exact=True)
    first.action_space.seed(seed)
    for _ in range(steps):
        action = int(first.action_space.sample())
        a, b = first.step(action), second.step(action)
        assert data_equivalence(a, b, exact=True)
        assert first.observation_space.contains(a[0])
        if a[2]:
            assert data_equivalence(first.reset(), second.reset(), exact=True)


def test_pickle_goes_on_where_it_was():
    env = make(sentiment_model="vader", max_tokens=3)
    env.reset(seed=3)
    env.step(0)
    copy = pickle.loads(pickle.dumps(env))
    for action in (2, END):
        assert data_equivalence(env.step(action), copy.step(action), exact=True)
    assert data_equivalence(env.reset(), copy.reset(), exact=True)


# ------------------------------------------------------------------------------------------- rules


def test_observation_shows_prompt_and_tokens():
    env = make(prompts=["good film", "not"], max_tokens=3)
    observation, info = env.reset(options={"prompt": "not"})
    assert info == {"prompt": "not"}
    assert env.observation_space.shape == (5,)
    assert observation.tolist() == [3, 5, 5, 5, 5]
    assert env.step(1)[0].tolist() == [3, 1, 5, 5, 5]
    assert env.step(END)[0].tolist() == [3, 1, END, 5, 5]


def test_reward_terms_by_hand():
    env = make(max_tokens=10, target_length=(3, 4), length_penalty=0.5, repetition_penalty=2.0)
    # " good bad good bad good": bigrams gb bg gb bg: 4, of which 2 distinct; 5 tokens, 1 too many.
    rewards, info = write(env, [0, 1, 0, 1, 0, END])
    assert info["text"] == " good bad good bad good"
    assert info["length"] == 5
    assert info["sentiment"] == letters([info["text"]])[0]
    assert info["length_penalty"] == pytest.approx(0.5 * 1 / 10)
    assert info["repetition_penalty"] == pytest.approx(2.0 * 2 / 4)
    assert rewards[:-1] == [0] * 5
    assert rewards[-1] == pytest.approx(info["sentiment"] - 0.05 - 1.0)


@settings(max_examples=60, deadline=None)
@given(
    actions=st.lists(st.integers(0, 3), max_size=8),
    low=st.integers(0, 8),
    span=st.integers(0, 8),
    weight=st.floats(0, 3),
    mu=st.floats(0, 3),
    target=st.sampled_from(["positive", "negative"]),
    kind=st.sampled_from(["graded", "binary"]),
    shaping=st.booleans(),
)
def test_reward_formula(actions, low, span, weight, mu, target, kind, shaping):
    env = make(
        max_tokens=8,
        target_length=(low, low + span),
        length_penalty=weight,
        repetition_penalty=mu,
        target=target,
        reward_type=kind,
        shaping=shaping,
    )
    rewards, info = write(env, [*actions, END] if len(actions) < 8 else actions)
    text = "".join(VOCABULARY[a] for a in actions)
    sentiment = float(letters([text])[0]) if text else 0.0
    n = len(actions)
    off = low - n if n < low else max(0, n - low - span)
    pairs = [tuple(actions[i : i + 2]) for i in range(n - 1)]
    repeated = (len(pairs) - len(set(pairs))) / len(pairs) if pairs else 0
    term = np.sign(sentiment) if kind == "binary" else sentiment
    sign = 1 if target == "positive" else -1
    assert info["text"] == text
    assert info["sentiment"] == pytest.approx(sentiment)
    assert sum(rewards) == pytest.approx(sign * term - weight * off / 8 - mu * repeated)


def test_empty_text_is_neutral_and_pays_its_length():
    judge = Recorder()
    rewards, info = write(make(sentiment_model=judge), [END])
    assert judge.calls == []
    assert (info["text"], info["sentiment"], info["length"]) == ("", 0.0, 0)
    assert rewards == [-0.5 * 8 / 20]


def test_the_limit_terminates():
    env = make(max_tokens=2)
    env.reset()
    assert env.step(0)[2:4] == (False, False)
    assert env.step(0)[2:4] == (True, False)


def test_judge_reads_prompt_and_text():
    judge = Recorder()
    _, info = write(make(prompts=["not"], sentiment_model=judge), [0, END])
    assert judge.calls == [[" not good"]]
    assert info["text"] == " not good"
    assert info["length"] == 1


def test_dense_shaping_pays_increments():
    env = make(shaping=True, max_tokens=3, length_penalty=0)
    rewards, _ = write(env, [0, 1, END])
    after = letters([" good", " good bad"])
    assert rewards == pytest.approx([after[0], after[1] - after[0], 0])


def test_a_term_that_sorts_its_texts_disturbs_no_other():
    def sorts(texts):
        texts.sort()
        return np.zeros(len(texts))

    def size(texts):
        return [len(text) for text in texts]

    envs = gym.make_vec(
        "TextSentiment-v0",
        num_envs=2,
        vocabulary=[" good", " a"],
        sentiment_model=letters,
        extra_terms={"sorts": sorts, "size": size},
    )
    envs.reset()
    envs.step([0, 1])
    infos = envs.step([2, 2])[-1]
    assert infos["text"].tolist() == [" good", " a"]
    assert infos["size"].tolist() == [5, 2]


def test_extra_terms_are_added_and_reported():
    words = Recorder(lambda texts: np.array([len(t.split()) for t in texts]))
    env = make(extra_terms={"words": words}, length_penalty=0)
    rewards, info = write(env, [0, 0, 2, END])
    assert info["words"] == 3.0
    assert rewards[-1] == pytest.approx(info["sentiment"] + 3)
    assert words.calls == [[" good good film"]]


def test_prompts_are_drawn_evenly():
    env = make(prompts=["good", "bad", "not film"])
    env.reset(seed=0)
    drawn = [env.reset()[1]["prompt"] for _ in range(600)]
    assert {p: drawn.count(p) for p in set(drawn)}.keys() == {"good", "bad", "not film"}
    assert min(drawn.count(p) for p in set(drawn)) > 150


def test_prompts_from_a_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("good film\n\nnot bad\n", "utf-8")
    assert make(prompts=str(path)).prompts == ["good film", "not bad"]
    assert make(prompts=path).prompts == ["good film", "not bad"]


@pytest.mark.parametrize("action", [2, np.int64(2), np.array(2)])
def test_integer_actions_of_all_kinds(action):
    env = make()
    env.reset()
    assert env.step(action)[0][0] == 2


# --------------------------------------------------------------------------------------- rendering


def test_ansi():
    env = make(render_mode="ansi", prompts=["not"])
    env.reset()
    env.step(0)
    assert env.render() == " not good"


def test_human_prints_the_text_as_it_grows(capsys):
    env = make(
        render_mode="human",
        prompts=["not"],
        sentiment_model=lambda texts: [0.5],
        target_length=(0, 20),
    )
    env.reset()
    assert capsys.readouterr().out == "\nnot"
    env.step(0)
    assert capsys.readouterr().out == " good"
    env.step(END)
    assert capsys.readouterr().out == "  [reward +0.50]\n"
    assert env.render() is None


def test_human_prints_characters_of_several_tokens(capsys):
    env = make(render_mode="human", vocabulary="gpt2")
    env.reset()
    for action in [*env.vocabulary.encode("🎬"), env.vocabulary.end_index]:
        env.step(action)
    assert capsys.readouterr().out.startswith("\n🎬  [reward")


def test_render_without_a_mode_warns():
    env = make()
    env.reset()
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


def test_action_masks():
    assert make().action_masks().tolist() == [True] * 5


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("action", [5, -1, 1.0, "good", None, np.array([1])])
def test_bad_actions(action):
    env = make()
    env.reset()
    with pytest.raises(ValueError, match="action"):
        env.step(action)
    assert env.step(0)[0].tolist()[:2] == [0, 5]  # nothing was written


def test_step_before_reset_and_after_the_end():
    env = make()
    with pytest.raises(ResetNeeded, match=r"reset\(\)"):
        env.step(0)
    env.reset()
    env.step(END)
    with pytest.raises(ResetNeeded, match=r"reset\(\)"):
        env.step(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"promt": "good"}, r"\['promt'\] are unknown"),
        ({"prompt": "good film not"}, "has 3 tokens.*room for 1"),
        ({"prompt": "zebra"}, "zebra"),
        ({"prompt": 3}, r"options\['prompt'\]=3 must be a string"),
    ],
)
def test_bad_reset_options(options, message):
    with pytest.raises(ValueError, match=message):
        make(prompts=["good"]).reset(options=options)


def test_the_default_judge_is_the_bundled_one():
    env = gym.make("TextSentiment-v0").unwrapped
    _, info = write(
        env, [*env.vocabulary.encode("the movie was really great!"), env.vocabulary.end_index]
    )
    assert info["sentiment"] > 0.8
    _, info = write(
        env, [*env.vocabulary.encode("great great joy perfect"), env.vocabulary.end_index]
    )
    assert abs(info["sentiment"]) < 0.3
