"""Convolution in one to three dimensions, and over long sequences; the algorithms it is done by.

Owns operations, bytes and workspaces of its variants from shapes and formats. Knows no device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..dtypes import dtype
from .base import F64, Amount, Op, Rule, Work, choice, flag, fmt, plain, size

__all__ = ["Convolution", "LongConvolution"]

VARIANTS = ("implicit_gemm", "direct", "im2col", "im2win", "winograd_2x2", "winograd_4x4", "fft")
LANES = ("fp32", "fp64")  # formats that the lanes compute in themselves
COMPLEX = 8.0  # bytes of a complex number in fp32
# variant -> outputs a side of a tile, operations of a tile's transform of data, filter, inverse
WINOGRAD = {"winograd_2x2": (2, 32.0, 28.0, 24.0), "winograd_4x4": (4, 156.0, 72.0, 100.0)}


def _f(value: Any) -> F64:
    return np.asarray(value, np.float64)


def _power_of_two(value: F64) -> F64:
    """Return the least power of two that is not below."""
    return np.exp2(np.ceil(np.log2(value)))


@dataclass(frozen=True)
class Convolution(Op):
    """Convolution of a batch of images [in_channels, (depth,) height, width] with filters.

    `depth` 0 is two-dimensional; one dimension: height and kernel_h 1, padding_h 0. `groups` parts
    of the channels are convolved apart (groups = in_channels: depthwise). Taps that fall on padding
    count as operations, as torch's FlopCounter and matrix kernels count them. Kernels read the
    positions of the input that some tap needs: on each axis at most kernel x outputs.

    variant: implicit_gemm (the matrix is formed on chip: Chetlur et al. 2014, arXiv:1410.0759),
    direct (multiply-adds on the lanes, nothing stored between: what depthwise kernels do), im2col
    (matrix of all windows through memory, then GEMM: Chellapilla et al. 2006; 1 x 1 with stride 1
    needs none), im2win (rows of windows, each input element once a row of windows instead of once a
    window: Lu, Chu, Liu 2022, arXiv:2306.14320; on GPUs Lu et al. 2023, arXiv:2306.14316),
    winograd_2x2 and winograd_4x4 (F(2x2,3x3): 2.25 x and F(4x4,3x3): 4 x fewer multiplies;
    transformed tensors go through memory, unless `fused`: Lavin, Gray 2015, arXiv:1509.09308,
    section 4), fft (padded to powers of two, products of spectra in complex fp32: Mathieu et al.
    2013, arXiv:1312.5851; strides are computed densely). `filters_ready`: transformed filters are
    kept from call to call (winograd, fft). `backward` is the backward pass alone: gradients of
    input and filters. `pad_channels`: a group's channels are padded to a multiple on the matrix
    unit (8 on tensor cores in 16-bit formats).

    >>> Convolution(in_channels=64, out_channels=64, height=56, width=56, padding=1).flops
    231211008.0
    """

    name: ClassVar[str] = "convolution"
    what: ClassVar[str] = "convolution: 1-D to 3-D, grouped, depthwise; GEMM, Winograd, FFT, im2win"
    example: ClassVar[str] = "batch=32 in_channels=64 out_channels=64 height=56 width=56 padding=1"
    not_monotone: ClassVar[tuple[str, ...]] = (
        "stride",
        "stride_h",
        "stride_w",
        "stride_d",
        "dilation",
        "groups",
        "kernel_size",
        "kernel_h",
        "kernel_w",
        "kernel_d",
    )

    in_channels: int = size("channels of the input")
    out_channels: int = size("channels of the output")
    height: int = size("input positions of the second axis (1 in one dimension)")
    width: int = size("input positions of the last axis")
    batch: int = size("images", 1)
    depth: int = size("input positions of the first axis; 0: two-dimensional", 0, low=0)
    kernel_size: int = size("taps an axis", 3)
    kernel_d: int = size("taps of the first axis", like="kernel_size")
    kernel_h: int = size("taps of the second axis", like="kernel_size")
    kernel_w: int = size("taps of the last axis", like="kernel_size")
    stride: int = size("step an axis", 1)
    stride_d: int = size("step of the first axis", like="stride")
    stride_h: int = size("step of the second axis", like="stride")
    stride_w: int = size("step of the last axis", like="stride")
    padding: int = size("zeros added at each end of an axis", 0, low=0)
    padding_d: int = size("zeros at each end of the first axis", low=0, like="padding")
    padding_h: int = size("zeros at each end of the second axis", low=0, like="padding")
    padding_w: int = size("zeros at each end of the last axis", low=0, like="padding")
    dilation: int = size("distance of taps", 1)
    groups: int = size("parts of the channels that are convolved apart", 1)
    dtype: str = fmt("format that is computed in")
    variant: str = choice("algorithm", VARIANTS, "implicit_gemm")
    fused: bool = flag("Winograd's transforms stay on chip")
    filters_ready: bool = flag("transformed filters are kept from call to call")
    pad_channels: int = size("a group's channels are padded to a multiple on the matrix unit", 1)
    backward: bool = flag("the backward pass: gradients of input and filters")

    def rules(self) -> Iterator[Rule]:
        """Check groups, that a window fits into the padded input, and Winograd's shapes."""
        yield Rule("in_channels", np.mod(self.in_channels, self.groups) != 0,
                   "a multiple of groups")  # fmt: skip
        yield Rule("out_channels", np.mod(self.out_channels, self.groups) != 0,
                   "a multiple of groups")  # fmt: skip
        for axis, (_, positions, taps, _, pad) in zip("dhw", self._axes, strict=True):
            reach = self.dilation * (taps - 1.0) + 1.0
            yield Rule(f"kernel_{axis}", reach > positions + 2.0 * pad,
                       "dilation x (kernel - 1) + 1 within the padded input")  # fmt: skip
        if self.variant in WINOGRAD:
            for axis in "hw":
                yield Rule(f"kernel_{axis}", np.not_equal(getattr(self, f"kernel_{axis}"), 3),
                           f"3 for {self.variant}")  # fmt: skip
                yield Rule(f"stride_{axis}", np.not_equal(getattr(self, f"stride_{axis}"), 1),
                           f"1 for {self.variant}")  # fmt: skip
            yield Rule("dilation", np.not_equal(self.dilation, 1), f"1 for {self.variant}")
            yield Rule("depth", np.not_equal(self.depth, 0), f"0 for {self.variant}")
        if self.variant not in ("implicit_gemm", "direct", "im2col"):
            yield Rule("backward", self.backward,
                       "false but for implicit_gemm, direct and im2col")  # fmt: skip

    @property
    def _axes(self) -> list[tuple[F64, F64, F64, F64, F64]]:
        """Of each axis: outputs, positions, taps, step, padding; ones where there is no depth."""
        flat, found = np.equal(self.depth, 0), list[tuple[F64, F64, F64, F64, F64]]()
        for axis, positions in (("d", self.depth), ("h", self.height), ("w", self.width)):
            i = _f(positions)
            k, s, p = (_f(getattr(self, f"{n}_{axis}")) for n in ("kernel", "stride", "padding"))
            if axis == "d":
                i, k, s = (np.where(flat, 1.0, x) for x in (i, k, s))
                p = np.where(flat, 0.0, p)
            outputs = np.floor((i + 2.0 * p - self.dilation * (k - 1.0) - 1.0) / s) + 1.0
            found.append((outputs, i, k, s, p))
        return found

    @property
    def outputs(self) -> Amount:
        """Output positions of an image."""
        return plain(np.prod([axis[0] for axis in self._axes], axis=0))

    @property
    def taps(self) -> Amount:
        """Taps of a filter, of one channel."""
        return plain(np.prod([axis[2] for axis in self._axes], axis=0))

    @property
    def macs(self) -> Amount:
        """Multiply-adds of the definition, taps on padding included."""
        inputs = np.divide(self.in_channels, self.groups)
        return plain(_f(self.batch) * self.outputs * self.out_channels * inputs * self.taps)

    @property
    def input_elements(self) -> Amount:
        """Elements of the input."""
        positions = np.prod([axis[1] for axis in self._axes], axis=0)
        return plain(_f(self.batch) * self.in_channels * positions)

    @property
    def filter_elements(self) -> Amount:
        """Elements of all filters."""
        return plain(_f(self.out_channels) * self.in_channels / self.groups * self.taps)

    @property
    def output_elements(self) -> Amount:
        """Elements of the output."""
        return plain(_f(self.batch) * self.out_channels * self.outputs)

    @property
    def workspace_bytes(self) -> Amount:
        """Bytes of what the variant stores between its kernels."""
        return plain(sum((b for b, _ in self._stored), start=_f(0.0)))

    def work(self) -> Work:
        """Operations and bytes of the variant."""
        if self.variant in WINOGRAD:
            flops = self._winograd_flops()
        elif self.variant == "fft":
            flops = self._fft_flops()
        else:
            unit = "vector" if self.variant == "direct" and self.dtype not in LANES else self.dtype
            padded = 1.0 if self.variant == "direct" else self._padded
            flops = {unit: plain(2.0 * _f(self.macs) * padded * (2.0 if self.backward else 1.0))}
        x, w, y = (self._bytes(n) for n in (self._read_elements, self.filter_elements,
                                             self.output_elements))  # fmt: skip
        held = self._bytes(self.input_elements) + w + y
        between = self.workspace_bytes
        if self.backward:  # dx from dy and w; dw from dy and x
            lowered = 2.0 * between
            launches = np.where(_f(between) > 0.0, 4.0, 2.0)
            dx = self._bytes(self.input_elements)
            return Work(flops, plain(2.0 * y + w + x + lowered), plain(dx + w + lowered),
                        footprint=plain(x + dx + 2.0 * w + y + between),
                        resident=plain(2.0 * held - y + between),
                        launches=plain(launches))  # fmt: skip
        read, written, launches = x + between, y + between, _f(1.0)
        if self._keeps_filters:  # transformed filters are read, plain ones are not
            written = written - self._stored[-1][0]
            held = held - w
        else:
            read = read + w
        for stored, _ in self._stored[: -1 if self._keeps_filters else None]:
            launches = launches + np.where(stored > 0.0, 1.0, 0.0)
        footprint = read + written - between + self._kept_bytes
        return Work(flops, plain(read), plain(written), footprint=plain(footprint),
                    resident=plain(held + between), launches=plain(launches))  # fmt: skip

    def _bytes(self, elements: Amount) -> F64:
        return dtype(self.dtype).bytes_of(1.0) * _f(elements)

    @property
    def _read_elements(self) -> Amount:
        """Elements of the input that some tap needs."""
        needed = [np.minimum(i, k * o) for o, i, k, _, _ in self._axes]
        return plain(_f(self.batch) * self.in_channels * np.prod(needed, axis=0))

    @property
    def _padded(self) -> F64:
        """Padded over given multiply-adds."""
        factor = _f(1.0)
        for channels in (self.in_channels, self.out_channels):
            given = _f(channels) / self.groups
            factor = factor * np.ceil(given / self.pad_channels) * self.pad_channels / given
        return factor

    @property
    def _keeps_filters(self) -> bool:
        """Whether transformed filters are there already."""
        return self.filters_ready and (self.variant in WINOGRAD or self.variant == "fft")

    @property
    def _kept_bytes(self) -> F64:
        """Bytes of transformed filters that are only read."""
        return self._stored[-1][0] if self._keeps_filters else _f(0.0)

    @property
    def _stored(self) -> list[tuple[F64, str]]:
        """Bytes and names of tensors that pass through memory between kernels, filters last."""
        axes = self._axes
        n, c, filters = _f(self.batch), _f(self.in_channels), _f(self.out_channels)
        if self.variant == "im2col":
            plain_gemm = np.all([(k == 1) & (s == 1) & (p == 0) for _, _, k, s, p in axes], axis=0)
            matrix = n * c * self.taps * self.outputs
            return [(np.where(plain_gemm, 0.0, self._bytes(plain(matrix))), "matrix")]
        if self.variant == "im2win":
            (od, _, kd, _, _), (oh, _, kh, _, _), (_, i, _, _, p) = axes
            windows = n * c * od * oh * kd * kh * (i + 2.0 * p)
            return [(self._bytes(plain(windows)), "windows")]
        if self.variant in WINOGRAD:
            cells = (WINOGRAD[self.variant][0] + 2.0) ** 2
            kept = (self._bytes(plain(cells * filters * c / self.groups)), "filters")
            if self.fused:
                return [kept]
            data = self._bytes(plain(self._tiles * cells * n * c))
            products = self._bytes(plain(self._tiles * cells * n * filters))
            return [(data, "data"), (products, "products"), kept]
        if self.variant == "fft":
            spectrum = COMPLEX * self._spectrum[1]
            return [(spectrum * n * c, "data"), (spectrum * n * filters, "products"),
                    (spectrum * filters * c / self.groups, "filters")]  # fmt: skip
        return []

    @property
    def _tiles(self) -> F64:
        """Winograd's tiles of an image and channel."""
        side = WINOGRAD[self.variant][0]
        return np.ceil(self._axes[1][0] / side) * np.ceil(self._axes[2][0] / side)

    def _winograd_flops(self) -> dict[str, Amount]:
        side, data, filters, inverse = WINOGRAD[self.variant]
        n, inputs = _f(self.batch), _f(self.in_channels) / self.groups
        products = n * self._tiles * (side + 2.0) ** 2 * inputs * self.out_channels * self._padded
        changes = self._tiles * n * (data * self.in_channels + inverse * self.out_channels)
        if not self.filters_ready:
            changes = changes + filters * inputs * self.out_channels
        return {self.dtype: plain(2.0 * products), "vector": plain(changes)}

    @property
    def _spectrum(self) -> tuple[F64, F64]:
        """Points of a padded plane, and complex numbers of its spectrum (half, being real)."""
        sides = [_power_of_two(i + 2.0 * p) for _, i, _, _, p in self._axes]
        return sides[0] * sides[1] * sides[2], sides[0] * sides[1] * (np.floor(sides[2] / 2) + 1)

    def _fft_flops(self) -> dict[str, Amount]:
        """5/2 N log2 N a real transform (half of radix 2's 5 N log2 N), 8 a complex product."""
        points, half = self._spectrum
        n, inputs = _f(self.batch), _f(self.in_channels) / self.groups
        planes = n * np.add(self.in_channels, self.out_channels)
        if not self.filters_ready:
            planes = planes + inputs * self.out_channels
        changes = 2.5 * points * np.log2(points) * planes
        return {"fp32": plain(8.0 * half * n * inputs * self.out_channels),
                "vector": plain(changes)}  # fmt: skip


LONG_VARIANTS = ("flash", "fft", "direct")


@dataclass(frozen=True)
class LongConvolution(Op):
    """Convolution of each channel's sequence with a filter about as long as itself.

    `causal` pads to at least seq_len + filter_len - 1 points, else the convolution is circular.
    `gated` multiplies the input before and the output after by other tensors (Hyena: Poli et al.
    2023, arXiv:2302.10866). `filter_ready`: the filter's spectrum is kept from call to call.

    variant: fft (transforms, product and inverse as kernels of their own in fp32, everything
    between through memory), flash (FlashFFTConv: each transform as `order` products with small
    matrices on the matrix unit, real sequences packed in complex ones of half the length, all in
    one kernel up to `fused_points`; beyond that the outermost step goes through memory in both
    directions: Fu et al. 2023, arXiv:2311.05908, section 3), direct (multiply-adds
    on the lanes).

    >>> LongConvolution(seq_len=1024, channels=1, variant="direct").flops  # 1024 x 1025 / 2 pairs
    1049600.0
    """

    name: ClassVar[str] = "long_convolution"
    what: ClassVar[str] = "convolution over a sequence by FFT (Hyena, FlashFFTConv) or directly"
    example: ClassVar[str] = "seq_len=8192 channels=768 batch=8"
    not_monotone: ClassVar[tuple[str, ...]] = ("order",)

    seq_len: int = size("length of a sequence")
    channels: int = size("channels, each with a filter of its own")
    batch: int = size("sequences", 1)
    filter_len: int = size("taps of a filter", like="seq_len")
    dtype: str = fmt("format of input and output")
    causal: bool = flag("an output sees no later input", True)
    gated: bool = flag("element-wise gates before and after")
    filter_ready: bool = flag("the filter's spectrum is kept from call to call")
    order: int = size("small matrices that a transform is split into", 2, high=8)
    fused_points: int = size("complex points of the longest transform in one kernel", 32768)
    variant: str = choice("algorithm", LONG_VARIANTS, "flash")

    def rules(self) -> Iterator[Rule]:
        """Check that a filter is no longer than its sequence, and a factor two points at least."""
        yield Rule("filter_len", np.greater(self.filter_len, self.seq_len), "at most seq_len")
        if self.variant == "flash":
            yield Rule("order", np.exp2(self.order) > self._points / 2.0,
                       "at most log2 of half the padded length")  # fmt: skip

    @property
    def _points(self) -> F64:
        """Points of a padded sequence."""
        need = _f(self.seq_len) + (_f(self.filter_len) - 1.0 if self.causal else 0.0)
        return _power_of_two(np.maximum(need, 2.0))

    @property
    def _factors(self) -> F64:
        """Sum of the sides of the small matrices: powers of two, as equal as can be."""
        bits = np.log2(self._points / 2.0)
        low, more = np.floor_divide(bits, self.order), np.mod(bits, self.order)
        return np.exp2(low) * (self.order + more)

    def work(self) -> Work:
        """Operations and bytes of the variant."""
        rows = _f(self.batch) * self.channels
        elements, taps = rows * self.seq_len, _f(self.channels) * self.filter_len
        one = dtype(self.dtype).bytes_of(1.0)
        data, filters = one * elements, one * taps
        gates = 2.0 * data if self.gated else _f(0.0)
        lanes = 2.0 * elements if self.gated else _f(0.0)
        if self.variant == "direct":
            k = _f(self.filter_len)
            pairs = k * self.seq_len - (k * (k - 1.0) / 2.0 if self.causal else 0.0)
            return self._work_of({"vector": plain(2.0 * rows * pairs + lanes)},
                               data + gates + filters, data)  # fmt: skip
        n, half = self._points, self._points / 2.0
        change = 2.5 * n * np.log2(n)
        spectrum = COMPLEX * self.channels * (half + 1.0)
        made = 0.0 if self.filter_ready else 1.0
        of_filter = change * self.channels * made
        lanes = lanes + 6.0 * rows * (half + 1.0) + of_filter
        if self.variant == "flash":
            products = 16.0 * rows * half * self._factors
            turns = 2.0 * rows * half * (6.0 * (self.order - 1.0) + 10.0)  # between, and unpacking
            far = np.where(half > self.fused_points, 2.0 * 2.0 * one * rows * half, 0.0)
            return self._work_of(
                {self.dtype: plain(products), "vector": plain(lanes + turns)},
                data + gates + spectrum + made * filters + far, data + made * spectrum + far,
                between=spectrum + far / 2.0,
                launches=1.0 + made + np.where(far > 0.0, 2.0, 0.0))  # fmt: skip
        signals, single = COMPLEX * rows * (half + 1.0), 4.0 * elements
        padded = 4.0 * rows * n  # the inverse writes all points
        lanes = lanes + 2.0 * change * rows
        read = single + made * filters + 2.0 * signals + spectrum
        written = 2.0 * signals + made * spectrum + padded
        between, launches = 2.0 * signals + spectrum + padded - data, 3.0 + made
        if self.gated or self.dtype != "fp32":  # to fp32 before, back after, gates with it
            read, written = read + data + single + gates, written + single + data
            between, launches = between + single + data, launches + 2.0
        return self._work_of({"vector": plain(lanes)}, read, written, between, launches)

    def _work_of(
        self, flops: dict[str, Amount], read: F64, written: F64, between: Any = 0.0,
        launches: Any = 1.0,
    ) -> Work:  # fmt: skip
        """Work whose kernels hold input, output, filter, gates and what passes between them."""
        one = dtype(self.dtype).bytes_of(1.0)
        tensors = 4.0 if self.gated else 2.0
        held = one * (tensors * _f(self.batch) * self.channels * self.seq_len
                      + _f(self.channels) * self.filter_len) + between  # fmt: skip
        return Work(flops, plain(read), plain(written),
                    footprint=plain(np.minimum(held, read + written)),
                    resident=plain(held), launches=plain(launches))  # fmt: skip
