"""REINFORCE (Williams 1992) on whole episodes, as a stable-baselines3 algorithm."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents import distributed
from agents.callbacks import ProgressBar
from agents.checkpoint import Checkpointed
from agents.gpt2 import GPT2, GPT2Config
from agents.policy import GPT2Policy, Scores
from agents.returns import BASELINES, hold_last, leave_one_out, monte_carlo_returns
from agents.rollout import Episodes, collect
from agents.vec_env import SB3VecEnv

KL_ESTIMATORS = ("k1", "k3")
LR_DECAYS = ("constant", "linear", "cosine")
EMA_DECAY = 0.9
DEFAULT_GROUP_SIZE = 4


class REINFORCE(Checkpointed):
    """Policy gradient on whole episodes: collect one a row, take one step, begin again.

    The gradient is that of E[Σ_t r_t], estimated by Σ_t (G_t - b_t) ∇log π(a_t|s_t), summed over an
    episode's tokens and averaged over the rows; every other term of the loss is summed and averaged
    the same way. Nothing is divided by the number of tokens: that would favour long texts.

    The KL divergence to the frozen start model (Ziegler et al. 2019) is estimated token by token from
    the texts written, with ρ = log π - log π_start (Schulman 2020, "Approximating KL divergence"):

    | `kl_estimator` | what is done | gradient |
    |---|---|---|
    | `"k1"` | the reward of each token is reduced by β·ρ | unbiased for β·KL(π, π_start) |
    | `"k3"` | the loss grows by β·(exp(-ρ) - 1 + ρ) | low variance; that of KL(π_start, π) in the limit |

    In every outward way an algorithm of stable-baselines3: callbacks, logger, `predict`, `save`, `load`.
    Checkpoints are JSON and safetensors, and hold everything that shapes the rest of the run.
    """

    # What a checkpoint keeps of the constructor's arguments.
    ARGUMENTS: ClassVar[tuple[str, ...]] = (
        "learning_rate",
        "gamma",
        "baseline",
        "group_size",
        "normalize_advantage",
        "ent_coef",
        "vf_coef",
        "kl_coef",
        "kl_estimator",
        "max_grad_norm",
        "lr_decay",
        "warmup_updates",
        "micro_batch_size",
        "seed",
    )
    policy: GPT2Policy

    def __init__(
        self,
        policy: type[GPT2Policy],
        env: GymEnv | VectorEnv | None,
        learning_rate: float | Schedule = 1e-4,
        pretrained: str | GPT2 | None = None,
        gamma: float = 1.0,
        baseline: str = "auto",
        group_size: int | None = None,
        normalize_advantage: bool = False,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        kl_coef: float = 0.0,
        kl_estimator: str = "k1",
        max_grad_norm: float = 1.0,
        lr_decay: str = "constant",
        warmup_updates: int = 0,
        micro_batch_size: int | None = None,
        precision: str = "auto",
        parallel: str = "ddp",
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        """Makes the agent.

        Args:
            policy: `GPT2Policy` or a subclass.
            env: a Gymnasium `VectorEnv`, a single environment, or a stable-baselines3 `VecEnv`, of
                `TextSentiment-v0`; its rows are the batch.
            learning_rate: AdamW's, or a function of the remaining progress from 1 to 0.
            pretrained: the start model: what `GPT2.from_pretrained` takes, or a `GPT2`. It is
                restricted to the environment's vocabulary. None: fresh weights, of the shape
                `policy_kwargs={"config": ...}`.
            gamma: discount γ.
            baseline: what is subtracted from a return: `"none"`; `"mean"`, the mean of all other rows;
                `"ema"`, an exponential moving average (0.9) over past updates; `"rloo"`, the mean of
                the other rows that were given the same prompt; `"value"`, a learned value head;
                `"auto"`: `"rloo"`, or `"ema"` for a single row.
            group_size: for `"rloo"`, how many rows get the same prompt; None: 4, or all rows when the
                environment has one prompt or none.
            normalize_advantage: gives the batch's advantages mean 0 and standard deviation 1.
            ent_coef: weight of the entropy bonus.
            vf_coef: weight of the value head's squared error, with `baseline="value"`.
            kl_coef: weight β of the KL divergence to the start model.
            kl_estimator: `"k1"` (in the reward) or `"k3"` (in the loss).
            max_grad_norm: the gradient is clipped to this norm.
            lr_decay: `"constant"`, or `"linear"` or `"cosine"` to 0 over the run.
            warmup_updates: updates over which the learning rate rises linearly.
            micro_batch_size: rows that go through the model at a time; None: all. The gradient is the
                same; memory shrinks, and each row is read once more.
            precision: see `GPT2Policy`.
            parallel: what processes that have joined (`agents.distributed`) do; each has an
                environment of its own, with its rows of the batch. `"ddp"`: each holds the whole
                model; `"fsdp"`: each holds a part of every tensor.
            policy_kwargs: further arguments of the policy.
            stats_window_size, tensorboard_log, verbose, seed, device: as in stable-baselines3.
            _init_setup_model: builds the policy at once.

        Raises:
            ValueError: for an argument out of range, or an environment that is not of this kind.
        """
        _check(baseline, "baseline", ("auto", *BASELINES))
        _check(kl_estimator, "kl_estimator", KL_ESTIMATORS)
        _check(lr_decay, "lr_decay", LR_DECAYS)
        _check(parallel, "parallel", distributed.PARALLEL)
        for name, value in (("ent_coef", ent_coef), ("vf_coef", vf_coef), ("kl_coef", kl_coef)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value!r} must be a finite number >= 0")
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma={gamma!r} must lie in [0, 1]")
        if micro_batch_size is not None and micro_batch_size < 1:
            raise ValueError(f"micro_batch_size={micro_batch_size} must be at least 1, or None")
        if distributed.rank() > 0:  # the first speaks for all
            verbose, tensorboard_log = 0, None
        seed = distributed.agree_on_seed(seed)
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]
            learning_rate,
            policy_kwargs={"precision": precision, **(policy_kwargs or {})},
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
        )
        self.gamma, self.baseline, self.group_size = gamma, baseline, group_size
        self.normalize_advantage = normalize_advantage
        self.ent_coef, self.vf_coef = ent_coef, vf_coef
        self.kl_coef, self.kl_estimator = kl_coef, kl_estimator
        self.max_grad_norm = max_grad_norm
        self.lr_decay, self.warmup_updates = lr_decay, warmup_updates
        self.micro_batch_size = micro_batch_size
        self.parallel = parallel
        self.reference: GPT2
        self._ema: Tensor | None = None  # (L,)
        self._first_update = 0  # of this run's learning-rate schedule
        # Of a checkpoint, a rank each, until `learn`.
        self._random_states: list[dict[str, Any]] | None = None
        self._prompt_generator = np.random.default_rng(seed)
        self._stop_requested = False
        if _init_setup_model:
            gpt2 = self._start_model(pretrained)
            self._setup_model()
            if gpt2 is not None:
                self.policy.gpt2.load_state_dict(gpt2.state_dict())
            self._freeze_reference()
            self._spread()

    # -------------------------------------------------------------------------------------- set-up

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        if isinstance(env, VectorEnv):
            env = SB3VecEnv(env)
        env = BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        if not isinstance(env.action_space, spaces.Discrete):
            raise ValueError(
                f"env has the action space {env.action_space}, but must have Discrete(V), an action a"
                " token: REINFORCE plays environments such as TextSentiment-v0"
            )
        if not env.has_attr("vocabulary"):
            raise ValueError(
                "env has no attribute `vocabulary` that says which GPT-2 token each action is: use"
                " TextSentiment-v0, or give your environment a text_sentiment_env.Vocabulary"
            )
        if getattr(env, "norm_obs", False):
            raise ValueError("env normalises token ids: make VecNormalize with norm_obs=False")
        return env

    def _token_ids(self) -> list[int] | None:
        return None if self.env is None else self.env.get_attr("vocabulary")[0].token_ids.tolist()

    def _start_model(self, pretrained: str | GPT2 | None) -> GPT2 | None:
        """Puts the start model's shape into `policy_kwargs`, and returns it."""
        token_ids = self._token_ids()
        if token_ids is None:
            raise ValueError("env=None: the policy's vocabulary is the environment's; pass one")
        if pretrained is not None:
            if "config" in self.policy_kwargs:
                raise ValueError("pretrained gives the config: leave it out of policy_kwargs")
            gpt2 = GPT2.from_pretrained(pretrained) if isinstance(pretrained, str) else pretrained
            gpt2 = gpt2.restrict(token_ids)
            self.policy_kwargs["config"] = gpt2.config.to_dict()
            return gpt2
        config = self.policy_kwargs.get("config")
        if config is None:
            return None
        config = config if isinstance(config, GPT2Config) else GPT2Config.from_dict(dict(config))
        if config.token_ids is not None:
            self._check_vocabulary(config)
        elif config.vocab_size == len(token_ids):
            config = dataclasses.replace(config, token_ids=tuple(token_ids))
        self.policy_kwargs["config"] = config.to_dict()
        return None

    def _check_vocabulary(self, config: GPT2Config) -> None:
        token_ids = self._token_ids()
        if (
            token_ids is not None
            and config.token_ids is not None
            and list(config.token_ids) != token_ids
        ):
            raise ValueError(
                f"the policy's vocabulary of {config.vocab_size} tokens is not the environment's of"
                f" {len(token_ids)}: make the environment with the vocabulary that the policy was"
                " made for, or a new policy"
            )

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
        )
        self.policy = self.policy.to(self.device)
        self._check_vocabulary(self.policy.config)
        if self.env is not None:
            self._check_baseline(self.env)

    def _freeze_reference(self) -> None:
        self.reference = copy.deepcopy(self.policy.gpt2).requires_grad_(False).eval()

    def _spread(self) -> None:
        """Shares the work with other processes, where there are any."""
        values = self.baseline == "value"
        self._score = distributed.spread(self.policy, self.reference, self.parallel, values)
        if distributed.world_size() > 1:
            assert self.seed is not None
            distributed.seed_draws(self.seed, self._n_updates)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seeds all generators; row i of the whole batch is seeded with seed + i."""
        super().set_random_seed(seed)
        if seed is not None and self.env is not None and distributed.rank() > 0:
            self.env.seed(seed + distributed.rank() * self.env.num_envs)

    def _rows(self, env: VecEnv) -> int:
        """The rows of the whole batch."""
        return env.num_envs * distributed.world_size()

    def _check_baseline(self, env: VecEnv) -> None:
        if len(counts := set(distributed.gather_objects(env.num_envs))) > 1:
            raise ValueError(f"env has {sorted(counts)} rows on different ranks: give each as many")
        B = self._rows(env)
        baseline = self._baseline(env)
        if baseline in ("mean", "rloo") and B < 2:
            raise ValueError(
                f"baseline={baseline!r} compares a row with others but env has one: make more rows"
                " (gym.make_vec), or use baseline='ema'"
            )
        size = self._group_size(env)
        if baseline == "rloo" and (size < 2 or B % size):
            raise ValueError(
                f"group_size={size} must be at least 2 and divide the {B} rows of env: choose another"
                " group_size or num_envs"
            )

    def _baseline(self, env: VecEnv) -> str:
        if self.baseline == "auto":
            return "rloo" if self._rows(env) > 1 else "ema"
        return self.baseline

    def _prompts(self, env: VecEnv) -> list[str]:
        return list(env.get_attr("prompts")[0]) if env.has_attr("prompts") else [""]

    def _group_size(self, env: VecEnv) -> int:
        if self.group_size is not None:
            return self.group_size
        return DEFAULT_GROUP_SIZE if len(self._prompts(env)) > 1 else self._rows(env)

    # --------------------------------------------------------------------------------------- learn

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "REINFORCE",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        total_updates: int | None = None,
    ) -> REINFORCE:
        """Trains for at least `total_timesteps` written tokens, or for `total_updates`.

        An update is never cut short, so that a few more tokens may be written.

        Args:
            total_timesteps: tokens to write, `<|endoftext|>` included.
            callback: called at every step of the environment.
            log_interval: updates from one line of the log to the next.
            tb_log_name: the run's name in TensorBoard.
            reset_num_timesteps: False continues the count, and an earlier run.
            progress_bar: shows a bar (tqdm and rich).
            total_updates: also stops after this many updates, which then measure the progress of the
                learning-rate schedule.

        Raises:
            FloatingPointError: when a term of the loss, or the gradient, is not finite. The weights
                are still those of before the update.
        """
        self._updates_wanted = total_updates
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        if reset_num_timesteps:
            self._first_update = self._n_updates
        last_update = math.inf if total_updates is None else self._n_updates + total_updates
        self._stop_requested = False
        callback.on_training_start(locals(), globals())
        self._restore_random_state()
        while self.num_timesteps < total_timesteps and self._n_updates < last_update:
            began = time.perf_counter()
            callback.on_rollout_start()
            episodes = self.collect_episodes(callback)
            if episodes is None:
                break
            callback.on_rollout_end()
            collected = time.perf_counter()
            progress = self.num_timesteps / total_timesteps
            if total_updates is not None:
                done = self._n_updates - self._first_update
                progress = done / (last_update - self._first_update)
            self._current_progress_remaining = 1 - min(progress, 1.0)
            self.train(episodes)
            tokens = int(episodes.mask.sum())
            self.logger.record("time/rollout_fps", tokens / (collected - began))
            self.logger.record("time/update_fps", tokens / (time.perf_counter() - collected))
            if log_interval and self._n_updates % log_interval == 0:
                self._dump_logs()
            if any(distributed.gather_objects(self._stop_requested)):
                break
        callback.on_training_end()
        return self

    def request_stop(self) -> None:
        """Makes `learn` return after the update that is under way, on all ranks."""
        self._stop_requested = True

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        callback = super()._init_callback(callback)
        if progress_bar and distributed.rank() == 0:
            callback = CallbackList([callback, ProgressBar(self._updates_wanted)])
            callback.init_callback(self)
        return callback

    def collect_episodes(self, callback: BaseCallback) -> Episodes | None:
        """Writes one text a row; None if the callback stops the training.

        Returns:
            The whole batch, also where other ranks wrote a part of it.
        """
        assert self.env is not None
        self.policy.set_training_mode(False)
        self._draw_prompts(self.env)
        before = self.num_timesteps

        def on_step(tokens: int) -> bool:
            self.num_timesteps += tokens
            callback.update_locals(locals())
            return callback.on_step()

        with distributed.unsharded(self.policy):
            own = collect(self.policy, self.env, on_step)
        ranks = distributed.gather_objects((self.num_timesteps - before, own is None))
        self.num_timesteps = before + sum(written for written, _ in ranks)
        if own is None or any(stopped for _, stopped in ranks):
            return None
        self._last_obs = own.texts.cpu().numpy()
        episodes = distributed.gather_episodes(own)
        self._record_rollout(episodes)
        return episodes

    def _draw_prompts(self, env: VecEnv) -> None:
        """Gives the rows of a group the same prompt; without groups the environment draws."""
        prompts = self._prompts(env)
        if self._baseline(env) == "rloo" and len(prompts) > 1:
            size = self._group_size(env)
            B = self._rows(env)
            drawn = self._prompt_generator.integers(len(prompts), size=B // size).repeat(size)
            env.set_options([{"prompt": prompts[i]} for i in drawn[distributed.shard(B)]])

    # --------------------------------------------------------------------------------------- train

    def train(self, episodes: Episodes) -> None:
        """One gradient step on a batch of episodes, of which each rank reads its own rows.

        Raises:
            FloatingPointError: naming the term that is not finite; no weight has changed.
        """
        policy, mask, B = self.policy, episodes.mask, len(episodes.texts)
        policy.set_training_mode(True)
        policy.optimizer.zero_grad(set_to_none=True)  # first, so that old gradients take no room
        learning_rate = self._set_learning_rate()
        own, ranks = distributed.shard(B), distributed.world_size()
        size = self.micro_batch_size or B
        parts = [
            slice(first, min(first + size, own.stop)) for first in range(own.start, own.stop, size)
        ]
        # One part keeps its graph for the gradient; several are read again, one after the other.
        with torch.set_grad_enabled(len(parts) == 1):
            scores = [self._score(*episodes.rows(part)) for part in parts]
        with torch.no_grad():
            start = [policy.score(*episodes.rows(part), gpt2=self.reference) for part in parts]
            log_prob, entropy, values = (
                distributed.gather(torch.cat(rows)) for rows in zip(*scores, strict=True)
            )  # (B, L)
            log_ratio = log_prob - distributed.gather(torch.cat([s.log_prob for s in start]))
            returns, advantages = self.advantages(episodes, log_ratio, values)

        totals: dict[str, float] = {}
        for i, part in enumerate(parts):
            with distributed.accumulate(self._score, more=i + 1 < len(parts)):
                now = scores[i] if len(parts) == 1 else self._score(*episodes.rows(part))
                terms = self.loss_terms(
                    now, start[i], returns[part], advantages[part], mask[part], B
                )
                losses = torch.stack(list(terms.values()))
                for name, loss in zip(terms, distributed.total(losses).tolist(), strict=True):
                    totals[name] = totals.get(name, 0.0) + loss
                    if not math.isfinite(totals[name]):
                        raise FloatingPointError(
                            f"update {self._n_updates + 1}: the {name} is {totals[name]}; no weight"
                            " has been changed. Lower learning_rate, or look at the last texts and"
                            " rewards"
                        )
                (losses.sum() * ranks).backward()  # the mean of the ranks' gradients is their sum
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), self.max_grad_norm)
        norm = distributed.whole_tensor(norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"update {self._n_updates + 1}: the gradient's norm is {norm}; no weight has been"
                " changed. Lower learning_rate, or use precision='fp32'"
            )
        policy.optimizer.step()
        self._n_updates += 1

        k3 = torch.expm1(-log_ratio) + log_ratio
        record = self.logger.record
        for name, total in totals.items():
            record(f"train/{name}", total)
        record("train/loss", sum(totals.values()))
        record("train/entropy", (entropy.sum() / mask.sum()).item())
        record("train/kl", log_ratio.sum(1).mean().item())
        record("train/kl_k3", k3.sum(1).mean().item())
        record("train/grad_norm", norm.item())
        record("train/learning_rate", learning_rate)
        record("train/baseline", ((returns - advantages) * mask).sum().item() / int(mask.sum()))
        record("train/n_updates", self._n_updates, exclude="tensorboard")

    def advantages(
        self, episodes: Episodes, log_ratio: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns and advantages (B, L) of a batch; moves the moving average on.

        Args:
            episodes: the batch.
            log_ratio: log π - log π_start of each token (B, L), 0 outside the mask.
            values: the value head's (B, L).
        """
        mask = episodes.mask
        rewards = episodes.rewards
        if self.kl_estimator == "k1":
            rewards = rewards - self.kl_coef * log_ratio
        returns = monte_carlo_returns(rewards, self.gamma)
        baseline = torch.zeros_like(returns)
        assert self.env is not None
        kind = self._baseline(self.env)
        if kind == "mean":
            baseline = leave_one_out(returns, mask, len(returns))
        elif kind == "rloo":
            baseline = leave_one_out(returns, mask, self._group_size(self.env))
        elif kind == "value":
            baseline = values
        elif kind == "ema":
            mean = hold_last(returns, mask).mean(0)
            if self._ema is not None:  # the first update has no past to compare with
                baseline = self._ema.to(returns.device).expand_as(returns)
                mean = EMA_DECAY * self._ema.to(mean.device) + (1 - EMA_DECAY) * mean
            self._ema = mean
        advantages = (returns - baseline) * mask
        if self.normalize_advantage:
            written = advantages[mask]
            advantages = mask * (advantages - written.mean()) / (written.std() + 1e-8)
        return returns, advantages

    def loss_terms(
        self,
        scores: Scores,
        start: Scores,
        returns: Tensor,
        advantages: Tensor,
        mask: Tensor,
        batch_size: int,
    ) -> dict[str, Tensor]:
        """The terms of the loss of some rows, weighted; their sum is minimised.

        Each is summed over an episode's tokens and divided by the rows of the whole batch, so that the
        parts of a batch add up.
        """
        terms = {"policy_gradient_loss": -(advantages * scores.log_prob)}
        if self.ent_coef:
            terms["entropy_loss"] = -self.ent_coef * scores.entropy
        if self.kl_coef and self.kl_estimator == "k3":
            log_ratio = scores.log_prob - start.log_prob
            terms["kl_loss"] = self.kl_coef * (torch.expm1(-log_ratio) + log_ratio)
        assert self.env is not None
        if self._baseline(self.env) == "value":
            terms["value_loss"] = self.vf_coef * 0.5 * ((scores.values - returns) * mask) ** 2
        return {name: term.sum() / batch_size for name, term in terms.items()}

    def _set_learning_rate(self) -> float:
        left = self._current_progress_remaining
        rate = self.lr_schedule(left)
        if self.lr_decay == "linear":
            rate *= left
        elif self.lr_decay == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * (1 - left)))
        rate *= min(1.0, (self._n_updates + 1) / (self.warmup_updates + 1))
        for group in self.policy.optimizer.param_groups:
            group["lr"] = rate
        return rate

    # ----------------------------------------------------------------------------------------- log

    def _record_rollout(self, episodes: Episodes) -> None:
        totals = episodes.rewards.sum(1).cpu().numpy()
        lengths = episodes.mask.sum(1).cpu().numpy()
        infos = episodes.infos
        assert self.ep_info_buffer is not None
        for total, length in zip(totals.tolist(), lengths.tolist(), strict=True):
            self.ep_info_buffer.append({"r": total, "l": length})
        self._episode_num += len(totals)
        record = self.logger.record
        record("rollout/ep_rew_mean", float(totals.mean()))
        record("rollout/ep_rew_std", float(totals.std()))
        record("rollout/ep_len_mean", float(lengths.mean()))
        # A text that has ended by itself wrote one token more than `length` counts.
        if all("length" in info for info in infos):
            own = [n > info["length"] for n, info in zip(lengths, infos, strict=True)]
            record("rollout/end_rate", float(np.mean(own)))
        numbers = (int, float, np.number)
        for name in infos[0]:
            if all(isinstance(info.get(name), numbers) for info in infos) and "." not in name:
                record(f"rollout/{name}", float(np.mean([info[name] for info in infos])))

    def _dump_logs(self) -> None:
        seconds = max((time.time_ns() - self.start_time) / 1e9, 1e-9)
        tokens = self.num_timesteps - self._num_timesteps_at_start
        self.logger.record("time/episodes", self._episode_num, exclude="tensorboard")
        self.logger.record("time/fps", tokens / seconds)
        self.logger.record("time/time_elapsed", seconds, exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)


def _check(value: str, name: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}")
