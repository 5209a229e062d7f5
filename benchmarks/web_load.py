"""How fast the web page is: first paint, one answer, 50 users at once, memory over 10,000 requests.

    python benchmarks/web_load.py [--users 50] [--seconds 20] [--requests 10000] [--json]

Targets: first paint of /gemm under 1 s, an answer under 100 ms, 95 of 100 answers to 50 users
under 500 ms, memory steady. Users ask without a pause, and every question is one that nobody asked
before, so that the store of answers does not help; `repeated` asks the same one. First paint needs
playwright and a Chromium and is left out without them.

    this process --- 127.0.0.1 ---> ridgecast web --no-browser (a process of its own)
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TARGETS = {"first_paint_s": 1.0, "answer_s": 0.1, "users_p95_s": 0.5, "growth_share": 0.05}
_COUNT = itertools.count()  # of questions: no two are alike
_STEP = 1_000


class Server:
    """`ridgecast web` in a process of its own, on a free port of this machine."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "ridgecast", "web", "--port", "0", "--no-browser"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.address = next(word for word in line.split() if word.startswith("http://"))
        self.port = int(self.address.split(":")[2].split("/")[0])

    def connection(self) -> http.client.HTTPConnection:
        """Open a connection of one user, which is kept."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def cpu(self) -> float:
        """Processor seconds used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Resident bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(x for x in status.splitlines() if x.startswith("VmRSS"))
        return int(line.split()[1]) * 1024


@contextmanager
def served() -> Iterator[Server]:
    """Start a server, stop it afterwards."""
    server = Server()
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait(10)


def gemm(i: int) -> str:
    """Return the path of the i-th GEMM question."""
    m, n, k = 512 + 13 * (i % 997), 1024 + 17 * (i % 1009), 2048 + 8 * (i // 997 % 2053)
    return f"/api/gemm?m={m}&n={n}&k={k}"


def llm(i: int) -> str:
    """Return the path of the i-th question about a model in service."""
    return f"/api/llm?isl={512 + i}&osl={64 + i % 991}"


def fresh(path: Callable[[int], str]) -> Callable[[], str]:
    """Paths that nobody has asked for yet."""
    return lambda: path(next(_COUNT))


def asked(connection: http.client.HTTPConnection, path: str) -> tuple[float, bool]:
    """Seconds that one request takes, and whether it was answered."""
    start = time.perf_counter()
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        reply.read()
        good = reply.status == 200
    except (OSError, http.client.HTTPException):
        connection.close()
        good = False
    return time.perf_counter() - start, good


def share(values: list[float], part: float) -> float:
    """Quantile of values, the next one above."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, math.ceil(part * len(ranked)) - 1)] if ranked else math.nan


def summary(found: list[tuple[float, bool]], wall: float, cpu: float) -> dict[str, Any]:
    """Quantiles of requests, and what they took of the processor, which others cannot disturb."""
    times = [seconds for seconds, good in found if good]
    return {
        **{f"p{round(100 * p)}_s": share(times, p) for p in (0.5, 0.95, 0.99)},
        "requests": len(found), "errors": len(found) - len(times),
        "requests_per_s": len(found) / wall, "cpu_s": cpu / len(found),
    }  # fmt: skip


def one_at_a_time(server: Server, path: Callable[[], str], count: int) -> dict[str, Any]:
    """Latency of single answers."""
    connection = server.connection()
    for _ in range(3):
        asked(connection, path())
    start, cpu = time.perf_counter(), server.cpu()
    found = [asked(connection, path()) for _ in range(count)]
    return summary(found, time.perf_counter() - start, server.cpu() - cpu)


def many_at_once(
    server: Server, path: Callable[[], str], users: int, seconds: float
) -> dict[str, Any]:
    """Answers to users who each ask again as soon as they are answered."""
    found: list[list[tuple[float, bool]]] = [[] for _ in range(users)]
    end = time.perf_counter() + seconds

    def user(mine: list[tuple[float, bool]]) -> None:
        connection = server.connection()
        while time.perf_counter() < end:
            mine.append(asked(connection, path()))

    threads = [threading.Thread(target=user, args=(mine,)) for mine in found]
    start, cpu = time.perf_counter(), server.cpu()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = [one for mine in found for one in mine]
    return summary(every, time.perf_counter() - start, server.cpu() - cpu)


def memory(server: Server, requests: int) -> dict[str, Any]:
    """Resident bytes of the server every thousand requests, most of them new questions."""
    connection = server.connection()
    every = [server.memory()]
    failed = 0
    paths = itertools.cycle([fresh(gemm)] * 7 + [fresh(llm), lambda: "/gemm", lambda: "/api/names"])
    for i in range(requests):
        failed += not asked(connection, next(paths)())[1]
        if (i + 1) % _STEP == 0:
            every.append(server.memory())
    settled = every[min(2, len(every) - 1)]
    return {"requests": requests, "errors": failed, "resident_bytes": every,
            "growth_share": every[-1] / settled - 1.0}  # fmt: skip


def first_paints(server: Server, runs: int) -> list[float]:
    """First contentful paint of /gemm [s], each in a browser that was started for it."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return []
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser_path is None:
        return []
    found = []
    with sync_playwright() as play:
        for _ in range(runs):
            browser = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(server.address, wait_until="load")
            with suppress(Exception):
                page.wait_for_function(f"{_PAINT}.length > 0", timeout=10_000)
                found.append(page.evaluate(f"{_PAINT}[0].startTime") / 1e3)
            browser.close()
    return found


_PAINT = "performance.getEntriesByName('first-contentful-paint')"


def measured(a: argparse.Namespace) -> dict[str, Any]:
    """Everything, on two servers: one just started, one that has settled."""
    found: dict[str, Any] = {}
    with served() as server:
        found["first_paint_fresh_server_s"] = first_paints(server, 1)
    with served() as server:
        connection = server.connection()
        for path in ("/gemm", "/api/gemm?m=64", "/api/llm"):
            asked(connection, path)
        found["first_paint_s"] = first_paints(server, a.paints)
        for name, path in (("gemm", fresh(gemm)), ("llm", fresh(llm))):
            found[f"{name}_distinct"] = one_at_a_time(server, path, a.singles)
        for name, same in (("gemm", "/api/gemm?m=64"), ("llm", "/api/llm?isl=100")):
            found[f"{name}_repeated"] = one_at_a_time(server, lambda same=same: same, a.singles)
        found["users"] = many_at_once(server, fresh(gemm), a.users, a.seconds)
        if a.requests:
            found["memory"] = memory(server, a.requests)
    return found


def table(found: dict[str, Any], users: int) -> str:
    """Write what was measured for eyes."""
    lines = []
    for name, text in (("first_paint_fresh_server_s", "first paint, server just started"),
                       ("first_paint_s", "first paint")):  # fmt: skip
        times = ", ".join(f"{1e3 * t:.0f}" for t in found[name]) or "not measured (no browser)"
        lines.append(f"{text:34} {times} ms (target {1e3 * TARGETS['first_paint_s']:.0f})")
    rows = ["gemm_distinct", "gemm_repeated", "llm_distinct", "llm_repeated", "users"]
    lines.append(
        f"{'[ms]':34} {'p50':>7} {'p95':>7} {'p99':>7} {'per s':>7} {'cpu':>7} {'errors':>7}"
    )
    for name in rows:
        r = found[name]
        title = (
            f"{users} users, distinct gemm" if name == "users" else f"one {name.replace('_', ', ')}"
        )
        target = TARGETS["users_p95_s" if name == "users" else "answer_s"]
        numbers = " ".join(f"{1e3 * r[f'p{p}_s']:7.1f}" for p in (50, 95, 99))
        numbers += f" {r['requests_per_s']:7.1f} {1e3 * r['cpu_s']:7.1f} {r['errors']:7d}"
        lines.append(f"{title:34} {numbers}  (target {1e3 * target:.0f})")
    if "memory" in found:
        r = found["memory"]
        shown = " ".join(f"{b / 1e6:.0f}" for b in r["resident_bytes"])
        lines.append(f"memory every {_STEP} requests [MB]  {shown}")
        lines.append(f"growth after the first 2,000       {100 * r['growth_share']:+.1f} % "
                     f"over {r['requests']} requests, {r['errors']} errors")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--requests", type=int, default=10_000, help="of the memory test; 0 none")
    parser.add_argument("--singles", type=int, default=100)
    parser.add_argument("--paints", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    found = measured(a)
    print(json.dumps(found, indent=2) if a.json else table(found, a.users))


if __name__ == "__main__":
    main()
