"""Checkpoints: what is killed goes on to the last bit, and what does not fit is refused."""

import errno
import io
import json
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from companion.core import Checkpoints, Progress, Stateful, _storage, generator, randn, train
from companion.foundations import optimization
from companion.pretraining.autoregressive import PackedTokens

WORKER = Path(__file__).with_name("killed_worker.py")


class Stop(Exception):
    """Stands for a kill, where one process is to survive it."""


class Nothing(pickle.Unpickler):
    """Reads pickles that name no class."""

    def find_class(self, module, name):
        raise AssertionError(f"the file would import {module}.{name}")


class Tied(nn.Module):
    """Two layers that share one matrix, with dropout and a buffer between them."""

    def __init__(self, width=7):
        super().__init__()
        self.first = nn.Linear(5, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.25)
        self.last = nn.Linear(width, 5, bias=False)
        self.again = nn.Linear(width, 5, bias=False)
        self.again.weight = self.last.weight

    def forward(self, x):
        h = self.drop(self.norm(self.first(x)))
        return self.last(h) * self.again(h)


def start(folder, *, make=None, width=7, seed=3, dtype=torch.float32, **more):
    torch.manual_seed(seed)
    model = Tied(width).to(dtype)
    make = make or (lambda p: torch.optim.AdamW(p, lr=0.02))
    saved = Checkpoints(folder, model=model, **({"every": 4} | more))
    return model, make(model.parameters()), saved


BATCHES = [randn(11, 5, generator=generator(i)) for i in range(3)]


def finish(model, optimizer, saved, *, steps=10, stop=None, batches=BATCHES, **more):
    def on_step(step, _):
        if step == stop:
            raise Stop

    dtype = model.last.weight.dtype
    return train(
        lambda x: (model(x.to(dtype)) - 1).square().mean(),
        batches,
        optimizer,
        steps=steps,
        schedule=lambda step: 1 / (1 + step),
        checkpoints=saved,
        on_step=on_step,
        **more,
    )


def same(first, second):
    return all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    """One line about each kill of the worker."""
    done = subprocess.run(
        [sys.executable, str(WORKER), str(tmp_path_factory.mktemp("killed"))],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_run_killed_at_any_step_or_while_writing_ends_equal_to_the_last_bit(kills):
    kinds = [next(iter(kill["point"])) for kill in kills]
    # 8 steps; 3 checkpoints of 4 files and about 10 further calls that touch the disk.
    assert kinds.count("kill_at") == 8
    assert kinds.count("tear") == 12
    assert kinds.count("kill_before") > 36
    assert all(kill["status"] == -9 for kill in kills)
    assert [kill for kill in kills if kill["different"]] == []


def test_a_kill_loses_only_the_steps_since_the_last_checkpoint(kills):
    for kill in kills:
        assert kill["first"] == kill["saved"] + 1, kill
        if "kill_at" in kill["point"]:  # written after steps 3 and 6, and after the last
            assert kill["saved"] == (kill["point"]["kill_at"][1] - 1) // 3 * 3
    # In the middle of writing the second, the first is there.
    assert {0, 3, 6, 8} == {kill["saved"] for kill in kills}


def test_what_killed_runs_leave_behind_is_cleaned_away(kills):
    assert all(kill["left"] == ["step-00000008"] for kill in kills)


OPTIMIZERS = {
    **{
        f"torch {name}": lambda p, name=name, more=more: getattr(torch.optim, name)(p, **more)
        for name, more in {
            "SGD": {"lr": 0.05},
            "Adam": {"lr": 0.05, "amsgrad": True},
            "AdamW": {"lr": torch.tensor(0.05), "foreach": False},
            "RMSprop": {"lr": 0.05, "momentum": 0.5},
            "Adagrad": {"lr": 0.05},
            "NAdam": {"lr": 0.05},
            "Adafactor": {"lr": 0.05},
        }.items()
    },
    **{
        f"own {name}": lambda p, name=name: getattr(optimization, name)(p, lr=0.01)
        for name in ("SGD", "Momentum", "Nesterov", "AdaGrad", "RMSProp", "Adam", "AdamW", "Lion")
    },
    "own Muon": lambda p: optimization.Muon([x for x in p if x.ndim == 2], dtype=torch.float32),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_optimizer_goes_on_exactly(tmp_path, make, dtype):
    model, optimizer, _ = start(tmp_path, make=make, dtype=dtype)
    straight = finish(model, optimizer, None)
    other, again, saved = start(tmp_path, make=make, dtype=dtype)
    with pytest.raises(Stop):
        finish(other, again, saved, stop=7)
    resumed_model, fresh, saved = start(tmp_path, make=make, dtype=dtype, seed=4)
    resumed = finish(resumed_model, fresh, saved)
    assert torch.equal(resumed.loss, straight.loss)
    assert same(resumed_model, model)
    for mine, theirs in zip(fresh.param_groups, optimizer.param_groups, strict=True):
        assert {k: v for k, v in mine.items() if k != "params"} == {
            k: v for k, v in theirs.items() if k != "params"
        }


def test_scaled_float16_goes_on_exactly(tmp_path):
    model, optimizer, _ = start(tmp_path)
    straight = finish(model, optimizer, None, autocast=torch.float16, clip_norm=1.0)
    with pytest.raises(Stop):
        finish(*start(tmp_path), stop=6, autocast=torch.float16, clip_norm=1.0)
    folder = tmp_path / "step-00000004"
    assert '"scale"' in (folder / "state.json").read_text()
    other, fresh, saved = start(tmp_path)
    resumed = finish(other, fresh, saved, autocast=torch.float16, clip_norm=1.0)
    assert torch.equal(resumed.loss, straight.loss)
    # Some are infinite or NaN: the scaler finds its scale by trying.
    torch.testing.assert_close(
        resumed.grad_norm, straight.grad_norm, rtol=0, atol=0, equal_nan=True
    )
    assert same(other, model)


def test_data_without_a_state_are_drawn_again_up_to_the_position(tmp_path):
    def loader():
        return torch.utils.data.DataLoader(
            torch.stack(BATCHES).flatten(0, 1), batch_size=7, shuffle=True, generator=generator(5)
        )

    model, optimizer, _ = start(tmp_path)
    straight = finish(model, optimizer, None, batches=loader(), accumulate=2)
    with pytest.raises(Stop):
        finish(*start(tmp_path), stop=6, batches=loader(), accumulate=2)
    resumed = finish(*start(tmp_path), batches=loader(), accumulate=2)
    assert torch.equal(resumed.loss, straight.loss)


def test_a_run_can_be_prolonged_and_a_finished_one_returns_at_once(tmp_path):
    model, optimizer, _ = start(tmp_path / "other")
    straight = finish(model, optimizer, None, steps=10)
    first = finish(*start(tmp_path), steps=6)
    longer = finish(*start(tmp_path), steps=10)
    assert torch.equal(longer.loss, straight.loss)
    assert torch.equal(longer.loss[:6], first.loss)
    again = finish(*start(tmp_path), steps=10, batches=[])  # it needs no batch
    assert torch.equal(again.loss, straight.loss)
    assert again.seconds >= longer.seconds - 1


def test_the_newest_are_kept(tmp_path):
    _, _, saved = start(tmp_path, every=2, keep=3)
    assert saved.steps() == []
    finish(*start(tmp_path, every=2, keep=3), steps=11)
    assert saved.steps() == [8, 10, 11]


def test_files_hold_tied_tensors_once_and_no_code(tmp_path):
    finish(*start(tmp_path), steps=4)
    folder = tmp_path / "step-00000004"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["manifest.json", "model.safetensors", "state.json", "state.safetensors"]
    held = load_file(folder / "model.safetensors")
    assert "last.weight" in held
    assert "again.weight" not in held
    assert "norm.num_batches_tracked" in held
    for path in folder.iterdir():
        with pytest.raises(pickle.UnpicklingError):
            Nothing(io.BytesIO(path.read_bytes())).load()


def write_nothing(*args, **more):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(Stop):
        finish(*start(tmp_path), stop=5)
    with monkeypatch.context() as patched:
        patched.setattr(safetensors.torch, "save_file", write_nothing)
        with pytest.raises(OSError, match=r"step 8 .* No space left .* steps \[4\] are unharmed"):
            finish(*start(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004"]
    model, optimizer, _ = start(tmp_path / "other")
    straight = finish(model, optimizer, None)
    assert torch.equal(finish(*start(tmp_path)).loss, straight.loss)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "state.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("how", ["cut", "flip", "lose"])
def test_a_damaged_file_is_named(tmp_path, name, how):
    finish(*start(tmp_path), steps=4)
    path = tmp_path / "step-00000004" / name
    content = bytearray(path.read_bytes())
    if how == "lose":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif name == "manifest.json":
        path.write_text(path.read_text().replace('"format": 1', '"format": 7'))
    else:
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    model, optimizer, saved = start(tmp_path)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"step-00000004 is damaged: .* Delete this folder"):
        finish(model, optimizer, saved)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_what_does_not_fit_is_refused(tmp_path):
    finish(*start(tmp_path), steps=4)
    with pytest.raises(ValueError, match=r"another model: 'first.weight' is .*\(7, 5\) there.*\(9"):
        finish(*start(tmp_path, width=9))
    with pytest.raises(ValueError, match=r"is torch.float32 of shape .*, torch.float64 of"):
        finish(*start(tmp_path, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"another optimizer: its groups have \[5\] parameters"):
        finish(*start(tmp_path, make=lambda p: torch.optim.SGD(list(p)[:2], lr=0.1)))
    with pytest.raises(ValueError, match="is beyond the last step, 3: ask for more steps"):
        finish(*start(tmp_path), steps=3)
    with pytest.raises(ValueError, match=r"has the generators \['global cpu'\], this run .*'own'"):
        finish(*start(tmp_path, generators={"own": generator(0)}))
    held = {"more": torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)}
    with pytest.raises(ValueError, match=r"has the objects with a state \[\], this run \['more'\]"):
        finish(*start(tmp_path, state=held))
    model, optimizer, _ = start(tmp_path)
    lean = nn.Sequential(model.first)
    with pytest.raises(ValueError, match=r"another model: it has no '0\.weight'"):
        finish(model, optimizer, Checkpoints(tmp_path, model=lean))
    with pytest.raises(ValueError, match="every must be 1 or more, got 0"):
        Checkpoints(tmp_path, model=model, every=0)
    with pytest.raises(ValueError, match="keep must be 1 or more, got 0"):
        Checkpoints(tmp_path, model=model, keep=0)


def test_no_checkpoint_is_written_after_a_loss_that_is_not_finite(tmp_path):
    model, optimizer, saved = start(tmp_path, every=2)
    batches = [*BATCHES, torch.full((11, 5), float("nan"))]
    with pytest.raises(FloatingPointError, match="loss at step 3 is nan"):
        finish(model, optimizer, saved, batches=batches)
    assert saved.steps() == [2]


def test_further_objects_keep_their_state(tmp_path):
    class Curve:
        points = ()

        def state_dict(self):
            return {"points": list(self.points), "best": None, 3: (True, torch.tensor([2, 5]))}

        def load_state_dict(self, state):
            assert state[3][0] is True
            assert state[3][1].tolist() == [2, 5]
            self.points = state["points"]

    curve, other = Curve(), Curve()
    assert isinstance(curve, Stateful)
    curve.points = [[1, 0.1], [2, float("inf")]]
    finish(*start(tmp_path, state={"curve": curve}), steps=4)
    finish(*start(tmp_path, state={"curve": other}), steps=5)
    assert other.points == curve.points


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
nested = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.integers()), inner, max_size=3),
    ),
    max_leaves=12,
)


@given(nested)
def test_nested_values_come_back_as_they_were(value):
    tensors = {}
    told = json.loads(json.dumps(_storage.pack(value, tensors, "")))
    back = _storage.unpack(told, tensors)
    assert back == value
    assert type(back) is type(value)


def test_what_json_and_tensors_cannot_hold_is_named():
    with pytest.raises(ValueError, match="the state at 'a/1' is a set: only tensors, numbers"):
        _storage.pack({"a": [1, {2}]}, {}, "")


def test_train_does_not_go_on_from_a_loop_without_losses(tmp_path):
    _, optimizer, saved = start(tmp_path)
    saved.save(Progress(2), optimizer)
    with pytest.raises(ValueError, match=r"step 2 .* was written by another loop, which kept no"):
        finish(*start(tmp_path))


# --- a loop of one's own -------------------------------------------------------------------------


def own_loop(folder, *, stop=None, seed=3, every=3):
    """A loop that does not call `train`: dropout, a noise generator, a schedule, two optimizers."""
    torch.manual_seed(seed)
    model, noise = Tied(), generator(seed)
    *most, last = model.parameters()
    adam, sgd = torch.optim.AdamW(most, lr=0.02), torch.optim.SGD([last], lr=0.1, momentum=0.9)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=10)
    data = PackedTokens(torch.arange(61), context=5, batch=11, seed=1)
    saved = Checkpoints(
        folder,
        model=model,
        state={"sgd": sgd, "rates": rates},
        generators={"noise": noise},
    )
    found = saved.load(adam, batches=data)
    batches = iter(data)
    first = 0 if found is None else found.step
    for step in range(first, 10):
        if step == stop:
            raise Stop
        rows = next(batches)[:, :5] / 61
        rows = rows + 0.1 * randn(*rows.shape, generator=noise)
        adam.zero_grad()
        sgd.zero_grad()
        (model(rows) - 1).square().mean().backward()
        adam.step()
        sgd.step()
        rates.step()
        if (step + 1) % every == 0:
            saved.save(Progress(step + 1), adam, batches=data)
    return first, model


@pytest.mark.parametrize("stop", range(10))
def test_a_loop_of_ones_own_goes_on_to_the_last_bit(tmp_path, stop):
    _, straight = own_loop(tmp_path / "straight")
    with pytest.raises(Stop):
        own_loop(tmp_path / "run", stop=stop)
    # Another seed: all that is random must come from the checkpoint.
    first, resumed = own_loop(tmp_path / "run", seed=3 if stop < 3 else 4)
    assert first == stop // 3 * 3
    assert same(resumed, straight)


def test_a_loop_of_ones_own_scales_float16_and_must_say_so(tmp_path):
    model, optimizer, saved = start(tmp_path)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(model(BATCHES[0]).square().mean()).backward()
    scaler.step(optimizer)
    scaler.update(4.0)
    saved.save(Progress(1), optimizer, scaler=scaler)
    with pytest.raises(ValueError, match="scales its gradients: pass its scaler"):
        saved.load(optimizer)
    other = torch.amp.GradScaler("cpu", init_scale=2.0)
    saved.load(optimizer, scaler=other)
    assert other.get_scale() == 4.0


def test_a_loop_that_did_not_load_cannot_write_over_a_checkpoint(tmp_path):
    _, optimizer, saved = start(tmp_path)
    saved.save(Progress(4), optimizer)
    for step in (2, 4):
        with pytest.raises(ValueError, match=f"checkpoint of step 4, and step {step} is not bey"):
            saved.save(Progress(step), optimizer)
    assert saved.steps() == [4]
    saved.save(Progress(5), optimizer)
    assert saved.steps() == [4, 5]


# --- tensors that share memory -------------------------------------------------------------------


class Shared(nn.Module):
    """All ways in which two names may mean one piece of memory."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
        self.turned = nn.Parameter(self.weight.data.T)
        self.register_buffer("mean", torch.arange(5.0))
        self.register_buffer("again", self.mean)
        self.register_buffer("part", self.mean[1:3])
        # Only the second of these two names is saved.
        self.register_buffer("asleep", torch.ones(2), persistent=False)
        self.register_buffer("awake", self.asleep)
        self.register_buffer("nothing", torch.ones(0))
        self.register_buffer("nothing_more", torch.ones(0))

    def forward(self, x):
        return x @ self.weight.T


def test_memory_of_several_names_is_saved_and_stays_shared(tmp_path):
    model = Shared()
    optimizer = torch.optim.SGD([model.weight], lr=0.1)
    slot = torch.ones(2)
    held = type(
        "Held",
        (),
        {"state_dict": lambda _: {"a": slot, "b": slot}, "load_state_dict": lambda _, state: None},
    )()
    with torch.no_grad():
        model.mean.add_(7)
        model.awake.mul_(3)
        model.weight.mul_(2)
    Checkpoints(tmp_path, model=model, state={"held": held}).save(Progress(1), optimizer)
    assert "again" not in load_file(tmp_path / "step-00000001" / "model.safetensors")
    other = Shared()
    saved = Checkpoints(tmp_path, model=other, state={"held": held})
    saved.load(torch.optim.SGD([other.weight], lr=0.1))
    assert other.mean.tolist() == other.again.tolist() == [7, 8, 9, 10, 11]
    assert other.part.tolist() == [8, 9]
    assert other.asleep.tolist() == other.awake.tolist() == [3, 3]
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(other.turned, model.weight.T)
    other.mean.zero_()
    other.weight.data.zero_()
    assert not other.again.any()
    assert not other.part.any()
    assert not other.turned.any()


def test_a_norm_under_two_names_trains_and_goes_on(tmp_path):
    def run(steps):
        torch.manual_seed(0)
        norm = nn.BatchNorm1d(2)
        model = nn.Sequential(nn.Linear(2, 2), norm, nn.Linear(2, 2), norm)
        train(
            lambda x: model(x).square().mean(),
            [randn(4, 2, generator=generator(0))],
            torch.optim.SGD(model.parameters(), lr=0.1),
            steps=steps,
            checkpoints=Checkpoints(tmp_path, model=model, every=1),
        )
        return model

    run(2)
    resumed = run(5)
    # Both of its names run through every step.
    assert int(resumed[1].num_batches_tracked) == 10
    for path in sorted(tmp_path.rglob("step-*")):
        path.rename(path.with_name(f"gone-{path.name}"))
    assert same(resumed, run(5))


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_files_have_the_permissions_of_others_made_here(mask, mode, tmp_path):
    model, optimizer, saved = start(tmp_path / "run")
    before = os.umask(mask)
    try:
        finish(model, optimizer, saved, steps=4)
        _storage.write_tensors(tmp_path / "again", {"x": torch.ones(3)})
        _storage.write_tensors(tmp_path / "again", {"x": torch.ones(5)})
    finally:
        os.umask(before)
    files = [*(tmp_path / "run" / "step-00000004").iterdir(), tmp_path / "again"]
    assert len(files) == 5
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == mode, path.name


def test_a_file_that_fails_leaves_nothing_unfinished(tmp_path):
    def half(path):
        path.write_bytes(b"half")
        raise Stop

    _storage.write_atomically(tmp_path / "it", "whole")
    with pytest.raises(Stop):
        _storage.write_atomically(tmp_path / "it", half)
    assert [path.name for path in tmp_path.iterdir()] == ["it"]
    assert (tmp_path / "it").read_text() == "whole"
