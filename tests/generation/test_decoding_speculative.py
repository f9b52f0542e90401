"""Speculative decoding is lossless: its texts have the joint law of the model alone."""

import math
from collections import Counter
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor

from companion.core import generator
from companion.generation import decoding as de
from companion.models import History, generate, sample
from companion.pretraining.autoregressive import initialize, llama_config
from companion.transformer.block import Decoder

V = 23


def random_model(seed: int, *, vocab: int = V, layers: int = 2, std: float = 0.6) -> Decoder:
    config = llama_config((layers, 12, 3), vocab=vocab, context=61, ff_dim=31)
    made = initialize(config, generator=generator(seed), dtype=torch.float64)
    for index, parameter in enumerate(made.parameters()):
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=std, generator=generator(seed + index))
    return made.eval()


@pytest.fixture(scope="module")
def model() -> Decoder:
    return random_model(3)


P, Q = (
    torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
)


def test_the_law_of_an_accepted_or_resampled_token_is_p_and_that_of_the_slips_is_not() -> None:
    # By hand: the sum over drafts of q(x) [accept] and q(x) [reject] residual(y).
    accept = torch.minimum(torch.ones(3).double(), P / Q)
    left = de.residual(P, Q)
    torch.testing.assert_close(left, torch.tensor([1.0, 0, 0], dtype=torch.float64))
    law = Q * accept + (Q * (1 - accept)).sum() * left
    torch.testing.assert_close(law, P)
    assert abs(float(de.acceptance(P, Q)) - 0.7) < 1e-12
    assert abs(float(de.acceptance(P, Q)) - (1 - 0.5 * float((P - Q).abs().sum()))) < 1e-12
    # A rejected token that is drawn from p and not from the residual: another law.
    from_p = Q * accept + (Q * (1 - accept)).sum() * P
    torch.testing.assert_close(from_p, torch.tensor([0.35, 0.39, 0.26], dtype=torch.float64))
    # Acceptance on equality alone: lossless, but it agrees in 0.31 of the cases only.
    assert abs(float((P * Q).sum()) - 0.31) < 1e-12
    assert de.residual(P, P).tolist() == P.tolist()  # nothing left, and never uniform


def test_what_is_left_is_a_law_in_half_precision_too() -> None:
    # 2**-14 is the least normal number of float16; what differs is below it.
    p = torch.tensor([2**-15, 1 - 2**-11, 2**-11 - 2**-15], dtype=torch.float16)
    q = torch.tensor([0.0, 1 - 2**-11, 2**-11], dtype=torch.float16)
    assert float((p - q).clamp(min=0).sum()) == 2**-15
    assert de.residual(p, q).tolist() == [1, 0, 0]


def test_draws_have_the_law_p_and_agree_as_often_as_can_be() -> None:
    g, n = generator(0), 60_000
    z, zq = P.log().expand(n, 3), Q.log().expand(n, 3)
    proposed = torch.multinomial(Q.expand(n, 3), 1, generator=g)[:, 0]
    made = de.speculative_draw(z, proposed, zq, generator=g)
    counts = torch.bincount(made.ids, minlength=3)
    assert scipy.stats.chisquare(counts, n * P).pvalue > 1e-4
    assert abs(float(made.accepted.double().mean()) - 0.7) < 5 * 0.5 / n**0.5
    assert torch.equal(made.ids[made.accepted], proposed[made.accepted])
    # What is told of q must be what drew: with a draft cut to two tokens and the full q the law
    # is another one.
    cut = de.top_k(Q.log(), 2)
    proposed = torch.multinomial(cut.softmax(-1).expand(n, 3), 1, generator=g)[:, 0]
    wrong = de.speculative_draw(z, proposed, zq, generator=g).ids
    assert scipy.stats.chisquare(torch.bincount(wrong, minlength=3), n * P).pvalue < 1e-6
    right = de.speculative_draw(z, proposed, cut.expand(n, 3), generator=g).ids
    assert scipy.stats.chisquare(torch.bincount(right, minlength=3), n * P).pvalue > 1e-4


def test_a_token_without_probability_is_never_drawn() -> None:
    g, n = generator(1), 20_000
    z = torch.tensor([0.0, -math.inf, 1.0]).expand(n, 3)
    proposed = torch.randint(0, 3, (n,), generator=g)
    made = de.speculative_draw(z, proposed, torch.zeros(n, 3), generator=g)
    assert not bool((made.ids == 1).any())
    assert not bool(made.accepted[proposed == 1].any())
    fixed = de.speculative_draw(z, proposed, None, generator=g)
    assert not bool((fixed.ids == 1).any())


WARPS: list[tuple[str, dict[str, float], dict[str, float]]] = [
    ("plain", {}, {}),
    ("target warped", {"temperature": 0.7, "top_p": 0.85}, {}),
    ("draft warped", {}, {"temperature": 0.6, "top_k": 2}),
    ("both", {"temperature": 1.3, "top_p": 0.9}, {"temperature": 0.8, "top_p": 0.8}),
    ("penalty", {"repetition_penalty": 1.4}, {"top_k": 3}),
]


def joint_law(model: Decoder, ids: Tensor, warp: de.Pipeline, tokens: int) -> Tensor:
    """Probabilities of all texts of so many tokens, in lexical order."""
    vocab = model.config.vocab
    every = torch.cartesian_prod(*[torch.arange(vocab)] * tokens)
    law = torch.ones(len(every), dtype=torch.float64)
    text = torch.cat([ids.expand(len(every), -1), every], 1)
    begin = ids.shape[1]
    with torch.no_grad():
        logits = model(text)
    ended = torch.zeros(len(every), dtype=torch.bool)
    for k in range(tokens):
        past = History(text[:, : begin + k], begin, None, ended)
        p = warp(logits[:, begin + k - 1], past).softmax(-1)
        law *= p.gather(1, every[:, k : k + 1])[:, 0]
    return law


def chi_square(counts: Tensor, law: Tensor) -> float:
    n = int(counts.sum())
    assert not bool(counts[law == 0].any()), "a text without probability was written"
    often = n * law >= 5
    observed = [*counts[often].tolist(), int(counts[~often].sum())]
    expected = [*(n * law[often]).tolist(), float(n * law[~often].sum())]
    if expected[-1] < 1:
        observed[-2:], expected[-2:] = [sum(observed[-2:])], [sum(expected[-2:])]
    return float(scipy.stats.chisquare(observed, expected, sum_check=False).pvalue)


@pytest.mark.parametrize(("target", "draft"), [w[1:] for w in WARPS], ids=[w[0] for w in WARPS])
@pytest.mark.parametrize("ahead", [1, 3])
def test_four_tokens_have_the_joint_law_of_the_model_alone(
    target: dict[str, float], draft: dict[str, float], ahead: int
) -> None:
    # Each row of the batch accepts what it accepts: 6,000 texts side by side, of which the loop
    # goes back for all as soon as one of them leaves its proposal; then in small batches.
    model, small = random_model(5, vocab=4), random_model(9, vocab=4, layers=1)
    ids = torch.tensor([[1, 3, 2]])
    warp = de.Pipeline(**target)
    law = joint_law(model, ids, warp, 4)
    g, h = generator(1), generator(2)
    counts = torch.zeros(4**4)
    agreed = tried = 0
    for rows in [6000, *[3] * 40]:
        proposer = de.DraftModel(small, generator=h, warp=de.Pipeline(**draft))
        fast = de.Speculative(model, proposer, ahead=ahead)
        pick = fast.pick(generator=g, warp=warp)
        written = generate(fast, ids.expand(rows, -1), tokens=4, pick=pick)
        place = (written * torch.tensor([64, 16, 4, 1])).sum(1)
        counts += torch.bincount(place, minlength=4**4)
        agreed, tried = agreed + fast.agreed, tried + fast.tried
    assert chi_square(counts, law) > 1e-4
    assert 0.1 < agreed / tried < 1
    # The test would see a law that is only a little off.
    flat = {"temperature": 1.0, **target}
    flat["temperature"] *= 1.15
    other = joint_law(model, ids, de.Pipeline(**flat), 4)
    assert chi_square(counts[law > 0], other[law > 0] / other[law > 0].sum()) < 1e-4


def test_single_texts_have_the_joint_law_too() -> None:
    model, small = random_model(5, vocab=3), random_model(9, vocab=3, layers=1)
    ids = torch.tensor([[1, 2, 2]])
    law = joint_law(model, ids, de.Pipeline(), 3)
    g, h = generator(3), generator(4)
    counts: Counter[tuple[int, ...]] = Counter()
    proposer = de.DraftModel(small, generator=h)
    fast = de.Speculative(model, proposer, ahead=2)
    for _ in range(400):
        counts[tuple(generate(fast, ids, tokens=3, pick=fast.pick(generator=g))[0].tolist())] += 1
    observed = torch.tensor([counts[a, b, c] for a in range(3) for b in range(3) for c in range(3)])
    assert chi_square(observed, law) > 1e-4
    # The rate of acceptance is that of the formula, averaged over the texts that were written.
    assert 0.3 < fast.agreed / fast.tried < 0.99


def test_prompt_lookup_has_the_joint_law_too() -> None:
    model = random_model(5, vocab=3)
    ids = torch.tensor([[1, 2, 0, 1, 2]])
    law = joint_law(model, ids, de.Pipeline(top_p=0.9), 3)
    g = generator(3)
    counts = torch.zeros(27)
    for _ in range(400):
        fast = de.Speculative(model, de.PromptLookup(), ahead=2)
        pick = fast.pick(generator=g, warp=de.Pipeline(top_p=0.9))
        a, b, c = generate(fast, ids, tokens=3, pick=pick)[0].tolist()
        counts[9 * a + 3 * b + c] += 1
    assert chi_square(counts, law) > 1e-4


@pytest.mark.parametrize("kind", ["lookup", "model", "fixed", "exit"])
@pytest.mark.parametrize("ahead", [1, 2, 5, 50])
def test_greedy_texts_are_those_of_the_model_alone(model: Decoder, kind: str, ahead: int) -> None:
    g = generator(0)
    drafts: dict[str, Any] = {
        "lookup": de.PromptLookup(longest=2),
        "model": de.DraftModel(random_model(8, layers=1), generator=g),
        "fixed": de.DraftModel(random_model(8, layers=1), generator=g, temperature=0),
        "exit": de.DraftModel(de.early_exit(model, 1), generator=g, temperature=0),
    }
    ids = torch.randint(0, V, (3, 7), generator=generator(1))
    fast = de.Speculative(model, drafts[kind], ahead=ahead)
    written = generate(fast, ids, tokens=29)
    assert torch.equal(written, generate(model, ids, tokens=29))
    assert fast.passes <= 29
    if kind == "lookup":  # one text that goes round
        fast = de.Speculative(model, de.PromptLookup(longest=2), ahead=ahead)
        alone = generate(fast, ids[:1].repeat(1, 3), tokens=29)
        assert torch.equal(alone, generate(model, ids[:1].repeat(1, 3), tokens=29))
        assert fast.passes < 29


def test_a_model_that_drafts_for_itself_is_always_right(model: Decoder) -> None:
    ids = torch.randint(0, V, (1, 5), generator=generator(1))
    draft = de.DraftModel(model, generator=generator(0), temperature=0)
    fast = de.Speculative(model, draft, ahead=4)
    assert torch.equal(generate(fast, ids, tokens=20), generate(model, ids, tokens=20))
    assert fast.passes == 4  # five tokens a pass
    drawn = de.DraftModel(model, generator=generator(0))
    fast = de.Speculative(model, drawn, ahead=4)
    generate(fast, ids, tokens=20, pick=fast.pick(generator=generator(1)))
    assert fast.agreed == fast.tried == 16
    assert fast.passes == 4


def test_padded_batches_write_what_each_text_writes_alone(model: Decoder) -> None:
    lengths = (9, 4, 7)
    rows = [torch.randint(0, 5, (1, n), generator=generator(n)) for n in lengths]
    ids, real = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.bool)
    for index, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        ids[index, 9 - n :], real[index, 9 - n :] = row[0], True
    for draft in (
        de.PromptLookup(),
        de.DraftModel(random_model(8, layers=1), generator=generator(0), temperature=0),
    ):
        together = generate(de.Speculative(model, draft), ids, real=real, tokens=17)
        for index, row in enumerate(rows):
            assert together[index].tolist() == generate(model, row, tokens=17)[0].tolist()


def test_stops_streams_long_texts_and_caches_are_those_of_the_loop(model: Decoder) -> None:
    ids = torch.randint(0, V, (2, 5), generator=generator(1))
    free = generate(model, ids, tokens=12)
    columns: list[Tensor] = []
    fast = de.Speculative(model, de.PromptLookup(longest=2))
    stop = [int(free[0, 3])]
    written = generate(fast, ids, tokens=12, stop=stop, stream=columns.append)
    assert torch.equal(written, generate(model, ids, tokens=12, stop=stop))
    assert torch.equal(torch.stack(columns, 1), written)
    # Past the context the last half is read again, and both go on alike.
    long = generate(de.Speculative(model, de.PromptLookup()), ids, tokens=90)
    assert torch.equal(long, generate(model, ids, tokens=90))
    small = de.DraftModel(random_model(8, layers=1), generator=generator(0), temperature=0)
    assert torch.equal(generate(de.Speculative(model, small), ids, tokens=90), long)
    # A given cache goes on where it was.
    fast = de.Speculative(model, de.PromptLookup())
    cache = fast.cache(2, 30)
    first = generate(fast, ids, tokens=4, cache=cache)
    more = generate(fast, first[:, -1:], tokens=8, cache=cache)
    assert torch.equal(torch.cat([first, more], 1), free)


def test_a_pick_does_not_take_an_old_proposal_for_the_next_text(model: Decoder) -> None:
    ids = torch.randint(0, V, (2, 5), generator=generator(1))
    fast = de.Speculative(model, de.DraftModel(random_model(8), generator=generator(0)), ahead=3)
    generate(fast, ids, tokens=3, pick=fast.pick(generator=generator(1)))
    # The plain model with this pick: what is left of the text before is no proposal for it.
    pick = fast.pick(generator=generator(2))
    plain = generate(model, ids, tokens=9, pick=sample(generator=generator(2)))
    assert torch.equal(generate(model, ids, tokens=9, pick=pick), plain)


class Failing:
    """A model or a draft that fails once, at its third call, when it has done its work."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.calls = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def count(self) -> None:
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt

    def __call__(self, *args: Any, **settings: Any) -> Tensor:
        made: Tensor = self.inner(*args, **settings)
        self.count()
        return made

    def propose(self, *args: Any) -> de.Proposal:
        made: de.Proposal = self.inner.propose(*args)
        self.count()
        return made


@pytest.mark.parametrize("where", ["model", "draft", "model of the draft"])
def test_after_an_error_writing_goes_on_as_if_there_had_been_none(
    model: Decoder, where: str
) -> None:
    ids = torch.randint(0, V, (2, 5), generator=generator(1))
    target, small = Failing(model), Failing(random_model(8, layers=1))
    draft = Failing(
        de.DraftModel(
            small if where == "model of the draft" else small.inner,
            generator=generator(0),
            temperature=0,
        )
    )
    fast = de.Speculative(
        target if where == "model" else model, draft if where == "draft" else draft.inner, ahead=3
    )
    cache, columns = fast.cache(2, 40), []
    with pytest.raises(KeyboardInterrupt):
        generate(fast, ids, tokens=20, cache=cache, stream=columns.append)
    text = torch.cat([ids, *[column[:, None] for column in columns]], 1)
    rest = text[:, cache.length :]
    written = generate(fast, rest, tokens=25 - text.shape[1], cache=cache)
    assert torch.equal(torch.cat([text, written], 1)[:, 5:], generate(model, ids, tokens=20))


def test_a_second_model_reads_anew_where_only_the_padding_differs(model: Decoder) -> None:
    weak = random_model(8, layers=1)
    ids = torch.tensor([[0, 0, 3, 4, 1]])
    real = torch.tensor([[False, False, True, True, True]])
    used = de.Contrast(weak)

    def write(warp: de.Contrast, mask: Tensor | None) -> Tensor:
        pick = sample(generator=generator(0), temperature=0, warp=warp)
        return generate(model, ids, tokens=9, pick=pick, real=mask)

    for mask in (None, real, None):
        assert torch.equal(write(used, mask), write(de.Contrast(weak), mask))
    assert not torch.equal(write(used, None), write(used, real))


def test_rows_that_have_ended_are_not_counted(model: Decoder) -> None:
    ids = torch.randint(0, V, (2, 5), generator=generator(1))
    stop = int(generate(model, ids, tokens=3)[0, 2])
    fast = de.Speculative(model, de.PromptLookup(longest=1), ahead=4)
    pick = fast.pick(generator=generator(3), warp=de.Pipeline(temperature=0))
    seen = set()

    def counted(logits: Tensor, history: History, /) -> Tensor:
        before = fast.tried, fast.agreed
        made: Any = pick(logits, history)
        going = int((~history.ended).sum())
        tried, agreed = fast.tried - before[0], fast.agreed - before[1]
        assert tried in (0, going)
        assert agreed <= tried
        seen.add((going, tried))
        return made

    generate(fast, ids, tokens=16, stop=[stop], pick=counted)
    assert {(1, 1), (2, 2)} <= seen


def test_a_draft_is_not_asked_for_nothing(model: Decoder) -> None:
    class Strict(de.PromptLookup):
        def propose(self, ids: Tensor, real: Tensor | None, ahead: int) -> de.Proposal:
            assert ahead > 0
            return super().propose(ids, real, ahead)

    ids = torch.randint(0, V, (2, 5), generator=generator(1))
    long = generate(de.Speculative(model, Strict()), ids, tokens=90)  # past the context
    assert torch.equal(long, generate(model, ids, tokens=90))


def test_beams_may_read_ahead_as_well(model: Decoder) -> None:
    ids = torch.randint(0, V, (2, 6), generator=generator(1))
    plain = de.beam_search(model, ids, tokens=7, beams=3)
    fast = de.beam_search(de.Speculative(model, de.PromptLookup()), ids, tokens=7, beams=3)
    assert torch.equal(plain.ids, fast.ids)
    torch.testing.assert_close(plain.scores, fast.scores)


def test_lookup_takes_the_latest_match_of_the_longest_suffix() -> None:
    text = torch.tensor([[7, 1, 2, 5, 9, 2, 6, 1, 2]])
    assert de.PromptLookup(longest=2).propose(text, None, 4).ids.tolist() == [[5, 9, 2, 6]]
    assert de.PromptLookup(longest=1).propose(text, None, 4).ids.tolist() == [[6, 1, 2, 6]]
    # Past the end of the text it goes round.
    again = torch.tensor([[4, 8, 4, 8]])
    assert de.PromptLookup().propose(again, None, 5).ids.tolist() == [[4, 8, 4, 8, 4]]
    new = torch.tensor([[1, 2, 3]])
    assert de.PromptLookup().propose(new, None, 4).ids.shape == (1, 0)
    assert de.PromptLookup().propose(new[:, :1], None, 4).ids.shape == (1, 0)
    # Padding matches nothing; a row without a match proposes what it ended with.
    padded = torch.tensor([[0, 3, 0, 5], [3, 0, 3, 6]])
    real = torch.tensor([[False, True, True, True], [True] * 4])
    rows = torch.cat([padded, torch.tensor([[0], [3]])], 1)
    real = torch.cat([real, torch.ones(2, 1, dtype=torch.bool)], 1)
    assert de.PromptLookup(longest=1).propose(rows, real, 2).ids.tolist() == [[5, 0], [6, 3]]
    only = torch.tensor([[0, 3, 4, 5, 0]])
    begin = torch.tensor([[False, True, True, True, True]])
    assert de.PromptLookup().propose(only, begin, 2).ids.shape == (1, 0)


def test_tokens_a_pass_by_sum_and_by_formula() -> None:
    assert abs(de.tokens_per_pass(0.8, 4) - (1 - 0.8**5) / 0.2) < 1e-12
    assert de.tokens_per_pass(1.0, 4) == 5
    assert de.tokens_per_pass(0.0, 4) == 1
    # Simulated: passes end with the first rejection.
    g = generator(0)
    hits = (torch.rand(100_000, 4, generator=g) < 0.6).int().cumprod(1).sum(1)
    assert abs(float(hits.double().mean()) + 1 - de.tokens_per_pass(0.6, 4)) < 0.02


def test_contrast_is_the_difference_where_the_strong_model_allows_it(model: Decoder) -> None:
    weak = random_model(8, layers=1)
    ids = torch.randint(0, V, (2, 5), generator=generator(1))
    written = generate(
        model,
        ids,
        tokens=9,
        pick=sample(generator=generator(0), temperature=0, warp=de.Contrast(weak, floor=0.2)),
    )
    for row in range(2):
        text = torch.cat([ids[row], written[row]])[None]
        with torch.no_grad():
            strong, less = model(text)[0, 4:-1], weak(text)[0, 4:-1]
        p = strong.softmax(-1)
        score = strong.log_softmax(-1) - less.log_softmax(-1)
        score[p < 0.2 * p.amax(-1, keepdim=True)] = -math.inf
        assert written[row].tolist() == score.argmax(-1).tolist()
    # With a floor of 1 only the likeliest token is left.
    pick = sample(generator=generator(0), temperature=0, warp=de.Contrast(weak, floor=1.0))
    assert torch.equal(generate(model, ids, tokens=9, pick=pick), generate(model, ids, tokens=9))


def test_an_early_exit_shares_the_weights_and_leaves_the_model_alone(model: Decoder) -> None:
    part = de.early_exit(model, 1)
    assert len(part.blocks) == 1
    assert len(model.blocks) == model.config.layers == 2
    assert part.blocks[0] is model.blocks[0]
    assert part.head.weight is model.head.weight
    whole = de.early_exit(model, 2)
    ids = torch.randint(0, V, (1, 5), generator=generator(1))
    with torch.no_grad():
        assert torch.equal(whole(ids), model(ids))
    with pytest.raises(ValueError, match="layers"):
        de.early_exit(model, 3)


def test_what_cannot_read_ahead_is_refused(model: Decoder, own_checks: None) -> None:
    fast = de.Speculative(model, de.PromptLookup())
    ids = torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="its own cache"):
        fast(ids)
    with pytest.raises(ValueError, match="its own cache"):
        fast(ids, cache=model.cache(1, 9), last=1)
    with pytest.raises(ValueError, match="ahead"):
        de.Speculative(model, de.PromptLookup(), ahead=0)
    with pytest.raises(ValueError, match="longest"):
        de.PromptLookup(longest=1, shortest=2)
    with pytest.raises(ValueError, match="temperature"):
        de.DraftModel(model, generator=generator(0), temperature=-1.0)
    with pytest.raises(ValueError, match="floor"):
        de.Contrast(model, floor=0.0)
    with pytest.raises(ValueError, match="accept"):
        de.tokens_per_pass(1.2, 3)
    with pytest.raises(ValueError, match="same shape"):
        de.acceptance(P, Q[:2])
    rows = P.log().expand(2, 3)
    with pytest.raises(ValueError, match="proposed must have shape"):
        de.speculative_draw(rows, torch.tensor([1]), rows, generator=generator(0))
    with pytest.raises(ValueError, match="logits and proposal must have the same shape"):
        de.speculative_draw(rows, torch.tensor([1, 4]), torch.zeros(2, 5), generator=generator(0))
