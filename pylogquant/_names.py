"""Parses names of models: repositories of the Hub, their files, tags. Touches neither the disk nor the network.

owner/repo                                          its only model, or the one with the tag Q4_K_M
owner/repo:Q4_0                                     the model whose name contains the tag
owner/repo:folder/model-Q4_0.gguf                   this file
owner/repo@revision, owner/repo@revision:Q4_0       the same, of a branch, tag, commit or refs/pr/1
hf.co/owner/repo:Q4_0, https://huggingface.co/owner/repo/blob/main/model.gguf
                                                    addresses as they are copied from elsewhere
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "DEFAULT_TAG",
    "Reference",
    "choose",
    "folder_name",
    "is_address",
    "is_file_name",
    "parse",
    "parts",
    "whole_models",
]

DEFAULT_TAG = "Q4_K_M"  # what most repositories hold, and the usual balance of size and quality

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_REFERENCE = re.compile(rf"({_PART}/{_PART})(?:@([^:]+))?(?::(.+))?", re.DOTALL)
_REVISION = re.compile(rf"{_PART}(?:/{_PART})*")
# Names that Windows forbids are refused on all systems, so that a name means the same everywhere.
_COMPONENT = re.compile(r'[^\x00-\x1f\x7f<>:"|?*\\/ .-][^\x00-\x1f\x7f<>:"|?*\\/]*(?<![ .])')
_PART_OF = re.compile(r"-(\d{5})-of-(\d{5})(\.gguf)$", re.IGNORECASE)
# Repositories hold files that help another model: image projectors, importance matrices, heads that draft tokens.
_HELPER_FILE = re.compile(r"mmproj|imatrix|^(?:mtp|draft)[-_.]", re.IGNORECASE)
_HELPER_FOLDER = re.compile(r"(?:mtp|drafts?|imatrix|mmproj)", re.IGNORECASE)
_HOSTS = {"huggingface.co", "www.huggingface.co", "hf.co"}
_ADDRESS = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|https?://", re.IGNORECASE)


@dataclass(frozen=True)
class Reference:
    """A repository of the Hub and a file or tag in it. Every component is safe as a path inside the cache."""

    repo: str
    what: str = ""  # a file, a tag, or ""
    revision: str = ""  # "" = the newest of the main branch

    @property
    def is_file(self) -> bool:
        return self.what.lower().endswith(".gguf")

    @property
    def name(self) -> str:
        """The repository and its revision, as they are written."""
        return f"{self.repo}@{self.revision}" if self.revision else self.repo

    @property
    def folder(self) -> str:
        """The path of its files below the cache's folder of the Hub: always two components."""
        return self.name.replace("/", "%2F").replace("%2F", "/", 1)

    def __str__(self) -> str:
        return f"{self.name}:{self.what}" if self.what else self.name


def folder_name(folder: str) -> str:
    """The Reference.name whose folder this is: the inverse of Reference.folder."""
    from urllib.parse import unquote

    return unquote(folder)


def is_file_name(name: str) -> bool:
    """Whether a path in a repository, or a tag, is safe as a path in the cache: ".." and absolute ones are not."""
    return all(_COMPONENT.fullmatch(part) for part in name.split("/"))


def is_address(text: str) -> bool:
    """Whether a text is an address of the web, of the Hub or another one."""
    return _ADDRESS.match(text) is not None


def parse(text: str, endpoint: str = "") -> Reference | None:
    """The repository that text names; None if it names none. endpoint: a mirror, whose addresses are understood too."""
    if is_address(text):
        return _parse_address(text, endpoint)
    match = _REFERENCE.fullmatch(text)
    # "models/foo.gguf" is a path with a typing error, not a repository.
    if match is None or (match[2] is None and match[3] is None and match[1].lower().endswith(".gguf")):
        return None
    return _checked(match[1], match[3] or "", match[2] or "")


def _checked(repo: str, what: str, revision: str) -> Reference | None:
    if (what and not is_file_name(what)) or (revision and not _REVISION.fullmatch(revision)):
        return None
    return Reference(repo, what, "" if revision == "main" else revision)


def _parse_address(text: str, endpoint: str) -> Reference | None:
    """Parses .../owner/repo, and .../owner/repo/KIND/REVISION/FILE with KIND blob, resolve or raw, or tree and a
    folder or nothing."""
    from urllib.parse import unquote, urlsplit  # here, because most names are no addresses

    try:
        split = urlsplit(text if "://" in text else f"https://{text}")
    except ValueError:  # brackets with something else than an IPv6 address in them
        return None
    if split.netloc.lower() not in {*_HOSTS, urlsplit(endpoint).netloc.lower()}:
        return None
    owner, _, rest = split.path.strip("/").removeprefix("models/").partition("/")
    if rest.partition("/")[1] == "":  # as in hf.co/owner/repo:Q4_K_M
        return parse(unquote(f"{owner}/{rest}"))
    repo, _, rest = rest.partition("/")
    kind, _, rest = rest.partition("/")
    revision, _, file = rest.partition("/")
    if re.fullmatch(rf"{_PART}/{_PART}", f"{owner}/{repo}") is None or kind not in ("blob", "resolve", "raw", "tree"):
        return None
    return _checked(f"{owner}/{repo}", unquote(file), unquote(revision))


def parts(file: str) -> list[str]:
    """All files of the model that a file belongs to, in order; [file] for a model in one file."""
    match = _PART_OF.search(file)
    if match is None:
        return [file]
    stem, n_parts = file[: match.start()], int(match[2])
    return [f"{stem}-{number:05}-of-{n_parts:05}{match[3]}" for number in range(1, n_parts + 1)]


def whole_models(files: Iterable[str]) -> list[str]:
    """The files that are models; one in several files is named by its first, if all are there. Helpers do not count."""
    there = set(files)
    return sorted(
        file for file in there if file == parts(file)[0] and there.issuperset(parts(file)) and not _is_helper(file)
    )


def _is_helper(file: str) -> bool:
    *folders, name = file.split("/")
    return _HELPER_FILE.search(name) is not None or any(_HELPER_FOLDER.fullmatch(folder) for folder in folders)


def choose(files: Iterable[str], what: str) -> list[str]:
    """The models that `what` stands for: a file name, or a tag, searched as a whole word first, then anywhere.

    "" stands for the only model, or else for the default tag. A file name may also name a helper file.
    """
    if what.lower().endswith(".gguf"):
        return [parts(what)[0]] if set(files).issuperset(parts(what)) else []
    models = whole_models(files)
    tagged = _tagged(models, what)
    return _tagged(tagged, DEFAULT_TAG) or tagged if not what else tagged


def _tagged(models: list[str], tag: str) -> list[str]:
    """Models whose names contain the tag: as a word without UD- in front (UD-Q4_K_M is another kind than Q4_K_M), else
    as any word, else anywhere."""
    word = rf"(?<![A-Za-z0-9_]){re.escape(tag)}(?![A-Za-z0-9_])"
    for pattern in (rf"(?<!UD-){word}", word, re.escape(tag)):
        found = [file for file in models if re.search(pattern, file, re.IGNORECASE)]
        if found:
            return found
    return []
