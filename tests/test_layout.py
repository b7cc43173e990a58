"""The packages' layout: who may import whom, and how long a file or a function may be."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("agents", "text_sentiment_env")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# From the ground up: a module of `agents` imports only modules before it. A module that is not
# listed, such as `__init__`, stands above them all.
ORDER = (
    *("gpt2_config", "atomic", "kv_cache", "compiled", "sampling", "packing", "cuda_graphs"),
    *("log_probs", "fused_log_probs", "decode_attention"),
    *("pretrained", "tokenizer", "gpt2", "prefix_cache", "generation", "policy"),
    *("distributed", "advantages", "hyperparameters", "checkpoint", "embedding"),
    *(
        "sb3_vec_env",
        "callbacks",
        "logs",
        "rollout",
        "metrics",
        "frontier",
        "evaluation",
        "saving",
        "reinforce",
    ),
)


def module_name(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_name(path): ast.parse(path.read_text("utf-8")) for path in FILES}


def imports(name):
    """All that a module imports, wherever in its file, by full names."""
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: imports are absolute"
            # A name imported from a package may be a module of it.
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


GRAPH = {name: {used for used in imports(name) if used in MODULES} for name in MODULES}


def stands_on(name):
    """A module and all of ours that it needs."""
    found, waiting = set(), [name]
    while waiting:
        if (module := waiting.pop()) not in found:
            found.add(module)
            waiting += GRAPH[module]
    return found


def test_the_walk_sees_the_imports():
    assert {"agents.gpt2", "agents.policy", "agents.distributed"} <= GRAPH["agents.reinforce"]
    assert "agents.sampling" in stands_on("agents.evaluation")
    assert "stable_baselines3.common.vec_env" in set(imports("agents.checkpoint"))
    assert "huggingface_hub" in set(imports("agents.pretrained"))  # inside a function


@pytest.mark.parametrize("name", MODULES)
def test_no_import_circle(name):
    assert all(name not in stands_on(used) for used in GRAPH[name])


def test_the_environment_knows_no_agent():
    for name in MODULES:
        if name.startswith("text_sentiment_env"):
            assert not any(used.split(".")[0] == "agents" for used in imports(name)), name


def test_gpt2_stands_on_no_reinforcement_learning():
    needed = stands_on("agents.gpt2")
    assert len(needed) > 5
    # The vocabulary makes the tokenizer that `save_pretrained` writes.
    environment = {name for name in needed if name.startswith("text_sentiment_env")}
    assert environment <= {f"text_sentiment_env.{m}" for m in ("vocabulary", "checks", "hub")}
    for name in needed:
        roots = {used.split(".")[0] for used in imports(name)}
        assert not roots & {"stable_baselines3", "gymnasium", "transformers"}, name


@pytest.mark.parametrize("name", ORDER)
def test_agents_import_only_downward(name):
    below = {f"agents.{other}" for other in ORDER[: ORDER.index(name)]}
    used = {used for used in GRAPH[f"agents.{name}"] if used.startswith("agents")}
    assert used <= below


def test_distributed_knows_no_other_module():
    assert GRAPH["agents.distributed"] == set()


# Packages that are imported where they are used, because they take long or may be missing.
LATE = {
    *("matplotlib", "pandas", "transformers", "vaderSentiment", "tiktoken", "huggingface_hub"),
    *("torch.distributed.fsdp", "torch._dynamo", "torch._inductor", "trackio", "wandb"),
}


@pytest.mark.parametrize("module", ["agents.__main__", "agents.training"])
def test_importing_the_agent_loads_no_package_that_can_wait(module):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {*done.stdout.split()}
    assert {module, "torch", "stable_baselines3"} <= loaded
    assert not LATE & loaded


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_long_file_or_function(path):
    text = path.read_text("utf-8")
    assert text.count("\n") <= MOST.get(path.name, 650)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            docstring = ast.get_docstring(node) is not None
            lines = node.end_lineno - node.lineno + 1
            lines -= (first.end_lineno - first.lineno + 1) * docstring
            assert lines <= LONGEST.get(node.name, 60), f"{node.name} has {lines} lines"


# Exceptions, none of which may grow.
MOST: dict[str, int] = {}
LONGEST: dict[str, int] = {}


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "")],
)
def test_torchs_threads_soon_sleep_unless_the_user_decides(given, spins):
    """They read their setting when torch is imported, which the package must precede."""
    program = """
import os, sys
sys.modules["torch"] = None  # importing it from here on fails
try:
    import agents
except ImportError:
    print(os.environ.get("GOMP_SPINCOUNT", ""))
"""
    env = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == spins
