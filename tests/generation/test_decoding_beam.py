"""Beam search: that of transformers in sequences and scores, exhaustive where it can be."""

import math
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from companion.core import generator
from companion.generation import decoding as de
from companion.models import TextDecoder, generate, load_pretrained
from companion.transformer.block import Decoder, EncoderDecoder, TransformerConfig

V = 13


@pytest.fixture(scope="module")
def pair(tmp_path_factory: Any) -> tuple[Decoder, Any]:
    """One small random GPT-2 as ours and as theirs, with peaked and varied predictions."""
    config = GPT2Config(vocab_size=V, n_positions=64, n_embd=24, n_layer=2, n_head=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs: Any = GPT2LMHeadModel(config)
        theirs.eval()
        for parameter in theirs.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.35)
    folder = tmp_path_factory.mktemp("gpt2")
    theirs.save_pretrained(folder)
    read = load_pretrained(folder)
    assert isinstance(read, TextDecoder)
    return read.model, theirs


@pytest.mark.parametrize("early", [False, True, "never"])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0, -0.7])
@pytest.mark.parametrize("beams", [1, 2, 3, 5])
def test_sequences_and_scores_are_those_of_transformers(
    pair: tuple[Decoder, Any], beams: int, alpha: float, early: bool | Literal["never"]
) -> None:
    ours, theirs = pair
    ids = torch.randint(1, V, (7, 5), generator=generator(1))
    if beams == 1:  # theirs does not search with one beam: it is greedy
        found = de.beam_search(ours, ids, tokens=11, beams=1, stop=[0])
        plain = generate(ours, ids, tokens=11, stop=[0])
        assert torch.equal(found.ids[:, 0], plain[:, : found.ids.shape[2]])
        return
    for stop in ([0], [0, 4]):
        made = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=11,
            length_penalty=alpha,
            early_stopping=early,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        found = de.beam_search(
            ours, ids, tokens=11, beams=beams, length_penalty=alpha, early_stopping=early, stop=stop
        )
        expected = made.sequences[:, 5:].view(7, beams, -1)
        scores = made.sequences_scores.view(7, beams)
        torch.testing.assert_close(found.scores, scores, rtol=1e-4, atol=1e-5)
        assert found.ids.shape == expected.shape
        for row in range(7):
            for beam in range(beams):
                n = int(found.lengths[row, beam])
                text = found.ids[row, beam]
                assert text[:n].tolist() == expected[row, beam, :n].tolist()
                assert set(text[n - 1 :].tolist()) == {int(text[n - 1])}
        assert int(found.lengths.min()) < 11  # some texts ended before


def test_a_score_is_the_log_probability_of_its_text(pair: tuple[Decoder, Any]) -> None:
    model, _ = pair
    ids = torch.randint(1, V, (3, 4), generator=generator(2))
    found = de.beam_search(model, ids, tokens=9, beams=4, length_penalty=0.6, stop=[0])
    for row in range(3):
        for text, n, score in zip(
            found.ids[row], found.lengths[row], found.scores[row], strict=True
        ):
            whole = torch.cat([ids[row], text[:n]])[None]
            with torch.no_grad():
                logs = model(whole[:, :-1])[0, 3:].log_softmax(-1)
            total = float(logs.gather(1, text[:n, None]).sum())
            assert abs(total / int(n) ** 0.6 - float(score)) < 1e-4


def test_padding_on_the_left_changes_no_beam(pair: tuple[Decoder, Any]) -> None:
    model, _ = pair
    g = generator(3)
    rows = [torch.randint(1, V, (1, n), generator=g) for n in (6, 3, 5)]
    ids, real = torch.zeros(3, 6, dtype=torch.long), torch.zeros(3, 6, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, 6 - row.shape[1] :], real[index, 6 - row.shape[1] :] = row[0], True
    setting: dict[str, Any] = {"tokens": 8, "beams": 3, "length_penalty": 1.0, "stop": [0]}
    together = de.beam_search(model, ids, real=real, **setting)
    for index, row in enumerate(rows):
        alone = de.beam_search(model, row, **setting)
        torch.testing.assert_close(together.scores[index], alone.scores[0], rtol=1e-4, atol=1e-5)
        assert torch.equal(together.lengths[index], alone.lengths[0])
        for beam, n in enumerate(alone.lengths[0].tolist()):
            assert together.ids[index, beam, :n].tolist() == alone.ids[0, beam, :n].tolist()
    other = de.beam_search(model, ids, **setting)  # unmarked padding is read
    assert not torch.allclose(other.scores[1], together.scores[1])


def every_text(model: Any, ids: Tensor, tokens: int, stop: int) -> dict[tuple[int, ...], float]:
    """Log-probabilities of all texts that end with the stop token."""
    made: dict[tuple[int, ...], float] = {}
    open_texts: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for _ in range(tokens):
        after = []
        for text, score in open_texts:
            whole = torch.cat([ids, torch.tensor(text, dtype=torch.long)])[None]
            with torch.no_grad():
                logs = model(whole, last=1)[0, -1].double().log_softmax(-1).tolist()
            for token, value in enumerate(logs):
                new = (*text, token)
                if token == stop:
                    made[new] = score + value
                else:
                    after.append((new, score + value))
        open_texts = after
    return made


def small(vocab: int = 4) -> Decoder:
    torch.manual_seed(5)
    made = Decoder(TransformerConfig(vocab=vocab, dim=12, layers=1, heads=3, ff_dim=13, context=17))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.7, generator=generator(parameter.numel()))
    return made.double().eval()


def test_exact_search_finds_the_mode_and_proves_it() -> None:
    model, found_short = small(), 0
    for seed in range(12):
        ids = torch.randint(1, 4, (3,), generator=generator(seed))
        every = every_text(model, ids, 5, 0)
        best = max(every, key=lambda text: every[text])
        mode = de.exact_search(model, ids, stop=0, tokens=5, batch_size=3)
        assert mode.proven
        assert tuple(mode.ids.tolist()) == best
        assert abs(mode.log_prob - every[best]) < 1e-9
        assert mode.reads < 3**5  # it does not look at everything
        found_short += len(best) < 3
    assert found_short > 0


def test_exact_search_says_when_it_gives_up() -> None:
    model = small(11)
    ids = torch.tensor([1, 2, 3])
    given_up = de.exact_search(model, ids, stop=0, tokens=9, reads=2, batch_size=1)
    assert not given_up.proven
    assert given_up.reads == 2
    # The mode of one token is to end at once.
    one = de.exact_search(model, ids, stop=0, tokens=1)
    assert one.ids.tolist() == [0]
    assert one.proven


def test_a_beam_as_wide_as_the_world_finds_the_best_text_and_a_narrow_one_may_not() -> None:
    model, missed = small(), 0
    for seed in range(12):
        ids = torch.randint(1, 4, (1, 3), generator=generator(seed))
        mode = de.exact_search(model, ids[0], stop=0, tokens=4)
        setting: dict[str, Any] = {"tokens": 4, "length_penalty": 0.0, "early_stopping": "never"}
        free = de.beam_search(model, ids, beams=4**4, **setting)  # every text of four tokens
        wide, narrow = (
            de.beam_search(model, ids, beams=beams, stop=[0], **setting) for beams in (4**3, 1)
        )
        # Texts that end, and texts of four tokens that do not: the likelier one.
        open_ended = [
            float(score)
            for text, score in zip(free.ids[0].tolist(), free.scores[0], strict=True)
            if 0 not in text
        ]
        best = max(mode.log_prob, *open_ended)
        assert abs(float(wide.scores[0, 0]) - best) < 1e-9
        assert float(narrow.scores[0, 0]) <= best + 1e-9
        missed += float(narrow.scores[0, 0]) < best - 1e-9
    assert missed > 0


def naive_groups(
    model: Decoder, ids: Tensor, tokens: int, width: int, groups: int, diversity: float
) -> list[list[tuple[float, list[int]]]]:
    """Diverse beams in lists, without an end token."""
    beams: list[list[tuple[float, list[int]]]] = [[(0.0, [])] for _ in range(groups)]
    for _ in range(tokens):
        taken = [0.0] * model.config.vocab
        for index in range(groups):
            after = []
            for score, text in beams[index]:
                whole = torch.cat([ids, torch.tensor(text, dtype=torch.long)])[None]
                with torch.no_grad():
                    logs = model(whole, last=1)[0, -1].log_softmax(-1).tolist()
                after += [
                    (score + value - diversity * taken[token], [*text, token])
                    for token, value in enumerate(logs)
                ]
            beams[index] = sorted(after, reverse=True)[:width]
            for _, text in beams[index]:
                taken[text[-1]] += 1
    return beams


@pytest.mark.parametrize("diversity", [0.0, 0.8, 5.0])
def test_groups_are_pushed_apart_by_what_earlier_groups_took(diversity: float) -> None:
    model = small(7)
    ids = torch.tensor([[1, 2, 3]])
    found = de.beam_search(
        model, ids, tokens=4, beams=6, groups=3, diversity=diversity, length_penalty=0.0
    )
    naive = [one for group in naive_groups(model, ids[0], 4, 2, 3, diversity) for one in group]
    naive.sort(key=lambda one: -one[0])
    torch.testing.assert_close(
        found.scores[0], torch.tensor([score for score, _ in naive], dtype=torch.float64)
    )
    texts = {tuple(text) for text in found.ids[0].tolist()}
    assert texts == {tuple(text) for _, text in naive}
    assert (len(texts) == 2) == (diversity == 0.0)


def test_an_encoder_decoder_searches_as_a_decoder_does() -> None:
    torch.manual_seed(7)
    config = TransformerConfig(vocab=5, dim=12, layers=1, heads=3, ff_dim=13, context=17)
    model = EncoderDecoder(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7, generator=generator(parameter.numel()))
    source = torch.randint(0, 5, (2, 6), generator=generator(1))
    start = torch.zeros(2, 1, dtype=torch.long)
    found = de.beam_search(model, start, tokens=2, beams=5, length_penalty=0.0, source=source)
    every = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    for row in range(2):
        target = torch.cat([torch.zeros(25, 1, dtype=torch.long), every], 1)
        with torch.no_grad():
            logs = model(source[row].expand(25, -1), target[:, :-1]).log_softmax(-1)
        scores = logs.gather(2, every[..., None])[..., 0].sum(1)
        assert found.ids[row, 0].tolist() == every[scores.argmax()].tolist()
        torch.testing.assert_close(found.scores[row], scores.topk(5).values)


def test_a_warp_changes_what_is_searched(pair: tuple[Decoder, Any]) -> None:
    model, _ = pair
    ids = torch.randint(1, V, (2, 5), generator=generator(4))
    free = de.beam_search(model, ids, tokens=20, beams=3)
    bound = de.beam_search(model, ids, tokens=20, beams=3, warp=de.Pipeline(no_repeat_ngram=2))
    for row, beam in ((r, b) for r in range(2) for b in range(3)):
        text = [*ids[row].tolist(), *bound.ids[row, beam].tolist()]
        pairs = list(pairwise(text))
        assert len(pairs) == len(set(pairs))
    assert not torch.equal(free.ids, bound.ids)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_search_refuses_a_model_that_gives_no_distribution(
    pair: tuple[Decoder, Any], bad: float
) -> None:
    class Broken:
        config, cache = pair[0].config, staticmethod(pair[0].cache)

        def __call__(self, ids: Tensor, **settings: Any) -> Tensor:
            logits = pair[0](ids, **settings)
            logits[:, -1, 1] = bad
            return torch.full_like(logits, bad) if bad == -math.inf else logits

    broken: Any = Broken()
    ids = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="largest logit"):
        de.beam_search(broken, ids, tokens=3, beams=2)
    with pytest.raises(ValueError, match="largest logit"):
        de.exact_search(broken, ids[0], stop=0, tokens=3)


def test_searches_that_cannot_be_are_refused(pair: tuple[Decoder, Any]) -> None:
    model, _ = pair
    ids = torch.ones(1, 3, dtype=torch.long)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"beams": 0}, "beams must be 1 or more"),
        ({"beams": 3, "groups": 2}, "multiple of groups, got 3 and 2"),
        ({"beams": 2, "length_penalty": math.inf}, "length_penalty"),
        ({"beams": 2, "diversity": -1.0}, "diversity"),
    ]
    for setting, message in wrong:
        with pytest.raises(ValueError, match=message):
            de.beam_search(model, ids, tokens=3, **setting)
    with pytest.raises(ValueError, match="and a text of 63 exceed the model's context of 64"):
        de.exact_search(model, ids[0], stop=0, tokens=63)
    with pytest.raises(ValueError, match="stop must lie in"):
        de.exact_search(model, ids[0], stop=99, tokens=3)
    with pytest.raises(ValueError, match="tokens of the prompt"):
        de.exact_search(model, ids[0, :0], stop=0, tokens=3)
