"""Dependencies point one way. The table below is the architecture; a module may import its own layer and those listed.

Read from the source, so an import inside a function counts too. One for type checkers only does not.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

BOTTOM = ["errors", "axis", "address", "keep", "einop", "graph"]
RULES = [*BOTTOM, "rule", "rules"]
CORE = [*RULES, "kernels", "weights", "amount", "plan", "core"]

MAY_IMPORT = {
    # the algebra, and what a rule says in it
    "errors": [],
    "axis": [],
    "address": ["axis"],
    "keep": ["axis", "errors"],
    "einop": ["axis", "errors"],
    "graph": ["errors"],
    "rule": BOTTOM,
    "rules": [*BOTTOM, "rule"],
    # pruning of single matrices: mathematics only
    "weights": ["errors"],
    # ops of our own: each brings its rule
    "kernels": ["axis", "errors", "rule"],
    # a decision: data only
    "amount": ["errors"],
    "plan": ["errors"],
    # capture, program, analyses, pipeline: every module of fxcompress/ that has no line of its own
    "core": CORE,
    # what is done with a program
    "passes": CORE,
    "export": CORE,
    "recipe": [*CORE, "passes"],
    "calibration": [*CORE, "recipe"],
    "source": [*CORE, "export"],
    # for users: the model they hold, runs from directory to directory, `import fxcompress`, the command line
    "compressed": [*CORE, "passes", "export", "source"],
    "run": [*CORE, "passes", "export", "source", "compressed", "recipe", "calibration"],
    "searching": [*CORE, "passes", "export", "source", "compressed", "run", "recipe", "calibration"],
    "distillation": [*CORE, "passes", "export", "source", "compressed", "run"],
    "fxcompress": [*CORE, "passes", "export", "compressed", "run", "searching", "distillation"],
    "cli": [
        *CORE,
        "passes",
        "export",
        "source",
        "compressed",
        "run",
        "recipe",
        "searching",
        "distillation",
        "fxcompress",
    ],
}

FAMILIES = """
    bamba bloom deepseek falcon gemma gpt granite jamba llama mamba mistral mixtral nemotron olmo opt qwen zamba
"""


def sources() -> dict[str, Path]:
    """Every module's file by the module's name."""
    roots = {"fxcompress": "fxcompress", "kernels": "fxcompress/kernels", "passes": "fxcompress/passes"}
    files = {
        Path(place) / path.relative_to(ROOT / folder): path
        for folder, place in roots.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    return {".".join(name.with_suffix("").parts).removesuffix(".__init__"): path for name, path in files.items()}


SOURCES = sources()


def layer(module: str) -> str:
    """The layer of a module, or of a name in one."""
    top, _, rest = module.partition(".")
    first = rest.partition(".")[0]
    if not first or f"{top}.{first}" not in SOURCES:
        return "fxcompress"
    return first if first in MAY_IMPORT else "core"


def imports(source: str) -> Iterator[str]:
    """Dotted names that the source imports, but for those under `if TYPE_CHECKING`."""
    todo: list[ast.AST] = [ast.parse(source)]
    while todo:
        node = todo.pop()
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                todo += node.orelse
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                assert node.level == 0, "imports are absolute, so that they read the same everywhere"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            case _:
                todo += ast.iter_child_nodes(node)


def named_families(source: str, families: Iterable[str] = FAMILIES.split()) -> set[str]:
    """Model families whose name is a word of an identifier or a string; comments and docstrings may cite papers."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    names = " ".join(
        text
        for node in ast.walk(tree)
        if id(node) not in docstrings
        for _, value in ast.iter_fields(node)
        for text in (value if isinstance(value, list) else [value])
        if isinstance(text, str)
    )
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", names)  # LlamaForCausalLM, qwen3_moe
    return {word.lower() for word in words} & set(families)


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_layer_imports_only_what_lies_below(name: str):
    wrong = [
        f"{module} imports {target}"
        for module, path in SOURCES.items()
        if layer(module) == name
        for target in imports(path.read_text())
        if target.split(".")[0] == "fxcompress" and layer(target) not in (name, *MAY_IMPORT[name])
    ]
    assert not wrong


@pytest.mark.parametrize("name", ["axis", "keep", "amount", "plan"])
def test_algebra_and_decisions_know_nothing_of_graphs(name: str):
    source = SOURCES[f"fxcompress.{name}"].read_text()
    assert not [target for target in imports(source) if target.startswith("torch.fx")]


def test_only_kernels_import_triton():
    users = {
        layer(module)
        for module, path in SOURCES.items()
        for name in imports(path.read_text())
        if name.split(".")[0] == "triton"
    }
    assert users <= {"kernels"}


def test_no_model_family_is_named_outside_export():
    """The one table of replacements names functions of modeling files, which carry such names."""
    named = {
        module: families
        for module, path in SOURCES.items()
        if layer(module) != "export"
        and not module.startswith("fxcompress.replacements")
        and (families := named_families(path.read_text()))
    }
    assert not named


# The tests above can fail.


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import fxcompress.passes.tap as tap", ["fxcompress.passes.tap"]),
        ("from fxcompress import passes", ["fxcompress.passes"]),
        ("def f():\n    from torch import fx", ["torch.fx"]),
        ("if TYPE_CHECKING:\n    import fxcompress.cli\nelse:\n    import triton", ["triton"]),
    ],
)
def test_imports_are_seen(source: str, names: list[str]):
    assert list(imports(source)) == names


@pytest.mark.parametrize(
    "source",
    ["LlamaForCausalLM()", "from transformers.models.qwen3_moe import x", "f'{a} is a mamba2 model'", "f(gpt2=1)"],
)
def test_a_family_is_seen_in_code(source: str):
    assert named_families(source)


@pytest.mark.parametrize("source", ['"""Mamba-2, section 6."""', "x = 1  # as Llama does", "options = optimal"])
def test_a_family_is_not_seen_in_prose_or_within_a_word(source: str):
    assert not named_families(source)
