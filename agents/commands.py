"""Commands for trained models: generate, evaluate, play, watch, report, info."""

from __future__ import annotations

import json
import platform
import shlex
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import filelock
import gymnasium as gym
import torch
import tyro
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from stable_baselines3.common.save_util import load_from_zip_file

from agents import cli, page, report
from agents.arguments import Args, EnvironmentArgs
from agents.atomic import atomic_write
from agents.callbacks import UPDATES, read_rows
from agents.display import sparkline
from agents.evaluation import evaluate
from agents.frontier import START_TEXTS, Frontier, read_frontier
from agents.functions import is_function, with_functions
from agents.generation import generate_text, vocabulary_of
from agents.gpt2 import GPT2
from agents.policy import GPT2Policy
from agents.reinforce import REINFORCE
from agents.runs import ARGUMENTS, RunFolder
from agents.sb3_vec_env import SB3VecEnv
from text_sentiment_env import load_sentiment_model
from text_sentiment_env.vocabulary import GPT2_VOCABULARY_SIZE

Run = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[RUN]")]


class Loaded(NamedTuple):
    """A model and where it comes from."""

    gpt2: GPT2
    reference: GPT2  # the model that it started from; itself if nobody knows
    environment: EnvironmentArgs
    kl_coef: float = 0.0
    frontier: Frontier | None = None  # of the reference's texts, for a run with KL
    recorded: bool = False  # whether the environment is the one of a run

    def task(self) -> str:
        """What is asked of the texts, in a line or two."""
        env = self.environment
        low, high = env.target_length
        line = (
            f"judge {env.sentiment_model}, {env.target} texts, prompts {env.prompts or 'none'}, at most"
            f" {env.max_tokens} tokens, {low} to {high} without penalty"
        )
        if not self.recorded:
            line += "; the model records no environment: what no flag sets is the default"
        return line


def load_models(run: str, trust: bool = False) -> Loaded:
    """A run's model, the model that it started from, its environment and its KL weight.

    Args:
        run: a run's folder, a checkpoint, a directory in Hugging Face's format, `"reviews"`, or a zip
            that an algorithm of stable-baselines3 saved. The last three start from themselves, in the
            default environment. A zip outside a run has it with observations of the model's length. A
            run without checkpoints has the start model that it records, if that can still be loaded.
        trust: lets a file of stable-baselines3 run the code that is pickled in it.

    Raises:
        FileNotFoundError: if there is no such run.
        ValueError: for a run that has saved no model yet, and for a file of stable-baselines3 that is
            not trusted, holds no `GPT2Policy`, or does not say which tokens its actions are.
    """
    path = Path(run)
    folder = RunFolder(path)
    if folder.checkpoints() or (path.suffix == ".zip" and not path.is_dir()):
        file = folder.checkpoints()[0] if path.is_dir() else path
        if _is_of_sb3(file):
            return _load_sb3(file, trust)
        try:
            model = REINFORCE.load(run)
        except FileNotFoundError:  # a run that goes on has just moved it
            model = REINFORCE.load(run)
        models = model.policy.gpt2, model.reference
        if (file.parent / ARGUMENTS).is_file():
            return _of_run(*models, file.parent)
        return Loaded(*models, _environment_of(model.observation_space))
    if (path / ARGUMENTS).is_file():  # of a run without checkpoints
        if not folder.exported.is_dir():
            raise ValueError(f"{run} holds no model: its run has saved none yet")
        gpt2 = GPT2.from_pretrained(folder.exported)
        return _of_run(gpt2, _start_model(gpt2, _recorded(path).start.model), path)
    if path.is_file():
        raise ValueError(f"{run} is no run, checkpoint (.zip) or model: name one of these")
    if not path.exists() and path.with_name(path.name + ".zip").is_file():
        return load_models(f"{run}.zip", trust)
    try:
        gpt2 = GPT2.from_pretrained(run)
    except FileNotFoundError as error:
        if path.is_dir():
            raise
        raise FileNotFoundError(
            f"there is no run or checkpoint {run!r}. As a model: {error}"
        ) from None
    if gpt2.token_ids is None and gpt2.config.vocab_size > GPT2_VOCABULARY_SIZE:
        gpt2 = gpt2.restrict(range(GPT2_VOCABULARY_SIZE))  # without a fine-tune's token for padding
    return Loaded(gpt2, gpt2, EnvironmentArgs())


def _recorded(folder: Path) -> Args:
    run = RunFolder(folder)
    args = cli.from_values(Args, run.read_arguments())
    args.environment.prompts = run.prompts(args.environment.prompts)
    return args


def _of_run(gpt2: GPT2, reference: GPT2, folder: Path) -> Loaded:
    """A model, with what the run in its folder has recorded."""
    recorded = _recorded(folder)
    kl_coef, frontier = recorded.reinforce.kl_coef, None
    # Without KL a file of the start model's texts is an earlier run's.
    if kl_coef and reference is not gpt2:
        frontier = read_frontier(folder / START_TEXTS)
    return Loaded(gpt2, reference, recorded.environment, kl_coef, frontier, recorded=True)


def _start_model(gpt2: GPT2, name: str) -> GPT2:
    """The model that a run started from, with the run's tokens; the given one if it is not at hand."""
    if name == "random":
        return gpt2
    try:
        start = GPT2.from_pretrained(name)
        return start.restrict(gpt2.token_ids) if gpt2.token_ids else start
    except (OSError, ValueError):
        return gpt2


def trusted(environment: EnvironmentArgs, trust: bool, named: str | None = None) -> dict[str, Any]:
    """The environment's arguments, with the user's own functions that a run's record names.

    Args:
        environment: of the run.
        trust: whether they may be run.
        named: a judge that the command line itself names, which may be run in any case.

    Raises:
        ValueError: if there are such functions, and they are not trusted.
    """
    judge = environment.sentiment_model
    code = [judge] * (is_function(judge) and judge != named) + list(environment.extra_terms)
    if code and not trust:
        raise ValueError(
            f"the run's record names code to run, {', '.join(code)}: add --trust if you know where it"
            " comes from"
        )
    return with_functions(asdict(environment))


def _environment_of(space: gym.Space[Any]) -> EnvironmentArgs:
    """The default environment with observations (L,) of a space.

    The prompt is part of an observation, so that a text may have all of its places.
    """
    assert space.shape
    return EnvironmentArgs(max_tokens=space.shape[0])


def _is_of_sb3(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return "_stable_baselines3_version" in archive.namelist()
    except (zipfile.BadZipFile, FileNotFoundError):
        return False  # `REINFORCE.load` says what is wrong with it


def _load_sb3(file: Path, trust: bool) -> Loaded:
    """The model of any algorithm of stable-baselines3 with a `GPT2Policy`."""
    if not trust:
        raise ValueError(
            f"{file} was saved by stable-baselines3: it holds pickled objects, which can run any code"
            " when they are loaded. Add --trust if you know where it comes from"
        )
    data, params, _ = load_from_zip_file(file, device="cpu")
    policy_class = (data or {}).get("policy_class")
    if data is None or not (
        isinstance(policy_class, type) and issubclass(policy_class, GPT2Policy)
    ):
        raise ValueError(f"{file} holds the policy {policy_class}, which is no GPT2Policy")
    spaces = data["observation_space"], data["action_space"]
    policy = policy_class(*spaces, lambda _: 0.0, **data["policy_kwargs"])
    policy.load_state_dict(params["policy"])  # type: ignore[arg-type]
    try:
        vocabulary_of(policy.gpt2)
    except ValueError:
        raise ValueError(
            f"{file} does not say which tokens its {policy.config.vocab_size} actions are: train it"
            ' with policy_kwargs["config"]["token_ids"], the token_ids of the environment\'s vocabulary'
        ) from None
    return Loaded(policy.gpt2, policy.gpt2, _environment_of(spaces[0]))


@dataclass
class Generate:
    """Write texts with a model."""

    run: Run = "reviews"
    """a run's folder, a checkpoint, a directory in Hugging Face's format, reviews, or SB3's zip"""
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[PROMPT]")] = ""
    """beginning of every text"""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 5
    """texts to write"""
    max_tokens: int = 20
    """the most tokens to add"""
    temperature: float = 1.0
    """divides the logits"""
    top_k: int | None = None
    """draw among the likeliest only"""
    greedy: bool = False
    """take the likeliest token instead of a draw"""
    seed: int | None = None
    """seed of the draws; default: other texts every time"""
    trust: bool = False
    """load a file of stable-baselines3, which can run any code"""

    def __call__(self) -> None:
        """Prints one text a line."""
        if self.seed is not None:
            cli.check_seed(self.seed)
        gpt2 = load_models(self.run, self.trust).gpt2
        arguments = {
            k: v for k, v in asdict(self).items() if k not in ("run", "prompt", "n", "trust")
        }
        for text in generate_text(gpt2, self.prompt, self.n, **arguments):
            print(" ".join(text.split()))


@dataclass
class Evaluate:
    """Judge fresh texts of a model: reward, second judges, KL, diversity, best and worst texts."""

    run: Run = "reviews"
    """a run's folder, a checkpoint, a directory in Hugging Face's format, reviews, or SB3's zip"""
    episodes: int = 1000
    """texts to write"""
    seed: int = 1000
    """seed of the texts"""
    judge: str | None = None
    """a further sentiment model: an id of the hub or a directory"""
    prompts: str | None = None
    """file of openings, such as held-out ones; default: as recorded"""
    sentiment_model: str | None = None
    """the reward's judge; default: as recorded"""
    target: Literal["positive", "negative"] | None = None
    """the sentiment to write; default: as recorded"""
    max_tokens: int | None = None
    """the most tokens a text may have; default: as recorded"""
    show: int = 5
    """best and worst texts to print"""
    json: Path | None = None
    """also write all measures and texts to this file"""
    trust: bool = False
    """run code: a file of stable-baselines3, or functions that the run's record names"""

    def __call__(self) -> None:
        """Prints a table and texts."""
        cli.positive(self, "episodes", "max_tokens")
        cli.at_least(0, self, "show")
        cli.check_seed(self.seed)
        if self.json is not None:
            cli.prepare_folder("json", self.json)
        loaded = self._load()
        result = self.measure(loaded)
        samples = sorted(result["samples"], key=lambda sample: -sample["reward"])
        console = Console()
        console.print(self._table(loaded, result))
        line = loaded.task()
        if loaded.reference is loaded.gpt2:
            line += "; no start model is known: KL and perplexity are to the model itself"
        # No markup: the name of a file may hold brackets.
        console.print(Text(line), style="dim")
        extremes = {"best": samples[: self.show], "worst": samples[-self.show :]}
        for title, chosen in extremes.items() if self.show else ():
            table = Table("reward", "text", title=title)
            for sample in chosen:
                table.add_row(f"{sample['reward']:+.2f}", Text(sample["text"].strip()))
            console.print(table)
        if self.json is not None:
            with cli.writing("json", self.json), atomic_write(self.json) as temporary:
                temporary.write_text(json.dumps({"run": self.run, **result}, indent=2), "utf-8")

    def _load(self) -> Loaded:
        """The model, in the environment that the flags ask for."""
        loaded = load_models(self.run, self.trust)
        names = ("prompts", "sentiment_model", "target", "max_tokens")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if not given:
            return loaded
        # The start model's texts were judged by the recorded task.
        return loaded._replace(environment=replace(loaded.environment, **given), frontier=None)

    def _table(self, loaded: Loaded, result: Mapping[str, Any]) -> Table:
        table = Table(title=Text(f"{self.episodes} texts of {self.run}", "table.title"))
        table.add_column("measure")
        for heading in ("mean", "95 % interval"):
            table.add_column(heading, justify="right")
        table.add_column("unit")
        measures = report.measures_of(result)
        if self.judge:
            measures[self.judge] = report.Measure(
                f"{self.judge}, a further judge", "−1 to 1", "+.3f"
            )
        if not loaded.environment.repetition_penalty:
            measures.pop("repetition_penalty", None)
        for name, measure in measures.items():
            if name in result:
                # Nothing for what is no mean over texts.
                values = [sample[name] for sample in result["samples"] if name in sample]
                interval = report.interval(values, measure.format)
                if name == "gap":
                    interval = f"± {1.96 * result['gap_standard_error']:{measure.format}}"
                mean = f"{result[name]:{measure.format}}"
                table.add_row(Text(measure.title), mean, interval, measure.unit)
        return table

    def measure(self, loaded: Loaded) -> dict[str, Any]:
        """The measures of `agents.evaluation.evaluate`."""
        gpt2, arguments = loaded.gpt2, loaded.environment
        vocabulary = vocabulary_of(gpt2)
        values = trusted(arguments, self.trust, self.sentiment_model)
        values |= {"vocabulary": vocabulary, "num_envs": 64}
        env = SB3VecEnv(
            gym.make_vec("text_sentiment_env:TextSentiment-v0", autoreset_mode="SameStep", **values)
        )
        spaces = env.observation_space, env.action_space
        policy = GPT2Policy(*spaces, lambda _: 0.0, config=gpt2.config)
        policy.gpt2.load_state_dict(gpt2.state_dict())
        names = {"vader", *([self.judge] if self.judge else [])} - {arguments.sentiment_model}
        judges = {name: load_sentiment_model(name) for name in sorted(names)}
        return evaluate(
            policy,
            loaded.reference,
            env,
            self.episodes,
            self.seed,
            judges,
            frontier=loaded.frontier,
            kl_coef=loaded.kl_coef,
        )


@dataclass
class Play:
    """Write a text by hand, token by token, and get the reward: the decision process as a game."""

    run: Run = "reviews"
    """the model that suggests tokens: a run's folder, a checkpoint, a model's directory or reviews"""
    choices: int = 9
    """tokens that it suggests"""
    trust: bool = False
    """run code: a file of stable-baselines3, or functions that the run's record names"""

    def __call__(self, ask: Callable[[str], str] = input) -> None:
        """Asks for one token after another until the text ends; `ask` prompts for a line."""
        cli.at_least(0, self, "choices")
        loaded = load_models(self.run, self.trust)
        gpt2, arguments = loaded.gpt2, loaded.environment
        vocabulary = vocabulary_of(gpt2)
        values = trusted(arguments, self.trust) | {"vocabulary": vocabulary}
        values.pop("num_envs")
        env = gym.make("text_sentiment_env:TextSentiment-v0", **values)
        observation, info = env.reset()
        print(loaded.task())
        print(
            "A number writes that token, any text writes its tokens (begin a word with a space), an empty"
            " line or Ctrl-D ends the text."
        )
        ended, reward = False, 0.0
        while not ended:
            text = observation[observation < vocabulary.pad_index].tolist()
            for token in self._asked(gpt2, [vocabulary.end_index, *text], vocabulary, ask):
                observation, paid, ended, _, info = env.step(token)
                reward += float(paid)
                if ended:
                    break
        terms = ("sentiment", "length", "length_penalty", "repetition_penalty")
        print(f"\n{info['text'].strip()}\nreward {reward:+.3f}")
        print("  ".join(f"{name} {info[name]:.3f}" for name in terms))

    def _asked(
        self, gpt2: GPT2, ids: list[int], vocabulary: Any, ask: Callable[[str], str]
    ) -> list[int]:
        """The tokens of one answer."""
        with torch.no_grad():
            p = gpt2(torch.tensor([ids]))[0, -1].float().softmax(-1)
        likeliest = p.topk(min(self.choices, len(p)))
        print(f"\n{vocabulary.decode(ids[1:])}▏")
        for i, (chance, token) in enumerate(zip(*map(torch.Tensor.tolist, likeliest), strict=True)):
            word = "(end)" if token == vocabulary.end_index else repr(vocabulary.decode([token]))
            print(f"  {i + 1} {word} {chance:.0%}")
        while True:
            try:
                answer = ask("> ")
            except EOFError:  # Ctrl-D, or the end of a file
                answer = ""
            if not answer:
                return [vocabulary.end_index]
            if answer.isdecimal() and 1 <= int(answer) <= len(likeliest.indices):
                return [int(likeliest.indices[int(answer) - 1])]
            try:
                return vocabulary.encode(answer).tolist()
            except ValueError as error:
                print(error)


@dataclass
class Watch:
    """Follow a run that is under way, or look at one that has ended."""

    run: tyro.conf.Positional[Path]
    """folder of the run"""
    once: bool = False
    """show it once, and do not wait for more"""

    def __call__(self) -> None:
        """Shows the log until the run has ended, or Ctrl-C."""
        if not any((self.run / name).is_file() for name in (ARGUMENTS, "progress.csv")):
            raise ValueError(f"{self.run} is no folder of a run: it holds no progress.csv")
        console = Console()
        if self.once:
            console.print(self._table())
        else:
            with Live(self._table(), console=console, refresh_per_second=2) as live:
                while self._under_way():
                    time.sleep(1)
                    live.update(self._table())
            if not console.is_terminal:
                console.print()  # Live leaves a file without its last line's end
        if not self._under_way() and not self._finished():
            more = f"python -m agents train --out {shlex.quote(str(self.run))} --resume"
            saved = bool(RunFolder(self.run).checkpoints())
            print(
                "the run has stopped without a summary;",
                f"`{more}` goes on" if saved else "it has saved no checkpoint to go on from",
            )

    def _under_way(self) -> bool:
        """Whether a process holds the run's lock; a log of SB3's, which has none, may always grow."""
        lock = self.run / ".lock"
        if not (self.run / ARGUMENTS).is_file():
            return True
        if not lock.exists():
            return False
        try:
            with filelock.FileLock(lock, timeout=0):
                return False
        except OSError:  # Timeout, or the file is another user's
            return True

    def _finished(self) -> bool:
        """Whether it has its summary; a run that goes on records its arguments after the earlier one."""
        written = [self.run / name for name in (ARGUMENTS, "summary.json")]
        begun, ended = (path.stat().st_mtime_ns if path.exists() else 0 for path in written)
        return ended > begun

    def _table(self) -> Table:
        rows = read_rows(self.run / "progress.csv")
        updates = rows[-1][UPDATES] if rows else "0"
        heading = Text(f"{self.run.resolve().name}\nupdate {updates}", "table.title")
        table = Table("", "now", "course", title=heading)
        for name in report.CURVES:
            measure = report.MEASURES[name]
            values = [float(row[measure.column]) for row in rows if row.get(measure.column)]
            if values:
                now = f"{values[-1]:{measure.format}}"
                table.add_row(measure.label, now, sparkline(values))
        return table


@dataclass
class Report:
    """Draw a finished run again: report.html and its pictures."""

    run: tyro.conf.Positional[Path]
    """folder of the run"""
    trust: bool = False
    """run the user's own functions that the run's record names"""

    def __call__(self) -> None:
        """Writes the files and says where the page is."""
        report.read_summary(self.run)  # which says what is wrong with a folder of no run
        judge = trusted(_recorded(self.run).environment, self.trust)["sentiment_model"]
        page.write(self.run, load_sentiment_model(judge) if isinstance(judge, str) else judge)
        print(self.run / "report.html")


@dataclass
class Info:
    """Versions and what is at hand, for a bug report."""

    def __call__(self) -> None:
        """Prints it."""
        packages = ("gymnasium", "stable-baselines3", "torch", "transformers", "tiktoken", "numpy")
        lines = {
            "text-sentiment-env": report.versions()["text_sentiment_env"],
            "Python": f"{platform.python_version()} on {platform.platform()}",
            **{name: metadata.version(name) for name in packages},
            "environment": "TextSentiment-v0"
            if "TextSentiment-v0" in gym.registry
            else "not registered",
            "vocabularies": "small, reviews, gpt2, or a list of tokens",
            "judges": "bundled, vader, or a Hugging Face classifier",
            "CUDA": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
            "threads": str(torch.get_num_threads()),
        }
        for name, value in lines.items():
            print(f"{name:20s}{value}")
