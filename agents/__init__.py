"""GPT-2 from scratch, its policy, REINFORCE, and the glue to stable-baselines3."""
