import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.sampling import apply_temperature_and_top_k, mask_after_end, sample

LAST = 1 - 2.0**-53  # the largest float64 below 1


def log_of(*p):
    """Float64 logits with these probabilities, up to a factor."""
    return torch.tensor(p, dtype=torch.float64).log()


def draw(logits, u):
    """One draw from the same logits for each of the numbers."""
    u = torch.as_tensor(u, dtype=torch.float64)
    return sample(logits.expand(*u.shape, len(logits)), u=u)


def assert_fits(counts, p):
    """Pearson's chi-square, with cells pooled to at least 20 expected, within 4.5 deviations."""
    expected = p.double() / p.double().sum() * counts.sum()
    cell = (expected.cumsum(0) / 20).long()
    pooled = torch.zeros(int(cell.max()) + 1, dtype=torch.float64)
    want = pooled.clone().index_add(0, cell, expected)
    got = pooled.index_add(0, cell, counts.double())
    kept = want > 0
    statistic = ((got - want) ** 2 / want)[kept].sum().item()
    degrees = max(int(kept.sum()) - 1, 1)
    # The cube root of a chi-square variable is close to normal (Wilson and Hilferty).
    z = ((statistic / degrees) ** (1 / 3) - 1 + 2 / (9 * degrees)) / math.sqrt(2 / (9 * degrees))
    assert z < 4.5


@pytest.mark.parametrize("V", [1, 2, 3, 10, 100])
def test_frequencies_of_few_entries(V):
    torch.manual_seed(V)
    logits = torch.randn(V) * 2
    generator = torch.Generator().manual_seed(0)
    drawn = sample(logits.expand(50_000, V), generator)
    assert_fits(drawn.bincount(minlength=V), logits.double().softmax(-1))


def test_frequencies_of_gpt2s_vocabulary():
    torch.manual_seed(0)
    logits = torch.randn(50257) * 2
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([sample(logits.expand(500, -1), generator) for _ in range(12)])
    assert_fits(drawn.bincount(minlength=50257), logits.double().softmax(-1))


def test_the_test_of_frequencies_sees_a_wrong_distribution():
    logits = torch.randn(100, generator=torch.Generator().manual_seed(0))
    drawn = sample(logits.expand(50_000, -1), torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError):
        assert_fits(drawn.bincount(minlength=100), (logits * 1.1).softmax(-1))


@pytest.mark.parametrize("V", [1, 2, 5, 9, 10, 17])
@pytest.mark.parametrize("seed", range(4))
def test_numbers_around_every_edge_choose_their_entry(V, seed):
    torch.manual_seed(seed)
    weights = torch.randint(0, 4, (V,)).double()  # some are 0
    weights[torch.randint(V, ())] = 3
    logits = log_of(*weights.tolist())
    edges = weights.cumsum(0) / weights.sum()
    for entry in weights.nonzero().flatten().tolist():
        low, high = (edges[entry] - weights[entry] / weights.sum()).item(), edges[entry].item()
        near = [low + 1e-12, (low + high) / 2, high - 1e-12]
        assert draw(logits, near).tolist() == [entry] * 3


@given(
    logits=st.lists(
        st.just(-math.inf) | st.floats(-800, 800) | st.floats(-1, 1), min_size=1, max_size=40
    ).filter(lambda row: max(row) > -math.inf),
    single=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_no_entry_of_probability_zero_is_drawn(logits, single):
    """At the cumulative edges, the floats beside them, and the ends: rounding decides nothing."""
    row = torch.tensor(logits, dtype=torch.float32 if single else torch.float64)
    p = row.softmax(-1)
    edges = p.double().cumsum(0)
    u = torch.cat([edges, edges.nextafter(edges * 0), edges.nextafter(edges + 1)])
    u = torch.cat([u, torch.tensor([0.0, 5e-324, 2.0**-53, 0.5, LAST], dtype=torch.float64)])
    drawn = draw(row, u.clamp(0, LAST))
    assert (p[drawn] > 0).all()
    order = u.clamp(0, LAST).argsort()
    assert (drawn[order].diff() >= 0).all()  # a larger number never chooses an earlier entry


@pytest.mark.parametrize("V", [3, 9, 100, 50257])
def test_ends_choose_the_first_and_last_possible_entry(V):
    torch.manual_seed(0)
    logits = torch.randn(V)
    assert draw(logits, [0.0, LAST]).tolist() == [0, V - 1]
    logits[0] = logits[V - V // 3 :] = -math.inf
    assert draw(logits, [0.0, LAST]).tolist() == [1, V - V // 3 - 1]


@pytest.mark.parametrize("V", [1, 2, 10, 50257])
def test_all_but_one_impossible(V):
    for entry in {0, V // 2, V - 1}:
        logits = torch.full((V,), -math.inf)
        logits[entry] = -7.0
        assert draw(logits, [0.0, 0.3, LAST]).tolist() == [entry] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_to_float32(dtype):
    torch.manual_seed(0)
    logits = torch.randn(200, 1000).to(dtype)
    u = torch.rand(200, dtype=torch.float64)
    assert torch.equal(sample(logits, u=u), sample(logits.float(), u=u))


def test_leading_dimensions_are_kept():
    torch.manual_seed(0)
    logits, u = torch.randn(3, 4, 2, 7), torch.rand(3, 4, 2, dtype=torch.float64)
    flat = sample(logits.flatten(0, 2), u=u.flatten())
    assert torch.equal(sample(logits, u=u), flat.view(3, 4, 2))
    assert flat.dtype == torch.int64
    assert sample(logits[0, 0, 0]).shape == ()
    assert sample(logits[:0]).shape == (0, 4, 2)


def test_a_generator_repeats_its_draws_and_leaves_the_global_one_alone():
    logits = torch.zeros(50, 100)
    state = torch.get_rng_state()
    first = sample(logits, torch.Generator().manual_seed(1))
    assert torch.equal(first, sample(logits, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, sample(logits, torch.Generator().manual_seed(2)))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(first, sample(logits))


@pytest.mark.parametrize("row", [[0.0, math.nan, 1.0], [0.0, math.inf, 1.0], [-math.inf] * 3])
def test_logits_of_no_distribution_are_refused(row):
    with pytest.raises(ValueError, match="nothing can be drawn"):
        sample(torch.tensor([[0.0, 0.0, 0.0], row]))


def test_top_k_keeps_ties_of_the_kth_logit_as_huggingface_does():
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    want = transformers.TopKLogitsWarper(2)(None, logits)
    assert torch.equal(apply_temperature_and_top_k(logits, top_k=2), want)
    assert want.isfinite().sum() == 3


def test_temperature_divides_and_top_k_drops():
    logits = torch.tensor([[1.0, 4.0, 2.0, 3.0]])
    assert apply_temperature_and_top_k(logits, 0.5).tolist() == [[2, 8, 4, 6]]
    assert apply_temperature_and_top_k(logits, 2.0, 2).tolist() == [[-math.inf, 2, -math.inf, 1.5]]
    for top_k in (None, 4, 9):
        assert torch.equal(apply_temperature_and_top_k(logits, top_k=top_k), logits)


@pytest.mark.parametrize("temperature", [1e-7, 1e-39, 5e-324])
@pytest.mark.parametrize("top_k", [None, 2])
def test_a_temperature_near_zero_takes_the_likeliest(temperature, top_k):
    logits = torch.tensor([[1.0, 4.0, -math.inf, 3.9], [-900.0, -1000.0, -800.0, -950.0]])
    cold = apply_temperature_and_top_k(logits, temperature, top_k)
    assert cold.softmax(-1).tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
    assert sample(cold, u=torch.full((2,), LAST, dtype=torch.float64)).tolist() == [1, 2]
    with pytest.raises(ValueError, match="nothing can be drawn"):
        sample(apply_temperature_and_top_k(logits.log(), temperature, top_k))


def test_what_stands_behind_the_first_end_is_masked():
    tokens = torch.tensor([[1, 7, 2, 7], [7, 1, 1, 1], [1, 2, 3, 4], [1, 2, 3, 7]])
    expected = [[1, 7, 0, 0], [7, 0, 0, 0], [1, 2, 3, 4], [1, 2, 3, 7]]
    assert mask_after_end(tokens, 7, 0).tolist() == expected
