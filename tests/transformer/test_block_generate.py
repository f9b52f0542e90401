"""Greedy writing: each token is the most likely one, whatever the cache and the padding."""

import pytest
import torch
from torch import Tensor

from companion.transformer.block import Decoder, TransformerConfig, greedy

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
    written = greedy(model, ids, tokens=11)
    assert written.tolist() == naive(model, ids, 11).tolist()
    assert not written.is_inference()
    assert len(set(written.flatten().tolist())) > 5


def test_padding_on_the_left_changes_nothing(model: Decoder, g: torch.Generator) -> None:
    lengths = (7, 3, 5)
    rows = [torch.randint(0, 23, (1, n), generator=g) for n in lengths]
    ids, real = torch.zeros(3, 7, dtype=torch.long), torch.zeros(3, 7, dtype=torch.bool)
    for index, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        ids[index, 7 - n :], real[index, 7 - n :] = row[0], True
    together = greedy(model, ids, real=real, tokens=9)
    for index, row in enumerate(rows):
        assert together[index].tolist() == greedy(model, row, tokens=9)[0].tolist()
    # Negative control: unmarked padding is read, and changes what is written.
    assert greedy(model, ids, tokens=9)[1].tolist() != together[1].tolist()


def test_a_sequence_ends_with_its_stop_token_and_stays_ended(
    model: Decoder, g: torch.Generator
) -> None:
    ids = torch.randint(0, 23, (2, 5), generator=g)
    free = greedy(model, ids, tokens=12)
    stop = int(free[0, 3])
    written = greedy(model, ids, tokens=12, stop=[stop])
    end = free[0].tolist().index(stop)
    assert written[0, : end + 1].tolist() == free[0, : end + 1].tolist()
    assert set(written[0, end:].tolist()) == {stop}
    first_only = greedy(model, ids[:1], tokens=12, stop=[stop])
    assert first_only.shape == (1, end + 1)


def test_writing_fills_the_context_and_no_more(model: Decoder) -> None:
    ids = torch.ones(1, 4, dtype=torch.long)
    assert greedy(model, ids, tokens=25).shape == (1, 25)
    with pytest.raises(ValueError, match=r"4 tokens of the prompt and 26 new .* of 29"):
        greedy(model, ids, tokens=26)


def test_prompts_that_cannot_be_continued_are_refused(model: Decoder) -> None:
    ids = torch.ones(2, 3, dtype=torch.long)
    right = torch.tensor([[True, True, True], [True, True, False]])
    with pytest.raises(ValueError, match="padded on the left"):
        greedy(model, ids, real=right, tokens=2)
    with pytest.raises(ValueError, match="padded on the left"):
        greedy(model, ids, real=torch.zeros(2, 3, dtype=torch.bool), tokens=2)
    with pytest.raises(ValueError, match="tokens of the prompt must be 1 or more"):
        greedy(model, ids[:, :0], tokens=2)
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 23\), got 23"):
        greedy(model, ids + 22, tokens=2)
    with pytest.raises(ValueError, match=r"stop must lie in \[0, 23\), got 99"):
        greedy(model, ids, tokens=2, stop=[99])
