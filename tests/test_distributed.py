"""Several gloo processes on this machine, against one."""

import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from reinforce_helpers import END, PAD, PROMPTS, STEPS, TINY, learn, make_envs
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, configure

from agents import REINFORCE, GPT2Config, GPT2Policy, distributed
from agents.advantages import BASELINES
from agents.rollout import Episodes
from examples import train_reinforce

ROOT = Path(__file__).parents[1]
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
B = 8


# ------------------------------------------------------------------------- a world of n processes


def _rank(function, arguments, rank, n, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = LOOPBACK
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store{n}", rank=rank, world_size=n)
    torch.save(function(*arguments), f"{folder}/result{rank}")
    distributed.leave()


def world(n, function, *arguments):
    """What `function` returned in each of n processes; in this one for n = 1."""
    if n == 1:
        return [function(*arguments)]
    context = multiprocessing.get_context("forkserver")  # imports once
    context.set_forkserver_preload(["test_distributed", "torch._dynamo", "torch.distributed.fsdp"])
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_rank, args=(function, arguments, rank, n, folder), daemon=True)
            for rank in range(n)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(120)
        assert [process.exitcode for process in ranks] == [0] * n
        return [torch.load(f"{folder}/result{rank}", weights_only=False) for rank in range(n)]


def make(path=None, **arguments):
    """An agent with this rank's share of B rows; resumed from a checkpoint."""
    envs = make_envs(B // distributed.world_size(), prompts=PROMPTS)
    if path is not None:
        return REINFORCE.load(path, env=envs, **arguments)
    arguments = {
        "baseline": "rloo",
        "group_size": 2,
        "learning_rate": 1e-2,
        "kl_coef": 0.1,
        "ent_coef": 0.01,
        "max_grad_norm": 0.05,
        "policy_kwargs": {
            "config": GPT2Config(vocab_size=PAD, **TINY),
            # With a small eps AdamW makes a step of the float error of a gradient that is 0.
            "optimizer_kwargs": {"eps": 1e-3, "weight_decay": 0.0, "fused": True},
        },
        "seed": 3,
        **arguments,
    }
    return REINFORCE(GPT2Policy, envs, **arguments)


def batch(seed):
    """Episodes that someone wrote, of the observation's length."""
    generator = torch.Generator().manual_seed(seed)
    texts = torch.full((B, 2 + STEPS), PAD)
    rewards = torch.zeros(texts.shape)
    for row in range(B):
        length = int(torch.randint(1, STEPS + 1, (), generator=generator))
        texts[row, : 1 + length] = torch.randint(END, (1 + length,), generator=generator)
        rewards[row, 1 : 1 + length] = torch.randn(length, generator=generator)
    return Episodes(texts, (texts < PAD) & (torch.arange(texts.shape[1]) > 0), rewards, [{}] * B)


def state(model):
    weights = distributed.full_state_dict(model.policy.state_dict())
    return {name: weight.clone() for name, weight in weights.items()}


# --------------------------------------------------------------------------------- the same update

CASES = [
    *({"baseline": name} for name in BASELINES),
    {"normalize_advantage": True, "kl_estimator": "k3"},
    {"baseline": "value", "micro_batch_size": 1, "kl_estimator": "k3"},
    {"group_size": None, "gamma": 0.9},
    {"group_size": B},  # a group that all ranks share
]


def updates(cases, parallel="ddp"):
    """Weights and log after two updates on given batches."""
    results = []
    for case in cases:
        # Plain gradient descent: AdamW would make much of a small difference.
        kwargs = {"config": GPT2Config(vocab_size=PAD, **TINY)}
        kwargs |= {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}
        model = make(parallel=parallel, policy_kwargs=kwargs, **{"learning_rate": 1.0, **case})
        model.set_logger(Logger(None, []))
        for seed in range(2):
            model.train(batch(seed))
        results.append((state(model), dict(model.logger.name_to_value)))
    return results


@pytest.fixture(scope="module")
def alone():
    return updates(CASES)


@pytest.mark.parametrize(
    ("n", "parallel", "first"), [(4, "ddp", 0), (2, "ddp", 3), (2, "fsdp", 3)], ids=str
)
def test_update_of_many_ranks_is_that_of_one(alone, n, parallel, first):
    for rank, results in enumerate(world(n, updates, CASES[first:], parallel)):
        for (weights, log), (expected, expected_log) in zip(results, alone[first:], strict=True):
            if rank == 0:
                torch.testing.assert_close(weights, expected, atol=1e-6, rtol=1e-5)
            assert log == pytest.approx(expected_log, rel=1e-4, abs=1e-5)


# ------------------------------------------------------------------------------------- checkpoints


def read(path):
    """A checkpoint's JSON, and its tensors by file and name."""
    with zipfile.ZipFile(path) as archive:
        tensors = {
            (name, key): tensor
            for name in archive.namelist()
            if name.endswith(".safetensors")
            for key, tensor in safetensors.torch.load(archive.read(name)).items()
        }
        return json.loads(archive.read("checkpoint.json")), tensors


def generators(data):
    return [g for rank in (data["random_state"], *data["other_ranks"]) for g in rank["generators"]]


def run(folder, parallel):
    """Four updates, with checkpoints at half-time and at the end."""
    model = make(parallel=parallel, baseline="ema", group_size=None, lr_decay="linear")
    callback = SaveAt(2, folder / "half.zip")
    learn(model, 4, callback=callback)
    model.save(folder / "whole.zip")


class SaveAt(BaseCallback):
    def __init__(self, update, path):
        super().__init__()
        self.update, self.path = update, path

    def _on_rollout_start(self):
        if self.model._n_updates == self.update:
            self.model.save(self.path)

    def _on_step(self):
        return True


def second_half(folder, parallel):
    model = make(folder / "half.zip", parallel=parallel)
    model.save(folder / "copy.zip")
    learn(model, 2, reset_num_timesteps=False)
    model.save(folder / "resumed.zip")


def resumed(folder):
    """Goes on at half-time: one update on a given batch, then one on its own."""
    model = make(folder / "half.zip")
    model.set_logger(Logger(None, []))
    model.train(batch(9))
    weights = state(model)
    model.set_logger(configure(None, ["stdout"]))
    path = folder / f"at{distributed.world_size()}.zip"
    learn(model, 1, reset_num_timesteps=False, callback=SaveAt(3, path))
    return weights, model.num_timesteps, model._n_updates


@pytest.fixture(scope="module", params=[(4, "ddp"), (2, "fsdp")], ids=str)
def half_time(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    world(request.param[0], run, folder, request.param[1])
    return folder, *request.param


def test_resumed_on_as_many_ranks_equals_uninterrupted_bit_for_bit(half_time):
    folder, n, parallel = half_time
    world(n, second_half, folder, parallel)
    for one, other in (("half", "copy"), ("whole", "resumed")):
        (data, tensors), (expected, expected_tensors) = (
            read(folder / f"{name}.zip") for name in (other, one)
        )
        assert data == expected
        assert tensors.keys() == expected_tensors.keys()
        assert all(torch.equal(tensors[key], expected_tensors[key]) for key in tensors)


def test_resumed_on_another_number_of_ranks(half_time):
    folder, n, _ = half_time
    saved = read(folder / "half.zip")[0]
    with pytest.warns(UserWarning, match=f"the checkpoint is of {n} processes, this run of 1"):
        weights, tokens, _ = resumed(folder)
    assert tokens > saved["counters"]["num_timesteps"]
    results = world(6 - n, resumed, folder)
    torch.testing.assert_close(results[0][0], weights, atol=1e-5, rtol=1e-4)
    assert len({result[1:] for result in results}) == 1
    assert results[0][2] == 4
    for m in (1, len(results)):  # every row goes on with its own random numbers
        assert generators(read(folder / f"at{m}.zip")[0]) == generators(saved)


def trained(path, parallel):
    model = make(parallel=parallel)
    model.set_logger(Logger(None, []))
    for seed in range(3):
        model.train(batch(seed))
    model.save(path)


def test_fsdp_checkpoint_is_that_of_ddp(tmp_path):
    checkpoints = []
    for n, parallel in ((1, "none"), (2, "ddp"), (2, "fsdp")):
        world(n, trained, tmp_path / f"{parallel}.zip", "ddp" if n == 1 else parallel)
        checkpoints.append(read(tmp_path / f"{parallel}.zip"))
    (_, alone), (data, ddp), (fsdp_data, fsdp) = checkpoints
    for name in data.keys() - {"random_state", "other_ranks"}:
        assert fsdp_data[name] == data[name]
    for other in (ddp, fsdp):
        assert other.keys() == alone.keys()
        torch.testing.assert_close(other, alone, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------- ranks stay in step


def stops():
    """What each rank knows after another one stopped the run in some way."""
    rank = distributed.rank()
    model = make(seed=None)
    facts = {"weights": state(model), "seeds": model.env._seeds, "draw": torch.rand(4).tolist()}

    class Stop(BaseCallback):
        def _on_rollout_end(self):
            if self.model._n_updates == 1 and rank == 1:
                self.model.request_stop()

        def _on_step(self):
            return not (self.model._n_updates == 2 and rank == 1)

    learn(model, 5, callback=Stop())
    facts["requested"] = model._n_updates, model.num_timesteps
    learn(model, 5, callback=Stop(), reset_num_timesteps=False)
    facts["callback"] = model._n_updates, model.num_timesteps
    facts["reward"] = [info["r"] for info in model.ep_info_buffer]
    before = state(model)
    bad = batch(0)
    bad.rewards[-1, 1] = float("nan")  # of the last rank's rows
    with pytest.raises(FloatingPointError) as error:
        model.train(bad)
    facts["error"] = str(error.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in state(model).items())
    return facts


def test_what_stops_one_rank_stops_all():
    one, other = world(2, stops)
    assert one["requested"] == other["requested"]
    assert one["requested"][0] == 2
    assert one["callback"] == other["callback"]
    assert one["callback"][0] == 2
    assert one["callback"][1] > one["requested"][1]
    assert len(one["reward"]) == 2 * B
    assert one["reward"] == other["reward"]
    assert one["error"] == other["error"]
    assert "update 3: the policy_gradient_loss is nan" in one["error"]
    # Without a seed they agree on one: the same weights, other rows and other draws.
    assert one["seeds"] == list(range(one["seeds"][0], one["seeds"][0] + B // 2))
    assert other["seeds"] == [seed + B // 2 for seed in one["seeds"]]
    assert one["draw"] != other["draw"]


def uneven():
    with pytest.raises(ValueError, match=r"env has \[2, 3\] rows on different ranks"):
        REINFORCE(GPT2Policy, make_envs(2 + distributed.rank()))


def test_ranks_have_as_many_rows():
    world(2, uneven)


# ---------------------------------------------------------------------------------------- torchrun

SMALL = [
    *("--n-layer", "1", "--n-embd", "16", "--n-head", "2", "--num-envs", "4", "--max-tokens", "4"),
    *("--eval-episodes", "4", "--start-episodes", "8"),
    *("--model", "random", "--sentiment-model", "vader"),
    *("--vocabulary", "small", "--save-every", "1"),
]


def torchrun(*arguments):
    path = os.pathsep.join(str(ROOT / folder) for folder in (".", "examples"))
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--local-addr", "127.0.0.1", "--nproc-per-node", "2"),
            *(*map(str, arguments), *SMALL),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": LOOPBACK},
    )


def test_example_under_torchrun_writes_everything_once(tmp_path):
    out = tmp_path / "run"
    done = torchrun(ROOT / "examples/train_reinforce.py", "--updates", 2, "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("update    2/2") == 1
    assert {
        "arguments.json", "checkpoint-1.zip", "checkpoint.zip", "evaluation.png", "gpt2",
        "learning_curves.png", "monitor.csv", "progress.csv", "report.html", "samples.jsonl",
        "samples.md", "start_texts.npz", "summary.json",
    } == {p.name for p in out.iterdir()}  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    assert summary["hardware"]["processes"] == 2
    assert summary["episodes"] == 8
    assert len((out / "progress.csv").read_text().splitlines()) == 1 + 2
    assert len((out / "monitor.csv").read_text().splitlines()) == 2 + 8  # once, of both ranks
    model = REINFORCE.load(out / "checkpoint.zip")
    assert model._n_updates == 2
    assert model.num_timesteps == summary["tokens"]


def test_a_dying_rank_ends_the_job_and_leaves_the_last_checkpoint(tmp_path):
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    example = ROOT / "examples/train_reinforce.py"
    done = torchrun(script, example, "--updates", 5, "--out", tmp_path / "run")
    assert done.returncode != 0
    assert "RuntimeError: rank 1 has had enough" in done.stderr
    assert REINFORCE.load(tmp_path / "run/checkpoint.zip")._n_updates == 2
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_in_a_save_leaves_the_last_checkpoint(rank, tmp_path):
    """The first while it writes; another before, so that the first has not the whole."""
    script, out = tmp_path / "dies.py", tmp_path / "run"
    script.write_text(DIES_SAVING.replace("RANK", str(rank)))
    example = ROOT / "examples/train_reinforce.py"
    done = torchrun(script, example, "--updates", 3, "--out", out)
    assert done.returncode != 0
    found = {path.name for path in out.glob("*.zip")}
    assert found == {"checkpoint.zip"} | ({"checkpoint-1.zip"} if rank else set())
    if rank == 0:  # resumed on as many
        assert list(out.glob(".checkpoint-new.zip.*.tmp"))
        done = torchrun(example, "--updates", 3, "--out", out, "--resume")
        assert done.returncode == 0, done.stderr
        assert "checkpoint.zip, update 1" in done.stdout
    else:
        with pytest.warns(UserWarning, match="the checkpoint is of 2 processes, this run of 1"):
            assert train_reinforce.main(["--out", str(out), "--resume"]) == 0
    assert not list(out.glob(".*"))
    assert REINFORCE.load(out / "checkpoint.zip")._n_updates == 3
    assert len((out / "progress.csv").read_text().splitlines()) == 1 + 3


DIES_SAVING = """
import os
import runpy
import signal
import sys
from agents import REINFORCE, checkpoint, distributed

write, save = checkpoint._write_zip, REINFORCE.save

def half(file, *arguments):
    write(file, *arguments)
    if RANK == 0 and os.path.exists(os.path.join(os.path.dirname(file.name), "checkpoint.zip")):
        file.truncate(1000)
        os.kill(os.getpid(), signal.SIGKILL)

def killed(self, path, *arguments):
    if RANK == 1 and distributed.rank() == 1 and self._n_updates == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, path, *arguments)

checkpoint._write_zip, REINFORCE.save = half, killed
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


DIES = """
import runpy
import sys
from agents import REINFORCE, distributed

train = REINFORCE.train

def dies(self, episodes):
    if self._n_updates == 2 and distributed.rank() == 1:
        raise RuntimeError("rank 1 has had enough")
    train(self, episodes)

REINFORCE.train = dies
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def test_rows_that_cannot_be_split_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setattr(sys, "argv", ["train_reinforce.py", "--num-envs", "64"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "examples/train_reinforce.py"), run_name="__main__")
    assert "multiple of the 3 processes" in capsys.readouterr().err


# ------------------------------------------------------------------------- methods of other names


class Renamed(torch.nn.Module):
    """A model whose forward pass is a method of another name than any of ours."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.h = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
        self.out = torch.nn.Linear(4, 2)

    def judge(self, x):
        return self.out(self.h[0](x))


def judged(x):
    model = Renamed()
    expected = model.judge(x)
    distributed.parallelize_fsdp(model, model.h, [model.judge])
    return expected.detach(), model.judge(x).detach(), len(model.h[0].weight.to_local())


def test_fsdp_runs_the_methods_it_is_given():
    x = torch.randn(3, 4)
    for expected, got, rows in world(2, judged, x):
        torch.testing.assert_close(got, expected)
        assert rows == 2  # of the four that the matrix has


def test_models_name_their_forward_passes_by_the_methods_themselves():
    model = make()
    assert {method.__self__ for method in model.policy.forward_passes()} == {model.policy}
    assert {method.__self__ for method in model.reference.forward_passes()} == {model.reference}
