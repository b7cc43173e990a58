#!/usr/bin/env bash
# Builds sdist and wheel, and uses the wheel outside the repository: an episode, and the command text-sentiment.
# Run it in an environment with the extra `test`; the wheel's own environment takes over the dependencies.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH

python -m build --outdir "$work/dist" "$root" > "$work/build.log" || { cat "$work/build.log"; exit 1; }
python -m twine check --strict "$work"/dist/*

# The sdist holds every file of the repository but those of git and CI.
git -C "$root" ls-files | grep -v '^\.' | sort > "$work/repository"
tar tzf "$work"/dist/*.tar.gz | cut -d/ -f2- | sort > "$work/sdist"
missing=$(comm -23 "$work/repository" "$work/sdist")
[ -z "$missing" ] || { echo "the sdist lacks: $missing"; exit 1; }

dependencies=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
python -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-deps "$work"/dist/*.whl
site=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$dependencies" > "$site/dependencies.pth" # behind the wheel's own packages

cd "$work"
export PATH="$work/venv/bin:$PATH"
python - << 'END'
import sys
from pathlib import Path

import gymnasium as gym

import agents
import text_sentiment_env

for package in (agents, text_sentiment_env):
    assert Path(package.__file__).is_relative_to(sys.prefix), package.__file__
env = gym.make("TextSentiment-v0")
env.reset(seed=0)
ended = False
while not ended:
    _, reward, ended, _, info = env.step(env.action_space.sample())
print(f"{reward:+.2f} {info['text']}")
END
text-sentiment info
text-sentiment train --updates 2 --num-envs 8 --eval-episodes 8 --out run
[ "$(text-sentiment generate run "I think" -n 3 | grep -c '^I think')" = 3 ]
echo "wheel and sdist are fine"
