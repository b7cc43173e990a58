"""GPT-2 as a stable-baselines3 policy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, get_args

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from agents.generation import generate_text
from agents.gpt2 import GPT2, GPT2Config
from agents.prefix_cache import PrefixCache
from agents.sampling import at_least_float32, mask_after_end, sample
from text_sentiment_env import checks

Precision = Literal["auto", "fp32", "bf16", "fast"]
MOST_CACHES = 3  # batch sizes whose prefixes a policy remembers


class TokenEvaluation(NamedTuple):
    """One teacher-forced pass over finished texts: each (B, L) float32, 0 outside the mask."""

    log_prob: Tensor  # of the token that was written
    entropy: Tensor  # of the distribution it was drawn from
    values: Tensor  # of the text before it
    # Only with a start model, else 0:
    kl: Tensor  # of that distribution to the start model's, in nats
    start_log_prob: Tensor  # of the token under the start model; never with gradients


class GPT2Policy(ActorCriticPolicy):
    """GPT-2 over the environment's vocabulary, with a linear value head on its last hidden state.

    Reads observations `Box(0, V, (L,), int64)` padded on the right with V, and writes actions
    `Discrete(V)`, of which the last is `<|endoftext|>`. Every text is read behind that token, as in
    GPT-2's training. Works in REINFORCE and in stable-baselines3's PPO and A2C. Ids and
    log-probabilities never pass through half precision.

    `policy_kwargs` holds sizes, never weights, because SB3 replays it at load. To begin from a
    trained model:

        gpt2 = GPT2.from_pretrained("reviews").restrict(vocabulary.token_ids)
        model = PPO(GPT2Policy, envs, policy_kwargs={"config": gpt2.config.to_dict()})
        model.policy.gpt2.load_state_dict(gpt2.state_dict())

    Attributes:
        end_index: the action that ends a text.
        pad_index: what observations are padded with; no action.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        config: Mapping[str, Any] | GPT2Config | None = None,
        precision: str = "auto",
        cuda_graphs: bool = True,
        compile: bool = False,
        initial_length: float | None = None,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
    ) -> None:
        """Makes the policy with fresh weights.

        Args:
            observation_space: `Box(0, V, (L,), int64)`.
            action_space: `Discrete(V)`.
            lr_schedule: learning rate as a function of the remaining progress.
            config: the GPT-2's shape, with `vocab_size` V, or a part of it; the rest is 2 layers of
                64 channels with 2 heads.
            precision: `"fp32"`, `"bf16"` (autocast), `"auto"`: bf16 on CUDA, or `"fast"`: bf16 on CUDA
                and on a CPU that has instructions for it (AVX512-BF16 or AMX).
            cuda_graphs: on a GPU, writes episodes by replaying CUDA graphs.
            compile: on a GPU, runs through `torch.compile`: the first update takes up to half a
                minute longer, and later ones of many texts are quicker.
            initial_length: about the mean length of the first texts of fresh weights, `<|endoftext|>`
                included, above 1. None: all tokens are about equally likely, V tokens on average. A
                judge that pays only for language pays nothing for long random texts; one or two words
                are often language, and give the agent a first signal.
            optimizer_class: of torch. Weight decay applies to matrices and embeddings, not to biases,
                norms and the value head.
            optimizer_kwargs: its other arguments; None: no weight decay, and AdamW's fused kernel.
            use_sde: for SB3's sake; must be False.

        Raises:
            ValueError: for spaces or a config that don't fit each other.
        """
        self.config = _fitting_config(config, observation_space, action_space)
        checks.one_of("precision", precision, get_args(Precision))
        if initial_length is not None and not 1 < initial_length < math.inf:
            raise ValueError(f"initial_length={initial_length!r} must be above 1, or None")
        if use_sde:
            raise ValueError("use_sde=True: state-dependent exploration is for continuous actions")
        self.precision, self.cuda_graphs, self.compiled = precision, cuda_graphs, compile
        self.initial_length = initial_length
        # The environment's convention: the last action ends a text, and PAD is one beyond.
        self.end_index, self.pad_index = self.config.vocab_size - 1, self.config.vocab_size
        # By batch size, because an evaluation has its own; the last used is the last.
        self._caches: dict[int, PrefixCache] = {}
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
        if self.compiled:
            self.gpt2.use_compiled_kernels()
        if self.initial_length is not None:
            self._end_early(self.initial_length)
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
        self.optimizer.register_step_post_hook(_bump_versions)

    @torch.no_grad()
    def _end_early(self, length: float) -> None:
        """Gives `<|endoftext|>` a share of 1 / length among tokens that are otherwise about even."""
        logit = math.log((self.config.vocab_size - 1) / (length - 1))
        end = self.gpt2.wte.weight[self.end_index]
        self.gpt2.ln_f.bias.add_(logit * end / end.square().sum())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.optimizer.register_step_post_hook(_bump_versions)  # a copy comes without

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "config": self.config.to_dict(),
            "precision": self.precision,
            "cuda_graphs": self.cuda_graphs,
            "compile": self.compiled,
            "initial_length": self.initial_length,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }

    def check_same_shape(self, other: Mapping[str, Any]) -> None:
        """Raises ValueError if a checkpoint's config, `other`, is of another GPT-2."""
        ours, theirs = self.config.to_dict(), GPT2Config.from_dict(dict(other)).to_dict()
        if differences := [name for name in ours if ours[name] != theirs.get(name)]:
            text = ", ".join(
                name
                if name == "token_ids"
                else f"{name} {theirs.get(name)} instead of {ours[name]}"
                for name in differences
            )
            raise ValueError(f"the checkpoint is of another GPT-2: it has another {text}")

    # ------------------------------------------------------------------------------------ reading

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which GPT-2 is run: bf16 where `precision` says so."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.computes_in == "bf16")

    @property
    def computes_in(self) -> str:
        """`"bf16"` or `"fp32"`: what `precision` means on this device."""
        if self.precision in ("fp32", "bf16"):
            return self.precision
        fast = self.precision == "fast" and self.device.type == "cpu" and _cpu_multiplies_bf16()
        return "bf16" if fast or self.device.type == "cuda" else "fp32"

    def to_model_input(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """GPT-2's input for observations (b, L): ids (b, 1 + L) and how many of them count, (b,).

        `<|endoftext|>` precedes the text. It also replaces the padding, where no token looks.

        Raises:
            TypeError: for observations that a wrapper has turned into floats.
        """
        if obs.is_floating_point():
            raise TypeError(
                f"observations are {obs.dtype}, but token ids are integers: take off the wrapper that"
                " scales them (VecNormalize needs norm_obs=False)"
            )
        obs, end = obs.long(), self.end_index
        padding = obs > end
        ids = torch.cat([obs.new_full((len(obs), 1), end), obs.masked_fill(padding, end)], 1)
        return ids, 1 + (~padding).sum(1)

    def last_hidden(self, obs: Tensor) -> Tensor:
        """The last hidden state at the end of each text, which predicts the next token: (B, L) to (B, C).

        Without gradients, tokens of a row that an earlier call has read are not read again.
        """
        if not torch.is_grad_enabled():
            # Not in inference mode, because no later call outside of it could write to the cache.
            with torch.inference_mode(False), torch.no_grad(), self.autocast():
                ids, lengths = self._readable(obs)
                return at_least_float32(self.prefix_cache(len(ids)).read(ids, lengths))
        ids, lengths = self._readable(obs)
        with self.autocast():
            ids = ids[:, : int(lengths.max())]
            ends = torch.arange(len(ids), device=ids.device), lengths - 1
            if not ids.is_cpu:  # where padding costs less than tensors of ever new sizes
                return at_least_float32(self.gpt2.hidden(ids)[ends])
            hidden, nodes = self.gpt2.packed_hidden(ids, _mask(lengths, ids.shape[1]))
            return at_least_float32(hidden.index_select(0, nodes[ends]))

    def _readable(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """`to_model_input`, for texts that the model has the positions to read to their ends.

        Raises:
            ValueError: for a text that fills the observation, if that is all the model's positions.
        """
        ids, lengths = self.to_model_input(obs)
        most = self.config.n_positions
        if ids.shape[1] > most and int(lengths.max()) > most:
            raise ValueError(
                f"obs holds a text that fills its {obs.shape[1]} places, and so is finished: behind"
                f" <|endoftext|> it takes {ids.shape[1]} positions, and the model has"
                f" n_positions={most}; leave it out, or use a model with more positions"
            )
        return ids, lengths

    def prefix_cache(self, batch_size: int) -> PrefixCache:
        """The cache for batches of this size, emptied if a weight has changed since it was filled."""
        cache = self._caches.pop(batch_size, None)
        if cache is None:
            width = 1 + self.observation_space.shape[0]  # type: ignore[index]
            width = min(width, self.config.n_positions)
            cache = PrefixCache(self.gpt2, batch_size, width)
        self._caches[batch_size] = cache  # behind those that were used before
        if len(self._caches) > MOST_CACHES:
            del self._caches[next(iter(self._caches))]
        cache.forget_if_changed()
        return cache

    def _logits(self, hidden: Tensor) -> Tensor:
        with self.autocast():
            return at_least_float32(self.gpt2.head(hidden))

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
            deterministic: takes the likeliest token instead of sampling.

        Returns:
            Actions (B,) int64, values (B, 1) and log-probabilities (B,), float32.
        """
        hidden = self.last_hidden(obs)
        logits = self._logits(hidden)
        actions = logits.argmax(-1) if deterministic else sample(logits)
        log_prob = logits.log_softmax(-1).gather(1, actions[:, None])[:, 0]
        return actions, self.value_head(hidden), log_prob

    def evaluate_actions(
        self, obs: PyTorchObs, actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values (b, 1), log-probabilities (b,) and entropies (b,) of actions (b,)."""
        assert isinstance(obs, Tensor)
        hidden = self.last_hidden(obs)
        with self.autocast():
            log_prob, entropy = self.gpt2.log_probs(hidden, actions.long())
        return self.value_head(hidden), log_prob, entropy

    def get_distribution(self, obs: PyTorchObs) -> CategoricalDistribution:
        """The distribution of the next token."""
        assert isinstance(obs, Tensor)
        assert isinstance(self.action_dist, CategoricalDistribution)
        return self.action_dist.proba_distribution(self._logits(self.last_hidden(obs)))

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Values (b, 1)."""
        assert isinstance(obs, Tensor)
        return self.value_head(self.last_hidden(obs))

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        assert isinstance(observation, Tensor)
        return self.forward(observation, deterministic)[0]

    # ------------------------------------------------------------------------- whole texts at once

    def forward_passes(self) -> tuple[Callable[..., Any], ...]:
        """The methods that use all weights and are called from outside, for FSDP."""
        return self.evaluate_texts, self.generate_texts

    def generate_texts(self, obs: Tensor, max_tokens: int, deterministic: bool = False) -> Tensor:
        """Writes texts to their ends, all tokens of an episode at once.

        Args:
            obs: observations (B, L).
            max_tokens: the most tokens to add to each.
            deterministic: takes the likeliest tokens instead of sampling.

        Returns:
            The observations (B, L) to which these tokens lead.
        """
        ids, lengths = self.to_model_input(obs)
        L = obs.shape[1]
        shortest, longest = torch.stack(lengths.aminmax()).tolist()
        # Pad to the longest possible prompt, not this batch's, so that CUDA graphs see one shape.
        width = max(1 + L - max_tokens, longest)
        most = min(max_tokens, 1 + L - shortest, self.config.n_positions + 1 - width)
        with self.autocast():
            new = self.gpt2.generate(
                ids[:, :width],
                most,
                greedy=deterministic,
                lengths=None if shortest == width else lengths,
                end_index=self.end_index,
                cuda_graph=self.cuda_graphs and ids.is_cuda,
            )
        new = mask_after_end(new, self.end_index, self.pad_index)
        places = lengths[:, None] - 1 + torch.arange(most, device=new.device)
        texts = torch.cat([obs, obs.new_zeros(len(obs), most)], 1)  # the shorter reach behind L
        return texts.scatter(1, places, new.to(obs.dtype))[:, :L]

    def generate_text(self, prompt: str = "", n: int = 1, **arguments: Any) -> list[str]:
        """Continues a prompt `n` times; `arguments` as for `agents.generation.generate_text`."""
        self.set_training_mode(False)
        return generate_text(self.gpt2, prompt, n, autocast=self.autocast(), **arguments)

    def evaluate_texts(
        self,
        texts: Tensor,
        mask: Tensor,
        gpt2: GPT2 | None = None,
        *,
        start: GPT2 | None = None,
    ) -> TokenEvaluation:
        """Evaluates every written token of finished texts in one teacher-forced pass.

        Args:
            texts: final observations (B, L) int64.
            mask: the tokens to evaluate, bool (B, L). Pass it on the CPU, where its indices are
                computed: a mask on a GPU makes the host wait.
            gpt2: another model of the same vocabulary, for which entropies and values stay 0; None:
                this policy's.
            start: a start model, to compute the exact KL to it; None: KL stays 0.

        Returns:
            Log-probabilities, entropies, values and KL, with gradients where they are enabled.
        """
        rows, columns, width = masked_places(mask, texts.device)
        hidden, places = self._hidden_at(texts, rows, columns, width, gpt2)
        model, own = (self.gpt2, True) if gpt2 is None else (gpt2, False)
        with self.autocast():
            tokens = texts[rows, columns].long()
            if start is None:
                log_prob, entropy = model.log_probs(hidden, tokens, places, entropies=own)
                kl, start_log_prob = torch.zeros_like(entropy), torch.zeros_like(log_prob)
            else:
                with torch.no_grad():
                    start_hidden, _ = self._hidden_at(texts, rows, columns, width, start)
                log_prob, entropy, kl, start_log_prob = model.log_probs_and_kl(
                    hidden, tokens, start, start_hidden, places
                )
        values = self.value_head(hidden)[:, 0] if own else torch.zeros_like(entropy)
        if places is not None:
            entropy, values, kl = (x.index_select(0, places) for x in (entropy, values, kl))
        empty = torch.zeros(texts.shape, dtype=log_prob.dtype, device=texts.device)
        written = log_prob, entropy, values, kl, start_log_prob
        return TokenEvaluation(*(empty.index_put((rows, columns), x) for x in written))

    def _hidden_at(
        self, texts: Tensor, rows: Tensor, columns: Tensor, width: int, gpt2: GPT2 | None
    ) -> tuple[Tensor, Tensor | None]:
        """The last hidden states (M, C), and the row that predicts each token (N,); None: one each."""
        model = self.gpt2 if gpt2 is None else gpt2
        ids, lengths = self.to_model_input(texts)  # the token of column j is decided at position j
        ids = ids[:, :width]
        with self.autocast():
            # The head, most of a small model's work, sees only these places.
            if not ids.is_cpu:  # where padding costs less than tensors of ever new sizes
                return at_least_float32(model.hidden(ids)[rows, columns]), None
            # The leading <|endoftext|> of every text is read, so that an empty text has a node too.
            hidden, nodes = model.packed_hidden(ids, _mask((lengths - 1).clamp(min=1), width))
            used, places = nodes[rows, columns].unique(return_inverse=True)
            return at_least_float32(hidden.index_select(0, used)), places


def _cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for it: without them bf16 is slower than fp32."""
    # Both checks are private to torch: a release that lacks them means no.
    names = "_is_avx512_bf16_supported", "_is_amx_tile_supported"
    checks = [getattr(torch.cpu, name) for name in names if hasattr(torch.cpu, name)]
    return torch.backends.mkldnn.is_available() and any(check() for check in checks)


def _mask(lengths: Tensor, width: int) -> Tensor:
    """The first tokens of each row, bool (B, width)."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def masked_places(mask: Tensor, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Rows and columns (N,) of a mask's True entries, on `device`, and the columns they reach over.

    Indexing with the mask itself would read its number of entries from a GPU, again and again.
    """
    places = mask.cpu().nonzero()
    width = int(places[:, 1].max()) + 1 if len(places) else 1
    rows, columns = places.to(device, non_blocking=True).unbind(1)
    return rows, columns, width


def _bump_versions(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Counts a step in the weights' versions, which the prefix cache compares.

    Fused optimizers change weights without bumping `_version`.
    """
    groups = optimizer.param_groups
    torch.autograd.graph.increment_version([p for group in groups for p in group["params"]])


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
    config = complete_config(config or {}, size, width)
    if config.vocab_size != size:
        raise ValueError(
            f"config has vocab_size={config.vocab_size} but the environment {size} actions: restrict"
            " the model to the environment's vocabulary, gpt2.restrict(vocabulary.token_ids)"
        )
    if config.n_positions < width:
        raise ValueError(
            f"the model reads n_positions={config.n_positions} but observations hold {width} tokens"
            " (longest prompt + max_tokens): shorten the prompts, lower max_tokens, or use a model"
            " with more positions"
        )
    return config


def complete_config(config: Mapping[str, Any] | GPT2Config, size: int, width: int) -> GPT2Config:
    """A GPT-2's shape in full, of which `config` may name a part.

    Args:
        config: a shape, a config of transformers (with `model_type`), or some of a shape's sizes.
        size: the environment's number of actions.
        width: tokens in an observation.

    Raises:
        ValueError: for a name that `GPT2Config` does not have.
    """
    if isinstance(config, GPT2Config):
        return config
    if "model_type" in config or "architectures" in config:
        return GPT2Config.from_dict(dict(config))
    names = [field.name for field in dataclasses.fields(GPT2Config)]
    if unknown := [name for name in config if name not in names]:
        raise ValueError(f"config holds {unknown}: it may name {', '.join(names)}")
    sizes = {"vocab_size": size, "n_positions": width + 1, "n_embd": 64, "n_layer": 2, "n_head": 2}
    return GPT2Config(**{**sizes, **config})


def with_vocabulary(
    config: Mapping[str, Any] | GPT2Config, token_ids: Sequence[int] | None
) -> GPT2Config:
    """A config of the environment's vocabulary; one that names no tokens gets the environment's.

    Args:
        config: the GPT-2's shape.
        token_ids: the environment's GPT-2 token for each action; None: any.

    Raises:
        ValueError: if the config names other tokens.
    """
    config = config if isinstance(config, GPT2Config) else GPT2Config.from_dict(dict(config))
    if token_ids is None:
        return config
    if config.token_ids is None and config.vocab_size == len(token_ids):
        return dataclasses.replace(config, token_ids=tuple(token_ids))
    if config.token_ids is not None and list(config.token_ids) != list(token_ids):
        raise ValueError(
            f"the policy's vocabulary of {config.vocab_size} tokens is not the environment's of"
            f" {len(token_ids)}: make the environment with the vocabulary that the policy was"
            " made for, or a new policy"
        )
    return config
