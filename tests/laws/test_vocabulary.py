"""One thing has one name in all public signatures."""

import inspect

import pytest

from .public import callables

# What others call it, and what this library does.
SYNONYMS = {
    "attention_mask": "real",
    "bs": "batch_size",
    "drop_rate": "p",
    "dropout_p": "p",
    "dropout_rate": "p",
    "fraction": "ratio",
    "input_ids": "ids",
    "mask_fraction": "ratio",
    "mask_prob": "ratio",
    "mask_rate": "ratio",
    "mask_ratio": "ratio",
    "minibatch": "batch_size",
    "padding_mask": "real",
    "pool": "pooling",
    "pool_type": "pooling",
    "share": "ratio",
    "token_ids": "ids",
}
# What may say rate: the mean of a Poisson number. A share of tokens is a ratio.
RATES = {"expected_infill_spans", "infill_lengths", "text_infilling"}


def taken() -> list[tuple[str, str]]:
    pairs = []
    for name, function in callables().items():
        try:
            names = inspect.signature(function).parameters
        except (ValueError, TypeError):
            continue
        pairs += [(name, parameter) for parameter in names]
    return pairs


TAKEN = taken()


@pytest.mark.parametrize(("synonym", "word"), SYNONYMS.items())
def test_no_argument_has_a_second_name(synonym: str, word: str) -> None:
    found = [name for name, parameter in TAKEN if parameter == synonym]
    assert not found, f"{', '.join(found)}: say {word} in place of {synonym}"


def test_a_rate_is_the_mean_of_a_poisson_number() -> None:
    assert {name for name, parameter in TAKEN if parameter == "rate"} == RATES


def test_the_words_are_in_use() -> None:
    # A law about words that nobody says holds of anything.
    words = {parameter for _, parameter in TAKEN}
    assert {*SYNONYMS.values(), "batch"} <= words
