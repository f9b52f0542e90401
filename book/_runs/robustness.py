"""Train digits against an opponent, under noise, and by groups; learn to learn sine waves.

Some minutes of one core, three seeds each. First networks of two hidden layers on the 8 x 8 digits:
trained as usual, on examples of one fast step, and on those of seven projected ones. Then the same
network under Gaussian noise, with certificates. Then even against odd digits, where a bright corner
agrees with the label in nearly all training pictures: by the mean, by batches with equal groups,
and by the worst group. Last, starts for sine waves: ordinary training, MAML, FOMAML, Reptile.
"""

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion import data
from companion.core import generator, rand, randn
from companion.knowledge.robustness import (
    GroupDRO,
    accuracy,
    certified_accuracy,
    certify,
    fgsm,
    maml,
    pgd,
    reptile,
    sine_tasks,
    smooth_predict,
    smooth_votes,
)

sys.path.insert(0, str(Path(__file__).parent))
from _store import store

TRAIN = 1297
EPS = 0.15
GRID = [0.0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3]
RADII = [round(0.1 * k, 1) for k in range(21)]
SIGMAS = [0.25, 0.5]
INNER, TASKS, SHOTS = 0.01, 25, 10


def network(g: torch.Generator, sizes: tuple[int, ...] = (64, 128, 128, 10)) -> nn.Sequential:
    """A network with rectified units, drawn as PyTorch draws, but from our generator."""
    parts: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
        with torch.no_grad():
            for tensor in (layer.weight, layer.bias):
                tensor.copy_((2 * rand(*tensor.shape, generator=g) - 1) / math.sqrt(inputs))
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def split(g: torch.Generator) -> tuple[Tensor, ...]:
    """Digits in an order of chance: training and test."""
    found = data.digits()
    order = torch.randperm(len(found), generator=g)
    x, y = found.images[order], found.labels[order]
    return x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:]


def fit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    change: Callable[[Tensor, Tensor], Tensor],
    *,
    epochs: int,
    g: torch.Generator,
) -> None:
    """Train on changed examples."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=g).split(64):
            changed = change(x[rows], y[rows])
            loss = F.cross_entropy(model(changed), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def opponents(seed: int, epochs: int) -> list[dict[str, Any]]:
    """Accuracy against each attack and radius, for three ways to train."""
    g = generator(seed)
    x, y, far, truth = split(g)
    rows = []
    for arm in ("standard", "fgsm", "pgd"):
        model = network(g)

        def change(a: Tensor, b: Tensor, model: nn.Module = model, arm: str = arm) -> Tensor:
            if arm == "standard":
                return a
            if arm == "fgsm":
                return fgsm(model, a, b, eps=EPS)
            return pgd(model, a, b, eps=EPS, step=EPS / 4, steps=7, generator=g)

        start = time.process_time()
        fit(model, x, y, change, epochs=epochs, g=g)
        seconds = time.process_time() - start
        told: dict[str, Any] = {"arm": arm, "seed": seed, "fgsm": [], "pgd": [], "noise": []}
        for eps in GRID:
            one = fgsm(model, far, truth, eps=eps)
            many = pgd(model, far, truth, eps=eps, step=max(eps, 1e-6) / 10, steps=40, generator=g)
            signs = torch.where(rand(*far.shape, generator=g) < 0.5, -eps, eps)
            for name, points in (
                ("fgsm", one),
                ("pgd", many),
                ("noise", (far + signs).clamp(0, 1)),
            ):
                told[name].append(round(accuracy(model, points, truth), 4))
        print(arm, seed, told["pgd"], f"{seconds:.0f} s", flush=True)
        rows.append({**told, "seconds": round(seconds, 1)})
    return rows


def certificates(seed: int, epochs: int, samples: int, count: int) -> list[dict[str, Any]]:
    """Certified accuracy by radius, of networks that were trained under noise."""
    g = generator(100 + seed)
    x, y, far, truth = split(g)
    far, truth = far[:count], truth[:count]
    rows = []
    for sigma in SIGMAS:
        model = network(g)

        def change(a: Tensor, _: Tensor, sigma: float = sigma) -> Tensor:
            return a + sigma * randn(*a.shape, generator=g)

        fit(model, x, y, change, epochs=2 * epochs, g=g)
        made = certify(model, far, sigma=sigma, samples=samples, generator=g)
        curve = certified_accuracy(made, truth, torch.tensor(RADII))
        voted = smooth_predict(smooth_votes(model, far, sigma=sigma, samples=200, generator=g))
        # Attacked by length, the network without its votes.
        attacked = [
            accuracy(
                model,
                pgd(model, far, truth, eps=r, step=r / 5, steps=20, norm=2, generator=g),
                truth,
            )
            for r in RADII[1:11]
        ]
        rows.append(
            {
                "sigma": sigma,
                "seed": seed,
                "certified": [round(v, 4) for v in curve.tolist()],
                "clean": round(accuracy(model, far, truth), 4),
                "voted": round(float((voted == truth).double().mean()), 4),
                "attacked": [round(v, 4) for v in attacked],
            }
        )
        print("sigma", sigma, seed, rows[-1]["certified"][::5], flush=True)
    return rows


def with_corner(x: Tensor, bright: Tensor) -> Tensor:
    """Pictures whose first two rows of corner pixels are bright or dark."""
    marked = x.view(-1, 8, 8).clone()
    marked[:, :2, :2] = bright[:, None, None].to(x.dtype)
    return marked.flatten(1)


def groups(seed: int, steps: int) -> list[dict[str, Any]]:
    """Accuracy of four groups, for three ways to train where a corner gives the label away."""
    g = generator(200 + seed)
    x, y, far, truth = split(g)
    odd, far_odd = y % 2, truth % 2
    against = rand(len(x), generator=g) < 0.03  # where the corner does not agree
    bright = odd.bool() ^ against
    train, group = with_corner(x, bright), 2 * odd + bright.long()
    sizes = torch.bincount(group, minlength=4)
    rows = []
    for arm in ("mean", "balanced", "worst group"):
        model = network(g, (64, 64, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        dro = GroupDRO(4, step=0.01)
        chances = 1 / sizes[group] if arm != "mean" else torch.ones(len(x))
        for _ in range(steps):
            pick = torch.multinomial(chances, 128, replacement=True, generator=g)
            losses = F.cross_entropy(model(train[pick]), odd[pick], reduction="none")
            loss = dro.loss(losses, group[pick]) if arm == "worst group" else losses.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found = []
        for label in (0, 1):
            for light in (False, True):
                some = far_odd == label
                seen = with_corner(far[some], torch.full((int(some.sum()),), light))
                found.append(round(accuracy(model, seen, far_odd[some]), 4))
        rows.append({"arm": arm, "seed": seed, "groups": found, "sizes": sizes.tolist()})
        print(arm, seed, found, flush=True)
    return rows


def waves(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """A network of width 40 for each task, all tasks at once; (tasks, points)."""
    h = x[..., None]
    for layer in range(3):
        h = h @ parameters[f"w{layer}"] + parameters[f"b{layer}"]
        h = h.relu() if layer < 2 else h
    return h[..., 0]


def start_of_waves(g: torch.Generator) -> dict[str, Tensor]:
    """A start for one task."""
    made = {}
    for layer, (inputs, outputs) in enumerate(((1, 40), (40, 40), (40, 1))):
        scale = 1 / math.sqrt(inputs)
        made[f"w{layer}"] = scale * (2 * rand(inputs, outputs, generator=g) - 1)
        made[f"b{layer}"] = scale * (2 * rand(1, outputs, generator=g) - 1)
    return made


def spread(parameters: dict[str, Tensor], tasks: int) -> dict[str, Tensor]:
    """One copy for each task."""
    return {name: p.expand(tasks, *p.shape) for name, p in parameters.items()}


def points(waves_of: Any, count: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points of each wave."""
    x = 10 * rand(len(waves_of.amplitude), count, generator=g) - 5
    return x, waves_of(x)


def squared(x: Tensor, y: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    """The sum over tasks of mean squared errors: tasks do not mix."""
    return lambda p: (waves(p, x) - y).square().mean(1).sum()


def learn_to_learn(arm: str, seed: int, steps: int) -> dict[str, Tensor]:
    """Find a start by one of four ways; the same tasks for each."""
    g = generator(300 + seed)
    start = start_of_waves(g)
    held = {name: nn.Parameter(p.clone()) for name, p in start.items()}
    optimizer = torch.optim.Adam(held.values(), lr=1e-3)
    for _ in range(steps):
        tasks = sine_tasks(TASKS, generator=g)
        train, test = (squared(*points(tasks, SHOTS, g)) for _ in range(2))
        copies = spread({name: p.detach() for name, p in held.items()}, TASKS)
        if arm == "reptile":
            slopes = reptile([train, test, train, test, train], copies, lr=INNER)
        else:
            many = {"ordinary": 0}.get(arm, 1)
            made = maml(train, test, copies, lr=INNER, steps=many, first_order=arm == "fomaml")
            slopes = made.gradients
        for name, p in held.items():
            p.grad = slopes[name].mean(0)
        optimizer.step()
    return {name: p.detach() for name, p in held.items()}


def adapted_errors(start: dict[str, Tensor], seed: int, tasks: int) -> list[float]:
    """Mean squared error on new waves after 0 to 10 steps on ten points."""
    g = generator(400 + seed)
    made = sine_tasks(tasks, generator=g)
    train, (x, y) = squared(*points(made, SHOTS, g)), points(made, 100, g)
    held = {name: p.clone() for name, p in spread(start, tasks).items()}
    errors = []
    for step in range(11):
        if step:
            for p in held.values():
                p.requires_grad_()
            slopes = torch.autograd.grad(train(held), list(held.values()))
            held = {
                name: (p - INNER * slope).detach()
                for (name, p), slope in zip(held.items(), slopes, strict=True)
            }
        errors.append(round(float((waves(held, x) - y).square().mean()), 4))
    return errors


def main(argv: list[str] | None = None) -> None:
    """Train, attack, certify, adapt, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--certify", type=int, default=300)
    parser.add_argument("--group-steps", type=int, default=1500)
    parser.add_argument("--meta-steps", type=int, default=6000)
    parser.add_argument("--meta-tests", type=int, default=600)
    asked = parser.parse_args(argv)
    begin = time.perf_counter()
    torch.set_num_threads(1)
    results: dict[str, Any] = {
        "eps": EPS,
        "grid": GRID,
        "radii": RADII,
        "epochs": asked.epochs,
        "samples": asked.samples,
        "certified_on": asked.certify,
        "meta_steps": asked.meta_steps,
        "meta_tests": asked.meta_tests,
        "opponents": [],
        "certificates": [],
        "groups": [],
        "meta": [],
    }
    for seed in range(asked.seeds):
        results["opponents"] += opponents(seed, asked.epochs)
        results["certificates"] += certificates(seed, asked.epochs, asked.samples, asked.certify)
        results["groups"] += groups(seed, asked.group_steps)
        for arm in ("ordinary", "maml", "fomaml", "reptile"):
            begun = time.process_time()
            start = learn_to_learn(arm, seed, asked.meta_steps)
            errors = adapted_errors(start, seed, asked.meta_tests)
            seconds = round(time.process_time() - begun, 1)
            row = {"arm": arm, "seed": seed, "errors": errors, "seconds": seconds}
            results["meta"].append(row)
            print(arm, seed, errors[::5], f"{seconds:.0f} s", flush=True)
    store("robustness", results, seed=0, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
