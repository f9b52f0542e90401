"""Kill a run at every step and at every call that writes; a test starts this file.

Each run is a forked process that kills itself by SIGKILL. A second one goes on in the same folder.
Argument: a folder to work in. Prints one JSON object about each kill.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import safetensors.torch
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from companion.core import Checkpoints, _storage, checkpoints, generator, randn, train
from companion.pretraining.autoregressive import PackedTokens

STEPS, EVERY = 8, 3
# What touches the disk: a kill comes before each such call, and after it.
CALLS = (
    (safetensors.torch, "save_file"),
    (checkpoints, "sync"),
    (checkpoints.os, "rename"),
    (checkpoints.shutil, "rmtree"),
    (Path, "write_text"),
    (Path, "mkdir"),
)


def run(folder, *, kill_at=None, out=None):
    """Train a model whose every step needs all that a checkpoint must hold."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Embedding(17, 5), nn.Dropout(0.3), nn.Linear(5, 17))
    noise = generator(7)
    ids = torch.randint(17, (1 + 4 * 11,), generator=generator(1), dtype=torch.int32)
    data = PackedTokens(ids, context=4, batch=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    did = []

    def loss(rows):
        logits = model(rows[:, :-1])
        logits = logits + 0.1 * randn(*logits.shape, generator=noise)
        return nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    def on_step(step, _):
        did.append(step)
        if kill_at == ("step", step):
            os.kill(os.getpid(), signal.SIGKILL)

    log = train(
        loss,
        data,
        optimizer,
        steps=STEPS,
        clip_norm=1.0,
        schedule=lambda step: 1 / (1 + step),
        checkpoints=Checkpoints(
            folder, model=model, every=EVERY, keep=1, generators={"noise": noise}
        ),
        on_step=on_step,
    )
    if out is not None:
        told = {"loss": log.loss, "norm": log.grad_norm, "did": torch.tensor(did)}
        save_file(told | dict(model.state_dict()), out)


def count_calls(action, *, kill_before=None, tear=None):
    """Run an action; count the calls that write, and die before one, or with a file torn."""
    count = [0]

    def watched(name, original):
        def call(*args, **more):
            count[0] += 1
            mine = count[0]
            if mine == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)
            made = original(*args, **more)
            if mine == tear and name in ("save_file", "write_text"):
                path = args[1] if name == "save_file" else args[0]
                os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return made

        return call

    for home, name in CALLS:
        setattr(home, name, watched(name, getattr(home, name)))
    action()
    return count[0]


def forked(action):
    """Run an action in a process of its own; return how that ended."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(work):
    work = Path(work)
    straight, resumed, counted = (work / name for name in ("straight", "resumed", "count"))
    torch.set_num_threads(1)  # a fork of several threads is not safe
    run(work / "first")  # imports what PyTorch imports late, once for all forks
    assert forked(lambda: run(work / "whole", out=straight)) == 0
    assert (
        forked(lambda: counted.write_bytes(bytes([count_calls(lambda: run(work / "counted"))])))
        == 0
    )
    calls = counted.read_bytes()[0]
    expected = load_file(straight)
    points = [{"kill_at": ("step", step)} for step in range(1, STEPS + 1)]
    points += [{"kill_before": call} for call in range(1, calls + 1)]
    points += [{"tear": call} for call in range(1, calls + 1)]
    for point in points:
        told = try_once(work / "run", resumed, point, expected)
        if told["status"] == 0 and "tear" in point:
            continue  # this call writes no file, so nothing was torn
        print(json.dumps(told))


def try_once(folder, resumed, point, expected):
    """Kill one run, let another finish it, and compare."""
    if "kill_at" in point:
        status = forked(lambda: run(folder, **point))
    else:
        status = forked(lambda: count_calls(lambda: run(folder), **point))
    saved = max(Checkpoints(folder, model=nn.Linear(1, 1)).steps(), default=0)
    assert forked(lambda: run(folder, out=resumed)) == 0, point
    got = load_file(resumed)
    left = sorted(path.name for path in folder.iterdir())
    shutil.rmtree(folder)
    resumed.unlink()
    return {
        "point": point,
        "status": status,
        "saved": saved,
        "first": int(got["did"][0]) if len(got["did"]) else STEPS + 1,
        "different": [
            name
            for name in expected
            if name != "did" and not torch.equal(got[name], expected[name])
        ],
        "left": left,
    }


if __name__ == "__main__":
    assert _storage  # imported before any fork
    main(sys.argv[1])
