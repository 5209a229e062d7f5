"""Commands that look up networks and techniques: models, techniques."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json
from .output import write_json

if TYPE_CHECKING:
    from ..models import Call, Network
    from ..techniques import Technique

__all__ = ["effect_rows", "kind_of", "models", "pass_groups", "techniques"]

_ELEMENT = 2.0  # bytes of an element at 16 bits; states are kept at 32
_STATE = 4.0
_KINDS = {
    "Decoder": "decoder", "VisionLanguage": "vision-language", "TextEncoder": "text encoder",
    "Encoder": "encoder", "TwoTowers": "image-text encoder", "ConvNet": "convolutional",
    "Pipeline": "diffusion pipeline", "UNet": "denoiser", "Dit": "denoiser", "Vae": "coder",
    "GraphNetwork": "graph",
}  # fmt: skip


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A shipped name, a config.json or its folder, an .onnx file.", show_default=False
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences or samples of a pass.")] = 1,
    isl: Annotated[int, typer.Option(min=1, help="Tokens of a sequence.")] = 2048,
    json: Json = False,
) -> None:
    """List the networks, or show one: its parameters, its cache, the operations of a pass."""
    from .render import print_rows, print_text

    if name is None:
        from ..models import get, names

        rows = [_line(get(n)) for n in names()]
        return write_json(rows) if json else print_rows(_counted(rows), columns=_COLUMNS)
    network = _network(name)
    row = _detail(network, batch, isl)
    if json:
        return write_json(row)
    facts = {k: row[k] for k in (*_COLUMNS, *_CACHE, "source") if row.get(k)}
    print_rows([{"field": k.rpartition("_bytes")[0] or k, "value": _shown(k, v)}
                for k, v in facts.items()], title=row["title"] or row["name"])  # fmt: skip
    print_rows(_counted(row["weights"]), title="weights")
    for phase, calls in row["passes"].items():
        print_rows([{**c, "fields": _words(c["fields"])} for c in calls["calls"]],
                   title=f"{phase}: {calls['what']}")  # fmt: skip
    print_text("Operations of the main unit of each call, and bytes moved at 16 bits an element.")
    for line in row["warnings"]:
        typer.echo(f"warning: {line}", err=True)
    return None


_COLUMNS = ("name", "kind", "parameters", "active_parameters", "native_dtype", "expert_dtype",
            "weights_bytes")  # fmt: skip
_CACHE = ("cache_per_token_bytes", "cache_fixed_bytes", "activations_bytes")


def _counted(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with parameters as text for eyes."""
    return [{k: _count(v) if "parameters" in k else v for k, v in row.items()} for row in rows]


def _shown(key: str, value: Any) -> str:
    from ..units import format_field as cell

    return _count(value) if "parameters" in key else cell(key, value)


def _count(n: float) -> str:
    """Parameters for eyes.

    >>> _count(8030261248.0), _count(124439808)
    ('8.03 B', '124 M')
    """
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if n >= 0.9995 * size:
            return f"{n / size:.0f} {unit}" if n >= 999.5 * size else f"{n / size:.3g} {unit}"
    return f"{n:.0f}"


def _network(name: str) -> Network:
    from ..models import from_onnx, get

    if name.lower().endswith(".onnx"):
        return from_onnx(name)

    return get(name)


def kind_of(network: Network) -> str:
    """Kind of a network in words: its family, and what sets it apart.

    >>> from ridgecast.models import get
    >>> kind_of(get("mixtral-8x7b"))
    'decoder, experts'
    """
    words = [_KINDS.get(type(network).__name__, type(network).__name__.lower())]
    if any(w.role == "expert" for w in network.weights()):
        words.append("experts")
    kept = {c.kind for c in network.caches()}
    words += [word for kind, word in (("latent", "latent cache"), ("state", "states"))
              if kind in kept]  # fmt: skip
    return ", ".join(words)


def _line(network: Network) -> dict[str, Any]:
    expert = getattr(network, "expert_dtype", "")
    return {
        "name": network.name,
        "kind": kind_of(network),
        "parameters": network.parameters,
        "active_parameters": network.active_parameters,
        "native_dtype": network.native_dtype,
        "expert_dtype": expert if expert != network.native_dtype else "",
        "weights_bytes": _weight_bytes(network),
        "title": network.title,
        "source": network.source,
    }


def _weight_bytes(network: Network) -> float:
    """Bytes as published: what is neither linear layer nor expert keeps at least 16 bits."""
    from ..dtypes import dtype

    native = dtype(network.native_dtype)
    other = native if native.bits >= 8 * _ELEMENT else dtype("bf16")
    expert = dtype(getattr(network, "expert_dtype", "") or native.name)
    formats = {"linear": native, "conv": native, "expert": expert}
    return sum(formats.get(w.role, other).bytes_of(w.total) for w in network.weights())


def _detail(network: Network, batch: int, isl: int) -> dict[str, Any]:
    caches = network.caches()
    growing = sum(c.layers * c.per_token for c in caches if not c.window)
    windows = sum(c.layers * c.per_token * c.window for c in caches)
    fixed = sum(c.layers * c.fixed * (_STATE if c.kind == "state" else _ELEMENT) for c in caches)
    out = _line(network)
    out |= {
        "weights": _weight_rows(network),
        "cache_per_token_bytes": growing * _ELEMENT,
        "cache_fixed_bytes": fixed + windows * _ELEMENT,
        "passes": {},
        "warnings": list(getattr(network, "warnings", ())),
    }
    for phase, what, groups in pass_groups(network, batch, isl):
        calls = [_call_row(c) for c in _calls(network, groups) if c.count > 0]
        out["passes"][phase] = {"what": what, "calls": calls}
    return out


def _weight_rows(network: Network) -> list[dict[str, Any]]:
    """Parameters by part and role, largest first."""
    sums: dict[tuple[str, str], float] = {}
    for w in network.weights():
        sums[w.part, w.role] = sums.get((w.part, w.role), 0.0) + w.total
    all_of_them = sum(sums.values()) or 1.0
    rows = [{"part": part, "role": role, "parameters": n, "share": n / all_of_them}
            for (part, role), n in sums.items()]  # fmt: skip
    return sorted(rows, key=_by_parameters, reverse=True)


def _by_parameters(row: Mapping[str, Any]) -> float:
    return row["parameters"]


def pass_groups(network: Network, batch: int, isl: int) -> list[tuple[str, str, list[Any]]]:
    """Choose the passes to show of a network: (name, what it is, its groups).

    Networks that keep keys and values have a prefill of `isl` tokens and the decode step after it;
    image networks draw what they are published for; others have one pass.
    """
    from ..models import Tokens
    from ..models.graph import GraphNetwork
    from ..models.image import Canvas, ImageNetwork
    from ..models.pipeline import Pipeline

    each = f"batch {batch}"
    if isinstance(network, Pipeline):
        return [("picture", _told(network.canvas), [network.canvas])]
    if isinstance(network, ImageNetwork):
        canvas = Canvas(batch=batch)
        return [("pass", _told(canvas), [canvas])]
    if isinstance(network, GraphNetwork):
        what = each if network.batched else f"{batch} of the graph's fixed shapes"
        return [("pass", what, [Tokens(batch=float(batch))])]
    if network.caches():
        step = f"{each}, {isl} tokens in the cache"
        return [("decode", step, [Tokens(float(batch), 1.0, float(isl))]),
                ("prefill", f"{each}, {isl} tokens", [Tokens(float(batch), isl, isl)])]  # fmt: skip
    towers = [getattr(network, part, network) for part in ("vision", "text")]
    towers = towers[:1] if towers[0] is towers[1] else towers
    lengths = [_length(getattr(tower, "stem", tower), isl) for tower in towers]
    what = f"{each}, {' and '.join(str(n) for n in lengths)} tokens"
    return [("pass", what, [Tokens(float(batch), n, n) for n in lengths])]


def _told(canvas: Any) -> str:
    frames = f", {canvas.frames} frames" if canvas.frames > 1 else ""
    return f"batch {canvas.batch}, {canvas.width} x {canvas.height} pixels{frames}"


def _length(stem: Any, isl: int) -> int:
    """Tokens of a sequence: as the stem makes them of an image, or at most its positions."""
    side, patch = getattr(stem, "image", 0), getattr(stem, "patch", 0)
    if side and patch:
        return (side // patch) ** 2 + stem.prefix
    return min(isl, getattr(stem, "positions", 0) or isl)


def _calls(network: Network, groups: Sequence[Any]) -> list[Call]:
    from ..models import Layout

    return network.calls(groups, Layout())


def _call_row(call: Call) -> dict[str, Any]:
    """One line of a pass: operations and bytes of all its `count` runs."""
    from ..ops import op_class

    given = {k: _whole(v) for k, v in call.fields.items()}
    op = op_class(call.op)(**given)
    return {
        "part": call.part, "op": call.op, "role": call.role, "count": call.count,
        "work_flops": op.flops * call.count, "moved_bytes": op.bytes * call.count, "fields": given,
    }  # fmt: skip


def _whole(value: Any) -> Any:
    """Sizes as whole numbers; words, flags and shares as they are."""
    if isinstance(value, str | bool | int):
        return value
    number = float(value)
    return int(number) if number.is_integer() else number


def _words(given: Mapping[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in given.items())


def techniques(
    name: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="A technique.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """List the published techniques, or show one: mechanism, parameters, source, effect."""
    from ..techniques import get, names
    from .render import print_rows, print_text

    if name is None:
        rows = [_technique_line(get(n)) for n in names()]
        return write_json(rows) if json else print_rows(rows, columns=("name", "what", "source"))
    technique = get(name)
    row = _technique_row(technique)
    if json:
        return write_json(row)
    print_text(f"{row['title']}\n{row['what']}\n{row['source']}")
    if row["needs"]:
        print_text(f"Applies: {row['needs']}")
    if row["parameters"]:
        print_rows(row["parameters"], title="parameters")
    print_rows(row["sets"], title="what it sets")
    if row["effect"]:
        print_rows(row["effect"], title="what it does to the default case")
    return print_text(f"ridgecast llm llama-3.1-8b --on h200_sxm --technique {technique.id}")


def _technique_line(technique: Technique) -> dict[str, Any]:
    return {"name": technique.id, "title": technique.title, "what": technique.what,
            "source": technique.source, "needs": technique.needs}  # fmt: skip


def _technique_row(technique: Technique) -> dict[str, Any]:
    given = [{"parameter": key, "default": p.default, "low": p.low, "high": p.high, "what": p.what}
             for key, p in technique.parameters.items()]  # fmt: skip
    return _technique_line(technique) | {
        "parameters": given,
        "sets": _changes(technique),
        "effect": effect_rows(technique),
    }


def _changes(technique: Technique) -> list[dict[str, Any]]:
    """Fields of a neutral treatment that it changes at its defaults."""
    from ..techniques import Treatment

    before = {key: value for key, value, _ in _leaves(Treatment())}
    rows = [{"field": key, "neutral": _plain(before.get(key)), "set": _plain(value)}
            for key, value, default in _leaves(technique.apply(Treatment()))
            if key != "techniques" and value != before.get(key, default)]  # fmt: skip
    return rows or [{"field": k, "neutral": "", "set": "as at neutral"} for k in technique.sets]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Fields of records in records: (dotted name, value, default of its record)."""
    for f in fields(value):
        inner, key = getattr(value, f.name), f"{path}{f.name}"
        if is_dataclass(inner):
            yield from _leaves(inner, f"{key}.")
        else:
            yield key, inner, f.default


def _plain(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def effect_rows(technique: Technique) -> list[dict[str, Any]]:
    """Ask `scenario` what a technique does to the default case; nothing where it cannot say."""
    from .. import scenario

    maker = getattr(scenario, "effect_of", None)
    return [dict(row) for row in maker(technique)] if maker is not None else []
