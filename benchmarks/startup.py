"""How long `import ridgecast` and `ridgecast --help` take, and what an installation weighs.

    python benchmarks/startup.py [--runs 20] [--json]

Median over fresh interpreters, the bare interpreter start beside it; the targets are 100 ms and
250 ms. The size is that of the site-packages folder the package runs from, which is only the
default installation's in a fresh environment with nothing else in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path


def median_s(command: list[str], runs: int) -> float:
    """Median wall time [s] of a command in `runs` fresh processes, after one to warm the disk."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def site_packages_bytes() -> int:
    """Bytes of all files in site-packages."""
    folder = Path(sysconfig.get_paths()["purelib"])
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    python = [sys.executable, "-c"]
    bare = median_s([*python, "pass"], arguments.runs)
    result = {
        "interpreter_s": bare,
        "import_s": median_s([*python, "import ridgecast"], arguments.runs) - bare,
        "help_s": median_s(
            [*python, "import sys; sys.argv = ['ridgecast', '--help']; "
             "from ridgecast.cli import main; main()"],
            arguments.runs,
        ),
        "site_packages_bytes": site_packages_bytes(),
        "runs": arguments.runs,
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"bare interpreter     {1e3 * bare:7.1f} ms")
    print(f"import ridgecast     {1e3 * result['import_s']:7.1f} ms on top (target 100)")
    print(f"ridgecast --help     {1e3 * result['help_s']:7.1f} ms in all (target 250)")
    print(f"site-packages        {result['site_packages_bytes'] / 1e6:7.0f} MB (target 350)")


if __name__ == "__main__":
    main()
