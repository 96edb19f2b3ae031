"""tools/check.py: which steps a change asks for, and from which commit on it is counted."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import check
import pytest
from changed import AREAS, FULL, areas_of, changed_areas
from check import STEPS, Extent, Plan

pytestmark = pytest.mark.python_only

IDENTITY = {f"GIT_{who}_{what}": "test@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def steps_of(*paths: str) -> list[str]:
    plan = Plan(Extent.CHANGE, ("scalar",), areas_of(paths))
    return [step.name for step in STEPS if not step.why_not(plan)]


def test_each_step_names_areas_that_there_are() -> None:
    assert {area for step in STEPS for area in step.areas} == set(AREAS)


@pytest.mark.parametrize(
    ("path", "areas"),
    [
        ("docs/cuda.md", set()),
        ("README.md", set()),
        ("pylogquant/cli/chat.py", set()),
        ("tests/cli/test_cli.py", set()),
        ("pylogquant/templates.py", {"oracles", "readers"}),
        ("pylogquant/transformers/store.py", {"transformers"}),
        ("pylogquant/session.py", {"devices", "oracles", "readers"}),
        ("pylogquant/kv.py", {"devices", "oracles", "readers", "transformers"}),
        ("tests/helpers/kv_oracle.py", {"oracles", "transformers"}),
        ("native/src/session/session.c", {"core", "devices", "oracles"}),
        ("native/src/backends/cuda/rows.cu", {"core", "cuda", "devices", "oracles"}),
        ("native/src/formats/kv_page.h", {"core", "cuda", "devices", "oracles", "transformers"}),
        ("pyproject.toml", set(AREAS)),
        ("tools/check.py", set(AREAS)),
    ],
)
def test_areas(path: str, areas: set[str]) -> None:
    assert areas_of([path]) == areas
    assert areas_of(["docs/models.md", path]) == areas


def test_what_always_runs_and_what_a_change_of_the_core_asks_for() -> None:
    assert steps_of("docs/models.md") == ["pytest"]
    assert {"native tests with sanitizers", "pytest with sanitizers"} <= set(steps_of("native/src/sampler.c"))
    assert steps_of(".ci/run") == [step.name for step in STEPS]
    everything = Plan(Extent.ALL, ("scalar",), frozenset())
    assert not any(step.why_not(everything) for step in STEPS)


def git(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, **IDENTITY, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    return subprocess.run(
        ["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    if shutil.which("git") is None:
        pytest.skip("needs git")
    git(tmp_path, "init", "-q")
    for name in ("native/a.c", "docs/a.md"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_changes_count_from_the_last_full_run(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / FULL).parent.mkdir()
    (checkout / FULL).write_text(git(checkout, "rev-parse", "HEAD") + "\n")
    (checkout / "docs" / "a.md").write_text("2\n")
    assert changed_areas(checkout) == frozenset()
    git(checkout, "mv", "native/a.c", "docs/a.c")
    git(checkout, "commit", "-qam", "second")
    assert "core" in changed_areas(checkout)  # a file that went away is a change where it was
    (checkout / "pylogquant").mkdir()
    (checkout / "pylogquant" / "new.py").write_text("")
    assert "readers" in changed_areas(checkout)  # so is one that git does not know yet
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("named", ["", "0" * 40, "nothing", "other"])
def test_without_a_usable_full_run_everything_is_checked(
    checkout: Path, capsys: pytest.CaptureFixture[str], named: str
) -> None:
    if named == "other":  # a commit that exists, on another branch
        git(checkout, "checkout", "-qb", "other")
        git(checkout, "commit", "-q", "--allow-empty", "-m", "elsewhere")
        named = git(checkout, "rev-parse", "HEAD")
        git(checkout, "checkout", "-q", "-")
    if named:
        (checkout / FULL).parent.mkdir()
        (checkout / FULL).write_text(named)
    assert changed_areas(checkout) == frozenset(AREAS)
    (line,) = capsys.readouterr().out.splitlines()
    assert ("no ancestor" if named else "does not exist") in line
    assert "every step runs" in line


def test_times_are_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "REPORT", check.Report())
    for part in ("lint", "pytest"):
        with check.timed(part):
            pass
    check.REPORT.show_times(90.0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["lint", "pytest", "in"]
    assert lines[-1].endswith("(1.5 minutes)")
