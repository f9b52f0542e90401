r"""Ratings from games: Elo's updates, the Bradley-Terry fit in Elo's units, and ranks."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import (
    can_read,
    check_count,
    check_floating,
    check_ids,
    check_in_range,
    check_same_shape,
    check_shape,
)
from companion.frontiers.reinforcement import fit_bradley_terry
from companion.trust.fairness import Interval

__all__ = [
    "ELO_UNIT",
    "RankIntervals",
    "elo_expected",
    "elo_ratings",
    "elo_scale",
    "elo_update",
    "rank_intervals",
    "win_matrix",
]

#: Elo points of one nat of reward: 400 / ln 10.
ELO_UNIT = 400 / math.log(10)
_SAME = 1e-6  # points


def elo_expected(first: Float[Tensor, "..."], second: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""Compute the expected score of the first player: :math:`1/(1 + 10^{(R_2 - R_1)/400})`.

    Args:
        first: Ratings :math:`R_1`.
        second: Ratings :math:`R_2`.

    Returns:
        Values between 0 and 1.

    Raises:
        ValueError: If the shapes differ.

    References:
        Elo 1978, "The Rating of Chessplayers, Past and Present".

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> elo_expected(torch.tensor(1400.0), torch.tensor(1000.0))
        tensor(0.9091)
    """
    check_same_shape("first", first, "second", second)
    return torch.sigmoid((first - second) / ELO_UNIT)


def elo_update(
    first: Float[Tensor, "..."],
    second: Float[Tensor, "..."],
    result: Float[Tensor, "..."],
    *,
    step: float = 32.0,
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    r"""Update two ratings after a game: :math:`R_1 \leftarrow R_1 + K (S - E)`, and the opposite.

    Args:
        first: Rating of the first player before.
        second: Rating of the second.
        result: :math:`S`: 1 if the first won, 0 if it lost, 1/2 for a draw.
        step: :math:`K`.

    Returns:
        Both ratings after the game. Their sum stays.

    Raises:
        ValueError: If the shapes differ or the step is not positive.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> elo_update(torch.tensor(1000.0), torch.tensor(1000.0), torch.tensor(1.0))
        (tensor(1016.), tensor(984.))
    """
    check_same_shape("result", result, "first", first)
    check_in_range("step", step, low=0.0, open_low=True, open_high=True)
    move = step * (result - elo_expected(first, second))
    return first + move, second - move


def _check_games(games: Tensor, results: Tensor, players: int) -> None:
    check_shape("games", games, (None, 2))
    check_shape("results", results, (len(games),))
    check_count("players", players)
    check_ids("games", games, players)
    if can_read(games) and bool((games[:, 0] == games[:, 1]).any()):
        raise ValueError("games must have two different players")
    if can_read(results) and not bool(((results >= 0) & (results <= 1)).all()):
        raise ValueError("results must lie between 0 (lost) and 1 (won)")


def elo_ratings(
    games: Integer[Tensor, "games 2"],
    results: Float[Tensor, " games"],
    *,
    players: int,
    step: float = 32.0,
    start: float = 1000.0,
) -> Float[Tensor, " players"]:
    """Play games through in their order.

    Args:
        games: Numbers of the first and the second player of each game.
        results: 1 if the first won, 0 if it lost, 1/2 for a draw.
        players: How many players there are.
        step: As in :func:`elo_update`.
        start: Rating of everybody before.

    Returns:
        Ratings after the last game, float64. Another order of the same games gives others.

    Raises:
        ValueError: If shapes do not fit, a player is out of range or plays itself, or a result is
            not in [0, 1].

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> pair = torch.tensor([[0, 1], [0, 1]])
        >>> elo_ratings(pair, torch.tensor([1.0, 0.0]), players=2).round(decimals=2)
        tensor([ 998.5300, 1001.4700], dtype=torch.float64)
    """
    _check_games(games, results, players)
    check_in_range("step", step, low=0.0, open_low=True, open_high=True)
    ratings = [start] * players
    for (i, j), result in zip(games.tolist(), results.tolist(), strict=True):
        expected = (1 + math.tanh((ratings[i] - ratings[j]) / ELO_UNIT / 2)) / 2  # no overflow
        move = step * (result - expected)
        ratings[i] += move
        ratings[j] -= move
    return torch.tensor(ratings, dtype=torch.float64)


def win_matrix(
    games: Integer[Tensor, "games 2"], results: Float[Tensor, " games"], *, players: int
) -> Float[Tensor, "players players"]:
    """Count how often each player beat each other one; a draw is half a win for both.

    Args:
        games: As in :func:`elo_ratings`.
        results: As in :func:`elo_ratings`.
        players: How many players there are.

    Returns:
        Wins of the row's player against the column's, float64: what
        :func:`companion.frontiers.reinforcement.fit_bradley_terry` takes.

    Raises:
        ValueError: As in :func:`elo_ratings`.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> win_matrix(torch.tensor([[0, 1], [1, 0]]), torch.tensor([1.0, 0.5]), players=2)
        tensor([[0.0000, 1.5000],
                [0.5000, 0.0000]], dtype=torch.float64)
    """
    _check_games(games, results, players)
    check_floating("results", results)
    s = results.double()
    table = torch.zeros(players, players, dtype=torch.float64)
    table.index_put_((games[:, 0], games[:, 1]), s, accumulate=True)
    table.index_put_((games[:, 1], games[:, 0]), 1 - s, accumulate=True)
    return table


def elo_scale(rewards: Float[Tensor, "..."], *, start: float = 1000.0) -> Float[Tensor, "..."]:
    r"""Express rewards of the Bradley-Terry model in Elo's points: :math:`400\,\theta/\ln 10`.

    Args:
        rewards: In nats, such as :func:`companion.frontiers.reinforcement.fit_bradley_terry`
            gives.
        start: Rating of a reward of 0.

    Returns:
        Ratings. Both models then give the same expected scores.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> elo_scale(torch.tensor([0.0, 1.0]))
        tensor([1000.0000, 1173.7178])
    """
    return start + ELO_UNIT * rewards


class RankIntervals(NamedTuple):
    """Ratings with what the number of games allows to say of them.

    Attributes:
        ratings: In Elo's points, with the mean of the start.
        interval: Ends of each rating's percentile interval.
        ranks: Rank of each player, 1 for the best; equal ratings share the better one.
        low: Best rank within the interval of ranks.
        high: Worst rank.
        resamples: Ratings of each resample.
    """

    ratings: Float[Tensor, " players"]
    interval: Interval
    ranks: Integer[Tensor, " players"]
    low: Integer[Tensor, " players"]
    high: Integer[Tensor, " players"]
    resamples: Float[Tensor, "resamples players"]


def rank_intervals(
    games: Integer[Tensor, "games 2"],
    results: Float[Tensor, " games"],
    *,
    players: int,
    prior: float = 0.01,
    resamples: int = 200,
    level: float = 0.95,
    generator: torch.Generator,
) -> RankIntervals:
    """Fit the Bradley-Terry model to resampled games.

    Args:
        games: As in :func:`elo_ratings`; their order does not matter.
        results: As in :func:`elo_ratings`.
        players: How many players there are.
        prior: As in :func:`companion.frontiers.reinforcement.fit_bradley_terry`. It keeps a player
            that never lost within finite bounds. No player is held fixed: anchoring one would move
            its uncertainty into all others.
        resamples: How often games are drawn, as many as there are, with replacement.
        level: Share of the resamples inside an interval.
        generator: The source of randomness.

    Returns:
        Ratings, ranks, and their intervals.

    Raises:
        ValueError: As in :func:`elo_ratings`, or if a player has no game or a setting is out of
            range.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> pair = torch.tensor([[0, 1]]).expand(100, 2)
        >>> won = (torch.arange(100) < 75).double()
        >>> made = rank_intervals(pair, won, players=2, generator=torch.Generator())
        >>> made.ranks, made.high
        (tensor([1, 2]), tensor([1, 2]))
    """
    check_count("resamples", resamples)
    check_count("games", len(games))
    check_in_range("level", level, low=0.0, high=1.0, open_low=True, open_high=True)
    check_in_range("prior", prior, low=0.0, open_low=True, open_high=True)

    idle = torch.bincount(games.flatten(), minlength=players) == 0
    if bool(idle.any()):
        raise ValueError(f"player {int(idle.nonzero()[0])} has no game: leave it out")

    def fit(which: Tensor) -> Tensor:
        table = win_matrix(games[which], results[which], players=players)
        return elo_scale(fit_bradley_terry(table, prior=prior))

    ratings = fit(torch.arange(len(games)))
    drawn = torch.randint(len(games), (resamples, len(games)), generator=generator)
    again = torch.stack([fit(row) for row in drawn])
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    ends = again.quantile(tails, dim=0)
    best, worst = _places(again)
    # Ranks are whole numbers: an end is a rank that was seen, never one between two.
    low = best.double().quantile(tails[0], dim=0, interpolation="lower").long()
    high = worst.double().quantile(tails[1], dim=0, interpolation="higher").long()
    ranks = _places(ratings[None])[0][0]
    return RankIntervals(ratings, Interval(ends[0], ends[1]), ranks, low, high, again)


def _places(ratings: Tensor) -> tuple[Tensor, Tensor]:
    """Best and worst rank of each player: equal ratings, up to rounding, share theirs."""
    ahead = ratings[:, None, :] - ratings[:, :, None]
    return (ahead > _SAME).sum(-1) + 1, (ahead > -_SAME).sum(-1)
