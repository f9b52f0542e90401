"""Checks at the door: right input passes silently, wrong input is named."""

import pytest
import torch

from companion.core import (
    check_finite,
    check_floating,
    check_ids,
    check_in_range,
    check_same_shape,
    check_shape,
)


def test_right_input_passes():
    check_shape("x", torch.ones(3, 5), (None, 5))
    check_same_shape("x", torch.ones(3), "y", torch.zeros(3))
    check_floating("x", torch.ones(3, dtype=torch.bfloat16))
    check_in_range("p", 0.0, low=0.0, high=1.0)
    check_ids("ids", torch.tensor([0, 6, -100]), 7, ignore=-100)
    check_finite("x", torch.ones(3))


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (
            lambda: check_shape("x", torch.ones(3, 5), (None, 7)),
            r"x must have shape \(\*, 7\), got \(3, 5\)",
        ),
        (
            lambda: check_shape("x", torch.ones(3, 5), (3,)),
            r"x must have shape \(3,\), got \(3, 5\)",
        ),
        (
            lambda: check_same_shape("x", torch.ones(3), "y", torch.ones(5)),
            r"x and y .* \(3,\) and \(5,\)",
        ),
        (
            lambda: check_floating("x", torch.ones(3, dtype=torch.int32)),
            r"x must be floating, got torch.int32",
        ),
        (
            lambda: check_in_range("p", 1.0, high=1.0, open_high=True),
            r"p must lie in \[-inf, 1.0\), got 1.0",
        ),
        (lambda: check_in_range("p", float("nan"), low=0.0), "got nan"),
        (lambda: check_ids("ids", torch.tensor([0, 7]), 7), r"ids must lie in \[0, 7\), got 7"),
        (lambda: check_ids("ids", torch.tensor([-1]), 7, ignore=-100), r"got -1"),
        (
            lambda: check_ids("ids", torch.tensor([0.5]), 7),
            "ids must hold integers, got torch.float32",
        ),
        (
            lambda: check_ids("ids", torch.tensor([True]), 7),
            "ids must hold integers, got torch.bool",
        ),
        (
            lambda: check_finite("x", torch.tensor([1.0, float("inf"), float("nan")])),
            "2 of 3 entries",
        ),
    ],
)
def test_wrong_input_is_named(check, message):
    with pytest.raises(ValueError, match=message):
        check()


def test_values_that_cannot_be_read_are_not_read():
    check_ids("ids", torch.empty(3, dtype=torch.long, device="meta"), 7)
    check_finite("x", torch.empty(3, device="meta"))
    check_ids("ids", torch.empty(0, dtype=torch.long), 7)


def test_narrow_ids_are_compared_as_numbers_not_wrapped_around():
    check_ids("ids", torch.tensor([0, 127], dtype=torch.int8), 49_152)
    with pytest.raises(ValueError, match=r"\[0, 256\), got -1"):
        check_ids("ids", torch.tensor([-1], dtype=torch.int8), 256)


def test_checks_let_vmap_through():
    def picked(table, ids):
        check_ids("ids", ids, 5)
        check_finite("table", table)
        return table[ids].sum()

    tables, ids = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.ones(3, 2)
    got = torch.func.vmap(torch.func.grad(picked))(tables, ids.long())
    assert torch.equal(got, torch.tensor([0.0, 2.0, 0.0, 0.0, 0.0]).expand(3, 5))
