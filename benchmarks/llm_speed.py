"""How long one answer about a whole model takes, and a search of many configurations.

    python benchmarks/llm_speed.py

First answer: a fresh process, from the command to its last byte. Warm: the median of twenty in one
process. Search: the space below, in one process, with its number of configurations.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from ridgecast.scenario import Scenario, Traffic, evaluate
from ridgecast.search.serving_plan import Limits, Space, plan_serving

CASES = (
    ("llama-3.1-70b", "h100_sxm", 8),
    ("deepseek-r1", "h200_sxm", 8),
    ("gpt-oss-120b", "b200_sxm", 2),
)


def first(model: str, device: str, count: int) -> float:
    command = [sys.executable, "-m", "ridgecast", "llm", model, "--on", f"{device}:{count}",
               "--batch", "16", "--json"]  # fmt: skip
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def warm(model: str, device: str, count: int) -> float:
    case = Scenario(model, device, count, traffic=Traffic(2048, 512, 16))
    evaluate(case)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        evaluate(case)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def search() -> tuple[float, int]:
    space = Space(
        ("h100_sxm", "h200_sxm", "a100_sxm", "b200_sxm", "l40s"), dtypes=("bf16", "fp8", "int4_wo"),
        kv_dtypes=("", "fp8"), techniques=("", "kivi"), batches=320, disaggregate=True,
    )  # fmt: skip
    start = time.perf_counter()
    plan = plan_serving("llama-3.1-70b", space, Traffic(2048, 500, request_rate=20.0),
                        Limits(ttft=1.0, tpot=0.03))  # fmt: skip
    return time.perf_counter() - start, plan.searched


def main() -> None:
    for case in CASES:
        starts = [first(*case) for _ in range(3)]
        print(f"{case[0]:16s} first {min(starts):.2f} s, warm {1e3 * warm(*case):.1f} ms")
    for name in ("first", "again"):
        seconds, count = search()
        print(f"search, {name}: {count} configurations in {seconds:.1f} s")


if __name__ == "__main__":
    main()
