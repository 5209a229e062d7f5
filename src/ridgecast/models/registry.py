"""Find a network by name: the shipped catalogue, a config.json, a Hugging Face id.

Owns names, aliases, and which reader a shipped file belongs to. Nothing is read at import.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import (
    MissingExtraError,
    NoDataError,
    SpecError,
    UnsupportedError,
    nearest,
    unknown_name,
)
from .network import Network

__all__ = ["FAMILIES", "aliases", "config_of", "get", "load", "names", "shipped"]

CATALOG = Path(__file__).parent / "catalog"

# "ridgecast_family" of a file -> "module:function(config, name)" of this package; files without
# it are decoders, read by their model_type
FAMILIES: dict[str, str] = {
    "decoder": "config:read_config",
    "encoder": "encoder_configs:encoder",
    "vision_language": "vision_language_configs:vision_language",
    "diffusion": "diffusion:read",
}

# model_types of published files that are no decoders
_ENCODERS = ("bert", "roberta", "distilbert", "vit", "deit", "swin", "clip", "clip_vision_model",
             "siglip", "siglip_vision_model", "resnet")  # fmt: skip
_SEEING = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "internvl",
           "internvl_chat", "paligemma")  # fmt: skip

# Words of an id that change training, not shapes.
_WORDS = re.compile(r"-(instruct|chat|hf|it|base|thinking|preview|v0\.[1-3]|\d{4})(?=-|$)")


def names() -> tuple[str, ...]:
    """Names of the shipped networks, sorted."""
    return tuple(sorted(p.stem for p in CATALOG.glob("*.json") if p.stem != "aliases"))


def aliases() -> dict[str, str]:
    """Other spellings, reduced to letters and digits, and the names that they stand for."""
    return dict(_aliases())


def get(name: str | Path | Network) -> Network:
    """Find a network by a shipped name, a Hugging Face id, or a path to a config.json or folder.

    Case, owners ("meta-llama/") and words such as "-Instruct" or "-hf" do not matter. An id that
    is not shipped is fetched with the extra `hf`. Raises SpecError with the nearest three names,
    MissingExtraError where the extra is needed, NoDataError where the id cannot be fetched.

    >>> get("meta-llama/Llama-3.1-70B-Instruct").name
    'llama-3.1-70b'
    """
    if isinstance(name, Network):
        return name
    if isinstance(name, Path) or name.endswith(".json") or Path(name).is_dir():
        return load(name)
    text = str(name).strip()
    key = _shipped(text)
    if key:
        return _read(key)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        return _from_hub(text)
    step = ("`ridgecast models` lists them; a path to a config.json or a Hugging Face id "
            "(owner/name) works too.")  # fmt: skip
    raise SpecError(unknown_name("model", text, names(), step))


def load(path: str | Path) -> Network:
    """Read a config.json, or the one in a folder. Raises SpecError for what cannot be read."""
    path = Path(path)
    if path.is_dir():
        inside = [path / "config.json", path / "model_index.json"]
        path = next((p for p in inside if p.exists()), inside[0])
    config = _json(path)
    beside = path.with_name("hf_quant_config.json")
    if "quantization_config" not in config and beside.exists():
        config["quantization_config"] = _json(beside)
    stem = path.parent.name if path.stem in ("config", "model_index") else path.stem
    return _built(config, stem.lower())


def config_of(name: str) -> dict[str, Any]:
    """Fields of a shipped config, its source and published counts included.

    Raises SpecError with the nearest three names.
    """
    key = _shipped(name)
    if not key:
        raise SpecError(unknown_name("model", name, names()))
    return _json(CATALOG / f"{key}.json")


def _built(config: Mapping[str, Any], name: str) -> Network:
    # configs of diffusers carry the class that they belong to
    plain = "diffusion" if "_class_name" in config else _implied(config)
    family = str(config.get("ridgecast_family") or plain)
    if family not in FAMILIES:
        raise UnsupportedError(unknown_name("ridgecast_family", family, FAMILIES))
    module, _, function = FAMILIES[family].partition(":")
    return getattr(import_module(f".{module}", __package__), function)(config, name)


def _implied(config: Mapping[str, Any]) -> str:
    """Family of a config.json that does not name one, from its model_type."""
    kind = config.get("model_type")
    if kind in _ENCODERS:
        return "encoder"
    if kind in _SEEING and isinstance(config.get("vision_config"), Mapping):
        return "vision_language"
    if kind in ("t5", "umt5", "clip_text_model"):  # read as what conditions generators
        return "diffusion"
    return "decoder"


@lru_cache(maxsize=512)
def _read(key: str) -> Network:
    return _built(_json(CATALOG / f"{key}.json"), key)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as err:
        reason = getattr(err, "strerror", None) or "not a text file"
        raise SpecError(f"model file {str(path)!r}: cannot read it ({reason})") from None
    except json.JSONDecodeError as err:
        raise SpecError(f"model file {str(path)!r}: not valid JSON: {err}") from None
    if not isinstance(found, dict):
        raise SpecError(f"model file {str(path)!r}: got a {type(found).__name__}, need an object")
    return found


def _shipped(text: str) -> str:
    """Name of the shipped file that a spelling means; "" for none."""
    low = text.lower()
    if low in _names():
        return low
    index = _aliases()
    last = low.rpartition("/")[2]
    for spelling in (low, last, _WORDS.sub("", last)):
        found = index.get(_normal(spelling))
        if found:
            return found
    return ""


@lru_cache(maxsize=1)
def _names() -> frozenset[str]:
    return frozenset(names())


def shipped(name: str) -> str:
    """Name of the shipped network that a spelling means; nothing is read or fetched.

    Raises SpecError with the nearest three names.
    """
    key = _shipped(name.strip())
    if not key:
        raise SpecError(unknown_name("model", name, names(), "`ridgecast models` lists them."))
    return key


def _normal(spelling: str) -> str:
    text = spelling.lower().removeprefix("meta-llama/").removeprefix("meta-")
    return re.sub(r"[^a-z0-9]", "", text)


@lru_cache(maxsize=1)
def _aliases() -> dict[str, str]:
    index = {_normal(name): name for name in names()}
    path = CATALOG / "aliases.json"
    document: dict[str, list[str]] = _json(path) if path.exists() else {}
    for name, spellings in document.items():
        for spelling in spellings:
            known = index.setdefault(_normal(spelling), name)
            if known != name:
                raise SpecError(f"aliases.json: {spelling!r} names both {known} and {name}")
    return index


def _from_hub(repo: str) -> Network:
    """Fetch config.json of a Hugging Face id, and nothing else."""
    near = f"nearest shipped: {', '.join(nearest(repo.rpartition('/')[2], names()))}"
    try:
        from huggingface_hub import hf_hub_download  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtraError(
            f"{repo} is not shipped and needs huggingface-hub to be fetched: "
            f"pip install 'ridgecast[hf]' ({near})"
        ) from None
    try:
        path = Path(hf_hub_download(repo, "config.json"))
    except Exception as err:  # the library's errors have no common base; all mean the same here
        raise NoDataError(
            f"{repo}: cannot fetch its config.json ({type(err).__name__}); is the name right, the "
            f"network there, the licence accepted? A path to a config.json works offline ({near})"
        ) from None
    config = _json(path)
    config.setdefault("_source", repo)
    try:
        config.setdefault("quantization_config",
                          _json(Path(hf_hub_download(repo, "hf_quant_config.json"))))  # fmt: skip
    except Exception:  # most have none
        pass
    return _built(config, repo.rpartition("/")[2].lower())
