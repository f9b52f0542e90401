"""Several processes train as one: losses, gradient norms and weights agree to rounding."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from companion.core import (
    LossModule,
    MainProcessError,
    Processes,
    average_,
    generator,
    is_main,
    on_main,
    parallelize,
    processes,
)
from companion.core.parallel import is_parallel
from companion.transformer.block import Decoder, TransformerConfig

WORKER = Path(__file__).with_name("parallel_worker.py")
SECONDS = 400  # for slow machines; on a quiet one everything takes less than a tenth


def load_worker():
    spec = importlib.util.spec_from_file_location("parallel_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worker = load_worker()
ALONE = Processes(rank=0, world=1, device=torch.device("cpu"))


def torchrun(*arguments, expect=0, count=2):
    """Start processes that find each other over a free port of this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), *map(str, arguments)]
    warn = "error::UserWarning,error::FutureWarning,error::DeprecationWarning:__main__"
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": warn},
        cwd=WORKER.parents[2],
    )
    assert (done.returncode == 0) == (expect == 0), done.stdout + done.stderr
    return done


SETTINGS = {
    "ddp": {"kind": "ddp"},
    "fsdp": {"kind": "fsdp"},
    "ddp accumulates": {"kind": "ddp", "accumulate": 3},
    "fsdp accumulates": {"kind": "fsdp", "accumulate": 3},
    "ddp recomputes": {"kind": "ddp", "recompute": True},
    "fsdp recomputes": {"kind": "fsdp", "recompute": True},
    "ddp, own AdamW": {"kind": "ddp", "optimizer": "AdamW", "own": True},
    "fsdp, own AdamW": {"kind": "fsdp", "optimizer": "AdamW", "own": True},
    "fsdp, own Lion": {"kind": "fsdp", "optimizer": "Lion", "own": True},
    "ddp, own Muon": {"kind": "ddp", "optimizer": "Muon", "own": True},
    "fsdp, own Muon": {"kind": "fsdp", "optimizer": "Muon", "own": True},
    "ddp in float32": {"kind": "ddp", "dtype": "float32"},
    "fsdp in float32": {"kind": "fsdp", "dtype": "float32"},
    "ddp in bfloat16": {"kind": "ddp", "dtype": "float32", "bf16": True},
    "fsdp in bfloat16": {"kind": "fsdp", "dtype": "float32", "bf16": True},
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes computed, for all settings with one start."""
    folder = tmp_path_factory.mktemp("two")
    torchrun(WORKER, json.dumps(list(SETTINGS.values())), folder)
    return {name: load_file(folder / f"{i}.safetensors") for i, name in enumerate(SETTINGS)}


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_follow_the_trajectory_of_one(two, name):
    alone = SETTINGS[name] | {"kind": "none", "accumulate": 1, "recompute": False}
    one, both = worker.run(alone, ALONE), two[name]
    # In bfloat16 a product of few rows may be summed in another order than one of many.
    tolerance = 2e-2 if alone.get("bf16") else 1e-6
    torch.testing.assert_close(both["loss"], one["loss"], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(both["grad_norm"], one["grad_norm"], rtol=tolerance, atol=tolerance)
    assert float(one["loss"].max() - one["loss"].min()) > 0.02  # it learns, or it would prove less
    if not alone.get("bf16"):
        close = 1e-4 if alone.get("dtype") else 1e-9
        for key in one.keys() - {"loss", "grad_norm", "held"}:
            torch.testing.assert_close(both[key], one[key], rtol=close, atol=close)


def test_fsdp_holds_half_of_the_parameters(two):
    whole = int(two["ddp"]["held"])
    # Blocks are padded to equal rows on both processes, so a half is met nearly.
    assert whole / 2 <= int(two["fsdp"]["held"]) <= 0.52 * whole


def test_a_killed_process_ends_the_others_and_the_run_goes_on_exactly(tmp_path):
    settings = [{"kind": "fsdp", "directory": str(tmp_path / "run"), "kill": 8}]
    torchrun(WORKER, json.dumps(settings), tmp_path, expect=1)
    assert (tmp_path / "run" / "step-00000006").is_dir()
    assert not (tmp_path / "0.safetensors").exists()
    del settings[0]["kill"]
    whole = {"kind": "fsdp", "directory": str(tmp_path / "other")}
    torchrun(WORKER, json.dumps([settings[0], whole]), tmp_path)
    resumed, straight = (load_file(tmp_path / f"{i}.safetensors") for i in (0, 1))
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)

    with pytest.raises(ValueError, match="was written by 2 processes, and 1 run now"):
        worker.run({"directory": settings[0]["directory"]}, ALONE)


@pytest.mark.parametrize("more", [{"recompute": True}, {"accumulate": 4}])
def test_recomputing_and_accumulating_change_no_loss(more):
    plain, other = worker.run({}, ALONE), worker.run(more, ALONE)
    for name in plain:
        torch.testing.assert_close(other[name], plain[name], rtol=1e-6, atol=1e-9)


def test_recomputing_keeps_fewer_activations():
    config = TransformerConfig(vocab=23, dim=24, layers=6, heads=3, ff_dim=96, context=64)

    def kept(recompute):
        torch.manual_seed(0)
        model = Decoder(config)
        module = parallelize(
            LossModule(model, lambda m, ids: m(ids).square().mean()),
            activation_checkpointing=recompute,
        )
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            module(torch.arange(64)[None].repeat(4, 1) % 23)
        return sum(sizes)

    assert kept(True) < 0.4 * kept(False)


def test_recomputation_leaves_generation_alone():
    config = TransformerConfig(vocab=23, dim=12, layers=2, heads=3, ff_dim=29, context=9)
    model = parallelize(Decoder(config), activation_checkpointing=True).train()
    with torch.no_grad():
        ids = torch.tensor([[1, 2, 3, 4]])
        cache = model.cache(1, 4)
        model(ids[:, :3], cache=cache)
        torch.testing.assert_close(model(ids[:, 3:], cache=cache), model(ids)[:, 3:])


def test_a_group_of_one_shards_and_averages_nothing(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        with processes("cpu") as here:
            assert (here.rank, here.world, here.main) == (0, 1, True)
            plain = worker.run({}, here)
            for kind in ("ddp", "fsdp"):
                made = worker.run({"kind": kind}, here)
                torch.testing.assert_close(made["loss"], plain["loss"], rtol=1e-6, atol=1e-6)
        module = parallelize(nn.Linear(3, 5), "fsdp", gather_dtype=torch.bfloat16)
        made = module(torch.ones(2, 3))
        made.sum().backward()
        assert made.dtype == torch.bfloat16
        assert module.weight.dtype == module.weight.grad.dtype == torch.float32
    finally:
        torch.distributed.destroy_process_group()


def test_alone_nothing_is_exchanged():
    value = torch.tensor([3.0, 5.0])
    assert average_(value) is value
    assert value.tolist() == [3.0, 5.0]
    assert is_main()
    assert not is_parallel(nn.Linear(3, 5))
    done = []
    on_main(lambda: done.append(1))
    assert done == [1]
    assert issubclass(MainProcessError, RuntimeError)


def test_what_cannot_work_is_refused():
    model = nn.Linear(3, 5)
    # Under the hook that checks annotations, those speak first.
    with pytest.raises((ValueError, TypeError), match=r"kind must be .* got 'both'|Type-check"):
        parallelize(model, "both")
    with pytest.raises(ValueError, match="'ddp' needs processes that know each other"):
        parallelize(model, "ddp")
    with pytest.raises(ValueError, match="gather_dtype is for 'fsdp' alone"):
        parallelize(model, gather_dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="found no blocks to recompute or compile"):
        parallelize(model, compile=True)


def test_a_loss_module_calls_the_loss_with_the_model():
    model = Decoder(worker.CONFIG)
    module = LossModule(model, lambda m, x: m(x).sum())
    ids = torch.randint(23, (2, 5), generator=generator(0))
    assert torch.equal(module(ids), model(ids).sum())
    assert {id(p) for p in module.parameters()} == {id(p) for p in model.parameters()}


@pytest.mark.gpu
def test_one_gpu_process_of_nccl_trains_like_the_cpu(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("NCCL is for CUDA")
    several = [{"device": "cuda", "kind": kind} for kind in ("ddp", "fsdp")]
    torchrun(WORKER, json.dumps(several), tmp_path, count=1)
    plain = worker.run({}, ALONE)
    for index in range(2):
        made = load_file(tmp_path / f"{index}.safetensors")
        torch.testing.assert_close(made["loss"], plain["loss"], rtol=1e-6, atol=1e-6)
