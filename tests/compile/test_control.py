"""What changes logits at each step compiles without a break, and gives the same."""

import torch

from companion.core import generator
from companion.generation import control as co


def test_guidance_compiles() -> None:
    g = generator(0)
    a, b, c = (torch.randn(3, 11, generator=g) for _ in range(3))

    def step(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        moved = co.guided_logits(a, b, 1.5)
        return co.bayes_logits(co.experts_logits(moved, b, c, 0.7), c.sigmoid().log())

    compiled = torch.compile(step, fullgraph=True)
    torch.testing.assert_close(compiled(a, b, c), step(a, b, c))


def test_masks_are_looked_up_in_a_compiled_step() -> None:
    words = co.Vocabulary([b"", b"y", b"es", b"yes", b"no"])
    index = co.TokenIndex.from_regex("yes|no", words, stop=[0])

    def step(states: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return logits.masked_fill(~index.allowed(states), -torch.inf)

    states, logits = torch.tensor([0, 0]), torch.randn(2, 5, generator=generator(0))
    compiled = torch.compile(step, fullgraph=True)
    torch.testing.assert_close(compiled(states, logits), step(states, logits))
