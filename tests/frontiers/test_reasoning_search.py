"""Beams and trees, on Countdown with its exact checker, and on a game whose winner is known."""

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch

from companion.frontiers import reasoning as re


def test_the_bound_takes_the_logarithm_of_the_parent() -> None:
    found = re.uct_score(0.5, visits=4, parent_visits=16, exploration=1.0)
    assert found == pytest.approx(1.3326, abs=5e-5)  # the child's logarithm: 1.0887
    assert re.uct_score(-5.0, visits=0, parent_visits=0) == math.inf
    assert re.uct_score(-5.0, visits=0, parent_visits=9) == math.inf
    # The constant stands outside the root: a 2 inside of it is the root of 2 outside.
    inside = 0.5 + math.sqrt(2 * math.log(16) / 4)
    assert re.uct_score(0.5, visits=4, parent_visits=16) == pytest.approx(inside)
    assert re.uct_score(0.5, visits=1, parent_visits=1) == 0.5


def nim(state: tuple[int, int]) -> list[tuple[int, int]]:
    """Take one to three; who takes the last wins. A state is (left, who moves)."""
    left, who = state
    return [(left - take, 1 - who) for take in (1, 2, 3) if take <= left]


def won(state: tuple[int, int]) -> float:
    """For the first player: at the end the other one, who cannot move, has lost."""
    return 1.0 if state[1] == 1 else -1.0


@pytest.mark.parametrize(("left", "move"), [(5, 4), (6, 4), (7, 4), (9, 8), (10, 8)])
def test_a_game_of_two_is_played_as_theory_says(left: int, move: int) -> None:
    g = torch.Generator().manual_seed(0)
    found = re.mcts((left, 0), nim, won, simulations=600, generator=g, players=2)
    best = max(found.visits, key=lambda state: found.visits[state])
    assert best[0] == move  # leave a multiple of four
    assert sum(found.visits.values()) == 600


def test_the_second_player_is_an_opponent() -> None:
    # One move wins if the other helps, the other wins for sure: only with two players it matters.
    tree = {"start": ["risky", "safe"], "risky": ["win", "win too", "lose"], "safe": ["draw"]}
    worth = {"win": 1.0, "win too": 1.0, "lose": -1.0, "draw": 0.3}

    def expand(state: str) -> list[str]:
        return tree.get(state, [])

    def most(players: int) -> str:
        g = torch.Generator().manual_seed(1)
        found = re.mcts(
            "start", expand, worth.__getitem__, simulations=400, generator=g, players=players
        )
        return max(found.visits, key=lambda state: found.visits[state])

    assert most(1) == "risky"
    assert most(2) == "safe"


def test_every_child_is_visited_before_one_is_visited_again() -> None:
    g = torch.Generator().manual_seed(0)
    found = re.mcts(
        0, lambda n: list(range(1, 8)) if n == 0 else [], float, simulations=8, generator=g
    )
    assert sorted(found.visits.values()) == [1] * 6 + [2]


def close_to(goal: int) -> Callable[[tuple[tuple[Fraction, str], ...]], float]:
    def score(state: tuple[tuple[Fraction, str], ...]) -> float:
        return -float(min(abs(value - goal) for value, _ in state))

    return score


def test_searches_solve_countdown_and_the_checker_agrees() -> None:
    g = torch.Generator().manual_seed(3)
    solved = {"greedy": 0, "beam": 0, "all": 0}
    for _ in range(8):
        problem = re.countdown(numbers=4, generator=g)
        *numbers, goal = problem.givens
        start = tuple(sorted((Fraction(x), str(x)) for x in numbers))
        for name, width in (("greedy", 1), ("beam", 40), ("all", 100_000)):
            found = re.state_beam_search(
                start, re.countdown_moves, close_to(goal), width=width, depth=3
            )
            assert found.best is not None
            expression = found.best[0][1]
            assert problem.check(expression) == (found.reward == 0)
            solved[name] += problem.check(expression)
            assert len(found.path) == 4
    assert solved["greedy"] < solved["beam"] <= solved["all"] == 8


def test_a_tree_search_finds_what_chance_alone_does_not() -> None:
    g = torch.Generator().manual_seed(0)
    problem = re.countdown(numbers=4, generator=g)
    *numbers, goal = problem.givens
    start = tuple(sorted((Fraction(x), str(x)) for x in numbers))

    def reward(state: tuple[tuple[Fraction, str], ...]) -> float:
        return 1 / (1 + abs(float(state[0][0] - goal)))

    found = re.mcts(start, re.countdown_moves, reward, simulations=1500, generator=g)
    assert found.best is not None
    assert found.reward == 1
    assert problem.check(found.best[0][1])
    assert found.path[0] == start
    again = re.mcts(start, re.countdown_moves, reward, simulations=50, generator=torch.Generator())
    assert sum(again.visits.values()) <= 50


def test_a_beam_keeps_the_first_of_equal_ones_and_may_find_nothing() -> None:
    found = re.state_beam_search(0, lambda n: [n + 1, n + 2], lambda n: 0.0, width=2, depth=3)
    assert found.best is None
    assert found.reward == -math.inf
    final = re.state_beam_search(0, lambda n: [], float, width=1, depth=1)
    assert final.path == (0,)


def test_a_beam_counts_what_it_expands_and_keeps_first_ways() -> None:
    # Two ways lead to the same place, and two ends are worth the same.
    tree = {"start": ["up", "down"], "up": ["same"], "down": ["same", "end"], "same": ["last"]}
    worth = {"end": 2.0, "last": 2.0}
    found = re.state_beam_search(
        "start", lambda s: tree.get(s, []), lambda s: worth.get(s, 0.0), width=2, depth=3
    )
    assert found.path == ("start", "down", "end")
    assert found.expanded == 6  # start; up, down; same, end; last
    del worth["end"]
    again = re.state_beam_search(
        "start", lambda s: tree.get(s, []), lambda s: worth.get(s, 0.0), width=2, depth=3
    )
    assert again.path == ("start", "up", "same", "last")
    narrow = re.state_beam_search(
        "start", lambda s: tree.get(s, []), lambda s: worth.get(s, 0.0), width=1, depth=3
    )
    assert narrow.expanded == 4


def test_exploration_is_what_was_asked_for() -> None:
    def two(state: int) -> list[int]:
        return [1, 2] if state == 0 else []

    g = torch.Generator().manual_seed(0)
    greedy = re.mcts(0, two, float, simulations=20, generator=g, exploration=0.0)
    assert greedy.visits == {1: 1, 2: 19}
    curious = re.mcts(0, two, float, simulations=20, generator=g, exploration=1e6)
    assert curious.visits == {1: 10, 2: 10}
    short = re.mcts(0, two, float, simulations=2, generator=g)
    assert short.expanded == 1  # a leaf is expanded when it is visited again
    line = re.mcts(
        0, lambda n: [n + 1] if n < 4 else [], float, simulations=1, generator=g, exploration=1.0
    )
    assert line.path == (0, 1, 2, 3, 4)
    assert line.expanded == 4  # the start, and three in playing on
    kept = {
        re.mcts(
            0, two, lambda n: 0.5, simulations=n, generator=torch.Generator().manual_seed(3)
        ).path
        for n in range(1, 9)
    }
    assert len(kept) == 1  # of equal ones the first that was found


def test_wrong_input_is_told(own_checks: None) -> None:
    g = torch.Generator()
    with pytest.raises(ValueError, match="the start is final"):
        re.mcts(0, lambda n: [], float, simulations=3, generator=g)
    with pytest.raises(ValueError, match="rewards must be finite"):
        re.mcts(0, lambda n: [] if n else [1], lambda n: math.nan, simulations=3, generator=g)
    with pytest.raises(ValueError, match="players"):
        re.mcts(0, lambda n: [1], float, simulations=3, generator=g, players=3)
    with pytest.raises(ValueError, match="parent_visits"):
        re.uct_score(0.5, visits=5, parent_visits=4)
    with pytest.raises(ValueError, match="exploration"):
        re.uct_score(0.5, visits=4, parent_visits=5, exploration=-1.0)
    with pytest.raises(ValueError, match="width"):
        re.state_beam_search(0, lambda n: [1], float, width=0, depth=1)
