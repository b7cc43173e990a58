"""GPT-2s of transformers, with random weights made here, as the truth to compare ours with."""

import torch
import transformers
from transformers.pytorch_utils import Conv1D

from agents.gpt2 import GPT2, GPT2Config

SIZES = [
    {"vocab_size": 97, "n_positions": 24, "n_embd": 24, "n_layer": 1, "n_head": 3},
    {"vocab_size": 131, "n_positions": 17, "n_embd": 20, "n_layer": 3, "n_head": 1, "n_inner": 33},
    {"vocab_size": 64, "n_positions": 32, "n_embd": 48, "n_layer": 2, "n_head": 12},
    {"vocab_size": 2, "n_positions": 9, "n_embd": 6, "n_layer": 2, "n_head": 2, "n_inner": 7},
]
SIZE = SIZES[0]
EXACT = {"rtol": 0, "atol": 1e-9}  # for float64


def huggingface(dtype=torch.float64, noise=0.2, seed=0, **config):
    """transformers' GPT-2 with every parameter moved: fresh biases are 0, fresh logits near it."""
    config = {"bos_token_id": None, "eos_token_id": None, **config}
    config = transformers.GPT2Config(attn_implementation="eager", **config)
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters() if noise else ():
            parameter.add_(torch.randn_like(parameter), alpha=noise)
    return model


def ours(model):
    """Our GPT-2 with the weights of transformers', by the types of its layers, not their names."""
    conv1d = {
        name + ".weight"
        for name, module in model.transformer.named_modules()
        if isinstance(module, Conv1D)
    }
    with torch.device("meta"):  # no time for weights to be replaced
        gpt2 = GPT2(GPT2Config.from_dict(model.config.to_dict()))
    state = {
        name: (parameter.T if name in conv1d else parameter).detach().clone()
        for name, parameter in model.transformer.named_parameters()
    }
    gpt2.load_state_dict(state, assign=True)
    return gpt2.eval()


def random_ids(config, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, shape, generator=generator)
