"""Commands that look something up: hardware, ops, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import SpecError
from .options import Json
from .output import write_json
from .parse import OPS, check_op

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
    from .render import print_rows

    if name is not None:
        row = _op_row(check_op(name))
        return write_json(row) if json else print_rows(row["fields"], title=row["what"])
    rows = [{"name": op, "shape": OPS[op][2], "what": OPS[op][3]} for op in OPS]
    return write_json(rows) if json else print_rows(rows)


def _op_row(name: str) -> dict[str, Any]:
    import dataclasses
    from importlib import import_module

    module, cls, shape, what = OPS[name]
    missing = dataclasses.MISSING
    fields = [
        {"field": f.name, "default": None if f.default is missing else f.default, "type": f.type}
        for f in dataclasses.fields(getattr(import_module(module), cls))
    ]
    return {"name": name, "shape": shape, "what": what, "fields": fields}


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
    from .render import cell, print_rows, print_text

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
