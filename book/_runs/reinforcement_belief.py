"""Ask SmolLM2 whether proposed sums are right: of one digit each, with right and wrong answers.

About three minutes of one core. The question follows two examples, one right and one wrong, in both
orders. Kept are probabilities of *Yes* among *Yes* and *No*.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from companion.frontiers.reinforcement import p_true
from companion.models import smollm2

sys.path.insert(0, str(Path(__file__).parent))
from _store import store

ASK = "Question: What is {} + {}?\nProposed answer: {}\nIs the proposed answer right?"
SHOTS = ((3, 4, 7, " Yes"), (6, 2, 9, " No"))


def questions(largest: int) -> list[tuple[int, int, int, bool]]:
    """Sums, a proposed answer, and whether it is right."""
    made = []
    for a in range(1, largest + 1):
        for b in range(1, largest + 1):
            off = (1, -1, 2, -2, 10)[(3 * a + b) % 5]
            made += [(a, b, a + b, True), (a, b, abs(a + b + off), False)]
    return made


def main(argv: list[str] | None = None) -> None:
    """Ask, and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=9, help="digit")
    asked = parser.parse_args(argv)
    begin = time.perf_counter()
    torch.set_num_threads(1)
    decoder = smollm2()
    words: Any = decoder.tokenizer
    yes, no = ([words.encode(word).ids[0]] for word in (" Yes", " No"))
    some = questions(asked.largest)
    beliefs = []
    for shots in (SHOTS, SHOTS[::-1]):
        head = "".join(f"{ASK.format(*shot[:3])}{shot[3]}\n\n" for shot in shots)
        rows = [words.encode(head + ASK.format(*q[:3])).ids for q in some]
        found = torch.zeros(len(rows))
        for size in sorted({len(row) for row in rows}):
            same = [i for i, row in enumerate(rows) if len(row) == size]
            for first in range(0, len(same), 16):
                part = same[first : first + 16]
                with torch.inference_mode():
                    logits = decoder.model(torch.tensor([rows[i] for i in part]), last=1)[:, 0]
                found[part] = p_true(logits, yes, no)
        beliefs.append(found)
    results = {
        "right": " ".join(str(int(q[3])) for q in some),
        "sum": " ".join(str(q[0] + q[1]) for q in some),
        "beliefs": [" ".join(f"{p:.5f}" for p in row.tolist()) for row in beliefs],
    }
    store("reinforcement_belief", results, seed=0, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
