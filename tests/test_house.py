"""The house: who may import whom, what an import costs, and what the README promises."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import ridgecast

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "ridgecast"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = {path: path.read_text(encoding="utf-8") for path in MODULES}

# DESIGN: each room imports only from rooms above it; rooms of one line never from each other.
LINES = [
    ["errors"],
    ["units", "dtypes"],
    ["richtext"],
    ["hardware"],
    ["ops"],
    ["kernels"],
    ["store"],
    ["predict"],
    ["measure"],
    ["accuracy"],
    ["models"],
    ["techniques"],
    ["scenario"],
    ["serving", "training"],
    ["search"],
    ["claims"],
    ["report"],
    ["web"],
    ["cli"],
]
DEPTH = {room: depth for depth, line in enumerate(LINES) for room in line}
LIGHT = [room for line in LINES[: DEPTH["predict"] + 1] for room in line]
HEAVY = (
    "duckdb lightgbm pydantic typer rich click pyarrow pandas scipy sklearn torch numba matplotlib "
    "fastapi uvicorn jinja2 pynvml aiconfigurator_core ray fsspec"
).split()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path, source: str) -> list[str]:
    """Absolute names of everything that a module imports, wherever the import stands."""
    package = ["ridgecast", *path.relative_to(PACKAGE).parent.parts]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            # `from . import x` may name a module or a value: keep both readings
            found += [name, *(f"{name}.{alias.name}" for alias in node.names)]
    return found


def rooms_imported(path: Path, source: str) -> set[str]:
    names = (name.split(".") for name in imported_modules(path, source))
    return {parts[1] for parts in names if parts[0] == "ridgecast" and len(parts) > 1} & set(DEPTH)


def breach(room: str, other: str) -> bool:
    return other != room and DEPTH[other] >= DEPTH[room]


def test_every_module_is_in_a_known_room():
    rooms = {room_of(path) for path in MODULES} - {"__init__", "__main__", "testing"}
    assert rooms <= set(DEPTH)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_import_upwards_only(path):
    room = room_of(path)
    if room not in DEPTH:
        pytest.skip("the top package names every room, lazily")
    wrong = [o for o in rooms_imported(path, SOURCES[path]) if breach(room, o)]
    assert not wrong, f"{room} must not import {wrong}"


def test_the_import_test_sees_a_breach():
    path = PACKAGE / "ops" / "made_up.py"
    assert rooms_imported(path, "def f():\n    from ..predict.train import train") == {"predict"}
    assert rooms_imported(path, "from .. import cli") == {"cli"}
    assert breach("ops", "predict") and breach("serving", "training")
    assert not breach("predict", "ops") and not breach("ops", "ops")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )


def test_rooms_up_to_predict_import_only_stdlib_and_numpy():
    present = [room for room in LIGHT if room in {room_of(path) for path in MODULES}]
    modules = [
        ".".join(["ridgecast", *path.relative_to(PACKAGE).with_suffix("").parts])
        for path in MODULES
        if room_of(path) in present
    ]
    names = sorted({name.removesuffix(".__init__") for name in modules})
    code = f"""
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError(name + " is imported before anyone asked for it")
sys.meta_path.insert(0, Block())
for name in {names!r}:
    importlib.import_module(name)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr[-2000:]


def test_importing_the_package_loads_nothing():
    code = "import sys, ridgecast; print(sorted(m for m in sys.modules if 'numpy' in m or "
    done = run_python(code + "m.startswith('ridgecast.')))")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_public_names_are_few_and_all_load():
    assert len(ridgecast.__all__) <= 40
    assert list(ridgecast.__all__) == sorted(ridgecast.__all__)
    for name in ridgecast.__all__:
        assert getattr(ridgecast, name) is not None


def test_verb_rooms_stay_callable_after_their_submodules_are_imported():
    import_module("ridgecast.predict")
    import_module("ridgecast.hardware")
    assert callable(ridgecast.predict) and callable(ridgecast.hardware)
    assert ridgecast.hardware("h200_sxm") is import_module("ridgecast.hardware").get("h200_sxm")


def test_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'predikt'"):
        _ = ridgecast.predikt


FORBIDDEN = {
    r"^\s*(import|from)\s+(pickle|joblib|cloudpickle|dill|shelve)\b": "no pickled files",
    r"\beval\(|\bexec\(": "no evaluation of text",
    r"^\s*except\s*:": "no bare except",
    r"/(work|home|tmp)/\w": "no path of one machine",
}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_forbidden_words(path):
    for pattern, why in FORBIDDEN.items():
        found = re.search(pattern, SOURCES[path], re.MULTILINE)
        assert found is None, f"{why}: {found}"


def test_no_print_outside_the_faces():
    for path, source in SOURCES.items():
        if room_of(path) in ("cli", "report", "web"):
            continue
        calls = [
            node.lineno
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
        ]
        assert not calls, f"print in {path.relative_to(PACKAGE)}, lines {calls}"


def test_readme_keeps_its_two_commands_and_its_order():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    main = "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/ridgecast predict gemm"
    test = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest"
    assert main in readme and f"{test}\n" in readme and test in ci
    marks = ["output:begin", "import ridgecast as rc", "picture:begin", "accuracy:begin"]
    places = [readme.index(mark) for mark in [*marks, "## Limits"]]
    assert places == sorted(places)


def test_version_is_written_once():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    assert version and ridgecast.__version__ == version.group(1)
