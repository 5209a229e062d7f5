"""Fleets of several device types, and what the hardware of a training run is made of."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...scenario import Points, Scenario, Traffic, solve_points
from ...scenario.footprint import footprint
from ...scenario.solve import largest_batch
from ...search import Bucket, DeviceType, plan_fleet
from ...search.fleet import single_types
from ..verdict import Finding, Found, NotModelled, Property
from .kit import span

__all__ = ["flops_to_footprints", "melange"]

# Mélange ------------------------------------------------------------------------------------

# USD/h that the source states (A10G: AWS g5.xlarge; the A10 of the catalogue is its near twin)
_PRICES = {"l4": 0.70, "a10": 1.01, "a100_sxm": 3.67, "h100_sxm": 7.516}
# LMSYS-Chat-1M (arXiv:2309.11998), from which the source draws its short requests: mean prompt
# and answer 69.5 and 214.5 tokens
_PROMPT, _ANSWER = 70, 215
_RATES = (1, 2, 4, 8, 16, 32)  # requests/s, as in the source
_LIMITS = (0.120, 0.040)  # s a token, as in the source


def _served(device: str, limits: tuple[float, ...]) -> list[float]:
    """Requests/s of Llama-2-7B in fp16 that one device serves within each TPOT limit."""
    case = Scenario("llama-2-7b", device, traffic=Traffic(isl=_PROMPT, osl=_ANSWER), dtype="fp16")
    most = largest_batch(case.made(), case)
    batch = np.unique(np.geomspace(1, max(most, 1), 24).astype(int))
    found = solve_points(case, Points.of(batch, _PROMPT, _ANSWER))
    rate = found["output_tokens_per_s"] / _ANSWER
    return [float(np.max(rate[found["tpot"] <= limit], initial=0.0)) for limit in limits]


def melange() -> list[Found]:
    """Cost of the best mix against that of each single GPU type, over request rates and limits."""
    types = [DeviceType(name, price) for name, price in _PRICES.items()]
    able = np.array([_served(name, _LIMITS) for name in _PRICES])
    saved: dict[tuple[float, int, str], float] = {}
    below = True
    for i, limit in enumerate(_LIMITS):
        for rate in _RATES:
            load = [Bucket("chat", float(rate))]
            mixed = plan_fleet(load, types, able[None, :, i])
            for name, alone in single_types(load, types, able[None, :, i]).items():
                if alone is not None:
                    saved[limit, rate, name] = 100.0 * (1.0 - mixed.cost / alone.cost)
                    below &= mixed.cost <= alone.cost + 1e-9
    near = min(saved, key=lambda key: abs(saved[key] - 77.0))
    most = max(saved, key=lambda key: saved[key])
    return [
        Finding(0, span(list(saved.values())),
                at=f"{saved[near]:.3g} % against {near[2]} alone at {near[1]} requests/s, "
                f"{1e3 * near[0]:.0f} ms a token; {saved[most]:.3g} % at {most[1]} against "
                f"{most[2]}, which then is nearly idle",
                range="1 to 32 requests/s of chat, 120 and 40 ms a token; L4, A10, A100, H100"),
        Property("a mix costs no more than any single type", bool(below),
                 f"{len(saved)} loads and types"),
    ]  # fmt: skip


# From FLOPs to Footprints -------------------------------------------------------------------

# 6 N D. GPT-4 is not disclosed: 13e12 tokens through two experts of 111e9 parameters (SemiAnalysis,
# July 2023). The source's other models follow from the same rule, with what their makers state.
_GPT_4 = 6 * 222e9 * 13e12


def _consumed(mfu: float, years: float, flops: float = _GPT_4) -> float:
    """A100s used up, busy all their life."""
    given: Mapping[str, float] = {"mfu": mfu, "lifetime_years": years, "busy_share": 1.0}
    devices = footprint("a100_sxm_40gb", flops=flops, given=given).devices
    return float(np.ceil(devices.value)) if devices else float("nan")


def flops_to_footprints() -> list[Found]:
    """GPUs that a training run uses up, by utilisation and lifetime."""
    sweep = {
        (mfu, years): _consumed(mfu, years) for mfu in (0.20, 0.35, 0.50) for years in (1, 2, 3)
    }
    worst = sweep[0.20, 1]
    threefold = 100.0 * (1.0 - _consumed(0.60, 1) / worst)
    both = {years: 100.0 * (1.0 - _consumed(0.60, years) / worst) for years in (3, 5)}
    others = {"Llama 2 70B": (6 * 70e9 * 2e12, 122), "Mistral Large 2": (6 * 123e9 * 2e12, 215)}
    agree = all(_consumed(0.35, 2, flops) == count for flops, count in others.values())
    return [
        Finding("gpus_consumed", span(list(sweep.values())), tolerance=0.01,
                at=f"{worst:.0f} at MFU 20 % and 1 year, {sweep[0.50, 3]:.0f} at 50 % and 3 years",
                range="MFU 20 to 50 %, 1 to 3 years of 365 days, 312 TFLOP/s"),
        NotModelled("toxic_element_mass_max", "the mass of toxic elements in one GPU that "
                    "footprint.toml holds is this figure over 8,800 GPUs"),
        Finding("gpu_requirement_reduction", threefold, at="MFU 60 % against 20 %: 1 - 1/3",
                tolerance=0.01),
        Finding("gpu_requirement_reduction_max", (both[3], both[5]), tolerance=0.01,
                at=f"{both[5]:.1f} % with 5 years of life, not the 3 that are stated with it: "
                f"those give {both[3]:.1f} %",
                range="MFU 20 to 60 % together with 1 to 3, and 1 to 5 years"),
        NotModelled("heavy_metal_mass_share", "a measurement; an input here"),
        NotModelled("elements_identified", "a measurement"),
        Property("the counts of the other models follow from 6 N D, MFU 35 %, 2 years", agree,
                 ", ".join(f"{name}: {count}" for name, (_, count) in others.items())),
    ]  # fmt: skip
