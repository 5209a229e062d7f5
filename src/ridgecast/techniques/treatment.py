"""What a technique may change: bits, bytes, operations, launches, residency, overlap, tokens.

Owns `Treatment`, the one record that techniques transform and `scenario` reads, and its pieces.
Every field is neutral by default. A technique sets fields; gains then come out of the solver.
Must not know any published gain.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from ..dtypes import dtype
from ..errors import SpecError

__all__ = ["Batching", "KvPolicy", "Placement", "Reduction", "Speculation", "Storage", "Treatment",
           "Tuning"]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Storage:
    """How numbers are stored, and what it costs to use them.

    `bits` a payload element, one scale of `scale_bits` (and a zero point of `zero_bits`) each
    `group` elements (0: none that count), a share `outliers` kept apart at `outlier_bits` each
    (index included), a share `density` of the elements stored with `index_bits` each.
    `compute` is the format that they are multiplied in ("": the format of the activations),
    `unpack` lane operations an element to get there, once for each `rows` rows of the other
    operand (1: look-ups by row); `rebuild`: a full-precision copy of one layer's worth is built in
    memory first, not in registers. `products` is the share of the multiply-adds that are done
    (factors; above 1: parts of the depth in a slower format).
    """

    bits: float
    group: int = 0
    scale_bits: float = 0.0
    zero_bits: float = 0.0
    outliers: float = 0.0
    outlier_bits: float = 0.0
    density: float = 1.0
    index_bits: float = 0.0
    compute: str = ""
    unpack: float = 0.0
    rebuild: bool = False
    rows: int = 64
    products: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.bits <= 64:
            raise SpecError(f"storage.bits: got {self.bits}, need more than 0, at most 64")
        if self.rows < 1 or self.products <= 0:
            raise SpecError(
                f"storage: got rows {self.rows}, products {self.products}; need 1 or more, above 0"
            )
        for name in ("outliers", "density"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise SpecError(f"storage.{name}: got {value}, need a share from 0 to 1")

    @property
    def bits_each(self) -> float:
        """Bits an element, scales, zero points, outliers and indices included."""
        side = (self.scale_bits + self.zero_bits) / self.group if self.group else 0.0
        kept = self.density * (self.bits + self.index_bits)
        return kept + side + self.outliers * self.outlier_bits

    @property
    def bytes_each(self) -> float:
        """Bytes an element."""
        return self.bits_each / 8.0

    @classmethod
    def of(cls, name: str) -> Storage:
        """Build the storage of a plain format of `dtypes`."""
        return _storage_of(name)


@lru_cache(maxsize=64)
def _storage_of(name: str) -> Storage:
    d = dtype(name)
    unpack = 2.0 if d.weight_only else 0.0
    return Storage(d.bits, d.scale_block, d.scale_bits, compute=d.compute, unpack=unpack)


@dataclass(frozen=True, slots=True)
class KvPolicy:
    """What of the keys and values is kept, read and where.

    `storage` (None: as the engine stores them), but the last `recent` tokens in 16 bits.
    `keep` is the share of tokens whose entries stay,
    `budget` the most tokens that stay a sequence (0: no limit; both apply). `read` is the share of
    the kept entries that a decode step reads (selection), found through `index_bytes` a kept token
    and head. `elements` is what is stored for each original element (low rank; 0.5: one tensor X
    instead of K and V; sharing between layers), `recompute` says that keys and values are
    projected again from it at each step. `place` is where the cache lives: "device", "host" or
    "storage"; `near` is the share of what is read that is found on the device all the same.
    `attend` is where attention over it is computed: "device" or "host" (or "storage": in it);
    `overlap`: that, or fetching it, runs beside the device's other work.
    `shared` is the share of a prompt whose entries are shared by all requests (prefix cache).
    `page` tokens a page (0: contiguous), `waste` the share of reserved memory that holds nothing.
    `score_launch`: extra kernels a layer and step that selection or eviction costs (below 1: layers
    share a choice). `fetched`: the share of what is read away from the device that crosses the link
    (one of the two tensors, reuse between steps). `rank`: keys of what is read are made again from
    this many low-rank elements a token (0: they are stored). `peak`: the share of a prompt's full
    cache that prefill holds before it drops what is not kept (0: it drops as it goes).
    """

    storage: Storage | None = None
    recent: int = 0
    keep: float = 1.0
    budget: int = 0
    read: float = 1.0
    index_bytes: float = 0.0
    elements: float = 1.0
    recompute: bool = False
    place: str = "device"
    near: float = 0.0
    attend: str = "device"
    overlap: bool = False
    shared: float = 0.0
    page: int = 16
    waste: float = 0.0
    score_launch: float = 0.0
    fetched: float = 1.0
    rank: int = 0
    peak: float = 0.0


@dataclass(frozen=True, slots=True)
class Placement:
    """Where weights live and work is done.

    `device_share` of the weights (None: as many as fit when `spill` is allowed) live on the
    device, the rest on `tier` ("host", "storage", "cxl"); they are fetched when used, the share
    `hit` of fetches being found on the device (expert caches, reuse between tokens), and only the
    share `touched` of them is needed at all (sparse activation). `only` names the role of the
    weights that this is about ("": all; "expert": experts, of which those that tokens pick are
    needed). `compute`: "device" fetches them, "host" computes there, "both" shares the work so that
    both end together. `overlap`: this runs beside the device's other work. `read_bytes`: size of
    one read from storage (0: long ones).
    `unit`: what is fetched at a time: a "layer" in each pass, or a whole "stage" of a pipeline
    (text encoder, denoiser, decoder) before it runs, which leaves the device afterwards.
    """

    device_share: float | None = 1.0
    spill: bool = False
    tier: str = "host"
    hit: float = 0.0
    touched: float = 1.0
    compute: str = "device"
    overlap: bool = False
    only: str = ""
    read_bytes: float = 0.0
    unit: str = "layer"


@dataclass(frozen=True, slots=True)
class Speculation:
    """Several tokens a pass: `verified` positions are checked, `accepted` of them stay on average.

    `accepted` counts the token that the pass itself adds. Drafting costs `draft_share` of a decode
    pass of the model each of `draft_steps` times (a draft model: its size over the model's), or
    runs elsewhere at the same time (`parallel`). `memory` are bytes of draft weights as a share of
    the model's. `draft_cache` > 0: the model drafts for itself, reading no more than that many
    tokens of its cache, which lie on the device; `draft_share` is then what drafts for the drafts
    takes, as a share of such a pass.
    """

    verified: float = 1.0
    accepted: float = 1.0
    draft_share: float = 0.0
    draft_steps: float = 0.0
    memory: float = 0.0
    parallel: bool = False
    draft_cache: int = 0


@dataclass(frozen=True, slots=True)
class Reduction:
    """Work that is left out.

    `prefill_density`: share of score blocks computed in prefill; `prompt`: share of the prompt's
    tokens that is processed after the layer share `prompt_after` (0: from the start); `layers`:
    share of the layers that run in decode; `neurons`: share of the feed-forward columns used;
    `steps`: samples' steps of diffusion (share), `calls`: network calls a step (share),
    `pictures`: share of the pictures of a stream that are drawn (others repeat the one before).
    """

    prefill_density: float = 1.0
    prompt: float = 1.0
    prompt_after: float = 0.0
    layers: float = 1.0
    neurons: float = 1.0
    steps: float = 1.0
    calls: float = 1.0
    pictures: float = 1.0


@dataclass(frozen=True, slots=True)
class Batching:
    """How requests share a device.

    `mode`: "continuous" (a finished request is replaced at once), "static" (a batch ends with its
    longest). `chunk` tokens of prefill ride on a decode pass (None: as the engine does; 0: prefill
    runs alone). `overlap`: share of the device's units on which prefills run beside decodes
    (which keep the memory's bandwidth on the others); so much of a decode's time hides prefill.
    `prefix_groups`: requests that share a prefix are run together, so that it is read once.
    `parts` a batch is cut in (nano-batches: each reads the weights again), so that the share
    `unit_overlap` of what can hide does: kernels that wait for compute, for memory and for links
    run side by side. `ride` tokens of other work (fine-tuning) join every decode pass.
    `steps`: diffusion steps of pictures that follow each other that run as one batch.
    """

    mode: str = "continuous"
    chunk: int | None = None
    overlap: float = 0.0
    prefix_groups: bool = False
    parts: int = 1
    unit_overlap: float = 0.0
    ride: float = 0.0
    steps: float = 1.0


@dataclass(frozen=True, slots=True)
class Tuning:
    """What training holds for the parameters that it changes (`training` reads it).

    `rank` of low-rank adapters beside all linear layers (0: none). `layers`: share of what is
    trained that is trained at a time; `reach`: share of the layers that the backward pass goes
    through; `backward` False: forward passes only (zeroth order). `inputs`: share of the linear
    layers' inputs that are kept; `kept_bits` bits an element of what else is kept. Bytes a trained
    parameter: `state_bytes` of the optimiser, `master_bytes` of a wide copy, `gradient_bytes`.
    `pruned`: share of the linear layers' weights that training holds.
    """

    rank: int = 0
    layers: float = 1.0
    reach: float = 1.0
    backward: bool = True
    inputs: float = 1.0
    kept_bits: float = 16.0
    state_bytes: float = 8.0
    master_bytes: float = 4.0
    gradient_bytes: float = 2.0
    pruned: float = 1.0


@dataclass(frozen=True, slots=True)
class Treatment:
    """Everything that techniques have changed about a case; neutral as built.

    `weights` and `experts`: storage of linear layers and of experts, `ends` that of the embedding
    and the output head (None: the engine's format);
    `activations`: format of the products where techniques set it. `attention`: "flash" or
    "standard" (scores through memory). `launches`: kernels launched, as a share of the engine's;
    `graph`: launches are replayed from a graph (None: as the engine does). `host_overhead`: share
    of the engine's host time a pass that is left. `comm_overlap`: share of collective time that
    hides beside compute; `comm_bits`: bits an element that collectives carry;
    `exchanges`: share of the experts' all-to-all exchanges that is left, `exchange_bytes` the share
    of the bytes of each. `adapters` low-rank
    adapters of rank `adapter_rank` are on the device beside the model: each pass reads those of its
    sequences and multiplies by them; `trainable`: share of parameters
    that are trained in place (fine-tuning), `tuning` what that holds. `extra_flops`: products added
    a token, as a share of the network's own; `techniques`: names of what was applied, in order.
    """

    weights: Storage | None = None
    experts: Storage | None = None
    ends: Storage | None = None
    activations: str = ""
    kv: KvPolicy = field(default_factory=KvPolicy)
    attention: str = "flash"
    placement: Placement = field(default_factory=Placement)
    speculation: Speculation = field(default_factory=Speculation)
    reduction: Reduction = field(default_factory=Reduction)
    batching: Batching = field(default_factory=Batching)
    launches: float = 1.0
    graph: bool | None = None
    host_overhead: float = 1.0
    comm_overlap: float = 0.0
    comm_bits: float = 16.0
    exchanges: float = 1.0
    exchange_bytes: float = 1.0
    adapters: int = 0
    adapter_rank: int = 0
    trainable: float = 1.0
    extra_flops: float = 0.0
    tuning: Tuning = field(default_factory=Tuning)
    techniques: tuple[str, ...] = ()
