"""Writing a text token by token as a Markov decision process, behind Gymnasium's interface.

>>> import gymnasium as gym
>>> import text_sentiment_env
>>> gym.make("TextSentiment-v0").action_space
Discrete(100)
"""

import gymnasium

from text_sentiment_env.env import TextSentimentEnv
from text_sentiment_env.rewards import RewardFunction
from text_sentiment_env.sentiment import SentimentModel, load_sentiment_model
from text_sentiment_env.vector_env import TextSentimentVectorEnv
from text_sentiment_env.vocabulary import Vocabulary

__version__ = "0.1.0"

__all__ = [
    "RewardFunction",
    "SentimentModel",
    "TextSentimentEnv",
    "TextSentimentVectorEnv",
    "Vocabulary",
    "load_sentiment_model",
]

ENV_ID = "TextSentiment-v0"

if ENV_ID not in gymnasium.registry:  # a reload must not warn that it registers twice
    gymnasium.register(
        ENV_ID,
        entry_point="text_sentiment_env.env:make",
        vector_entry_point="text_sentiment_env.vector_env:TextSentimentVectorEnv",
        # No max_episode_steps: TimeLimit would cut a text off before its reward is paid.
        reward_threshold=0.9,
    )
