"""Guidance: logits that are moved by a condition, by experts or by a classifier."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import (
    can_read,
    check_count,
    check_in_range,
    check_same_shape,
    check_shape,
    wide,
)
from companion.generation.decoding._follow import Follower
from companion.models import History, NextToken
from companion.transformer.block import Decoder

__all__ = [
    "ClassifierGuidance",
    "Experts",
    "Guidance",
    "bayes_logits",
    "class_log_probs",
    "experts_logits",
    "guided_logits",
]


def guided_logits(
    with_condition: Float[Tensor, "*batch vocab"],
    without: Float[Tensor, "*batch vocab"],
    scale: float,
) -> Float[Tensor, "*batch vocab"]:
    r"""Move from what is said without a condition to what is said with it, and beyond.

    .. math:: \log\tilde p(x) = \log p(x) + \gamma\big(\log p(x\mid c) - \log p(x)\big)

    It is :math:`p(x)\,p(c\mid x)^\gamma`, not normalized, by Bayes' rule.

    Args:
        with_condition: Logits with the condition.
        without: Logits without it; those of a *negative* prompt will do as well.
        scale: :math:`\gamma`: 0 leaves the condition out, 1 is the model with it, more stresses
            it. Some write :math:`1+w` for it.

    Returns:
        Logits, in float32 at least: sums of log-probabilities, not normalized.

    Raises:
        ValueError: If the shapes differ, or the scale is not finite.

    References:
        Sanchez et al. 2023, arXiv:2306.17806; Ho and Salimans 2022, arXiv:2207.12598, who
        write :math:`1+w`.

    Book: :doc:`/book/generation/control`

    Example:
        >>> c, u = torch.tensor([0.8, 0.2]).log(), torch.tensor([0.5, 0.5]).log()
        >>> guided_logits(c, u, 1.5).softmax(-1)
        tensor([0.8889, 0.1111])
    """
    check_same_shape("with_condition", with_condition, "without", without)
    check_in_range("scale", scale, low=-float("inf"), open_low=True, open_high=True)
    conditional = wide(with_condition).log_softmax(-1)
    plain = wide(without).log_softmax(-1)
    moved = plain + scale * (conditional - plain)
    # What either of them forbids has no difference of logarithms: it stays forbidden.
    never = (conditional == -torch.inf) | (plain == -torch.inf)
    return (
        moved.masked_fill(never, -torch.inf)
        if scale not in (0.0, 1.0)
        else (conditional if scale == 1.0 else plain)
    )


def experts_logits(
    base: Float[Tensor, "*batch vocab"],
    expert: Float[Tensor, "*batch vocab"],
    against: Float[Tensor, "*batch vocab"],
    strength: float,
) -> Float[Tensor, "*batch vocab"]:
    r"""Add what an expert says and an anti-expert does not: DExperts.

    .. math:: z = z_0 + \alpha\,(z^+ - z^-)

    Args:
        base: :math:`z_0`, logits of the model.
        expert: :math:`z^+`, of a model of wished texts.
        against: :math:`z^-`, of a model of unwished texts.
        strength: :math:`\alpha`.

    Returns:
        Logits; minus infinity for what one of the three forbids, unless the strength is 0.

    Raises:
        ValueError: If the shapes differ, or the strength is not finite.

    References:
        Liu et al. 2021, arXiv:2105.03023.

    Book: :doc:`/book/generation/control`

    Example:
        >>> z = torch.tensor([0.0, 0.0])
        >>> experts_logits(z, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0.5)
        tensor([ 0.5000, -0.5000])
    """
    check_same_shape("base", base, "expert", expert)
    check_same_shape("base", base, "against", against)
    check_in_range("strength", strength, low=-float("inf"), open_low=True, open_high=True)
    moved = wide(base) + strength * (wide(expert) - wide(against))
    # What one of them forbids has no difference of logarithms: it stays forbidden.
    never = (base == -torch.inf) | (expert == -torch.inf) | (against == -torch.inf)
    return moved.masked_fill(never, -torch.inf) if strength else wide(base)


def bayes_logits(
    logits: Float[Tensor, "*batch vocab"],
    log_attribute: Float[Tensor, "*batch vocab"],
    *,
    power: float = 1.0,
) -> Float[Tensor, "*batch vocab"]:
    r"""Weigh each token by how probable the wished attribute is after it: FUDGE, GeDi.

    .. math:: p(x_t\mid x_{<t},a) \propto p(x_t\mid x_{<t})\; p(a\mid x_{\le t})^{\omega}

    With the true :math:`p(a\mid x_{\le t})` and :math:`\omega=1` this is conditioning, exactly.

    Args:
        logits: Of the next token.
        log_attribute: :math:`\log p(a\mid x_{\le t})`, in nats, for each next token.
        power: :math:`\omega \ge 0`.

    Returns:
        Logits, not normalized.

    Raises:
        ValueError: If the shapes differ, or the power is below 0.

    References:
        Yang and Klein 2021, arXiv:2104.05218; with a power, Krause et al. 2021,
        arXiv:2009.06367.

    Book: :doc:`/book/generation/control`

    Example:
        >>> bayes_logits(torch.zeros(2), torch.tensor([0.9, 0.3]).log()).softmax(-1)
        tensor([0.7500, 0.2500])
    """
    check_same_shape("logits", logits, "log_attribute", log_attribute)
    check_in_range("power", power, low=0.0, open_high=True)
    return wide(logits) + (power * wide(log_attribute) if power else 0.0)


def class_log_probs(
    log_probs: Float[Tensor, "*batch classes"],
    prior: Float[Tensor, " classes"] | None = None,
) -> Float[Tensor, "*batch classes"]:
    r"""Turn language models of the classes into a classifier, by Bayes' rule: GeDi.

    .. math:: p(a\mid x) = \frac{p(a)\,p(x\mid a)}{\sum_{a'}p(a')\,p(x\mid a')}

    Args:
        log_probs: :math:`\log p(x\mid a)` of texts, in nats, a column a class.
        prior: :math:`p(a)`; by default all classes are equal.

    Returns:
        :math:`\log p(a\mid x)`; minus infinity throughout for a text that no class can write, so
        that :func:`bayes_logits` leaves it out.

    Raises:
        ValueError: If the prior has another number of classes, or is no prior: it holds numbers of
            0 or above, and not 0 throughout.

    References:
        Krause et al. 2021, arXiv:2009.06367; they divide by the length, we do not.

    Book: :doc:`/book/generation/control`

    Example:
        >>> class_log_probs(torch.tensor([0.03, 0.01]).log()).exp()
        tensor([0.7500, 0.2500])
    """
    scores = wide(log_probs)
    if prior is not None:
        check_shape("prior", prior, (log_probs.shape[-1],))
        if can_read(prior) and not (bool((prior >= 0).all()) and bool((prior > 0).any())):
            raise ValueError(
                f"prior must be 0 or above, and not 0 throughout: got {prior.tolist()}"
            )
        scores = scores + wide(prior).log()
    never = (scores == -torch.inf).all(-1, keepdim=True)
    return scores.log_softmax(-1).masked_fill(never, -torch.inf)


class Guidance:
    r"""Classifier-free guidance as a ``warp``: see :func:`guided_logits`.

    It reads the text a second time, after another prompt, with a cache of its own.

    Args:
        model: The model that writes, in evaluation mode (or another with its tokens).
        scale: :math:`\gamma`.
        prompt: What stands before the written text in the second reading, (1, m): the prompt
            without its condition, or a negative one. By default the last token of the prompt.

    Raises:
        ValueError: If the prompt is not one row of at least one token.

    References:
        Sanchez et al. 2023, arXiv:2306.17806.

    Book: :doc:`/book/generation/control`
    """

    def __init__(
        self,
        model: Decoder | NextToken,
        *,
        scale: float,
        prompt: Integer[Tensor, "one m"] | None = None,
    ) -> None:
        if prompt is not None:
            check_shape("prompt", prompt, (1, None))
            check_count("tokens of the prompt", prompt.shape[1])
        self.reader, self.scale, self.prompt = Follower(model), scale, prompt

    def __call__(
        self, logits: Float[Tensor, "batch vocab"], history: History
    ) -> Float[Tensor, "batch vocab"]:
        """Guide one step.

        Args:
            logits: With the condition.
            history: The text.

        Returns:
            Guided logits.
        """
        before = history.ids[:, history.prompt - 1 : history.prompt]
        if self.prompt is not None:
            before = self.prompt.to(history.ids).expand(len(history.ids), -1)
        text = torch.cat([before, history.written], 1)
        return guided_logits(logits, self.reader(text, None), self.scale)


class Experts:
    r"""DExperts as a ``warp``: two further models, each with its cache. See :func:`experts_logits`.

    Args:
        expert: A model of wished texts, in evaluation mode, with the same tokens.
        against: A model of unwished texts.
        strength: :math:`\alpha`.

    References:
        Liu et al. 2021, arXiv:2105.03023.

    Book: :doc:`/book/generation/control`
    """

    def __init__(
        self, expert: Decoder | NextToken, against: Decoder | NextToken, *, strength: float
    ) -> None:
        self.expert, self.against, self.strength = Follower(expert), Follower(against), strength

    def __call__(
        self, logits: Float[Tensor, "batch vocab"], history: History
    ) -> Float[Tensor, "batch vocab"]:
        """Move one step.

        Args:
            logits: Of the model.
            history: The text.

        Returns:
            Moved logits.
        """
        wished = self.expert(history.ids, history.real)
        unwished = self.against(history.ids, history.real)
        return experts_logits(logits, wished, unwished, self.strength)


class ClassifierGuidance:
    r"""FUDGE as a ``warp``: a classifier of beginnings weighs the likeliest next tokens.

    The classifier reads each candidate, so only :math:`k` are asked, and all others are removed:
    the truncation is part of the method.

    Args:
        attribute: Tells :math:`\log p(a\mid x_{\le t})` of beginnings, (rows, t) to (rows,). Rows
            are the prompt and all that follows; of a padded batch the padding stands in them.
        k: How many candidates are asked.
        power: :math:`\omega`.

    Raises:
        ValueError: If k is below 1 or the power below 0.

    References:
        Yang and Klein 2021, arXiv:2104.05218

    Book: :doc:`/book/generation/control`
    """

    def __init__(
        self, attribute: Callable[[Tensor], Tensor], *, k: int, power: float = 1.0
    ) -> None:
        check_count("k", k)
        check_in_range("power", power, low=0.0, open_high=True)
        self.attribute, self.k, self.power = attribute, k, power

    def __call__(
        self, logits: Float[Tensor, "batch vocab"], history: History | Any
    ) -> Float[Tensor, "batch vocab"]:
        """Weigh one step.

        Args:
            logits: Of the model.
            history: The text.

        Returns:
            New logits, minus infinity but for the candidates.

        Raises:
            ValueError: If the classifier does not give one number a row.
        """
        k = min(self.k, logits.shape[-1])
        best = wide(logits).topk(k, -1)
        batch, n = history.ids.shape
        texts = history.ids[:, None].expand(batch, k, n)
        texts = torch.cat([texts, best.indices[..., None].to(texts.dtype)], -1).flatten(0, 1)
        told = self.attribute(texts)
        check_shape("what the classifier says", told, (batch * k,))
        moved = bayes_logits(best.values, told.view(batch, k).to(best.values), power=self.power)
        return torch.full_like(wide(logits), -torch.inf).scatter(-1, best.indices, moved)
