"""Parts of texts: their log-probabilities add up, and belong to the right tokens."""

import math

import pytest
import torch

from companion.models import TextDecoder, smollm2
from companion.pretraining.autoregressive import text_log_probs
from companion.trust import fairness as fa


@pytest.fixture(scope="module")
def decoder() -> TextDecoder:
    return smollm2()


TEXTS = [
    ("The nurse said that ", "he", " was late."),
    ("The nurse said that ", "she", " was late."),
    ("", "Carpenters", " build houses, mostly."),
    ("A", " very", " unbelievableness"),
]


def test_parts_add_up_to_the_text_and_do_not_depend_on_the_batch(decoder: TextDecoder) -> None:
    made = fa.part_log_probs(decoder, TEXTS, batch_size=3)
    alone = fa.part_log_probs(decoder, TEXTS, batch_size=1)
    # float32 sums over 49,152 logits in another order.
    torch.testing.assert_close(made.log_probs, alone.log_probs, rtol=1e-4, atol=1e-4)
    assert torch.equal(made.tokens, alone.tokens)
    for row, text in zip(made.log_probs, TEXTS, strict=True):
        ids = decoder.tokenizer.encode("".join(text), add_special_tokens=False).ids  # type: ignore[union-attr]
        logs = text_log_probs(decoder.model, torch.tensor(ids), start=int(decoder.start or 0))
        assert float(row.sum()) == pytest.approx(float(logs.sum()), abs=1e-3)
    # What stands before the word is the same in both texts, and nothing comes before the third.
    assert float(made.log_probs[0, 0]) == pytest.approx(float(made.log_probs[1, 0]), abs=1e-4)
    assert int(made.tokens[2, 0]) == 0
    assert float(made.log_probs[2, 0]) == 0


def test_a_token_belongs_to_the_part_in_which_it_ends(decoder: TextDecoder) -> None:
    made = fa.part_log_probs(decoder, TEXTS[:2])
    ids = decoder.tokenizer.encode("The nurse said that he was late.").ids  # type: ignore[union-attr]
    assert made.tokens[0].tolist() == [4, 1, len(ids) - 5]
    logs = text_log_probs(decoder.model, torch.tensor(ids), start=int(decoder.start or 0))
    assert float(made.log_probs[0, 1]) == pytest.approx(float(logs[4]), abs=1e-4)


def test_scores_of_shares_and_counts() -> None:
    assert fa.icat(0.9, 0.6) == pytest.approx(0.72)
    assert fa.icat(1.0, 0.5) == 1
    assert fa.icat(1.0, 1.0) == fa.icat(1.0, 0.0) == 0
    made = fa.bbq_score(30, 10, 60)
    assert made == pytest.approx((0.5, 0.2))
    assert fa.bbq_score(10, 30, 60) == pytest.approx((-0.5, -0.2))
    assert math.isnan(fa.bbq_score(0, 0, 7).disambiguated)


@pytest.mark.usefixtures("own_checks")
def test_what_is_wrong_is_refused(decoder: TextDecoder) -> None:
    with pytest.raises(ValueError, match="at least one text"):
        fa.part_log_probs(decoder, [])
    with pytest.raises(ValueError, match="parts of a text must hold several texts"):
        fa.part_log_probs(decoder, ["one text"])
    with pytest.raises(ValueError, match=r"same number of parts.*\[1, 2\]"):
        fa.part_log_probs(decoder, [("a",), ("a", "b")])
    with pytest.raises(ValueError, match="a text is empty"):
        fa.part_log_probs(decoder, [("", "")])
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        fa.part_log_probs(decoder, [("a",)], batch_size=0)
    bare = TextDecoder(model=decoder.model)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        fa.part_log_probs(bare, [("a",)])
    with pytest.raises(ValueError, match="divide percents"):
        fa.icat(90, 0.5)
    with pytest.raises(ValueError, match="biased must be 0 or more"):
        fa.bbq_score(-1, 2, 3)
    with pytest.raises(ValueError, match="there is no answer"):
        fa.bbq_score(0, 0, 0)
