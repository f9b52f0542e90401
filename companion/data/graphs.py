"""Small knowledge graphs with their usual splits: Nations, Kinships, UMLS.

Book: ``knowledge/knowledge_graphs``.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from companion.data._files import read_text

__all__ = ["KNOWLEDGE_GRAPHS", "KnowledgeGraph", "knowledge_graph"]

#: Names that :func:`knowledge_graph` accepts.
KNOWLEDGE_GRAPHS: tuple[str, ...] = ("nations", "kinships", "umls")


@dataclass(frozen=True, eq=False)
class KnowledgeGraph:
    """Facts (head, relation, tail), split for link prediction.

    Attributes:
        name: Name of the graph.
        entities: Entity names in alphabetical order; an entity's number is its position.
        relations: Relation names, likewise.
        train: Facts to learn from, one (head, relation, tail) a row.
        valid: Facts to choose hyperparameters with.
        test: Facts to report on.
    """

    name: str
    entities: tuple[str, ...]
    relations: tuple[str, ...]
    train: Int[Tensor, "train 3"]
    valid: Int[Tensor, "valid 3"]
    test: Int[Tensor, "test 3"]

    def __repr__(self) -> str:
        return (
            f"KnowledgeGraph({self.name}: {len(self.entities)} entities, "
            f"{len(self.relations)} relations, "
            f"{len(self.train)}/{len(self.valid)}/{len(self.test)} facts)"
        )


def knowledge_graph(name: str, *, directory: str | Path | None = None) -> KnowledgeGraph:
    """A knowledge graph with its training, validation and test facts.

    ======== ======== ========= ===================== ============================================
    name     entities relations train/valid/test      about
    ======== ======== ========= ===================== ============================================
    nations  14       55        1592/199/201          dealings between countries, 1950 to 1965
    kinships 104      25        8544/1068/1074        kinship terms of the Alyawarra of Australia
    umls     135      46        5216/652/661          a biomedical ontology
    ======== ======== ========= ===================== ============================================

    Args:
        name: One of :data:`KNOWLEDGE_GRAPHS`.
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        The graph, facts as int64.

    Raises:
        ValueError: No graph has that name.
        MissingDataError: The wheel ``pykeen`` is not installed.
        CorruptDataError: A file differs from the pinned one.

    References:
        Kok and Domingos 2007, "Statistical Predicate Invention", ICML,
        doi:10.1145/1273496.1273551; the splits are those of PyKEEN, Ali et al. 2021,
        "PyKEEN 1.0", JMLR 22(82). License of the package: MIT.

    Book: ``knowledge/knowledge_graphs``.
    """
    if name not in KNOWLEDGE_GRAPHS:
        raise ValueError(f"unknown graph {name!r}; known: {', '.join(KNOWLEDGE_GRAPHS)}")
    splits = {}
    for split in ("train", "valid", "test"):
        text = read_text("knowledge_graphs", f"datasets/{name}/{split}.txt", directory=directory)
        splits[split] = [line.split("\t") for line in text.splitlines() if line.strip()]
    facts = [fact for split in splits.values() for fact in split]
    entities = sorted({head for head, _, _ in facts} | {tail for _, _, tail in facts})
    relations = sorted({relation for _, relation, _ in facts})
    entity = {word: number for number, word in enumerate(entities)}
    relation = {word: number for number, word in enumerate(relations)}
    numbered = {
        split: torch.tensor([[entity[h], relation[r], entity[t]] for h, r, t in rows])
        for split, rows in splits.items()
    }
    return KnowledgeGraph(name, tuple(entities), tuple(relations), **numbered)
