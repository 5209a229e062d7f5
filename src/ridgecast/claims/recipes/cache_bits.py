"""Caches in few bits: bytes, the batch that fits, and what follows for a served model.

Weights of few bits are in `low_bits`.
"""

from __future__ import annotations

from dataclasses import replace

from ...scenario import Points, Scenario, solve_points
from ..verdict import Finding, Found, Property
from .kit import reached, span
from .pairs import case, held, most, step, tokens_per_s

__all__ = ["kivi", "mikv", "xquant", "zipcache"]


def _bits(use: str, model: str = "llama-2-7b") -> float:
    """Bits that stand for an element of keys and values."""
    made = case(model, "a100_sxm", use=use).made()
    return made.formats.kv.bits_each * made.treatment.kv.elements


# KIVI ---------------------------------------------------------------------------------------


def kivi() -> list[Found]:
    """2-bit cache in an eager engine: memory at one batch, batch that fits, throughput there."""
    memory, batch, rate, places = [], [], [], []
    for model in ("llama-2-7b", "llama-2-13b"):
        for lengths in ((161, 338), (512, 512)):
            plain = case(model, "a100_sxm", lengths=lengths, engine="hf")
            for residual in (32, 128):
                small = replace(plain, techniques=f"kivi:residual={residual}")
                limit, more = most(plain), most(small)
                memory.append(held(plain, limit) / held(small, limit))
                batch.append(more / limit)
                rate.append(tokens_per_s(small, more) / tokens_per_s(plain, limit))
                places.append(f"{model}, {lengths[0]} + {lengths[1]} tokens, the last {residual} "
                              "in 16 bits")  # fmt: skip
    where = "A100, largest batches; 161 + 338 and 512 + 512 tokens, the last 32 or 128 in 16 bits"
    return [
        Finding("peak_memory_reduction", span(memory), at=reached(memory, 2.6, places),
                range=where),
        Finding("batch_size_gain_max", span(batch), at=reached(batch, 4.0, places), range=where),
        Finding("throughput_gain", span(rate), at=reached(rate, 2.35, places), range=where,
                note="the published 16-bit baseline also copies its cache at every step"),
    ]  # fmt: skip


# XQuant -------------------------------------------------------------------------------------


def xquant() -> list[Found]:
    """Bytes of quantised layer inputs against keys and values in 16 bits; and their price."""
    whole = 16.0 / _bits("xquant:bits=16:group=65536")
    four = [16.0 / _bits(f"xquant:bits=4:group={g}") for g in (64, 128, 256)]
    three = [16.0 / _bits(f"xquant:bits=3:group={g}") for g in (64, 128, 256)]
    # deltas between layers at 2 bits, the first three of 32 layers at 4
    two = [16.0 * 32 / (3 * 16.0 / wide + 29 * _bits(f"xquant:bits=2:group={g}"))
           for g, wide in zip((64, 128, 256), four, strict=True)]  # fmt: skip
    slow, fast = (
        step(case("llama-2-7b", "h100_sxm", lengths=(n, 128), use="xquant"), 8)
        / step(case("llama-2-7b", "h100_sxm", lengths=(n, 128)), 8)
        for n in (4096, 128)
    )
    groups = "groups of 64 to 256, a 16-bit scale and a zero point each"
    return [
        Finding(0, whole, at="every head with its own keys: one tensor of two", tolerance=0.02),
        Finding(1, span(four), at="4 bits, groups of 128", range=groups),
        Finding(2, span(three), at="3 bits", range=groups),
        Finding(3, span(two), at="2 bits, the first three layers at 4", range=groups),
        Property("projecting keys and values again costs more where the context is long",
                 slow > fast, f"time a token on an H100, batch 8: {slow:.3g} times at 4K, "
                 f"{fast:.3g} times at 128 tokens"),
    ]  # fmt: skip


# ZipCache, MiKV -----------------------------------------------------------------------------


def zipcache() -> list[Found]:
    """Mixed 4 and 2 bits; flash attention kept, against the same bits chosen by full scores."""
    bits = 16.0 / _bits("zipcache:salient=0.6", "mistral-7b")
    first, later, memory, places = [], [], [], []
    for batch in (1, 2, 4, 8):
        rival = case("llama-3-8b", "a100_sxm", lengths=(4096, 128), engine="hf",
                     use="mikv:salient=0.6:high=4:low=2")  # fmt: skip
        mine = replace(rival, techniques="zipcache")
        first.append(100.0 * (1.0 - _first(mine, batch) / _first(rival, batch)))
        later.append(100.0 * (1.0 - step(mine, batch) / step(rival, batch)))
        memory.append(100.0 * (1.0 - held(mine, batch) / held(rival, batch)))
        places.append(f"batch {batch}")
    where = "Llama-3-8B, 4,096 tokens, A100, eager, batch 1 to 8; against MiKV (assumed: not named)"
    return [
        Finding("kv_cache_compression", bits, at="60 % of the tokens at 4 bits, 40 % at 2"),
        Finding("prefill_latency_reduction", span(first), at=reached(first, 37.3, places),
                range=where, note="scores through memory once; how often the published baseline "
                "moves them is not stated"),
        Finding("decode_latency_reduction", span(later), at=reached(later, 56.9, places),
                range=where, note="one decode step moves few scores: what the baseline spends "
                "there is not in bytes"),
        Finding("gpu_memory_reduction", span(memory), at=reached(memory, 19.8, places),
                range=where),
    ]  # fmt: skip


def _first(s: Scenario, batch: int) -> float:
    """Seconds to the first token."""
    return float(solve_points(s, Points.of(batch, s.traffic.isl, s.traffic.osl))["ttft"][0])


def mikv() -> list[Found]:
    """Bytes of the cache follow the mix."""
    shares = {
        share: 100.0 / 16.0 * _bits(f"mikv:salient={share}") for share in (0.0, 0.2, 0.5, 1.0)
    }
    grows = all(a < b for a, b in zip(shares.values(), list(shares.values())[1:], strict=False))
    said = ", ".join(f"{100 * k:.0f} %: {v:.3g} %" for k, v in shares.items())
    told = f"important tokens at 16 bits, others at 2; bytes of the 16-bit cache: {said}"
    return [Property("cache bytes follow the share of important tokens", grows, told)]
