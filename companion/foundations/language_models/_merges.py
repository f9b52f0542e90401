r"""Learning merges from counted words, and replaying them on one word."""

import heapq
from collections import defaultdict
from itertools import pairwise

__all__ = ["learn", "replay"]

Pair = tuple[int, int]


def learn(
    words: list[list[int]], counts: list[int], *, first: int, end: int, least: int
) -> list[Pair]:
    """Learn merges, the product of the first one being ``first``; ``words`` is used up."""
    pair_counts: defaultdict[Pair, int] = defaultdict(int)
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, (word, count) in enumerate(zip(words, counts, strict=True)):
        for pair in pairwise(word):
            pair_counts[pair] += count
            where[pair].add(index)
    # The largest count first; among equal ones the smallest pair of ids.
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while heap and first + len(merges) < end:
        claimed, pair = heapq.heappop(heap)
        count = pair_counts[pair]
        if count != -claimed:
            # Other merges took occurrences away since the entry was made: put it where it belongs.
            if count > 0:
                heapq.heappush(heap, (-count, pair))
            continue
        if count < least:
            break
        product = first + len(merges)
        merges.append(pair)
        made: defaultdict[Pair, int] = defaultdict(int)
        for index in where.pop(pair):
            for change, amount in _replace(words[index], pair, product):
                # A pair with the new token is counted here, and enters the heap once, below.
                table = made if product in change else pair_counts
                table[change] += amount * counts[index]
                if amount > 0:
                    where[change].add(index)
        del pair_counts[pair]
        for change, amount in made.items():
            if amount > 0:
                pair_counts[change] = amount
                heapq.heappush(heap, (-amount, change))
    return merges


def _replace(word: list[int], pair: Pair, product: int) -> list[tuple[Pair, int]]:
    """Merge the pair in the word, from left to right; return the pairs that come and go."""
    left, right = pair
    changes = []
    at, last = 0, len(word) - 1
    while at < last:
        if word[at] == left and word[at + 1] == right:
            if at > 0:
                changes += [((word[at - 1], left), -1), ((word[at - 1], product), 1)]
            if at + 1 < last:
                changes += [((right, word[at + 2]), -1), ((product, word[at + 2]), 1)]
            word[at : at + 2] = [product]
            last -= 1
        at += 1
    return changes


def replay(ids: list[int], ranks: dict[Pair, int], products: list[int]) -> list[int]:
    """Replay the merges: always the earliest learned pair, of equal ones the leftmost."""
    size = len(ids)
    heap = [(ranks[pair], at) for at, pair in enumerate(pairwise(ids)) if pair in ranks]
    if not heap:
        return ids
    heapq.heapify(heap)
    # A doubly linked list: a merge keeps the left position and takes the right one out.
    after, before = list(range(1, size + 1)), list(range(-1, size - 1))
    alive = [True] * size
    while heap:
        rank, at = heapq.heappop(heap)
        other = after[at]
        if not alive[at] or other == size or ranks.get((ids[at], ids[other])) != rank:
            continue  # a neighbor was merged since
        ids[at], alive[other] = products[rank], False
        after[at] = after[other]
        if after[at] < size:
            before[after[at]] = at
            found = ranks.get((ids[at], ids[after[at]]))
            if found is not None:
                heapq.heappush(heap, (found, at))
        if at > 0:
            found = ranks.get((ids[before[at]], ids[at]))
            if found is not None:
                heapq.heappush(heap, (found, before[at]))
    return [i for i, here in zip(ids, alive, strict=True) if here]
