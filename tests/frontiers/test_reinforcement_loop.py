"""The loop that learns from rewards: alone, on two processes, interrupted, and what it draws."""

import copy
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from companion.core import generator
from companion.frontiers.reinforcement import (
    completion_scores,
    kl_optimum,
    pad_prompts,
    reinforce,
    write_samples,
)
from companion.transformer.block import Decoder

WORKER = Path(__file__).with_name("reinforcement_worker.py")


def load_worker():
    spec = importlib.util.spec_from_file_location("reinforcement_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worker = load_worker()


def decoder(seed: int = 5) -> Decoder:
    model = Decoder(worker.CONFIG).double()
    return worker.initialize_(model, generator=generator(seed))


def torchrun(settings, folder, *, fails=False):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(WORKER), json.dumps(settings), str(folder)]
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=WORKER.parents[2],
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr


SETTINGS = {
    "ddp": {"kind": "ddp"},
    "fsdp": {"kind": "fsdp"},
    "ddp, three updates": {"kind": "ddp", "updates": 3, "normalize": "sequence"},
    "fsdp, three updates": {"kind": "fsdp", "updates": 3, "normalize": "length"},
    "ddp with a price": {"kind": "ddp", "beta": 0.3, "rloo": True, "normalize": "sum"},
    "fsdp with a price": {"kind": "fsdp", "beta": 0.3, "penalty": "loss"},
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes computed, and then a run that is killed and goes on."""
    folder = tmp_path_factory.mktemp("two")
    torchrun(list(SETTINGS.values()), folder)
    return {name: load_file(folder / f"{i}.safetensors") for i, name in enumerate(SETTINGS)}


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_learn_what_one_does(two, name):
    alone, both = worker.run(SETTINGS[name] | {"kind": "none"}), two[name]
    for key in alone:
        # Sums in another order; the texts are the same, or nothing would agree.
        torch.testing.assert_close(both[key], alone[key], rtol=1e-7, atol=1e-9, msg=key)
    assert float(alone["reward"][-1]) > float(alone["reward"][0]) + 0.3  # it learns


def test_a_killed_run_goes_on_exactly(tmp_path):
    settings = {"kind": "fsdp", "directory": str(tmp_path / "run"), "updates": 2}
    torchrun([settings | {"kill": 3}], tmp_path, fails=True)
    assert (tmp_path / "run" / "step-00000002").is_dir()
    torchrun([settings, settings | {"directory": str(tmp_path / "other")}], tmp_path)
    resumed, straight = (load_file(tmp_path / f"{i}.safetensors") for i in (0, 1))
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_a_run_in_two_calls_is_a_run_in_one(tmp_path):
    straight = worker.run({"beta": 0.2})
    folder = {"beta": 0.2, "directory": str(tmp_path)}
    worker.run(folder | {"steps": 4})
    resumed = worker.run(folder)
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    with pytest.raises(ValueError, match="with another beta"):
        worker.run(folder | {"beta": 0.3, "steps": 7})
    with pytest.raises(ValueError, match="with another seed"):
        worker.run(folder | {"seed": 4, "steps": 7})


def test_the_size_of_a_part_changes_nothing():
    for normalize in ("token", "sequence", "length", "sum"):
        one = worker.run({"batch_size": 100, "normalize": normalize, "steps": 3, "updates": 2})
        other = worker.run({"batch_size": 7, "normalize": normalize, "steps": 3, "updates": 2})
        for key in one:
            torch.testing.assert_close(other[key], one[key], rtol=1e-8, atol=1e-10, msg=key)


def test_seeds_differ_and_options_act():
    base = worker.run({"steps": 2})
    for more in (
        {"seed": 4},
        {"beta": 0.5},
        {"beta": 0.5, "penalty": "loss"},
        {"rloo": True},
        {"normalize": "sequence"},
        {"updates": 2},
    ):
        made = worker.run({"steps": 2} | more)
        assert any(not torch.equal(made[key], base[key]) for key in base if "weight" in key), more


def test_what_is_watched_is_so():
    made = worker.run({"steps": 3})
    assert float(made["kl"][0]) == 0.0
    assert float(made["kl"][-1]) > 0
    assert float(made["apart"].max()) < 1e-12  # the sampler is the policy
    assert float(made["clipped"].max()) == 0.0
    assert bool((made["length"] <= 5).all())
    assert bool((made["entropy"] <= math.log(11)).all())
    assert float(worker.run({"steps": 3, "updates": 4})["clipped"].max()) > 0


def test_groups_that_say_nothing_leave_the_policy_alone():
    model = decoder()
    before = copy.deepcopy(model.state_dict())
    log = reinforce(
        model,
        worker.PROMPTS,
        lambda numbers, answers: [1.0] * len(answers),
        steps=2,
        tokens=4,
        stop=[0],
        group=3,
        lr=0.1,
    )
    assert log.silent.tolist() == [1.0, 1.0]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_schedule_is_a_factor_of_the_rate():
    def learn(**more):
        model = decoder()
        how = {"steps": 2, "tokens": 4, "stop": [0], "group": 3} | more
        reinforce(model, worker.PROMPTS, worker.threes, **how)
        return model.state_dict()

    plain = learn(lr=0.01)
    for same in (
        learn(lr=0.01, schedule=lambda step: 1.0),
        learn(lr=0.02, schedule=lambda step: 0.5),
    ):
        assert all(torch.equal(same[name], plain[name]) for name in plain)
    asked = []
    learn(lr=0.01, schedule=lambda step: asked.append(step) or 1.0)
    assert asked == [0, 1]
    other = learn(lr=0.01, schedule=lambda step: 1.0 - step / 2)
    assert any(not torch.equal(other[name], plain[name]) for name in plain)


def test_with_a_price_it_finds_the_optimum_that_is_known():
    # One token of eleven after one prompt: the optimum is a tilt of the start.
    model = decoder(7)
    prompt = torch.tensor([4])
    with torch.no_grad():
        start = model(prompt[None])[0, -1].log_softmax(0)
    rewards = torch.linspace(0, 1, 11).double()
    best = kl_optimum(start, rewards, beta=0.5)

    def reward(numbers, answers):
        return [float(rewards[a[0] if a else 0]) for a in answers]

    reinforce(
        model,
        [prompt],
        reward,
        steps=400,
        tokens=1,
        stop=[0],
        prompts_per_step=1,
        group=256,
        batch_size=256,
        lr=0.02,
        schedule=lambda step: 1 - step / 400,
        advantages=lambda r: r - r.mean(1, keepdim=True),
        beta=0.5,
    )
    with torch.no_grad():
        made = model(prompt[None])[0, -1].log_softmax(0)
    p, q = best.log_probs.exp(), made.exp()
    lost = 0.5 * (q * (made - best.log_probs)).sum()  # in units of the objective
    whole = best.value - (start.exp() * rewards).sum()
    assert float(lost) < 0.05 * float(whole)
    assert float((p - start.exp()).abs().sum()) > 0.2  # the optimum is another policy


# --- writing and scoring -------------------------------------------------------------------------


def test_what_was_drawn_is_scored_as_it_was_drawn():
    model = decoder().eval()
    for temperature in (0.7, 1.0, 1.9):
        made = write_samples(
            model,
            worker.PROMPTS,
            group=3,
            tokens=5,
            stop=[0, 6],
            generator=generator(1),
            temperature=temperature,
        )
        with torch.no_grad():
            told = {"prompt": made.prompt, "real": made.real, "scored": made.scored}
            again = completion_scores(model, made.ids, temperature=temperature, **told)
            other = completion_scores(model, made.ids, temperature=1.3, **told)
        torch.testing.assert_close(again.log_probs, made.log_probs, rtol=1e-9, atol=1e-9)
        assert float((other.log_probs - made.log_probs).abs().max()) > 0.01


def test_scores_are_the_softmax_of_all_logits():
    model = decoder().eval()
    ids = torch.randint(11, (3, 9), generator=generator(2))
    scored = torch.rand(3, 5, generator=generator(3)) < 0.6
    made = completion_scores(model, ids, prompt=4, scored=scored, temperature=1.7, chunk_size=2)
    log_p = (model(ids)[:, 3:-1] / 1.7).log_softmax(-1)
    want = log_p.gather(2, ids[:, 4:, None]).squeeze(2) * scored
    torch.testing.assert_close(made.log_probs, want)
    entropy = -(log_p.exp() * log_p).sum(-1) * scored
    torch.testing.assert_close(made.entropy, entropy.detach())
    weigh = torch.randn(3, 5, generator=generator(4), dtype=torch.float64)
    parameters = list(model.parameters())
    ours = torch.autograd.grad((made.log_probs * weigh).sum(), parameters)
    plain = torch.autograd.grad((want * weigh).sum(), parameters)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other)


def test_answers_end_where_they_end_and_draws_follow_the_policy():
    model = decoder().eval()
    made = write_samples(
        model, [torch.tensor([3])], group=4000, tokens=2, stop=[0], generator=generator(0)
    )
    with torch.no_grad():
        p = model(torch.tensor([[3]]))[0, -1].softmax(0)
    first = made.ids[:, 1]
    found = torch.bincount(first, minlength=11) / 4000
    assert float(((found - p).abs() / (p * (1 - p) / 4000).sqrt()).max()) < 5
    rows = (made.ids.tolist(), made.answers(), made.ended.tolist())
    for row, answer, ended in zip(*rows, strict=True):
        assert answer == (row[1 : row.index(0, 1)] if 0 in row[1:] else row[1:])
        assert ended == (0 in row[1:])
    stopped = first == 0
    assert not bool(made.scored[stopped, 1].any())
    assert bool(made.scored[~stopped].all())


def test_shares_of_the_prompts_are_rows_of_the_whole():
    model = decoder().eval()
    how = {"group": 3, "tokens": 4, "stop": [0]}
    whole = write_samples(model, worker.PROMPTS, generator=generator(2), **how)
    for low, high in ((0, 3), (3, 7)):
        part = write_samples(model, worker.PROMPTS, generator=generator(2), rows=(low, high), **how)
        for mine, its in zip(part.answers(), whole.answers()[3 * low : 3 * high], strict=True):
            assert mine == its


def test_shorter_prompts_are_padded_on_the_left_and_read_as_if_alone():
    ids, real = pad_prompts([torch.tensor([3, 4, 5]), torch.tensor([6])])
    assert ids.tolist() == [[3, 4, 5], [0, 0, 6]]
    assert real.tolist() == [[True] * 3, [False, False, True]]
    other, _ = pad_prompts([torch.tensor([3, 4, 5]), torch.tensor([6])], pad=9)
    assert other.tolist() == [[3, 4, 5], [9, 9, 6]]
    model = decoder().eval()
    both = write_samples(
        model,
        [torch.tensor([3, 4, 5]), torch.tensor([6])],
        group=2,
        tokens=4,
        stop=[],
        generator=generator(0),
    )
    alone = completion_scores(model, torch.cat([both.ids[2:, 2:]], 1), prompt=1)
    torch.testing.assert_close(alone.log_probs.detach(), both.log_probs[2:])


def test_what_cannot_work_is_refused(own_checks):
    model = decoder()

    def learn(**more):
        how = {"steps": 1, "tokens": 3, "stop": [0], "group": 2, "prompts_per_step": 2} | more
        return reinforce(model, worker.PROMPTS, how.pop("reward", worker.threes), **how)

    for message, more in (
        ("steps must be 1 or more", {"steps": 0}),
        ("group must be 1 or more", {"group": 0}),
        ("updates must be 1 or more", {"updates": 0}),
        ("batch_size must be 1 or more", {"batch_size": 0}),
        ("beta must lie", {"beta": -1.0}),
        ('penalty must be "reward"', {"penalty": "both"}),
        ("pass reference=", {"beta": 0.1, "reference": None}),
        ("exceed the model's context", {"tokens": 12}),
        ("what reward returns must have shape", {"reward": lambda n, a: [1.0]}),
        ("rewards must be finite", {"reward": lambda n, a: [math.nan] * len(a)}),
        ("needs processes that know each other", {"parallel": "ddp"}),
    ):
        with pytest.raises(ValueError, match=message):
            learn(**more)
    with pytest.raises(ValueError, match="prompt 1 must be 1 or more"):
        pad_prompts([torch.tensor([1]), torch.empty(0).long()])
    with pytest.raises(ValueError, match="prompt 0 must hold token ids"):
        pad_prompts([torch.tensor([1.0])])
    with pytest.raises(ValueError, match="rows must lie within the 7 prompts"):
        write_samples(
            model, worker.PROMPTS, group=1, tokens=1, stop=[0], generator=generator(0), rows=(5, 9)
        )
