"""Small language models of characters: layers that share their weights, and experts by turns.

All read Shakespeare's plays, 16 rows of 64 characters a step. Held out are six plays.

python book/_runs/sparsity_models.py      # about 3 minutes of CPU time
"""

import argparse
import time
from typing import Any

import torch
from _store import store
from torch import Tensor, nn

from companion import data
from companion.core import watch
from companion.efficiency.sparsity import (
    MixtureOfExperts,
    balance_bias,
    experts_factory,
    load_balance,
    parameter_uses,
    share_blocks_,
)
from companion.foundations.cross_entropy import cross_entropy
from companion.transformer.block import Decoder, Rope, TransformerConfig, initialize_

HELD_OUT = ("Twelfth Night", "King John", "Henry VIII", "Macbeth", "Coriolanus")
LAYERS, DIM, FF = 4, 64, 256


def config(vocab: int, layers: int = LAYERS) -> TransformerConfig:
    return TransformerConfig(
        vocab=vocab,
        dim=DIM,
        layers=layers,
        heads=4,
        ff_dim=FF,
        context=64,
        positions=Rope(),
        tied=True,
    )


def models(vocab: int) -> dict[str, Decoder]:
    full = config(vocab)
    return {
        "4 layers": Decoder(full),
        "1 layer, 4 times": share_blocks_(Decoder(full)),
        "2 layers, twice each": share_blocks_(Decoder(full), groups=2),
        "1 layer": Decoder(config(vocab, 1)),
        "experts, no balance": Decoder(full, feed_forward=experts_factory(experts=8)),
        "experts, loss": Decoder(full, feed_forward=experts_factory(experts=8)),
        "experts, bias": Decoder(full, feed_forward=experts_factory(experts=8)),
    }


def shares(mixtures: list[MixtureOfExperts], seen: list[Tensor]) -> list[list[float]]:
    """Of each layer, the share of the choices that falls on each expert."""
    made = []
    for mixture, logits in zip(mixtures, seen, strict=True):
        counts = torch.bincount(mixture.routing(logits).experts.flatten(), minlength=8)
        made.append([round(x, 4) for x in (counts / counts.sum()).tolist()])
    return made


def compare(*, seeds: list[int], steps: int) -> dict[str, Any]:
    plays = data.shakespeare_plays()
    learn = "".join(text for title, text in plays.items() if title not in HELD_OUT)
    held = "".join(plays[title][2000:12000] for title in HELD_OUT)
    letters = sorted(set(learn + held))
    place = {letter: number for number, letter in enumerate(letters)}
    train = torch.tensor([place[letter] for letter in learn])
    test = torch.tensor([place[letter] for letter in held])
    test = test[: 65 * 128].reshape(-1, 65)
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        for name, model in models(len(letters)).items():
            began = time.perf_counter()
            g = torch.Generator().manual_seed(seed)
            initialize_(model, generator=g)
            optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
            mixtures = [m for m in model.modules() if isinstance(m, MixtureOfExperts)]
            read = ["*.router_logits"] if mixtures else []
            curve = []
            for step in range(1, steps + 1):
                at = torch.randint(0, len(train) - 65, (16, 1), generator=g)
                rows = train[at + torch.arange(65)]
                for group in optimizer.param_groups:
                    group["lr"] = 3e-3 * min(step / 50, 1.0, (steps + 1 - step) / (steps / 2))
                with watch(model, read=read) as seen:
                    loss = nats(model, rows)
                routed = [m.routing(z) for m, z in zip(mixtures, seen.values(), strict=True)]
                if name == "experts, loss":
                    loss = loss + 0.01 * torch.stack([load_balance(r) for r in routed]).sum()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                if name == "experts, bias":
                    for mixture, r in zip(mixtures, routed, strict=True):
                        mixture.choice_bias = balance_bias(mixture.choice_bias, r, rate=3e-3)
                if step % (steps // 2) == 0:
                    with torch.no_grad():
                        curve.append([step, float(nats(model, test))])
            with torch.no_grad(), watch(model, read=read) as seen:
                nats(model, test)
            counted = parameter_uses(model)
            runs.append(
                {
                    "model": name,
                    "seed": seed,
                    "stored": counted.stored,
                    "used": counted.used,
                    "curve": curve,
                    "load": shares(mixtures, list(seen.values())),
                }
            )
            spent = time.perf_counter() - began
            print(seed, name, curve[-1], counted, f"{spent:.0f} s", flush=True)
    return {"runs": runs, "steps": steps, "tokens": 16 * 64, "test_tokens": test.shape[0] * 64}


def nats(model: Decoder, rows: Tensor) -> Tensor:
    return cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=2, help="how many seeds")
    parser.add_argument("--steps", type=int, default=240, help="updates of each training")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    seeds = list(range(options.seed, options.seed + options.seeds))
    results = compare(seeds=seeds, steps=options.steps)
    seconds = time.perf_counter() - began
    store("sparsity_models", results, seed=options.seed, seconds=seconds)


if __name__ == "__main__":
    main()
