"""Train two more arms beside those of another run: what may make PyKEEN's numbers differ.

About 5 minutes of one core. PyKEEN's DistMult and ComplEx without their penalties; and our TransE,
DistMult and ComplEx with PyKEEN's habit, heads corrupted for one half of a batch and tails for the
other. Margins, width, epochs and the number of seeds are those of the stored run
``knowledge_graphs_pykeen``.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from companion import data

sys.path.insert(0, str(Path(__file__).parent))
from _store import store
from knowledge_graphs_pykeen import Graph, judged

ARMS = {"no penalty": ("DistMult", "ComplEx"), "in halves": ("TransE", "DistMult", "ComplEx")}


def main(argv: list[str] | None = None) -> None:
    """Train, store."""
    other = data.stored_run("knowledge_graphs_pykeen").results
    most = 1 + max(row["seed"] for row in other["trained"])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=most)
    parser.add_argument("--dim", type=int, default=other["dim"])
    parser.add_argument("--epochs", type=int, default=other["epochs"])
    parser.add_argument("--graphs", nargs="+", default=list(other["chosen"]))
    asked = parser.parse_args(argv)
    begin = time.perf_counter()
    torch.set_num_threads(1)
    trained: list[dict[str, Any]] = []
    for name in asked.graphs:
        graph = Graph(name)
        for arm, kind in ((arm, kind) for arm, kinds in ARMS.items() for kind in kinds):
            margin = other["chosen"][name][kind]["margin"]
            how = {"dim": asked.dim, "epochs": asked.epochs, "margin": margin}
            for seed in range(asked.seeds):
                trained.append(judged(graph, kind, arm, seed=seed, **how))
    results = {"dim": asked.dim, "epochs": asked.epochs, "trained": trained}
    store("knowledge_graphs_arms", results, seed=0, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
