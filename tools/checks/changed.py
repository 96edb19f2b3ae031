"""Finds which areas of files changed since all checks last passed. Steps of tools/check.py depend on such areas."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

FULL = Path(".ci", "full")  # the last commit that passed --all, by its name


@dataclass(frozen=True)
class Area:
    """Files that belong together, by how their paths begin, and which of those do not count."""

    starts: tuple[str, ...]
    but: tuple[str, ...] = ()

    def holds(self, path: str) -> bool:
        return path.startswith(self.starts) and not path.startswith(self.but)


# What is in no area, documents and the command line for the most part, is checked by steps that always run.
AREAS: Mapping[str, Area] = {
    "core": Area(
        ("native/", "CMakeLists.txt", "tools/models/make_tiny_gguf.py", "tools/codegen/", "tools/checks/lq_run.c")
    ),
    "cuda": Area(
        (
            "native/include/",
            "native/src/backends/backend.h",
            "native/src/backends/cuda/",
            "native/src/backends/gpu_library.h",
            "native/src/formats/",
            "native/tests/check_",
            "native/tests/cuda_emulation/",
            "tools/codegen/ptx_to_cpp.py",
        )
    ),
    # What reaches a GPU, which the emulation of one takes minutes for.
    "devices": Area(
        (
            "native/",
            "CMakeLists.txt",
            "pylogquant/",
            "tests/core/test_",
            "tests/helpers/reference.py",
            "tools/codegen/",
            "tools/models/make_",
        ),
        but=(
            "pylogquant/_advice.py",
            "pylogquant/_download.py",
            "pylogquant/_names.py",
            "pylogquant/_sources.py",
            "pylogquant/bpe.py",
            "pylogquant/chat",
            "pylogquant/cli/",
            "pylogquant/evaluate.py",
            "pylogquant/hub.py",
            "pylogquant/loops.py",
            "pylogquant/plots.py",
            "pylogquant/pretokenizers.py",
            "pylogquant/sandbox",
            "pylogquant/spikes.py",
            "pylogquant/templates.py",
            "pylogquant/tokenizer.py",
            "pylogquant/transcripts.py",
            "pylogquant/transformers/",
        ),
    ),
    # What other libraries are asked about: logits, token ids, templates, what caches cost.
    "oracles": Area(
        ("native/", "CMakeLists.txt", "pylogquant/", "tests/", "tools/"),
        but=(
            "pylogquant/cli/",
            "pylogquant/transformers/",
            "tests/cli/",
            "tests/package/",
            "tests/transformers_cache/",
        ),
    ),
    "transformers": Area(
        (
            "native/include/",
            "native/src/backends/cpu/",
            "native/src/formats/",
            "native/src/kv/",
            "examples/",
            "pylogquant/_download.py",
            "pylogquant/_native.py",
            "pylogquant/errors.py",
            "pylogquant/hub.py",
            "pylogquant/kv.py",
            "pylogquant/transformers/",
            "tests/helpers/kv_",
            "tests/helpers/triton_interpreted.py",
            "tests/package/test_hub.py",
            "tests/transformers_cache/",
            "tools/measure/transformers_",
        )
    ),
    # What reads files and texts of others in Python: its fuzzers need no core to have changed.
    "readers": Area(
        (
            "native/src/vocab",
            "native/src/gguf/",
            "pylogquant/",
            "tools/checks/fuzz.py",
            "tools/models/make_tiny_gguf.py",
        ),
        but=("pylogquant/cli/", "pylogquant/transformers/"),
    ),
}
# What decides how the steps run.
EVERY_AREA = (".ci/run", "pyproject.toml", "tools/check.py", "tools/checks/changed.py", "tests/conftest.py")


def git(root: Path, *arguments: str) -> str | None:
    """What a git command prints; None if it fails, or there is no git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def full_run(root: Path) -> tuple[str, str]:
    """The commit in .ci/full, from which a change is counted; or none, and why there is none."""
    path = root / FULL
    if not path.exists():
        return "", f"{FULL} does not exist"
    commit = path.read_text(encoding="utf-8").strip()
    if commit and git(root, "merge-base", "--is-ancestor", commit, "HEAD") is not None:
        return commit, ""
    return "", f"{FULL} names '{commit[:40]}', which is no ancestor of the commit at hand (or missing in this clone)"


def areas_of(paths: Iterable[str]) -> frozenset[str]:
    """The areas that files belong to."""
    paths = list(paths)
    if any(path in EVERY_AREA for path in paths):
        return frozenset(AREAS)
    return frozenset(name for name, area in AREAS.items() if any(map(area.holds, paths)))


def changed_areas(root: Path) -> frozenset[str]:
    """The areas whose files differ from those of the last commit that passed --all; all where that cannot be told."""
    full, why_not = full_run(root)
    changed = git(root, "diff", "--name-only", "--no-renames", full, "--") if full else None
    new = git(root, "ls-files", "--others", "--exclude-standard")
    if changed is None or new is None:
        print(f"{why_not or 'git diff failed'}: every step runs (tools/check.py --all writes it)", flush=True)
        return frozenset(AREAS)
    return areas_of([*changed.splitlines(), *new.splitlines()])


def record_full_run(root: Path) -> None:
    """Names the commit that passed everything in .ci/full, for the next change to commit."""
    if git(root, "status", "--porcelain") == "" and (head := git(root, "rev-parse", "HEAD")):
        (root / FULL).write_text(head, encoding="utf-8")
        print(f"{FULL} names this commit now: commit that file")
    else:
        print(f"{FULL} stays as it is: this was no clean checkout of a commit")
