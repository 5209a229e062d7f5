"""Convolutional networks in stages of blocks: ResNet, RegNet, EfficientNet; and how they scale.

A pass: Tokens whose batch are images of `resolution` x `resolution` pixels; q_len is not used.
Owns layers, weights, calls, activation counts and compound scaling. Knows shapes only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InfeasibleError, SpecError
from .network import Amount, Call, Layout, Network, Tokens, Weights, ceil_div
from .pieces import gemm, merged, pointwise, present, total, whole

__all__ = ["ConvLayer", "ConvNet", "ConvStage"]

_FAST = 0.8  # alpha that Dollár et al. 2021, section 4.3, recommend


@dataclass(frozen=True, slots=True)
class ConvLayer:
    """One convolution of a `side` x `side` input; odd kernels are padded to keep the side.

    `normed`: a batch norm follows (its gain and shift are parameters, its statistics are not).
    `kept` are elements of an image that wait beside it for the end of the block, where the layer
    that `sums` adds them. `squeeze` > 0:
    the output passes a squeeze-and-excitation of that many units (Hu et al. 2018,
    arXiv:1709.01507).
    """

    inputs: int
    outputs: int
    kernel: int
    stride: int
    side: int
    groups: int = 1
    bias: bool = False
    normed: bool = True
    active: bool = True
    kept: int = 0
    sums: bool = False
    squeeze: int = 0

    @property
    def side_out(self) -> int:
        """Side of the output."""
        return (self.side + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1

    @property
    def elements_in(self) -> int:
        """Elements of the input, an image."""
        return self.inputs * self.side**2

    @property
    def elements_out(self) -> int:
        """Elements of the output, an image."""
        return self.outputs * self.side_out**2

    @property
    def parameters(self) -> float:
        """Filters, biases, and gain and shift of its norm."""
        filters = self.inputs // self.groups * self.outputs * self.kernel**2
        return float(filters + self.outputs * (int(self.bias) + 2 * int(self.normed)))

    @property
    def squeeze_parameters(self) -> float:
        """Parameters of squeeze-and-excitation: two products with biases."""
        s, c = self.squeeze, self.outputs
        return float(2 * s * c + s + c) if s else 0.0


@dataclass(frozen=True, slots=True)
class ConvStage:
    """`blocks` blocks of `width` output channels; the first has the `stride`.

    kind: "basic" (two convolutions, He et al. 2016, arXiv:1512.03385), "bottleneck" (1 x 1, kernel
    in groups of `group_width` channels or one group where 0, 1 x 1; inner channels are width x
    `ratio`), "mbconv" (inner channels are the block's input x `ratio`, depthwise kernel: Tan and Le
    2019, arXiv:1905.11946). `squeeze`: units of squeeze-and-excitation, as a share of the block's
    input channels.
    """

    blocks: int
    width: int
    stride: int
    kind: str = "bottleneck"
    ratio: float = 0.25
    kernel: int = 3
    group_width: int = 0
    squeeze: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("basic", "bottleneck", "mbconv"):
            told = "need basic, bottleneck or mbconv"
            raise SpecError(f"convnet.stage.kind: got {self.kind!r}, {told}")
        for name in ("blocks", "width", "stride", "kernel"):
            got = getattr(self, name)
            if not isinstance(got, int) or isinstance(got, bool) or got < 1:
                told = "need a whole number of at least 1"
                raise SpecError(f"convnet.stage.{name}: got {got!r}, {told}")
        for name, least in (("ratio", 1e-9), ("group_width", 0), ("squeeze", 0)):
            got = getattr(self, name)
            if not isinstance(got, int | float) or isinstance(got, bool) or got < least:
                raise SpecError(f"convnet.stage.{name}: got {got!r}, need a number of 0 or more")

    def layers(self, inputs: int, side: int) -> Iterator[ConvLayer]:
        """Convolutions of all blocks, for an input of that many channels and that side."""
        for i in range(self.blocks):
            stride = self.stride if i == 0 else 1
            block = list(self._block(inputs, side, stride))
            if self.kind != "mbconv" and (stride > 1 or inputs != self.width):
                yield ConvLayer(
                    inputs, self.width, 1, stride, side, active=False, kept=inputs * side**2
                )
            yield from block
            inputs, side = self.width, block[-1].side_out

    def _block(self, inputs: int, side: int, stride: int) -> Iterator[ConvLayer]:
        held, k, out = inputs * side**2, self.kernel, self.width
        squeeze = max(1, round(inputs * self.squeeze)) if self.squeeze else 0
        after = (side + 2 * (k // 2) - k) // stride + 1
        if self.kind == "basic":
            yield ConvLayer(inputs, out, k, stride, side)
            yield ConvLayer(out, out, k, 1, after, kept=held, sums=True)
        elif self.kind == "bottleneck":
            inner = round(out * self.ratio)
            groups = inner // self.group_width if self.group_width else 1
            yield ConvLayer(inputs, inner, 1, 1, side)
            yield ConvLayer(inner, inner, k, stride, side, groups, kept=held, squeeze=squeeze)
            yield ConvLayer(inner, out, 1, 1, after, kept=held, sums=True)
        else:
            inner = round(inputs * self.ratio)
            held = held if stride == 1 and inputs == out else 0
            if inner != inputs:
                yield ConvLayer(inputs, inner, 1, 1, side)
            yield ConvLayer(inner, inner, k, stride, side, inner, kept=held, squeeze=squeeze)
            yield ConvLayer(inner, out, 1, 1, after, kept=held, sums=held > 0, active=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvNet(Network):
    """A stem convolution, stages, a last 1 x 1 convolution (`head` channels, 0: none), classifier.

    `fused`: norms (folded into the filters), activations and sums of shortcuts are done by the
    convolution before them, as compiled inference engines do; otherwise each is a kernel of its
    own, as in eager execution.
    """

    stages: tuple[ConvStage, ...]
    stem: int = 64
    stem_kernel: int = 7
    stem_pool: bool = True
    head: int = 0
    classes: int = 1000
    resolution: int = 224
    fused: bool = True

    def __post_init__(self) -> None:
        if self.resolution < 1 or not self.stages:
            raise SpecError(
                f"{self.name}: got resolution {self.resolution} and {len(self.stages)} stages, "
                "need at least 1 of each"
            )

    def layers(self) -> tuple[ConvLayer, ...]:
        """List all convolutions at this resolution, in order."""
        found = [ConvLayer(3, self.stem, self.stem_kernel, 2, self.resolution)]
        channels, side = self.stem, found[0].side_out
        if self.stem_pool:
            side = (side - 1) // 2 + 1
        for stage in self.stages:
            found += stage.layers(channels, side)
            channels, side = stage.width, found[-1].side_out
        if self.head:
            found.append(ConvLayer(channels, self.head, 1, 1, side))
        return tuple(found)

    @property
    def features(self) -> int:
        """Channels that the classifier sees."""
        return self.head or self.stages[-1].width

    def weights(self) -> tuple[Weights, ...]:
        """Convolutions with their norms, squeeze-and-excitation, classifier."""
        layers = self.layers()
        conv = sum(c.parameters for c in layers)
        found = [Weights("convolutions", "conv", conv, split="none")]
        squeeze = sum(c.squeeze_parameters for c in layers)
        if squeeze:
            found.append(Weights("squeeze", "linear", squeeze, split="none"))
        if self.classes:
            rows = float((self.features + 1) * self.classes)
            found.append(Weights("classifier", "head", rows, split="none", ends=True))
        return tuple(found)

    def activation_count(self) -> float:
        """Elements of the outputs of all convolutions, an image.

        Dollár, Singh, Girshick 2021, "Fast and Accurate Model Scaling", arXiv:2103.06877, section
        3; the two products of squeeze-and-excitation count as convolutions of one position.
        """
        return float(
            sum(c.elements_out + (c.squeeze + c.outputs if c.squeeze else 0) for c in self.layers())
        )

    def calls(self, groups: Sequence[Tokens], layout: Layout) -> list[Call]:
        """Operations of one pass; images are spread over dp.

        Raises InfeasibleError for a layout that cuts channels or images.
        """
        if layout.tp > 1 or layout.cp > 1:
            raise InfeasibleError(
                f"layout: {self.name} is not cut into tp {layout.tp} x cp {layout.cp}; use dp"
            )
        images = total(ceil_div(g.batch, layout.dp) for g in groups)
        found: list[Call] = []
        layers = self.layers()
        for i, layer in enumerate(layers):
            found += self._layer(layer, images)
            if i == 0 and self.stem_pool:
                found.append(pointwise("pool", images * layer.elements_out, ops=2))
        last = layers[-1].side_out ** 2
        found.append(_mean(images * self.features, last))
        if self.classes:
            found.append(gemm("classifier", images, self.classes, self.features, role="head"))
        return merged(found)

    def _layer(self, c: ConvLayer, images: Amount) -> list[Call]:
        fields: dict[str, Any] = {
            "in_channels": c.inputs,
            "out_channels": c.outputs,
            "height": c.side,
            "width": c.side,
            "batch": whole(images),
            "kernel_size": c.kernel,
            "stride": c.stride,
            "padding": c.kernel // 2,
            "groups": c.groups,
        }
        if c.groups == c.inputs > 1:
            fields["variant"] = "direct"  # depthwise: nothing for a matrix unit to share
        out = images * c.elements_out
        found = [Call("convolution", "convolution", fields, present(images), "conv")]
        if not self.fused:
            norm = {
                "rows": whole(images),
                "cols": c.outputs,
                "spatial": c.side_out**2,
                "kind": "batch",
            }
            found.append(Call("batch_norm", "normalisation", norm, present(images), "norm"))
            found += [pointwise("activation", out)] if c.active else []
            found += [pointwise("shortcut", out, inputs=2)] if c.sums else []
        if c.squeeze:
            found += [
                _mean(images * c.outputs, c.side_out**2),
                gemm("squeeze", images, c.squeeze, c.outputs),
                gemm("squeeze", images, c.outputs, c.squeeze),
                pointwise("excite", out, inputs=2),
            ]
        return found

    def activations(self, tokens: Amount, layout: Layout) -> Amount:
        """Elements held at the peak: input and output of a layer and the shortcut beside it.

        `tokens` are images.
        """
        held = max(
            c.elements_in + c.elements_out + (c.kept if c.kept != c.elements_in else 0)
            for c in self.layers()
        )
        return tokens / layout.dp * held

    def scaled(self, *, width: float = 1.0, depth: float = 1.0, resolution: float = 1.0) -> ConvNet:
        """Scale channels, blocks a stage and the image's side by these factors.

        Channels become multiples of 8; groups keep their number, so that the width of a group
        scales too (arXiv:2103.06877, section 4.1). Raises SpecError for factors that are not
        positive.
        """
        for name, got in (("width", width), ("depth", depth), ("resolution", resolution)):
            if not got > 0:
                raise SpecError(f"convnet.scaled.{name}: got {got}, need a number above 0")
        stages = tuple(_scaled(s, width, depth) for s in self.stages)
        return replace(
            self,
            stages=stages,
            stem=_eights(self.stem * width),
            head=_eights(self.head * width) if self.head else 0,
            resolution=max(1, round(self.resolution * resolution)),
        )

    def compound(self, factor: float, alpha: float = _FAST) -> ConvNet:
        """Multiply the operations by `factor`, in shares: width alpha, the rest halved.

        width^2 = factor^alpha, depth = resolution^2 = factor^((1 - alpha) / 2). alpha 1 scales the
        width alone, 1/3 all three evenly, 0.8 is "fast" (arXiv:2103.06877, section 4.3). Raises
        SpecError for a factor that is not positive or alpha outside 0 to 1.
        """
        if not factor > 0 or not 0 <= alpha <= 1:
            raise SpecError(
                f"convnet.compound: got factor {factor} and alpha {alpha}, need factor above 0 and "
                "alpha from 0 to 1"
            )
        rest = (1.0 - alpha) / 2.0
        return self.scaled(
            width=factor ** (alpha / 2.0), depth=factor**rest, resolution=factor ** (rest / 2.0)
        )


def _eights(channels: float) -> int:
    return max(8, round(channels / 8.0) * 8)


def _scaled(stage: ConvStage, width: float, depth: float) -> ConvStage:
    channels = _eights(stage.width * width)
    group = stage.group_width
    if group:
        inner = round(stage.width * stage.ratio)
        count = max(1, inner // group)  # groups; their width follows the channels
        group = max(1, round(channels * stage.ratio / count / 8.0) * 8) if group >= 8 else group
        unit = group / stage.ratio
        channels = max(1, round(channels / unit)) * round(unit)
    return replace(
        stage, width=channels, group_width=group, blocks=max(1, round(stage.blocks * depth))
    )


def _mean(rows: Amount, cols: int) -> Call:
    fields = {"rows": whole(rows), "cols": cols, "operation": "mean"}
    return Call("mean", "reduction", fields, present(rows))
