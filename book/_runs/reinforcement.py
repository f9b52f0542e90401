"""Teach a Transformer sums by text with mistakes, then by rewards, and follow what each does.

Some minutes of one core a seed. In the stored runs ``seconds`` and ``cpu_seconds`` are rough: the
runs were interrupted before this script counted, and what had passed by then was entered by hand;
``agrees_seen`` was added later, by fitting the judge again, which agreed to the last digit.

The model of 0.3 million parameters is trained by ``companion train`` on sums of two numbers from 10
to 99. Where the last digits add up to 13 or more, 70 % of the lines forget the carry; of the others
40 % are off by 1 or 10. From there it goes on in several ways, each from the same start: GRPO with
a verifier, without and with a price of leaving the start; DPO and IPO on pairs of its own answers;
GRPO with the majority of its own answers in place of the verifier; and GRPO with a reward model
that was fitted to a few of those pairs. A thousand sums occur in no text and no prompt; all numbers
are about them, unless said otherwise.

A run that was interrupted goes on when the same command is given again, with the same ``--work``.
"""

import argparse
import copy
import json
import math
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion.core import generator
from companion.frontiers import reinforcement as rl
from companion.models import generate, load_pretrained
from companion.transformer.block import Decoder

sys.path.insert(0, str(Path(__file__).parent))
from _store import store

CHARACTERS = "0123456789+=\n"
LONGEST = 5  # tokens of an answer, with its end
TESTED = 1000
DRAWS = 8
LR = 3e-4
FEW = 200  # pairs that the reward model learns from
EVERY = 5  # steps whose mean is kept of what is watched; divides all numbers of steps


def hard(a: int, b: int) -> bool:
    """Whether most of the text forgets the carry of this sum."""
    return a % 10 + b % 10 >= 13


def copied(a: int, b: int, order: random.Random) -> int:
    """A sum as the text has it, with its mistakes."""
    if hard(a, b):
        return a + b - 10 * (order.random() < 0.7)
    return a + b + order.choice((-10, -1, 1, 10)) * (order.random() < 0.4)


class Task:
    """Sums, their split, and what is right."""

    def __init__(self, seed: int, work: Path) -> None:
        order = random.Random(seed)
        pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
        order.shuffle(pairs)
        self.tested, self.known = pairs[:TESTED], pairs[TESTED:]
        self.prompted = self.known[:3000]
        self.work = work
        work.mkdir(parents=True, exist_ok=True)
        lines, again = [], list(self.known)
        for _ in range(3):
            order.shuffle(again)
            lines += [f"{a}+{b}={copied(a, b, order)}\n" for a, b in again]
        (work / "sums.txt").write_text("".join(lines), encoding="utf-8")
        (work / "characters.json").write_text(characters(), encoding="utf-8")

    def pretrain(self, seed: int, steps: int) -> None:
        """Run our own command; it goes on where it was interrupted, and is done where it was."""
        command = [sys.executable, "-m", "companion", "train", str(self.work / "sums.txt")]
        command += ["--out", str(self.work / "model"), "--steps", str(steps), "--seed", str(seed)]
        command += ["--tokenizer", str(self.work / "characters.json"), "--dim", "96"]
        command += ["--layers", "3", "--heads", "4", "--kv-heads", "4", "--context", "64"]
        command += ["--batch", "32", "--lr", "3e-3", "--device", "cpu"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def characters() -> str:
    """A tokenizer of single characters."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE

    end = "<|endoftext|>"
    made = Tokenizer(BPE({end: 0} | {c: i + 1 for i, c in enumerate(CHARACTERS)}, []))
    made.add_special_tokens([end])
    made.decoder = decoders.Fuse()
    text: str = made.to_str()
    return text


IDS = {c: i + 1 for i, c in enumerate(CHARACTERS)}
STOP = IDS["\n"]


def encode(text: str) -> Tensor:
    """Characters to ids."""
    return torch.tensor([IDS[c] for c in text])


def decode(ids: Sequence[int]) -> str:
    """Ids to characters; the end of a document is a question mark."""
    return "".join(CHARACTERS[i - 1] if i else "?" for i in ids)


def prompts_of(pairs: Sequence[tuple[int, int]]) -> list[Tensor]:
    """What stands before each answer."""
    return [encode(f"\n{a}+{b}=") for a, b in pairs]


def right(pairs: Sequence[tuple[int, int]]) -> Callable[[list[int], list[list[int]]], list[float]]:
    """The verifier: 1 for the sum, and 0 for all else."""
    wanted = [str(a + b) for a, b in pairs]

    def reward(numbers: list[int], answers: list[list[int]]) -> list[float]:
        return [float(decode(x) == wanted[n]) for n, x in zip(numbers, answers, strict=True)]

    return reward


@torch.no_grad()
def right_probability(model: Decoder, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Exactly how likely each right answer is, its end included."""
    model.eval()
    found = torch.zeros(len(pairs), dtype=torch.float64)
    texts = [(encode(f"\n{a}+{b}="), encode(f"{a + b}\n")) for a, b in pairs]
    for sizes in {(len(x), len(y)) for x, y in texts}:
        rows = [i for i, (x, y) in enumerate(texts) if (len(x), len(y)) == sizes]
        ids = torch.stack([torch.cat(texts[i]) for i in rows])
        scores = rl.completion_scores(model, ids, prompt=sizes[0])
        found[rows] = scores.log_probs.double().sum(1).exp()
    return found


def glance(model: Decoder, pairs: Sequence[tuple[int, int]]) -> dict[str, float]:
    """How likely the right answers are, and how many of the likeliest answers are right."""
    model.eval()
    ids, real = rl.pad_prompts(prompts_of(pairs))
    with torch.no_grad():
        written = generate(model, ids, tokens=LONGEST, stop=[STOP], real=real).tolist()
    best = [row[: row.index(STOP)] if STOP in row else row for row in written]
    sure = right_probability(model, pairs)
    is_hard = torch.tensor([hard(a, b) for a, b in pairs])
    return {
        "exact": float(sure.mean()),
        "easy": float(sure[~is_hard].mean()),
        "hard": float(sure[is_hard].mean()),
        "greedy": sum(right(pairs)(list(range(len(pairs))), best)) / len(pairs),
    }


@torch.no_grad()
def places(model: Decoder, drawn: rl.Samples) -> Tensor:
    """Log-probabilities of all tokens at each place of the answers."""
    real = None if bool(drawn.real.all()) else drawn.real[:, :-1]
    hidden = model.hidden(drawn.ids[:, :-1], real=real)[:, drawn.prompt - 1 :]
    return (hidden @ model.head.weight.T).double().log_softmax(-1)


def measure(
    model: Decoder, start: Decoder, pairs: Sequence[tuple[int, int]], draws: int = 2
) -> dict[str, Any]:
    """The same, with several draws, and the divergence from the start.

    The divergence is summed over all tokens at each place, and drawn is only what stands before:
    an estimate from drawn tokens alone would rest on a few that are rare and were not so before.
    """
    found: dict[str, Any] = glance(model, pairs)
    drawn = rl.write_samples(
        model, prompts_of(pairs), group=draws, tokens=LONGEST, stop=[STOP], generator=generator(7)
    )
    numbers = [n for n in range(len(pairs)) for _ in range(draws)]
    ok = torch.tensor(right(pairs)(numbers, drawn.answers())).view(-1, draws)
    mine, its = places(model, drawn), places(start, drawn)
    p = mine.exp()
    away = (p * (mine - its)).sum(-1).masked_fill(~drawn.scored, 0).sum(1)
    entropy = -(p * mine).sum(-1).masked_fill(~drawn.scored, 0).sum()
    by_prompt = away.view(-1, draws).mean(1)
    found[f"any_of_{draws}"] = float((ok.sum(1) > 0).double().mean())
    return found | {
        "kl": float(by_prompt.mean()),
        "kl_error": float(by_prompt.std() / math.sqrt(len(pairs))),
        "entropy": float(entropy / drawn.scored.sum()),
        "length": float(drawn.scored.sum(1).double().mean()),
    }


def brief(found: dict[str, Any]) -> str:
    """One line of progress."""
    names = ("exact", "easy", "hard", "greedy", "kl", "entropy")
    return "  ".join(f"{name} {found[name]:.3f}" for name in names if name in found)


def follow(
    name: str, start: Decoder, task: Task, seed: int, reward: Any, more: dict[str, Any]
) -> tuple[Decoder, dict[str, Any]]:
    """Learn from one reward, and test on the way."""
    model = copy.deepcopy(start)
    more = dict(more)
    steps, slope = more["steps"], more.pop("slope")
    kept = task.work / f"{name}.json"
    points: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else []

    def look(step: int, row: dict[str, float]) -> None:
        if step % (10 if step <= 30 else 30) == 0 and step < steps:
            points[:] = [p for p in points if p["step"] < step]
            points.append({"step": step, **glance(model, task.tested)})
            kept.write_text(json.dumps(points))
            print(f"  {name} {step}: {brief(points[-1])}", flush=True)

    log = rl.reinforce(
        model,
        prompts_of(task.prompted),
        reward,
        tokens=LONGEST,
        stop=[STOP],
        prompts_per_step=32,
        batch_size=512,
        seed=seed,
        directory=task.work / name,
        save_every=10,
        on_step=look,
        schedule=lambda step: min(1.0, (step + 1) / 10) * (1 - step / slope),
        **more,
    )
    last = measure(model, start, task.tested, DRAWS if name == "verifier" else 2)
    points = [p for p in points if p["step"] < steps] + [{"step": steps, **last}]
    print(f"  {name} {steps}: {brief(last)}", flush=True)
    watched = {
        column: [round(float(x), 4) for x in getattr(log, column).view(-1, EVERY).mean(1)]
        for column in ("reward", "silent", "kl", "entropy", "length", "ended", "grad_norm")
    }
    return model, {"points": points, "watched": watched, "seconds": round(log.seconds, 1)}


def own_pairs(start: Decoder, task: Task, seed: int) -> dict[str, Tensor]:
    """Pairs of its own answers to one prompt, of which one is right and one wrong."""
    some = task.prompted
    drawn = rl.write_samples(
        start, prompts_of(some), group=8, tokens=LONGEST, stop=[STOP], generator=generator(seed)
    )
    numbers = [n for n in range(len(some)) for _ in range(8)]
    ok = torch.tensor(right(some)(numbers, drawn.answers())).view(-1, 8) > 0
    both = ok.any(1) & ~ok.all(1)
    good, bad = ok.long().argmax(1), (~ok).long().argmax(1)
    rows = torch.arange(len(some)) * 8
    pick = torch.cat([(rows + good)[both], (rows + bad)[both]])
    return {
        "ids": drawn.ids[pick],
        "real": drawn.real[pick],
        "scored": drawn.scored[pick],
        "prompt": torch.tensor(drawn.prompt),
    }


def answer_scores(model: Decoder, pairs: dict[str, Tensor], rows: Tensor) -> Tensor:
    """Log-probabilities of whole answers."""
    found = rl.completion_scores(
        model,
        pairs["ids"][rows],
        prompt=int(pairs["prompt"]),
        real=pairs["real"][rows],
        scored=pairs["scored"][rows],
    )
    return found.log_probs.sum(1)


def prefer(
    start: Decoder, task: Task, pairs: dict[str, Tensor], seed: int, variant: str, beta: float
) -> dict[str, Any]:
    """DPO or IPO on the pairs."""
    model = copy.deepcopy(start).train()
    steps, size = 80, 64
    count = len(pairs["ids"]) // 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    order = generator(seed)
    implied = []
    for step in range(steps):
        some = torch.randint(count, (size,), generator=order)
        rows = torch.cat([some, some + count])
        for group in optimizer.param_groups:
            group["lr"] = 1e-4 * (1 - step / steps)
        optimizer.zero_grad()
        chosen, rejected = answer_scores(model, pairs, rows).chunk(2)
        with torch.no_grad():
            of_start = answer_scores(start, pairs, rows).chunk(2)
        made = rl.dpo_loss(chosen, rejected, *of_start, beta=beta, variant=variant)  # type: ignore[arg-type]
        made.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        gains = (made.chosen.mean() / beta, made.rejected.mean() / beta, made.loss)
        implied.append([float(value.detach()) for value in gains])
    curve = torch.tensor(implied).view(10, -1, 3).mean(1)
    found = measure(model, start, task.tested)
    print(f"  {variant} {beta}: {brief(found)}", flush=True)
    return {"variant": variant, "beta": beta, "pairs": count, **found, "curve": curve.tolist()}


def fit_judge(start: Decoder, pairs: dict[str, Tensor], few: int, seed: int) -> rl.RewardModel:
    """A reward model of a few pairs."""
    judge = rl.RewardModel(copy.deepcopy(start)).train()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-4, weight_decay=0.01)
    count = len(pairs["ids"]) // 2
    order = generator(seed)
    # What follows the end of an answer is not read.
    real = pairs["real"].clone()
    real[:, int(pairs["prompt"]) :] = pairs["scored"]
    for _ in range(150):
        some = torch.randint(min(few, count), (32,), generator=order)
        rows = torch.cat([some, some + count])
        optimizer.zero_grad()
        scores = judge(pairs["ids"][rows], real=real[rows])
        rl.bradley_terry_loss(*scores.chunk(2)).backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
    return judge.eval().requires_grad_(False)


@torch.no_grad()
def judged(judge: rl.RewardModel, pairs: dict[str, Tensor], few: int) -> tuple[float, float]:
    """How often the judge prefers the right answer: of pairs that are new to it, and of its own."""
    count = len(pairs["ids"]) // 2
    real = pairs["real"].clone()
    real[:, int(pairs["prompt"]) :] = pairs["scored"]
    good, bad = judge(pairs["ids"], real=real).chunk(2)
    right_way = (good > bad).double()
    cut = min(few, count - 1)
    return float(right_way[cut:].mean()), float(right_way[:cut].mean())


def judge_reward(judge: rl.RewardModel, pairs: Sequence[tuple[int, int]]) -> Any:
    """What the reward model says of an answer."""
    prompts = prompts_of(pairs)

    @torch.no_grad()
    def reward(numbers: list[int], answers: list[list[int]]) -> Tensor:
        texts = [
            torch.cat([prompts[n], torch.tensor([*x, STOP])])
            for n, x in zip(numbers, answers, strict=True)
        ]
        ids, real = rl.pad_prompts(texts)
        return judge(ids, real=real)

    return reward


def vote(numbers: list[int], answers: list[list[int]]) -> Tensor:
    """Pays what most answers of a group say."""
    codes: dict[tuple[int, ...], int] = {}
    told = torch.tensor([codes.setdefault(tuple(x), len(codes)) for x in answers])
    return rl.majority_rewards(told.view(-1, 16)).flatten()


def votes(model: Decoder, pairs: Sequence[tuple[int, int]], seed: int) -> dict[str, float]:
    """How much of what a majority of 16 pays goes to right answers."""
    model.eval()
    prompts = prompts_of(pairs)
    drawn = rl.write_samples(
        model, prompts, group=16, tokens=LONGEST, stop=[STOP], generator=generator(seed + 13)
    )
    numbers = [n for n in range(len(pairs)) for _ in range(16)]
    ok = torch.tensor(right(pairs)(numbers, drawn.answers())).view(-1, 16)
    paid = vote(numbers, drawn.answers()).view(-1, 16)
    share = (paid * ok).sum(1).double() / paid.sum(1)
    is_hard = torch.tensor([hard(a, b) for a, b in pairs])
    return {"easy": float(share[~is_hard].mean()), "hard": float(share[is_hard].mean())}


def retry(model: Decoder, pairs: Sequence[tuple[int, int]], seed: int) -> dict[str, Any]:
    """A second answer to each sum, taken by four rules."""
    model.eval()
    prompts = prompts_of(pairs)
    drawn = rl.write_samples(
        model, prompts, group=2, tokens=LONGEST, stop=[STOP], generator=generator(seed + 11)
    )
    numbers = [n for n in range(len(pairs)) for _ in range(2)]
    ok = torch.tensor(right(pairs)(numbers, drawn.answers())).view(-1, 2) > 0
    likely = drawn.log_probs.sum(1).view(-1, 2)
    coin = torch.rand(len(pairs), generator=generator(seed + 12)) < 0.5
    rules = {
        "always": torch.ones_like(coin),
        "by a coin": coin,
        "if likelier": likely[:, 1] > likely[:, 0],
        "if verified": ~ok[:, 0],
    }
    found = {}
    for rule, accept in rules.items():
        made = rl.correction(ok[:, 0], ok[:, 1], accept)
        found[rule] = [round(float(value), 4) for value in made]
    return found


def main(argv: list[str] | None = None) -> None:
    """Train, follow, and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder of what is unfinished")
    parser.add_argument("--pretraining", type=int, default=1800, help="steps on text")
    parser.add_argument("--steps", type=int, default=120, help="steps with the verifier")
    parser.add_argument("--side", type=int, default=30, help="steps of each other way")
    parser.add_argument("--name", default="", help="of the stored run")
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    begin = time.perf_counter()
    seed = asked.seed
    work = asked.work or Path("_build") / f"reinforcement-{seed}"
    task = Task(seed, work)
    task.pretrain(seed, asked.pretraining)
    start = load_pretrained(work / "model").model.eval()
    assert isinstance(start, Decoder)
    results: dict[str, Any] = {
        "parameters": sum(p.numel() for p in start.parameters()),
        "start": measure(start, start, task.tested, DRAWS),
        "probabilities": " ".join(f"{p:.4f}" for p in right_probability(start, task.tested)),
        "pretraining": asked.pretraining,
    }
    print(f"start: {results['start']}", flush=True)
    verifier = right(task.prompted)
    # The learning rate falls alike in all of them, so that what differs is the reward alone.
    usual = {"group": 16, "lr": LR, "slope": asked.steps}
    main_run = {**usual, "steps": asked.steps}
    side = {**usual, "steps": asked.side}
    longer = {**usual, "steps": 2 * asked.side}
    done = work / "done.json"
    parts: dict[str, Any] = json.loads(done.read_text()) if done.is_file() else {}
    before: dict[str, float] = parts.get("spent", {"wall": 0.0, "cpu": 0.0})

    def keep(name: str, made: Any) -> None:
        parts[name] = made
        cpu = sum(
            part.ru_utime + part.ru_stime
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
            for part in (resource.getrusage(who),)
        )
        wall = time.perf_counter() - begin
        parts["spent"] = {"wall": before["wall"] + wall, "cpu": before["cpu"] + cpu}
        done.write_text(json.dumps(parts))

    if "verifier" not in parts:
        _, made = follow("verifier", start, task, seed, verifier, main_run)
        keep("verifier", made)
    for beta in (0.2,):
        if f"price {beta}" not in parts:
            more = {**side, "beta": beta}
            keep(f"price {beta}", follow(f"price-{beta}", start, task, seed, verifier, more)[1])
    pairs = own_pairs(start, task, seed)
    for variant, beta in (("sigmoid", 0.2), ("sigmoid", 1.0), ("sigmoid", 3.0), ("ipo", 0.2)):
        made = parts.get("preferences", [])
        if (variant, beta) not in [(row["variant"], row["beta"]) for row in made]:
            keep("preferences", [*made, prefer(start, task, pairs, seed, variant, beta)])
    if "majority" not in parts:
        keep("majority", follow("majority", start, task, seed, vote, side)[1])
    if "judge" not in parts:
        judge = fit_judge(start, pairs, FEW, seed)
        made = follow("judge", start, task, seed, judge_reward(judge, task.prompted), longer)[1]
        agrees, seen = judged(judge, pairs, FEW)
        keep("judge", {**made, "few": FEW, "agrees": agrees, "agrees_seen": seen})
    if "retry" not in parts:
        keep("retry", retry(start, task.tested, seed))
    if "votes" not in parts:
        keep("votes", votes(start, task.tested, seed))
    spent = parts.pop("spent")
    results |= parts
    results["cpu_seconds"] = round(spent["cpu"], 1)
    store(
        asked.name or f"reinforcement_{seed}",
        results,
        seed=seed,
        seconds=spent["wall"],
    )


if __name__ == "__main__":
    main()
