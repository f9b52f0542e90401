"""One run of the training command: the model, its data, progress, and what is left at the end."""

import argparse
import json
import math
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from companion._console import write
from companion.command._corpus import WORK, Corpus, read_tokenizer
from companion.command._options import interval
from companion.command._writing import continue_prompt
from companion.core import (
    Checkpoints,
    LossModule,
    Processes,
    TrainingLog,
    average_,
    generator,
    on_main,
    parallelize,
    train,
)
from companion.core._storage import write_atomically
from companion.foundations.optimization import warmup_cosine
from companion.models import TextDecoder, save_pretrained
from companion.pretraining.autoregressive import PackedTokens, llama_config, next_token_loss
from companion.transformer.block import (
    Decoder,
    TransformerConfig,
    initialize_,
    parameter_count,
)

__all__ = ["decoder_config", "kind_of", "require_model", "run", "share_of"]


def decoder_config(settings: dict[str, Any], vocab: int) -> TransformerConfig:
    """Describe the model that the settings ask for."""
    return llama_config(
        (settings["layers"], settings["dim"], settings["heads"]),
        vocab=vocab,
        context=settings["context"],
        kv_heads=settings["kv_heads"],
        ff_dim=settings["ff_dim"],
        tied=True,
        dropout=settings["dropout"],
    )


def share_of(settings: dict[str, Any], here: Processes) -> int:
    """Return how many blocks a process reads at once."""
    batch, accumulate = int(settings["batch"]), int(settings["accumulate"])
    share, left = divmod(batch, here.world * accumulate)
    if left or not share:
        raise ValueError(
            f"--batch {batch} cannot be shared by {here.world} processes "
            f"with {accumulate} batches each"
        )
    return share


def kind_of(parallel: str, here: Processes) -> Literal["none", "ddp", "fsdp"]:
    """Return how processes work together, as :func:`companion.core.parallelize` calls it."""
    if parallel == "auto":
        return "ddp" if here.world > 1 else "none"
    if parallel == "none" and here.world > 1:
        raise ValueError(f"{here.world} processes run: --parallel must be ddp or fsdp")
    if parallel != "none" and not torch.distributed.is_initialized():
        raise ValueError(f"{parallel!r} needs processes that know each other: start with torchrun")
    return "ddp" if parallel == "ddp" else "fsdp" if parallel == "fsdp" else "none"


def require_model(config: TransformerConfig, here: Processes) -> None:
    """Refuse a model that cannot be made, or trained: a system may end that without a word."""
    count = parameter_count(config, kind="decoder")
    # A weight, its gradient and two moments in float32; FSDP may share them.
    need = 16 * count // here.world
    if here.device.type == "cuda":
        have = torch.cuda.mem_get_info(here.device)[1]
    elif hasattr(os, "sysconf"):
        have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        have = need  # Windows does not tell
    if need > have:
        raise ValueError(
            f"a model of {count:,} parameters needs {need / 1e9:.3g} GB to be trained, and there "
            f"are {have / 1e9:.3g} GB: choose smaller sizes"
        )
    with torch.device("meta"):  # no memory, and all checks
        Decoder(config)


# --- training ------------------------------------------------------------------------------------


class _HeldOut:
    """Bits per byte of the text that is held out, and what they were at earlier steps."""

    def __init__(self, ids: Tensor, size: int, settings: dict[str, Any], here: Processes) -> None:
        self.size = size
        self.here = here
        self.curve: list[tuple[int, float]] = []
        n, rows = settings["context"], max(1, settings["batch"])
        blocks = (len(ids) - 1) // n
        # Every token but the first, the end of a document, is predicted once.
        full = [(first, min(first + rows, blocks)) for first in range(0, blocks, rows)]
        self._parts = [ids[a * n : b * n + 1].unfold(0, n + 1, n) for a, b in full]
        if len(ids) - 1 > blocks * n:
            self._parts.append(ids[None, blocks * n :])

    @torch.no_grad()
    def measure(self, module: nn.Module, autocast: torch.dtype | None) -> float:
        """Test the model, each process on its share, and leave it in the mode it was in."""
        mode = module.training
        module.eval()
        device, world = self.here.device, self.here.world
        nats = 0.0
        for first in range(0, len(self._parts), world):
            mine = first + self.here.rank
            # All processes call the model equally often, since its calls may exchange weights.
            part = self._parts[mine if mine < len(self._parts) else 0].long().to(device)
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                found = module((part, "sum"))
            nats += float(found) if mine < len(self._parts) else 0.0
        module.train(mode)
        if world > 1:
            nats = world * float(average_(torch.tensor(nats, device=device).double()))
        return nats / (self.size * math.log(2))

    def state_dict(self) -> dict[str, Any]:
        """Return the curve."""
        return {"curve": [list(point) for point in self.curve]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a curve back."""
        self.curve = [(int(step), float(value)) for step, value in state["curve"]]


def _loss(model: Decoder, batch: Tensor | tuple[Tensor, str]) -> Tensor:
    if isinstance(batch, Tensor):
        return next_token_loss(model, batch)
    return next_token_loss(model, batch[0], reduction="sum")


def run(
    chosen: argparse.Namespace,
    out: Path,
    settings: dict[str, Any],
    corpus: Corpus,
    here: Processes,
) -> None:
    """Train from the beginning or the last checkpoint, and write the model."""
    config = decoder_config(settings, corpus.vocab)
    steps, accumulate = settings["steps"], settings["accumulate"]
    tokenizer = read_tokenizer(out / WORK)
    torch.manual_seed(settings["seed"] + here.rank)  # dropout draws from the global generator
    decoder = initialize_(Decoder(config), generator=generator(settings["seed"])).to(here.device)
    module = parallelize(
        LossModule(decoder, _loss),
        kind_of(chosen.parallel, here),
        activation_checkpointing=chosen.recompute,
        compile=chosen.compile,
    )
    data = PackedTokens(
        corpus.ids(out / WORK, "train"),
        context=config.context,
        batch=share_of(settings, here),
        seed=settings["seed"],
        rank=here.rank,
        world=here.world,
        device=here.device,
    )
    held_out = None
    if corpus.held_out_tokens > 1:
        ids = corpus.ids(out / WORK, "held_out")
        held_out = _HeldOut(ids, corpus.held_out_bytes, settings, here)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in module.parameters() if p.ndim > 1]},
        {"params": [p for p in module.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=settings["lr"], betas=(0.9, 0.95), weight_decay=settings["weight_decay"]
    )
    checkpoints = Checkpoints(
        out / WORK / "checkpoints",
        model=decoder,
        every=chosen.save_every,
        keep=chosen.keep,
        state={} if held_out is None else {"held_out": held_out},
    )
    autocast = torch.bfloat16 if settings["bf16"] else None
    _say(here, _introduction(config, corpus, data, checkpoints, steps, accumulate))
    report = _Report(chosen, settings, here, module, held_out, autocast, checkpoints)
    log = train(
        module,
        data,
        optimizer,
        steps=steps,
        schedule=partial(warmup_cosine, warmup=settings["warmup"], total=steps, floor=0.1),
        clip_norm=settings["clip"],
        autocast=autocast,
        accumulate=accumulate,
        checkpoints=checkpoints,
        on_step=report,
    )
    weights = {
        name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        for name, tensor in decoder.state_dict().items()
    }
    curve = [] if held_out is None else held_out.curve
    on_main(lambda: _finish(out, weights, config, tokenizer, corpus, settings, log, curve, here))


def _introduction(
    config: TransformerConfig,
    corpus: Corpus,
    data: PackedTokens,
    checkpoints: Checkpoints,
    steps: int,
    accumulate: int,
) -> str:
    count = parameter_count(config, kind="decoder")
    found = checkpoints.steps()
    lost = corpus.train_lost + corpus.held_out_lost
    lines = [
        f"{count:,} parameters, {corpus.vocab:,} tokens in the vocabulary",
        f"{corpus.train_tokens:,} tokens ({corpus.train_bytes:,} bytes) to learn from",
        f"{corpus.held_out_tokens:,} tokens ({corpus.held_out_bytes:,} bytes) held out",
        f"{steps:,} steps, {data.batch * data.world * accumulate * steps / data.blocks:.3g} epochs",
    ]
    if lost:
        lines.append(f"{lost:,} bytes that the tokenizer does not tell are not counted")
    if found:
        lines.append(f"going on after step {found[-1]}")
    return "\n".join(lines)


class _Report:
    """Progress: one line in a while, with the loss of all processes."""

    def __init__(
        self,
        chosen: argparse.Namespace,
        settings: dict[str, Any],
        here: Processes,
        module: nn.Module,
        held_out: _HeldOut | None,
        autocast: torch.dtype | None,
        checkpoints: Checkpoints,
    ) -> None:
        self.steps = settings["steps"]
        self.every = interval("report-every", chosen.report_every, self.steps, 50)
        self.evaluate_every = settings["evaluate_every"]
        self.tokens = settings["batch"] * settings["context"]
        self.here = here
        self.module = module
        self.held_out = held_out
        self.autocast = autocast
        self.first = (checkpoints.steps() or [0])[-1]
        self.start = self.last_time = time.perf_counter()
        self.last_step = self.first

    def __call__(self, step: int, loss: Tensor) -> None:
        """Report after some steps."""
        ends = step == self.steps
        tested = self.held_out is not None and (step % self.evaluate_every == 0 or ends)
        if not (tested or ends or step % self.every == 0):
            return
        mean = float(average_(loss.clone()))
        now = time.perf_counter()
        rate = (step - self.last_step) * self.tokens / max(now - self.last_time, 1e-9)
        line = f"step {step}/{self.steps}  loss {mean:.4f}  {rate:,.0f} tokens/s"
        if tested and self.held_out is not None:
            bits = self.held_out.measure(self.module, self.autocast)
            self.held_out.curve.append((step, bits))
            line += f"  held out {bits:.4f} bits/byte"
        now = time.perf_counter()
        left = (now - self.start) / (step - self.first) * (self.steps - step)
        _say(self.here, f"{line}  {_duration(left)} left" if left else line)
        self.last_step, self.last_time = step, now


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _say(here: Processes, text: str) -> None:
    if here.main:
        write(text)


def _finish(
    out: Path,
    weights: dict[str, Tensor],
    config: TransformerConfig,
    tokenizer: str,
    corpus: Corpus,
    settings: dict[str, Any],
    log: TrainingLog,
    curve: list[tuple[int, float]],
    here: Processes,
) -> None:
    """Write the model, the curves, and something that the model writes."""
    from tokenizers import Tokenizer

    with torch.device("meta"):
        model = Decoder(replace(config, dropout=0.0))
    model.load_state_dict(weights, assign=True)
    words = Tokenizer.from_str(tokenizer)
    save_pretrained(TextDecoder(model, words, start=corpus.end, stop=(corpus.end,)), out)
    told = {
        "settings": settings,
        "parameters": parameter_count(config, kind="decoder"),
        "processes": here.world,
        "seconds": log.seconds,
        "held_out_bits_per_byte": curve,
        "loss": log.loss.tolist(),
        "grad_norm": log.grad_norm.tolist(),
    }
    write_atomically(out / "training_log.json", json.dumps(told))
    written = continue_prompt(out, "", tokens=min(200, 2 * config.context), temperature=0.8)
    write_atomically(out / "sample.txt", written)
    _say(here, f"wrote {out}\n\n{written}")
