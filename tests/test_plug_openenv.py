"""The OpenEnv server, asked by OpenEnv's own client over a loopback port."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import gymnasium as gym
import pytest

import text_sentiment_env  # noqa: F401  (registers the id)

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "examples" / "plug_openenv.py"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """The address of a running server, which is stopped afterwards."""
    if importlib.util.find_spec("openenv") is None:
        pytest.skip('pip install -e ".[openenv]" brings it')
    prompts = tmp_path_factory.mktemp("openenv") / "prompts.txt"
    prompts.write_text("The film\nI think", "utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--port", str(port), "--max-tokens", "8", "--prompts", str(prompts)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    server = subprocess.Popen(
        [sys.executable, str(PROGRAM), *flags],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, server.stderr.read()
                time.sleep(1)
        yield address
    finally:
        server.terminate()
        server.communicate(timeout=30)


@pytest.fixture
def connect(url):
    from openenv.core import GenericEnvClient

    return lambda: GenericEnvClient(base_url=url).sync()


@pytest.fixture
def env():
    """The environment that the server offers."""
    arguments = {"vocabulary": "reviews", "max_tokens": 8, "prompts": ["The film", "I think"]}
    return gym.make("TextSentiment-v0", **arguments)


def play(env, actions, **reset):
    """The last step of an episode."""
    env.reset(**reset)
    for action in actions:
        step = env.step(action)
        if step[2]:
            break
    return step


def test_a_text_gets_the_environments_reward(connect, env):
    encode, end = env.unwrapped.vocabulary.encode, env.unwrapped.vocabulary.end_index
    texts = [" is a pleasure.", "", " is a terrible waste of time and of money, all of it."]
    with connect() as client:
        for text in texts:
            begun = client.reset(prompt="The film")
            assert begun.observation["text"] == "The film"
            assert not begun.done
            ended = client.step({"text": text})
            obs, reward, over, _, info = play(
                env, [*encode(text), end], options={"prompt": "The film"}
            )
            assert over
            assert ended.done
            assert ended.reward == pytest.approx(reward, abs=1e-6)
            for name, value in info.items():
                expected = value if isinstance(value, str) else pytest.approx(value, abs=1e-6)
                assert ended.observation[name] == expected
            assert ended.observation["tokens"] == obs[obs < end + 1].tolist()
            assert client.state()["step_count"] == min(len(encode(text)) + 1, 8)


def test_tokens_are_the_environments_actions(connect, env):
    actions = [*env.unwrapped.vocabulary.encode(" is good"), env.unwrapped.vocabulary.end_index]
    expected = play(env, actions, seed=3)
    with connect() as client:
        assert client.reset(seed=3).observation["prompt"] == env.reset(seed=3)[1]["prompt"]
        steps = [client.step({"token": int(action)}) for action in actions]
    assert [step.reward for step in steps[:-1]] == [0.0] * (len(actions) - 1)
    assert steps[-1].reward == pytest.approx(expected[1], abs=1e-6)
    assert [step.done for step in steps] == [False] * (len(actions) - 1) + [True]
    assert steps[-1].observation["text"] == expected[4]["text"]


def test_clients_have_episodes_of_their_own(connect):
    with connect() as one, connect() as other:
        one.reset(prompt="I think")
        other.reset(prompt="The film")
        one.step({"token": 5})
        assert other.step({"text": " is good."}).observation["text"] == "The film is good."
        assert one.step({"text": ""}).observation["text"] == "I think&"


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ({"text": "a", "token": 1}, "a text or a token, one of the two"),
        ({}, "a text or a token, one of the two"),
        ({"token": 8192}, "out of range"),
        ({"word": "good"}, "VALIDATION_ERROR"),
    ],
)
def test_wrong_actions_get_an_error_and_end_nothing(connect, action, message):
    with connect() as client:
        client.reset(prompt="The film")
        with pytest.raises(RuntimeError, match=message):
            client.step(action)
        assert client.step({"text": " is good."}).done


def test_the_web_page(url):
    with urllib.request.urlopen(url, timeout=30) as page:
        assert page.url == f"{url}/web/"
        assert page.status == 200
        assert b"gradio" in page.read()


def test_the_web_page_writes(url):
    """The form's own endpoints, with what the browser sends: empty strings for empty fields."""
    from gradio_client import Client

    page = Client(f"{url}/web/", verbose=False)
    fields = [c["props"] for c in page.config["components"] if c["type"] in ("textbox", "number")]
    # No number: the browser would show 0 and send it beside each text.
    assert not [field["label"] for field in fields if "precision" in field]
    _, begun, _ = page.predict(api_name="/reset_env")
    assert not json.loads(begun)["done"]
    _, step, status = page.predict("", "5", api_name="/step_form")
    assert json.loads(step)["observation"]["tokens"][-1] == 5, status
    _, end, status = page.predict(" is good.", "", api_name="/step_form")
    assert json.loads(end)["observation"]["text"].endswith(" is good."), status
    assert json.loads(end)["done"]
    assert "GenericEnvClient" in json.dumps(page.config)  # the notes beside the form


def test_help_needs_no_extra():
    code = (
        f"import runpy, sys; sys.modules['openenv'] = None; sys.argv = ['{PROGRAM.name}', {{}}]; "
    )
    code += f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    for flag, status, where, message in [
        ("--help", 0, "stdout", "--max-tokens"),
        ("--no-web", 2, "stderr", 'error: openenv is missing: pip install -e ".[openenv]"'),
    ]:
        done = subprocess.run(
            [sys.executable, "-c", code.format(repr(flag))],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == status
        assert message in getattr(done, where)
