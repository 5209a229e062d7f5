"""Hash tables: probes of open addressing and cuckoo tables, and the multi-resolution hash encoding.

Owns expected probes, lines touched, and operation counts. Keys are taken as uniform (see `reuse`).
Knows no device, no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from ..dtypes import dtype
from .base import F64, Amount, Op, Rule, Work, choice, flag, fmt, number, plain, share, size
from .reuse import Scattered, line_rule, line_size, locality_share, scattered

__all__ = ["HashEncoding", "HashProbe"]

INTEGER_PER_HASH = 8.0  # two multiplies and three xor-shifts, the usual 32-bit finaliser
INTEGER_PER_COMPARE = 2.0  # compare, advance
# Most that a cuckoo table holds: (bucket, hashes) -> load. One slot a bucket: Dietzfelbinger et
# al. 2010, arXiv:0912.0287; more slots, two hashes: Fernholz and Ramachandran 2007, SODA.
THRESHOLDS = {
    (1, 2): 0.5, (1, 3): 0.917, (1, 4): 0.976, (2, 2): 0.897, (3, 2): 0.959, (4, 2): 0.980,
}  # fmt: skip


def _f(value: Amount) -> F64:
    return np.asarray(value, np.float64)


@lru_cache(maxsize=64)
def _cuckoo(bucket: int, hashes: int) -> tuple[F64, F64, F64, F64]:
    """Mean-field growth of a cuckoo table whose full buckets evict a random key to its next hash.

    Returns, on a grid: load, placements a key so far, share of full buckets, mean place of a key
    in the order of its hashes (the buckets that a successful search reads).

    Placements fall on random buckets, so with L placements a bucket has seen Poisson(L) of them and
    keeps at most `bucket`: load = E min(Poisson(L), bucket) / bucket, and a bucket is full with
    P(Poisson(L) >= bucket). A placement into a full bucket moves a key from hash j to j + 1.
    Independence is an approximation: right to a few per cent for buckets of 8 and more; close to
    the threshold of small buckets, insertions really take up to a fifth more.
    """
    seen = np.linspace(0.0, 3.0 * bucket + 20.0, 1201)
    term, below, missing = np.exp(-seen), np.zeros_like(seen), np.zeros_like(seen)
    for k in range(bucket):
        below, missing = below + term, missing + (bucket - k) * term
        term = term * seen / (k + 1)
    load, full = 1.0 - missing / bucket, 1.0 - below
    keys, place = [0.0] * hashes, [1.0]
    step, new = float(seen[1]), np.diff(load) * bucket
    for i in range(len(seen) - 1):
        total = max(sum(keys), 1e-300)
        evicted = 0.5 * float(full[i] + full[i + 1]) * step / total
        keys = [keys[j] + evicted * (keys[j - 1] - keys[j]) for j in range(hashes)]
        keys[0] += float(new[i])
        place.append(sum((j + 1) * held for j, held in enumerate(keys)) / sum(keys))
    tries = np.ones_like(seen)
    tries[1:] = seen[1:] / (load[1:] * bucket)
    return load, tries, full, np.array(place)


@dataclass(frozen=True)
class HashProbe(Op):
    """Searches in a hash table of `keys` keys at a load, or insertions that fill it to that load.

    scheme: linear (slots one after another; expected probes 1/2 (1 + 1/(1 - load)) where the key
    is there, 1/2 (1 + 1/(1 - load)^2) where not: Knuth 1998, The Art of Computer Programming 3,
    section 6.4, for large tables), cuckoo (`hashes` buckets of `bucket` slots a key, a group of
    lanes reads a bucket at once; a search ends at the key or at a bucket that is not full: Awad et
    al. 2021, arXiv:2108.07232, who count 1.43 probes an insertion, 1.39 a hit and 2.8 a miss at
    load 0.99 with buckets of 16 and three hashes; the expectation here comes from a mean-field
    model of evictions). mode: find, insert (all `queries`, into a table that ends at `load`).
    Slots whose size divides a line can be cheaper than smaller ones that do not.

    >>> HashProbe(queries=1, keys=1000, load=0.5, hit=0.0).probes  # (1 + 1 / 0.25) / 2
    2.5
    """

    name: ClassVar[str] = "hash_probe"
    what: ClassVar[str] = "searches and insertions in a hash table: linear probing, cuckoo buckets"
    not_monotone: ClassVar[tuple[str, ...]] = ("bucket",)  # larger buckets evict less
    example: ClassVar[str] = "queries=10000000 keys=100000000 load=0.8 scheme=cuckoo"

    queries: int = size("keys searched or inserted", high=2**53)
    keys: int = size("keys that the table holds (after insertion)", high=2**53)
    load: float = share("share of the slots in use", 0.8)
    key_bytes: int = size("bytes of a key", 4)
    value_bytes: int = size("bytes of a value; 0: a set", 4, low=0)
    scheme: str = choice("how collisions are resolved", ("linear", "cuckoo"), "linear")
    bucket: int = size("slots of a bucket (cuckoo)", 16, high=64)
    hashes: int = size("buckets that a key may be in (cuckoo)", 3, low=2, high=8)
    hit: float = number("share of the searches that find their key", 1.0, high=1.0)
    mode: str = choice("what is done", ("find", "insert"), "find")
    locality: float = locality_share()
    line: int = line_size()

    def rules(self) -> Iterator[Rule]:
        """Allow loads that the scheme can reach."""
        if self.scheme == "linear":
            yield Rule("load", np.greater_equal(self.load, 1.0), "below 1 with linear probing")
        else:
            most = np.full(np.broadcast(self.bucket, self.hashes).shape, 0.999)
            for (bucket, hashes), limit in THRESHOLDS.items():
                here = np.equal(self.bucket, bucket) & np.equal(self.hashes, hashes)
                most = np.where(here, limit, most)
            yield Rule("load", np.greater(self.load, most),
                       "at most what cuckoo insertion reaches: 0.999, 0.5 for bucket=1 hashes=2, "
                       "0.917 for bucket=1 hashes=3")  # fmt: skip
        if self.mode == "insert":
            yield Rule("queries", np.greater(self.queries, self.keys), "at most keys to insert")
        yield line_rule(self.line)

    @property
    def slots(self) -> Amount:
        """Slots of the table."""
        slots = np.ceil(_f(self.keys) / self.load)
        if self.scheme == "cuckoo":
            slots = np.ceil(slots / self.bucket) * self.bucket
        return plain(slots)

    @property
    def probes(self) -> Amount:
        """Expected slots (linear) or buckets (cuckoo) that a query reads."""
        return self._linear_probes if self.scheme == "linear" else self._cuckoo_probes

    @property
    def _linear_probes(self) -> Amount:
        gap = np.maximum(1.0 - _f(self.load), 1.0 / _f(self.slots))
        found = 0.5 * (1.0 + 1.0 / gap)
        if self.mode == "insert":  # filling up to a load costs what finding those keys costs
            return plain(np.minimum(found, self.slots))
        missed = 0.5 * (1.0 + 1.0 / np.square(gap))
        mean = _f(self.hit) * found + (1.0 - _f(self.hit)) * missed
        return plain(np.minimum(mean, self.slots))

    @property
    def _cuckoo_probes(self) -> Amount:
        bucket, hashes, load, hit = np.broadcast_arrays(
            *(_f(x) for x in (self.bucket, self.hashes, self.load, self.hit))
        )
        probes = np.empty(load.shape)
        for b, h in {(int(b), int(h)) for b, h in zip(bucket.flat, hashes.flat, strict=True)}:
            here = (bucket == b) & (hashes == h)
            grid, tries, full, place = _cuckoo(b, h)
            at = load[here]
            if self.mode == "insert":
                probes[here] = np.interp(at, grid, tries)
                continue
            filled = np.interp(at, grid, full)
            missed = sum((filled**j for j in range(1, h)), start=np.ones_like(filled))
            found = np.interp(at, grid, place)
            probes[here] = hit[here] * found + (1.0 - hit[here]) * missed
        return plain(probes)

    def work(self) -> Work:
        """Hashes, comparisons, and the lines that probes touch."""
        queries, probes = _f(self.queries), _f(self.probes)
        slot = _f(self.key_bytes) + self.value_bytes
        if self.scheme == "linear":
            table = scattered(queries, self.slots, slot, self.line, probes)
            hashed, compared, steps = queries, queries * probes, table.touched / self.line / queries
        else:
            rows = _f(self.slots) / self.bucket
            table = scattered(queries * probes, rows, slot * self.bucket, self.line)
            hashed, compared, steps = queries * probes, queries * probes * self.bucket, probes
        integer = INTEGER_PER_HASH * hashed + INTEGER_PER_COMPARE * compared
        read = queries * self.key_bytes + table.moved(self.locality)
        written = queries * self.value_bytes
        own = queries * slot
        if self.mode == "insert":
            placed = queries * (probes if self.scheme == "cuckoo" else 1.0)
            stored = scattered(placed, self.slots, slot, self.line)
            read, written = own + table.moved(self.locality), stored.moved(self.locality)
        footprint = np.minimum(own + table.unique, read + written)
        return Work({"integer": plain(integer)}, plain(read), plain(written),
                    footprint=plain(footprint), resident=plain(own + _f(self.slots) * slot),
                    steps=plain(steps))  # fmt: skip


@dataclass(frozen=True)
class HashEncoding(Op):
    """Multi-resolution hash encoding of points, then a small network (Instant-NGP).

    Level l has a grid of floor(min (max / min)^(l / (levels - 1))) cells a side; its
    (cells + 1)^dims corners are stored one by one where they fit in `table` entries, else hashed
    into it. A point interpolates 2^dims corners of `features` elements a level (Mueller et al.
    2022, arXiv:2201.05989, section 3, equations 2 to 4). Corners that are neighbours along x lie in
    one line as often hashed as not, since the first factor of the hash is 1.

    The network has `hidden_layers` layers of `hidden` neurons and `outputs` outputs (0: the
    encoding alone); sizes are rounded up to `pad`, as matrix units need it.

    variant: fused (one kernel), fused_mlp (the encoding goes through memory once, the network keeps
    its activations on chip: Mueller et al. 2021, arXiv:2106.12372), layers (each layer
    goes through memory). `backward` is the backward pass alone: two products a layer, activations
    read that the forward pass kept, and atomic adds to the corners.

    >>> HashEncoding(points=1).parameters  # 331757 corners of 5 dense levels, 11 tables of 2^19
    12197850.0
    """

    name: ClassVar[str] = "hash_encoding"
    what: ClassVar[str] = "multi-resolution hash encoding with a small network (Instant-NGP)"
    example: ClassVar[str] = "points=1048576 levels=16 features=2 table=524288"

    points: int = size("points that are encoded")
    dims: int = size("dimensions of a point", 3, low=2, high=4)
    levels: int = size("resolutions", 16, high=64)
    features: int = size("elements of an entry", 2)
    table: int = size("most entries of a level", 2**19)
    min_resolution: int = size("cells a side of the coarsest level", 16)
    max_resolution: int = size("cells a side of the finest level", 2048)
    extra: int = size("inputs of the network beside the encoding", 0, low=0)
    hidden: int = size("neurons of a hidden layer", 64)
    hidden_layers: int = size("hidden layers", 2)
    outputs: int = size("outputs of the network; 0: the encoding alone", 16, low=0)
    pad: int = size("sizes of the network are rounded up to multiples of this", 16)
    dtype: str = fmt("format of entries, weights and activations", "fp16")
    variant: str = choice("what stays on chip", ("fused", "fused_mlp", "layers"), "fused_mlp")
    backward: bool = flag("the backward pass")
    locality: float = locality_share()
    line: int = line_size()

    def rules(self) -> Iterator[Rule]:
        """Resolutions grow; lines as machines have them."""
        yield Rule("max_resolution", np.less(self.max_resolution, self.min_resolution),
                   "at least min_resolution")  # fmt: skip
        yield line_rule(self.line)

    def _entries(self) -> list[F64]:
        """Entries of each level; 0 beyond the last."""
        low, high, levels = _f(self.min_resolution), _f(self.max_resolution), _f(self.levels)
        found: list[F64] = []
        for level in range(int(np.max(levels))):
            part = np.minimum(level, levels - 1.0) / np.maximum(levels - 1.0, 1.0)
            cells = np.floor(low * (high / low) ** part * (1.0 + 1e-12))
            stored = np.minimum((cells + 1.0) ** _f(self.dims), self.table)
            found.append(np.where(level < levels, stored, 0.0))
        return found

    @property
    def parameters(self) -> Amount:
        """Elements of all tables."""
        return plain(sum(self._entries(), start=np.zeros(())) * self.features)

    @property
    def weights(self) -> Amount:
        """Weights of the network, padded; also its multiply-adds a point."""
        inputs, hidden, outputs = self._padded
        inner = hidden * inputs + (_f(self.hidden_layers) - 1.0) * np.square(hidden)
        return plain(np.where(outputs > 0, inner + hidden * outputs, 0.0))

    @property
    def _padded(self) -> tuple[F64, F64, F64]:
        """Inputs, neurons and outputs, rounded up."""
        pad = _f(self.pad)
        inputs = _f(self.levels) * self.features + self.extra
        sizes = (inputs, _f(self.hidden), _f(self.outputs))
        first, second, third = (np.ceil(n / pad) * pad for n in sizes)
        return first, second, third

    def _lookups(self) -> Scattered:
        """Lines of all corners: pairs along x, of each point and level."""
        element = dtype(self.dtype).bytes_of(1.0)
        pairs = _f(self.points) * 2.0 ** (_f(self.dims) - 1.0)
        touched, unique, table = np.zeros(()), np.zeros(()), np.zeros(())
        for stored in self._entries():
            there = stored > 0
            wide = _f(self.features) * element
            level = scattered(np.where(there, pairs, 0.0), np.maximum(stored, 1.0), wide,
                              self.line, 2.0)  # fmt: skip
            touched, unique = touched + level.touched, unique + level.unique
            table = table + np.where(there, level.table, 0.0)
        return Scattered(plain(touched), plain(unique), plain(table))

    def work(self) -> Work:
        """Operations and bytes of the variant."""
        points, element = _f(self.points), dtype(self.dtype).bytes_of(1.0)
        has_net = np.greater(self.outputs, 0)
        times = 2.0 if self.backward else 1.0
        flops: dict[str, Amount] = {self.dtype: plain(2.0 * points * self.weights * times)}
        dims, corners = _f(self.dims), 2.0 ** _f(self.dims)
        each = points * self.levels
        flops["vector"] = plain(
            each * (4.0 * dims + corners * (dims - 1.0) + 2.0 * corners * self.features)
        )
        flops["integer"] = plain(each * corners * 2.0 * dims)
        look = self._lookups()
        weights = _f(self.weights) * element
        inputs = points * (4.0 * dims + element * np.where(has_net, self.extra, 0))
        encoded = points * element * self.levels * self.features
        outputs = np.where(has_net, points * element * self.outputs, encoded)
        inner = np.where(has_net, points * element * self.hidden * self.hidden_layers, 0.0)
        between = self._between(np.where(has_net, encoded, 0.0), inner)
        table = look.moved(self.locality)
        read = inputs + table + weights + between
        written = outputs + between
        if self.backward:  # kept activations and output gradients in; gradients added to the tables
            read = inputs + outputs + np.where(has_net, encoded, 0.0) + inner + weights + between
            read, written = read + table, weights + table + between
        distinct = inputs + look.unique + weights + outputs + between
        held = inputs + element * _f(self.parameters) + weights + outputs + between
        kept = inner + np.where(has_net, encoded, 0.0) + held if self.backward else held
        net_launches = {"fused": 0.0, "fused_mlp": 1.0 * has_net,
                        "layers": has_net * (_f(self.hidden_layers) + 1.0)}  # fmt: skip
        launches = 1.0 + net_launches[self.variant] * times
        return Work(flops, plain(read), plain(written),
                    footprint=plain(np.minimum(distinct, read + written)), resident=plain(kept),
                    launches=plain(launches), steps=2.0)  # fmt: skip

    def _between(self, encoded: Amount, inner: Amount) -> Amount:
        """Bytes that one part writes for the next to read."""
        if self.variant == "fused":
            return 0.0 * encoded
        return encoded if self.variant == "fused_mlp" else encoded + inner
