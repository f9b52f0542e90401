r"""Labels that are wrong: their law, losses that correct for it or bear it, and how to find them.

Of :math:`K` classes, :math:`T_{ij}` is the probability that an example of the class :math:`i` is
labeled :math:`j`. Rows are the true classes and sum to 1, so that rows of probabilities are
multiplied from the left: :math:`\tilde p=pT`.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from companion.core import (
    can_read,
    check_count,
    check_floating,
    check_ids,
    check_in_range,
    check_shape,
    rand,
    wide,
)

__all__ = [
    "ConfidentJoint",
    "backward_cross_entropy",
    "calibrate_joint",
    "confident_joint",
    "flip_labels",
    "forward_cross_entropy",
    "generalized_cross_entropy",
    "label_errors",
    "symmetric_noise",
    "symmetric_risk",
]

Reduction = Literal["mean", "sum", "none"]


def symmetric_noise(classes: int, flipped: float) -> Float[Tensor, "classes classes"]:
    r"""The law of labels of which a given share is wrong, every wrong class as often.

    .. math:: T_{ii}=1-\varepsilon,\qquad T_{ij}=\frac{\varepsilon}{K-1}\quad(i\ne j)

    Here :math:`\varepsilon` is the share that is *wrong*. Drawing a share of the labels anew from
    all classes hits the right one again in one of :math:`K` cases, so fewer are wrong.

    Args:
        classes: :math:`K`, 2 or more.
        flipped: :math:`\varepsilon`, in [0, 1].

    Returns:
        The matrix :math:`T` in float64.

    Raises:
        ValueError: If an argument is out of its domain.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> symmetric_noise(3, 0.5)[0]
        tensor([0.5000, 0.2500, 0.2500], dtype=torch.float64)
    """
    check_count("classes", classes, low=2)
    check_in_range("flipped", flipped, low=0.0, high=1.0)
    noise = torch.full((classes, classes), flipped / (classes - 1), dtype=torch.float64)
    return noise.fill_diagonal_(1 - flipped)


def flip_labels(
    labels: Int[Tensor, " examples"],
    noise: Float[Tensor, "classes classes"],
    *,
    generator: torch.Generator,
) -> Int[Tensor, " examples"]:
    """Draw a wrong or right label for each true one, all at once.

    Args:
        labels: The true classes.
        noise: The matrix :math:`T`.
        generator: Draws the labels.

    Returns:
        Labels; no class is flipped twice.

    Raises:
        ValueError: If the matrix is not square with rows that sum to 1, or a label is no class.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> flip_labels(torch.tensor([0, 1, 1]), torch.eye(2), generator=g)
        tensor([0, 1, 1])
    """
    _check_noise(noise, noise.shape[-1])
    check_ids("labels", labels, noise.shape[0])
    upto = noise.double().cumsum(1)
    # Rows sum to 1 up to rounding: without this the last class would take the rest, also at 0.
    upto = (upto / upto[:, -1:])[labels.long()]
    u = rand(*labels.shape, generator=generator, device=labels.device, dtype=torch.float64)
    return (upto[..., :-1] <= u[..., None]).sum(-1).to(labels.dtype)


def forward_cross_entropy(
    logits: Float[Tensor, "*batch classes"],
    labels: Int[Tensor, "*batch"],
    noise: Float[Tensor, "classes classes"],
    *,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    r"""Cross-entropy of noisy labels under the noisy prediction: :math:`-\log(pT)_{\tilde y}`.

    Its minimizer over all distributions :math:`p` is that of the clean labels, where :math:`T` can
    be inverted: the model learns what, after the noise, gives the labels that are there.

    Args:
        logits: Scores, whose softmax is :math:`p`.
        labels: Noisy labels :math:`\tilde y`.
        noise: The matrix :math:`T`, rows the true classes.
        reduction: ``"mean"``, ``"sum"``, or ``"none"``.

    Returns:
        Nats; a scalar, or one number a row.

    Raises:
        ValueError: If shapes do not fit, or the rows of the matrix do not sum to 1.

    Numerics:
        By logsumexp of :math:`\log p_i+\log T_{i\tilde y}`, so it is finite wherever a class that
        can give the label has a finite logit.

    References:
        Patrini et al. 2017, arXiv:1609.03683, theorem 2.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> p, T = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.7, 0.3], [0.1, 0.9]])
        >>> forward_cross_entropy(p.log(), torch.tensor([0]), T).neg().exp()
        tensor(0.6400)
    """
    _check_labels(logits, labels, noise)
    logs = wide(logits).log_softmax(-1)
    into = noise.to(logs).log().T[labels.long()]
    return _reduced(-torch.logsumexp(logs + into, -1), reduction)


def backward_cross_entropy(
    logits: Float[Tensor, "*batch classes"],
    labels: Int[Tensor, "*batch"],
    noise: Float[Tensor, "classes classes"],
    *,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    r"""A loss of the noisy label whose mean over the noise is the cross-entropy of the true one.

    .. math:: \tilde\ell=T^{-1}\ell,\qquad\ell_k=-\log p_k,\qquad
        \sum_jT_{ij}\tilde\ell_j=\ell_i

    Args:
        logits: Scores, whose softmax is :math:`p`.
        labels: Noisy labels.
        noise: The matrix :math:`T`, which must be invertible.
        reduction: ``"mean"``, ``"sum"``, or ``"none"``.

    Returns:
        Nats. Single values may be negative, and are not bounded below: a large model can make the
        training loss as small as it likes.

    Raises:
        ValueError: If shapes do not fit, or the matrix is no law or cannot be inverted.

    Numerics:
        A linear system in float64 for each call; the spread of the loss grows with the
        condition number of :math:`T`.

    References:
        Natarajan et al. 2013 (two classes); Patrini et al. 2017, arXiv:1609.03683, theorem 1.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> p, T = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.7, 0.3], [0.1, 0.9]])
        >>> backward_cross_entropy(p.log(), torch.tensor([0]), T)
        tensor(-0.9933)
    """
    _check_labels(logits, labels, noise)
    if can_read(noise):
        condition = float(torch.linalg.cond(noise.double()))
        if not condition < 1e12:
            raise ValueError(
                f"noise cannot be inverted, its condition number is {condition:.3g}: the labels "
                "do not tell the classes apart; use the forward correction"
            )
    losses = -wide(logits).log_softmax(-1)
    inverse = torch.linalg.inv(noise.double()).to(losses)
    return _reduced((losses * inverse[labels.long()]).sum(-1), reduction)


def generalized_cross_entropy(
    logits: Float[Tensor, "*batch classes"],
    labels: Int[Tensor, "*batch"],
    *,
    q: float = 0.7,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    r"""A family of losses from cross-entropy to the absolute error: :math:`(1-p_y^q)/q`.

    Its gradient is that of cross-entropy times :math:`p_y^q`, so examples whose label the model
    finds unlikely pull less. For :math:`q\to0` it is :math:`-\log p_y`, for :math:`q=1` it is
    :math:`1-p_y`, half the absolute error, whose sum over all labels is constant.

    Args:
        logits: Scores, whose softmax is :math:`p`.
        labels: Labels.
        q: In (0, 1].
        reduction: ``"mean"``, ``"sum"``, or ``"none"``.

    Returns:
        The loss, in [0, 1/q).

    Raises:
        ValueError: If q is out of its domain or shapes do not fit.

    Numerics:
        By ``expm1`` of :math:`q\log p_y`, so it stays exact for small q, and loss and gradient are
        finite for :math:`p_y=0`.

    References:
        Zhang and Sabuncu 2018, arXiv:1805.07836.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> generalized_cross_entropy(torch.zeros(1, 2), torch.tensor([0]), q=0.7)
        tensor(0.5492)
    """
    check_in_range("q", q, low=0.0, high=1.0, open_low=True)
    check_labels(logits, labels)
    logs = wide(logits).log_softmax(-1).gather(-1, labels.long()[..., None])[..., 0]
    return _reduced(-torch.expm1(q * logs) / q, reduction)


def symmetric_risk(
    clean: Float[Tensor, "*batch"], total: Float[Tensor, "*batch"], *, classes: int, flipped: float
) -> Float[Tensor, "*batch"]:
    r"""The expected loss under symmetric noise, from the clean loss and the sum over all labels.

    .. math:: \Big(1-\frac{\varepsilon K}{K-1}\Big)\ell_y+\frac\varepsilon{K-1}\sum_k\ell_k

    Where the sum is constant, noise below :math:`\varepsilon=1-1/K` leaves the minimizer alone.

    Args:
        clean: :math:`\ell_y`, the loss of the true label.
        total: :math:`\sum_k\ell_k`.
        classes: :math:`K`.
        flipped: :math:`\varepsilon`, the share of wrong labels.

    Returns:
        The mean loss over the draw of the label.

    Raises:
        ValueError: If an argument is out of its domain.

    References:
        Ghosh, Kumar and Sastry 2017, arXiv:1712.09482, theorem 1.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> symmetric_risk(torch.tensor(0.1), torch.tensor(1.0), classes=2, flipped=0.5)
        tensor(0.5000)
    """
    check_count("classes", classes, low=2)
    check_in_range("flipped", flipped, low=0.0, high=1.0)
    return (1 - flipped * classes / (classes - 1)) * clean + flipped / (classes - 1) * total


class ConfidentJoint(NamedTuple):
    r"""What :func:`confident_joint` counts over n examples of K classes.

    Attributes:
        counts: :math:`C_{ij}`, examples labeled :math:`i` that the model takes for :math:`j`.
        guess: For each example the class that the model is confident of, -1 if there is none.
        thresholds: :math:`t_j`, the mean probability of :math:`j` among examples labeled
            :math:`j`; infinite for a class that nothing is labeled.
    """

    counts: Int[Tensor, "K K"]
    guess: Int[Tensor, " n"]
    thresholds: Float[Tensor, " K"]


def confident_joint(
    probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]
) -> ConfidentJoint:
    r"""Count the examples of each label that a model takes confidently for each class.

    .. math:: C_{ij}=\#\{x:\tilde y=i,\ j=\arg\max_{k:\,\hat p_k(x)\ge t_k}\hat p_k(x)\}

    The probabilities must come from a model that has not seen the example with its label, as
    in cross-validation: a model that has memorized the labels finds no error among them.

    Args:
        probs: Predicted probabilities, a row for each example.
        labels: The given labels.

    Returns:
        The counts, the confident classes, and the thresholds.

    Raises:
        ValueError: If shapes do not fit, probabilities are negative or a row does not sum to 1, or
            a label is no class.

    Numerics:
        A threshold is met from :math:`10^{-6}` below on, so that rounding in a mean does not
        decide.

    References:
        Northcutt, Jiang and Chuang 2021, arXiv:1911.00068, eq. 1 and 2. Where several classes pass
        their thresholds, the paper takes the likeliest of *them*; release 2.9.0 of the package
        ``cleanlab`` takes the likeliest of all, and puts at least 1 on the diagonal.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.85, 0.15]])
        >>> confident_joint(p, torch.tensor([0, 0, 1, 1])).counts
        tensor([[1, 0],
                [1, 1]])
    """
    check_floating("probs", probs)
    check_shape("probs", probs, (labels.shape[0], None))
    classes = probs.shape[1]
    check_ids("labels", labels, classes)
    p, y = probs.double(), labels.long()
    slack = max(1e-3, 4 * torch.finfo(probs.dtype).eps)
    if can_read(p) and not bool(((p >= 0).all(1) & ((p.sum(1) - 1).abs() < slack)).all()):
        raise ValueError("probs must be 0 or above and sum to 1 in each row: take the softmax")
    own = p.gather(1, y[:, None])[:, 0]
    zero = torch.zeros(classes, dtype=p.dtype, device=p.device)
    there = zero.index_add(0, y, torch.ones_like(own))
    sums = zero.index_add(0, y, own)
    thresholds = torch.where(there > 0, sums / there.clamp(min=1), torch.inf)
    passed = p >= thresholds - 1e-6
    best = p.masked_fill(~passed, -1.0).argmax(1)
    guess = torch.where(passed.any(1), best, -1)
    sure = (guess >= 0).long()
    cell = y * classes + guess.clamp(min=0)
    counts = torch.zeros(classes * classes, dtype=torch.long, device=p.device)
    counts = counts.index_add(0, cell, sure).view(classes, classes)
    return ConfidentJoint(counts, guess, thresholds.to(probs.dtype))


def calibrate_joint(
    counts: Int[Tensor, "classes classes"], labels: Int[Tensor, " examples"]
) -> Float[Tensor, "classes classes"]:
    r"""The joint law of given and true labels, from the counts of confident examples.

    .. math:: \hat Q_{ij}\propto\frac{C_{ij}}{\sum_{j'}C_{ij'}}\cdot\#\{\tilde y=i\}

    Each row is scaled to the share of its label, since classes differ in how many of their
    examples a model is confident of. A row without any confident example goes to the diagonal.

    Args:
        counts: Of :func:`confident_joint`.
        labels: The given labels.

    Returns:
        :math:`\hat Q` in float64: rows the given labels, columns the true ones, of sum 1.

    Raises:
        ValueError: If the counts are not square, or a label is no class.

    References:
        Northcutt, Jiang and Chuang 2021, arXiv:1911.00068, eq. 3.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> calibrate_joint(torch.tensor([[3, 1], [0, 2]]), torch.tensor([0, 0, 1, 1]))
        tensor([[0.3750, 0.1250],
                [0.0000, 0.5000]], dtype=torch.float64)
    """
    check_shape("counts", counts, (counts.shape[0], counts.shape[0]))
    check_ids("labels", labels, counts.shape[0])
    rows = counts.double()
    total = rows.sum(1, keepdim=True)
    eye = torch.eye(counts.shape[0], dtype=torch.float64, device=counts.device)
    share = torch.where(total > 0, rows / total.clamp(min=1), eye)
    given = torch.zeros(counts.shape[0], dtype=torch.float64, device=counts.device)
    given = given.index_add(0, labels.long(), torch.ones_like(labels, dtype=torch.float64))
    return share * given[:, None] / given.sum().clamp(min=1)


def label_errors(
    probs: Float[Tensor, "examples classes"], labels: Int[Tensor, " examples"]
) -> Bool[Tensor, " examples"]:
    """The examples that the model confidently takes for a class other than their label.

    Args:
        probs: Predicted probabilities, from a model that has not seen the example.
        labels: The given labels.

    Returns:
        Which labels look wrong.

    Raises:
        ValueError: As :func:`confident_joint`.

    References:
        Northcutt, Jiang and Chuang 2021, arXiv:1911.00068, sec. 3.2, "confident joint".

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.85, 0.15]])
        >>> label_errors(p, torch.tensor([0, 0, 1, 1]))
        tensor([False, False, False,  True])
    """
    guess = confident_joint(probs, labels).guess
    return (guess >= 0) & (guess != labels)


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return losses.mean()
    if reduction == "sum":
        return losses.sum()
    if reduction == "none":
        return losses
    raise ValueError(f"unknown reduction {reduction!r}: choose 'mean', 'sum' or 'none'")


def _check_noise(noise: Tensor, classes: int) -> None:
    check_floating("noise", noise)
    check_shape("noise", noise, (classes, classes))
    if can_read(noise):
        sums = noise.double().sum(1)
        if not bool((noise >= 0).all()) or not bool(((sums - 1).abs() <= 1e-4).all()):
            raise ValueError(
                f"each row of noise must be a law, its sums are {sums.tolist()}: rows are the true "
                "classes, so transpose it if its columns sum to 1"
            )


def _check_labels(logits: Tensor, labels: Tensor, noise: Tensor) -> None:
    check_floating("logits", logits)
    _check_noise(noise, logits.shape[-1])
    check_labels(logits, labels)


def check_labels(logits: Tensor, labels: Tensor) -> None:
    """Require one label for each row of logits: other shapes would broadcast, or be cut off."""
    check_floating("logits", logits)
    check_shape("labels", labels, tuple(logits.shape[:-1]))
    check_ids("labels", labels, logits.shape[-1])
