"""The bundled judge: a network of 4.3 million parameters that scores the sentiment of a text.

It gives each text three probabilities: positive, negative, and *not a readable text*, so that a
string of happy words earns as little as silence. `data/JUDGE.md` describes its training data and
its accuracy.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from text_sentiment_env import checks
from text_sentiment_env.vocabulary import GPT2_VOCABULARY_SIZE, gpt2_encoding

PAD, UNKNOWN = 0, 1  # the first two rows of the embedding
_TOKENS_PER_BATCH = 8192  # bounds the memory of one forward, whatever the number of texts
_TREEBANK_QUOTES = re.compile(r"`` ?| ?''")
_TREEBANK_SPACES = re.compile(r" (?=n't\b|'(?:s|re|ve|ll|d|m)\b|[,.;:?!%)\]}])|(?<=[(\[{$#]) ")


class SentimentNetwork(nn.Module):
    """An LSTM each way over the text, and two small heads on their pooled states.

    The sentiment head says how positive the text is *given* that it is readable. The other head
    says whether it is readable. It also sees the share of the text that repeats, because an LSTM
    is bad at noticing repeats over a distance.
    """

    def __init__(self, tokens: int, width: int = 128, hidden: int = 128, dropout: float = 0.0):
        super().__init__()
        self.embedding: nn.Module = nn.Embedding(tokens + 2, width, padding_idx=PAD)
        self.forwards = nn.LSTM(width, hidden, batch_first=True)
        self.backwards = nn.LSTM(width, hidden, batch_first=True)
        self.input_dropout, self.dropout = nn.Dropout(dropout), nn.Dropout(dropout)
        self.sentiment = nn.Sequential(nn.Linear(4 * hidden, 64), nn.ReLU(), nn.Linear(64, 1))
        self.readable = nn.Sequential(nn.Linear(4 * hidden + 3, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The two logits of each row: positive (if readable), and readable.

        Args:
            ids: embedding rows, right-padded with `PAD`, (B, T) int64; no row is all padding.

        Returns:
            Two float tensors of shape (B,).
        """
        real = ids != PAD  # (B, T)
        length = real.sum(1, keepdim=True)
        # Each row is reversed within its own length, so that no LSTM meets padding first. The
        # backward states stay reversed, because pooling ignores the order.
        place = (length - 1 - torch.arange(ids.shape[1], device=ids.device)).clamp(min=0)
        reversed_ids = torch.where(real, ids.gather(1, place), PAD)
        states = torch.cat(
            [
                self.forwards(self.input_dropout(self.embedding(ids)))[0],
                self.backwards(self.input_dropout(self.embedding(reversed_ids)))[0],
            ],
            dim=-1,
        )  # (B, T, 2H)
        mean = (states * real[..., None]).sum(1) / length
        highest = states.masked_fill(~real[..., None], -torch.inf).amax(1)
        pooled = self.dropout(torch.cat([mean, highest], dim=-1))  # (B, 4H)
        readable = self.readable(torch.cat([pooled, repetition(ids, length)], dim=-1))
        return self.sentiment(pooled)[:, 0], readable[:, 0]


def repetition(ids: Tensor, length: Tensor) -> Tensor:
    """The shares of tokens, pairs and triples that occurred earlier in their row, float (B, 3)."""
    same = (ids[:, :, None] == ids[:, None, :]).tril(-1) & (ids > UNKNOWN)[:, :, None]
    shares = []
    for _ in range(3):
        shares.append(same.any(2).sum(1, keepdim=True) / length)
        # Position i repeats position j as an n-gram if both and their predecessors repeat.
        same = same[:, 1:, 1:] & same[:, :-1, :-1]
        if not same.shape[1]:
            same = same.new_zeros((len(ids), 1, 1))
    return torch.cat(shares, dim=1)


class Tokenizer:
    """Maps texts to embedding rows: GPT-2's tokens of the lower-cased text, rare ones `UNKNOWN`."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        """Makes a tokenizer of the GPT-2 ids that have embedding rows of their own.

        Raises:
            ValueError: for an id that is no whole number in [0, 50257).
        """
        self.token_ids = [
            checks.whole_number(f"token_ids[{i}]", token_id, 0, GPT2_VOCABULARY_SIZE - 1)
            for i, token_id in enumerate(token_ids)
        ]
        self._row = np.full(GPT2_VOCABULARY_SIZE, UNKNOWN, np.int64)
        self._row[self.token_ids] = np.arange(2, 2 + len(self.token_ids))

    @staticmethod
    def normalise(text: str, joined: bool = False) -> str:
        """Lower case, single spaces, one in front: the same words are then the same tokens.

        `joined`: also what the Penn Treebank splits is joined (`detokenise`).
        """
        text = " ".join(text.lower().replace("\u2019", "'").split())
        text = detokenise(text) if joined else text
        return " " + text if text else ""

    def __call__(self, texts: Sequence[str], joined: bool = False) -> list[npt.NDArray[np.int64]]:
        """The embedding rows of each normalised text, none for a text without a word."""
        encode = gpt2_encoding().encode_ordinary
        return [self._row[encode(self.normalise(text, joined))] for text in texts]


def detokenise(text: str) -> str:
    """Joins what the Penn Treebank splits off: `do n't like it .` becomes `don't like it.`.

    That is punctuation and the endings n't, 's, 're, 've, 'll, 'd and 'm; ``quotes'' become "quotes".
    """
    return _TREEBANK_SPACES.sub("", _TREEBANK_QUOTES.sub('"', text))


def pad(rows: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Rows of any lengths as one array int64 (B, longest), right-padded with `PAD`."""
    padded = np.full((len(rows), max(map(len, rows))), PAD, np.int64)
    for out, row in zip(padded, rows, strict=True):
        out[: len(row)] = row
    return padded


def _load(folder: Path) -> tuple[Tokenizer, SentimentNetwork]:
    """The tokenizer and the network of a folder's two files, or an error of whichever kind."""
    config: dict[str, Any] = json.loads((folder / "judge.json").read_text("utf-8"))
    content = (folder / "judge.safetensors").read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != config["sha256"]:  # a changed bit can be a plausible number
        raise ValueError(f"judge.safetensors has SHA-256 {found}, not {config['sha256']}")
    weights = load(content)
    scale = weights.pop("embedding.scale", None)  # of each row, which is then stored in 8 bits
    if scale is not None:
        weights["embedding.weight"] = weights["embedding.weight"] * scale.float()
    for name, values in weights.items():
        if not values.isfinite().all():
            raise ValueError(f"{name} holds nan or inf")
    tokenizer = Tokenizer(config["token_ids"])
    # On "meta" a network has shapes and no memory, whatever sizes a damaged file asks for.
    with torch.device("meta"):
        network = SentimentNetwork(len(tokenizer.token_ids), config["width"], config["hidden"])
    network.load_state_dict({name: w.float() for name, w in weights.items()}, assign=True)
    return tokenizer, network


class Judge:
    """Scores texts by P(positive) - P(negative), in [-1, 1]; an empty text scores 0.

    A text that is no readable English (repeated words, shuffled sentences, lists of adjectives)
    scores near 0, however happy its words are. A text's score depends on no other text, up to the
    rounding of single precision. It does not depend on case, on line breaks, or on whether punctuation
    and endings such as n't are split off as in the Penn Treebank, whose spacing SST-2 has.

    >>> judge = Judge()
    >>> judge(["What a wonderful film!", "A waste of time.", ""]).round() + 0.0
    array([ 1., -1.,  0.])
    """

    def __init__(
        self, device: str | torch.device = "cpu", directory: str | Path | None = None
    ) -> None:
        """Loads `judge.safetensors` and `judge.json`.

        Args:
            device: the device to compute on; `"auto"` is the first GPU, or the CPU without one.
            directory: the folder of the two files; the package's own by default.

        Raises:
            OSError: when a file is missing or damaged, or the two don't belong together.
            ValueError: for a device that this machine lacks.
        """
        self.device = checks.torch_device(device)
        own = Path(str(resources.files("text_sentiment_env"))) / "data"
        folder = own if directory is None else Path(directory)
        try:
            self.tokenizer, self.network = _load(folder)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
            fix = "reinstall this package" if folder == own else "write them again"
            raise kind(
                f"directory={str(folder)!r} holds no judge that can be loaded, because judge.json or"
                f" judge.safetensors is missing or damaged: {fix}. {type(error).__name__}: {error}"
            ) from error
        self.network.to(self.device).eval()

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """The score of each text, float64 of shape (n,)."""
        positive, readable = self.probabilities(texts)
        return readable * (2 * positive - 1)

    @torch.inference_mode()
    def probabilities(
        self, texts: Sequence[str]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """P(positive | readable) and P(readable) of each text; 0.5 and 0 for an empty one."""
        if isinstance(texts, str):
            raise TypeError(f"texts={texts!r} is one text: pass a list of texts")
        rows = self.tokenizer(texts, joined=True)
        result = np.tile([[0.5], [0.0]], len(texts))  # (2, n)
        # Texts of similar length share a batch: padding changes no score, but costs time.
        order = sorted((i for i in range(len(rows)) if len(rows[i])), key=lambda i: len(rows[i]))
        while order:
            count = max(1, _TOKENS_PER_BATCH // len(rows[order[-1]]))
            order, batch = order[:-count], order[-count:]
            ids = torch.from_numpy(pad([rows[i] for i in batch])).to(self.device)
            logits = torch.stack(self.network(ids)).double()
            result[:, batch] = torch.sigmoid(logits).cpu().numpy()
        return result[0], result[1]
