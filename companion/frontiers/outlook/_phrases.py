r"""Translation by a table of phrases: what was put for what, and how often."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from difflib import SequenceMatcher

from companion.core import check_count, check_in_range, check_several

__all__ = ["PhraseTable"]

_TOKEN = re.compile(r"\w+(?:[’'-]\w+)*|[^\w\s]")
_NO_BLANK_BEFORE = re.compile(r"\s+([,.;:?!)\]])")
_NO_BLANK_AFTER = re.compile(r"([(\[])\s+")


class PhraseTable:
    r"""Translate between two versions of one language by phrases learned from pairs.

    Two versions of a sentence are aligned where their words agree. Each run of words between two
    places where both may be cut is a phrase with what stands for it. A new sentence is cut into
    phrases and translated from left to right, without reordering, so that

    .. math:: \sum_k \bigl(\log p(\text{target}_k \mid \text{source}_k) - \gamma\bigr)

    is largest, by dynamic programming. Words that were never seen are copied.

    Args:
        sources: Sentences.
        targets: The same in the other version.
        longest: Most words of a phrase.
        least: How often a phrase must have been seen.
        penalty: :math:`\gamma \ge 0`, the price of a phrase: the higher, the fewer and longer.

    Attributes:
        table: For each phrase its likeliest translation and the logarithm of its relative
            frequency.

    Raises:
        ValueError: If the numbers differ, a single text is given, or a setting is out of range.

    References:
        The idea of Koehn, Och, and Marcu 2003, "Statistical Phrase-Based Translation", NAACL,
        without a language model, without reordering, and with agreement in place of a learned
        alignment. Two languages need one.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> pairs = [("thou art good", "you are good"), ("thou art old", "you are old")]
        >>> table = PhraseTable(*zip(*pairs), least=2)
        >>> table.translate("He said, thou art late.")
        'He said, you are late.'
    """

    def __init__(
        self,
        sources: Sequence[str],
        targets: Sequence[str],
        *,
        longest: int = 4,
        least: int = 2,
        penalty: float = 0.1,
    ) -> None:
        check_several("sources", sources)
        check_several("targets", targets)
        if len(sources) != len(targets):
            raise ValueError(f"{len(sources)} sources and {len(targets)} targets: give pairs")
        check_count("longest", longest)
        check_count("least", least)
        check_in_range("penalty", penalty, low=0.0, open_high=True)
        self.longest, self.penalty = longest, penalty
        put: dict[tuple[str, ...], Counter[tuple[str, ...]]] = defaultdict(Counter)
        seen: Counter[tuple[str, ...]] = Counter()
        for source, target in zip(sources, targets, strict=True):
            a, b = _TOKEN.findall(source), _TOKEN.findall(target)
            for i in range(len(a)):
                seen.update(tuple(a[i:j]) for j in range(i + 1, min(i + longest, len(a)) + 1))
            cuts = _cuts(a, b)
            for first, (i, x) in enumerate(cuts):
                for j, y in cuts[first + 1 :]:
                    if j - i > longest:
                        break
                    if j > i:
                        put[tuple(a[i:j])][tuple(b[x:y])] += 1
        self.table: dict[tuple[str, ...], tuple[tuple[str, ...], float]] = {}
        for phrase, targets_of in put.items():
            if seen[phrase] >= least:
                best, count = targets_of.most_common(1)[0]
                self.table[phrase] = best, math.log(count / seen[phrase])

    def __len__(self) -> int:
        return len(self.table)

    def translate(self, text: str) -> str:
        """Translate one sentence.

        Args:
            text: The sentence.

        Returns:
            Its translation. Blanks are set as English sets them.
        """
        tokens = _TOKEN.findall(text)
        best: list[tuple[float, int, tuple[str, ...]]] = [(0.0, 0, ())]
        for j in range(1, len(tokens) + 1):
            options = []
            for i in range(max(0, j - self.longest), j):
                phrase = tuple(tokens[i:j])
                found = self.table.get(phrase)
                if found is None and j - i == 1:
                    found = phrase, 0.0
                if found is not None:
                    options.append((best[i][0] + found[1] - self.penalty, i, found[0]))
            best.append(max(options, key=lambda option: option[0]))
        words: list[str] = []
        j = len(tokens)
        while j:
            _, i, target = best[j]
            words = [*target, *words]
            j = i
        joined = _NO_BLANK_BEFORE.sub(r"\1", " ".join(words))
        return _NO_BLANK_AFTER.sub(r"\1", joined)


def _cuts(a: list[str], b: list[str]) -> list[tuple[int, int]]:
    """Places at which both sentences may be cut: around each word that agrees."""
    cuts = {(0, 0), (len(a), len(b))}
    for block in SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks():
        cuts.update((block.a + k, block.b + k) for k in range(block.size + 1) if block.size)
    return sorted(cuts)
