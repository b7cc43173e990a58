"""What a run logs beside its own files: TensorBoard, and trackers of experiments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam, TensorBoardOutputFormat

TEXTS = 8  # of a batch, shown as samples
METRICS = ("rollout/ep_rew_mean", "rollout/sentiment", "rollout/length", "train/kl")


class TextLog(BaseCallback):
    """Logs what a row of numbers cannot hold: arguments, distributions and texts of each batch."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """`arguments` of the run, shown beside its figures."""
        super().__init__()
        self._arguments = arguments

    def _on_step(self) -> bool:
        return True

    def _on_training_start(self) -> None:
        kinds = (bool, int, float, str)
        values = {k: v if isinstance(v, kinds) else str(v) for k, v in self._arguments.items()}
        # TensorBoard shows the last value of the scalars that are named here.
        hyperparameters = HParam(values, dict.fromkeys(METRICS, 0.0))
        self.logger.record("hparams", hyperparameters, exclude="csv")

    def _on_rollout_end(self) -> None:
        episodes = self.locals["episodes"]
        returns = episodes.rewards.sum(1).cpu().numpy()
        texts = [" ".join(info["text"].split()) for info in episodes.infos[:TEXTS]]
        samples = [
            f"- **{r:+.2f}** {text}" for r, text in zip(returns.tolist(), texts, strict=False)
        ]
        self.logger.record("rollout/returns", returns, exclude="csv")
        self.logger.record("rollout/lengths", episodes.mask.sum(1).cpu().numpy(), exclude="csv")
        self.logger.record("rollout/samples", "\n".join(samples), exclude="csv")


class TensorBoard(TensorBoardOutputFormat):
    """SB3's output for TensorBoard, in which a resumed run goes on behind its checkpoint."""

    def __init__(self, folder: Path, step: int) -> None:
        """Writes to `folder`; TensorBoard ignores what earlier files hold after `step`."""
        from torch.utils.tensorboard import SummaryWriter

        # In place of SB3's constructor, which has no `purge_step`.
        self.writer = SummaryWriter(str(folder), purge_step=step + 1)
        self._is_closed = False
