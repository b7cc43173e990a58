import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents import TokenEmbedding

V, L = 5, 4
SPACE = spaces.Box(0, V, (L,), np.int64)


@pytest.fixture
def embedding():
    torch.manual_seed(0)
    return TokenEmbedding(SPACE, embedding_dim=3, n_last=2)


def test_features_are_the_last_tokens_the_mean_and_the_length(embedding):
    obs = torch.tensor([[1, 4, 2, V], [3, V, V, V], [V, V, V, V], [0, 1, 2, 3]])
    token, length = embedding.tokens.weight, embedding.lengths.weight
    zero = torch.zeros(3)
    expected = [
        [token[2], token[4], (token[1] + token[4] + token[2]) / 3, length[3]],
        [token[3], token[V], token[3], length[1]],
        [token[V], token[V], zero, length[0]],
        [token[3], token[2], token[:4].mean(0), length[4]],
    ]
    got = embedding(obs)
    torch.testing.assert_close(got, torch.stack([torch.cat(row) for row in expected]))
    assert got.shape == (4, embedding.features_dim)


def test_ids_as_sb3_hands_them_over(embedding):
    obs = torch.tensor([[1, 4, 2, V], [V, V, V, V]])
    for dtype in (torch.float32, torch.float64, torch.int32):
        assert torch.equal(embedding(obs.to(dtype)), embedding(obs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(embedding, dtype):
    with pytest.raises(TypeError, match=f"observations are {dtype}, which rounds token ids"):
        embedding(torch.zeros(1, L, dtype=dtype))


@pytest.mark.parametrize("bad", [V + 1, -1])
def test_numbers_that_are_no_ids_are_refused(embedding, bad):
    with pytest.raises(ValueError, match=r"outside 0 \.\.\. 5: .*norm_obs=False"):
        embedding(torch.tensor([[1, bad, V, V]]))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 1, (L,)),
        spaces.Box(0, V, (2, L), np.int64),
        spaces.MultiDiscrete([V] * L),
        spaces.Discrete(V),
    ],
    ids=str,
)
def test_other_spaces_are_refused(space):
    with pytest.raises(ValueError, match=r"observation_space=.*must be Box\(0, V, \(L,\), int64\)"):
        TokenEmbedding(space)


@pytest.mark.parametrize("name", ["embedding_dim", "n_last"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        TokenEmbedding(SPACE, **{name: 0})
