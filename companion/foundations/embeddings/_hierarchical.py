r"""Hierarchical softmax: a word is a path down a binary tree."""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from companion.core import wide_dtype

__all__ = ["hierarchical_softmax_loss", "huffman_codes"]


def huffman_codes(counts: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
    """Build the Huffman tree of a vocabulary: frequent words sit near the root.

    Args:
        counts: How often each word occurs; at least two words.

    Returns:
        For each word the inner nodes from the root down, and at each of them the branch taken,
        +1 or -1. A vocabulary of ``n`` words has the nodes 0, ..., n - 2; the root is n - 2.

    Raises:
        ValueError: If there are fewer than two words.

    Numerics:
        Time ``O(n log n)``. The mean code length under the counts is the shortest of any tree.

    References:
        Huffman 1952, DOI 10.1109/JRPROC.1952.273898.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> huffman_codes([5, 2, 1])
        ([[1], [1, 0], [1, 0]], [[-1], [1, -1], [1, 1]])
    """
    size = len(counts)
    if size < 2:
        raise ValueError(f"a tree needs at least two words, got {size}")
    queue = [(count, word) for word, count in enumerate(counts)]
    heapify(queue)
    parent: dict[int, tuple[int, int]] = {}
    for node in range(size - 1):
        (first, rare), (second, frequent) = heappop(queue), heappop(queue)
        parent[rare], parent[frequent] = (node, 1), (node, -1)
        heappush(queue, (first + second, size + node))
    nodes: list[list[int]] = []
    branches: list[list[int]] = []
    for word in range(size):
        path, turns, at = [], [], word
        while at in parent:
            node, branch = parent[at]
            path.append(node)
            turns.append(branch)
            at = size + node
        nodes.append(path[::-1])
        branches.append(turns[::-1])
    # Heap order breaks ties by word, so the tree is the same on every machine.
    return nodes, branches


def hierarchical_softmax_loss(
    vectors: Float[Tensor, "batch dim"],
    nodes: Float[Tensor, "batch depth dim"],
    branches: Int[Tensor, "batch depth"],
) -> Float[Tensor, ""]:
    r"""Loss of a word's path down a binary tree.

    .. math::

        L = -\frac1B \sum \sum_{j} \log\sigma(s_j\, a_j \cdot v), \qquad s_j = \pm 1

    Args:
        vectors: Input vectors :math:`v`.
        nodes: Vectors :math:`a_j` of the inner nodes on the path of the observed word.
        branches: The branch :math:`s_j` at each node, +1 or -1; 0 pads short paths.

    Returns:
        Mean loss, nats a word, in float32 or better. Probabilities of all words sum to 1.

    References:
        Morin & Bengio 2005 (AISTATS); Mikolov et al. 2013, arXiv:1310.4546, eq. 3.

    Book:
        :doc:`/book/foundations/embeddings`
    """
    wide = wide_dtype(vectors.dtype)
    vectors, nodes = vectors.to(wide), nodes.to(wide)
    sign = branches.to(wide)
    scores = (nodes @ vectors.unsqueeze(-1)).squeeze(-1)
    return -(sign.abs() * F.logsigmoid(sign * scores)).sum(-1).mean()
