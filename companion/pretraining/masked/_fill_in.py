r"""Filling blanks by counting: what a masked language model has to beat.

An n-gram model gives the probability of a token after those before it. One that is trained on
reversed text gives its probability before those behind it. Both are opinions about the same blank,
each in several orders. They are joined by a product of powers,

.. math:: P(w \mid \text{context}) \propto \prod_j P_j(w \mid \text{context})^{\lambda_j}

whose exponents are fitted on held-out text. If left and right are independent given the token,
the truth has this form: :math:`P(w \mid l, r) \propto P(w \mid l)\, P(w \mid r) / P(w)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from companion.core import check_count, check_floating, check_ids, check_shape
from companion.foundations.language_models import NGramModel, count_ngrams, kneser_ney, windows

__all__ = ["FillIn", "kneser_ney_chain"]


def kneser_ney_chain(
    texts: Sequence[Int[Tensor, " _"]],
    *,
    order: int,
    vocab: int,
    eos: int,
    reverse: bool = False,
    discount: float | None = None,
) -> tuple[NGramModel, ...]:
    """Estimate Kneser–Ney models of every order up to n, on text or on reversed text.

    Args:
        texts: Ids of each document, without EOS.
        order: The largest n, 1 or more.
        vocab: Number of token ids.
        eos: The id that closes a document.
        reverse: Whether to read from right to left.
        discount: One discount for all orders. By default three are estimated for each, which
            needs symbols that occur once, twice, three and four times.

    Returns:
        One model for each order 1, ..., n, with probabilities above 0 everywhere.

    Raises:
        ValueError: As :func:`companion.foundations.language_models.kneser_ney` does.

    Book: :doc:`/book/pretraining/masked`
    """
    read = [text.flip(0) for text in texts] if reverse else list(texts)
    contexts, symbols = windows(read, order=order, vocab_size=vocab, eos=eos)
    counts = count_ngrams(contexts, symbols, vocab_size=vocab)
    return tuple(
        kneser_ney(
            counts.truncated(k),
            discount=discount,
            modified=discount is None,
            interpolate_unigrams=True,
        )
        for k in range(1, order + 1)
    )


def fill_in_features(
    ids: Integer[Tensor, "batch n"],
    places: Integer[Tensor, "blank 2"],
    *,
    forward: Sequence[NGramModel],
    backward: Sequence[NGramModel] = (),
    unknown: int,
) -> Float[Tensor, "blank models vocab"]:
    r"""Ask every n-gram model what stands at each blank.

    Args:
        ids: The texts with their blanks.
        places: Row and column of each blank to fill.
        forward: Models that read the tokens before a blank.
        backward: Models, trained on reversed text, that read the tokens behind it.
        unknown: An id that the models never saw, such as that of ``[MASK]``. It stands for what
            lies outside of the text. Where a context holds it, a model backs off to the tokens
            nearer to the blank, as it does for any context that it never saw.

    Returns:
        :math:`\log P_j(w \mid \text{context})` in nats, forward models first.

    Raises:
        ValueError: If there is no model, or an id or a place is out of range.

    Numerics:
        Holds blanks × models × vocabulary numbers: pass a few thousand blanks at a time.

    Book: :doc:`/book/pretraining/masked`
    """
    models = (*forward, *backward)
    if not models:
        raise ValueError("give at least one model")
    check_shape("places", places, (None, 2))
    check_ids("rows of places", places[:, 0], ids.shape[0])
    check_ids("columns of places", places[:, 1], ids.shape[1])
    reach = max(model.order for model in models) - 1
    edge = ids.new_full((ids.shape[0], reach), unknown)
    wide = torch.cat([edge, ids, edge], 1).long()
    rows, columns = places[:, :1].long(), places[:, 1:].long() + reach
    steps = torch.arange(1, reach + 1, device=ids.device).flip(0)  # the farthest token first
    left, right = wide[rows, columns - steps], wide[rows, columns + steps]
    sides = [left] * len(forward) + [right] * len(backward)
    return torch.stack(
        [model.probs(side).log() for model, side in zip(models, sides, strict=True)], 1
    )


def fit_exponents(
    features: Float[Tensor, "blank models vocab"],
    symbols: Integer[Tensor, " blank"],
    *,
    steps: int = 50,
) -> Float[Tensor, " models"]:
    r"""Fit the exponents of a product of models to held-out blanks.

    .. math:: \max_\lambda \frac1N \sum_{i=1}^N \Big( \lambda \cdot f_i(w_i)
        - \log \sum_w e^{\lambda \cdot f_i(w)} \Big)

    which is concave in :math:`\lambda`, so its maximum is found from anywhere.

    Args:
        features: From :func:`fill_in_features`, on text that the models were not trained on.
        symbols: What stands at the blanks.
        steps: Most iterations of L-BFGS, 1 or more.

    Returns:
        The exponents :math:`\lambda`.

    Raises:
        ValueError: If shapes or ids do not fit, or a feature is infinite.

    Book: :doc:`/book/pretraining/masked`
    """
    check_floating("features", features)
    check_shape("symbols", symbols, (features.shape[0],))
    check_ids("symbols", symbols, features.shape[2])
    check_count("steps", steps)
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features must be finite: use models that give every token a probability")
    weights = torch.full_like(features[0, :, 0], 1.0 / features.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            scores = torch.einsum("j,ijw->iw", weights, features)
            value = torch.nn.functional.cross_entropy(scores, symbols.long())
            value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach()


@dataclass(frozen=True, eq=False)
class FillIn:
    """N-gram models and their exponents, ready to fill blanks.

    Attributes:
        forward: Models of the tokens before a blank.
        backward: Models of the tokens behind it; none for a left-to-right baseline.
        exponents: One number for each model, forward models first.
        unknown: As in :func:`fill_in_features`.

    Book: :doc:`/book/pretraining/masked`
    """

    forward: tuple[NGramModel, ...]
    backward: tuple[NGramModel, ...]
    exponents: Float[Tensor, " models"]
    unknown: int

    @classmethod
    def fit(
        cls,
        ids: Integer[Tensor, "batch n"],
        places: Integer[Tensor, "blank 2"],
        symbols: Integer[Tensor, " blank"],
        *,
        forward: Sequence[NGramModel],
        backward: Sequence[NGramModel] = (),
        unknown: int,
    ) -> "FillIn":
        """Fit the exponents on held-out text.

        Args:
            ids: Held-out texts with blanks.
            places: Row and column of each blank.
            symbols: What stands there.
            forward: Models of the tokens before a blank.
            backward: Models of the tokens behind it.
            unknown: As in :func:`fill_in_features`.

        Returns:
            The fitted baseline.
        """
        features = fill_in_features(
            ids, places, forward=forward, backward=backward, unknown=unknown
        )
        return cls(tuple(forward), tuple(backward), fit_exponents(features, symbols), unknown)

    def log_probs(
        self,
        ids: Integer[Tensor, "batch n"],
        places: Integer[Tensor, "blank 2"],
        *,
        batch_size: int = 512,
    ) -> Float[Tensor, "blank vocab"]:
        """Return the distribution at each blank.

        Args:
            ids: Texts with blanks.
            places: Row and column of each blank.
            batch_size: How many blanks are filled at once.

        Returns:
            Log-probabilities in nats; each row's exponentials sum to 1.
        """
        check_count("batch_size", batch_size)
        parts = [
            torch.einsum(
                "j,ijw->iw",
                self.exponents,
                fill_in_features(
                    ids,
                    some,
                    forward=self.forward,
                    backward=self.backward,
                    unknown=self.unknown,
                ),
            ).log_softmax(-1)
            for some in torch.split(places, batch_size)
        ]
        return torch.cat(parts)
