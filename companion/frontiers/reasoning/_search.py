r"""Search over thoughts: beams that keep the best few, and trees that count their visits."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from companion.core import check_count, check_in_range, randint

__all__ = ["SearchResult", "mcts", "state_beam_search", "uct_score"]

State = TypeVar("State", bound=Hashable)


@dataclass(frozen=True)
class SearchResult:
    """What a search has found.

    Attributes:
        best: The best final state that it reached, or ``None``.
        reward: What that one is worth; minus infinity without one.
        path: States from the first one to it.
        expanded: How many states were expanded: what the search has cost.
        visits: How often each first move was tried; only from :func:`mcts`.
    """

    best: Any
    reward: float
    path: tuple[Any, ...]
    expanded: int
    visits: dict[Any, int] = field(default_factory=dict)


def state_beam_search(
    start: State,
    expand: Callable[[State], Sequence[State]],
    score: Callable[[State], float],
    *,
    width: int,
    depth: int,
) -> SearchResult:
    """Keep the best few states of each depth.

    Args:
        start: The first state.
        expand: The states that follow one; none if it is final.
        score: How good a state looks; of final ones, what they are worth.
        width: How many are kept. 1 is greedy.
        depth: How many steps are taken at most.

    Returns:
        The best final state. Of equal ones the first is taken.

    Raises:
        ValueError: If width or depth is below 1.

    References:
        Yao et al. 2023, arXiv:2305.10601, algorithm 1.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> def double(n): return [2 * n, 2 * n + 1] if n < 8 else []
        >>> state_beam_search(1, double, lambda n: -abs(n - 13), width=2, depth=5).path
        (1, 3, 6, 13)
    """
    check_count("width", width)
    check_count("depth", depth)
    beam: list[tuple[State, ...]] = [(start,)]
    best: tuple[float, tuple[State, ...]] = (-math.inf, ())
    expanded = 0
    for level in range(depth + 1):
        following: dict[State, tuple[State, ...]] = {}
        for path in beam:
            states = expand(path[-1])
            expanded += 1
            if not states and score(path[-1]) > best[0]:
                best = (score(path[-1]), path)
            for state in states:
                following.setdefault(state, (*path, state))
        if not following or level == depth:
            break
        beam = sorted(following.values(), key=lambda path: -score(path[-1]))[:width]
    reward, path = best
    return SearchResult(path[-1] if path else None, reward, path, expanded)


def uct_score(
    mean: float, *, visits: int, parent_visits: int, exploration: float = math.sqrt(2)
) -> float:
    r"""Compute the upper confidence bound by which a tree search chooses a child.

    .. math:: \bar Q + c \sqrt{\frac{\ln N}{n}}

    Args:
        mean: :math:`\bar Q`, the mean of what was found below the child, for who moves.
        visits: :math:`n`, how often the child was visited. One without a visit comes first.
        parent_visits: :math:`N`, how often its *parent* was.
        exploration: :math:`c`. A factor 2 inside the root of some texts is :math:`\sqrt2` here.

    Returns:
        The bound; infinity without a visit.

    Raises:
        ValueError: If counts are below 0, the child has more visits than its parent, or the
            constant is below 0.

    References:
        Kocsis and Szepesvári 2006, doi:10.1007/11871842_29.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> round(uct_score(0.5, visits=4, parent_visits=16, exploration=1.0), 4)
        1.3326
    """
    check_count("visits", visits, low=0)
    check_count("parent_visits", parent_visits, low=visits)
    check_in_range("exploration", exploration, low=0.0, open_high=True)
    if visits == 0:
        return math.inf
    return mean + exploration * math.sqrt(math.log(parent_visits) / visits)


class _Node(Generic[State]):
    """A state in the tree, with what was found below it (for the one who moved first)."""

    def __init__(self, state: State, turn: int) -> None:
        self.state = state
        self.turn = turn  # 1 where the first player moves, -1 where the second does
        self.children: list[_Node[State]] | None = None
        self.visits = 0
        self.total = 0.0


def mcts(
    start: State,
    expand: Callable[[State], Sequence[State]],
    reward: Callable[[State], float],
    *,
    simulations: int,
    generator: torch.Generator,
    exploration: float = math.sqrt(2),
    players: int = 1,
) -> SearchResult:
    r"""Search a tree by simulations: descend by UCT, play on by chance, and back up the reward.

    Args:
        start: The first state; with two players, the first one moves.
        expand: The states that follow one; none if it is final.
        reward: What a final state is worth to the one who moves first.
        simulations: How many games are played.
        generator: The source of randomness.
        exploration: The constant of :func:`uct_score`, in units of the reward.
        players: 1, or 2 of whom the second wants the reward small.

    Returns:
        The best final state among those that were reached, and the visits of the first moves. With
        two players the move to make is the one with the most visits; ``best`` is only the best
        line that was seen.

    Raises:
        ValueError: If a setting is out of its domain, the start is final, or a reward is no finite
            number.

    Numerics:
        Rewards are kept for one player at all levels; only the choice of a child turns the sign.

    References:
        Kocsis and Szepesvári 2006, doi:10.1007/11871842_29.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> def double(n): return [2 * n, 2 * n + 1] if n < 8 else []
        >>> g = torch.Generator().manual_seed(0)
        >>> mcts(1, double, lambda n: float(n == 13), simulations=50, generator=g).path
        (1, 3, 6, 13)
    """
    check_count("simulations", simulations)
    check_count("players", players, high=2)
    root = _Node(start, 1)
    if not expand(start):
        raise ValueError("the start is final: there is nothing to search")
    best: tuple[float, tuple[State, ...]] = (-math.inf, ())
    expanded = 0
    for _ in range(simulations):
        path = [root]
        while path[-1].children:
            path.append(_choose(path[-1], exploration, generator))
        node = path[-1]
        if node.children is None and (node.visits or node is root):
            turn = -node.turn if players == 2 else 1
            node.children = [_Node(state, turn) for state in expand(node.state)]
            expanded += 1
            if node.children:
                path.append(_choose(node, exploration, generator))
        states = [step.state for step in path]
        following = expand(states[-1])
        while following:
            states.append(following[int(randint(0, len(following), (), generator=generator))])
            following = expand(states[-1])
            expanded += 1
        found = float(reward(states[-1]))
        if not math.isfinite(found):
            raise ValueError(f"rewards must be finite numbers, got {found} for {states[-1]!r}")
        for node in path:
            node.visits += 1
            node.total += found
        if found > best[0]:
            best = (found, tuple(states))
    visits = {child.state: child.visits for child in root.children or ()}
    return SearchResult(best[1][-1], best[0], best[1], expanded, visits)


def _choose(node: _Node[State], exploration: float, generator: torch.Generator) -> _Node[State]:
    """The child of the highest bound for who moves here, and one by chance of equal ones."""
    children = node.children or []
    bounds = []
    for child in children:
        mean = node.turn * child.total / max(child.visits, 1)
        bounds.append(
            uct_score(
                mean,
                visits=child.visits,
                parent_visits=max(node.visits, child.visits),
                exploration=exploration,
            )
        )
    top = max(bounds)
    equal = [child for child, bound in zip(children, bounds, strict=True) if bound == top]
    if len(equal) == 1:
        return equal[0]
    return equal[int(randint(0, len(equal), (), generator=generator))]
