"""Which number format each part of a network is stored and computed in.

Owns the choice from what was asked (`dtype`), what the published weights come in, and what
techniques set. Knows no time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..dtypes import dtype
from ..errors import InfeasibleError
from ..hardware import Hardware
from ..models.network import Network
from ..techniques.treatment import Storage, Treatment

__all__ = ["Formats", "formats_of", "told_of"]

WIDE = "bf16"
_INSTEAD = {  # what a device without the wanted unit may take: same bits first, then more
    "nvfp4": ("mxfp4", "fp8_e4m3", "int4_wo", "int8"),
    "fp8_e4m3": ("int8", "int8_wo", "bf16", "fp16"),
    "fp8_block": ("int8", "int8_wo", "bf16", "fp16"),
    "bf16": ("fp16", "fp32"),
    "int8": ("fp8_e4m3", "int8_wo", "bf16", "fp16"),
}


@dataclass(frozen=True, slots=True)
class Formats:
    """Formats of one run.

    `wide` is the 16-bit format of activations, norms and what is not quantised; `linear` and
    `expert` name the formats of the products, `linear_storage` and `expert_storage` are what is
    stored (equal to the format unless a technique says otherwise). `kv` is what the cache stores,
    `kv_dtype` the plain format next to it that attention kernels are known in.
    """

    wide: str
    linear: str
    expert: str
    linear_storage: Storage
    expert_storage: Storage
    kv: Storage
    kv_dtype: str
    ends_storage: Storage | None = None

    def storage(self, role: str) -> Storage:
        """How weights of a role are stored."""
        if role == "linear":
            return self.linear_storage
        if role in ("head", "embedding") and self.ends_storage is not None:
            return self.ends_storage
        return self.expert_storage if role == "expert" else Storage.of(self.wide)

    def compute(self, role: str) -> str:
        """Format whose multiplier works for a role."""
        return {"linear": self.linear, "expert": self.expert}.get(role, self.wide)


def formats_of(
    network: Network,
    hardware: Hardware,
    asked: str = "",
    *,
    kv: str = "",
    experts: str = "",
    treatment: Treatment | None = None,
) -> Formats:
    """Choose the formats of a network on a device; `asked` "" takes the published one.

    `asked` is the format of linear layers and experts (`experts`: of experts only), `kv` that of
    the cache. Raises InfeasibleError for a format that the device does not multiply (weight-only
    ones are multiplied in 16 bits), naming those that it does; SpecError for an unknown format.
    """
    t = treatment or Treatment()
    wide = WIDE if hardware.supports(WIDE) else ("fp16" if hardware.supports("fp16") else "fp32")
    native = network.native_dtype or wide
    own = getattr(network, "expert_dtype", "") or native
    name = _published(asked, native)
    linear, linear_storage = _chosen(name, hardware, bool(asked), wide)
    linear_storage = _grouped(linear_storage, network, name == native)
    name = _published(experts or asked, own)
    expert, expert_storage = _chosen(name, hardware, bool(experts or asked), wide)
    expert_storage = _grouped(expert_storage, network, name == own)
    if t.weights is not None:
        linear_storage = t.weights
        linear = _supported(t.weights.compute or wide, hardware, False, wide)
    if t.experts is not None:
        expert_storage = t.experts
        expert = _supported(t.experts.compute or wide, hardware, False, wide)
    if t.activations:
        linear = expert = _supported(t.activations, hardware, True, wide)
    stored = t.kv.storage or Storage.of(dtype(kv).name if kv else wide)
    near = min(("fp8_e4m3", wide), key=lambda d: abs(dtype(d).bits - stored.bits_each))
    return Formats(wide, linear, expert, linear_storage, expert_storage, stored, near, t.ends)


def told_of(name: str, storage: Storage) -> str:
    """Name a format of products, with the bits of its weights where they are stored otherwise.

    >>> told_of("bf16", Storage.of("bf16")), told_of("fp16", Storage.of("int4_wo"))
    ('bf16', 'fp16, weights at 4.12 bits')
    """
    if abs(storage.bits_each - Storage.of(name).bits_each) < 0.5:
        return name
    return f"{name}, weights at {storage.bits_each:.3g} bits"


def _grouped(storage: Storage, network: Network, published: bool) -> Storage:
    """Take the scale groups of the published weights where they are what is stored."""
    group = getattr(network, "weight_group", 0)
    return replace(storage, group=group) if published and group and storage.group else storage


def _published(asked: str, native: str) -> str:
    """Return what was asked; fp8 of a checkpoint with block scales means those."""
    if asked and native == "fp8_block" and dtype(asked).name == "fp8_e4m3":
        return native
    return asked or native


def _chosen(name: str, hardware: Hardware, asked: bool, wide: str) -> tuple[str, Storage]:
    """Return the format of the products, and how their weights are stored.

    Published weights that the device has no unit for, and weight-only formats, stay as they are in
    memory and are multiplied in 16 bits (as Marlin kernels do, arXiv:2408.11743).
    """
    d = dtype(name)
    kept = d.weight_only or d.name == "mxfp4" or not asked
    unit = WIDE if d.name == "mxfp4" else d
    if kept and d.bits < 16 and not hardware.supports(unit):
        return wide, replace(Storage.of(name), compute=wide, unpack=2.0)
    name = _supported(name, hardware, asked, wide)
    return name, Storage.of(name)


def _supported(name: str, hardware: Hardware, asked: bool, wide: str) -> str:
    """Return the format if the device multiplies it; else, if it was not asked for, 16 bits."""
    d = dtype(name)
    if d.name == "mxfp4":  # weights of gpt-oss: multiplied in 16 bits where there is no unit
        return d.name
    if hardware.supports(d):
        return d.name
    if not asked:
        return wide
    can = [n for n in _INSTEAD.get(d.name, ()) if hardware.supports(n)]
    raise InfeasibleError(
        f"dtype: {hardware.name} does not multiply {d.name}; it multiplies "
        f"{', '.join(hardware.rates)}. Use {' or '.join(can[:3]) or wide} instead"
        + (", or a weight-only format (int4_wo)" if "int4_wo" not in can[:3] else "")
    )
