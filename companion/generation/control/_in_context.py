"""Learning within a prompt: linear attention as one step of gradient descent."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import can_read, check_count, check_in_range, check_shape

__all__ = [
    "InContextWeights",
    "gradient_step_weights",
    "linear_attention",
    "mixture_prediction",
]


class InContextWeights(NamedTuple):
    """Matrices of one head of linear attention over tokens of ``inputs + outputs`` numbers.

    Attributes:
        query: ``(dim, dim)``.
        key: ``(dim, dim)``.
        value: ``(dim, dim)``.
        out: ``(dim, dim)``.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor


def gradient_step_weights(
    start: Float[Tensor, "inputs outputs"], *, size: float, examples: int
) -> InContextWeights:
    r"""Make the weights with which linear attention takes one step of gradient descent.

    Tokens are rows :math:`e_i=(x_i,y_i)`, the question is :math:`(x_q,-x_qW_0)`. With
    :math:`W_Q=W_K=\begin{bmatrix}I&0\\0&0\end{bmatrix}`,
    :math:`W_V=\begin{bmatrix}0&-W_0\\0&I\end{bmatrix}` and :math:`\eta/n` as the output map, the
    question becomes :math:`(x_q, -x_qW_0+x_q\Delta)` with
    :math:`\Delta=\frac\eta n\sum_i x_i^\top(y_i-x_iW_0)`: the step of the mean of half the squared
    errors. Its outputs are the difference of the prediction from twice the start; for
    :math:`W_0=0` the prediction itself.

    Args:
        start: :math:`W_0`, the weights before the step.
        size: :math:`\eta`.
        examples: :math:`n`.

    Returns:
        The matrices.

    Raises:
        ValueError: If the number of examples is below 1.

    References:
        von Oswald et al. 2023, arXiv:2212.07677, proposition 1, with columns in place of rows.

    Book: :doc:`/book/generation/control`
    """
    check_shape("start", start, (None, None))
    check_count("examples", examples)
    check_in_range("size", size, low=-float("inf"), open_low=True, open_high=True)
    inputs, outputs = start.shape
    one = torch.eye(inputs + outputs, dtype=start.dtype, device=start.device)
    reads, value = one.clone(), one.clone()
    reads[inputs:] = 0
    value[:inputs] = 0
    value[:inputs, inputs:] = -start
    return InContextWeights(reads, reads.clone(), value, size / examples * one)


def linear_attention(
    tokens: Float[Tensor, "*batch n dim"],
    question: Float[Tensor, "*batch dim"],
    weights: InContextWeights,
) -> Float[Tensor, "*batch dim"]:
    r"""Let a question attend to examples, without a softmax, and add what it gets.

    .. math:: e_q + \Big(\sum_i (e_qW_Q)(e_iW_K)^\top\, e_iW_V\Big) W_O

    Args:
        tokens: The examples.
        question: :math:`e_q`.
        weights: The matrices.

    Returns:
        The question after the layer.

    Raises:
        ValueError: If the sizes do not fit.

    Book: :doc:`/book/generation/control`
    """
    check_shape("weights", weights.query, (tokens.shape[-1], None))
    if question.shape != (*tokens.shape[:-2], tokens.shape[-1]):
        raise ValueError(
            f"a question has the shape of one token, {(*tokens.shape[:-2], tokens.shape[-1])}, "
            f"got {tuple(question.shape)}"
        )
    scores = (tokens @ weights.key) @ (question @ weights.query)[..., None]
    read = (scores * (tokens @ weights.value)).sum(-2)
    return question + read @ weights.out


def mixture_prediction(
    log_prior: Float[Tensor, " tasks"],
    log_likelihood: Float[Tensor, "*batch tasks"],
    log_prob: Float[Tensor, "*batch tasks outcomes"],
) -> Float[Tensor, "*batch outcomes"]:
    r"""Predict by a mixture of tasks, weighed by how well each explains the examples.

    .. math:: p(y\mid x, D) = \sum_\tau p(\tau\mid D)\, p(y\mid x,\tau), \qquad
        p(\tau\mid D) \propto p(\tau)\, p(D\mid\tau)

    Args:
        log_prior: :math:`\log p(\tau)`.
        log_likelihood: :math:`\log p(D\mid\tau)`.
        log_prob: :math:`\log p(y\mid x,\tau)`.

    Returns:
        :math:`\log p(y\mid x,D)`.

    Raises:
        ValueError: If the numbers of tasks differ, or no task explains the examples.

    References:
        Xie et al. 2022, arXiv:2111.02080, for in-context learning.

    Book: :doc:`/book/generation/control`

    Example:
        >>> even = torch.tensor([0.5, 0.5]).log()
        >>> seen = torch.tensor([0.9, 0.1]).log()
        >>> law = torch.tensor([[0.8, 0.2], [0.3, 0.7]]).log()
        >>> mixture_prediction(even, seen, law).exp()
        tensor([0.7500, 0.2500])
    """
    check_shape("log_prior", log_prior, (log_likelihood.shape[-1],))
    check_shape("log_prob", log_prob, (*log_likelihood.shape, None))
    joint = log_prior + log_likelihood
    if can_read(joint) and bool((joint == -torch.inf).all(-1).any()):
        raise ValueError("no task explains the examples: all have the prior or the likelihood 0")
    posterior = joint.log_softmax(-1)
    return (posterior[..., None] + log_prob).logsumexp(-2)
