"""Hyperparameters of PPO and A2C for rl-zoo3, which reads this file with --conf-file."""

from agents import TokenEmbedding

hyperparams = {
    "TextSentiment-v0": {
        "policy": "MlpPolicy",
        "policy_kwargs": {"features_extractor_class": TokenEmbedding},
        "n_timesteps": 40_000,
        "n_envs": 16,
        "n_steps": 64,
        "learning_rate": 1e-3,
        "gamma": 1.0,
    }
}
