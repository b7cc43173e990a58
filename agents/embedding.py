"""Token vectors for the stock MLP policies of stable-baselines3 and sb3-contrib."""

from __future__ import annotations

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn


class TokenEmbedding(BaseFeaturesExtractor):
    """Learned vectors of the tokens so far, for an MLP that would otherwise read raw ids as numbers.

        PPO("MlpPolicy", env, policy_kwargs={"features_extractor_class": TokenEmbedding})

    The features are the vectors of the last few tokens, newest first; the mean over all tokens, which
    tells what has been said; and a vector of the text's length, which tells when to stop. Their number
    doesn't grow with the vocabulary.
    """

    def __init__(
        self, observation_space: spaces.Space, embedding_dim: int = 32, n_last: int = 4
    ) -> None:
        """Makes the embedding with fresh weights.

        Args:
            observation_space: `Box(0, V, (L,), int64)`, padded on the right with V.
            embedding_dim: numbers in a token's vector.
            n_last: how many of the last tokens are seen one by one.

        Raises:
            ValueError: for another space, or sizes below 1.
        """
        if (
            not isinstance(observation_space, spaces.Box)
            or len(observation_space.shape) != 1
            or observation_space.dtype != "int64"
        ):
            raise ValueError(
                f"observation_space={observation_space} must be Box(0, V, (L,), int64), the ids of"
                " the tokens so far: use the observations of TextSentiment-v0 as they are"
                " (MultiDiscrete ones reach an extractor one-hot)"
            )
        for name, value in (("embedding_dim", embedding_dim), ("n_last", n_last)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        super().__init__(observation_space, features_dim=(n_last + 2) * embedding_dim)
        self.pad = int(observation_space.high.max())
        self.n_last = n_last
        self.tokens = nn.Embedding(self.pad + 1, embedding_dim)  # PAD: what precedes the text
        self.lengths = nn.Embedding(observation_space.shape[0] + 1, embedding_dim)

    def forward(self, observations: Tensor) -> Tensor:
        """Features (B, (n_last + 2) · embedding_dim) of observations (B, L).

        SB3 hands over ids as float32, which holds whole numbers up to 2**24. Half precision is
        refused: it holds them up to 256 (bfloat16) or 2,048 (float16).

        Raises:
            TypeError: for observations in half precision.
            ValueError: for numbers that are no ids, as a wrapper that scales observations makes of them.
        """
        if observations.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"observations are {observations.dtype}, which rounds token ids: pass them as"
                " integers or float32, and begin half precision behind this extractor"
            )
        ids = observations.long()
        written = ids != self.pad
        length = written.sum(1)
        places = length[:, None] - 1 - torch.arange(self.n_last, device=ids.device)
        last = ids.gather(1, places.clamp(min=0)).masked_fill(places < 0, self.pad)
        try:
            total = (self.tokens(ids) * written[..., None]).sum(1)
        except IndexError:
            raise ValueError(
                f"observations hold numbers outside 0 ... {self.pad}: take off the wrapper that scales"
                " them (VecNormalize needs norm_obs=False)"
            ) from None
        mean = total / length.clamp(min=1)[:, None]
        return torch.cat([self.tokens(last).flatten(1), mean, self.lengths(length)], 1)
