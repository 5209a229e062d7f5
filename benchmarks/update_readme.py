"""Put the accuracy tables between the markers of the README (summary) and docs/accuracy.md.

python benchmarks/update_readme.py            the scores of the shipped models
python benchmarks/update_readme.py --check    exit 1 when a page differs
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ridgecast.accuracy import run

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- accuracy:begin -->", "<!-- accuracy:end -->"


def with_table(path: Path, table: str) -> str:
    """Text of a page with the table between its markers."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise SystemExit(f"{path.name} lacks {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{table.strip()}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check, report, late = parser.parse_args().check, run(), []
    tables = {"README.md": report.summary(), "docs/accuracy.md": report.to_markdown(compact=True)}
    for name, table in tables.items():
        path = ROOT / name
        new = with_table(path, table)
        if new == path.read_text(encoding="utf-8"):
            continue
        late.append(name)
        if not check:
            fresh = path.with_name(f".{path.name}.{os.getpid()}")
            fresh.write_text(new, encoding="utf-8")
            fresh.replace(path)
    if check and late:
        sys.exit(f"the accuracy table is out of date: {', '.join(late)}")


if __name__ == "__main__":
    main()
