"""The README's recipes: what is shown there is what runs here."""

# ruff: noqa: RUF059  (a recipe shows everything that a step returns)

import inspect
import textwrap
from pathlib import Path

import numpy as np
import pytest

import text_sentiment_env  # noqa: F401  (the README says so once, above its recipes)

README = Path(__file__).parents[1] / "README.md"


def your_own_judge():
    import gymnasium as gym

    def exclamations(texts: list[str]) -> list[float]:
        """Scores in [-1, 1], one a text; here: the more exclamation marks, the better."""
        return [min(text.count("!"), 4) / 2 - 1 for text in texts]

    envs = gym.make_vec("TextSentiment-v0", num_envs=8, sentiment_model=exclamations)
    envs.reset(seed=0)
    return envs


def a_hugging_face_classifier():
    import gymnasium as gym

    from text_sentiment_env import load_sentiment_model

    # A hub id such as "distilbert-base-uncased-finetuned-sst-2-english", or a local directory.
    judge = load_sentiment_model("my-classifier", device="auto", batch_size=64)
    print(judge(["a good film", "a bad film"]))  # P(positive) - P(negative)
    envs = gym.make_vec("TextSentiment-v0", num_envs=8, sentiment_model=judge)
    envs.reset(seed=0)
    return envs


def prompts_from_a_file():
    from pathlib import Path

    import gymnasium as gym

    Path("openings.txt").write_text("the movie\nI love\nthis script is", "utf-8")  # one a line
    envs = gym.make_vec("TextSentiment-v0", num_envs=8, prompts="openings.txt")
    observations, infos = envs.reset(seed=0)
    print(infos["prompt"])  # drawn evenly; the next line chooses
    observations, infos = envs.reset(options={"prompt": "I love"})
    return envs


def your_own_vocabulary():
    import gymnasium as gym

    # Each is one GPT-2 token, as a rule with its space in front; <|endoftext|> is added.
    words = [" the", " food", " service", " was", " is", " good", " bad", " slow", " friendly", "."]
    env = gym.make("TextSentiment-v0", vocabulary=words, max_tokens=8, target_length=(3, 8))
    observation, info = env.reset(seed=0)
    for action in env.unwrapped.vocabulary.encode("the food was good."):
        observation, reward, terminated, truncated, info = env.step(action)
    print(env.unwrapped.vocabulary.decode(observation[:5]))
    return env


def a_negative_target():
    import gymnasium as gym

    env = gym.make("TextSentiment-v0", target="negative", length_penalty=0)
    vocabulary = env.unwrapped.vocabulary
    env.reset(seed=0)
    for action in [*vocabulary.encode("the movie was terrible."), vocabulary.end_index]:
        observation, reward, terminated, truncated, info = env.step(action)
    print(info["sentiment"], reward)  # about -1 and +1
    return env


def dense_rewards():
    import gymnasium as gym

    env = gym.make("TextSentiment-v0", shaping=True, length_penalty=0)
    vocabulary = env.unwrapped.vocabulary
    env.reset(seed=0)
    rewards = []
    for action in [*vocabulary.encode("the movie was great!"), vocabulary.end_index]:
        observation, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
    print(rewards, sum(rewards) - info["sentiment"])  # increments; their sum is the same: 0
    return env


def a_further_reward_term():
    import gymnasium as gym

    def names_the_film(texts: list[str]) -> list[float]:
        return [0.2 if "film" in text else 0.0 for text in texts]

    terms = {"film": names_the_film}  # judged with the finished text, reported in info
    envs = gym.make_vec("TextSentiment-v0", num_envs=8, extra_terms=terms)
    envs.reset(seed=0)
    observations, rewards, terminated, truncated, infos = envs.step([99] * 8)  # <|endoftext|>
    print(infos["film"])
    return envs


def a_reward_wrapper():
    import gymnasium as gym

    class TokenCost(gym.RewardWrapper):
        """Every token costs a little, so that the text comes to the point."""

        def reward(self, reward):
            return reward - 0.01

    env = TokenCost(gym.make("TextSentiment-v0"))
    env.reset(seed=0)
    print(env.step(0)[1])  # -0.01
    return env


RECIPES = [
    your_own_judge,
    a_hugging_face_classifier,
    prompts_from_a_file,
    your_own_vocabulary,
    a_negative_target,
    dense_rewards,
    a_further_reward_term,
    a_reward_wrapper,
]


def body(recipe):
    """The recipe's code as the README shows it: without def and return."""
    lines = inspect.getsource(recipe).splitlines()[1:-1]
    return textwrap.dedent("\n".join(lines))


def play(env):
    """One episode a row with random tokens; the rewards and infos of its end."""
    if hasattr(env, "num_envs"):
        env.reset(seed=1)
        env.action_space.seed(1)
        ends = {}
        while len(ends) < env.num_envs:
            _, rewards, terminated, _, infos = env.step(env.action_space.sample())
            for row in np.flatnonzero(terminated):
                ends.setdefault(row, {k: infos[k][row] for k in infos} | {"reward": rewards[row]})
        return list(ends.values())
    env.reset(seed=1)
    env.action_space.seed(1)
    total, over = 0.0, False
    while not over:
        _, reward, over, _, info = env.step(env.action_space.sample())
        total += reward
    return [info | {"reward": total}]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_your_own_judge():
    for end in play(your_own_judge()):
        assert end["sentiment"] == min(end["text"].count("!"), 4) / 2 - 1


def test_a_hugging_face_classifier(tmp_path):
    make_classifier(tmp_path / "my-classifier")
    assert {end["sentiment"] != 0 for end in play(a_hugging_face_classifier())} == {True}


def test_prompts_from_a_file(capsys):
    ends = play(prompts_from_a_file())
    assert {end["text"].split()[0] for end in ends} <= {"the", "I", "this"}
    assert "script" in capsys.readouterr().out


def test_your_own_vocabulary(capsys):
    [end] = play(your_own_vocabulary())
    words = {"the", "food", "service", "was", "is", "good", "bad", "slow", "friendly", "."}
    assert set(end["text"].replace(".", " .").split()) <= words
    assert capsys.readouterr().out == " the food was good.\n"


def test_a_negative_target(capsys):
    a_negative_target()
    sentiment, reward = map(float, capsys.readouterr().out.split())
    assert sentiment < -0.5  # whichever version of the judge
    assert reward == -sentiment


def test_dense_rewards(capsys):
    dense_rewards()
    printed = capsys.readouterr().out
    assert abs(float(printed.split("]")[1])) < 1e-9
    assert len(printed.split("]")[0].split(",")) == 6


def test_a_further_reward_term(capsys):
    for end in play(a_further_reward_term()):
        assert end["film"] == (0.2 if "film" in end["text"] else 0.0)
        assert end["reward"] == pytest.approx(
            end["sentiment"] - end["length_penalty"] - end["repetition_penalty"] + end["film"]
        )


def test_a_reward_wrapper(capsys):
    [end] = play(a_reward_wrapper())
    assert capsys.readouterr().out == "-0.01\n"
    written = end["length"] + (end["length"] < 20)
    expected = end["sentiment"] - end["length_penalty"] - end["repetition_penalty"]
    assert end["reward"] == pytest.approx(expected - 0.01 * written)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_recipes_are_short_and_in_the_readme(recipe):
    code = without_empty_lines(body(recipe))
    assert len(code.splitlines()) <= 11
    assert code in without_empty_lines(README.read_text("utf-8"))


def without_empty_lines(text):
    """A function at the left margin has more of them around it than one within another."""
    return "\n".join(line for line in text.splitlines() if line.strip())


def make_classifier(folder):
    """A tiny BERT classifier with random weights in Hugging Face's layout."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "good", "bad", "film", "a"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
