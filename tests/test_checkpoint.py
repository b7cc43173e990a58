import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import letters
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from test_reinforce import TINY, VOCABULARY, flat, make_envs

from agents import REINFORCE, GPT2Config, GPT2Policy, SB3VecEnv

PROMPTS = ["good", "bad", "good bad"]


class CheckpointEveryUpdate(BaseCallback):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def _on_rollout_start(self):
        self.model.save(self.path)

    def _on_step(self):
        return True


def make(envs=None, **arguments):
    arguments = {
        "baseline": "ema",
        "learning_rate": 1e-2,
        "kl_coef": 0.1,
        "ent_coef": 0.01,
        "warmup_updates": 4,
        "policy_kwargs": {"config": GPT2Config(vocab_size=3, **TINY)},
        "seed": 0,
        **arguments,
    }
    return REINFORCE(
        GPT2Policy, make_envs(4, prompts=PROMPTS) if envs is None else envs, **arguments
    )


def everything(model):
    """All that makes up a model's state, as one flat tensor."""
    optimizer = model.policy.optimizer.state_dict()["state"]
    parts = [*model.policy.parameters(), *model.reference.parameters()]
    parts += [optimizer[i][name] for i in sorted(optimizer) for name in sorted(optimizer[i])]
    return flat([p.detach().double() for p in parts])


def learn(model, updates, **arguments):
    return model.learn(10**9, total_updates=updates, **arguments)


@pytest.mark.parametrize("baseline", ["rloo", "ema", "value"])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, baseline):
    arguments = {"baseline": baseline, "group_size": 2}
    whole = learn(make(**arguments), 6)
    first = learn(make(**arguments), 3)
    first.save(tmp_path / "run")
    torch.rand(3), np.random.rand(3)  # noqa: NPY002  (another process has other generators)
    again = REINFORCE.load(tmp_path / "run", env=make_envs(4, prompts=PROMPTS))
    learn(again, 3, reset_num_timesteps=False)
    assert torch.equal(everything(again), everything(whole))
    assert again.num_timesteps == whole.num_timesteps
    assert again._n_updates == whole._n_updates == 6
    assert torch.rand(1).isfinite()


def test_interrupted_schedule_equals_uninterrupted(tmp_path):
    """Stopped in the middle of a run whose learning rate decays, and resumed for the rest."""
    whole = learn(make(lr_decay="cosine"), 6)

    class Interrupt(CheckpointEveryUpdate):
        def _on_rollout_start(self):
            super()._on_rollout_start()
            if self.model._n_updates == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(make(lr_decay="cosine"), 6, callback=Interrupt(tmp_path / "run"))
    again = REINFORCE.load(tmp_path / "run", env=make_envs(4, prompts=PROMPTS))
    assert again._n_updates == 4
    learn(again, 2, reset_num_timesteps=False)
    assert torch.equal(everything(again), everything(whole))


def test_learning_in_two_calls_equals_one():
    whole = learn(make(), 4)
    halves = learn(make(), 2)
    learn(halves, 2, reset_num_timesteps=False)
    assert torch.equal(everything(whole), everything(halves))


def test_saving_does_not_disturb_the_run(tmp_path):
    quiet = learn(make(), 4)
    saving = learn(make(), 4, callback=CheckpointEveryUpdate(tmp_path / "run"))
    assert torch.equal(everything(quiet), everything(saving))


def test_loading_runs_no_pickled_code(tmp_path, monkeypatch):
    model = learn(make(), 1)
    model.save(tmp_path / "run")
    import pickle

    import cloudpickle

    def refuse(*_, **__):
        raise AssertionError("a pickle was read")

    for module, names in (
        (pickle, ("load", "loads", "Unpickler")),
        (cloudpickle, ("load", "loads")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    again = REINFORCE.load(tmp_path / "run", env=make_envs(4, prompts=PROMPTS))
    assert torch.equal(everything(again), everything(model))
    learn(again, 1, reset_num_timesteps=False)


def test_predicts_the_same_after_loading_without_env(tmp_path):
    envs = make_envs(4, prompts=PROMPTS)
    model = learn(make(envs), 2)
    model.save(tmp_path / "run.zip")
    again = REINFORCE.load(tmp_path / "run.zip")
    obs = envs.reset(seed=1)[0]
    assert (
        model.predict(obs, deterministic=True)[0] == again.predict(obs, deterministic=True)[0]
    ).all()


def test_set_parameters_reads_a_checkpoint_or_a_dict(tmp_path):
    model, other, third = learn(make(), 2), make(seed=1), make(seed=2)
    model.save(tmp_path / "run")
    other.set_parameters(tmp_path / "run")
    third.set_parameters(model.get_parameters())
    assert torch.equal(flat(other.policy.parameters()), flat(model.policy.parameters()))
    assert torch.equal(flat(third.policy.parameters()), flat(model.policy.parameters()))


def test_a_stream_will_do(tmp_path):
    model = make()
    with open(tmp_path / "stream", "wb") as file:
        model.save(file)
    with open(tmp_path / "stream", "rb") as file:
        again = REINFORCE.load(file)
    assert torch.equal(flat(again.policy.parameters()), flat(model.policy.parameters()))


def test_another_number_of_rows_is_said(tmp_path):
    model = learn(make(), 1)
    model.save(tmp_path / "run")
    again = REINFORCE.load(tmp_path / "run", env=make_envs(2, prompts=PROMPTS))
    with pytest.warns(UserWarning, match="the checkpoint has 4 rows, env 2"):
        learn(again, 1, reset_num_timesteps=False)


def test_arguments_can_be_replaced(tmp_path):
    make().save(tmp_path / "run")
    assert REINFORCE.load(tmp_path / "run", kl_coef=0.7).kl_coef == 0.7
    with pytest.raises(ValueError, match="load got \\['kl'\\]"):
        REINFORCE.load(tmp_path / "run", kl=0.7)


def test_a_learning_rate_function_is_asked_for_again(tmp_path):
    make(learning_rate=lambda left: 1e-3 * left).save(tmp_path / "run")
    with pytest.raises(ValueError, match="learning_rate was a function"):
        REINFORCE.load(tmp_path / "run")
    assert REINFORCE.load(tmp_path / "run", learning_rate=1e-3).learning_rate == 1e-3


def test_a_failing_save_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    model = make()
    model.save(tmp_path / "run")
    before = (tmp_path / "run.zip").read_bytes()
    import safetensors.torch

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        model.save(tmp_path / "run")
    assert (tmp_path / "run.zip").read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["run.zip"]


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_truncated(tmp_path, keep):
    make().save(tmp_path / "run")
    data = (tmp_path / "run.zip").read_bytes()
    (tmp_path / "run.zip").write_bytes(data[: int(keep * len(data))])
    with pytest.raises(ValueError, match="is not a whole checkpoint"):
        REINFORCE.load(tmp_path / "run")


def test_damaged_inside(tmp_path):
    make().save(tmp_path / "run")
    data = bytearray((tmp_path / "run.zip").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "run.zip").write_bytes(data)
    with pytest.raises(ValueError, match="is not a whole checkpoint"):
        REINFORCE.load(tmp_path / "run")


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        REINFORCE.load(tmp_path / "nothing")


def test_another_algorithms_file(tmp_path):
    PPO("MlpPolicy", SB3VecEnv(make_envs(2)), n_steps=8, batch_size=16).save(tmp_path / "ppo")
    with pytest.raises(ValueError, match="not a checkpoint of REINFORCE"):
        REINFORCE.load(tmp_path / "ppo")


def test_another_architecture(tmp_path):
    make().save(tmp_path / "run")
    other = make(policy_kwargs={"config": GPT2Config(vocab_size=3, **{**TINY, "n_embd": 32})})
    with pytest.raises(ValueError, match="another GPT-2: .*n_embd 16 instead of 32"):
        other.set_parameters(tmp_path / "run")


def test_another_vocabulary_or_length(tmp_path):
    make().save(tmp_path / "run")
    with pytest.raises(ValueError, match="vocabulary of 3 tokens is not the environment's"):
        REINFORCE.load(tmp_path / "run", env=make_envs(4, vocabulary=[" film", " plot"]))
    with pytest.raises(ValueError, match="observations hold 5 tokens, env's 9"):
        REINFORCE.load(tmp_path / "run", env=make_envs(4, prompts=PROMPTS, max_tokens=7))


def test_a_single_env_resumes(tmp_path):
    def env():
        return gym.make(
            "TextSentiment-v0",
            vocabulary=VOCABULARY,
            max_tokens=3,
            prompts=PROMPTS,
            sentiment_model=letters,
        )

    whole = learn(make(env()), 4)
    first = learn(make(env()), 2)
    first.save(tmp_path / "run")
    again = REINFORCE.load(tmp_path / "run", env=env())
    learn(again, 2, reset_num_timesteps=False)
    assert torch.equal(everything(again), everything(whole))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_resumed_equals_uninterrupted(tmp_path):
    """To float error: sums of a GPU have no fixed order."""
    arguments = {"device": "cuda", "precision": "fp32", "learning_rate": 1e-3}
    whole = learn(make(**arguments), 6)
    learn(make(**arguments), 3).save(tmp_path / "run")
    envs = make_envs(4, prompts=PROMPTS)
    resumed = REINFORCE.load(tmp_path / "run", env=envs, device="cuda")
    learn(resumed, 3, reset_num_timesteps=False)
    torch.testing.assert_close(everything(resumed), everything(whole), rtol=1e-3, atol=1e-4)
