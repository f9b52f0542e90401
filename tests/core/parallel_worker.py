"""Train a small language model on some processes; tests start this file with torchrun.

Arguments: a JSON list of settings, one a run, and the folder where process 0 stores what came out.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from companion.core import Checkpoints, LossModule, generator, parallelize, processes, train
from companion.core.parallel import is_parallel
from companion.foundations import optimization
from companion.pretraining.autoregressive import PackedTokens, next_token_loss
from companion.transformer.block import Decoder, TransformerConfig, initialize_

CONFIG = TransformerConfig(
    vocab=23,
    dim=12,
    layers=2,
    heads=3,
    ff_dim=29,
    context=7,
    norm="rms",
    activation="swiglu",
    attention_bias=False,
    ff_bias=False,
)


def run(settings, here):
    """Train, and return losses, norms and whole weights."""
    torch.manual_seed(here.rank)  # parallelize must even this out
    decoder = Decoder(CONFIG).to(here.device, getattr(torch, settings.get("dtype", "float64")))
    if here.main:
        initialize_(decoder, generator=generator(5))
    model = parallelize(
        LossModule(decoder, next_token_loss),
        settings.get("kind", "none"),
        activation_checkpointing=settings.get("recompute", False),
        compile=settings.get("compile", False),
    )
    together = settings.get("kind", "none") != "none" and here.world > 1
    assert is_parallel(model) == together, "gradients are exchanged where a model is wrapped"
    accumulate = settings.get("accumulate", 1)
    text = torch.randint(23, (7 * 41 + 1,), generator=generator(3), dtype=torch.int32)
    data = PackedTokens(
        text,
        context=7,
        batch=12 // (here.world * accumulate),
        rank=here.rank,
        world=here.world,
        device=here.device,
        seed=11,
    )
    home = optimization if settings.get("own") else torch.optim
    parameters = list(model.parameters())
    if settings.get("optimizer") == "Muon":
        parameters = [p for name, p in model.named_parameters() if "blocks" in name and p.ndim == 2]
    optimizer = getattr(home, settings.get("optimizer", "AdamW"))(parameters, lr=0.01)
    checkpoints = None
    if "directory" in settings:
        checkpoints = Checkpoints(
            settings["directory"], model=decoder, every=3, generators={"own": generator(1)}
        )

    def on_step(step, _):
        if step == settings.get("kill") and here.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    log = train(
        model,
        data,
        optimizer,
        steps=12,
        clip_norm=0.5,
        schedule=lambda step: 1 / (1 + 0.1 * step),
        accumulate=accumulate,
        autocast=torch.bfloat16 if settings.get("bf16") else None,
        checkpoints=checkpoints,
        on_step=on_step,
    )
    assert decoder.head.weight is decoder.tokens.weight
    made = {"loss": log.loss, "grad_norm": log.grad_norm, "held": torch.tensor(0)}
    for name, parameter in decoder.named_parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        made["held"] += local.numel()
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        made[name] = whole.detach().cpu()
    return made


def main(several, folder):
    with processes(several[0].get("device", "cpu")) as here:
        for index, settings in enumerate(several):
            made = run(settings, here)
            if here.main:
                save_file(made, Path(folder) / f"{index}.safetensors")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
