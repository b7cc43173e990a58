"""The command line of a training run: its flags, its presets, and what a resumed run may change."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from agents import cli
from agents.advantages import BaselineKind
from agents.distributed import Parallel
from agents.functions import is_function
from agents.hyperparameters import KLEstimator, LRDecay
from agents.policy import Precision
from agents.runs import RunFolder, run_folders


@dataclass
class RunArgs:
    """Flags of the run. --resume may change all of these except --preset and --seed; of the other groups
    only --micro-batch-size.
    """

    preset: Literal["reviews", "small", "scratch", "gpt2"] = "reviews"
    """sets the defaults of all other flags, which are shown here for reviews"""
    out: str | None = None
    """folder to write to; default runs/PRESET-seedN, numbered if it is taken"""
    resume: bool = False
    """go on from --out's last checkpoint, with the flags that it was started with"""
    seed: int = 0
    """seed of everything random"""
    device: str = "auto"
    """cpu, cuda, cuda:1...; auto: cuda if there is one"""
    parallel: Parallel = "ddp"
    """under torchrun: each process has the whole model, or a part of it"""
    updates: int = 80
    """gradient steps in all, earlier ones included"""
    save_every: int = 25
    """updates from checkpoint to checkpoint"""
    keep: int = 2
    """checkpoints to keep, the newest included"""
    eval_episodes: int = 256
    """texts to judge before and after"""
    start_episodes: int = 4096
    """texts of the start model that the optimum is estimated from, for runs with KL; 0: no gap"""
    tensorboard: bool = False
    """also log for TensorBoard, in --out"""
    track: Literal["trackio", "wandb"] | None = None
    """also log to trackio (local) or wandb; by the extra `track`"""
    quiet: bool = False
    """print nothing but errors"""


@dataclass
class EnvironmentArgs:
    """Arguments of TextSentiment-v0."""

    num_envs: int = 64
    """texts per update, of all processes"""
    vocabulary: str = "reviews"
    """reviews, small, or gpt2"""
    max_tokens: int = 20
    """the most tokens a text may have"""
    prompts: str | None = None
    """file of openings, one a line; none: texts from the start"""
    sentiment_model: str = "bundled"
    """the judge: bundled, vader, a Hugging Face classifier's id or directory, or module:function"""
    reward_type: Literal["graded", "binary"] = "graded"
    """the judge's score, or its sign"""
    target: Literal["positive", "negative"] = "positive"
    """the sentiment to write"""
    length_penalty: float = 0.5
    """weight of the length penalty: times the tokens outside --target-length, over --max-tokens"""
    target_length: tuple[int, int] = (8, 20)
    """LO HI: lengths without penalty; with --max-tokens below LO every text is penalised"""
    repetition_penalty: float = 0.0
    """weight of the share of repeated bigrams"""
    extra_terms: tuple[str, ...] = ()
    """further terms of the reward, each NAME=module:function"""


@dataclass
class ModelArgs:
    """The start model, and how it computes and is optimized."""

    model: str = "reviews"
    """reviews, a GPT-2 of the Hugging Face hub, a directory, or random"""
    n_layer: int = 2
    """layers of a random model"""
    n_head: int = 4
    """attention heads of a random model"""
    n_embd: int = 128
    """width of a random model"""
    initial_length: float | None = None
    """expected length of a random model's first texts; default: every token about equally likely"""
    precision: Precision = "fast"
    """auto: bf16 on CUDA; fast: also on a CPU with instructions for it (AVX512-BF16, AMX)"""
    cuda_graphs: bool = True
    """on a GPU, write texts by replaying CUDA graphs"""
    compile: bool = False
    """on a GPU, run through torch.compile: half a minute more at first, quicker updates then"""
    adam_eps: float = 1e-8
    """AdamW's ε: weights with smaller gradients, which are mostly noise, move less"""


@dataclass
class ReinforceArgs:
    """Arguments of REINFORCE."""

    learning_rate: float = 7e-4
    """AdamW's"""
    lr_decay: LRDecay = "linear"
    """decay of the learning rate over --updates"""
    warmup_updates: int = 0
    """updates of rising learning rate"""
    gamma: float = 1.0
    """discount"""
    baseline: Literal["auto", BaselineKind] = "auto"
    """subtracted from the returns; auto: rloo"""
    group_size: int | None = None
    """rows with the same prompt, for rloo; default 4, or all"""
    normalize_advantage: bool = False
    """to mean 0 and deviation 1 over the batch"""
    ent_coef: float = 0.0
    """weight of the entropy bonus"""
    vf_coef: float = 0.5
    """weight of the value loss, for --baseline value"""
    kl_coef: float = 0.03
    """weight of the KL divergence from the start model"""
    kl_estimator: KLEstimator = "k1"
    """k1: sampled, in the reward; k3: sampled, in the loss; exact: summed over the vocabulary"""
    max_grad_norm: float = 1.0
    """the gradient is clipped to this norm"""
    micro_batch_size: int | None = None
    """rows through the model at a time; default all"""


@dataclass
class Args:
    """All flags."""

    run: RunArgs = field(default_factory=RunArgs)
    environment: EnvironmentArgs = field(default_factory=EnvironmentArgs)
    start: ModelArgs = field(default_factory=ModelArgs)
    reinforce: ReinforceArgs = field(default_factory=ReinforceArgs)

    def flat(self) -> dict[str, Any]:
        """Values by flag."""
        return {name: value for group in asdict(self).values() for name, value in group.items()}


PRESETS = {
    "reviews": Args(
        RunArgs("reviews", updates=75),
        EnvironmentArgs(num_envs=256, target_length=(12, 20), length_penalty=1.5),
        ModelArgs(adam_eps=1e-4),
        reinforce=ReinforceArgs(
            learning_rate=1.4e-3,
            lr_decay="cosine",
            warmup_updates=15,
            kl_coef=0.16,
            kl_estimator="exact",
        ),
    ),
    "small": Args(
        RunArgs("small"),
        EnvironmentArgs(vocabulary="small"),
        reinforce=ReinforceArgs(learning_rate=3e-4, kl_coef=0.1),
    ),
    "scratch": Args(
        RunArgs("scratch"),
        EnvironmentArgs(vocabulary="small", sentiment_model="vader"),
        ModelArgs("random"),
        ReinforceArgs(learning_rate=1e-3, lr_decay="constant", kl_coef=0.0, ent_coef=0.01),
    ),
    "gpt2": Args(
        RunArgs("gpt2", updates=500),
        EnvironmentArgs(
            num_envs=128,
            vocabulary="gpt2",
            max_tokens=24,
            prompts=str(Path(__file__).parent / "data" / "review_openings.txt"),
            sentiment_model="distilbert-base-uncased-finetuned-sst-2-english",
        ),
        ModelArgs("gpt2"),
        ReinforceArgs(learning_rate=1e-5, kl_coef=0.05, warmup_updates=10),
    ),
}
RANDOM_ONLY = ("n_layer", "n_head", "n_embd", "initial_length")  # other models bring their own
PATHS = ("model", "sentiment_model", "prompts")  # flags that may name a file or a directory
OURS = ("reviews", "random", "bundled", "vader")  # start models and judges of these packages
# What --resume may change: what leaves the task and its gradient as they are.
RESUMABLE = {f.name for f in fields(RunArgs)} - {"preset", "seed"} | {"micro_batch_size"}


@cli.errors_in_one_line
def parse_arguments(argv: Sequence[str] | None = None, description: str | None = None) -> Args:
    """Reads the command line; defaults come from --preset, or from the run that --resume continues."""
    argv = sys.argv[1:] if argv is None else list(argv)
    first = cli.parse(Args, argv, description, default=PRESETS["reviews"]).run
    folders = run_folders(f"{first.preset}-seed{first.seed}")
    if first.resume:
        latest = next((path for path in reversed(folders) if path.exists()), folders[0])
        folder = RunFolder(first.out or latest)
        if not folder.checkpoints():
            raise ValueError(f"--resume: {folder.path} holds no run with a checkpoint; check --out")
        recorded = _with_absolute_paths(cli.from_values(Args, folder.read_arguments()))
        args = _with_absolute_paths(cli.parse(Args, argv, default=recorded))
        _check_consent(recorded.environment, argv)
        for name, value in args.flat().items():
            if name not in RESUMABLE and value != recorded.flat()[name]:
                raise ValueError(
                    f"{cli.flag(name)} {value}: --resume cannot change it from"
                    f" {recorded.flat()[name]}, with which {folder.path} was started; leave it out,"
                    " or start another run"
                )
        args.run.out = str(folder.path)
    else:
        args = _with_absolute_paths(cli.parse(Args, argv, default=PRESETS[first.preset]))
        args.run.out = first.out or str(next(path for path in folders if not path.exists()))
    check(args)
    return args


def _check_consent(recorded: EnvironmentArgs, argv: Sequence[str]) -> None:
    """Refuses to run code that only the run's record names, which may be someone else's."""
    given = {argument.partition("=")[0].replace("_", "-") for argument in argv}
    code = {"--sentiment-model": [recorded.sentiment_model], "--extra-terms": recorded.extra_terms}
    for flag, values in code.items():
        runs_code = flag == "--extra-terms" or is_function(values[0])
        if values and runs_code and flag not in given:
            raise ValueError(
                f"--resume: the run's record names code to run; if you trust it, repeat"
                f" {flag} {shlex.join(values)}"
            )


def is_local(name: str) -> bool:
    """Whether a start model, a judge or a file of prompts is of this machine."""
    return name not in OURS and Path(name).expanduser().exists()


def _with_absolute_paths(args: Args) -> Args:
    """The run's record must hold in any working directory."""
    for group in (args.environment, args.start):
        for name in PATHS:
            if (value := getattr(group, name, None)) and is_local(value):
                setattr(group, name, str(Path(value).expanduser().resolve()))
    return args


def training_command(values: Mapping[str, Any], shown: Mapping[str, str] | None = None) -> str:
    """The command that starts a run with these values by flag, without those that the preset sets.

    Args:
        values: by flag.
        shown: what stands in the command for some of them.
    """
    # Tuples become lists, whether the values were read from JSON or not.
    values, preset = (
        json.loads(json.dumps(dict(flags))) for flags in (values, PRESETS[values["preset"]].flat())
    )
    own = ("preset", "seed", "out", "resume", "quiet")
    changed = {
        name: (shown or {}).get(name, values[name])
        for name in preset
        if name in values and name not in own and values[name] != preset[name]
    }
    kept = {name: values[name] for name in ("preset", "seed")}
    return shlex.join(["python", "-m", "agents", "train", *cli.to_argv(kept | changed)])


def check(args: Args) -> None:
    """Refuses what would otherwise be noticed late, or not at all.

    Raises:
        ValueError: naming the flag, its value and what it must be.
        ModuleNotFoundError: for a tracker that is not installed.
    """
    run, rows = args.run, args.environment.num_envs
    cli.positive(run, "updates", "save_every", "keep", "eval_episodes")
    cli.at_least(0, run, "start_episodes")
    cli.positive(args.environment, "num_envs", "max_tokens")
    cli.positive(args.start, "n_layer", "n_head", "n_embd")
    if not 0 < (eps := args.start.adam_eps) < math.inf:
        raise ValueError(f"--adam-eps {eps}: must be above 0, such as 1e-8")
    # A run that is resumed may have recorded one from before they were refused.
    for name in () if args.start.model == "random" or run.resume else RANDOM_ONLY:
        if (value := getattr(args.start, name)) != getattr(ModelArgs, name):
            raise ValueError(f"{cli.flag(name)} {value}: only for --model random; leave it out")
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # torchrun's
    if rows % processes:
        raise ValueError(f"--num-envs {rows}: must be a multiple of the {processes} processes")
    cli.check_seed(run.seed)
    cli.check_device(run.device)
    if run.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError("--tensorboard: the package is missing; pip install tensorboard")
    if run.track is not None and importlib.util.find_spec(run.track) is None:
        raise ModuleNotFoundError(f"--track {run.track}", name=run.track)
