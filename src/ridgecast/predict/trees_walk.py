"""The walk of rows through packed trees, in the words that numba compiles; see `trees`."""

from __future__ import annotations

import numpy as np

__all__ = ["walk"]

_LANES = 8  # rows that walk side by side: the loads of one hide another's (16 spill registers)
_BLOCK = 64  # rows that meet a tree while it lies in the nearest cache
_SURE = 7  # steps that are not asked whether all have arrived
_CHILD = 0xFFFFFF


def walk(x, nodes, values, roots, depths, out):
    """Add the trees' values to out [rows]; for x see `trees._ordered`, for trees `trees._Packed`.

    The lanes are written out: as an array they would live in memory, at half the speed.
    """
    cells, columns = x.ravel(), x.shape[1]
    for first in range(0, len(x), _BLOCK):
        last = min(first + _BLOCK, len(x))
        for t in range(len(depths)):
            tree, value = nodes[roots[t] : roots[t + 1]], values[roots[t] : roots[t + 1]]
            row = first
            while row + _LANES <= last:
                i = row * columns
                j, k, q, m = i + columns, i + 2 * columns, i + 3 * columns, i + 4 * columns
                n, o, p = m + columns, m + 2 * columns, m + 3 * columns
                a = b = c = d = e = f = g = h = np.int64(0)
                for depth in range(depths[t]):
                    left, right = a + b + c + d, e + f + g + h
                    a = ((tree[a] >> 8) & _CHILD) + (cells[i + (tree[a] & 255)] > tree[a] >> 32)
                    b = ((tree[b] >> 8) & _CHILD) + (cells[j + (tree[b] & 255)] > tree[b] >> 32)
                    c = ((tree[c] >> 8) & _CHILD) + (cells[k + (tree[c] & 255)] > tree[c] >> 32)
                    d = ((tree[d] >> 8) & _CHILD) + (cells[q + (tree[d] & 255)] > tree[d] >> 32)
                    e = ((tree[e] >> 8) & _CHILD) + (cells[m + (tree[e] & 255)] > tree[e] >> 32)
                    f = ((tree[f] >> 8) & _CHILD) + (cells[n + (tree[f] & 255)] > tree[f] >> 32)
                    g = ((tree[g] >> 8) & _CHILD) + (cells[o + (tree[g] & 255)] > tree[g] >> 32)
                    h = ((tree[h] >> 8) & _CHILD) + (cells[p + (tree[h] & 255)] > tree[h] >> 32)
                    # children stand behind their parents: where sums stay, all have arrived
                    if depth > _SURE and left == a + b + c + d and right == e + f + g + h:
                        break
                out[row] += value[a]
                out[row + 1] += value[b]
                out[row + 2] += value[c]
                out[row + 3] += value[d]
                out[row + 4] += value[e]
                out[row + 5] += value[f]
                out[row + 6] += value[g]
                out[row + 7] += value[h]
                row += _LANES
            while row < last:
                i, a = row * columns, np.int64(0)
                for _ in range(depths[t]):
                    a = ((tree[a] >> 8) & _CHILD) + (cells[i + (tree[a] & 255)] > tree[a] >> 32)
                out[row] += value[a]
                row += 1
