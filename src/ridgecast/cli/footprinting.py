"""The command that tells what GPU work takes from the world: CO2, water, metal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import SpecError
from ..units import format_quantity, key_values, parse_quantity
from . import options as o
from .output import write_json

if TYPE_CHECKING:
    from ..scenario.footprint import Footprint, Span

__all__ = ["footprint"]

_SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_COUNT = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)([kmbgt]?)")


def footprint(  # noqa: PLR0913, PLR0917 - a command has as many parameters as options
    on: Annotated[str, typer.Option(help="Device; see `ridgecast hardware`.")] = "h100_sxm",
    gpu_hours: Annotated[
        float | None, typer.Option("--gpu-hours", help="Hours of one device, all devices added.")
    ] = None,
    flops: Annotated[float | None, typer.Option(help="Operations of the run: 3.8e25.")] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="PARAMS+TOKENS", help="6 x active parameters x tokens: 405B+15.6T."),
    ] = None,
    energy: Annotated[
        str | None, typer.Option(help="What the boards drew: 433 MWh; with or without --gpu-hours.")
    ] = None,
    devices: Annotated[int | None, typer.Option(help="How many run at once; tells days.")] = None,
    mfu: Annotated[float | None, typer.Option(help="Model flops of the dense peak: 0.4.")] = None,
    dtype: Annotated[str, typer.Option(help="Format that the peak is of.")] = "bf16",
    region: Annotated[str, typer.Option(help="Country or its code: us, France, world.")] = "world",
    pue: Annotated[
        float | None, typer.Option(help="Energy of the site over its computers.")
    ] = None,
    factors: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other factor; --json lists them."),
    ] = None,
    json: o.Json = False,
) -> None:
    """Tell grams of CO2, litres of water and grams of metal behind a training run."""
    from ..scenario import footprint as room

    given = {name: _number(text, name) for name, text in key_values(factors or (), "--set").items()}
    for name, value in (("mfu", mfu), ("pue", pue)):
        if value is not None:
            given[name] = value
    if model is not None:
        if flops is not None:
            raise SpecError("--model: gives the operations; leave --flops out")
        flops = _six_n_d(model)
    if mfu is not None and flops is None:
        raise SpecError("--mfu: only counts with --flops or --model")
    joules = None if energy is None else parse_quantity(energy, "energy", field="--energy")
    if devices is not None and devices < 1:
        raise SpecError(f"--devices: got {devices}, need 1 or more")
    found = room.footprint(
        on, device_hours=gpu_hours, flops=flops, energy=joules, region=region, dtype=dtype,
        given=given,
    )  # fmt: skip
    days = None if devices is None or found.device_hours is None else _days(found, devices)
    if json:
        return write_json({**found.to_dict(), "days": days})
    _show(found, devices, days)
    return None


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SpecError(f"--set {name}: got {text!r}, need a number") from None


def _six_n_d(text: str) -> float:
    """Operations of training: 6 x active parameters x tokens (Kaplan et al., arXiv:2001.08361).

    >>> _six_n_d("405B+15.6T")
    3.7908e+25
    """
    parts = [_COUNT.fullmatch(part.strip().lower()) for part in text.split("+")]
    if len(parts) != 2 or not all(parts):
        raise SpecError(f"--model: got {text!r}, need PARAMETERS+TOKENS: 405B+15.6T")
    n, d = (float(m[1]) * _SCALE[m[2]] for m in parts if m)
    return 6.0 * n * d


def _days(found: Footprint, devices: int) -> float:
    return (found.device_hours.value if found.device_hours else 0.0) / devices / 24.0


def _show(found: Footprint, devices: int | None, days: float | None) -> None:
    from .render import print_rows

    span = {
        "device hours": (found.device_hours, "", 1.0),
        "energy": (found.energy_j, "Wh", 1 / 3600.0),
        "CO2e": (found.co2_g, "g", 1.0),
        "  of the electricity": (found.co2_electricity_g, "g", 1.0),
        "  of making the hardware": (found.co2_embodied_g, "g", 1.0),
        "water": (found.water_l, "L", 1.0),
        "  on site": (found.water_site_l, "L", 1.0),
        "  of the electricity ": (found.water_electricity_l, "L", 1.0),
        "devices used up": (found.devices, "", 1.0),
        "metal": (found.metal_g, "g", 1.0),
        **{f"  {name}": (grams, "g", 1.0) for name, grams in found.elements.items()},
    }
    rows: list[dict[str, str]] = []
    for name, (value, unit, scale) in span.items():
        rows.append({"quantity": name, "value": _amount(value, unit, scale),
                     "from": _end(value, "low", unit, scale),
                     "to": _end(value, "high", unit, scale)})  # fmt: skip
    print_rows(rows)
    if days is not None:
        typer.echo(f"{days:.3g} days on {devices} of {found.device}")
    typer.echo(f"{found.device}, electricity of {found.region}; --json lists factors and sources")
    for name, reason in found.missing.items():
        typer.echo(f"not known: {name}: {reason}", err=True)


def _amount(value: Span | None, unit: str, scale: float) -> str:
    return "n/a" if value is None else _format(value.value * scale, unit)


def _end(value: Span | None, end: str, unit: str, scale: float) -> str:
    if value is None or value.low == value.high:
        return ""
    return _format(getattr(value, end) * scale, unit)


def _format(number: float, unit: str) -> str:
    """Three digits and a prefix; tonnes above a million grams.

    >>> _format(11.39e9, "g"), _format(433e6, "Wh"), _format(1082990, "")
    ('11400 t', '433 MWh', '1.08 M')
    """
    if unit == "g" and number >= 1e6:
        tonnes = number / 1e6
        return f"{float(f'{tonnes:.3g}'):g} t"
    text: Any = format_quantity(number, "count")
    return f"{text}{unit}" if text[-1:].isalpha() else f"{text} {unit}".strip()
