"""Pseudo-log-likelihoods, and baselines that count."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from companion.core import generator
from companion.foundations.language_models import NGramModel
from companion.models import load_pretrained
from companion.pretraining.masked import (
    BertForPreTraining,
    FillIn,
    kneser_ney_chain,
    pseudo_log_likelihood,
)
from companion.pretraining.masked._fill_in import fill_in_features, fit_exponents
from companion.transformer.block import Learned, TransformerConfig

VOCAB, MASK = 31, 3
CONFIG = TransformerConfig(
    vocab=VOCAB,
    dim=12,
    layers=2,
    heads=3,
    ff_dim=17,
    context=19,
    norm_place="post",
    positions=Learned(),
    embedding_norm=True,
    segments=2,
)


def spread(model: Any) -> Any:
    g = generator(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=g))
    return model.double()


def texts(batch: int, n: int, seed: int = 0) -> Tensor:
    return torch.randint(4, VOCAB, (batch, n), generator=generator(seed))


@torch.no_grad()
def test_scores_are_those_of_a_loop_over_blanks_with_transformers(tmp_path: Any) -> None:
    config = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=17,
        max_position_embeddings=19,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    theirs = spread(transformers.BertForMaskedLM(config)).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path, heads=True, dtype=torch.float64).heads
    ids = texts(3, 7)
    real = torch.ones(3, 7, dtype=torch.bool)
    real[1, 5:] = False
    expected = torch.zeros(3, 7, dtype=torch.float64)
    for row, column in real.nonzero().tolist():
        blanked = ids[row : row + 1].clone()
        blanked[0, column] = MASK
        logits = theirs(blanked, attention_mask=real[row : row + 1].long()).logits
        expected[row, column] = logits[0, column].log_softmax(-1)[ids[row, column]]
    for size in (1, 5, 64):
        made = pseudo_log_likelihood(ours, ids, mask_id=MASK, real=real, batch_size=size)
        torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-10)


def test_only_what_is_wanted_is_scored() -> None:
    model, ids = spread(BertForPreTraining(CONFIG)), texts(2, 7)
    every = pseudo_log_likelihood(model, ids, mask_id=MASK)
    scored = torch.zeros(2, 7, dtype=torch.bool)
    scored[0, 2], scored[1, 5] = True, True
    some = pseudo_log_likelihood(model, ids, mask_id=MASK, scored=scored)
    torch.testing.assert_close(some, torch.where(scored, every, 0.0))
    assert bool((every < 0).all())
    real = torch.ones_like(scored)
    real[1, 5:] = False  # padding is not scored, even where it is asked for
    both = pseudo_log_likelihood(model, ids, mask_id=MASK, scored=scored, real=real)
    torch.testing.assert_close(both, torch.where(scored & real, every, 0.0))
    none = pseudo_log_likelihood(model, ids, mask_id=MASK, scored=torch.zeros_like(scored))
    assert not bool(none.any())


@torch.no_grad()
def test_the_rest_of_a_word_is_hidden_with_its_beginning() -> None:
    model, ids = spread(BertForPreTraining(CONFIG)), texts(1, 5)
    words = torch.tensor([[0, 0, 0, 1, 2]])
    made = pseudo_log_likelihood(model, ids, mask_id=MASK, words=words)
    for column, hidden in enumerate(([0, 1, 2], [1, 2], [2], [3], [4])):
        blanked = ids.clone()
        blanked[0, hidden] = MASK
        expected = model(blanked).tokens[0, column].log_softmax(-1)[ids[0, column]]
        torch.testing.assert_close(made[0, column], expected)


def test_scores_run_on_every_device_and_change_nothing(device: torch.device) -> None:
    model, ids = spread(BertForPreTraining(CONFIG)), texts(2, 5)
    expected = pseudo_log_likelihood(model, ids, mask_id=MASK)
    before = ids.clone()
    there = pseudo_log_likelihood(model.to(device), ids.to(device), mask_id=MASK)
    torch.testing.assert_close(there.cpu(), expected)
    assert torch.equal(ids, before)
    assert not there.requires_grad
    nowhere = pseudo_log_likelihood(model.to("meta"), ids.to("meta"), mask_id=MASK)
    assert nowhere.is_meta
    assert nowhere.shape == (2, 5)


# --- counting ------------------------------------------------------------------------------------


def corpus(count: int = 7, seed: int = 0) -> list[Tensor]:
    """A Markov chain, so that neighbors say something."""
    g = generator(seed)
    step = torch.rand(VOCAB - 4, VOCAB - 4, generator=g) ** 8
    made = []
    for _ in range(count):
        row = [0]
        for _ in range(600):
            row.append(int(torch.multinomial(step[row[-1]], 1, generator=g)))
        made.append(torch.tensor(row) + 4)
    return made


def test_the_chain_holds_the_models_of_every_order_in_both_directions() -> None:
    rows = corpus()
    forward = kneser_ney_chain(rows, order=3, vocab=VOCAB, eos=2, discount=0.5)
    backward = kneser_ney_chain(rows, order=3, vocab=VOCAB, eos=2, reverse=True, discount=0.5)
    assert [model.order for model in forward] == [1, 2, 3]
    text = rows[0][10:14]
    ids = text.clone()[None]
    ids[0, 2] = MASK
    made = fill_in_features(
        ids, torch.tensor([[0, 2]]), forward=forward, backward=backward, unknown=MASK
    )
    assert made.shape == (1, 6, VOCAB)
    for index, model in enumerate(forward):
        torch.testing.assert_close(made[0, index].exp(), model.probs(text[:2]))
    for index, model in enumerate(backward):
        # Behind the blank stands one token; beyond the edge nothing is known.
        context = torch.tensor([MASK, int(text[3])])
        torch.testing.assert_close(made[0, 3 + index].exp(), model.probs(context))
    torch.testing.assert_close(made.exp().sum(-1), torch.ones(1, 6).double())


def test_a_model_backs_off_from_a_blank_to_what_stands_nearer() -> None:
    rows = corpus()
    forward = kneser_ney_chain(rows, order=3, vocab=VOCAB, eos=2, discount=0.5)
    far, near = rows[0][40:42].tolist()
    ids = torch.tensor([[far, near, MASK], [MASK, near, MASK]])
    places = torch.tensor([[0, 2], [1, 2]])
    whole, shorter = fill_in_features(ids, places, forward=forward, unknown=MASK)[:, 2].exp()
    torch.testing.assert_close(whole, forward[2].probs(torch.tensor([far, near])))
    # A context that never occurred, here a text that begins with `near`: the bigram level speaks.
    unseen = forward[2].probs(torch.tensor([VOCAB, near]))
    torch.testing.assert_close(shorter, unseen)
    assert not torch.allclose(whole, shorter)


def test_exponents_are_at_the_maximum_of_the_likelihood() -> None:
    g = generator(1)
    features = torch.randn(211, 3, 7, generator=g, dtype=torch.float64).log_softmax(-1)
    symbols = torch.randint(0, 7, (211,), generator=g)
    made = fit_exponents(features, symbols, steps=200)
    weights = made.clone().requires_grad_()
    scores = torch.einsum("j,ijw->iw", weights, features)
    loss = torch.nn.functional.cross_entropy(scores, symbols)
    (slope,) = torch.autograd.grad(loss, weights)
    # L-BFGS stops at a gradient of 1e-7 or a change of 1e-9 in the loss.
    assert float(slope.abs().max()) < 1e-4
    worse = torch.einsum("j,ijw->iw", made + 0.05, features)
    assert float(torch.nn.functional.cross_entropy(worse, symbols)) > float(loss.detach())


def test_in_a_markov_chain_both_sides_join_with_exponents_one_one_and_minus_one() -> None:
    # For a Markov chain P(w | l, r) = P(w | l) P(w | r) / P(w) up to a constant, exactly.
    g = generator(2)
    states = 5
    step = torch.rand(states, states, generator=g, dtype=torch.float64) ** 2
    step = step / step.sum(1, keepdim=True)
    power = torch.linalg.matrix_power(step, 200)[0]
    joint = power[:, None] * step  # P(l, w), stationary
    backward = (joint / joint.sum(0)).T  # P(before | after), one row for each symbol behind
    left = torch.randint(0, states, (20011,), generator=g)
    truth = torch.multinomial(step[left], 1, generator=g).squeeze(1)
    right = torch.multinomial(step[truth], 1, generator=g).squeeze(1)
    features = torch.stack(
        [power.log().expand(len(left), -1), step[left].log(), backward[right].log()], 1
    )
    made = fit_exponents(features, truth, steps=100)
    # 20011 blanks give each exponent to a few percent.
    torch.testing.assert_close(made, torch.tensor([-1.0, 1.0, 1.0]).double(), rtol=0.15, atol=0.0)


def test_both_sides_fill_better_than_one_and_rows_sum_to_one() -> None:
    rows = corpus(9)
    forward = kneser_ney_chain(rows[:7], order=2, vocab=VOCAB, eos=2, discount=0.5)
    backward = kneser_ney_chain(rows[:7], order=2, vocab=VOCAB, eos=2, reverse=True, discount=0.5)
    gains = []
    for held, text in zip(rows[7:], rows[7:][::-1], strict=True):
        places = torch.stack([torch.zeros(180), torch.arange(10, 550, 3)], 1).long()
        scores = []
        for sides in ((forward, ()), (forward, backward[1:])):
            made = [held[None].clone(), text[None].clone()]
            for ids in made:
                ids[0, places[:, 1]] = MASK
            fitted = FillIn.fit(
                made[0],
                places,
                held[places[:, 1]],
                forward=sides[0],
                backward=sides[1],
                unknown=MASK,
            )
            filled = fitted.log_probs(made[1], places, batch_size=37)
            whole = fitted.log_probs(made[1], places, batch_size=999)
            torch.testing.assert_close(filled, whole)
            torch.testing.assert_close(filled.exp().sum(1), torch.ones(180).double())
            scores.append(float(filled.gather(1, text[places[:, 1], None]).mean()))
        gains.append(scores[1] - scores[0])
    assert min(gains) > 0.1


@pytest.mark.usefixtures("own_checks")
def test_what_does_not_fit_is_named() -> None:
    model, ids = BertForPreTraining(CONFIG), texts(2, 5)
    with pytest.raises(ValueError, match="mask_id must be from 0 to 30, got 31"):
        pseudo_log_likelihood(model, ids, mask_id=VOCAB)
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        pseudo_log_likelihood(model, ids, mask_id=MASK, batch_size=0)
    with pytest.raises(ValueError, match=r"scored must have shape \(2, 5\), got \(5,\)"):
        pseudo_log_likelihood(model, ids, mask_id=MASK, scored=torch.ones(5).bool())
    with pytest.raises(ValueError, match="give at least one model"):
        fill_in_features(ids, torch.zeros(1, 2).long(), forward=(), unknown=MASK)
    chain: tuple[NGramModel, ...] = kneser_ney_chain(
        corpus(), order=1, vocab=VOCAB, eos=2, discount=0.5
    )
    with pytest.raises(ValueError, match=r"columns of places must lie in \[0, 5\), got 5"):
        fill_in_features(ids, torch.tensor([[0, 5]]), forward=chain, unknown=MASK)
    with pytest.raises(ValueError, match="features must be finite"):
        fit_exponents(torch.full((1, 2, 3), -torch.inf), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"symbols must lie in \[0, 3\), got 3"):
        fit_exponents(torch.zeros(1, 2, 3), torch.tensor([3]))
