"""Lottery tickets on handwritten digits: rewound masks against three controls, and RigL.

A network of 64, 128, 64 and 10 units is trained, half of its remaining weights are removed by
magnitude over all layers, and the rest is set back to where it began; again and again. Each mask
is also trained from other first weights, and masks with as many random places in each layer from
the first weights. RigL starts with random places, too, and moves them while it trains.

python book/_runs/sparsity_tickets.py      # about a minute of CPU time
"""

import argparse
import itertools
import time
from typing import Any

import torch
from _store import store
from torch import Tensor

from companion import data
from companion.core import rand, randn
from companion.efficiency.sparsity import RigL, global_masks, top_mask
from companion.foundations.cross_entropy import cross_entropy

SIZES = (64, 128, 64, 10)


def first_weights(g: torch.Generator) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(SIZES)):
        made[f"W{layer}"] = randn(inputs, outputs, generator=g) * (2 / inputs) ** 0.5
        made[f"b{layer}"] = torch.zeros(outputs)
    return made


def logits(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    for layer in range(len(SIZES) - 1):
        x = x @ parameters[f"W{layer}"] + parameters[f"b{layer}"]
        if layer < len(SIZES) - 2:
            x = x.relu()
    return x


class Digits:
    """Images to learn from and images to be tested on, the same for all seeds."""

    def __init__(self, tests: int) -> None:
        table = data.digits()
        images, labels = table.images, table.labels
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1000))
        self.x, self.y = images[order[tests:]], labels[order[tests:]]
        self.test_x, self.test_y = images[order[:tests]], labels[order[:tests]]

    @torch.no_grad()
    def accuracy(self, parameters: dict[str, Tensor]) -> float:
        right = logits(parameters, self.test_x).argmax(1) == self.test_y
        return float(right.float().mean())


def fit(
    digits: Digits,
    first: dict[str, Tensor],
    masks: dict[str, Tensor] | None,
    *,
    steps: int,
    g: torch.Generator,
    rigl: float | None = None,
) -> tuple[dict[str, Tensor], list[float]]:
    """Return the trained weights, and the test accuracies after a quarter of the steps and all."""
    params = {name: torch.nn.Parameter(value.clone()) for name, value in first.items()}
    matrices = {name: params[name] for name in params if name.startswith("W")}
    optimizer = torch.optim.Adam(params.values(), lr=2e-3)
    moving = None
    if rigl is not None:
        moving = RigL(matrices, sparsity=rigl, generator=g, every=25, end=3 * steps // 4)
    scores = []

    def apply() -> None:
        if masks is not None:
            with torch.no_grad():
                for name, mask in masks.items():
                    params[name].mul_(mask)

    apply()
    for step in range(1, steps + 1):
        rows = torch.randint(0, len(digits.x), (60,), generator=g)
        optimizer.zero_grad()
        cross_entropy(logits(params, digits.x[rows]), digits.y[rows]).backward()
        if masks is not None:
            for name, mask in masks.items():
                params[name].grad.mul_(mask)  # type: ignore[union-attr]
        if moving is None or not moving.after_backward():
            optimizer.step()
        apply()
        if moving is not None:
            moving.after_step(optimizer)
        if step in (steps // 4, steps):
            scores.append(digits.accuracy(params))
    return {name: value.detach() for name, value in params.items()}, scores


def compare(*, seeds: list[int], rounds: int, steps: int, tests: int) -> dict[str, Any]:
    digits = Digits(tests)
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        g = torch.Generator().manual_seed(seed)
        first = first_weights(g)
        names = [name for name in first if name.startswith("W")]
        masks = {name: torch.ones_like(first[name], dtype=torch.bool) for name in names}
        for number in range(rounds + 1):
            kept = 0.5**number
            trained, ticket = fit(digits, first, masks, steps=steps, g=g)
            found = {"ticket": ticket}
            if number:
                found["other weights"] = fit(digits, first_weights(g), masks, steps=steps, g=g)[1]
                random = {
                    name: top_mask(
                        rand(*mask.shape, generator=g),
                        sparsity=1 - float(mask.float().mean()),
                    )
                    for name, mask in masks.items()
                }
                found["other places"] = fit(digits, first, random, steps=steps, g=g)[1]
                found["RigL"] = fit(digits, first, None, steps=steps, g=g, rigl=1 - kept)[1]
            runs.append({"seed": seed, "kept": kept, "found": found})
            layers = {name: float(mask.float().mean()) for name, mask in masks.items()}
            runs[-1]["layers"] = layers
            print(seed, f"{kept:.3f}", {k: [round(x, 3) for x in v] for k, v in found.items()})
            scores = {name: trained[name].abs() for name in names}
            masks = global_masks(scores, sparsity=1 - kept / 2, among=masks)
    return {"runs": runs, "steps": steps, "tests": tests, "sizes": list(SIZES)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds")
    parser.add_argument("--rounds", type=int, default=6, help="halvings")
    parser.add_argument("--steps", type=int, default=400, help="updates of each training")
    parser.add_argument("--tests", type=int, default=597, help="images that are held out")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    results = compare(
        seeds=list(range(options.seed, options.seed + options.seeds)),
        rounds=options.rounds,
        steps=options.steps,
        tests=options.tests,
    )
    seconds = time.perf_counter() - began
    store("sparsity_tickets", results, seed=options.seed, seconds=seconds)


if __name__ == "__main__":
    main()
