"""What a package exports exists, is documented, and is what its stub says."""

import ast
import importlib
import inspect

import pytest
from workspace import PACKAGES, ROOT

MODULES = [
    ".".join(path.relative_to(ROOT / "packages" / name / "src").with_suffix("").parts)
    for name in PACKAGES
    for path in sorted((ROOT / "packages" / name / "src").rglob("[!_]*.py"))
]


def exported(name: str) -> list[str]:
    stub = ROOT / "packages" / name / "src" / "potstill" / name / "__init__.pyi"
    tree = ast.parse(stub.read_text())
    return [a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names]


@pytest.mark.parametrize("name", PACKAGES)
def test_exported_names_exist_and_are_documented(name: str) -> None:
    module = importlib.import_module(f"potstill.{name}")
    names = exported(name)
    assert len(names) == len(set(names))
    assert sorted(module.__all__) == sorted(names)
    for public in names:
        thing = getattr(module, public)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), f"potstill.{name}.{public} has no docstring"


@pytest.mark.parametrize("name", PACKAGES)
def test_a_stub_imports_each_name_for_others_to_use(name: str) -> None:
    # A type checker takes `from .a import b` in a stub for private; lazy_loader wants it relative.
    stub = ROOT / "packages" / name / "src" / "potstill" / name / "__init__.pyi"
    for node in ast.parse(stub.read_text()).body:
        assert isinstance(node, ast.ImportFrom), ast.dump(node)
        assert node.level == 1
        assert all(alias.asname == alias.name for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_and_classes_of_a_module_are_documented(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("potstill"):
            raise
        pytest.skip(f"{name} is a backend that needs {missing.name}")
    assert module.__doc__, f"{name} has no docstring"
    for public in getattr(module, "__all__", []):
        thing = getattr(module, public)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert thing.__doc__, f"{name}.{public} has no docstring"
            if inspect.isclass(thing):
                undocumented = [
                    attribute
                    for attribute, value in vars(thing).items()
                    if not attribute.startswith("_")
                    and attribute != "forward"
                    and inspect.isfunction(value)
                    and not inspect.getdoc(getattr(thing, attribute))
                ]
                assert undocumented == [], f"{name}.{public}"


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError):
        _ = importlib.import_module("potstill.core").nonsense
