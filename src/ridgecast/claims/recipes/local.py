"""Language models on machines with one memory for processor and graphics."""

from __future__ import annotations

import numpy as np

from ...hardware import resolve
from ...techniques import Storage, Treatment
from ..verdict import Found, Property
from .pairs import bytes_of_weights, case, step

__all__ = ["apple_silicon_llm"]

# llama.cpp's formats: bits with scales (ggml's block sizes: 32 weights a 16-bit scale; Q2_K: 16
# weights a 4-bit scale and minimum, 256 a pair of 16-bit ones)
_Q4, _Q2 = 4.5, 2.625
_GRAPHICS = 0.75  # share of the memory that the graphics part is given by default


def _packed(bits: float, unpack: float = 2.0) -> Treatment:
    stored = Storage(bits, unpack=unpack)
    return Treatment(weights=stored, experts=stored, ends=stored)


def apple_silicon_llm() -> list[Found]:
    """Decode against bandwidth and bits; formats that cost operations; what fits where."""
    macs = ("m2_ultra", "m2_max", "m4_pro")
    rate, share = {}, []
    for on in macs:
        s = case("llama-3.1-8b", on, use=_packed(_Q4), lengths=(64, 128))
        rate[on] = 1.0 / step(s)
        share.append(bytes_of_weights(s) * rate[on] / resolve(on).memory.bandwidth)
    ordered = rate["m2_ultra"] > rate["m2_max"] > rate["m4_pro"]
    even = max(share) / min(share)

    four = 1.0 / rate["m4_pro"]
    operations = np.array([2.0, 4.0, 8.0, 16.0, 32.0, 64.0])
    two = [step(case("llama-3.1-8b", "m4_pro", use=_packed(_Q2, float(n)), lengths=(64, 128)))
           for n in operations]  # fmt: skip
    slower = operations[np.array(two) > four]
    said = (f"4.5 bits: {1e3 * four:.3g} ms a token; 2.6 bits: {1e3 * two[0]:.3g} ms with 2 "
            f"operations a weight, {1e3 * two[-1]:.3g} ms with 64")  # fmt: skip

    held = bytes_of_weights(case("llama-3.1-405b", "m2_ultra", use=_packed(_Q2)))
    room = _GRAPHICS * resolve("m2_ultra").memory.capacity
    pair = 2 * resolve("rtx_a6000").memory.capacity
    return [
        Property("decode follows the bandwidth", ordered and even < 1.5,
                 ", ".join(f"{on} {rate[on]:.3g} tokens/s" for on in macs)
                 + f" for 8B at 4.5 bits; {100 * min(share):.0f} to {100 * max(share):.0f} % of "
                 "the bandwidth"),
        Property("fewer bits can be slower", slower.size > 0 and two[0] < four,
                 f"{said}; slower from {slower.min() if slower.size else np.inf:.0f} on (M4 Pro)"),
        Property("405B fits one M2 Ultra and not two A6000", held < room and held > pair,
                 f"{held / 1e9:.3g} GB at 2.6 bits; {room / 1e9:.3g} and {pair / 1e9:.3g} GB"),
    ]  # fmt: skip
