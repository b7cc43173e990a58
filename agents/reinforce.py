"""REINFORCE (Williams 1992) on whole episodes, as a stable-baselines3 algorithm.

One update is `collect_episodes`, then `train`. Read `rollout.py` and `advantages.py` beside this file.
"""

from __future__ import annotations

import copy
import math
import time
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from torch import Tensor

from agents import checkpoint, distributed
from agents.advantages import Baseline, BaselineKind, deviation, monte_carlo_returns, normalize
from agents.callbacks import add_progress_bar
from agents.gpt2 import GPT2
from agents.hyperparameters import (
    KLEstimator,
    LRDecay,
    check_bounds,
    check_hyperparameters,
    check_number,
    learning_rate_factor,
)
from agents.metrics import finite_measures, rollout_metrics, update_metrics
from agents.policy import (
    GPT2Policy,
    Precision,
    TokenEvaluation,
    complete_config,
    with_vocabulary,
)
from agents.rollout import Episodes, collect_episodes, prompts_of
from agents.saving import Saving
from agents.sb3_vec_env import wrap_token_env


class REINFORCE(Saving):
    """Policy gradient on whole episodes: write one text a row, take one gradient step, begin again.

    The gradient of E[Σ_t r_t] is estimated by Σ_t (G_t - b_t) ∇log π(a_t|s_t), summed over an
    episode's tokens and averaged over the rows. Every other term of the loss is summed and averaged
    the same way. Nothing is divided by the number of tokens, because that would favour long texts.

    The KL divergence to the frozen start model (Ziegler et al. 2019) is estimated per token. `k1` and
    `k3` use the sampled token, with ρ = log π - log π_start (Schulman 2020, "Approximating KL
    divergence"). `exact` uses D_t, the KL between the two distributions of token t, summed over the
    vocabulary:

    | `kl_estimator` | effect | gradient |
    |---|---|---|
    | `"k1"` | lowers the reward of each token by β·ρ | unbiased for β·KL(π, π_start) |
    | `"exact"` | adds β·D_t to the loss, and lowers the returns of the tokens before t by β·D_t | as k1's, with less noise |
    | `"k3"` | adds β·(exp(-ρ) - 1 + ρ) to the loss | biased, low variance: the gradient of the next-token KL(π_start, π) at prefixes that π samples |

    The interface is that of a stable-baselines3 algorithm: callbacks, logger, `predict`, `save`, `load`.
    Checkpoints are JSON and safetensors, and hold everything that shapes the rest of the run.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {"GPT2Policy": GPT2Policy}

    def __init__(
        self,
        policy: str | type[GPT2Policy],
        env: GymEnv | VectorEnv | None,
        learning_rate: float | Schedule = 1e-4,
        pretrained: str | GPT2 | None = None,
        gamma: float = 1.0,
        baseline: Literal["auto", BaselineKind] = "auto",
        group_size: int | None = None,
        normalize_advantage: bool = False,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        kl_coef: float = 0.0,
        kl_estimator: KLEstimator = "k1",
        max_grad_norm: float = 1.0,
        lr_decay: LRDecay = "constant",
        warmup_updates: int = 0,
        micro_batch_size: int | None = None,
        precision: Precision = "auto",
        parallel: distributed.Parallel = "ddp",
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
            policy: `GPT2Policy` (or its name), or a subclass.
            env: a Gymnasium `VectorEnv`, a single environment, or a stable-baselines3 `VecEnv`, of
                `TextSentiment-v0`; its rows are the batch.
            learning_rate: AdamW's, or a function of the remaining progress from 1 to 0.
            pretrained: the start model: what `GPT2.from_pretrained` takes, or a `GPT2`. It is
                restricted to the environment's vocabulary. None: fresh weights, of the shape
                `policy_kwargs={"config": ...}`.
            gamma: discount γ.
            baseline: subtracted from each return: `"none"`; `"mean"`, the mean of all other rows;
                `"ema"`, an exponential moving average (0.9) over past updates; `"rloo"`, the mean of
                the other rows that were given the same prompt; `"value"`, a learned value head;
                `"auto"`: `"rloo"`, or `"ema"` for a single row.
            group_size: for `"rloo"`, how many rows get the same prompt; None: 4, or all rows when the
                environment has one prompt or none.
            normalize_advantage: subtracts the mean of the batch's advantages and divides by their
                standard deviation σ. The exact KL in the loss is divided by σ too, so it keeps its
                weight against the reward. k3 is not: its weight against the reward becomes β·σ.
            ent_coef: weight of the entropy bonus.
            vf_coef: weight of the value head's squared error, with `baseline="value"`.
            kl_coef: weight β of the KL divergence to the start model.
            kl_estimator: `"k1"` (in the reward), `"k3"` (in the loss), or `"exact"` (in both).
            max_grad_norm: the gradient is clipped to this norm.
            lr_decay: `"constant"`, or `"linear"` or `"cosine"` to 0 over the run.
            warmup_updates: updates over which the learning rate rises linearly.
            micro_batch_size: rows that go through the model at a time; None: all. The gradient is the
                same; memory shrinks, and each row is read once more.
            precision: see `GPT2Policy`.
            parallel: how processes that have joined (`agents.distributed`) share the work. Each has
                an environment of its own, with its rows of the batch. `"ddp"`: each holds the whole
                model; `"fsdp"`: each holds a part of every tensor.
            policy_kwargs: further arguments of the policy.
            stats_window_size, tensorboard_log, verbose, seed, device: as in stable-baselines3.
            _init_setup_model: builds the policy at once.

        Raises:
            ValueError: for an argument out of range, or an environment that is not of this kind.
        """
        check_hyperparameters(locals())
        if distributed.rank() > 0:  # the first speaks for all
            verbose, tensorboard_log = 0, None
        seed = distributed.agree_on_seed(None if seed is None else int(seed))
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
        self._first_update = 0  # of this run's learning-rate schedule
        self._stop_requested = False
        self._update_began_at = None
        if _init_setup_model:
            self._begin(pretrained)

    # -------------------------------------------------------------------------------------- set-up

    _wrap_env = staticmethod(wrap_token_env)

    def _begin(self, pretrained: str | GPT2 | None) -> None:
        """Builds the policy, with the start model's weights or fresh ones, and freezes a copy."""
        token_ids = self._token_ids()
        if token_ids is None:
            raise ValueError("env=None: the policy's vocabulary is the environment's; pass one")
        config = self.policy_kwargs.get("config")
        gpt2 = GPT2.from_pretrained(pretrained) if isinstance(pretrained, str) else pretrained
        if gpt2 is not None:
            if config is not None:
                raise ValueError("pretrained gives the config: leave it out of policy_kwargs")
            if self.policy_kwargs.get("initial_length") is not None:
                raise ValueError("initial_length is for fresh weights: leave it or pretrained out")
            gpt2 = gpt2.restrict(token_ids)
            config = gpt2.config
        width = self.observation_space.shape[0]  # type: ignore[index]
        config = complete_config(config or {}, len(token_ids), width)
        self.policy_kwargs["config"] = with_vocabulary(config, token_ids).to_dict()
        self._setup_model()
        if gpt2 is not None:
            self.policy.gpt2.load_state_dict(gpt2.state_dict())
        self._freeze_reference()
        self._parallelize()

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
        )
        self.policy = self.policy.to(self.device)
        with_vocabulary(self.policy.config, self._token_ids())
        if dropout := self.policy.config.dropout:
            raise ValueError(
                f"the config has dropout={dropout}: texts are written without dropout, and the policy"
                " that is trained must be the one that wrote them; set it to 0, such as by"
                " pretrained=GPT2.from_pretrained(..., dropout=0)"
            )
        self._resolve_baseline()

    def _freeze_reference(self) -> None:
        self.reference = copy.deepcopy(self.policy.gpt2).requires_grad_(False).eval()

    def _parallelize(self) -> None:
        """Shares the work with other processes, where there are any."""
        policy, reference = self.policy, self.reference
        self._evaluate_texts = self._evaluate_own_texts
        if policy.compiled and self.parallel == "fsdp":
            raise ValueError("compile=True has not been made for parallel='fsdp': use 'ddp'")
        if self.parallel == "ddp":
            self._evaluate_texts = distributed.parallelize_ddp(policy, self._evaluate_own_texts)
        else:
            distributed.parallelize_fsdp(
                policy, policy.gpt2.h, policy.forward_passes(), policy.optimizer
            )
            distributed.parallelize_fsdp(reference, reference.h, reference.forward_passes())
        if distributed.world_size() > 1:
            assert self.seed is not None
            distributed.seed_draws(self.seed, self._n_updates)

    def _evaluate_own_texts(self, texts: Tensor, mask: Tensor) -> TokenEvaluation:
        """Evaluates texts by the policy, and by the start model where the exact KL needs it."""
        exact = self.kl_coef > 0 and self.kl_estimator == "exact"
        start = self.reference if exact else None
        result = self.policy.evaluate_texts(texts, mask, start=start)
        if self._baseline.kind != "value":
            # DDP waits for the gradient of every output: detach the unused values.
            return result._replace(values=result.values.detach())
        return result

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seeds all generators, a loaded checkpoint's too; row i of the whole batch with seed + i."""
        super().set_random_seed(seed)
        self._random_states = None
        self._prompt_generator = np.random.default_rng(seed)
        if seed is not None and self.env is not None and distributed.rank() > 0:
            self.env.seed(seed + distributed.rank() * self.env.num_envs)

    def set_env(self, env: GymEnv | VectorEnv, force_reset: bool = True) -> None:
        """Goes on with another environment of as many rows and the same vocabulary and spaces.

        A model that was loaded without an environment takes any number of rows.

        Raises:
            ValueError: for an environment with others; the model keeps its own.
        """
        before = dict(vars(self))
        env = wrap_token_env(env, self.verbose)
        if self.env is None:
            self.n_envs = env.num_envs
        elif env.num_envs != self.n_envs:
            raise ValueError(
                f"env has {env.num_envs} rows, the model's {self.n_envs}: make it with as many, or"
                " save the model and load it with the new one, load(..., env=...)"
            )
        try:
            super().set_env(env, force_reset)
            with_vocabulary(self.policy.config, self._token_ids())
            self._resolve_baseline()
        except ValueError:
            vars(self).update(before)
            raise

    def _resolve_baseline(self) -> None:
        """Settles what the baseline's arguments leave open; its moving average stays."""
        if len(counts := set(distributed.gather_objects(self.n_envs))) > 1:
            raise ValueError(f"env has {sorted(counts)} rows on different ranks: give each as many")
        rows = self.n_envs * distributed.world_size()
        prompts = [""] if self.env is None else prompts_of(self.env)
        average = self._baseline.moving_average if hasattr(self, "_baseline") else None
        kind = self.baseline if self.env is not None else "none"  # for `predict` alone
        self._baseline = Baseline(kind, self.group_size, rows, prompts)
        self._baseline.moving_average = average

    # --------------------------------------------------------------------------------------- learn

    def learn(
        self,
        total_timesteps: float | None = None,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "REINFORCE",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        total_updates: int | None = None,
    ) -> REINFORCE:
        """Trains for at least `total_timesteps` written tokens, or for `total_updates`.

        The one that is reached first ends the training. An update is never cut short, so that a few
        more tokens may be written.

        Args:
            total_timesteps: tokens to write, `<|endoftext|>` included; None: no bound.
            callback: called at every step of the environment.
            log_interval: updates from one line of the log to the next.
            tb_log_name: the run's name in TensorBoard.
            reset_num_timesteps: False continues the previous call: its count of timesteps and its
                learning-rate schedule.
            progress_bar: shows a bar (tqdm and rich).
            total_updates: updates to make, by which the learning-rate schedule then goes; None: no
                bound.

        Raises:
            NonFiniteError: when a term of the loss, or the gradient, is not finite. Weights and
                baseline are still those of before the update.
            ValueError: for a model that was loaded without an environment, for a training without
                an end, and for a hyperparameter that was set out of range.
        """
        if self.env is None:
            raise ValueError(
                "env=None: texts are written in one; pass load(..., env=...) or set_env"
            )
        # Attributes may have been set since the constructor checked them.
        check_hyperparameters({**vars(self), "stats_window_size": self._stats_window_size})
        self._setup_lr_schedule()
        self._resolve_baseline()
        timesteps = check_bounds(total_timesteps, total_updates)
        if progress_bar and distributed.rank() == 0:
            callback = add_progress_bar(callback, total_updates)
        total_timesteps, callback = self._setup_learn(
            timesteps, callback, reset_num_timesteps, tb_log_name
        )
        if reset_num_timesteps:
            self._first_update = self._n_updates
        last_update = math.inf if total_updates is None else self._n_updates + total_updates
        self._stop_requested = False
        callback.on_training_start(locals(), globals())
        if states := self._random_states:
            checkpoint.restore_random_states(states, self.env, self.seed, self._n_updates)
            self._random_states = None
        while self.num_timesteps < total_timesteps and self._n_updates < last_update:
            with self._one_update():
                began = time.perf_counter()
                # Measured at the start of the batch: the first update has the full learning rate, and the
                # last one a rate above 0.
                progress = self.num_timesteps / total_timesteps
                if total_updates is not None:
                    done = self._n_updates - self._first_update
                    progress = done / (last_update - self._first_update)
                callback.on_rollout_start()
                episodes = self.collect_episodes(callback)
                if episodes is None:
                    break
                callback.update_locals({"episodes": episodes})
                callback.on_rollout_end()
                collected = time.perf_counter()
                self._current_progress_remaining = 1 - min(progress, 1.0)
                self.train(episodes)
                tokens = int(episodes.mask.sum())
                self.logger.record("time/rollout_fps", tokens / (collected - began))
                self.logger.record("time/update_fps", tokens / (time.perf_counter() - collected))
            if log_interval and self._n_updates % log_interval == 0:
                self.dump_logs()
            if any(distributed.gather_objects(self._stop_requested)):
                break
        callback.on_training_end()
        return self

    def request_stop(self) -> None:
        """Makes `learn` return after the current update, on all ranks."""
        self._stop_requested = True

    def collect_episodes(self, callback: BaseCallback) -> Episodes | None:
        """Writes one text a row, for the whole batch of all ranks; None if the callback stops."""
        assert self.env is not None
        self.policy.set_training_mode(False)
        prompts = self._baseline.draw_prompts(self._prompt_generator)
        if prompts is not None:
            own = prompts[distributed.shard(len(prompts))]
            self.env.set_options([{"prompt": prompt} for prompt in own])
        before = self.num_timesteps

        def on_step(step: dict[str, Any]) -> bool:
            self.num_timesteps += step["tokens"]
            callback.update_locals({**step, "self": self})
            return callback.on_step()

        with distributed.summon_full_params(self.policy):
            episodes = collect_episodes(self.policy, self.env, on_step)
        ranks = distributed.gather_objects((self.num_timesteps - before, episodes is None))
        self.num_timesteps = before + sum(written for written, _ in ranks)
        if episodes is None or any(stopped for _, stopped in ranks):
            return None
        self._last_obs = episodes.texts.cpu().numpy()
        episodes = episodes.gather()
        self._record_rollout(episodes)
        return episodes

    # --------------------------------------------------------------------------------------- train

    def train(self, episodes: Episodes) -> None:
        """One gradient step on a batch of episodes, of which each rank reads its own rows.

        Raises:
            NonFiniteError: naming the term that is not finite; no weight has changed.
        """
        policy, B = self.policy, len(episodes.texts)
        policy.set_training_mode(True)
        policy.optimizer.zero_grad(set_to_none=True)  # first, because old gradients take memory
        learning_rate = self._set_learning_rate()
        parts = episodes.parts(self.micro_batch_size)
        mask = episodes.mask.cpu()  # once: each value read makes the host wait for a GPU
        inputs = [(episodes.texts[part], mask[part]) for part in parts]
        current, start = self._evaluate_parts(inputs)
        with torch.no_grad():
            gathered = map(distributed.gather_parts, zip(*current, strict=True))
            log_prob, entropy, values, kl, _ = gathered
            log_ratio = log_prob - distributed.gather_parts([part.log_prob for part in start])
            returns, advantages = self.advantages(episodes, log_ratio, values, kl)
            baseline = returns - advantages
            kl_coef: float | Tensor = self.kl_coef
            if self.normalize_advantage:
                if self.kl_estimator == "exact":  # the KL of later tokens is in the advantages
                    kl_coef = kl_coef / deviation(advantages, episodes.mask)
                advantages = normalize(advantages, episodes.mask)

        totals: dict[str, Tensor] = {}
        for i, part in enumerate(parts):
            with distributed.no_sync(self._evaluate_texts, more=i + 1 < len(parts)):
                now = current[i] if len(parts) == 1 else self._evaluate_texts(*inputs[i])
                terms = self.loss_terms(
                    now,
                    start[i],
                    returns[part],
                    advantages[part],
                    episodes.mask[part],
                    batch_size=B,
                    kl_coef=kl_coef,
                )
                # DDP and FSDP average gradients over the ranks: times their number is the sum.
                loss = torch.stack([*terms.values()]).sum()
                (loss * distributed.world_size()).backward()
            for name, term in terms.items():
                totals[name] = totals.get(name, torch.zeros_like(term)) + term.detach()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), self.max_grad_norm)
        losses = distributed.all_reduce_sum(torch.stack([*totals.values()]))
        norm = distributed.full_tensor(norm)
        measures = finite_measures(totals, losses, norm, self._n_updates + 1)
        policy.optimizer.step()
        self._baseline.update(returns, episodes.mask)
        self._n_updates += 1
        self._record("train", measures | {"learning_rate": learning_rate})
        means = update_metrics(episodes.mask, log_prob, log_ratio, entropy, baseline)
        self._record("train", means)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _evaluate_parts(
        self, inputs: list[tuple[Tensor, Tensor]]
    ) -> tuple[list[TokenEvaluation], list[TokenEvaluation]]:
        """The policy's and the start model's evaluation of the micro-batches of a batch."""
        # A single one keeps its graph for the gradient. Several are evaluated again, one by one.
        with torch.set_grad_enabled(len(inputs) == 1):
            current = [self._evaluate_texts(*rows) for rows in inputs]
        if self.kl_coef and self.kl_estimator == "exact":  # this pass has read the start model too
            return current, [
                part._replace(log_prob=part.start_log_prob.detach()) for part in current
            ]
        with torch.no_grad():
            return current, [self.policy.evaluate_texts(*rows, self.reference) for rows in inputs]

    def advantages(
        self, episodes: Episodes, log_ratio: Tensor, values: Tensor, kl: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns and advantages (B, L) of a batch, not normalised.

        Args:
            episodes: the batch.
            log_ratio: log π - log π_start of each token (B, L), 0 outside the mask.
            values: the value head's (B, L).
            kl: exact KL of the distribution that each token was drawn from (B, L); None: 0.
        """
        mask, rewards = episodes.mask, episodes.rewards
        if self.kl_estimator == "k1":
            rewards = rewards - self.kl_coef * log_ratio
        returns = monte_carlo_returns(rewards, self.gamma)
        if self.kl_estimator == "exact" and kl is not None:
            # A token changes the KL of later distributions, not of the one it was drawn from.
            returns = returns - self.kl_coef * (monte_carlo_returns(kl, self.gamma) - kl)
        baseline = self._baseline.estimate(returns, mask, values)
        return returns, (returns - baseline) * mask

    def loss_terms(
        self,
        current: TokenEvaluation,
        start: TokenEvaluation,
        returns: Tensor,
        advantages: Tensor,
        mask: Tensor,
        batch_size: int,
        kl_coef: float | Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms of the loss of some rows, weighted; their sum is minimised.

        Each is summed over an episode's tokens and divided by the rows of the whole batch, so that
        the parts of a batch add up.

        Args:
            current: the policy's evaluation of the rows (b, L), with gradients.
            start: the start model's.
            returns, advantages, mask: of the rows, (b, L).
            batch_size: rows of the whole batch.
            kl_coef: weight of the KL that is in the loss; None: the agent's.
        """
        kl_coef = self.kl_coef if kl_coef is None else kl_coef
        terms = {"policy_gradient_loss": -(advantages * current.log_prob)}
        if self.ent_coef:
            terms["entropy_loss"] = -self.ent_coef * current.entropy
        if self.kl_coef and self.kl_estimator != "k1":
            log_ratio = current.log_prob - start.log_prob
            k3 = torch.expm1(-log_ratio) + log_ratio
            terms["kl_loss"] = kl_coef * (current.kl if self.kl_estimator == "exact" else k3)
        if self._baseline.kind == "value":
            terms["value_loss"] = self.vf_coef * 0.5 * ((current.values - returns) * mask) ** 2
        return {name: term.sum() / batch_size for name, term in terms.items()}

    def _set_learning_rate(self) -> float:
        left = self._current_progress_remaining
        done = self._n_updates - self._first_update
        warm = min(1.0, (done + 1) / (self.warmup_updates + 1))
        rate = self.lr_schedule(left) * warm * learning_rate_factor(self.lr_decay, left)
        check_number("learning_rate (of the schedule)", rate, 0)
        for group in self.policy.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def generate_text(self, prompt: str = "", n: int = 1, **arguments: Any) -> list[str]:
        """Continues a prompt `n` times: `GPT2Policy.generate_text`."""
        return self.policy.generate_text(prompt, n, **arguments)

    # ----------------------------------------------------------------------------------------- log

    def _record_rollout(self, episodes: Episodes) -> None:
        returns, lengths = episodes.returns.tolist(), episodes.lengths.tolist()
        for episode in zip(returns, lengths, strict=True):
            self.ep_info_buffer.append(dict(zip("rl", episode, strict=True)))  # type: ignore[union-attr]
        self._episode_num += len(returns)
        self._record("rollout", rollout_metrics(episodes))

    def _record(self, group: str, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.logger.record(f"{group}/{name}", value)

    def dump_logs(self, iteration: int = 0) -> None:
        """Writes what was recorded; SB3's callbacks call it too, and `iteration` is SB3's."""
        seconds = max((time.time_ns() - self.start_time) / 1e9, 1e-9)
        tokens = self.num_timesteps - self._num_timesteps_at_start
        self.logger.record("time/episodes", self._episode_num, exclude="tensorboard")
        self.logger.record("time/fps", tokens / seconds)
        self.logger.record("time/time_elapsed", seconds, exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)
