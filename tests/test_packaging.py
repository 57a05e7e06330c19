"""What is published: built, installed where nothing else is, and used there."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
NAME = "llama-index-refine"

pytest.importorskip("hatchling")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a program that must succeed, away from the checkout and this environment's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=kept, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (built,) = folder.glob("*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """Built from the sdist alone, as whoever downloads that would."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=source)
    (built,) = folder.glob("*.whl")
    return built


def needed(requirements: list[str], extras: frozenset[str] = frozenset()) -> dict[str, metadata.Distribution]:
    """The distributions that requirements lead to, by name, as far as they are installed here."""
    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(Requirement(text), extras) for text in requirements]
    while waiting:
        requirement, outer = waiting.pop()
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in outer or {""}):
            continue
        name, inner = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, inner) in seen:
            continue
        seen.add((name, inner))
        found[name] = metadata.distribution(name)
        waiting += [(Requirement(text), inner) for text in found[name].requires or []]
    return found


def link(distributions: list[metadata.Distribution], packages: Path) -> None:
    """Make these distributions, and no others, importable from a folder.

    A folder of one distribution is linked whole; one that several share, such as `llama_index`, file by file.
    """
    owners: dict[str, set[str]] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        for top in {file.parts[0] for file in distribution.files or []}:
            owners.setdefault(top, set()).add(name)
    for distribution in distributions:
        files = [file.parts for file in distribution.files or [] if not {"..", "__pycache__"} & set(file.parts)]
        for parts in {parts[:1] if len(owners[parts[0]]) == 1 else parts for parts in files}:
            place = packages.joinpath(*parts)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(distribution.locate_file("").joinpath(*parts))


@pytest.fixture(scope="module")
def base(wheel, tmp_path_factory) -> Path:
    """An environment that holds the wheel and what it cannot do without: no extra, no test tool, no checkout."""
    folder = tmp_path_factory.mktemp("base") / "env"
    venv.create(folder, symlinks=True, with_pip=False)
    python = folder / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    with zipfile.ZipFile(wheel) as archive:
        (described,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        requires = email.message_from_bytes(archive.read(described)).get_all("Requires-Dist") or []
    link(list(needed(requires).values()), packages)
    install = ["--no-deps", "--no-index", "--ignore-installed", "--no-warn-script-location", "--quiet"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *install, wheel, cwd=folder)
    return python


def test_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"llama_index_refine"}
    assert "llama_index_refine/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    packaged = {name for name in names if name.endswith(".py")}
    assert packaged == {str(path.relative_to(ROOT)) for path in (ROOT / "llama_index_refine").rglob("*.py")}


def test_sdist_holds_what_it_takes_to_test_and_to_cite(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md"):
        assert name in names
    assert "tests/test_packaging.py" in names
    assert not any("__pycache__" in name or name.endswith(".pyc") for name in names)


def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (described,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        described_as = email.message_from_bytes(archive.read(described))
        (entries,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        commands = archive.read(entries).decode()
    assert described_as["Name"] == NAME
    assert described_as["License-Expression"] == "Apache-2.0"
    assert "llama-index-refine = llama_index_refine.commands.cli:main" in commands
    assert {"openai", "sentence-transformers", "edge", "plot"} <= set(described_as.get_all("Provides-Extra"))
    optional = {"openai", "sentence-transformers", "matplotlib", "qdrant-edge-py", "gradio"}
    always = {Requirement(text).name for text in described_as.get_all("Requires-Dist") if "extra ==" not in text}
    assert not always & optional


def test_llamahub_metadata():
    tomllib = pytest.importorskip("tomllib")
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert tool["llamahub"]["import_path"] == "llama_index_refine"
    import llama_index_refine

    assert set(tool["llamahub"]["class_authors"]) <= set(llama_index_refine.__all__)
    assert "RefinedRetriever" in tool["llamahub"]["class_authors"]


def test_version_is_the_same_everywhere(wheel):
    import llama_index_refine

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert wheel.name.split("-")[1] == llama_index_refine.__version__ == citation["version"]
    assert f"## {llama_index_refine.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    (paper,) = citation["references"]
    assert paper["title"] == "Task-Adaptive Embedding Refinement via Test-time LLM Guidance"
    assert "2605.12487" in paper["url"]
    assert len(paper["authors"]) == 5


def test_base_install_needs_nothing_else(base, tmp_path):
    listed = run(sys.executable, "-m", "pip", "--python", base, "list", "--format=freeze", cwd=tmp_path).lower()
    for optional in (
        "matplotlib==",
        "sentence-transformers==",
        "pytest==",
        "qdrant-edge-py==",
        "llama-index-llms-openai",
    ):
        assert optional not in listed
    run(sys.executable, "-m", "pip", "--python", base, "check", cwd=tmp_path)


def test_every_module_imports_or_names_its_extra(base, tmp_path):
    program = """
import importlib, pkgutil
import llama_index_refine

assert "site-packages" in llama_index_refine.__file__
exec("from llama_index_refine import *")
assert set(llama_index_refine.__all__) <= set(globals())
try:
    OpenAIGrader("a-model")
except ImportError as error:
    assert 'pip install "llama-index-refine[openai]"' in str(error), error
else:
    raise SystemExit("openai is there")
for module in pkgutil.walk_packages(llama_index_refine.__path__, "llama_index_refine."):
    if module.name.startswith("llama_index_refine.ui."):
        continue
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        assert 'pip install "llama-index-refine[' in str(error), (module.name, repr(error))
        print("needs an extra:", module.name)

# What lies behind the playground is reached through this.
try:
    llama_index_refine.ui.launch(None)
except ImportError as error:
    assert 'pip install "llama-index-refine[ui]"' in str(error), error
else:
    raise SystemExit("gradio is there")
"""
    needing = run(base, "-c", program, cwd=tmp_path).split("needs an extra: ")[1:]
    for name in ("RefinedRetriever", "QueryRefiner", "Refinement", "BaseGrader", "LLMGrader"):
        assert f"{name}\n" not in needing


def test_base_install_does_the_whole_job(base, tmp_path):
    shutil.copy(ROOT / "tests" / "small_index.py", tmp_path)
    program = """
import logging
from llama_index_refine import LLMGrader, RefinedRetriever
from small_index import QUERY, SubjectGrader, make_index

refinement = RefinedRetriever.from_index(make_index(), grader=SubjectGrader("owls"), similarity_top_k=4).refine(QUERY)
assert refinement.refined, refinement.reason
assert [entry.node.metadata["subject"] for entry in refinement.nodes] == ["owls"] * 4
assert "owl" in refinement._repr_html_() and refinement.to_json()
try:
    refinement.plot()
except ImportError as error:
    assert 'pip install "llama-index-refine[plot]"' in str(error), error
else:
    raise SystemExit("matplotlib is there")
logging.disable()
without = RefinedRetriever.from_index(make_index(), grader=LLMGrader()).refine(QUERY)
assert not without.refined and len(without.nodes) == 10
"""
    run(base, "-W", "ignore", "-c", program, cwd=tmp_path)


def test_base_install_has_the_command(base, tmp_path):
    command = base.parent / NAME
    assert "Usage" in run(command, "--help", cwd=tmp_path)


def test_a_release_is_tested_built_and_installed_before_it_is_published():
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    workflow = yaml.safe_load(text)
    jobs, name, before = workflow["jobs"], "publish", []
    while name := jobs[name].get("needs"):
        before.append(name)
    assert before == ["install", "build", "test"]
    # No password is stored anywhere: the job proves who it is.
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in text


def test_the_oldest_versions_are_tested_once():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    steps = [step for step in jobs["lowest"]["steps"] if step.get("run") == "make test-lowest"]
    # Else it is PyPI's CUDA build that is fetched.
    assert [step["env"]["UV_TORCH_BACKEND"] for step in steps] == ["cpu"]


@pytest.mark.parametrize("file", ["Makefile", ".github/workflows/ci.yml"])
def test_what_is_run_exists(file):
    named = re.findall(r"(?<![\w/.])(?:tests|results|examples)/[\w/.]+", (ROOT / file).read_text())
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_image_is_made_of_what_is_here():
    tomllib = pytest.importorskip("tomllib")
    recipe = (ROOT / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"^ARG EXTRAS=(.+)$", recipe, re.MULTILINE)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", recipe, re.MULTILINE) for name in line.split()]
    assert {project["readme"], "pyproject.toml", "llama_index_refine"} <= set(copied)
    assert [name for name in copied if f"!{name}" not in (ROOT / ".dockerignore").read_text().split()] == []
    assert [name for name in copied if not (ROOT / name).exists()] == []
    (command,) = re.findall(r'^ENTRYPOINT \["(.+)"\]$', recipe, re.MULTILINE)
    assert command in project["scripts"]


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text())
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_the_readme_says_what_torch_takes_up_and_how_to_take_less():
    page = (ROOT / "README.md").read_text()
    assert "CUDA build" in page
    assert "--torch-backend=cpu" in page
    assert "README.md" in (ROOT / "constraints.txt").read_text()
