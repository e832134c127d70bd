"""The import law: arrows point downwards only, in Python imports and in cimports."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rustosd", "drivers", "netstack", "mm")

# What each package may import of the others.
MAY_IMPORT = {
    "rustosd": {"netstack", "drivers", "mm"},
    "netstack": {"mm"},
    "drivers": {"mm"},
    "mm": set(),
}

# Inside netstack a module imports only from rooms lower than its own, or from its own room.
NETSTACK_ROOMS = (
    ("netstack.verdict", "netstack.counters", "netstack.errors", "netstack.bpf", "netstack.verbs", "netstack.wire"),
    ("netstack.net", "netstack.timers"),
    ("netstack.route", "netstack.link", "netstack.neighbor"),
    ("netstack.ip",),
    ("netstack.icmp", "netstack.udp", "netstack.tcp"),
    ("netstack.stack",),
    ("netstack.sockets",),
)

STATIC_CIMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import\s+\(?([\w, *]+)|cimport\s+([\w.]+))", re.MULTILINE)
ALWAYS_THERE = {"cython", "libc", "cpython"}

IMPURE = {"asyncio", "random", "secrets", "select", "selectors", "signal", "socket", "subprocess", "threading", "time"}


def sources():
    for package in PACKAGES:
        yield from sorted(p for p in (ROOT / package).rglob("*.p*") if p.suffix in (".py", ".pxd", ".pyi"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of_python(path: Path):
    """Every module name imported anywhere in a file; `cython.cimports.x` counts as x."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("cython.cimports.") for name in names)


def imports_of_pxd(path: Path):
    for match in STATIC_CIMPORT.finditer(path.read_text()):
        base, names, whole = match.groups()
        yield from [whole] if whole else [f"{base}.{name.strip()}" for name in names.split(",")]


def imports_of(path: Path):
    return list(imports_of_pxd(path) if path.suffix == ".pxd" else imports_of_python(path))


def room_of(module: str) -> int | None:
    for level, rooms in enumerate(NETSTACK_ROOMS):
        if any(module == room or module.startswith(room + ".") for room in rooms):
            return level
    return None


def is_core(module: str) -> bool:
    """Whether this is a module of the stack below its sockets, which belong to asyncio."""
    return module.startswith("netstack.") and not module.startswith("netstack.sockets")


def offences(module: str, imported: list[str]) -> list[str]:
    """What of `imported` the module called `module` must not import, each with the reason."""
    package = module.partition(".")[0]
    found = []
    for name in imported:
        top = name.partition(".")[0]
        if top in PACKAGES:
            if top != package and top not in MAY_IMPORT[package]:
                found.append(f"{module} imports {name}: {package} must not know {top}")
            if top == package == "netstack":
                own, other = room_of(module), room_of(name)
                if own is not None and other is not None and other > own:
                    found.append(f"{module} imports {name}, which is above it")
        elif package == "mm" and top not in sys.stdlib_module_names and top not in ALWAYS_THERE:
            found.append(f"{module} imports {name}: mm has the standard library only")
        elif package == "netstack" and top in IMPURE and is_core(module):
            found.append(f"{module} imports {name}: the stack has no I/O, clock or randomness of its own")
    return found


@pytest.mark.parametrize("path", list(sources()), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_what_is_below_it(path):
    assert offences(module_of(path), imports_of(path)) == []


def test_the_stack_asks_the_system_for_nothing_but_the_words_of_an_error():
    for path in sources():
        if is_core(module_of(path)):
            assert set(re.findall(r"\bos\.(\w+)", path.read_text())) <= {"strerror"}, path


def test_every_module_of_the_stack_has_a_room():
    homeless = [m for m in map(module_of, sources()) if m.startswith("netstack.") and room_of(m) is None]
    assert homeless == []


@pytest.mark.parametrize(("module", "imported", "guilty"), [
    ("drivers.tap", "netstack.stack.Stack", True),
    ("netstack.stack", "drivers.tap", True),
    ("netstack.stack", "rustosd.config", True),
    ("mm.frame", "msgspec.Struct", True),
    ("mm.frame", "struct.pack", False),
    ("mm.frame", "libc.stdint.uint8_t", False),
    ("netstack.wire.address", "netstack.net.Net", True),
    ("netstack.route", "netstack.ip.Path", True),
    ("netstack.tcp.connection", "netstack.ip.Path", False),
    ("netstack.udp", "time.monotonic", True),
    ("netstack.sockets", "asyncio.Future", False),
    ("rustosd.pump", "netstack.stack.Stack", False),
])
def test_the_law_is_not_blind(module, imported, guilty):
    assert bool(offences(module, [imported])) is guilty


def test_imports_are_found_in_both_languages(tmp_path):
    pxd = tmp_path / "x.pxd"
    pxd.write_text("from libc.stdint cimport uint8_t, uint16_t\nfrom netstack.net cimport Net\ncimport cython\n")
    assert imports_of_pxd(pxd) and "netstack.net.Net" in imports_of(pxd) and "cython" in imports_of(pxd)
    here = ROOT / "netstack" / "wire" / "address.py"
    assert any(name.startswith("libc.") or name.startswith("mm.hw") for name in imports_of(here))
