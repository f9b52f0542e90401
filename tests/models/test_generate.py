"""Greedy writing: each token is the most likely one, whatever the cache and the padding."""

import pytest
import torch
from torch import Tensor

from companion.models import generate
from companion.transformer.block import Decoder, TransformerConfig

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
