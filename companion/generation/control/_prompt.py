"""Control by what stands before a text: examples, and calibration of answers."""

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from companion.core import can_read, check_count, check_several, check_shape, wide

__all__ = ["calibrate", "few_shot"]


def calibrate(
    log_probs: Float[Tensor, "*batch labels"],
    content_free: Float[Tensor, "inputs labels"],
) -> Float[Tensor, "*batch labels"]:
    r"""Divide by what the prompt says without any content: contextual calibration.

    .. math:: \hat p \propto \operatorname{diag}(\bar p_{cf})^{-1}\, p

    Args:
        log_probs: Logits or log-probabilities of the labels; they are normalized over the labels.
        content_free: The same for inputs without content, such as ``N/A``, a row an input. Their
            probabilities are averaged.

    Returns:
        Calibrated log-probabilities.

    Raises:
        ValueError: If the numbers of labels differ, or a label is impossible without content.

    Numerics:
        The mean is taken by logsumexp, so a label of probability :math:`10^{-60}` is not divided
        by 0.

    References:
        Zhao et al. 2021, arXiv:2102.09690. They write softmax of the scaled
        probabilities in one place; we normalize by the sum, as their code does.

    Book: :doc:`/book/generation/control`

    Example:
        >>> import torch
        >>> p, cf = torch.tensor([0.7, 0.3]), torch.tensor([[0.8, 0.2]])
        >>> calibrate(p.log(), cf.log()).exp()
        tensor([0.3684, 0.6316])
    """
    check_shape("content_free", content_free, (None, log_probs.shape[-1]))
    check_count("content-free inputs", len(content_free))
    p = wide(log_probs).log_softmax(-1)
    bias = wide(content_free).log_softmax(-1).logsumexp(0) - math.log(len(content_free))
    if can_read(bias) and bool((bias == -math.inf).any()):
        raise ValueError(
            "content_free gives a label the probability 0, and nothing can be divided by it"
        )
    return (p - bias.to(p)).log_softmax(-1)


def few_shot(
    shots: Sequence[tuple[str, str]],
    query: str,
    *,
    template: str = "Input: {input}\nLabel:{label}",
    between: str = "\n\n",
) -> str:
    r"""Write examples and a question in one form.

    Args:
        shots: Pairs of an input and its label, in order.
        query: The input whose label is asked for.
        template: With ``{input}`` and, at its end, ``{label}``. A label is written after one
            space, and the prompt ends without it: a blank at the end of a prompt is a token that
            seldom stands there in a text.
        between: What separates examples.

    Returns:
        The prompt.

    Raises:
        ValueError: If the template lacks a place, or does not end with that of the label.

    Book: :doc:`/book/generation/control`

    Example:
        >>> few_shot([("good", "yes")], "bad", template="{input} ->{label}", between="; ")
        'good -> yes; bad ->'
    """
    check_several("shots", shots)
    form = template.removesuffix("{label}")
    if "{input}" not in form or form == template or "{label}" in form:
        raise ValueError(
            f"a template needs {{input}}, and {{label}} once, at its end: got {template!r}"
        )
    written = [form.replace("{input}", x) + " " + y for x, y in shots]
    return between.join([*written, form.replace("{input}", query)])
