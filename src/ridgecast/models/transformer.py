"""Decoder language models: embedding, blocks of a mixer and a feed-forward part, output head.

Owns `Decoder` and `Block`. Mixers live in `attention`, `linear_attention` and `state_space`,
feed-forward parts in `ffn`. Knows shapes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .attention import Mixer
from .ffn import Ffn, MoeFfn
from .network import Amount, Cache, Call, Layout, Network, Tokens, Weights, ceil_div
from .pieces import collective, gemm, merged, norm, own_tokens, present, scaled, total, whole

__all__ = ["Block", "Decoder"]


@dataclass(frozen=True, slots=True)
class Block:
    """`count` layers alike: a mixer, then a feed-forward part; either may be missing.

    `norms` are the normalisations of the hidden state in a layer (Gemma 2: four), `parallel` says
    that both parts read the same input, so that their outputs are summed over devices once
    (GPT-J, Falcon, Phi-2).
    """

    count: int
    mixer: Mixer | None
    ffn: Ffn | None
    norms: int = 2
    parallel: bool = False

    def calls(self, groups: Sequence[Tokens], layout: Layout, hidden: int) -> list[Call]:
        """Operations of one layer on one device, norms left out."""
        found: list[Call] = []
        summed = self.parallel and self.ffn is not None and not isinstance(self.ffn, MoeFfn)
        if self.mixer is not None:
            found += self.mixer.calls(groups, layout, hidden)
            if not summed:
                elements = own_tokens(groups, layout) * hidden
                found += collective("attention_sum", "all_reduce", elements, layout.tp, layout)
        if self.ffn is not None:
            found += self.ffn.calls(groups, layout, hidden)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder(Network):
    """A decoder-only language model.

    `hidden` columns, `vocab` rows of the embedding (of `embed_dim` columns where that differs:
    OPT-350M), `tied`: the output head is the embedding. `positions` rows of learned positions
    (0: none), `max_positions` the longest sequence it was made for (0: not said). `norm` is the
    kind of its norms ("rms" or "layer"), `norm_bias` whether they have shifts. `embed_norm`: one
    more norm after the embedding (BLOOM). `native_dtype` is the published format of linear layers,
    `expert_dtype` that of routed experts ("": the same), `kv_dtype` that of the cache where the
    checkpoint says so. `narrow` names parts of linear layers ("ffn", "shared_expert",
    "attention_out") that are published in the experts' format; they take the role "expert".
    `weight_group` weights share a scale, where the checkpoint says (0: as the format has it).
    """

    hidden: int
    vocab: int
    blocks: tuple[Block, ...]
    tied: bool = False
    max_positions: int = 0
    positions: int = 0
    embed_dim: int = 0
    embed_norm: bool = False
    final_norm: bool = True
    head_bias: bool = False
    norm: str = "rms"
    norm_bias: bool = False
    expert_dtype: str = ""
    kv_dtype: str = ""
    narrow: tuple[str, ...] = ()
    weight_group: int = 0

    @property
    def layers(self) -> int:
        """Layers of all blocks."""
        return sum(b.count for b in self.blocks)

    def weights(self) -> tuple[Weights, ...]:
        """List all parameters: embedding, blocks, final norm, head where it is not tied."""
        wide = self.embed_dim or self.hidden
        table = float(self.vocab * wide)
        found = [Weights("embedding", "embedding", table, ends=True,
                         per_token=1.0 if self.tied else 1.0 / self.vocab)]  # fmt: skip
        if self.positions:
            found.append(Weights("positions", "embedding", float(self.positions * self.hidden),
                                 split="none", per_token=1.0 / self.positions,
                                 ends=True))  # fmt: skip
        if wide != self.hidden:
            found.append(Weights("project_in_out", "linear", 2.0 * wide * self.hidden,
                                 split="none", ends=True))  # fmt: skip
        gain = self.hidden * (2 if self.norm_bias else 1)
        ends = int(self.embed_norm) + int(self.final_norm)
        if ends:
            found.append(Weights("end_norms", "norm", float(gain), ends, "none", ends=True))
        for block in self.blocks:
            parts = [*(block.mixer.weights(self.hidden) if block.mixer else ()),
                     *(block.ffn.weights(self.hidden) if block.ffn else ())]  # fmt: skip
            if block.norms:
                parts.append(Weights("norm", "norm", float(gain * block.norms), split="none"))
            found += [replace(w, count=w.count * block.count, role=self._role(w)) for w in parts]
        if not self.tied or self.head_bias:
            rows = 0.0 if self.tied else table
            bias = self.vocab if self.head_bias else 0
            found.append(Weights("head", "head", rows + bias, ends=True))
        return tuple(_joined(found))

    def caches(self) -> tuple[Cache, ...]:
        """List what is kept of a sequence; layers alike are one entry."""
        found: dict[Any, Cache] = {}
        for block in self.blocks:
            for cache in block.mixer.caches() if block.mixer else ():
                key = replace(cache, layers=0.0)
                layers = cache.layers * block.count
                known = found.get(key)
                found[key] = replace(cache, layers=layers + (known.layers if known else 0.0))
        return tuple(found.values())

    def calls(self, groups: Sequence[Tokens], layout: Layout) -> list[Call]:
        """Operations of one pass on one device of each stage; equal ones are merged.

        Raises InfeasibleError for a layout that does not divide heads, columns or experts.
        """
        t = own_tokens(groups, layout)
        found = self._embedded(t, layout)
        for block in self.blocks:
            calls = block.calls(groups, layout, self.hidden)
            norms = norm(t, self.hidden, self.norm, residual=True)
            found += scaled([*calls, *scaled([norms], block.norms)], block.count)
        if self.final_norm:
            found.append(norm(t, self.hidden, self.norm, residual=True))
        found += self._head(self.rows(groups, layout), layout)
        if self.narrow:
            found = [replace(c, role=self._role(c)) for c in found]
        return merged(c for c in found if np.any(np.asarray(c.count) > 0))

    def _role(self, of: Weights | Call) -> str:
        """Role of a part, that of experts where it is published in their format."""
        part = of.part.removesuffix("_up").removesuffix("_down")
        return "expert" if of.role == "linear" and part in self.narrow else of.role

    def rows(self, groups: Sequence[Tokens], layout: Layout) -> Amount:
        """Rows that reach the output head of one device."""
        return total(ceil_div(g.batch, layout.dp) * g.logits for g in groups)

    def _embedded(self, t: Amount, layout: Layout) -> list[Call]:
        """Look-up in this shard's rows; the sum over shards."""
        wide = self.embed_dim or self.hidden
        fields = {"lookups": whole(t), "dim": wide, "table_rows": -(-self.vocab // layout.tp)}
        found = [Call("embedding", "embedding", fields, present(t), "embedding")]
        found += collective("embedding_sum", "all_reduce", t * wide, layout.tp, layout)
        if wide != self.hidden:
            found.append(gemm("project_in", t, self.hidden, wide))
            found.append(gemm("project_out", t, wide, self.hidden))
        if self.embed_norm:
            found.append(norm(t, self.hidden, self.norm))
        return found

    def _head(self, rows: Amount, layout: Layout) -> list[Call]:
        """Logits of this shard's rows of the vocabulary; gathered over shards."""
        share = -(-self.vocab // layout.tp)
        found = [gemm("head", rows, share, self.embed_dim or self.hidden, role="head")]
        return found + collective("head_gather", "all_gather", rows * self.vocab, layout.tp, layout)

    def activations(self, tokens: Amount, layout: Layout, logits: Amount = 1.0) -> Amount:
        """Elements of transient memory on one device at the peak of a pass.

        `tokens` new tokens of the replica, taken as one sequence a data-parallel group; `logits`
        rows of a device that reach the head. With t the tokens of one device:

            t hidden + max( max over products of m (n + k),
                            max over attention of q_len (heads d + heads d_v) batch,
                            experts' rows (2 hidden + matrices inter / moe_tp),
                            logits vocab )

        that is the residual stream, and inputs and outputs of the largest operation.
        """
        per = tokens / layout.dp
        groups = [Tokens(float(layout.dp), per, per, 1.0)]
        t = own_tokens(groups, layout)
        peak: Any = np.asarray(logits * self.vocab, np.float64)
        for block in self.blocks:
            for call in block.calls(groups, layout, self.hidden):
                peak = np.maximum(peak, _transient(call))
        found = np.asarray(t * self.hidden + peak)
        return float(found) if found.ndim == 0 else found


def _transient(call: Call) -> Any:
    """Elements that go in and out of one call."""
    f: Any = {k: np.asarray(v, np.float64) for k, v in call.fields.items()
              if not isinstance(v, str)}  # fmt: skip
    here = np.where(np.asarray(call.count) > 0, 1.0, 0.0)
    if call.op == "gemm":
        return here * f.get("batch", 1.0) * f["m"] * (f["n"] + f["k"])
    if call.op == "moe":
        rows = f["num_tokens"] * f["top_k"] / f["ep"]
        matrices = np.where(f["gated"], 3.0, 2.0)
        return here * rows * (2.0 * f["hidden"] + matrices * f["inter"] / f["tp"])
    if call.op == "attention":
        wide = f["head_dim"] + f.get("v_head_dim", f["head_dim"])
        return here * f["batch"] * f["q_len"] * f["q_heads"] * wide
    return 0.0


def _joined(weights: Sequence[Weights]) -> list[Weights]:
    """Weights of equal kind and size in one entry, by their counts."""
    found: dict[Weights, float] = {}
    for w in weights:
        key = replace(w, count=0.0)
        found[key] = found.get(key, 0.0) + w.count
    return [replace(w, count=n) for w, n in found.items()]
