"""The stubs tell type checkers what the compiled modules are: every public name, every parameter, every default."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rustosd", "drivers", "netstack", "mm")
STUBS = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.pyi"))]


def declared_classes(path):
    return [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]


def declared(cls):
    """name -> AST of each method, None for a property."""
    return {node.name: None if any(getattr(d, "id", "") == "property" for d in node.decorator_list) else node
            for node in cls.body if isinstance(node, ast.FunctionDef)}


def parameters_of_stub(function):
    a = function.args
    required = len(a.args) - len(a.defaults)
    return ([(arg.arg, i >= required) for i, arg in enumerate(a.args) if arg.arg != "self"]
            + [(arg.arg, default is not None) for arg, default in zip(a.kwonlyargs, a.kw_defaults, strict=True)])


def parameters_of_module(function):
    return [(p.name, p.default is not p.empty) for p in inspect.signature(function).parameters.values()
            if p.name != "self"]


@pytest.mark.parametrize("path", STUBS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_stub_says_what_its_module_has(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for node in declared_classes(path):
        real = getattr(module, node.name)
        if any(getattr(base, "id", "") == "IntFlag" for base in node.bases):
            assert {s.targets[0].id: s.value.value for s in node.body} == {m.name: int(m) for m in real}
            continue
        public = {name for name in vars(real) if not name.startswith("_")}
        stub = declared(node)
        assert {name for name in stub if not name.startswith("_")} == public
        for name in public:
            if stub[name] is None:
                assert not callable(getattr(real, name)), name
            else:
                assert parameters_of_stub(stub[name]) == parameters_of_module(getattr(real, name)), name
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.AnnAssign):
            assert hasattr(module, node.target.id), node.target.id


def test_there_is_a_stub_for_each_compiled_class_that_users_import():
    assert {str(path.relative_to(ROOT)) for path in STUBS} >= {
        "mm/frame.pyi", "drivers/tap.pyi", "netstack/stack.pyi", "netstack/tcp/api.pyi", "netstack/udp.pyi"}
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").exists()
