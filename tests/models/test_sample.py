"""Sampling: continuations have the model's own probabilities, past its context as well."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from companion.core import generator
from companion.models import generate, greedy, sample
from companion.pretraining.autoregressive import initialize, llama_config, next_token_log_probs
from companion.transformer.block import Decoder

V, CONTEXT = 23, 29


@pytest.fixture(scope="module")
def model() -> Decoder:
    config = llama_config((2, 12, 3), vocab=V, context=CONTEXT, ff_dim=31)
    made = initialize(config, generator=generator(3), dtype=torch.float64)
    for parameter in made.parameters():  # wide, so that it does not repeat itself
        torch.nn.init.normal_(parameter, std=1.0, generator=generator(parameter.numel()))
    return made.eval()


def ids_of(batch: int = 2, n: int = 19) -> Tensor:
    return torch.randint(0, V, (batch, n), generator=generator(1))


def test_temperature_zero_is_greedy_and_a_low_one_nearly(model: Decoder, g: Any) -> None:
    ids = ids_of(3, 5)
    expected = generate(model, ids, tokens=11)
    for temperature in (0.0, 1e-6):
        pick = sample(temperature=temperature, generator=g)
        assert torch.equal(generate(model, ids, tokens=11, pick=pick), expected)


@pytest.mark.parametrize("bad", [[0.0, math.nan], [-math.inf] * 2, [math.inf, 0.0]])
def test_greedy_refuses_the_rows_that_draw_refuses(bad: list[float]) -> None:
    rows = torch.tensor([[0.0, 1.0], bad, [1.0, -math.inf]])
    with pytest.raises(
        ValueError, match=r"largest logit of each row must be finite, got -?(nan|inf)"
    ):
        greedy(rows)
    assert greedy(rows[::2]).tolist() == [1, 0]


def test_continuations_have_the_probabilities_of_the_model(g: torch.Generator) -> None:
    config = llama_config((1, 8, 2), vocab=3, context=7, ff_dim=11)
    model = initialize(config, generator=g, dtype=torch.float64)
    torch.nn.init.normal_(model.head.weight, std=2.0, generator=g)
    prompt = torch.tensor([[1, 2]])
    n = 20_000
    written = generate(model, prompt.expand(n, 2), tokens=2, pick=sample(generator=g))
    counts = Counter(map(tuple, written.tolist()))
    for a in range(3):
        for b in range(3):
            text = torch.tensor([[1, 2, a, b]])
            p = float(next_token_log_probs(model, text)[0, 1:].sum().exp().detach())
            assert abs(counts[a, b] - n * p) <= 5 * (n * p * (1 - p)) ** 0.5 + 1


def test_writing_ends_when_all_have_ended_and_repeats_with_the_seed(model: Decoder) -> None:
    ids = ids_of(2, 3)

    def written(seed: int, temperature: float = 1.0, **more: Any) -> Tensor:
        pick = sample(generator=generator(seed), temperature=temperature)
        return generate(model, ids, tokens=60, pick=pick, **more)

    assert torch.equal(written(0), written(0))
    assert not torch.equal(written(0), written(1))
    stop = (3, 7, 11, 13, 17)
    ended = written(0, stop=stop, temperature=2.0)
    assert ended.shape[1] < 60
    for row in ended.tolist():
        place = next(i for i, token in enumerate(row) if token in stop)
        assert set(row[place:]) == {row[place]}


def test_a_temperature_below_zero_is_refused(g: torch.Generator) -> None:
    with pytest.raises(ValueError, match="temperature"):
        sample(temperature=-1.0, generator=g)
