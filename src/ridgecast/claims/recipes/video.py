"""Generators and readers of video: clips in memory, kept keys and values, frames over devices."""

from __future__ import annotations

from ...hardware import resolve
from ...models.image import Canvas
from ...models.network import Network
from ...models.pipeline import Pipeline
from ...scenario import Generation, generate_all, stage_memory
from ...techniques import KvPolicy, Storage, Treatment
from ..verdict import Finding, Found, NotModelled, Property
from .generators import applied, only, pipeline
from .kit import reached, span

__all__ = ["dynamicscaler", "forcing_kv", "kv_quant_self_forcing", "sana_video",
           "streamlined_inference", "video_infinity", "wan"]  # fmt: skip

GIB = 2.0**30


def wan() -> list[Found]:
    """Peak of the 1.3 B model with its text encoder on the host and stages that leave the device.

    480 x 832, 81 frames. Its repository stores the denoiser in fp32 and decodes in fp32; 16 bits
    are the other end.
    """
    peaks, places = [], []
    for denoiser in ("bf16", "fp32"):
        for decoder in ("bf16", "fp32"):
            memory = stage_memory(Generation(
                "wan2.1-t2v-1.3b", "rtx_4090", treatment=applied("stage-offload"),
                dtype={"denoiser": denoiser, "decoder": decoder}, on_host=("text",),
            ))  # fmt: skip
            totals = {name: sum(m.values()) / 1e9 for name, m in memory.items()}
            peak = max(totals, key=lambda n: totals[n])
            peaks.append(totals[peak])
            places.append(f"denoiser {denoiser}, decoder {decoder}: stage {peak}")
    sizes = [_denoiser(f"wan2.1-t2v-{n}").parameters / 1e9 for n in ("1.3b", "14b")]
    return [
        Finding(0, span(peaks), at=reached(peaks, 8.19, places), range="16 and 32 bits, text "
                "encoder on the host, one stage on the device at a time"),
        Finding(1, (sizes[0], sizes[1]), at=f"{sizes[0]:.2f} and {sizes[1]:.2f} G parameters"),
    ]  # fmt: skip


def _denoiser(name: str) -> Network:
    return pipeline(name).stage("denoiser").network


def kv_quant_self_forcing() -> list[Found]:
    """Peak memory of Self-Forcing on 480 x 832: cache in 16 bits, at 4 bits with pruned tokens.

    The stack is not stated. Of text encoder on the device or gone, decoder in 16 or 32 bits, cache
    freed before decoding or kept, 81 to 161 frames, and GB or GiB of allocations (without context
    and workspaces), the one is taken whose two peaks together come nearest.
    """
    thin = applied("soft-prune-int4", rebuild=0)
    found: list[tuple[float, float, str]] = []
    rebuilt = []
    for frames in (81, 105, 129, 161):
        for decoder in ("bf16", "fp32"):
            wide, small = (_planned(frames, t, decoder) for t in (Treatment(), thin))
            for text in (True, False):
                for kept in (True, False):
                    for unit, name in ((1e9, "GB"), (GIB, "GiB")):
                        ends = [_allocated(g, text, kept) / unit for g in (wide, small)]
                        told = (
                            f"{frames} frames, text encoder {'there' if text else 'gone'}, "
                            f"decoder {decoder}, cache {'kept' if kept else 'freed'}, {name}"
                        )
                        found.append((ends[0], ends[1], told))
        plain = _allocated(_planned(frames, Treatment(), "bf16"), True, False)
        rebuilt.append(_rebuilt(frames) > plain)
    base, small, place = min(found, key=lambda f: abs(f[0] / 19.28 - 1) + abs(f[1] / 11.7 - 1))
    return [
        NotModelled(0, "sets the share of tokens that stay, which is not stated: 65 % with groups "
                    "of 64"),
        Finding(1, base, at=place),
        Finding(2, small, at=place, note="the same stack as for 19.28 GB"),
        Property("a cache rebuilt whole in 16 bits takes more than one that was never compressed",
                 all(rebuilt), "81 to 161 frames, 8 bits with a 16-bit copy of all layers"),
    ]  # fmt: skip


def _planned(frames: int, t: Treatment, decoder: str) -> dict[str, dict[str, float]]:
    """Bytes of Self-Forcing in chunks of three latent frames, by stage."""
    case = Generation("self-forcing-1.3b", "h100_sxm", Canvas(480, 832, frames), treatment=t,
                      dtype={"decoder": decoder})  # fmt: skip
    return stage_memory(case)


def _allocated(g: dict[str, dict[str, float]], text: bool, kept: bool) -> float:
    """Bytes that the busier of denoiser and decoder allocates."""
    encoder = 0.0 if text else 2.0 * pipeline("self-forcing-1.3b").stage("text").network.parameters
    denoiser, decoder = g["denoiser"], g["decoder"]
    live = [denoiser["activations"] + denoiser["kv"],
            decoder["activations"] + (denoiser["kv"] if kept else 0.0)]  # fmt: skip
    return denoiser["weights"] - encoder + max(live)


def _rebuilt(frames: int) -> float:
    """8 bits stored, and all layers rebuilt at once."""
    stored = Storage(8, 64, 16, 16)
    g = _planned(frames, Treatment(kv=KvPolicy(storage=stored)), "bf16")["denoiser"]
    return g["weights"] + g["activations"] + g["kv"] * (1.0 + 16.0 / stored.bits_each)


def sana_video() -> list[Found]:
    """SANA-Video 2 B against Wan 2.1 1.3 B, and with products in NVFP4.

    720p: its coder shrinks sides 32 times and is not described here, so the denoiser draws the
    tokens of 22 x 40 x 21 (704 x 1280, 81 frames), without a decoder. 480p: both with Wan's coder.
    """
    sana, canvas = only(pipeline("sana-video-2b")), Canvas(352, 640, 81)
    nv = {"denoiser": "nvfp4"}
    plain = [Generation(sana, "rtx_5090", canvas), Generation(sana, "rtx_5090", canvas, dtype=nv)]
    pairs, places = [], []
    for on in ("h100_sxm", "rtx_5090", "a100_sxm"):
        for sides in ((480, 832), (704, 1280)):
            mine = canvas if sides[0] > 480 else Canvas(*sides, 81)
            wan = only(pipeline("wan2.1-t2v-1.3b"))
            pairs += [Generation(wan, on, Canvas(*sides, 81)), Generation(sana, on, mine)]
            places.append(f"{sides[0]} x {sides[1]}, {on}")
    before, after, *rest = generate_all([*plain, *pairs])
    gains = [rest[i].time / rest[i + 1].time for i in range(0, len(rest), 2)]
    at = "50 steps, guidance, 704 x 1280 x 81, the denoiser alone"
    return [
        Finding(0, (before.low, before.high), at=f"{before.time:.3g} s: {at}",
                range="90 % interval of the prediction", tolerance=0.0),
        Finding(1, (after.low, after.high), at=f"{after.time:.3g} s: {at}",
                range="90 % interval of the prediction", tolerance=0.0),
        Finding(2, before.time / after.time, at=at, note="norms, linear attention and depthwise "
                "convolutions stay in 16 bits"),
        Finding(3, span(gains), at=reached(gains, 16.0, places), range="480p with one coder, 720p "
                "with the one of 32 x 32; three devices"),
        NotModelled(4, "training, whose stages and their samples are not stated"),
        NotModelled(5, "training of another network, whose cost is not stated"),
    ]  # fmt: skip


def video_infinity() -> list[Found]:
    """Run a U-Net of VideoCrafter's kind (1.4 G parameters, 512 x 320) with a clip on each device.

    Fifty steps with guidance; frames are decoded 16 at a time. Exchanges between neighbours are
    left out: borders of a clip.
    """
    pipe, on = pipeline("modelscope-t2v"), "rtx_6000_ada"
    few, many = generate_all([
        Generation(pipe, on, Canvas(320, 512, n), dtype="fp16", decode_frames=16) for n in (96, 288)
    ])  # fmt: skip
    most = [8.0 * _frames(pipe, on, chunk) for chunk in (0, 16)]
    minutes = (many.low / 60.0, many.high / 60.0)
    gain = many.time / few.time
    return [
        Finding(0, span(most), at=f"{most[1]:.0f} decoding 16 frames at a time", range="as many as "
                "8 x 48 GB hold; decoded all at once, or 16 at a time"),
        Finding(1, minutes, at=f"{many.time / 60.0:.3g} min: 50 steps, 288 frames a device",
                range="90 % interval of the prediction", tolerance=0.0),
        NotModelled(2, "the methods before are not stated"),
        Property("time rises with the frames of one device, not of the clip",
                 2.5 < gain < 4.0, f"3 times the frames a device: {gain:.2f} times the time"),
    ]  # fmt: skip


def _frames(pipe: Pipeline, on: str, chunk: int) -> float:
    """Frames of 320 x 512 that a device holds; memory rises linearly with them."""
    counts = (96, 288)
    peaks = []
    for n in counts:
        case = Generation(pipe, on, Canvas(320, 512, n), dtype="fp16", decode_frames=chunk)
        peaks.append(max(sum(m.values()) for m in stage_memory(case).values()))
    each = (peaks[1] - peaks[0]) / (counts[1] - counts[0])
    return counts[0] + (resolve(on).memory.capacity - peaks[0]) / each


def forcing_kv() -> list[Found]:
    """Self-Forcing's network in chunks on an H200: all keys and values, or 70 % of them.

    The published 30 % less cache sets the kept share: half of the heads with windows of 50 %, the
    others 90 %. LongLive keeps the last 12 latent frames, 70 % of which are compared.
    5 and 10 s.
    """
    thin, pipe = applied("forcing-kv", static=0.5, window=0.5, rest=0.9), "self-forcing-1.3b"
    local = Treatment(kv=KvPolicy(budget=12 * 30 * 52))
    less = Treatment(kv=KvPolicy(budget=int(0.7 * 12 * 30 * 52)))
    gains: list[list[float]] = [[], [], []]
    rates = []
    for frames in (81, 161):
        small, large = Canvas(480, 832, frames), Canvas(1088, 1920, frames)
        cases = [(small, Treatment()), (small, thin), (small, local), (small, less),
                 (large, Treatment()), (large, thin)]  # fmt: skip
        found = generate_all([Generation(pipe, "h200_sxm", c, treatment=t) for c, t in cases])
        full, mine, window, shorter, big, big_mine = (g.stage("denoiser").time for g in found)
        rates.append(found[1].frames_per_s)
        for row, gain in zip(gains, (window / shorter, full / mine, big / big_mine), strict=True):
            row.append(gain)
    notes = (
        "attention over the window is a part of a chunk's time",
        "attention over kept tokens is a part of a chunk's time at 480p",
        "a cache of 70 % allows no more than 1.4 times, whatever attention's share",
    )
    clips = ("81 frames", "161 frames")
    return [
        Finding(0, span(rates), at=reached(rates, 29.0, clips), range="81 and 161 frames",
                ceiling=True),
        NotModelled(1, "sets the share of tokens that stay"),
        *(Finding(i + 2, span(g), at=reached(g, p, clips), range="81 and 161 frames", note=note)
          for i, (g, p, note) in enumerate(zip(gains, (1.35, 1.5, 2.82), notes, strict=True))),
    ]  # fmt: skip


def streamlined_inference() -> list[Found]:
    """AnimateDiff, 16 frames of 512 x 512 with guidance: all at once, or slice by slice.

    Scores of attention in memory. Sliced: an eighth to a thirty-second of the frames and halves
    of guidance at a time, one frame decoded after the other.
    """
    whole, sliced, places = [], [], []
    for form in ("fp16", "fp32"):
        case = Generation("animatediff-sd-1.5", "rtx_2080_ti", dtype=form, decode_frames=1,
                          treatment=Treatment(attention="standard"))  # fmt: skip
        memory = stage_memory(case)
        denoiser, decoder = memory["denoiser"], sum(memory["decoder"].values())
        whole.append(sum(denoiser.values()) / 1e9)
        rest = sum(denoiser.values()) - denoiser["scores"]
        for parts in (8, 16, 32):
            sliced.append(max(rest + denoiser["scores"] / parts, decoder) / 1e9)
            places.append(f"{form}, a {parts}th at a time")
    at = f"; unsliced {whole[0]:.3g} GB in fp16, {whole[1]:.3g} in fp32 (published: 42)"
    return [Finding(0, span(sliced), at=reached(sliced, 11.0, places) + at,
                    range="fp16 and fp32, 8 to 32 slices")]  # fmt: skip


def dynamicscaler() -> list[Found]:
    """Windows of 480 x 832 over larger panoramas: memory of one, time of all."""
    pipe: Pipeline = only(pipeline("wan2.1-t2v-1.3b"))
    canvases = [Canvas(480, 832, 81), Canvas(960, 1664, 81)]
    window, whole = generate_all([Generation(pipe, "a100_sxm", c) for c in canvases])
    windows = 4  # of the larger panorama, shifted at every step
    live = [g.stage("denoiser").memory["activations"] for g in (window, whole)]
    return [
        Property("memory is that of a window", live[0] < 0.3 * live[1],
                 f"{live[0] / 1e9:.2f} GB of activations against {live[1] / 1e9:.2f} whole"),
        Property("time rises with the windows, and less than attention over all of it",
                 windows * window.time < whole.time,
                 f"{windows} windows: {windows * window.time:.0f} s, whole: {whole.time:.0f} s"),
    ]  # fmt: skip
