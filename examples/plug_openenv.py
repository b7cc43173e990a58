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

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from agents import cli
from text_sentiment_env import TextSentimentEnv


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


def make_app(args: Args) -> Any:
    """The server, a FastAPI application."""
    # Here, because --help doesn't need it.
    from openenv.core.env_server.http_server import create_fastapi_app
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action, EnvironmentMetadata, Observation, State
    from pydantic import Field

    class Write(Action):
        """A whole text, or one token."""

        text: str = Field("", max_length=10_000, description="The text; it ends the episode.")
        token: int = Field(-1, ge=-1, description="One token instead of a text; -1: none.")

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
        """One client's episodes."""

        SUPPORTS_CONCURRENT_SESSIONS = True

        def __init__(self) -> None:
            super().__init__()
            env = gym.make(
                "TextSentiment-v0",
                vocabulary=args.vocabulary,
                max_tokens=args.max_tokens,
                prompts=args.prompts,
                sentiment_model=args.sentiment_model,
            )
            assert isinstance(env.unwrapped, TextSentimentEnv)
            self.env, self.vocabulary = env, env.unwrapped.vocabulary
            self.prompt, self._state = "", State()

        def reset(
            self,
            seed: int | None = None,
            episode_id: str | None = None,
            prompt: str | None = None,
            **_: Any,
        ) -> Written:
            options = None if prompt is None else {"prompt": prompt}
            obs, info = self.env.reset(seed=seed, options=options)
            self.prompt = info["prompt"]
            self._state = State(episode_id=episode_id or str(uuid.uuid4()), step_count=0)
            return self._written(obs)

        def step(self, action: Write, timeout_s: float | None = None, **_: Any) -> Written:
            if action.token >= 0:
                if action.text:
                    raise ValueError("an action is a text or a token, not both")
                obs, reward, over, _truncated, info = self.env.step(action.token)
                self._state.step_count += 1
                return self._written(obs, done=over, reward=float(reward), **info)
            total, over = 0.0, False
            tokens = iter(self.vocabulary.encode(action.text).tolist())
            while not over:
                token = next(tokens, self.vocabulary.end_index)
                obs, reward, over, _truncated, info = self.env.step(token)
                total += float(reward)
                self._state.step_count += 1
            return self._written(obs, done=True, reward=total, **info)

        def _written(self, obs: Any, **others: Any) -> Written:
            tokens = obs[obs != self.vocabulary.pad_index].tolist()
            values = {"text": self.vocabulary.decode(tokens)} | others
            return Written(tokens=tokens, prompt=self.prompt, **values)

        @property
        def state(self) -> State:
            return self._state

        def get_metadata(self) -> EnvironmentMetadata:
            return EnvironmentMetadata(
                name="TextSentiment-v0",
                description="Write a text; a sentiment model judges it when it is finished.",
            )

    options: dict[str, Any] = {"max_concurrent_envs": args.max_clients}
    if not args.web:
        return create_fastapi_app(TextServer, Write, Written, **options)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from openenv.core.env_server.web_interface import create_web_interface_app

    return create_web_interface_app(
        TextServer, Write, Written, env_name="TextSentiment-v0", **options
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
