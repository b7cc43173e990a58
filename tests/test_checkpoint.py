import json
import tempfile
import warnings
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import letters
from reinforce_helpers import PROMPTS, TINY, VOCABULARY, flat, learn, make_envs
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback

from agents import REINFORCE, GPT2Config, GPT2Policy, SB3VecEnv, checkpoint


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


@pytest.mark.parametrize("baseline", ["rloo", "ema"])
def test_checkpoints_from_the_middle_of_an_update_resume_bit_for_bit(tmp_path, baseline):
    """SB3's callback saves after a number of steps, wherever an update is then."""
    arguments = {"baseline": baseline, "group_size": 2, "lr_decay": "linear"}
    saving = CheckpointCallback(1, str(tmp_path))
    whole = learn(make(**arguments), 4, callback=saving)
    paths = sorted(tmp_path.iterdir(), key=lambda path: int(path.stem.split("_")[2]))
    assert len(paths) > 8
    seen = set()
    for path in paths:
        again = REINFORCE.load(path, env=make_envs(4, prompts=PROMPTS))
        seen.add((again._n_updates, again.num_timesteps))
        learn(again, 4 - again._n_updates, reset_num_timesteps=False)
        assert torch.equal(everything(again), everything(whole))
        assert again.num_timesteps == whole.num_timesteps
        assert again._episode_num == whole._episode_num
    assert [updates for updates, _ in sorted(seen)] == [0, 1, 2, 3]


def test_after_an_interrupted_update_the_model_is_saved_as_it_is(tmp_path):
    class Interrupt(BaseCallback):
        def _on_step(self):
            raise KeyboardInterrupt

    model = make()
    with pytest.raises(KeyboardInterrupt):
        learn(model, 1, callback=Interrupt())
    model.save(tmp_path / "run")
    assert REINFORCE.load(tmp_path / "run").num_timesteps == model.num_timesteps == 4


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


@pytest.mark.parametrize("kind", [tempfile.NamedTemporaryFile, tempfile.SpooledTemporaryFile])
def test_a_temporary_file_will_do(kind):
    model = make()
    with kind() as file:
        model.save(file)
        file.seek(0)
        again = REINFORCE.load(file)
    assert torch.equal(flat(again.policy.parameters()), flat(model.policy.parameters()))


def test_a_model_saved_under_the_same_name_does_not_hide_the_checkpoint(tmp_path, monkeypatch):
    model = make()
    model.save(tmp_path / "mine")
    model.policy.gpt2.save_pretrained(tmp_path / "mine")
    assert REINFORCE.load(tmp_path / "mine").seed == 0
    (tmp_path / "mine.zip").unlink()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint '.*mine/checkpoint\.zip'"):
        REINFORCE.load(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 'checkpoint\.zip'"):
        REINFORCE.load(".")


class Clipped(REINFORCE):
    """An algorithm of the user's, with an argument of its own."""

    ARGUMENTS = (*REINFORCE.ARGUMENTS, "clip")

    def __init__(self, *args, clip=0.2, **kwargs):
        super().__init__(*args, **kwargs)
        self.clip = clip


class Renamed(REINFORCE):
    """An algorithm with the same arguments."""


def test_a_subclass_keeps_its_own_arguments(tmp_path):
    config = GPT2Config(vocab_size=3, **TINY)
    model = Clipped(GPT2Policy, make_envs(), policy_kwargs={"config": config}, clip=0.3)
    learn(model, 1).save(tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Clipped.load(tmp_path / "run", env=make_envs())
    assert type(again) is Clipped
    assert again.clip == 0.3
    assert Clipped.load(tmp_path / "run", clip=0.4).clip == 0.4
    learn(again, 1, reset_num_timesteps=False)


def test_a_checkpoint_of_another_class_is_said(tmp_path):
    make().save(tmp_path / "run")
    with pytest.warns(UserWarning, match="saved by 'REINFORCE' and is loaded by Renamed"):
        Renamed.load(tmp_path / "run")
    with (
        pytest.warns(UserWarning, match="saved by 'REINFORCE' and is loaded by Clipped"),
        pytest.raises(ValueError, match=r"lacks or adds the arguments \['clip'\]"),
    ):
        Clipped.load(tmp_path / "run")
    rewrite(tmp_path / "run.zip", lambda data: data.pop("algorithm") and None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Renamed.load(tmp_path / "run")


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


@pytest.mark.parametrize("how", ["load", "set_random_seed"])
def test_another_seed_begins_the_random_numbers_anew(tmp_path, how):
    learn(make(baseline="rloo", group_size=2), 2).save(tmp_path / "run")

    def texts(seed):
        arguments = {} if seed is None or how == "set_random_seed" else {"seed": seed}
        model = REINFORCE.load(tmp_path / "run", env=make_envs(4, prompts=PROMPTS), **arguments)
        if seed is not None and how == "set_random_seed":
            model.set_random_seed(seed)
        return [learn(model, 1)._last_obs.tolist() for _ in range(5)]

    goes_on, one, other = texts(None), texts(1), texts(2)
    assert texts(None) == goes_on
    assert texts(1) == one
    assert goes_on != one != other != goes_on


def test_numbers_of_numpy_are_saved(tmp_path):
    config = GPT2Config(vocab_size=3, **{**TINY, "n_embd": np.int64(16)})
    arguments = {"gamma": np.float32(0.5), "group_size": np.int64(2), "seed": np.int64(3)}
    model = make(baseline="rloo", policy_kwargs={"config": config}, **arguments)
    learn(model, 1).save(tmp_path / "run")
    again = REINFORCE.load(tmp_path / "run")
    assert (again.gamma, again.group_size, again.seed) == (0.5, 2, 3)


OPTIMIZERS = [
    *("SGD", "Adam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "ASGD"),
    "Adafactor",  # of a matrix it keeps a row and a column
]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_other_optimizers_of_torch(tmp_path, name):
    kind = getattr(torch.optim, name)
    kwargs = {"config": GPT2Config(vocab_size=3, **TINY), "optimizer_class": kind}
    whole = learn(make(policy_kwargs=kwargs), 2)
    whole.save(tmp_path / "run")
    learn(whole, 1, reset_num_timesteps=False)
    again = REINFORCE.load(tmp_path / "run", env=make_envs(4, prompts=PROMPTS))
    assert type(again.policy.optimizer) is kind
    learn(again, 1, reset_num_timesteps=False)
    assert torch.equal(everything(again), everything(whole))


@pytest.mark.parametrize("wrong", ["name", "shape", "sign"])
def test_a_state_that_the_optimizer_does_not_keep_is_refused(wrong):
    """Adafactor keeps other tensors of a matrix than of a vector, and a setting below 0."""
    kwargs = {
        "config": GPT2Config(vocab_size=3, **TINY),
        "optimizer_class": torch.optim.Adafactor,
    }
    optimizer = learn(make(policy_kwargs=kwargs), 1).policy.optimizer
    groups, tensors = checkpoint.optimizer_state(optimizer)
    groups = json.loads(json.dumps(groups))
    checkpoint.optimizer_state_dict(groups, tensors, optimizer)
    if wrong == "name":
        tensors["0.variance"] = tensors.pop("0.row_var")
    elif wrong == "shape":
        tensors["0.row_var"] = tensors["0.row_var"].T
    else:
        groups[0]["beta2_decay"] = 0.8
    with pytest.raises(ValueError, match="optimizer does not fit the model"):
        checkpoint.optimizer_state_dict(groups, tensors, optimizer)


class Own(torch.optim.SGD):
    """An optimizer of the user's."""


def test_an_optimizer_that_is_not_torchs_is_asked_for(tmp_path):
    kwargs = {"config": GPT2Config(vocab_size=3, **TINY), "optimizer_class": Own}
    make(policy_kwargs=kwargs).save(tmp_path / "run")
    with pytest.raises(ValueError, match="optimizer_class is 'Own'.*pass the class"):
        REINFORCE.load(tmp_path / "run")
    with pytest.raises(ValueError, match="optimizer_class=SGD is not the checkpoint's 'Own'"):
        REINFORCE.load(tmp_path / "run", optimizer_class=torch.optim.SGD)
    model = REINFORCE.load(tmp_path / "run", optimizer_class=Own)
    assert type(model.policy.optimizer) is Own


def test_the_folder_of_a_run_whose_rotation_was_killed(tmp_path):
    make().save(tmp_path / "checkpoint-1")
    learn(make(), 1).save(tmp_path / "checkpoint-new")
    assert REINFORCE.load(tmp_path)._n_updates == 1
    (tmp_path / "checkpoint-new.zip").unlink()
    assert REINFORCE.load(tmp_path)._n_updates == 0


def test_learning_without_an_environment_is_refused(tmp_path):
    make().save(tmp_path / "run")
    with pytest.raises(ValueError, match=r"env=None.*load\(\.\.\., env="):
        REINFORCE.load(tmp_path / "run").learn(10)


@pytest.mark.parametrize("baseline", ["ema", "rloo"])
def test_an_environment_can_be_set_after_loading(tmp_path, baseline):
    whole = learn(make(baseline=baseline, group_size=2), 2)
    whole.save(tmp_path / "run")
    learn(whole, 1, reset_num_timesteps=False)
    again = REINFORCE.load(tmp_path / "run")
    again.set_env(make_envs(4, prompts=PROMPTS))
    learn(again, 1, reset_num_timesteps=False)
    assert torch.equal(everything(again), everything(whole))


def test_a_learning_rate_function_is_asked_for_again(tmp_path):
    make(learning_rate=lambda left: 1e-3 * left).save(tmp_path / "run")
    with pytest.raises(ValueError, match="learning_rate was a function"):
        REINFORCE.load(tmp_path / "run")
    assert REINFORCE.load(tmp_path / "run", learning_rate=1e-3).learning_rate == 1e-3


def test_a_failing_save_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    model = make()
    model.save(tmp_path / "run")
    before = (tmp_path / "run.zip").read_bytes()

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
def test_gpu_resumed_equals_uninterrupted(tmp_path):
    """To float error: sums of a GPU have no fixed order."""
    arguments = {"device": "cuda", "precision": "fp32", "learning_rate": 1e-3}
    whole = learn(make(**arguments), 6)
    learn(make(**arguments), 3).save(tmp_path / "run")
    envs = make_envs(4, prompts=PROMPTS)
    resumed = REINFORCE.load(tmp_path / "run", env=envs, device="cuda")
    learn(resumed, 3, reset_num_timesteps=False)
    torch.testing.assert_close(everything(resumed), everything(whole), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("argument", ["exclude", "include"])
def test_parts_of_a_checkpoint_are_not_written(tmp_path, argument):
    with pytest.raises(ValueError, match="exclude and include are not supported"):
        make().save(tmp_path / "run", **{argument: ["policy"]})
    assert not list(tmp_path.iterdir())


def test_arguments_of_the_checkpoint_are_replaced_by_name(tmp_path):
    make(learning_rate=lambda progress: 1e-2).save(tmp_path / "run")
    with pytest.raises(ValueError, match="learning_rate was a function, which isn't stored"):
        REINFORCE.load(tmp_path / "run")
    again = REINFORCE.load(tmp_path / "run", learning_rate=0.5, gamma=0.9)
    assert (again.learning_rate, again.gamma, again.kl_coef) == (0.5, 0.9, 0.1)
    with pytest.raises(ValueError, match=r"load got \['gama'\]: it can replace learning_rate, gam"):
        REINFORCE.load(tmp_path / "run", learning_rate=0.5, gama=0.9)
    with pytest.raises(ValueError, match="custom_objects is not supported"):
        REINFORCE.load(tmp_path / "run", custom_objects={"gamma": 0.9})


def rewrite(path, change, manifest=False):
    """Alters the JSON of a checkpoint; keeps the manifest only if asked to."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if not manifest:
        members.pop("manifest.json", None)
    data = json.loads(members["checkpoint.json"])
    data = change(data) or data
    members["checkpoint.json"] = json.dumps(data).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


DAMAGE = {
    "another format": (lambda d: d.update(format="other/2"), "has the format 'other/2'"),
    "a list": (lambda d: [1], r"has the format \[1\]"),
    "no counters": (lambda d: d.pop("counters") and None, "counters is damaged"),
    "a negative counter": (lambda d: d["counters"].update(_n_updates=-1), "counters .* damaged"),
    "no config": (lambda d: d["policy_kwargs"].pop("config") and None, "have no config"),
    "another size": (
        lambda d: d["policy_kwargs"]["config"].update(n_embd=32),
        "config has n_embd=32, its weights 16",
    ),
    "random state": (lambda d: d["random_state"].update(torch="ff"), "random"),
    "optimizer groups": (lambda d: d["optimizer_groups"].pop() and None, "optimizer does not fit"),
}


@pytest.mark.parametrize(("change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_contents_are_named(tmp_path, change, message):
    learn(make(), 1).save(tmp_path / "run")
    rewrite(tmp_path / "run.zip", change)
    with pytest.raises(ValueError, match=message):
        REINFORCE.load(tmp_path / "run")


def test_contents_that_are_not_the_manifests_are_refused(tmp_path):
    make().save(tmp_path / "run")
    rewrite(tmp_path / "run.zip", lambda d: d["counters"].update(_n_updates=7), manifest=True)
    with pytest.raises(ValueError, match=r"\['checkpoint.json'\] does not match the manifest"):
        REINFORCE.load(tmp_path / "run")


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path):
    model = make()
    model.save(tmp_path / "run")
    before = (tmp_path / "run.zip").read_bytes()
    with torch.no_grad():
        model.policy.gpt2.wte.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"policy: gpt2\.wte\.weight holds NaN"):
        model.save(tmp_path / "run")
    assert (tmp_path / "run.zip").read_bytes() == before
    state = make().policy.state_dict()
    state["value_head.bias"] = torch.tensor([float("inf")])
    with zipfile.ZipFile(tmp_path / "run.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    del members["manifest.json"]
    members["policy.safetensors"] = safetensors.torch.save(state)
    with zipfile.ZipFile(tmp_path / "run.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=r"policy: value_head\.bias holds NaN or infinity"):
        REINFORCE.load(tmp_path / "run")
