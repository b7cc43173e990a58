"""skrl on the native vector environment."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_skrl_learns():
    # In a process of its own: importing skrl switches off the checks of torch's distributions.
    if importlib.util.find_spec("skrl") is None:
        pytest.skip('pip install -e ".[plug]" brings it')
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "plug_skrl.py"), "--steps", "512"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    first, last = (
        float(line.split()[-1]) for line in done.stdout.splitlines() if "100 texts" in line
    )
    assert last > first + 0.1
