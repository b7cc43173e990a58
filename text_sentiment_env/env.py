"""The single environment, `TextSentiment-v0`."""

from __future__ import annotations

import codecs
import operator
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded

from text_sentiment_env import checks
from text_sentiment_env.task import TaskAttributes, TextSentimentTask, Tokens


class TextSentimentEnv(TaskAttributes, gym.Env[Tokens, np.int64 | int]):
    """Write a text token by token; a sentiment model judges it when it is finished.

    ## Description

    Writing is a Markov decision process: the state is the text so far, the action is the next token,
    and the reward is the judge's score of the finished text, less a penalty on its length. By
    default the vocabulary is that of a film review, and the agent is paid for a positive one.

    >>> import gymnasium as gym
    >>> import text_sentiment_env
    >>> env = gym.make("TextSentiment-v0", length_penalty=0)
    >>> observation, info = env.reset(seed=0)
    >>> vocabulary = env.unwrapped.vocabulary
    >>> for action in [*vocabulary.encode("the movie was great!"), vocabulary.end_index]:
    ...     observation, reward, terminated, truncated, info = env.step(action)
    >>> info["text"], reward > 0.8, terminated, truncated
    (' the movie was great!', True, True, False)

    ## Action Space

    `Discrete(V)`. Action i is GPT-2 token `env.unwrapped.vocabulary.token_ids[i]`. The last action
    is `<|endoftext|>` and ends the text.

    ## Observation Space

    `Box(0, V, (L,), int64)`: the tokens so far as action indices, L = longest prompt + `max_tokens`.

    | columns | meaning | values |
    |---|---|---|
    | 0 … p - 1 | the prompt's p tokens | 0 … V - 2 |
    | p … p + t - 1 | the t tokens written so far | 0 … V - 1 |
    | the others | PAD, which is no action | V |

    ## Rewards

    0 until the text ends; then, for n generated tokens (`<|endoftext|>` not counted),

        ±sentiment - λ·|n - clip(n, lo, hi)| / max_tokens - μ·(bigrams - distinct bigrams) / bigrams

    plus the `extra_terms`. The judge reads the prompt and the generated text. An empty text has
    sentiment 0. With `shaping` each token earns the increment of the first term: its value for the
    text so far, less its value before the token. The sum over an episode is the same.

    ## Starting State

    The prompt: empty, or one of `prompts`, drawn evenly with the environment's `np_random`.
    `reset(options={"prompt": "..."})` sets it.

    ## Episode End

    1. Termination: the agent writes `<|endoftext|>`.
    2. Termination: the agent has written `max_tokens` tokens. The limit is part of the task and the
       observation shows it, so this is no truncation: an agent must not bootstrap a value here.
    3. Truncation: never, unless a wrapper such as `TimeLimit` adds it.

    ## Information

    `reset` returns `prompt`. The step that ends the text returns `text`, `sentiment` (the judge's
    score in [-1, 1], before `target` and `reward_type`), `length_penalty` and `repetition_penalty`
    (the amounts subtracted), `length` (n), and each of `extra_terms` under its name. The other
    steps return an empty info.

    ## Arguments

    | argument | default | meaning |
    |---|---|---|
    | `vocabulary` | `"small"` | the action set: `"small"` (100 tokens), `"reviews"` (the bundled language model's), `"gpt2"` (all 50,257), or a list of strings that are each one GPT-2 token |
    | `max_tokens` | `20` | the most tokens an episode may generate |
    | `prompts` | `None` | `None` (start of text), a list of strings, or the path of a UTF-8 text file with one prompt a line |
    | `sentiment_model` | `"bundled"` | `"bundled"`, `"vader"`, a Hugging Face sequence-classification id or directory, or a callable `list[str] -> scores in [-1, 1]` |
    | `reward_type` | `"graded"` | `"graded"`: P(positive) - P(negative); `"binary"`: its sign |
    | `target` | `"positive"` | or `"negative"`: the sign of the sentiment term |
    | `length_penalty` | `0.5` | λ in [0, 1e30]; 0 switches it off |
    | `target_length` | `(8, 20)` | (lo, hi): the tokens within which no length penalty is due |
    | `repetition_penalty` | `0.0` | μ in [0, 1e30], times the share of repeated bigrams |
    | `extra_terms` | `None` | mapping of name to a callable `list[str] -> floats`, called once per step on the finished texts, added to the reward and to info; not under a name that is in use, such as `text` or `kl` |
    | `shaping` | `False` | pay the sentiment term as it grows |
    | `render_mode` | `None` | `"ansi"`: `render()` returns the text so far; `"human"`: the text is printed as it grows |

    >>> env = gym.make("TextSentiment-v0", prompts=["the movie", "I love"])
    >>> env.reset(seed=1)[1]
    {'prompt': 'the movie'}
    >>> env.observation_space
    Box(0, 100, (22,), int64)

    ## Vectorized environment

    `gym.make_vec("TextSentiment-v0", num_envs=64)` is a native vector environment whose row i,
    seeded with s, equals this one seeded with s + i; see `TextSentimentVectorEnv`.

    ## Version History

    * v0: Initial version.
    """

    metadata: dict[str, Any] = {"render_modes": list(checks.RENDER_MODES), "render_fps": 20}

    def __init__(self, *, render_mode: str | None = None, **arguments: Any) -> None:
        """Makes the environment.

        Args:
            render_mode: None, `"ansi"` or `"human"`.
            **arguments: the other arguments of the table above, checked by `TextSentimentTask`.

        Raises:
            TypeError: for an unknown argument.
            ValueError: for a bad value, naming argument, value and fix.
        """
        self.render_mode = checks.render_mode(render_mode)
        self.task = TextSentimentTask(**arguments)
        self.action_space = self.task.action_space
        self.observation_space = self.task.observation_space
        self._n_actions = len(self.vocabulary)
        self._tokens = np.empty(self.observation_space.shape, np.int64)
        self._start = self._position = 0
        self._potential = np.zeros(1)
        self._over = True  # until the first reset

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tokens, dict[str, Any]]:
        """Starts a text.

        Args:
            seed: seeds `np_random`.
            options: `{"prompt": str}` sets this episode's prompt.

        Returns:
            The observation, int64 (L,), and the info `{"prompt": str}`.

        Raises:
            ValueError: for a seed that is no whole number of at least 0, an unknown option, or a
                prompt that is outside the vocabulary or too long.
        """
        given = checks.options(options, ("prompt",)).get("prompt")
        super().reset(seed=checks.seed("seed", seed))
        prompts, tokens, starts = self.task.start([self.np_random], [given])
        self._position = self._start = int(starts[0])
        self._tokens[:] = self.vocabulary.pad_index
        self._tokens[: self.task.prompt_length] = tokens[0]
        self._potential = np.zeros(1)
        self._over = False
        if self.render_mode == "human":
            # The decoder waits for whole characters: one may be spread over several tokens.
            self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
            print("\n" + prompts[0], end="", flush=True)
        return self._tokens.copy(), {"prompt": prompts[0]}

    def step(self, action: np.int64 | int) -> tuple[Tokens, float, bool, bool, dict[str, Any]]:
        """Appends a token.

        Args:
            action: an index in [0, V): an int, or an integer array of shape ().

        Returns:
            The observation int64 (L,), reward, terminated, truncated (always False), and info.

        Raises:
            ResetNeeded: before the first `reset`, and after the end of a text.
            ValueError: for an action outside [0, V), or a judge that returns no proper scores.
        """
        if self._over:
            raise ResetNeeded("no text is being written: call reset() first and after each end")
        try:
            action = operator.index(action)
        except TypeError:
            raise ValueError(
                f"action={action!r} must be one integer in [0, {self._n_actions})"
            ) from None
        if not 0 <= action < self._n_actions:
            raise ValueError(
                f"action={action} is out of range: it must lie in [0, {self._n_actions})"
            )
        self._tokens[self._position] = action
        self._position += 1
        self._over = self.task.ends(action, self._position - self._start)
        reward, info = 0.0, {}
        if self._over or self.task.shaping:
            rewards, self._potential, infos = self.task.reward(
                self._tokens[None],
                np.array([self._start]),
                self._potential,
                None if self._over else np.array([False]),
            )
            reward = float(rewards[0])
            info = {name: values.item() for name, values in infos.items()}
        if self.render_mode == "human":
            self._print(action, reward)
        return self._tokens.copy(), reward, self._over, False, info

    def _print(self, action: int, reward: float) -> None:
        print(self._decoder.decode(self.vocabulary.token_bytes[action], self._over), end="")
        print(
            f"  [reward {reward:+.2f}]" if self._over else "",
            end="\n" if self._over else "",
            flush=True,
        )

    def render(self) -> str | None:
        """The text so far in mode `"ansi"`; `"human"` prints from `reset` and `step` instead."""
        if self.render_mode is None:
            gym.logger.warn("render() does nothing: make the environment with render_mode='ansi'")
        if self.render_mode != "ansi":
            return None
        return self.vocabulary.decode(self._tokens[: self._position])

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """The actions that are allowed, bool (V,), for sb3-contrib's MaskablePPO: all of them."""
        return np.ones(self._n_actions, bool)


def make(**arguments: Any) -> TextSentimentEnv:
    """`TextSentimentEnv(**arguments)`, as registered."""
    return TextSentimentEnv(**arguments)


# Gymnasium warns of a render mode that is not listed here before the environment can refuse it.
# stable-baselines3's `make_vec_env` asks each environment for "rgb_array", whether it has it or not.
make.metadata = {"render_modes": [*checks.RENDER_MODES, "rgb_array"]}  # type: ignore[attr-defined]
