"""Learn from rewards on some processes; tests start this file with torchrun.

Arguments: a JSON list of settings, one a run, and the folder where process 0 stores what came out.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from companion.core import generator, processes
from companion.frontiers.reinforcement import grpo_advantages, reinforce, rloo_advantages
from companion.transformer.block import Decoder, TransformerConfig, initialize_

CONFIG = TransformerConfig(
    vocab=11,
    dim=12,
    layers=2,
    heads=3,
    ff_dim=29,
    context=13,
    norm="rms",
    activation="swiglu",
    attention_bias=False,
    ff_bias=False,
)
PROMPTS = [torch.tensor([1 + k % 5, *([2] * (k % 3)), 7]) for k in range(7)]


def threes(numbers, answers):
    """A point for each 3, and one for an answer of another length than the prompt's number."""
    return [
        answer.count(3) + 0.5 * (len(answer) != n % 4)
        for n, answer in zip(numbers, answers, strict=True)
    ]


def run(settings, here=None):
    """Learn, and return what was watched and the whole weights."""
    model = Decoder(CONFIG).to(dtype=torch.float64)
    initialize_(model, generator=generator(5))
    kill = settings.get("kill")

    def on_step(step, _):
        if step == kill and here is not None and here.rank == here.world - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    log = reinforce(
        model,
        PROMPTS,
        threes,
        steps=settings.get("steps", 6),
        tokens=5,
        stop=[0],
        prompts_per_step=4,
        group=6,
        lr=0.02,
        parallel=settings.get("kind", "none"),
        updates=settings.get("updates", 1),
        normalize=settings.get("normalize", "token"),
        beta=settings.get("beta", 0.0),
        penalty=settings.get("penalty", "reward"),
        batch_size=settings.get("batch_size", 5),
        advantages=rloo_advantages if settings.get("rloo") else grpo_advantages,
        schedule=lambda step: 1 / (1 + 0.1 * step),
        directory=settings.get("directory"),
        save_every=2,
        seed=settings.get("seed", 3),
        on_step=on_step,
    )
    made = {
        name: column.clone()
        for name, column in vars(log).items()
        if isinstance(column, torch.Tensor)
    }
    for name, parameter in model.named_parameters():
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        made[f"weight {name}"] = whole.detach().clone()
    return made


def main(several, folder):
    with processes("cpu") as here:
        for index, settings in enumerate(several):
            made = run(settings, here)
            if here.main:
                save_file(made, Path(folder) / f"{index}.safetensors")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
