"""TextSentiment-v0 as an OpenEnv server, with a web page, for trainers that speak OpenEnv.

    pip install -e ".[openenv]"
    python examples/plug_openenv.py                          # http://127.0.0.1:8000/web
    python examples/plug_openenv.py --vocabulary gpt2 --max-tokens 60 --prompts openings.txt

A client's action is a whole text or one token:

    from openenv.core import GenericEnvClient
    with GenericEnvClient(base_url="http://127.0.0.1:8000").sync() as client:
        client.reset(seed=0)
        print(client.step({"text": "This film was a pleasure to watch."}).reward)

A text ends the episode and is cut at --max-tokens. A token, {"token": 17}, is an action of the
environment; rewards come with the last one. Every client has an episode of its own.
"""

from __future__ import annotations

import inspect
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from agents import cli
from text_sentiment_env import TextSentimentEnv

ON_THE_PAGE = """
### By hand

**Reset**, write a text and press **Step**: the judge reads it, and the episode is over. Its reward and sentiment stand
in the answer. A token is a number: an action of the vocabulary.

### From Python

```python
from openenv.core import GenericEnvClient

url = "http://{host}:{port}"
with GenericEnvClient(base_url=url).sync() as client:
    client.reset(seed=0)
    text = "This film was a pleasure to watch."
    print(client.step({{"text": text}}).reward)
```
"""


@dataclass
class Args:
    """All flags."""

    host: str = "127.0.0.1"
    """address to listen on"""
    port: int = 8_000
    """port to listen on"""
    vocabulary: str = "reviews"
    """the environment's; reviews and gpt2 encode any text"""
    max_tokens: int = 20
    """the most tokens of a text"""
    prompts: str | None = None
    """file of prompts, one a line"""
    sentiment_model: str = "bundled"
    """the judge"""
    web: bool = True
    """serve the web page"""
    max_clients: int = 64
    """the most clients at a time"""


class Episodes:
    """One client's episodes. Each method returns the fields of an observation, done and reward included."""

    def __init__(self, args: Args) -> None:
        env = gym.make(
            "TextSentiment-v0",
            vocabulary=args.vocabulary,
            max_tokens=args.max_tokens,
            prompts=args.prompts,
            sentiment_model=args.sentiment_model,
        )
        assert isinstance(env.unwrapped, TextSentimentEnv)
        self.env, self.vocabulary = env, env.unwrapped.vocabulary
        self.prompt, self.steps = "", 0

    def reset(self, seed: int | None, prompt: str | None) -> dict[str, Any]:
        """Starts a text, behind `prompt` or one that is drawn."""
        obs, info = self.env.reset(
            seed=seed, options=None if prompt is None else {"prompt": prompt}
        )
        self.prompt, self.steps = info["prompt"], 0
        return self._observation(obs)

    def write_token(self, token: int) -> dict[str, Any]:
        """Writes one token."""
        obs, reward, over, _truncated, info = self.env.step(token)
        self.steps += 1
        return self._observation(obs) | info | {"done": over, "reward": float(reward)}

    def write_text(self, text: str) -> dict[str, Any]:
        """Writes a text to its end; a longer one is cut at `max_tokens`. Rewards are summed."""
        reward, observation = 0.0, {"done": False}
        tokens = iter(self.vocabulary.encode(text).tolist())
        while not observation["done"]:
            observation = self.write_token(next(tokens, self.vocabulary.end_index))
            reward += observation["reward"]
        return observation | {"reward": reward}

    def _observation(self, obs: Any) -> dict[str, Any]:
        tokens = obs[obs != self.vocabulary.pad_index].tolist()
        return {"text": self.vocabulary.decode(tokens), "tokens": tokens, "prompt": self.prompt}


def make_app(args: Args) -> Any:
    """The server, a FastAPI application."""
    # Here, because --help doesn't need it.
    from openenv.core.env_server.http_server import create_fastapi_app
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action, Observation, State
    from pydantic import Field

    class Write(Action):
        """A whole text, or one token."""

        text: str | None = Field(None, max_length=10_000, description="Ends the episode.")
        token: int | None = Field(None, ge=0, description="An action of the vocabulary.")

    class Written(Observation):
        """The text so far; from the end on the terms of its reward."""

        text: str = ""
        tokens: list[int] = []
        prompt: str = ""
        sentiment: float | None = None
        length_penalty: float | None = None
        repetition_penalty: float | None = None
        length: int | None = None

    class TextServer(Environment[Write, Written, State]):
        """One client's connection."""

        SUPPORTS_CONCURRENT_SESSIONS = True

        def __init__(self) -> None:
            super().__init__()
            self.episodes, self.episode_id = Episodes(args), ""

        def reset(
            self, seed: Any = None, episode_id: Any = None, prompt: Any = None, **_: Any
        ) -> Written:
            self.episode_id = episode_id or str(uuid.uuid4())
            return Written(**self.episodes.reset(seed, prompt))

        def step(self, action: Write, timeout_s: float | None = None, **_: Any) -> Written:
            if (action.text is None) == (action.token is None):
                raise ValueError("an action is a text or a token, one of the two")
            if action.token is not None:
                return Written(**self.episodes.write_token(action.token))
            return Written(**self.episodes.write_text(action.text or ""))

        @property
        def state(self) -> State:
            return State(episode_id=self.episode_id, step_count=self.episodes.steps)

    if args.web:
        return add_page(args, TextServer, Write, Written)
    return create_fastapi_app(TextServer, Write, Written, max_concurrent_envs=args.max_clients)


def add_page(args: Args, *types: Any) -> Any:
    """The server with OpenEnv's page, whose notes are about this environment."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from openenv.core.env_server.gradio_ui import build_gradio_app
    from openenv.core.env_server.web_interface import create_web_interface_app

    def page(manager: Any, fields: Any, metadata: Any, is_chat: bool, title: str, _: Any) -> Any:
        notes = {"readme_content": inspect.getdoc(TextSentimentEnv)}
        metadata = metadata.model_copy(update=notes)
        guide = ON_THE_PAGE.format(host=args.host, port=args.port)
        return build_gradio_app(manager, fields, metadata, is_chat, title, guide)

    return create_web_interface_app(
        *types,
        max_concurrent_envs=args.max_clients,
        gradio_builder=page,
        show_default_tab=False,
        title_override="TextSentiment-v0",
    )


@cli.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> None:
    """Serves until Ctrl-C."""
    args = cli.parse(Args, argv, __doc__)
    app = make_app(args)
    import uvicorn

    uvicorn.run(app, host=args.host, port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
