"""Streams of pictures: steps that share a batch, less guidance, pictures that are not drawn."""

from __future__ import annotations

from dataclasses import replace

from ...hardware import resolve
from ...models.image import Canvas
from ...models.network import Call
from ...models.pipeline import Pipeline, Stage
from ...predict.power import PowerModel
from ...scenario import Generation, formats_of, generate_all
from ...scenario.lower import time_calls
from ...scenario.rows import Case
from ...techniques import Treatment
from ..verdict import Finding, Found, NotModelled
from .generators import applied, only, pipeline, times_of
from .kit import reached, span

__all__ = ["streamdiffusion"]

_GRAPH = Treatment(graph=True)
_MODELS = ("sd-1.5", "sd-2.1")


def streamdiffusion() -> list[Found]:
    """SD 1.5 and 2.1 at 512 x 512 in 1 to 10 steps on an RTX 4090, with a tiny coder.

    The coder (TAESD, madebyollin/taesd) is 64 channels of 3 x 3 convolutions at four sides; each
    picture is encoded and decoded. Rates with launches replayed, as from a compiled engine.
    """
    coder = _tiny_coder("rtx_4090")
    batched, guided, fast, places, guide_places = [], [], [], [], []
    times = _step_times()
    for name in _MODELS:
        for steps in (4, 10):
            seq, same, cfg, none, once = times[name, steps]
            batched.append((seq + coder) / (same + coder))
            places.append(f"{name}, {steps} steps")
            guided += [(cfg + coder) / (none + coder), (cfg + coder) / (once + coder)]
            guide_places += [f"{name}, {steps} steps, no negative call",
                             f"{name}, {steps} steps, one negative call"]  # fmt: skip
        one = times[name, 1][0]
        fast += [1.0 / (one + coder), 1.0 / one]
    slow = [g.time for g in generate_all(
        [Generation(pipeline(n).with_steps(s, 2), "rtx_4090", Canvas(512, 512), dtype="fp16")
         for n in ("sd-1.5", "sd-2.1") for s in (1, 2, 4)])]  # fmt: skip
    gains = [max(fast) * t for t in slow]
    names = [f"{n}{c}" for n in ("SD 1.5", "SD 2.1") for c in (", tiny coder", ", denoiser alone")]
    return [
        Finding(0, span(batched), at=reached(batched, 1.5, places), range="4 and 10 steps a batch"),
        Finding(1, span(guided), at=reached(guided, 2.05, guide_places), range="4 and 10 steps, "
                "one negative call a picture or none"),
        Finding(2, span(fast), at=reached(fast, 91.07, names), range="one step, fp16"),
        Finding(3, span(gains), at=reached(gains, 59.56, [f"{n}, {s} guided steps and its own coder"
                for n in ("sd-1.5", "sd-2.1") for s in (1, 2, 4)]), range="1 to 4 steps before",
                note="the baseline's 0.65 s a picture (91.07 / 59.56) is not the network's work"),
        *_filtered(),
    ]  # fmt: skip


def _step_times() -> dict[tuple[str, int], list[float]]:
    """Seconds a picture: one by one, as a batch; guided, without negatives, with one.

    By model and steps.
    """
    keys = [(name, steps) for name in _MODELS for steps in (1, 4, 10)]
    cases: list[Generation] = []
    for name, steps in keys:
        pipe = only(pipeline(name))
        single, double = pipe.with_steps(steps, 1), _one_by_one(pipe.with_steps(steps, 2))
        batch = applied("stream-batch", _GRAPH, steps=steps)
        less = [applied("residual-guidance", _GRAPH, steps=steps, negatives=n) for n in (0, 1)]
        cases += [
            Generation(p, "rtx_4090", Canvas(512, 512), dtype="fp16", treatment=t)
            for p, t in ((single, _GRAPH), (single, batch), (double, _GRAPH),
                         (double, less[0]), (double, less[1]))
        ]  # fmt: skip
    times = times_of(cases)
    return {key: times[5 * i : 5 * i + 5] for i, key in enumerate(keys)}


def _one_by_one(pipe: Pipeline) -> Pipeline:
    """Halves of guidance follow each other, as in a batch that is full already."""
    made: list[Stage] = []
    for s in pipe.stages:
        made.append(replace(s, passes=s.passes * s.samples, samples=1))
    return replace(pipe, stages=tuple(made))


def _tiny_coder(on: str) -> float:
    """Seconds to encode and decode 512 x 512 pixels, 16 bits."""

    def conv(side: int, inner: int, out: int, count: float) -> Call:
        shape = {"in_channels": inner, "out_channels": out, "height": side, "width": side,
                 "kernel_h": 3, "kernel_w": 3, "padding_h": 1, "padding_w": 1,
                 "batch": 1}  # fmt: skip
        return Call("coder", "convolution", shape, count, "conv")

    # three blocks of three at 64, 128 and 256 with one to change the side, one block at 512
    calls = [conv(side, 64, 64, 2.0 * n) for side, n in ((64, 10.0), (128, 10.0), (256, 10.0),
                                                         (512, 4.0))]  # fmt: skip
    device = resolve(on)
    formats = formats_of(pipeline("sd-1.5"), device, "fp16")
    return float(time_calls(Case(calls, device, formats)).time.sum())


def _filtered() -> list[Found]:
    """Mean power over a stream of which a share is skipped: drawing, or waiting at idle power.

    The device draws all the time where nothing is skipped. What share of a scene stands still is
    not stated: the figure of one card sets it, that of the other follows.
    """
    power: dict[str, tuple[float, float]] = {}
    for on in ("rtx_3060_laptop", "rtx_4090"):
        device = resolve(on)
        idle = PowerModel.load().basis_of(device).idle * device.board_power
        pipe = only(pipeline("sd-1.5"))
        run = generate_all([Generation(pipe.with_steps(4, 1), on, Canvas(512, 512), dtype="fp16",
                                       treatment=_GRAPH)])[0]  # fmt: skip
        power[on] = (run.power or device.board_power, idle)
    drawing, idle = power["rtx_4090"]
    skip = (1.0 - 1.0 / 1.99) / (1.0 - idle / drawing)
    drawing, idle = power["rtx_3060_laptop"]
    gain = drawing / ((1.0 - skip) * drawing + skip * idle)
    return [
        Finding(4, gain, at=f"{100 * skip:.0f} % of the pictures skipped, which gives the RTX "
                "4090's 1.99; a laptop's card (a desktop RTX 3060 is not described)"),
        NotModelled(5, "sets the share of pictures that are skipped, which is not stated"),
    ]  # fmt: skip
