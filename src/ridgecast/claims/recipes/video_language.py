"""Video read by language models: caches that grow with frames, or do not; decoding beside prefill.

Tokens of a frame and frames of a clip are swept where the source leaves them open.
"""

from __future__ import annotations

from ...hardware import resolve
from ...models.network import Layout, Tokens
from ...models.registry import get
from ...scenario import Machine, engine, formats_of
from ...scenario.memory import kv_bytes, weight_bytes
from ...scenario.passes import Job, run_passes
from ...techniques import KvPolicy, Treatment
from ..verdict import Finding, Found, NotModelled, Property
from .kit import reached, span

__all__ = ["flash_vstream", "flexmem", "quickvideo"]


def _room(model: str, on: str) -> tuple[float, float]:
    """Bytes that weights leave on a device, and bytes of cache a token, 16 bits."""
    net, hw, made = get(model), resolve(on), engine("hf")
    formats, t = formats_of(net, hw, "bf16"), Treatment(kv=KvPolicy(page=0))
    free = hw.memory.capacity - made.context - made.workspace
    return free - weight_bytes(net, formats, Layout(), t), float(
        kv_bytes(net, formats, Layout(), t, 1.0)
    )


def flexmem() -> list[Found]:
    """Fit a 7 B reader on 24 GB: keys and values of 144 to 196 tokens a frame, or a share.

    Kept on the device: 5 to 30 % of a chunk's entries (swept: the rate is not stated).
    """
    free, each = _room("qwen2.5-7b", "rtx_3090")
    full = [free / (each * tokens) for tokens in (144, 196)]
    thin, places = [], []
    for tokens in (144, 196):
        for share in (0.05, 0.1, 0.3):
            thin.append(free / (each * tokens * share))
            places.append(f"{tokens} tokens a frame, {100 * share:.0f} % kept")
    return [
        Finding(0, span(thin), at=reached(thin, 1000.0, places), range="144 and 196 tokens a "
                "frame, 5 to 30 % kept"),
        Property("the whole cache ends before 1000 frames", max(full) < 1000.0,
                 f"{full[1]:.0f} to {full[0]:.0f} frames fit beside the weights"),
    ]  # fmt: skip


def quickvideo() -> list[Found]:
    """Decode for up to a minute, then prefill; or two to three times as fast, beside prefill.

    An hour's video in 512 to 3600 frames of 64 to 196 tokens, 7 B on an A100, chunks of 8192.
    """
    net, hw = get("qwen2.5-7b"), resolve("a100_sxm")
    machine = Machine(hw, Layout(), formats_of(net, hw, "bf16"), engine("hf"))
    sizes = [(f, n) for f in (512, 1024, 3600) for n in (64, 196)]
    jobs = []
    for frames, each in sizes:
        whole, part = float(frames * each), 8192.0
        jobs.append((whole / part, Job(net, machine, [Tokens(1, part, max(whole / 2.0, part))])))
    runs = run_passes([job for _, job in jobs])
    saved, places = [], []
    for (frames, each), (times, _), run in zip(sizes, jobs, runs, strict=True):
        prefill = times * float(run.time[0])
        for faster in (2.0, 3.0):
            saved.append(60.0 + prefill - max(60.0 / faster, prefill))
            places.append(f"{frames} frames of {each} tokens: prefill {prefill:.3g} s")
    return [
        NotModelled(0, "an input: decoding on several cores"),
        Finding(1, span(saved), at=reached(saved, 60.0, places), range="512 to 3600 frames of 64 "
                "and 196 tokens, decoding 2 and 3 times as fast, 60 s before"),
        NotModelled(2, "an input: a decoder's time"),
    ]  # fmt: skip


def flash_vstream() -> list[Found]:
    """Time of a token after 50 and 500 frames of 256 tokens: all of them cached, or 681 tokens."""
    net, hw = get("llama-2-7b"), resolve("a100_sxm")
    machine = Machine(hw, Layout(), formats_of(net, hw, "bf16"), engine("hf"))
    jobs = [Job(net, machine, [Tokens(1, 1, 64.0 + n)]) for n in (681.0, 50 * 256.0, 500 * 256.0)]
    fixed, few, many = (1e3 * float(r.time[0]) for r in run_passes(jobs))
    return [
        Property("with all frames cached a token takes longer and longer; a memory of fixed size "
                 "takes less than either", fixed < few < many and many > 2.0 * few,
                 f"{few:.3g} and {many:.3g} ms a token after 50 and 500 frames, {fixed:.3g} at any "
                 "length"),
    ]  # fmt: skip
