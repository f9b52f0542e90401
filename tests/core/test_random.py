"""Randomness: repeatable, independent of the device, and never global."""

import pytest
import torch

from companion.core import generator, rand, randint, randn

DRAWS = {
    "randn": lambda g, **kw: randn(3, 5, generator=g, **kw),
    "rand": lambda g, **kw: rand(3, 5, generator=g, **kw),
    "randint": lambda g, **kw: randint(2, 11, (3, 5), generator=g, **kw),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_equal_seeds_give_equal_numbers_on_every_device(draw, device):
    here, there = draw(generator(7)), draw(generator(7), device=device)
    assert there.device.type == device.type
    torch.testing.assert_close(here, there.cpu(), rtol=0, atol=0)
    assert not torch.equal(here, draw(generator(8)))


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_the_global_state_is_left_alone(draw):
    before = torch.get_rng_state()
    draw(generator(0))
    assert torch.equal(before, torch.get_rng_state())


def test_a_cpu_generator_serves_the_meta_device():
    assert randn(3, 5, generator=generator(0), device="meta").is_meta


def test_no_axes_give_a_single_number():
    assert randn(generator=generator(0)).shape == ()
    assert rand(generator=generator(0)).shape == ()


def test_dtypes_and_ranges():
    assert randn(3, generator=generator(0), dtype=torch.float64).dtype == torch.float64
    drawn = randint(2, 5, (1000,), generator=generator(0))
    assert set(drawn.tolist()) == {2, 3, 4}
    assert float(rand(1000, generator=generator(0)).min()) >= 0
    assert float(rand(1000, generator=generator(0)).max()) < 1


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="seed must be 0 or above, got -1"):
        generator(-1)
    with pytest.raises(ValueError, match=r"\[5, 5\)"):
        randint(5, 5, (3,), generator=generator(0))
