"""GPT-2 as a stable-baselines3 policy, with a cache of what it has already read."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from agents.gpt2 import GPT2, GPT2Config, sample

PRECISIONS = ("auto", "fp32", "bf16")


class Scores(NamedTuple):
    """What one teacher-forced pass says of every written token; 0 outside the mask."""

    log_prob: Tensor  # (B, L) float32: of the token that was written
    entropy: Tensor  # (B, L) float32: of the distribution it was drawn from
    values: Tensor  # (B, L) float32: of the text before it


class GPT2Policy(ActorCriticPolicy):
    """GPT-2 over the environment's vocabulary, with a linear value head on its last layer.

    Reads observations `Box(0, V, (L,), int64)` padded on the right with V, writes actions
    `Discrete(V)` whose last one is `<|endoftext|>`; a text is read behind that token, as in GPT-2's
    training. Works in REINFORCE and in stable-baselines3's PPO and A2C. Ids and log-probabilities
    never pass through half precision.

    `policy_kwargs` holds sizes, never weights (SB3 replays it at load). To begin from a trained model:

        gpt2 = GPT2.from_pretrained("reviews").restrict(vocabulary.token_ids)
        model = PPO(GPT2Policy, envs, policy_kwargs={"config": gpt2.config.to_dict()})
        model.policy.gpt2.load_state_dict(gpt2.state_dict())
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        config: Mapping[str, Any] | GPT2Config | None = None,
        precision: str = "auto",
        cuda_graphs: bool = False,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
    ) -> None:
        """Makes the policy with fresh weights.

        Args:
            observation_space: `Box(0, V, (L,), int64)`.
            action_space: `Discrete(V)`.
            lr_schedule: learning rate as a function of the remaining progress.
            config: the GPT-2's shape, with `vocab_size` V; None: 2 layers of 64 channels.
            precision: `"fp32"`, `"bf16"` (autocast) or `"auto"`: bf16 on CUDA.
            cuda_graphs: writes episodes on a GPU by replaying CUDA graphs.
            optimizer_class: AdamW decays matrices only, not biases, norms and the value head.
            optimizer_kwargs: its other arguments; None: no decay, and AdamW's fused kernel.
            use_sde: for SB3's sake; must be False.

        Raises:
            ValueError: for spaces or a config that don't fit each other.
        """
        self.config = _fitting_config(config, observation_space, action_space)
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r} must be one of {', '.join(PRECISIONS)}")
        if use_sde:
            raise ValueError("use_sde=True: state-dependent exploration is for continuous actions")
        self.precision, self.cuda_graphs = precision, cuda_graphs
        self._caches: dict[int, PrefixCache] = {}  # by batch size: an evaluation has its own
        if optimizer_kwargs is None:
            fused = {"fused": True} if optimizer_class is torch.optim.AdamW else {}
            optimizer_kwargs = {"weight_decay": 0.0, **fused}
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[],
            ortho_init=False,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        self.gpt2 = GPT2(self.config)
        self.value_head = nn.Linear(self.config.n_embd, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        matrices = [p for p in self.gpt2.parameters() if p.ndim >= 2]
        others = [p for p in self.gpt2.parameters() if p.ndim < 2] + [*self.value_head.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": matrices},
            {"params": others, "weight_decay": 0.0},
        ]
        arguments = {"lr": lr_schedule(1), **self.optimizer_kwargs}
        self.optimizer = self.optimizer_class(groups, **arguments)
        self.optimizer.register_step_post_hook(_mark_as_written)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.optimizer.register_step_post_hook(_mark_as_written)  # a copy comes without

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "config": self.config.to_dict(),
            "precision": self.precision,
            "cuda_graphs": self.cuda_graphs,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }

    # ------------------------------------------------------------------------------------ reading

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which GPT-2 is run: bf16 where `precision` says so."""
        half = self.precision == "bf16" or (self.precision == "auto" and self.device.type == "cuda")
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    def as_ids(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """GPT-2's input for observations (b, L): ids (b, 1 + L) and how many count, (b,).

        `<|endoftext|>` goes before the text and stands in for padding, which nothing looks at.

        Raises:
            TypeError: for observations that a wrapper has made floats of.
        """
        if obs.is_floating_point():
            raise TypeError(
                f"observations are {obs.dtype}, but token ids are integers: take off the wrapper that"
                " scales them (VecNormalize needs norm_obs=False)"
            )
        end = self.config.vocab_size - 1
        obs = obs.long()
        padding = obs > end
        ids = torch.cat([obs.new_full((len(obs), 1), end), obs.masked_fill(padding, end)], 1)
        return ids, 1 + (~padding).sum(1)

    def read(self, obs: Tensor) -> Tensor:
        """The last layer at the end of each text, where the next token is decided: (B, L) to (B, C).

        Without gradients what an earlier call has read of a row is not read again.
        """
        ids, lengths = self.as_ids(obs)
        with self.autocast():
            if not torch.is_grad_enabled():
                return _full(self.prefix_cache(len(ids)).read(ids, lengths))
            hidden = self.gpt2.hidden(ids[:, : int(lengths.max())])
            return _full(hidden[torch.arange(len(ids), device=ids.device), lengths - 1])

    def prefix_cache(self, batch_size: int) -> PrefixCache:
        """The cache of a batch of this size, emptied if a weight has changed since it was filled."""
        if batch_size not in self._caches:
            width = 1 + self.observation_space.shape[0]  # type: ignore[index]
            width = min(width, self.config.n_positions)
            self._caches[batch_size] = PrefixCache(self.gpt2, batch_size, width)
        cache = self._caches[batch_size]
        cache.forget_if_changed()
        return cache

    def _logits(self, hidden: Tensor) -> Tensor:
        with self.autocast():
            return _full(self.gpt2.head(hidden))

    def set_training_mode(self, mode: bool) -> None:
        """Also drops the prefix caches before training: weights are about to change."""
        if mode:
            self._caches.clear()
        super().set_training_mode(mode)

    # --------------------------------------------------------------------- what SB3's loops call

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Writes the next token of each text.

        Args:
            obs: observations (B, L).
            deterministic: the likeliest token instead of a draw.

        Returns:
            Actions (B,) int64, values (B, 1) and log-probabilities (B,), float32.
        """
        hidden = self.read(obs)
        logits = self._logits(hidden)
        actions = logits.argmax(-1) if deterministic else sample(logits)
        log_prob = logits.log_softmax(-1).gather(1, actions[:, None])[:, 0]
        return actions, self.value_head(hidden), log_prob

    def evaluate_actions(
        self, obs: PyTorchObs, actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values (b, 1), log-probabilities (b,) and entropies (b,) of actions (b,)."""
        assert isinstance(obs, Tensor)
        hidden = self.read(obs)
        with self.autocast():
            log_prob, entropy = self.gpt2.log_probs(hidden, actions.long())
        return self.value_head(hidden), log_prob, entropy

    def get_distribution(self, obs: PyTorchObs) -> CategoricalDistribution:
        """The distribution of the next token."""
        assert isinstance(obs, Tensor)
        assert isinstance(self.action_dist, CategoricalDistribution)
        return self.action_dist.proba_distribution(self._logits(self.read(obs)))

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Values (b, 1)."""
        assert isinstance(obs, Tensor)
        return self.value_head(self.read(obs))

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        assert isinstance(observation, Tensor)
        return self.forward(observation, deterministic)[0]

    # ------------------------------------------------------------------------- whole texts at once

    def write(self, obs: Tensor, max_tokens: int, deterministic: bool = False) -> Tensor:
        """Writes texts to their ends, all tokens of an episode in one go.

        Args:
            obs: observations (B, L).
            max_tokens: the most tokens to add to each.
            deterministic: the likeliest tokens instead of draws.

        Returns:
            The observations (B, L) that these tokens lead to.
        """
        ids, lengths = self.as_ids(obs)
        L, end = obs.shape[1], self.config.vocab_size - 1
        # The room for prompts rather than the longest one at hand: sizes that don't change.
        width = max(1 + L - max_tokens, int(lengths.max()))
        most = min(max_tokens, 1 + L - int(lengths.min()), self.config.n_positions + 1 - width)
        with self.autocast():
            new = self.gpt2.generate(
                ids[:, :width],
                most,
                greedy=deterministic,
                lengths=lengths,
                end_index=end,
                cuda_graph=self.cuda_graphs,
            )
        is_end = new == end
        new = new.masked_fill(is_end.cumsum(1) > is_end.long(), end + 1)
        places = lengths[:, None] - 1 + torch.arange(most, device=new.device)
        texts = torch.cat([obs, obs.new_zeros(len(obs), most)], 1)  # the shorter reach behind L
        return texts.scatter(1, places, new.to(obs.dtype))[:, :L]

    def score(self, texts: Tensor, mask: Tensor, gpt2: GPT2 | None = None) -> Scores:
        """Reads finished texts in one parallel pass and scores every written token.

        Args:
            texts: final observations (B, L) int64.
            mask: which tokens to score, bool (B, L).
            gpt2: another model of the same vocabulary, whose entropies and values are left 0; None: this
                policy's.

        Returns:
            `Scores`, each (B, L), with gradients where they are enabled.
        """
        hidden = self.read_texts(texts, mask, gpt2)
        model, own = (self.gpt2, True) if gpt2 is None else (gpt2, False)
        with self.autocast():
            log_prob, entropy = model.log_probs(hidden, texts[mask].long(), entropies=own)
        values = self.value_head(hidden)[:, 0] if own else torch.zeros_like(entropy)
        empty = torch.zeros(texts.shape, dtype=log_prob.dtype, device=texts.device)
        return Scores(*(empty.masked_scatter(mask, x) for x in (log_prob, entropy, values)))

    def read_texts(self, texts: Tensor, mask: Tensor, gpt2: GPT2 | None = None) -> Tensor:
        """Reads finished texts in one parallel pass.

        Args:
            texts: final observations (B, L) int64.
            mask: the N places to look at, bool (B, L).
            gpt2: another model of the same vocabulary; None: this policy's.

        Returns:
            The last layer, float32 (N, C), where each of these tokens is decided, row by row.
        """
        model = self.gpt2 if gpt2 is None else gpt2
        ids, lengths = self.as_ids(texts)
        width = int(lengths.max()) - 1  # the last token decides nothing
        with self.autocast():
            # Only these places pass through the head: it is most of the work of a small model.
            return _full(model.hidden(ids[:, :width])[mask[:, :width]])


def _mark_as_written(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Counts a step in the weights' versions, which fused kernels leave as they were."""
    groups = optimizer.param_groups
    torch.autograd.graph.increment_version([p for group in groups for p in group["params"]])


def _full(x: Tensor) -> Tensor:
    """Half precision raised to float32; double precision stays."""
    return x if x.dtype == torch.float64 else x.float()


class PrefixCache:
    """Keys and values of the texts that a batch of rows holds, so that only new tokens are read.

    Every call compares the texts with what the rows hold: an extended text costs its new tokens, a
    restarted or altered one is read anew from where it differs. So any loop that shows the policy one
    observation after another gets cached, continuously batched decoding without knowing of it.

    Attributes:
        tokens_read, tokens_reused: how many tokens went through the model, and how many did not.
    """

    def __init__(self, gpt2: GPT2, batch_size: int, width: int) -> None:
        """Makes an empty cache for `batch_size` texts of at most `width` tokens."""
        self.gpt2, self.batch_size = gpt2, batch_size
        self.kv = gpt2.new_cache(batch_size, width)
        device = gpt2.wte.weight.device
        self._columns = torch.arange(width, device=device)
        self.held = torch.zeros(batch_size, width, dtype=torch.int64, device=device)
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.tokens_read = self.tokens_reused = 0
        # Where the weights are looked up each time: `gpt2.parameters()` walks the modules for longer
        # than a small model takes to decode a token.
        self._places: list[tuple[Any, str]] = [
            (module._parameters, name) for module in gpt2.modules() for name in module._parameters
        ]
        self._weights: tuple[int, ...] = ()

    def forget_if_changed(self) -> None:
        """Empties the cache if a weight was written or replaced since the last call."""
        parameters = [module[name] for module, name in self._places]
        weights = tuple(x for p in parameters for x in (p._version, p.data_ptr()))
        if weights != self._weights:
            self._weights = weights
            self.lengths.zero_()

    def read(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """The last layer at the end of texts: ids (B, T), each of its length, lengths (B,), to (B, C)."""
        T = min(ids.shape[1], self.held.shape[1])
        known = (ids[:, :T] == self.held[:, :T]) & (self._columns[:T] < self.lengths[:, None])
        # The last token is always read: its output is what is asked for.
        start = torch.minimum(known.long().cumprod(1).sum(1), lengths - 1)
        new = lengths - start
        extended = new == 1
        hidden = None
        for group in (extended, ~extended):
            if not bool(group.any()):
                continue
            out = self._advance(ids, lengths, group, int(new[group].max()))
            if hidden is None:
                hidden = out.new_empty(len(ids), out.shape[1])
            hidden[group] = out
        assert hidden is not None, "no text to read"
        self.held[:, :T] = ids[:, :T]
        self.lengths = lengths
        self.tokens_read += int(new.sum())
        self.tokens_reused += int(start.sum())
        return hidden

    def _advance(self, ids: Tensor, lengths: Tensor, group: Tensor, size: int) -> Tensor:
        """Reads the last `size` tokens of a group of texts; one that is shorter is read whole."""
        everyone = bool(group.all())
        rows = None if everyone else group.nonzero()[:, 0]
        if not everyone:
            ids, lengths = ids[group], lengths[group]
        first = (lengths - size).clamp(min=0)
        positions = first[:, None] + self._columns[:size]  # (b, size)
        tokens = ids.gather(1, positions)
        hidden = self.gpt2.hidden(tokens, positions, cache=self.kv, cache_rows=rows)
        return hidden[torch.arange(len(ids), device=ids.device), lengths - 1 - first]


def _fitting_config(
    config: Mapping[str, Any] | GPT2Config | None,
    observation_space: spaces.Space,
    action_space: spaces.Space,
) -> GPT2Config:
    """The GPT-2's shape, checked against the environment's spaces."""
    if not isinstance(action_space, spaces.Discrete) or action_space.start != 0:
        raise ValueError(
            f"action_space={action_space} must be Discrete(V), an action a token: GPT2Policy plays"
            " environments such as TextSentiment-v0"
        )
    size = int(action_space.n)
    fits = (
        isinstance(observation_space, spaces.Box)
        and len(observation_space.shape) == 1
        and observation_space.dtype == "int64"
        and bool((observation_space.low == 0).all() and (observation_space.high == size).all())
    )
    if not fits:
        raise ValueError(
            f"observation_space={observation_space} must be Box(0, {size}, (L,), int64): the tokens"
            f" so far as action indices, padded on the right with {size}"
        )
    width = observation_space.shape[0]  # type: ignore[index]
    if config is None:
        config = GPT2Config(vocab_size=size, n_positions=width + 1, n_embd=64, n_layer=2, n_head=2)
    elif not isinstance(config, GPT2Config):
        config = GPT2Config.from_dict(dict(config))
    if config.vocab_size != size:
        raise ValueError(
            f"config has vocab_size={config.vocab_size} but the environment {size} actions: restrict"
            " the model to the environment's vocabulary, gpt2.restrict(vocabulary.token_ids)"
        )
    if config.n_positions < width:
        raise ValueError(
            f"config has n_positions={config.n_positions} but observations hold {width} tokens"
            " (longest prompt + max_tokens): shorten the prompts, lower max_tokens, or use a model"
            " with more positions"
        )
    return config
