"""The wheel holds what the tree holds: pyproject.toml lists each new package, and each new file that is not Python."""

import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
PLACES = {folder: package.replace(".", "/") for package, folder in SETUPTOOLS["package-dir"].items()}


def files_in_tree() -> set[str]:
    """Every file under the three roots, named by its place in the wheel."""
    return {
        f"{place}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, place in PLACES.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """Built from a copy: setuptools takes what an earlier build left in build/ for source."""
    copy = tmp_path_factory.mktemp("source")
    for folder in PLACES:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]):
        shutil.copy(ROOT / name, copy)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (built,) = (copy / "dist").glob("*.whl")
    return ZipFile(built)


def test_every_package_of_the_tree_is_listed_and_every_listed_one_is_there():
    packages = {
        name.removesuffix("/__init__.py").replace("/", ".") for name in files_in_tree() if "__init__.py" in name
    }
    assert set(SETUPTOOLS["packages"]) == packages


def test_wheel_holds_the_files_of_the_tree_and_no_others(wheel: ZipFile):
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == files_in_tree()


def test_wheel_says_that_it_is_typed(wheel: ZipFile):
    assert "fxcompress/py.typed" in wheel.namelist()


@pytest.mark.parametrize("folder", sorted(set(PLACES) - {"fxcompress"}))
def test_a_top_level_folder_cannot_be_imported_as_a_second_copy(folder: str):
    """`import passes` would be another module than fxcompress.passes, with registries of its own."""
    spec = find_spec(folder)  # another distribution may have that name
    assert spec is None or str(ROOT / folder) not in spec.submodule_search_locations


@pytest.mark.parametrize("first", ["transformers", "fxcompress"])
def test_python_started_in_the_repository_takes_kernels_for_no_package_of_its_own(first):
    """transformers looks for a package named ``kernels``, which is another project's."""
    code = (
        f"import {first}; from transformers import AutoModelForCausalLM; import fxcompress;"
        "from transformers.utils import is_kernels_available; print(is_kernels_available())"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-500:]
    assert run.stdout.split()[-1] == "False"
