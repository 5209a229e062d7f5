"""Scores that the cards of a model folder hold: computed when it was trained, on held-out rows.

Owns the reading of cards. Computes no score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..predict.bundle import open_bundle
from ..predict.device_spread import SPLIT_OF
from ..predict.time_model import read_card
from .floor import power_floor
from .report import row

__all__ = ["published_rows", "with_buckets"]

_SPLITS = ("random", "unseen_shape", "off_grid", "frontier")
_POWER_BUCKETS = {"0-20 us": "<20us", "20-200 us": "20-200us", "200-inf us": ">200us"}


def published_rows(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of all cards in a model folder, and what its index says of it.

    Raises SpecError when the folder holds no card at all or a damaged one.
    """
    own = [(folder / name / "card.json", read) for name, read in _READERS.items()]
    present = [(path, read) for path, read in own if path.exists()]
    rows: list[dict[str, Any]] = []
    meta: dict[str, Any] = {"notes": []}
    if (folder / "card.json").exists() or not present:
        card = open_bundle(folder).card
        meta = {
            "trained": {key: card[key] for key in ("ridgecast", "created", "seed") if key in card},
            "notes": [str(note) for note in card.get("notes", ())],
        }
        for model in card["models"]:
            rows += _time(model)
        rows += _operators(card, folder)
    else:
        meta["notes"] = ["the folder holds no time models"]
    for path, read in present:
        rows += read(read_card(path))
    return _first_of_each(rows), meta


def _first_of_each(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without those that another model of the folder answers in their stead.

    Of a device whose siblings are measured the prior's scores with its family known are history.
    """
    answered: set[tuple[Any, ...]] = set()
    kept: list[dict[str, Any]] = []
    for one in rows:
        key = tuple(one[name] for name in ("hardware", "dtype", "split", "bucket"))
        if one["split"] == SPLIT_OF["family"]:
            if key in answered:
                continue
            answered.add(key)
        kept.append(one)
    return kept


def _time(model: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    labels = {key: model[key] for key in ("hardware", "dtype", "collection")}
    scores = model.get("scores", {})
    for split in _SPLITS:
        if split in scores:
            yield from with_buckets(scores[split], target="time", split=split, **labels)


def _operators(card: Mapping[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """Scores of the operations' models, and of those for devices without measurements."""
    for line in card.get("operators", ()):
        labels = {key: line[key] for key in ("op", "hardware", "collection")}
        if line.get("kind"):
            labels["op"] += f", {line['kind']}"
        for part in line["scores"]:
            yield _operator_row(part, **labels)
    for path in sorted((folder / "operators").glob("pooled-*/card.json")):
        pooled = read_card(path)
        for part in pooled.get("scores", ()):
            yield _operator_row(part, op=pooled["op"], hardware=part["hardware"])


def _operator_row(part: Mapping[str, Any], **labels: Any) -> dict[str, Any]:
    known = {"derated_mape": part.get("analytic_mape"), "split": part["split"]}
    return row(part, target="time_operator", **labels, **known)


def with_buckets(scores: Mapping[str, Any], **labels: Any) -> Iterator[dict[str, Any]]:
    """Yield the row over all sizes, then one for each bucket that was scored."""
    yield row(scores, **labels)
    for bucket, part in scores.get("buckets", {}).items():
        if "mape" in part:
            yield row(part, bucket=bucket, **labels)


def _prior(card: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Devices held out with all their rows; a card of `prior` or `siblings` may list them."""
    scores = card.get("scores", ())
    for part in scores if isinstance(scores, list | tuple) else ():
        labels = {key: part[key] for key in ("hardware", "dtype")}
        labels["split"] = SPLIT_OF["family" if part.get("kept") == "family" else "no relative"]
        yield from with_buckets(part, target="time", **labels)


def _power(card: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Power and energy; scores over folds where the card has them, baselines from its one split.

    The plain baseline of power is the board's limit, the derated one the median of the training
    labels of that device and format.
    """
    least, most = power_floor()
    floor = {"floor_median": least, "reason": f"labels differ by {least:.0%} to {most:.0%}"}
    single = card.get("scores", {})
    for key, part in (card.get("scores_crossed") or single).items():
        name, _, size = key.partition(" ")
        hardware, _, dtype = name.partition("/")
        other = single.get(key, {})
        labels = {"hardware": hardware, "dtype": dtype, "split": "unseen_shape"}
        labels["bucket"] = _POWER_BUCKETS.get(size, "all")
        labels["collection"] = ", ".join(c for c in card.get("data", ()) if hardware in c)
        known = {
            "coverage": part.get("covered_90"),
            "width": other.get("median_high_over_low"),
            "roofline_mape": other.get("mape_board_power"),
            "derated_mape": other.get("mape_constant_median"),
        }
        yield row(part, target="power", **labels, **known, **floor)
        if "energy_covered_90" in other:
            errors = {n: other.get(f"energy_{n}") for n in ("mape", "median", "p90", "bias")}
            held = {"rows": other.get("energy_rows", other["rows"]), **errors}
            known = {"coverage": other["energy_covered_90"]}
            yield row(held, target="energy", **labels, **known, **floor)
    for key, part in card.get("scores_transferred", {}).items():
        hardware, _, dtype = key.partition("/")
        if dtype and "mape" in part:
            labels = {"hardware": hardware, "dtype": dtype, "split": "unseen_device"}
            labels["collection"] = ", ".join(c for c in card.get("data", ()) if hardware in c)
            known = {"coverage": part.get("covered_90")}
            yield row(part, target="power", **labels, **known, **floor)


def _clblast(card: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for key, split in (
        ("scores_unseen_kernel", "unseen_config"), ("scores_unseen_device", "unseen_device"),
    ):  # fmt: skip
        for hardware, part in card.get(key, {}).items():
            kernels = card.get("kernels", {}).get(hardware)
            reason = f"{kernels} compiled kernels" if kernels else ""
            labels = {"hardware": hardware, "dtype": "fp32", "split": split, "reason": reason}
            yield row(part, target="time_config", **labels)


# siblings first: the ladder asks them before the prior
_READERS = {"siblings": _prior, "prior": _prior, "power": _power, "clblast_sgemm": _clblast}
