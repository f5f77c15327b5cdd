"""Shuffling without a list: a permutation of n things as a function, in constant time and memory.

A balanced Feistel network over the next even power of two, with cycle walking back into [0, n) (Black and
Rogaway, "Ciphers with arbitrary finite domains", 2002). It need not resist an attacker, only look shuffled.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1
_ROUNDS = 4


def mix(*values: int) -> int:
    """A 64-bit hash of some integers (splitmix64's finaliser, chained); the same on every machine."""
    state = 0
    for value in values:
        state = (state ^ (value & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


def permute(index: int, count: int, key: int) -> int:
    """Where `index` goes in the permutation of range(count) that `key` names. IndexError outside."""
    if not 0 <= index < count:
        raise IndexError(f"{index} of {count}")
    half = max(1, (count - 1).bit_length() + 1 >> 1)
    low = (1 << half) - 1
    while True:  # less than four turns on average: the network is at most four times as wide as count
        left, right = index >> half, index & low
        for turn in range(_ROUNDS):
            left, right = right, left ^ (mix(key, turn, right) & low)
        index = left << half | right
        if index < count:
            return index
