"""A small multilayer perceptron in numpy: the smooth half of the utilisation model.

Owns its training (Adam, pseudo-Huber loss) and its forward pass. numpy alone is enough here and
keeps the default install free of a deep-learning framework; the nets have about 30 thousand
weights. Knows nothing of GEMMs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

__all__ = ["Mlp", "MlpOptions", "fit_mlp"]

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class MlpOptions:
    """How to train: hidden widths, passes over the data, batch, Adam's step and decay."""

    hidden: tuple[int, ...] = (128, 128, 64)
    epochs: int = 100
    batch: int = 256
    step: float = 3e-3
    decay: float = (
        0.1  # 1e-4 fits seen pairs as well, and is worse off the grid and at the frontier
    )
    huber: float = 0.02
    clip: float = 4.0


@dataclass(frozen=True, slots=True)
class Mlp:
    """Weights [in, out] and biases per layer, on inputs standardised by `mean` and `scale`."""

    mean: F32
    scale: F32
    offset: float
    clip: float
    weights: tuple[F32, ...]
    biases: tuple[F32, ...]

    def predict(self, x: F32) -> F32:
        """Value per row of x [rows, features]."""
        h = self._standardise(x)
        for w, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = h @ w
            h += b
            h = _silu(h)
        out = (h @ self.weights[-1] + self.biases[-1])[:, 0]
        return out + np.float32(self.offset)

    def _standardise(self, x: F32) -> F32:
        h = x - self.mean
        h *= self.scale
        return np.clip(h, -self.clip, self.clip, out=h)

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """State as plain arrays; half precision suits weights of a fit whose error is percents."""
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "mean": self.mean, "scale": self.scale,
            "head": np.array([self.offset, self.clip, len(self.weights)]),
        }  # fmt: skip
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            arrays[f"w{i}"] = w.astype(np.float16)
            arrays[f"b{i}"] = b.astype(np.float16)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Mlp:
        """Rebuild from `to_arrays`. Raises KeyError when an array is missing."""
        offset, clip, layers = (float(v) for v in np.asarray(arrays["head"], np.float64))
        get = lambda key: np.ascontiguousarray(arrays[key], dtype=np.float32)  # noqa: E731
        return cls(
            get("mean"), get("scale"), offset, clip,
            tuple(get(f"w{i}") for i in range(int(layers))),
            tuple(get(f"b{i}") for i in range(int(layers))),
        )  # fmt: skip


def _silu(z: F32) -> F32:
    """Z * sigmoid(z), by tanh, which neither overflows nor leaves single precision."""
    half = z * np.float32(0.5)
    gate = np.tanh(half)
    gate += np.float32(1.0)
    gate *= half
    return gate


def _silu_and_slope(z: F32) -> tuple[F32, F32]:
    s = np.tanh(z * np.float32(0.5))
    s += np.float32(1.0)
    s *= np.float32(0.5)
    h = z * s
    # d(z s)/dz = s (1 + z (1 - s)) = s + h (1 - s)
    slope = np.float32(1.0) - s
    slope *= h
    slope += s
    return h, slope


def fit_mlp(
    x: F32,
    y: npt.NDArray[np.floating],
    rng: np.random.Generator,
    options: MlpOptions | None = None,
) -> Mlp:
    """Fit y [rows] to x [rows, features].

    Adam (Kingma and Ba 2015) with decoupled weight decay and a cosine schedule; the pseudo-Huber
    loss sqrt(e^2 + d^2) is close to the absolute error that scores are made of.
    """
    o = options or MlpOptions()
    mean = x.mean(0, dtype=np.float64).astype(np.float32)
    spread = x.std(0, dtype=np.float64)
    scale = np.where(spread > 1e-6, 1.0 / np.maximum(spread, 1e-6), 0.0).astype(np.float32)
    offset = float(np.median(y))
    data = np.clip((x - mean) * scale, -o.clip, o.clip)
    target = (np.asarray(y) - offset).astype(np.float32)
    widths = (x.shape[1], *o.hidden, 1)
    weights = [
        (rng.standard_normal((a, b)) * np.sqrt(2.0 / a)).astype(np.float32)
        for a, b in pairwise(widths)
    ]
    weights[-1] *= np.float32(0.1)
    biases = [np.zeros(b, np.float32) for b in widths[1:]]
    _train(data, target, weights, biases, rng, o)
    return Mlp(mean, scale, offset, o.clip, tuple(weights), tuple(biases))


def _train(
    x: F32, y: F32, weights: list[F32], biases: list[F32], rng: np.random.Generator, o: MlpOptions
) -> None:
    """Run Adam in place over `weights` and `biases`.

    Parameters, gradients and moments live in one flat vector each, so that a step is a dozen
    passes over memory instead of a dozen per layer.
    """
    flat, params = _flat([*weights, *biases])
    gradient, grads = _flat([np.zeros_like(p) for p in params])
    count = len(weights)
    w, b = params[:count], params[count:]
    first, second = np.zeros_like(flat), np.zeros_like(flat)
    scratch = np.empty_like(flat)
    decayed = slice(0, sum(p.size for p in w))
    batch = min(o.batch, len(x))
    steps = o.epochs * max(1, len(x) // batch)
    t = 0
    while t < steps:
        order = rng.permutation(len(x))
        for start in range(0, len(x) - batch + 1, batch):
            rows = order[start : start + batch]
            t += 1
            _gradients(x[rows], y[rows], (w, b), grads, o.huber)
            rate = o.step * min(1.0, t / 200.0) * 0.5 * (1.0 + np.cos(np.pi * t / steps))
            flat[decayed] *= np.float32(1.0 - rate * o.decay)
            first *= np.float32(0.9)
            np.multiply(gradient, np.float32(0.1), out=scratch)
            first += scratch
            second *= np.float32(0.999)
            np.multiply(gradient, gradient, out=scratch)
            scratch *= np.float32(0.001)
            second += scratch
            np.sqrt(second, out=scratch)
            scratch *= np.float32(1.0 / np.sqrt(1.0 - 0.999**t))
            scratch += np.float32(1e-8)
            np.divide(first, scratch, out=scratch)
            scratch *= np.float32(rate / (1.0 - 0.9**t))
            flat -= scratch
    for kept, trained in zip([*weights, *biases], params, strict=True):
        kept[...] = trained


def _flat(arrays: list[F32]) -> tuple[F32, list[F32]]:
    """Copy arrays into one vector; return it and views with the arrays' shapes."""
    vector = np.concatenate([a.ravel() for a in arrays])
    ends = np.cumsum([a.size for a in arrays])
    views = [
        vector[end - a.size : end].reshape(a.shape) for a, end in zip(arrays, ends, strict=True)
    ]
    return vector, views


def _gradients(
    x: F32, y: F32, layers: tuple[list[F32], list[F32]], grads: list[F32], huber: float
) -> None:
    """Write the gradient of the mean loss into `grads` (weights, then biases)."""
    weights, biases = layers
    hidden, slopes = [x], list[F32]()
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        z = hidden[-1] @ w
        z += b
        h, slope = _silu_and_slope(z)
        hidden.append(h)
        slopes.append(slope)
    error = (hidden[-1] @ weights[-1] + biases[-1])[:, 0] - y
    back = (error / np.sqrt(error * error + np.float32(huber**2)) / np.float32(len(x)))[:, None]
    for layer in range(len(weights) - 1, -1, -1):
        np.matmul(hidden[layer].T, back, out=grads[layer])
        np.sum(back, axis=0, out=grads[len(weights) + layer])
        if layer:
            back = back @ weights[layer].T
            back *= slopes[layer - 1]
