"""Train GPT-2 with REINFORCE to write film reviews that a sentiment model likes.

    python examples/train_reinforce.py                  # a minute on two CPU cores
    python examples/train_reinforce.py --preset gpt2    # GPT-2, 124M, full vocabulary, for a GPU
    python examples/train_reinforce.py --out runs/mine --updates 300 --resume
    torchrun --nproc-per-node 8 examples/train_reinforce.py --preset gpt2    # on eight GPUs

Writes to --out: report.html (the run on one page), summary.json, progress.csv, monitor.csv, samples, pictures,
checkpoint.zip and gpt2/ (the trained model in Hugging Face's format). Ctrl-C, SIGTERM and SIGHUP save before they
end the run. Exit status: 0, 1 for numbers that overflow, 2 for bad input, 130, 143 or 129 after a signal.

The program is `agents/training.py`, which reads from top to bottom: it makes the environment, the
judge and the agent, evaluates the start model, trains, evaluates again, and writes tables, texts and curves.
`python -m agents train` is the same program.
"""

import sys

from agents.training import main

if __name__ == "__main__":
    sys.exit(main(description=__doc__))
