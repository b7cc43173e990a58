"""sbx and rl-zoo3, as examples/README.md shows them; each in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(folder, *arguments):
    """What a Python process that ends well prints."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
def test_rl_zoo3_trains_and_plays(algorithm, tmp_path):
    if importlib.util.find_spec("rl_zoo3") is None:
        pytest.skip('pip install -e ".[plug]" brings it')
    both = ["--algo", algorithm, "--env", "TextSentiment-v0", "-f", "logs"]
    both += ["--gym-packages", "text_sentiment_env", "--env-kwargs", "sentiment_model:'vader'"]
    file = ROOT / "examples" / "rl_zoo3_hyperparameters.py"
    train = ["--conf-file", str(file), "-n", "2048", "--eval-freq", "-1"]
    assert "TokenEmbedding" in run(tmp_path, "-m", "rl_zoo3.train", *both, *train)
    assert list((tmp_path / "logs" / algorithm).glob("TextSentiment-v0_1/TextSentiment-v0.zip"))
    play = ["--no-render", "-n", "100", "--stochastic"]
    assert "Mean reward" in run(tmp_path, "-m", "rl_zoo3.enjoy", *both, *play)


@pytest.mark.slow
def test_sbx_learns(tmp_path):
    if importlib.util.find_spec("sbx") is None:
        pytest.skip('pip install -e ".[plug]" brings it')
    code = """
import gymnasium as gym
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor
import text_sentiment_env
from agents import SB3VecEnv
from sbx import PPO
make = lambda: gym.make_vec("TextSentiment-v0", num_envs=16, sentiment_model="vader")
envs = VecMonitor(SB3VecEnv(make()))
model = PPO("MlpPolicy", envs, n_steps=64, batch_size=256, gamma=1.0, learning_rate=1e-3, seed=0)
before = evaluate_policy(model, envs, 50, deterministic=False)[0]
model.learn(8_192)
print(before, evaluate_policy(model, envs, 50, deterministic=False)[0])
"""
    before, after = map(float, run(tmp_path, "-c", code).split()[-2:])
    assert after > before + 0.2
