"""Greedy writing: each token is the most likely one, whatever the cache and the padding."""

import pytest
import torch
from torch import Tensor

from companion.models import History, NextToken, Pick, generate, greedy, sample
from companion.transformer.block import Decoder, EncoderDecoder, StreamingCache, TransformerConfig
from companion.transformer.multi_head import KVCache

CONFIG = TransformerConfig(
    vocab=23, dim=12, layers=3, heads=6, kv_heads=2, ff_dim=31, context=29, norm="rms", tied=False
)


@pytest.fixture(scope="module")
def model() -> Decoder:
    torch.manual_seed(3)
    made = Decoder(CONFIG).double()
    for parameter in made.parameters():  # wide, so that it does not repeat itself
        torch.nn.init.normal_(parameter, std=1.0)
    return made


def naive(model: Decoder, ids: Tensor, tokens: int) -> Tensor:
    """Read everything again at every step."""
    for _ in range(tokens):
        ids = torch.cat([ids, model(ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids[:, -tokens:]


def test_each_token_is_the_most_likely_one(model: Decoder, g: torch.Generator) -> None:
    ids = torch.randint(0, 23, (3, 7), generator=g)
    written = generate(model, ids, tokens=11)
    assert written.tolist() == naive(model, ids, 11).tolist()
    assert not written.is_inference()
    assert len(set(written.flatten().tolist())) > 5


def test_padding_on_the_left_changes_nothing(model: Decoder, g: torch.Generator) -> None:
    lengths = (7, 3, 5)
    rows = [torch.randint(0, 23, (1, n), generator=g) for n in lengths]
    ids, real = torch.zeros(3, 7, dtype=torch.long), torch.zeros(3, 7, dtype=torch.bool)
    for index, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        ids[index, 7 - n :], real[index, 7 - n :] = row[0], True
    together = generate(model, ids, real=real, tokens=9)
    for index, row in enumerate(rows):
        assert together[index].tolist() == generate(model, row, tokens=9)[0].tolist()
    # Negative control: unmarked padding is read, and changes what is written.
    assert generate(model, ids, tokens=9)[1].tolist() != together[1].tolist()


def test_a_sequence_ends_with_its_stop_token_and_stays_ended(
    model: Decoder, g: torch.Generator
) -> None:
    ids = torch.randint(0, 23, (2, 5), generator=g)
    free = generate(model, ids, tokens=12)
    stop = int(free[0, 3])
    written = generate(model, ids, tokens=12, stop=[stop])
    end = free[0].tolist().index(stop)
    assert written[0, : end + 1].tolist() == free[0, : end + 1].tolist()
    assert set(written[0, end:].tolist()) == {stop}
    first_only = generate(model, ids[:1], tokens=12, stop=[stop])
    assert first_only.shape == (1, end + 1)


def test_a_text_longer_than_the_context_goes_on_from_its_last_half(
    model: Decoder, g: torch.Generator
) -> None:
    ids = torch.randint(0, 23, (2, 4), generator=g)
    written = generate(model, ids, tokens=61)
    assert written.shape == (2, 61)
    text = torch.cat([ids, written], 1)
    begin = 0
    for place in range(4, 65):
        if place - begin > CONFIG.context:  # all of it was read, so the last half is read again
            begin = place - CONFIG.context // 2
        expected = model(text[:, begin:place])[:, -1].argmax(-1)
        assert text[:, place].tolist() == expected.tolist(), place
    assert begin > 0


def test_a_prompt_longer_than_the_context_is_read_from_its_end(
    model: Decoder, g: torch.Generator
) -> None:
    ids = torch.randint(0, 23, (1, 40), generator=g)
    written = generate(model, ids, tokens=3)
    assert torch.equal(written, generate(model, ids[:, -(CONFIG.context // 2) :], tokens=3))


def test_prompts_that_cannot_be_continued_are_refused(model: Decoder) -> None:
    ids = torch.ones(2, 3, dtype=torch.long)
    right = torch.tensor([[True, True, True], [True, True, False]])
    with pytest.raises(ValueError, match="padded on the left"):
        generate(model, ids, real=right, tokens=2)
    with pytest.raises(ValueError, match="padded on the left"):
        generate(model, ids, real=torch.zeros(2, 3, dtype=torch.bool), tokens=2)
    with pytest.raises(ValueError, match="tokens of the prompt must be 1 or more"):
        generate(model, ids[:, :0], tokens=2)
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 23\), got 23"):
        generate(model, ids + 22, tokens=2)
    with pytest.raises(ValueError, match=r"stop must lie in \[0, 23\), got 99"):
        generate(model, ids, tokens=2, stop=[99])


# --- picks, caches, streams -----------------------------------------------------------------------


def test_a_pick_sees_the_text_so_far_and_may_use_it(model: Decoder, g: torch.Generator) -> None:
    ids = torch.randint(0, 23, (3, 5), generator=g)
    seen: list[list[list[int]]] = []

    def never_twice(logits: Tensor, history: History) -> Tensor:
        """Forbid what stands in the text: a penalty of repetition without end."""
        assert history.prompt == 5
        assert history.real is None
        seen.append(history.written.tolist())
        return greedy(logits.scatter(1, history.ids, -torch.inf))

    pick: Pick = never_twice
    written = generate(model, ids, tokens=11, pick=pick)
    for row in torch.cat([ids[:, :0], written], 1).tolist():
        assert len(set(row)) == 11
    assert not bool((written[:, :, None] == ids[:, None]).any())
    assert seen == [written[:, :k].tolist() for k in range(11)]


def test_columns_are_streamed_as_they_are_written(model: Decoder, g: torch.Generator) -> None:
    ids = torch.randint(0, 23, (2, 5), generator=g)
    free = generate(model, ids, tokens=7)
    columns: list[Tensor] = []
    stop = [int(free[0, 2])]
    written = generate(model, ids, tokens=7, stop=stop, stream=columns.append)
    assert torch.equal(torch.stack(columns, 1), written)


def test_a_given_cache_is_filled_and_goes_on_where_it_was(
    model: Decoder, g: torch.Generator
) -> None:
    ids = torch.randint(0, 23, (2, 5), generator=g)
    expected = generate(model, ids, tokens=9)
    cache = model.cache(2, 13)
    first = generate(model, ids, tokens=4, cache=cache)
    assert cache.length == 8  # the last token was not read
    more = generate(model, first[:, -1:], tokens=5, cache=cache)
    assert torch.equal(torch.cat([first, more], 1), expected)
    with pytest.raises(ValueError, match="at most 13 positions"):
        generate(model, more[:, -1:], tokens=3, cache=cache)


def test_a_streaming_cache_writes_without_end(model: Decoder, g: torch.Generator) -> None:
    ids = torch.randint(0, 23, (2, 11), generator=g)
    sinks, window = 2, 5
    cache = StreamingCache.for_model(model, 2, sinks=sinks, window=window)
    written = generate(model, ids, tokens=41, cache=cache)
    # The same by hand, one token a step: what fits at first, then one at a time.
    other = StreamingCache.for_model(model, 2, sinks=sinks, window=window)
    text = torch.cat([ids, written], 1)
    logits = model(ids[:, : sinks + window], cache=other, last=1)
    for place in range(sinks + window, 52):
        if place >= 11:
            assert text[:, place].tolist() == logits[:, -1].argmax(-1).tolist(), place
        logits = model(text[:, place : place + 1], cache=other, last=1)
    real = torch.ones_like(ids, dtype=torch.bool)
    real[0, 0] = False
    cache.reset()
    with pytest.raises(ValueError, match="a cache of their own"):
        generate(model, ids, tokens=41, cache=cache, real=real)


def test_beam_search_is_a_pick(model: Decoder, g: torch.Generator) -> None:
    # With as many beams as there are texts of two tokens the search is exhaustive.
    beams, steps = 23 * 23, 3
    ids = torch.randint(0, 23, (1, 5), generator=g)

    class Beams:
        """Rows are the beams of one text, the best first."""

        scores = torch.full((beams,), -torch.inf, dtype=torch.float64)

        def __init__(self) -> None:
            self.scores[0] = 0.0  # all rows are alike at first: only one of them may go on

        def __call__(self, logits: Tensor, history: History) -> tuple[Tensor, Tensor]:
            total = (self.scores[:, None] + logits.log_softmax(-1)).flatten()
            best = total.topk(beams)
            self.scores = best.values
            return best.indices % 23, best.indices // 23

    pick = Beams()
    found = generate(model, ids.expand(beams, -1), tokens=steps, pick=pick)
    every = torch.cartesian_prod(*[torch.arange(23)] * steps)
    with torch.no_grad():
        score = torch.zeros(len(every), dtype=torch.float64)
        for part in torch.arange(len(every)).split(1000):
            text = torch.cat([ids.expand(len(part), -1), every[part]], 1)
            logs = model(text)[:, 4:-1].log_softmax(-1)
            score[part] = logs.gather(2, every[part][..., None])[..., 0].sum(1)
    assert found[0].tolist() == every[score.argmax()].tolist()
    torch.testing.assert_close(pick.scores[0], score.max())


def test_an_encoder_decoder_writes_as_if_it_read_all_again(g: torch.Generator) -> None:
    torch.manual_seed(3)
    made = EncoderDecoder(CONFIG).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    source = torch.randint(0, 23, (3, 7), generator=g)
    real = torch.ones(3, 7, dtype=torch.bool)
    real[1, 4:] = False
    begin = torch.tensor([[2], [2], [2]])
    written = generate(made, begin, tokens=11, source=source, source_real=real)
    text = begin
    for _ in range(11):
        logits = made(source, text, source_real=real)[:, -1]
        text = torch.cat([text, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(written, text[:, 1:])
    assert len(set(written.flatten().tolist())) > 3
    pair = made.cache(3, 12, source=7)
    again = generate(made, begin, tokens=11, source=source, source_real=real, cache=pair)
    assert torch.equal(again, written)

    def swap(logits: Tensor, history: History) -> tuple[Tensor, Tensor]:
        rows = torch.tensor([2, 1, 0])
        return logits.argmax(-1)[rows], rows

    # Rows that change places take their source along: after an even number all is as it was.
    swapped = generate(made, begin, tokens=10, source=source, source_real=real, pick=swap)
    assert torch.equal(swapped, written[:, :10])
    for wrong, said in (
        ({"source": None}, "needs a source to read"),
        ({"source": source, "tokens": 29}, "exceeds the model's context of 29"),
        ({"source": source, "cache": pair[0]}, "a pair of caches"),
    ):
        with pytest.raises(ValueError, match=said):
            generate(made, begin, **{"tokens": 3, **wrong})


def test_what_a_loop_cannot_use_is_refused(model: Decoder) -> None:
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="a decoder reads no source"):
        generate(model, ids, tokens=2, source=ids)
    with pytest.raises(ValueError, match="a decoder takes one cache"):
        generate(model, ids, tokens=2, cache=(model.cache(2, 5), model.cache(2, 5)))
    with pytest.raises(ValueError, match="what a pick returns"):
        generate(model, ids, tokens=2, pick=lambda logits, history: logits.argmax(-1)[:1])
    with pytest.raises(ValueError, match="a pick must return ids"):
        generate(model, ids, tokens=2, pick=lambda logits, history: logits[:, 0])


def test_writing_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        made = Decoder(CONFIG)
        ids = torch.zeros(2, 3, dtype=torch.long)
    assert generate(made, ids, tokens=5).shape == (2, 5)


class Cooled:
    """A model of no class of ours: it has what the loop needs."""

    def __init__(self, model: Decoder, temperature: float) -> None:
        self.model, self.temperature, self.config = model, temperature, model.config

    def cache(self, batch: int, capacity: int) -> KVCache:
        return self.model.cache(batch, capacity)

    def __call__(
        self,
        ids: Tensor,
        *,
        real: Tensor | None = None,
        cache: KVCache | None = None,
        last: int | None = None,
    ) -> Tensor:
        scored: Tensor = self.model(ids, real=real, cache=cache, last=last) / self.temperature
        return scored


def test_a_model_of_another_class_writes_as_well(model: Decoder, g: torch.Generator) -> None:
    other = Cooled(model, 2.0)
    assert isinstance(other, NextToken)
    assert isinstance(model, NextToken)
    ids = torch.randint(0, 23, (3, 5), generator=g)
    assert torch.equal(generate(other, ids, tokens=9), generate(model, ids, tokens=9))

    def drawn(source: NextToken, temperature: float) -> Tensor:
        pick = sample(generator=torch.Generator().manual_seed(1), temperature=temperature)
        return generate(source, ids, tokens=9, pick=pick)

    assert torch.equal(drawn(other, 1.0), drawn(model, 2.0))
    assert not torch.equal(drawn(other, 1.0), drawn(model, 1.0))


def test_a_warp_changes_the_logits_before_the_draw(model: Decoder, g: torch.Generator) -> None:
    ids = torch.randint(0, 23, (2, 5), generator=g)
    seen: list[int] = []

    def only_even(logits: Tensor, history: History) -> Tensor:
        seen.append(history.written.shape[1])
        odd = torch.arange(logits.shape[1]) % 2 == 1
        return logits.masked_fill(odd, -torch.inf)

    written = generate(model, ids, tokens=7, pick=sample(generator=g, warp=only_even))
    assert not bool((written % 2).any())
    assert seen == list(range(7))
