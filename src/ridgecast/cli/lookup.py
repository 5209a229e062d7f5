"""Commands that look something up: hardware, ops, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import SpecError
from .options import Json
from .output import write_json

__all__ = ["doctor", "hardware", "ops"]


def hardware(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME | compare A B]",
            help="A device, or two to compare; a TOML file works too.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List devices, show one with its sources, or compare two."""
    words = names or []
    if not words:
        _list_devices(json)
    elif words[0] == "compare":
        if len(words) != 3:
            raise SpecError(f"hardware compare: got {len(words) - 1} devices, need two: A B")
        _compare_devices(words[1], words[2], json)
    elif len(words) == 1:
        _show_device(words[0], json)
    else:
        raise SpecError(
            f"hardware: got {' '.join(words)!r}, need one NAME, or `hardware compare A B`"
        )


def _device_row(name: str) -> dict[str, Any]:
    from ..hardware import get

    hw = get(name)
    return {
        "name": hw.name,
        "title": hw.title,
        "vendor": hw.vendor,
        "architecture": hw.architecture,
        "form": hw.form,
        "sm_count": hw.sm_count,
        "rates_flops_per_s": dict(hw.rates),
        "memory_bytes": hw.memory.capacity,
        "memory_bytes_per_s": hw.memory.bandwidth,
        "board_power_w": hw.board_power,
    }


def _list_devices(json: bool) -> None:
    from ..hardware import names

    rows = [_device_row(name) for name in names()]
    if json:
        return write_json(rows)
    from .render import print_rows

    for row in rows:
        rates = row["rates_flops_per_s"]
        row["bf16_or_fp16_flops_per_s"] = rates.get("bf16", rates.get("fp16"))
    columns = ("name", "architecture", "form", "sm_count", "bf16_or_fp16_flops_per_s")
    return print_rows(rows, columns=(*columns, "memory_bytes", "memory_bytes_per_s"))


def _show_device(name: str, json: bool) -> None:
    from ..hardware import describe, resolve

    hw = resolve(name)
    rows = [row._asdict() for row in describe(hw)]
    if json:
        return write_json({"name": hw.name, "fields": rows})
    from .render import print_rows

    return print_rows(rows, columns=("field", "text", "kind", "source"), title=hw.title)


def _compare_devices(a: str, b: str, json: bool) -> None:
    from ..hardware import compare, resolve

    one, two = resolve(a), resolve(b)
    rows = [row._asdict() for row in compare(one, two)]
    if json:
        return write_json({"a": one.name, "b": two.name, "fields": rows})
    from .render import print_rows

    shown = [
        {"field": r["field"], one.name: r["a_text"], two.name: r["b_text"], "ratio": r["ratio"]}
        for r in rows
    ]
    return print_rows(shown)


def ops(
    name: Annotated[str | None, typer.Argument(show_default=False)] = None, json: Json = False
) -> None:
    """List the operations, or show the fields of one."""
    from ..ops import op_class, op_names
    from .render import print_rows, print_text

    if name is None:
        rows = [_op_line(op_class(op), op) for op in op_names()]
        return write_json(rows) if json else print_rows(rows, columns=("name", "what"))
    row = _op_row(op_class(name), name)
    if json:
        return write_json(row)
    print_rows(row["fields"], title=row["what"])
    return print_text(f"ridgecast predict {name} {row['example']} --on h200_sxm")


_GEMM = ("(batched) matrix multiplication, 2 m n k flop", "4096x4096x4096 --dtype bf16")


def _op_line(cls: Any, name: str) -> dict[str, Any]:
    what, example = (getattr(cls, "what", ""), getattr(cls, "example", ""))
    if name == "gemm":
        what, example = _GEMM
    return {"name": name, "what": what, "example": example}


def _op_row(cls: Any, name: str) -> dict[str, Any]:
    import dataclasses

    missing = dataclasses.MISSING
    infos = cls.infos() if hasattr(cls, "infos") else {}
    fields: list[dict[str, Any]] = []
    for f in dataclasses.fields(cls):
        info = infos.get(f.name)
        default = None if f.default is missing else f.default
        if info is None:
            fields.append({"field": f.name, "default": default, "type": f.type})
            continue
        default = f"as {info.like}" if info.like else default
        kind = "needed" if f.default is missing else ""
        fields.append({"field": f.name, "default": kind or default, "allowed": info.need,
                       "what": info.what})  # fmt: skip
    return {**_op_line(cls, name), "fields": fields}


def doctor(
    data: Annotated[Path | None, typer.Option(help="Folder of measured tables.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder that results would go to.")] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that drivers get to answer.")
    ] = 3.0,
    json: Json = False,
) -> None:
    """Check this machine: what it can measure, what is missing, how to install it."""
    from .doctor import examine

    report = examine(data, out=out, timeout=timeout)
    if json:
        return write_json(report)
    from ..units import format_field as cell
    from .render import print_rows, print_text

    print_text(f"ridgecast {report['version']}, Python {report['python']}, {report['platform']}")
    print_rows(report["packages"], columns=("package", "version", "use"), title="packages")
    print_rows(report["gpus"] or [{"gpu": report["gpus_reason"]}], title="GPUs")
    for kind in ("providers", "meters"):
        print_rows([_probe_line(row) for row in report[kind]], title=kind)
    host = report["machine"]
    facts = [{"fact": key, "value": cell(key, _joined(host[key]))} for key in host]
    print_rows([row for row in facts if row["value"]], title="machine")
    print_rows([report["data"]], title="data")
    for line in report["advice"]:
        print_text(f"- {line}")
    return None


def _probe_line(row: dict[str, Any]) -> dict[str, str]:
    answer = {True: "yes", False: "no", None: "?"}[row["ok"]]
    device = (row["device"] or {}).get("name", "")
    return {"name": row["name"], "works": answer, "device": device, "reason": row["reason"]}


def _joined(value: Any) -> Any:
    return ", ".join(value) if isinstance(value, list) else value
