r"""Weighted model counting: compile a formula to a decision diagram once, then only sum."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import (
    can_read,
    check_floating,
    check_same_shape,
    check_several,
    check_shape,
    wide,
)
from companion.frontiers.reasoning._formula import Formula

__all__ = ["Diagram", "compile_formula", "log_wmc", "semantic_loss", "wmc"]

_FALSE, _TRUE = 0, 1


@dataclass(frozen=True)
class Diagram:
    r"""A formula as a reduced ordered binary decision diagram.

    Reading it asks one variable after the other, each at most once. Two formulas that mean the
    same have the same diagram, for one order of the variables.

    Attributes:
        variables: In the order in which they are asked. One that no node asks is free.
        nodes: For each node the place of its variable, the node for *false*, and that for *true*;
            nodes 0 and 1 are the ends. A node stands after those it leads to.
        root: Where reading begins.

    Book: :doc:`/book/frontiers/reasoning`
    """

    variables: tuple[str, ...]
    nodes: tuple[tuple[int, int, int], ...]
    root: int

    def count(self) -> int:
        """Count the models over all variables, exactly.

        Returns:
            How many of the :math:`2^n` worlds make the formula true.
        """
        n = len(self.variables)
        totals = [0, 1]
        for level, low, high in self.nodes[2:]:
            left = totals[low] << (self._level(low) - level - 1)
            right = totals[high] << (self._level(high) - level - 1)
            totals.append(left + right)
        return totals[self.root] << (self._level(self.root) if n else 0)

    def _level(self, node: int) -> int:
        return self.nodes[node][0]


def compile_formula(formula: Formula, *, variables: Sequence[str] | None = None) -> Diagram:
    r"""Compile a formula.

    Args:
        formula: Of any size; the diagram may be exponentially larger, and a good order of the
            variables can be the difference.
        variables: The order, and with it which variables there are: those that the formula does
            not name are free. By default those of the formula, in the order of their first use.

    Returns:
        The diagram.

    Raises:
        ValueError: If a variable of the formula is missing, or one is named twice.

    Numerics:
        Diagrams are joined by recursion, a level a variable: some hundred variables at the most.

    References:
        Bryant 1986, doi:10.1109/TC.1986.1676819. Weighted counting on compiled formulas: Chavira
        and Darwiche 2008, doi:10.1016/j.artint.2007.11.002.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> from companion.frontiers.reasoning import parse
        >>> compile_formula(parse("x1 | x2")).count()
        3
    """
    check_several("variables", variables)
    order = tuple(formula.variables if variables is None else variables)
    missing = [name for name in formula.variables if name not in order]
    if missing or len(set(order)) < len(order):
        raise ValueError(
            f"variables must name each of the formula's once: missing {missing}, given {order}"
        )
    return _Compiler(order).diagram(formula)


class _Compiler:
    """Joins diagrams two by two, with every node made once."""

    def __init__(self, order: tuple[str, ...]) -> None:
        self.order = order
        self.place = {name: i for i, name in enumerate(order)}
        ends = (len(order), _FALSE, _FALSE)
        self.nodes: list[tuple[int, int, int]] = [ends, ends]
        self.known: dict[tuple[int, int, int], int] = {}
        self.joined: dict[tuple[bool, int, int], int] = {}
        self.negated: dict[int, int] = {_FALSE: _TRUE, _TRUE: _FALSE}
        self.done: dict[int, int] = {}  # shared parts of a formula are compiled once

    def node(self, level: int, low: int, high: int) -> int:
        if low == high:
            return low
        key = (level, low, high)
        if key not in self.known:
            self.known[key] = len(self.nodes)
            self.nodes.append(key)
        return self.known[key]

    def negate(self, u: int) -> int:
        if u not in self.negated:
            level, low, high = self.nodes[u]
            self.negated[u] = self.node(level, self.negate(low), self.negate(high))
        return self.negated[u]

    def join(self, both: bool, u: int, v: int) -> int:
        """And where both is true, or elsewhere."""
        absorbing, neutral = (_FALSE, _TRUE) if both else (_TRUE, _FALSE)
        if absorbing in (u, v):
            return absorbing
        if u in (neutral, v):
            return v
        if v == neutral:
            return u
        key = (both, min(u, v), max(u, v))
        if key not in self.joined:
            level = min(self.nodes[u][0], self.nodes[v][0])
            (u_low, u_high), (v_low, v_high) = (self.children(w, level) for w in (u, v))
            low, high = self.join(both, u_low, v_low), self.join(both, u_high, v_high)
            self.joined[key] = self.node(level, low, high)
        return self.joined[key]

    def children(self, u: int, level: int) -> tuple[int, int]:
        at, low, high = self.nodes[u]
        return (low, high) if at == level else (u, u)

    def make(self, formula: Formula) -> int:
        """Compile the parts of a formula before the formula, each of them once."""
        todo = [formula]
        while todo:
            part = todo[-1]
            missing = [inner for inner in part.parts if id(inner) not in self.done]
            if missing:
                todo += missing
                continue
            todo.pop()
            self.done[id(part)] = self.one(part, [self.done[id(inner)] for inner in part.parts])
        return self.done[id(formula)]

    def one(self, formula: Formula, parts: list[int]) -> int:
        """The node of a formula whose parts have theirs."""
        kind = formula.operator
        if kind == "var":
            return self.node(self.place[formula.name], _FALSE, _TRUE)
        if kind == "not":
            return self.negate(parts[0])
        if kind not in ("and", "or"):
            return _TRUE if kind == "true" else _FALSE
        made = _TRUE if kind == "and" else _FALSE
        for part in parts:
            made = self.join(kind == "and", made, part)
        return made

    def diagram(self, formula: Formula) -> Diagram:
        """Compile, and keep only the nodes that are reached."""
        root = self.make(formula)
        reached, todo = {_FALSE, _TRUE}, [root]
        while todo:
            u = todo.pop()
            if u not in reached:
                reached.add(u)
                todo += self.nodes[u][1:]
        kept = sorted(reached)  # children were made before their parents
        number = {u: i for i, u in enumerate(kept)}
        nodes = tuple(
            (level, number[low], number[high]) for level, low, high in (self.nodes[u] for u in kept)
        )
        return Diagram(self.order, nodes, number[root])


def log_wmc(
    diagram: Diagram,
    positive: Float[Tensor, "*batch variables"],
    negative: Float[Tensor, "*batch variables"],
) -> Float[Tensor, "*batch"]:
    r"""Sum the weights of all models of a formula, as a logarithm.

    .. math:: \log \sum_{x \models \varphi} \prod_{i: x_i} w_i \prod_{i: \lnot x_i} \bar w_i

    Args:
        diagram: The compiled formula.
        positive: :math:`\log w_i` of each variable being true, in the order of the diagram.
        negative: :math:`\log \bar w_i` of its being false.

    Returns:
        The logarithm; :math:`-\infty` for a formula without models.

    Raises:
        ValueError: If the shapes differ, or are not those of the diagram's variables.

    Numerics:
        One addition of logarithms a node. Where an edge passes over variables, the sum is
        multiplied by their :math:`w_i + \bar w_i` (*smoothing*): it must be unless all these are
        1, as they are for probabilities.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> from companion.frontiers.reasoning import parse
        >>> zero = torch.zeros(2)
        >>> float(log_wmc(compile_formula(parse("x | y")), zero, zero).exp())
        3.0
    """
    check_floating("positive", positive)
    check_same_shape("positive", positive, "negative", negative)
    n = len(diagram.variables)
    check_shape("positive", positive, (*positive.shape[:-1], n))
    high_weight, low_weight = wide(positive), wide(negative)
    free = torch.logaddexp(high_weight, low_weight)
    start = high_weight.new_zeros(positive.shape[:-1])
    totals = [torch.full_like(start, -torch.inf), start]

    def smoothed(node: int, above: int) -> Tensor:
        # The ends of the formula stand below all variables.
        below = diagram.nodes[node][0]
        return totals[node] + free[..., above:below].sum(-1)

    for level, low, high in diagram.nodes[2:]:
        parts = []
        for child, weight in ((low, low_weight), (high, high_weight)):
            if child != _FALSE:
                parts.append(smoothed(child, level + 1) + weight[..., level])
        totals.append(parts[0] if len(parts) == 1 else torch.logaddexp(parts[0], parts[1]))
    if diagram.root == _FALSE:
        return totals[0]
    return smoothed(diagram.root, 0)


def wmc(
    diagram: Diagram, probabilities: Float[Tensor, "*batch variables"]
) -> Float[Tensor, "*batch"]:
    r"""Compute the probability that a formula holds where its variables are independent.

    .. math:: P(\varphi) = \sum_{x \models \varphi} \prod_i p_i^{x_i} (1 - p_i)^{1 - x_i}

    Args:
        diagram: The compiled formula.
        probabilities: :math:`p_i` of each variable, in the order of the diagram.

    Returns:
        The probability, float32 or better.

    Raises:
        ValueError: If the shape does not fit, or a probability lies outside 0 to 1.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> from companion.frontiers.reasoning import exactly_one, variable
        >>> one = exactly_one([variable(name) for name in "abc"])
        >>> round(float(wmc(compile_formula(one), torch.tensor([0.2, 0.5, 0.3]))), 4)
        0.47
    """
    check_floating("probabilities", probabilities)
    n = len(diagram.variables)
    check_shape("probabilities", probabilities, (*probabilities.shape[:-1], n))
    if can_read(probabilities):
        inside = (probabilities >= 0) & (probabilities <= 1)
        if not bool(inside.all()):
            raise ValueError("probabilities must lie in [0, 1]")
    p = wide(probabilities)
    one = p.new_ones(p.shape[:-1])
    totals = [torch.zeros_like(one), one]
    for level, low, high in diagram.nodes[2:]:
        totals.append(torch.lerp(totals[low], totals[high], p[..., level]))
    return totals[diagram.root]


def semantic_loss(
    logits: Float[Tensor, "*batch variables"], diagram: Diagram
) -> Float[Tensor, "*batch"]:
    r"""Compute how far predictions are from obeying a formula: minus the log of its probability.

    .. math:: L = -\log P(\varphi), \qquad p_i = \sigma(z_i)

    Args:
        logits: :math:`z_i` of each variable, in the order of the diagram.
        diagram: The compiled formula.

    Returns:
        The loss of each row, in nats, 0 or more; :math:`\infty` for a formula without models.

    Raises:
        ValueError: If the shape does not fit.

    Numerics:
        In logarithms throughout, so that a formula of many variables does not underflow. The
        gradient by :math:`z_i` is :math:`p_i - P(x_i \mid \varphi)`.

    References:
        Xu et al. 2018, arXiv:1711.11157, definition 1.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> from companion.frontiers.reasoning import parse
        >>> semantic_loss(torch.zeros(2), compile_formula(parse("a & b")))
        tensor(1.3863)
    """
    check_floating("logits", logits)
    z = wide(logits)
    log = torch.nn.functional.logsigmoid
    return -log_wmc(diagram, log(z), log(-z))
