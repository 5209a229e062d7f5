"""What is said beside an answer: questions that have none, cautions, and what arrives too slowly.

Owns checks of a question against its network, and how an answer is cut down to the requests that
really arrive. Times nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UnsupportedError
from ..models.network import Network
from ..predict.throttle import NOTE, recapped
from ..techniques import get, names
from .case import Made, Scenario
from .passes import idle_power

__all__ = ["cautions", "need_text", "offered"]


def need_text(network: Network) -> None:
    """Raise UnsupportedError for a network that does not write one token after another."""
    from ..models.image import ImageNetwork
    from ..models.pipeline import Pipeline

    if isinstance(network, ImageNetwork | Pipeline) or not network.caches():
        raise UnsupportedError(
            f"model: {network.name} does not generate text one token at a time, so it has no time "
            f"per token; `ridgecast models {network.name}` shows the work of its pass"
        )


def offered(s: Scenario, made: Made, first: Mapping[str, float]) -> dict[str, float]:
    """Tokens/s and power where requests arrive more slowly than the replica could serve them.

    What is served is what arrives; a replica with no more than one request at a time is idle
    between them.
    """
    if s.traffic.request_rate is None:
        return {}
    names = ("output_tokens_per_s", "output_tokens_per_s_low", "output_tokens_per_s_high")
    asked = s.traffic.request_rate * s.traffic.osl / made.replicas
    out = {name: min(asked, first[name]) for name in names}
    could = first["e2e"] * s.traffic.request_rate / made.replicas
    if could < 1.0:
        idle = made.layout.devices * idle_power(made.hardware)
        out["power"] = could * first["power"] + (1.0 - could) * idle
    return out


def cautions(s: Scenario, made: Made) -> list[str]:
    """Say what a reader should know of a question before its answer."""
    told = []
    left = s.devices - made.replicas * made.layout.devices
    if left:
        told.append(f"{left} of {s.devices} devices are left over: a replica takes "
                    f"{made.layout.devices}, or give a layout")  # fmt: skip
    longest = int(getattr(made.network, "max_positions", 0) or 0)
    length = s.traffic.isl + s.traffic.osl
    if 0 < longest < length:
        told.append(f"{made.network.name} was made for {longest} tokens; {length} are asked for")
    if recapped(made.hardware) is not None:
        told.append(NOTE)
    return told + _conditions(made)


def _conditions(made: Made) -> list[str]:
    """Say when each technique applies, and which have nothing to change in this network."""
    told, known = [], set(names())
    for name in (full.partition(":")[0] for full in made.treatment.techniques):
        needs = get(name).needs if name in known else ""
        told += [f"{name}: {needs}"] if needs else []
    experts = any(w.role == "expert" for w in made.network.weights())
    if made.treatment.placement.only == "expert" and not experts:
        told.append(f"placement: {made.network.name} has no experts to place elsewhere")
    return told
