"""Changes of the logits: equal to transformers row by row, and what they do to a distribution."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import logits_process as hf

from companion.core import generator
from companion.generation import decoding as de
from companion.models import History, generate, greedy, sample
from companion.transformer.block import Decoder, TransformerConfig

V = 37
NEVER = -math.inf


def history(ids: Tensor, prompt: int = 0, real: Tensor | None = None) -> History:
    return History(ids, prompt, real, torch.zeros(len(ids), dtype=torch.bool))


def rows() -> Tensor:
    """1,000 rows: ordinary ones, flat and sharp, ties, forbidden tokens, one survivor, bfloat16."""
    g = generator(11)
    z = torch.randn(1000, V, generator=g) * torch.rand(1000, 1, generator=g) * 8
    z[100:200] = z[100:200].round()  # ties in every row
    z[200:250] = 0.0  # nothing but ties
    z[250:260] = -3.5
    forbidden = torch.rand(150, V, generator=g) < 0.6
    forbidden[:, 5] = False
    z[300:450] = z[300:450].masked_fill(forbidden, NEVER)
    z[450:500] = NEVER
    z[450:500, 3] = torch.randn(50, generator=g)  # one survivor
    z[500:550] *= 30  # nearly one
    z[550:600] += 1000.0  # far from zero
    z[600:800] = z[600:800].bfloat16().float()
    z[800:850, :2] = 20.0  # two equal ones far above
    z[850:900] = z[850:900].bfloat16().float().round()
    return z


Z = rows()
IDS = torch.randint(0, V, (1000, 13), generator=generator(12))
IDS[:300] %= 3  # much repetition

SAME: list[tuple[str, Callable[[Tensor], Tensor], Any]] = [
    *[
        (f"temperature {t}", lambda z, t=t: de.temperature(z, t), hf.TemperatureLogitsWarper(t))
        for t in (0.3, 1.7)
    ],
    *[(f"top-k {k}", lambda z, k=k: de.top_k(z, k), hf.TopKLogitsWarper(k)) for k in (1, 2, 7, 99)],
    *[
        (f"top-p {p}", lambda z, p=p: de.top_p(z, p), hf.TopPLogitsWarper(p))
        for p in (1e-6, 0.1, 0.5, 0.7, 0.9, 0.95, 0.999)
    ],
    *[
        (f"min-p {p}", lambda z, p=p: de.min_p(z, p), hf.MinPLogitsWarper(p))
        for p in (0.0, 0.02, 0.1, 0.5)
    ],
    *[
        (f"typical {p}", lambda z, p=p: de.typical(z, p), hf.TypicalLogitsWarper(p))
        for p in (0.05, 0.2, 0.7, 0.95)
    ],
    *[
        (f"epsilon {e}", lambda z, e=e: de.epsilon(z, e), hf.EpsilonLogitsWarper(e))
        for e in (3e-4, 0.02, 0.3)
    ],
    *[
        (f"eta {e}", lambda z, e=e: de.eta(z, e), hf.EtaLogitsWarper(e, device="cpu"))
        for e in (3e-4, 0.02, 0.3)
    ],
    *[
        (
            f"repetition {s}",
            lambda z, s=s: de.repetition_penalty(z, s, history(IDS)),
            hf.RepetitionPenaltyLogitsProcessor(s),
        )
        for s in (0.8, 1.2, 2.0)
    ],
    *[
        (
            f"no {n}-grams",
            lambda z, n=n: de.no_repeat_ngram(z, n, history(IDS)),
            hf.NoRepeatNGramLogitsProcessor(n),
        )
        for n in (1, 2, 3, 13, 14)
    ],
]


@pytest.mark.parametrize(
    ("ours", "theirs"), [(o, t) for _, o, t in SAME], ids=[n for n, *_ in SAME]
)
def test_each_row_is_that_of_transformers(ours: Callable[[Tensor], Tensor], theirs: Any) -> None:
    before = Z.clone()
    made, expected = ours(Z), theirs(IDS, Z.clone())
    assert torch.equal(Z, before)
    assert made.dtype == Z.dtype
    differ = ((made == NEVER) != (expected == NEVER)).any(1)
    assert not differ.any(), f"other tokens stay in rows {differ.nonzero().flatten().tolist()}"
    torch.testing.assert_close(made, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("order", ["temperature first", "nucleus first"])
def test_a_pipeline_is_a_list_of_processors_in_its_order(order: str) -> None:
    temperature, nucleus = hf.TemperatureLogitsWarper(0.6), hf.TopPLogitsWarper(0.8)
    penalty = hf.RepetitionPenaltyLogitsProcessor(1.3)
    if order == "temperature first":
        ours = de.Pipeline(repetition_penalty=1.3, temperature=0.6, top_p=0.8)
        theirs = hf.LogitsProcessorList([penalty, temperature, nucleus])
    else:
        ours = de.Pipeline(top_p=0.8, temperature=0.6, repetition_penalty=1.3)
        theirs = hf.LogitsProcessorList([nucleus, temperature, penalty])
    joined: Any = theirs
    made, expected = ours(Z, history(IDS)), joined(IDS, Z.clone())
    assert torch.equal(made == NEVER, expected == NEVER)
    torch.testing.assert_close(made, expected, rtol=1e-6, atol=0)


def test_the_order_of_temperature_and_nucleus_decides_what_stays() -> None:
    # exp(2) : exp(1) : 1 at temperature 1, squares of it at one half.
    z = torch.tensor([[3.0, 2.0, 1.0]])
    first = de.Pipeline(temperature=0.5, top_p=0.8)(z).softmax(-1)[0]
    last = de.Pipeline(top_p=0.8, temperature=0.5)(z).softmax(-1)[0]
    assert first.tolist() == [1, 0, 0]
    e = math.exp(-2)
    torch.testing.assert_close(last, torch.tensor([1 / (1 + e), e / (1 + e), 0.0]))


TRUNCATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "top_k": lambda z: de.top_k(z, 3),
    "top_p": lambda z: de.top_p(z, 0.6),
    "min_p": lambda z: de.min_p(z, 0.2),
    "typical": lambda z: de.typical(z, 0.4),
    "epsilon": lambda z: de.epsilon(z, 0.05),
    "eta": lambda z: de.eta(z, 0.05),
    "top_n_sigma": lambda z: de.top_n_sigma(z, 1.0),
}


@pytest.mark.parametrize("name", TRUNCATIONS)
def test_a_truncation_keeps_a_token_and_its_cost_is_that_of_the_lost_mass(name: str) -> None:
    made = TRUNCATIONS[name](Z)
    stays = made > NEVER
    assert stays.any(1).all()
    assert torch.equal(made[stays], Z[stays])
    p = Z.double().softmax(-1)
    mass = (p * stays).sum(1)
    told = de.distortion(Z.double(), made.double())
    torch.testing.assert_close(told.mass, mass)
    torch.testing.assert_close(told.tv, 1 - mass, rtol=0, atol=1e-12)
    torch.testing.assert_close(told.kl, -mass.log(), rtol=0, atol=1e-12)
    if name != "top_k":
        assert float(mass.min()) < 1 - 1e-3  # something was cut


@pytest.mark.parametrize("name", sorted(set(TRUNCATIONS) - {"top_k", "epsilon"}))
def test_a_constant_on_all_logits_changes_no_truncation(name: str) -> None:
    # Powers of two, so that the shift rounds nothing.
    z = (Z[:100] * 16).round() / 16
    shifted = TRUNCATIONS[name](z + 64.0)
    assert torch.equal(shifted == NEVER, TRUNCATIONS[name](z) == NEVER)


def test_top_n_sigma_keeps_the_same_tokens_at_each_temperature() -> None:
    z = torch.randn(50, V, generator=generator(3), dtype=torch.float64)
    kept = de.top_n_sigma(z, 1.3) > NEVER
    for T in (0.25, 0.7, 4.0):
        assert torch.equal(de.top_n_sigma(z / T, 1.3) > NEVER, kept)
        assert not torch.equal(de.top_p(z / T, 0.7) > NEVER, de.top_p(z, 0.7) > NEVER)
    naive = z >= z.amax(1, keepdim=True) - 1.3 * z.std(1, keepdim=True)
    assert torch.equal(kept, naive)
    # Forbidden tokens are no part of the deviation.
    wider = torch.cat([z, torch.full((50, 3), NEVER, dtype=torch.float64)], 1)
    assert torch.equal(de.top_n_sigma(wider, 1.3)[:, :V] > NEVER, kept)
    alone = torch.tensor([[NEVER, 2.0, NEVER]])
    assert torch.equal(de.top_n_sigma(alone, 1.0), alone)


def test_the_crossing_token_stays_by_hand() -> None:
    z = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert (de.top_p(z, 0.7) > NEVER).tolist() == [True, True, False, False]
    assert (de.typical(z, 0.7) > NEVER).tolist() == [True, True, False, False]
    # Entropy 1.142: the token of 0.3, surprise 1.204, is the nearest, and alone holds 0.2.
    assert (de.typical(z, 0.2) > NEVER).tolist() == [False, True, False, False]
    # A floor of 0.9 is no mass of 0.9.
    assert (de.min_p(z, 0.9) > NEVER).tolist() == [True, False, False, False]
    assert (de.top_p(z, 0.9) > NEVER).tolist() == [True, True, True, False]


def test_a_large_vocabulary_in_bfloat16_loses_nothing_of_its_tail() -> None:
    # 131,072 equal tokens: a running sum in bfloat16 would stop at 2**-9.
    z = torch.zeros(1, 2**17, dtype=torch.bfloat16)
    kept = (de.top_p(z, 0.75) > NEVER).sum()
    assert abs(int(kept) - 0.75 * 2**17) <= 2
    assert de.top_p(z, 0.75).dtype == torch.bfloat16


def test_temperature_zero_is_greedy_and_temperature_a_power() -> None:
    z = torch.randn(7, V, generator=generator(4), dtype=torch.float64)
    zero = de.temperature(z, 0)
    assert torch.equal((zero > NEVER).sum(1), torch.ones(7).long())
    assert torch.equal(zero.argmax(1), z.argmax(1))
    p = z.softmax(-1)
    power = p ** (1 / 0.6)
    torch.testing.assert_close(
        de.temperature(z, 0.6).softmax(-1), power / power.sum(1, keepdim=True)
    )


def test_presence_counts_once_and_frequency_each_time_and_the_prompt_not_at_all() -> None:
    ids = torch.tensor([[7, 7, 2, 4, 2, 2]])
    z = torch.randn(1, 11, generator=generator(5))
    said = history(ids, prompt=2)
    presence, frequency = (torch.zeros(1, 11) for _ in range(2))
    presence[0, [2, 4]] = 0.7
    frequency[0, 2], frequency[0, 4] = 3 * 0.7, 0.7
    torch.testing.assert_close(de.presence_penalty(z, 0.7, said), z - presence)
    torch.testing.assert_close(de.frequency_penalty(z, 0.7, said), z - frequency)


def test_a_penalty_of_negative_logits_does_not_reward_and_counts_once() -> None:
    z = torch.tensor([[-1.0, 2.0, 0.5]])
    made = de.repetition_penalty(z, 1.5, history(torch.tensor([[0, 0, 1]])))
    torch.testing.assert_close(made, torch.tensor([[-1.5, 2 / 1.5, 0.5]]))


@pytest.mark.parametrize(
    "penalty",
    [
        lambda z, h: de.repetition_penalty(z, 1.5, h),
        lambda z, h: de.presence_penalty(z, 0.5, h),
        lambda z, h: de.frequency_penalty(z, 0.5, h),
        lambda z, h: de.no_repeat_ngram(z, 2, h),
    ],
    ids=["repetition", "presence", "frequency", "n-grams"],
)
def test_padding_is_no_text(penalty: Callable[[Tensor, History], Tensor]) -> None:
    text = torch.tensor([[3, 1, 2, 3, 1]])
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), text], 1)
    real = torch.tensor([[False] * 4 + [True] * 5])
    z = torch.randn(1, 7, generator=generator(6))
    alone = penalty(z, history(text, prompt=2))
    assert torch.equal(penalty(z, history(padded, prompt=6, real=real)), alone)
    # Negative control: where zeros are tokens they are counted.
    behind = torch.cat([padded, torch.zeros(1, 1, dtype=torch.long)], 1)
    assert bool((penalty(z, history(behind, prompt=0))[:, 0] != z[:, 0]).all())


@pytest.fixture(scope="module")
def model() -> Decoder:
    torch.manual_seed(3)
    made = Decoder(
        TransformerConfig(vocab=23, dim=12, layers=2, heads=3, ff_dim=31, context=61, norm="rms")
    )
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.6, generator=generator(parameter.numel()))
    return made.double().eval()


def test_a_pipeline_plugs_into_the_loop_and_pads_change_nothing(model: Decoder) -> None:
    warp = de.Pipeline(no_repeat_ngram=2, repetition_penalty=1.1)
    g = generator(0)
    ids = torch.randint(1, 23, (1, 5), generator=g)
    alone = generate(model, ids, tokens=30, pick=sample(generator=g, temperature=0, warp=warp))
    text = torch.cat([ids, alone], 1)[0].tolist()
    pairs = list(pairwise(text))
    assert len(set(pairs)) == len(pairs)
    free = torch.cat([ids, generate(model, ids, tokens=30)], 1)[0].tolist()
    assert len(set(pairwise(free))) < 34  # without the rule it repeats
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    real = torch.tensor([[False] * 3 + [True] * 5])
    pick = sample(generator=g, temperature=0, warp=warp)
    assert torch.equal(generate(model, padded, real=real, tokens=30, pick=pick), alone)


def test_draws_have_the_probabilities_of_the_warped_logits() -> None:
    g = generator(2)
    z = torch.randn(1, 7, generator=g)
    warp = de.Pipeline(temperature=0.8, top_p=0.8)
    law = warp(z).softmax(-1)[0]
    n = 40_000
    pick: Any = sample(generator=g, warp=warp)
    counts = torch.bincount(pick(z.expand(n, -1), history(torch.zeros(n, 0).long())), minlength=7)
    assert torch.equal(counts > 0, law > 0)
    assert float((counts / n - law).abs().max()) < 5 * 0.5 / n**0.5
    assert 1 < int((law > 0).sum()) < 7


@given(st.integers(0, 10**6), st.floats(0.05, 0.99))
@settings(max_examples=40, deadline=None)
def test_a_nucleus_is_the_smallest_set_that_holds_its_mass(seed: int, mass: float) -> None:
    z = torch.randn(19, generator=generator(seed), dtype=torch.float64) * 2
    p = z.softmax(-1)
    kept = de.top_p(z, mass) > NEVER
    held = float(p[kept].sum())
    assert held >= mass - 1e-12
    assert held - float(p[kept].min()) < mass + 1e-12  # without the least likely it would not do
    assert float(p[kept].min()) >= float(torch.where(kept, 0.0, p).max())


def test_what_is_out_of_range_is_refused(own_checks: None) -> None:
    z = torch.zeros(2, 3)
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: de.temperature(z, -1.0), "temperature"),
        (lambda: de.top_k(z, 0), "k must be 1 or more"),
        (lambda: de.top_p(z, 0.0), "mass"),
        (lambda: de.min_p(z, 1.5), "floor"),
        (lambda: de.typical(z, 0.0), "mass"),
        (lambda: de.epsilon(z, 1.0), "cut"),
        (lambda: de.eta(z, 0.0), "cut"),
        (lambda: de.top_n_sigma(z, -0.1), "n must"),
        (lambda: de.repetition_penalty(z, 0.0, history(IDS[:2, :3] % 3)), "strength"),
        (lambda: de.presence_penalty(z, math.nan, history(IDS[:2, :3] % 3)), "strength"),
        (lambda: de.frequency_penalty(z, math.inf, history(IDS[:2, :3] % 3)), "strength"),
        (lambda: de.no_repeat_ngram(z, 0, history(IDS[:2, :3] % 3)), "n must be 1 or more"),
        (lambda: de.distortion(z, z[:1]), "same shape"),
        (lambda: de.Pipeline(top_q=0.5), "no step is called 'top_q'"),
        (lambda: de.Pipeline(top_k=2.5), "top_k counts tokens: give a whole number, not 2.5"),
        (lambda: de.repetition_penalty(z, 1.5, history(IDS[:1, :3] % 3)), "history.ids must have"),
        (lambda: de.no_repeat_ngram(z, 2, history(IDS[:1, :3] % 3)), "history.ids must have"),
        (lambda: de.Pipeline(presence_penalty=0.5)(z), "give history"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    assert repr(de.Pipeline(top_k=5.0, top_p=0.9)) == "Pipeline(top_k=5, top_p=0.9)"


@pytest.mark.parametrize("name", TRUNCATIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_truncation_hides_a_logit_that_is_no_number(name: str, bad: float) -> None:
    z = torch.tensor([[bad, 1.0, 2.0, 3.0, -1.0]])
    with pytest.raises(ValueError, match="largest logit"):
        greedy(TRUNCATIONS[name](z))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_tiny_temperature_is_the_limit_and_does_not_overflow(dtype: torch.dtype) -> None:
    z = torch.tensor([[3.0, 2.0, NEVER], [-5.0, -5.0, -7.0]], dtype=dtype)
    limit = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], dtype=dtype)
    for T in (1e-30, 1e-45, 1e-300):
        assert torch.equal(de.Pipeline(temperature=T, top_p=0.9)(z).softmax(-1), limit)


def test_all_forbidden_is_an_error_of_the_draw_and_no_silent_token() -> None:
    z = de.no_repeat_ngram(torch.zeros(1, 3), 1, history(torch.tensor([[0, 1, 2]])))
    with pytest.raises(ValueError, match="largest logit"):
        greedy(z)


def test_texts_in_numbers() -> None:
    assert de.distinct_ngrams([[1, 2, 3, 4], [5, 5, 5, 5]], 2) == (1 + 1 / 3) / 2
    assert de.distinct_ngrams([[1], [5, 6]], 2) == 1
    with pytest.raises(ValueError, match="give longer ones"):
        de.distinct_ngrams([[1]], 2)
    with pytest.raises(ValueError, match="different tokens"):
        de.zipf_exponent([[3, 3, 3]])
    # Counts 60/r: the exponent is 1; counts 900/r**2: it is 2.
    for power, top in ((1, 60), (2, 900)):
        text = [r for r in range(1, 6) for _ in range(top // r**power)]
        assert abs(de.zipf_exponent([text]) - power) < 1e-9 + 0.01 * (power == 2)
    few = de.zipf_exponent([[1] * 8 + [2] * 4 + [3] + [4] + [5]], ranks=2)
    assert abs(few - 1) < 1e-12
