"""Swapped words, counts of a corpus, and a model that avoids what it is told to."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion.models import History, generate, sample
from companion.transformer.block import Decoder, TransformerConfig
from companion.trust import debiasing as de


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        # faults: his is her or hers, her is his or him; the role decides.
        ("He took his hat.", "She took her hat."),
        ("The hat is his.", "The hat is hers."),
        ("I saw her.", "I saw him."),
        ("I saw her and left.", "I saw him and left."),
        ("It was her idea, not his.", "It was his idea, not hers."),
        ("We told him that she's late.", "We told her that he's late."),
        ("HE HURT HIMSELF", "SHE HURT HERSELF"),
        ("Nobody is here.", "Nobody is here."),
        ("", ""),
    ],
)
def test_pronouns_change_places_by_their_role(text: str, swapped: str) -> None:
    assert de.SwapLexicon().swap(text) == swapped


PAIRS = [("king", "queen"), ("actor", "actress"), ("man", "woman")]
KNOWN = st.sampled_from(
    ["king", "Queen", "ACTOR", "actress", "he", "She", "himself", "boat", "of", "'", ",", "42"]
)


@given(st.lists(KNOWN, max_size=12))
def test_a_swap_undoes_itself(words: list[str]) -> None:
    lexicon, text = de.SwapLexicon(PAIRS), " ".join(words)
    swapped = lexicon.swap(text)
    assert lexicon.swap(swapped) == text
    assert lexicon.counts(swapped) == lexicon.counts(text)[::-1]


def test_sides_are_counted() -> None:
    text = "He gave her his hat; the queen saw him and hers."
    assert de.SwapLexicon(PAIRS).counts(text) == (3, 3)
    assert de.SwapLexicon().counts(text) == (3, 2)


def test_a_lexicon_must_undo_itself(own_checks: None) -> None:
    with pytest.raises(ValueError, match="'queen' has more than one partner"):
        de.SwapLexicon([("king", "queen"), ("prince", "queen")])
    with pytest.raises(ValueError, match="'her' has more than one partner"):
        de.SwapLexicon([("her", "him")])
    with pytest.raises(ValueError, match="is its own"):
        de.SwapLexicon([("nurse", "nurse")])
    with pytest.raises(ValueError, match="'King' must be one word in lower case"):
        de.SwapLexicon([("King", "queen")])
    with pytest.raises(ValueError, match="must hold several texts"):
        de.SwapLexicon(["he"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="must have two words"):
        de.SwapLexicon([("a", "b", "c")])  # type: ignore[list-item]


def test_skew_by_hand() -> None:
    one, other = torch.tensor([9.0, 1.0, 0.0]), torch.tensor([3.0, 3.0, 0.0])
    made = de.log_skew(one, other, smoothing=1.0)
    want = [math.log((10 / 13) / (4 / 9)), math.log((2 / 13) / (4 / 9)), math.log(9 / 13)]
    torch.testing.assert_close(made, torch.tensor(want))
    torch.testing.assert_close(de.log_skew(other, one, smoothing=1.0), -made)


def test_amplification_by_hand() -> None:
    taught = torch.tensor([[67.0, 33.0], [20.0, 80.0], [50.0, 50.0]])
    said = torch.tensor([[84.0, 16.0], [10.0, 90.0], [70.0, 30.0]])
    # One half is no leaning, so the last item adds nothing and still counts.
    assert float(de.bias_amplification(taught, said)) == pytest.approx((0.17 + 0.10) / 3, abs=1e-6)
    assert float(de.bias_amplification(taught, taught)) == 0.0
    assert de.bias_amplification(taught.to("meta"), said.to("meta")).shape == ()
    with pytest.raises(ValueError, match="groups must be 2 or more"):
        de.bias_amplification(taught[:, :1], said[:, :1])


def test_what_becomes_likelier_is_made_less_likely(g: torch.Generator) -> None:
    z = torch.randn(3, 7, generator=g, dtype=torch.float64)
    told = torch.randn(3, 7, generator=g, dtype=torch.float64)
    held = z.clone(), told.clone()
    made = de.self_debias_logits(z, told, decay=7.0, floor=0.2).softmax(-1)
    p, q = z.softmax(-1), told.softmax(-1)
    want = torch.zeros_like(p)
    for row in range(3):
        for v in range(7):
            apart = float(p[row, v] - q[row, v])
            want[row, v] = p[row, v] * (1.0 if apart >= 0 else max(math.exp(7.0 * apart), 0.2))
    torch.testing.assert_close(made, want / want.sum(-1, keepdim=True), rtol=1e-12, atol=1e-14)
    assert torch.equal(z, held[0])
    assert torch.equal(told, held[1])
    torch.testing.assert_close(de.self_debias_logits(z, told, decay=0.0).softmax(-1), p)
    torch.testing.assert_close(de.self_debias_logits(z, z).softmax(-1), p)
    # No token becomes impossible, and what is impossible stays so.
    hard = de.self_debias_logits(z, 50 * told, decay=1e6, floor=0.01).softmax(-1)
    assert (hard > 0).all()
    z[0, 3] = -math.inf
    assert de.self_debias_logits(z, told)[0, 3] == -math.inf
    assert de.self_debias_logits(z.to("meta"), told.to("meta")).shape == z.shape


def a_decoder() -> Decoder:
    config = TransformerConfig(vocab=23, dim=12, layers=2, heads=3, ff_dim=13, context=31)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Decoder(config).eval()


def test_the_pick_writes_what_reading_twice_would() -> None:
    model = a_decoder()
    prompt, told = torch.tensor([[3, 1, 4], [1, 5, 9]]), torch.tensor([[2, 7, 1, 8]])
    other = torch.tensor([[6, 6]])
    written = generate(
        model, prompt, tokens=6, pick=de.SelfDebias(model, descriptions=[told, other], decay=30.0)
    )
    text = prompt
    with torch.no_grad():
        for _ in range(6):
            z = model(text)[:, -1]
            after = [
                model(torch.cat([d.expand(2, -1), text], 1))[:, -1].softmax(-1)
                for d in (told, other)
            ]
            p = z.softmax(-1)
            apart = (p - torch.maximum(*after)).clamp(max=0)
            scaled = p * (30.0 * apart).exp().clamp(min=0.01)
            text = torch.cat([text, scaled.argmax(-1, keepdim=True)], 1)
    assert torch.equal(written, text[:, 3:])
    plain = generate(model, prompt, tokens=6)
    assert not torch.equal(written, plain)
    off = de.SelfDebias(model, descriptions=[told], decay=0.0)
    assert torch.equal(generate(model, prompt, tokens=6, pick=off), plain)


def test_its_logits_can_be_drawn_from(g: torch.Generator) -> None:
    model = a_decoder()
    avoid = de.SelfDebias(model, descriptions=[torch.tensor([[2, 7]])])
    pick = sample(generator=g, warp=avoid.warp)
    assert generate(model, torch.tensor([[3, 1]]), tokens=5, pick=pick).shape == (1, 5)


def test_what_a_pick_refuses(own_checks: None) -> None:
    model = a_decoder()
    with pytest.raises(ValueError, match="descriptions must be 1 or more"):
        de.SelfDebias(model, descriptions=[])
    with pytest.raises(ValueError, match=r"a description must have shape \(1, \*\)"):
        de.SelfDebias(model, descriptions=[torch.tensor([1, 2])])
    with pytest.raises(ValueError, match="tokens of a description"):
        de.SelfDebias(model, descriptions=[torch.zeros(1, 0).long()])
    with pytest.raises(ValueError, match="floor must lie in"):
        de.self_debias_logits(torch.ones(3), torch.ones(3), floor=0.0)
    ids, yes = torch.tensor([[0, 3]]), torch.tensor([[False, True]])
    history = History(ids, 2, yes, torch.tensor([False]))
    with pytest.raises(ValueError, match="give prompts of one length"):
        de.SelfDebias(model, descriptions=[ids]).warp(torch.ones(1, 23), history)


def test_counts_are_counts() -> None:
    good = torch.tensor([3.0, 1.0])
    for bad, match in (([-3.0, 1.0], "0 or more"), ([float("nan"), 1.0], "must be finite")):
        with pytest.raises(ValueError, match=match):
            de.log_skew(good, torch.tensor(bad))
        with pytest.raises(ValueError, match=match):
            de.bias_amplification(torch.tensor([bad]), good[None])
    some, none = torch.tensor([[3.0, 1.0], [2.0, 5.0]]), torch.tensor([[3.0, 1.0], [0.0, 0.0]])
    for training, predicted, name in ((some, none, "predicted"), (none, some, "training")):
        with pytest.raises(ValueError, match=f"item 1 has no count in {name}"):
            de.bias_amplification(training, predicted)


def test_a_share_of_exactly_its_part_is_no_lean() -> None:
    # One in four of four groups: only the last group leans, and it loses three quarters.
    training, predicted = torch.tensor([[1.0, 0, 0, 3]]), torch.tensor([[4.0, 0, 0, 0]])
    assert float(de.bias_amplification(training, predicted)) == -0.75


def test_of_several_descriptions_the_likeliest_counts() -> None:
    model = a_decoder()
    prompt, told = torch.tensor([[3, 1, 4]]), torch.tensor([[2, 7, 1, 8]])
    other = torch.tensor([[6, 6]])
    seen: list[torch.Tensor] = []

    def choose(logits: torch.Tensor, _: History) -> torch.Tensor:
        seen.append(logits)
        return logits.argmax(-1)

    for order in ([told, other], [other, told]):
        pick = de.SelfDebias(model, descriptions=order, decay=30.0, then=choose)
        generate(model, prompt, tokens=1, pick=pick)
    with torch.no_grad():
        p, *after = (
            model(torch.cat([before, prompt], 1))[:, -1].softmax(-1)
            for before in (prompt[:, :0], told, other)
        )
    want = p * (30.0 * (p - torch.maximum(*after)).clamp(max=0)).exp().clamp(min=0.01)
    for logits in seen:
        torch.testing.assert_close(logits, want.log(), rtol=0, atol=1e-5)
