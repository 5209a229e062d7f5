"""Scores of the serving model on measured points, networks never seen.

    python benchmarks/serving_accuracy.py [--data FILE.csv] [--out DIR] [--write]

Split unseen_network: constants of engines are fitted on Llama-3.1, Qwen3-32B and gpt-oss alone, all
other networks are scored. Copies are dropped. Rows whose workers nobody stated are answered with
the nearest published recipe (assumed) and scored too. --write puts the table into README.md and
docs/accuracy.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ridgecast.accuracy.serving import TRAIN_MODELS, network
from ridgecast.scenario.measured import answer_rows, rows_of
from ridgecast.store import import_files, select, write_table
from ridgecast.store.importers.inferencex import assume

DATA = Path(__file__).resolve().parents[2] / "shared/data/silicon/serving_end_to_end.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--write", action="store_true")
    a = parser.parse_args()
    table = import_files([a.data])
    table = select(table, np.flatnonzero(table["valid"].astype(bool)))
    known = np.isfinite(np.where(table["mode"] == "agg", table["tp"], table["decode_tp"]))
    table = assume(table)
    found = answer_rows(rows_of(table))
    train = np.isin([network(m) for m in table["model"]], TRAIN_MODELS)
    agg = table["mode"] == "agg"
    told = np.isfinite(found["tpot_s"])
    print(f"rows {len(told)} after copies, answered {told.mean():.1%}")
    for reason in sorted(set(found["reason"][~told].tolist()))[:8]:
        print("  no answer:", reason[:150], int((found["reason"] == reason).sum()))
    parts = {
        "all networks": train | ~train, "train networks": train, "unseen_network": ~train,
        "unseen_network, aggregated": ~train & agg,
        "unseen_network, layout stated or published": ~train & known,
        "unseen_network, prefill and decode apart": ~train & ~agg,
    }  # fmt: skip
    for engine in ("vllm", "sglang", "trtllm"):
        parts[f"unseen_network, aggregated, {engine}"] = ~train & agg & (table["engine"] == engine)
    lines: dict[str, list[str]] = {part: [] for part in parts}
    for name in ("tpot", "ttft"):
        for part, rows in parts.items():
            scores = show(f"{name} {part}", table[f"{name}_s"], found, name, rows & told)
            lines[part] += scores if name == "tpot" else scores[1:]
    if a.write:
        write(lines, told.mean())
    if a.out:
        a.out.mkdir(parents=True, exist_ok=True)
        both = {**table, **{f"our_{k}": v for k, v in found.items()}}
        write_table(a.out / "serving.parquet", both)


def show(title: str, truth: np.ndarray, found: dict, name: str, rows: np.ndarray) -> list[str]:
    """Print rows, median, MAPE, p90, bias and coverage of the 90 % intervals; return the cells."""
    t, p = truth[rows], found[f"{name}_s"][rows]
    low, high = found[f"{name}_low_s"][rows], found[f"{name}_high_s"][rows]
    error = np.abs(p / t - 1.0)
    inside = ((t >= low) & (t <= high)).mean()
    print(f"{title:58s} rows {len(t):5d}  median {np.median(error):6.1%}  MAPE {error.mean():6.1%}"
          f"  p90 {np.quantile(error, 0.9):6.1%}  bias {np.median(np.log(p / t)):+.3f}"
          f"  covered {inside:6.1%}")  # fmt: skip
    shown = (np.median(error), error.mean(), np.quantile(error, 0.9))
    return [str(len(t)), " / ".join(f"{100 * v:.1f}" for v in shown) + f" % ({100 * inside:.0f})"]


def write(lines: dict[str, list[str]], answered: float) -> None:
    """Put the table between its marks in the README and on the accuracy page."""
    text = (
        "**Models in service.** Time per output token and to the first token on measured "
        "services: median / mean / 90 % quantile of |predicted / measured - 1| (truths in a "
        "hundred inside the 90 % interval). `unseen_network`: the constants of engine "
        "profiles are fitted on Llama-3.1, Qwen3-32B and gpt-oss, the others are DeepSeek, "
        "Kimi, MiniMax, GLM-5, Qwen3.5 and Qwen3-235B. Copies are dropped; "
        f"{100 * answered:.1f} % of the rows are answered. What the measuring scripts made "
        "requests wait for, how many sequences a worker held and how many tokens were drafted was "
        "looked up in their published recipes, and the form of the model was "
        "chosen with all points in sight: expect somewhat worse elsewhere. Repeats of one "
        "configuration differ by 20 / 31 % (TPOT) and 18 / 64 % (TTFT), median and mean: the "
        "label floor, most of it drafting and workers that rows do not state. LightGBM on the "
        "fields of a configuration errs by 44 / 45 % and 58 / 67 % on unseen networks "
        "(`benchmarks/serving_baseline.py`).\n\n"
        "| points | rows | TPOT | TTFT |\n|---|--:|---|---|\n"
    )
    text += "".join(f"| {part} | {' | '.join(cells)} |\n" for part, cells in lines.items())
    root = Path(__file__).resolve().parents[1]
    for path in (root / "README.md", root / "docs" / "accuracy.md"):
        page = path.read_text(encoding="utf-8")
        head, _, rest = page.partition("<!-- serving:begin -->\n")
        tail = rest.partition("<!-- serving:end -->")[2]
        block = f"<!-- serving:begin -->\n\n{text}\n<!-- serving:end -->"
        path.write_text(head + block + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
