"""Graphs: a sparse matrix times dense features, a sparse one times a sparse one, sampled gathers.

Owns operation and byte counts from shapes and non-zeros. Columns of non-zeros and neighbours are
taken as independent and uniform (see `reuse`); imbalance between rows is no count and belongs to
the predictor. Knows no device, no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import dtype
from .base import F64, Amount, Op, Rule, Work, choice, flag, fmt, number, plain, size
from .reuse import Scattered, distinct, line_rule, line_size, locality_share, scattered

__all__ = ["NeighbourGather", "SpGemm", "SpMM"]

RADIX_BITS = 8  # of a pass of an LSD radix sort
INTEGER_PER_INSERT = 4.0  # hash, compare, advance, count: per product and phase of a hash table
INTEGER_PER_SORTED = 4.0  # digit, rank (two), address: per element and pass
INTEGER_PER_DRAW = 12.0  # a counter-based random number and its scaling to a degree


def _f(value: Amount) -> F64:
    return np.asarray(value, np.float64)


@dataclass(frozen=True)
class SpMM(Op):
    """Y = A X: sparse A [rows, cols] of `nnz` stored values times dense X [cols, features].

    variant: csr (one pass over rows that are stored as pointers, indices and values; sums stay in
    registers: Huang et al. 2020, GE-SpMM, arXiv:2007.03179), gather_scatter (as message passing
    libraries do it: the messages [nnz, features] are gathered to memory, then added to Y by atomic
    adds, indices as pairs: Fey and Lenssen 2019, arXiv:1903.02428). Without `weighted`, A holds
    ones: no values are stored, and no multiplies are done.

    Rows of X are fetched in lines; `locality` is the share of repeated fetches that cache serves:
    0, X is fetched for each non-zero; 1, once.

    >>> SpMM(rows=2, cols=3, nnz=4, features=8, dtype="fp32").flops  # 2 * 4 * 8
    64.0
    """

    name: ClassVar[str] = "spmm"
    what: ClassVar[str] = "sparse matrix times dense features: graph convolution, pruned layers"
    example: ClassVar[str] = "rows=169343 cols=169343 nnz=2332486 features=128"

    rows: int = size("rows of the sparse matrix, and of the result")
    cols: int = size("columns of the sparse matrix; rows of the features")
    nnz: int = size("stored values of the sparse matrix", high=2**53)
    features: int = size("columns of the dense matrix; 1: SpMV")
    dtype: str = fmt("format of values, features and result", "fp32")
    index_bytes: int = size("bytes of an index", 4, high=8)
    weighted: bool = flag("the sparse matrix has values, not ones", True)
    variant: str = choice("how it is computed", ("csr", "gather_scatter"), "csr")
    locality: float = locality_share()
    line: int = line_size()

    def rules(self) -> Iterator[Rule]:
        """No more values than places; lines as machines have them."""
        yield Rule("nnz", np.greater(self.nnz, _f(self.rows) * self.cols), "at most rows * cols")
        yield line_rule(self.line)

    def work(self) -> Work:
        """Operations and bytes of the variant."""
        nnz, element = _f(self.nnz), dtype(self.dtype).bytes_of(1.0)
        row = _f(self.features) * element
        x = scattered(nnz, self.cols, row, self.line)
        weights = nnz * element if self.weighted else 0.0 * nnz
        per = 2.0 if self.weighted else 1.0
        flops: dict[str, Amount] = {"vector": plain(per * nnz * self.features)}
        out = _f(self.rows) * row
        x_all = _f(self.cols) * row
        if self.variant == "csr":
            matrix = (_f(self.rows) + 1.0 + nnz) * self.index_bytes + weights
            return Work(flops, plain(matrix + x.moved(self.locality)), plain(out),
                        footprint=plain(matrix + x.unique + out),
                        resident=plain(matrix + x_all + out), steps=3.0)  # fmt: skip
        matrix = 2.0 * nnz * self.index_bytes + weights
        messages = nnz * row
        y = scattered(nnz, self.rows, row, self.line)  # atomic adds: each reads and writes
        flops["integer"] = plain(2.0 * nnz)
        read = matrix + x.moved(self.locality) + messages + y.moved(self.locality)
        written = messages + out + y.moved(self.locality)  # zeros, then sums
        return Work(flops, plain(read), plain(written),
                    footprint=plain(np.minimum(matrix + x.unique + messages + out, read + written)),
                    resident=plain(matrix + x_all + messages + out),
                    launches=3.0, steps=4.0)  # fmt: skip


@dataclass(frozen=True)
class SpGemm(Op):
    """C = A B of sparse A [m, k] and B [k, n], row by row (Gustavson 1978, ACM TOMS 4(3)).

    Each value of A meets its row of B: nnz_a nnz_b / k products are expected of uniform places, and
    m n (1 - (1 - d_a d_b)^k) stored results, d being densities. Give `products` and `out_nnz` where
    they are known: skewed matrices have many more products.

    variant: hash (a symbolic pass counts the results of each row in a hash table on chip, a numeric
    pass adds them up: Nagasaka et al. 2017, ICPP, doi:10.1109/ICPP.2017.19), esc (all products
    are written, sorted by row and column, and those of one place added: Bell, Dalton, Olson 2012,
    SIAM J. Sci. Comput. 34(4), C123; sorted by 8 bits a pass).

    >>> op = SpGemm(m=4, n=4, k=4, nnz_a=8, nnz_b=8, dtype="fp32")
    >>> op.expected_products, op.work().flops["vector"]  # 8 * 8 / 4 multiply-adds
    (16.0, 32.0)
    """

    name: ClassVar[str] = "spgemm"
    what: ClassVar[str] = "sparse matrix times sparse matrix, row by row"
    example: ClassVar[str] = "m=100000 n=100000 k=100000 nnz_a=1000000 nnz_b=1000000"
    not_monotone: ClassVar[tuple[str, ...]] = ("k",)  # the same values spread over more rows of B

    m: int = size("rows of A and C")
    n: int = size("columns of B and C")
    k: int = size("columns of A, rows of B")
    nnz_a: int = size("stored values of A", high=2**53)
    nnz_b: int = size("stored values of B", high=2**53)
    dtype: str = fmt("format of the values", "fp32")
    index_bytes: int = size("bytes of an index", 4, high=8)
    products: float = number("multiply-adds; 0: as expected of uniform places", 0.0)
    out_nnz: float = number("stored values of C; 0: as expected of uniform places", 0.0)
    variant: str = choice("how it is computed", ("hash", "esc"), "hash")
    locality: float = locality_share()
    line: int = line_size()

    def rules(self) -> Iterator[Rule]:
        """No more values than places, no more results than products."""
        m, n, k = _f(self.m), _f(self.n), _f(self.k)
        yield Rule("nnz_a", np.greater(self.nnz_a, m * k), "at most m * k")
        yield Rule("nnz_b", np.greater(self.nnz_b, k * n), "at most k * n")
        yield Rule("products", np.greater(self.products, m * n * k), "at most m * n * k")
        yield Rule("out_nnz", np.greater(self.out_nnz, np.minimum(m * n, self.expected_products)),
                   "at most m * n, and at most the products")  # fmt: skip
        yield line_rule(self.line)

    @property
    def expected_products(self) -> Amount:
        """Multiply-adds: as given, else nnz_a nnz_b / k."""
        uniform = _f(self.nnz_a) * self.nnz_b / self.k
        return plain(np.where(np.equal(self.products, 0), uniform, self.products))

    @property
    def expected_out_nnz(self) -> Amount:
        """Stored values of C: as given, else those of uniform places, at most the products."""
        m, n, k = _f(self.m), _f(self.n), _f(self.k)
        both = _f(self.nnz_a) / (m * k) * (_f(self.nnz_b) / (k * n))
        with np.errstate(all="ignore"):
            uniform = -m * n * np.expm1(k * np.log1p(-np.minimum(both, 1.0)))
        uniform = np.minimum(uniform, self.expected_products)
        return plain(np.where(np.equal(self.out_nnz, 0), uniform, self.out_nnz))

    def work(self) -> Work:
        """Operations and bytes of the variant."""
        products, stored = _f(self.expected_products), _f(self.expected_out_nnz)
        index, element = _f(self.index_bytes), dtype(self.dtype).bytes_of(1.0)
        a = _f(self.nnz_a) * (index + element) + (_f(self.m) + 1.0) * index
        b = _f(self.nnz_b) * (index + element) + (_f(self.k) + 1.0) * index
        c = stored * (index + element) + (_f(self.m) + 1.0) * index
        flops: dict[str, Amount] = {"vector": plain(2.0 * products)}
        numeric = self._rows_of_b(index + element)
        if self.variant == "hash":
            symbolic = self._rows_of_b(index)
            flops["integer"] = plain(2.0 * INTEGER_PER_INSERT * products)
            indices = _f(self.nnz_a) * index + (_f(self.m) + 1.0) * index
            read = indices + symbolic.moved(self.locality) + a + numeric.moved(self.locality)
            return Work(flops, plain(read), plain(c),
                        footprint=plain(np.minimum(a + numeric.unique + c, read + c)),
                        resident=plain(a + b + c), launches=3.0, steps=8.0)  # fmt: skip
        passes = self._sort_passes
        triple = products * (2.0 * index + element)
        flops["integer"] = plain(INTEGER_PER_SORTED * products * (passes + 1.0))
        read = a + numeric.moved(self.locality) + triple * (passes + 1.0) + products * 2.0 * index
        written = triple * (1.0 + passes) + c
        return Work(flops, plain(read), plain(written),
                    footprint=plain(a + numeric.unique + 2.0 * triple + c),
                    resident=plain(a + b + c + 2.0 * triple),
                    launches=plain(4.0 + passes), steps=plain(4.0 + passes))  # fmt: skip

    @property
    def _sort_passes(self) -> Amount:
        """Passes of the radix sort over the bits of a row and a column."""
        bits = np.ceil(np.log2(_f(self.m))) + np.ceil(np.log2(_f(self.n)))
        return np.maximum(np.ceil(bits / RADIX_BITS), 1.0)

    def _rows_of_b(self, entry: Amount) -> Scattered:
        """Rows of B of this many bytes an entry: one a value of A, with its two pointers."""
        length = np.maximum(_f(self.expected_products) / self.nnz_a, 1e-300)
        whole = np.maximum(length * entry, 1.0)
        rows = scattered(self.nnz_a, self.k, whole, self.line)
        ends = scattered(self.nnz_a, self.k, self.index_bytes, self.line, 2.0)
        return Scattered(rows.touched + ends.touched, rows.unique + ends.unique,
                         rows.table + ends.table)  # fmt: skip


@dataclass(frozen=True)
class NeighbourGather(Op):
    """Mini-batch of a graph network: neighbours sampled hop by hop, then their features fetched.

    Each node that a hop found asks for `fan_out_*` of its neighbours in the next (Hamilton, Ying,
    Leskovec 2017, GraphSAGE, arXiv:1706.02216), drawn without replacement, at most `degree`;
    features of each node are fetched once. Once most of the graph is reached, more seeds leave
    fewer nodes to later hops, and can cost less.

    source: device (graph and features in device memory), host (features in host memory but the
    share `cached`; the graph is in device memory). access: zero_copy (the kernel loads lines of
    `line` bytes over the link: Min et al. 2020, EMOGI, arXiv:2006.06890; Min et al. 2021,
    arXiv:2103.03330), copy (the host gathers rows into a pinned buffer, its own reads and writes
    not counted, which is sent whole).

    >>> op = NeighbourGather(seeds=10, fan_out_1=2, nodes=2000000000, degree=9, features=16)
    >>> round(op.gathered_nodes, 3)  # 10 seeds, 20 neighbours, next to no repeats
    30.0
    """

    name: ClassVar[str] = "neighbour_gather"
    what: ClassVar[str] = "sampled neighbourhoods of a graph and their features"
    example: ClassVar[str] = (
        "seeds=1024 fan_out_1=15 fan_out_2=10 nodes=2449029 degree=50 features=100"
    )

    seeds: int = size("nodes that the batch starts from")
    nodes: int = size("nodes of the graph")
    degree: float = number("mean neighbours of a node")
    features: int = size("elements of a node's features")
    fan_out_1: int = size("neighbours drawn for each seed")
    fan_out_2: int = size("neighbours drawn in the second hop; 0: one hop", 0, low=0)
    fan_out_3: int = size("neighbours drawn in the third hop; 0: two hops", 0, low=0)
    dtype: str = fmt("format of the features", "fp32")
    index_bytes: int = size("bytes of an index", 8, high=8)
    source: str = choice("where the features are", ("device", "host"), "device")
    access: str = choice("how they come from the host", ("zero_copy", "copy"), "zero_copy")
    cached: float = number("share of the fetched rows held on the device", 0.0, high=1.0)
    line: int = line_size()

    def rules(self) -> Iterator[Rule]:
        """Seeds are nodes; lines as machines have them."""
        yield Rule("seeds", np.greater(self.seeds, self.nodes), "at most nodes")
        yield line_rule(self.line)

    def _hops(self) -> tuple[Amount, Amount, Amount]:
        """Nodes reached, nodes that asked, draws: expected, of uniform neighbours."""
        nodes, found = _f(self.nodes), _f(self.seeds)
        front, asked, draws = found, 0.0 * found, 0.0 * found
        for fan_out in (self.fan_out_1, self.fan_out_2, self.fan_out_3):
            drawn = front * np.minimum(_f(fan_out), self.degree)
            asked = asked + np.where(np.greater(fan_out, 0), front, 0.0)
            draws = draws + drawn
            front = np.maximum(1.0 - found / nodes, 0.0) * distinct(drawn, nodes)
            found = found + front
        return found, asked, draws

    @property
    def gathered_nodes(self) -> Amount:
        """Distinct nodes whose features are fetched, seeds included; expected."""
        return plain(self._hops()[0])

    def work(self) -> Work:
        """Count sampling in device memory, and features from where they are."""
        found, asked, draws = self._hops()
        hops = 1.0 + np.greater(self.fan_out_2, 0) + np.greater(self.fan_out_3, 0)
        ends = scattered(asked, self.nodes, self.index_bytes, self.line, 2.0)
        edges = np.maximum(_f(self.nodes) * self.degree, 1.0)
        drawn = scattered(draws, edges, self.index_bytes, self.line)
        marks = draws * self.index_bytes  # drawn neighbours, written, and read to number them
        row = dtype(self.dtype).bytes_of(1.0) * _f(self.features)
        rows, lines = found * row, scattered(found, self.nodes, row, self.line).touched
        sent, near = self._sent(rows, lines)
        read = ends.touched + drawn.touched + 2.0 * marks + near
        written = 2.0 * marks + rows  # drawn and renumbered; the gathered rows
        graph = ends.table + drawn.table
        table = _f(self.nodes) * row
        held = table if self.source == "device" else table * self.cached
        flops: dict[str, Amount] = {
            "integer": plain(draws * (INTEGER_PER_DRAW + 2.0 * INTEGER_PER_INSERT))
        }
        host = {"host": plain(sent)} if self.source == "host" else {}
        return Work(flops, plain(read), plain(written),
                    resident=plain(graph + held + rows + 2.0 * marks),
                    launches=plain(2.0 * hops + 1.0), steps=plain(3.0 * hops + 1.0),
                    links=host, hops={"host": 1.0} if host else {})  # fmt: skip

    def _sent(self, rows: Amount, lines: Amount) -> tuple[Amount, Amount]:
        """Bytes of features over the host link, and read from device memory."""
        if self.source == "device":
            return 0.0 * rows, lines
        missing = 1.0 - _f(self.cached)
        if self.access == "zero_copy":
            return lines * missing, lines * self.cached
        return rows * missing, lines * self.cached + rows * missing
