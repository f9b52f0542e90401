"""The hot functions of the chapter on language models compile without a graph break."""

import pytest
import torch

from companion.foundations import language_models as lm


def test_ngram_log_probs_compile() -> None:
    texts = [torch.tensor([1, 2, 3, 1, 2, 4]), torch.tensor([2, 1, 1])]
    contexts, symbols = lm.windows(texts, order=3, vocab_size=5, eos=0)
    model = lm.kneser_ney(lm.count_ngrams(contexts, symbols, vocab_size=5), discount=0.5)
    compiled = torch.compile(lambda c, w: model.log_prob(c, w), fullgraph=True)
    torch.testing.assert_close(compiled(contexts, symbols), model.log_prob(contexts, symbols))


@pytest.mark.inductor
def test_the_neural_model_compiles_forward_and_backward() -> None:
    config = lm.NPLMConfig(vocab_size=11, context=3, dim=5, hidden=7)
    model = lm.NPLM(config, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.w2 += 0.1 * torch.arange(77.0).reshape(7, 11).sin()
    contexts, symbols = torch.tensor([[11, 11, 0], [1, 2, 3]]), torch.tensor([4, 5])

    def loss(c: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return -model.log_prob(c, w).mean()

    plain = torch.autograd.grad(loss(contexts, symbols), list(model.parameters()))
    compiled = torch.compile(loss, fullgraph=True)
    fast = torch.autograd.grad(compiled(contexts, symbols), list(model.parameters()))
    for a, b in zip(plain, fast, strict=True):
        # float32: sums of a few terms in another order.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_em_step_compiles() -> None:
    probs = torch.rand(13, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    compiled = torch.compile(lm.em_step, fullgraph=True)
    torch.testing.assert_close(compiled(probs, weights), lm.em_step(probs, weights))
