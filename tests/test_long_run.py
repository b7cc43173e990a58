"""Nothing grows with the length of a run."""

import gc
import os
from pathlib import Path

import pytest
from reinforce_helpers import PROMPTS, learn, make_envs
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.logger import Logger
from test_checkpoint import make

from agents.callbacks import AppendingCSV, CheckpointCallback, read_rows
from agents.runs import RunFolder

UPDATES = 2000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_and_file_handles_stay_flat(tmp_path):
    folder, seen = RunFolder(tmp_path), []
    model = make(make_envs(2, prompts=PROMPTS), baseline="rloo", group_size=2)
    model.set_logger(Logger(str(tmp_path), [AppendingCSV(tmp_path / "progress.csv", 0)]))

    def save(model):
        folder.save(model, keep=2)
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        handles = len(os.listdir("/proc/self/fd"))
        seen.append((pages * os.sysconf("SC_PAGE_SIZE"), handles, len(gc.get_objects())))

    learn(model, UPDATES, callback=CallbackList([CheckpointCallback(save, 250)]))
    assert len(seen) == UPDATES // 250
    assert len(read_rows(tmp_path / "progress.csv")) == UPDATES
    memory, handles, objects = zip(*seen[1:], strict=True)  # behind what is made once
    assert max(memory) - memory[0] < 16e6
    assert len(set(handles)) == 1
    assert max(objects) - objects[0] < 2000
