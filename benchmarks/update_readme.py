"""Put the accuracy table between the README's accuracy markers; docs/accuracy.md includes it.

python benchmarks/update_readme.py            the scores of the shipped models
python benchmarks/update_readme.py --check    exit 1 when the README differs
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ridgecast.accuracy import run

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- accuracy:begin -->", "<!-- accuracy:end -->"


def with_table(text: str, table: str) -> str:
    """README text with the table between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise SystemExit(f"{README.name} lacks {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{table.strip()}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    old = README.read_text(encoding="utf-8")
    new = with_table(old, run().to_markdown(compact=True))
    if parser.parse_args().check:
        sys.exit("the README's accuracy table is out of date" if new != old else 0)
    fresh = README.with_name(f".{README.name}.{os.getpid()}")
    fresh.write_text(new, encoding="utf-8")
    fresh.replace(README)


if __name__ == "__main__":
    main()
