"""GPT-2 from scratch, its policy, REINFORCE, and the glue to stable-baselines3."""

from agents import _threads  # noqa: F401
from agents.embedding import TokenEmbedding
from agents.gpt2 import GPT2, GPT2Config, KVCache
from agents.policy import GPT2Policy
from agents.reinforce import REINFORCE
from agents.sb3_vec_env import SB3VecEnv

__all__ = [
    "GPT2",
    "REINFORCE",
    "GPT2Config",
    "GPT2Policy",
    "KVCache",
    "SB3VecEnv",
    "TokenEmbedding",
]
