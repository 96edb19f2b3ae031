"""Conversations in files: saved whole or not at all, and read with mistrust."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from fake_session import FakeSession, check_agreement, make_chat, make_tokenizer, spelled

from pylogquant import FileError, Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("chat"))


def test_save_and_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    first = make_chat(tokenizer, FakeSession([spelled(tokenizer, "é🙂\n\x00<|im_end|>")]), system="the")
    first.send("x")
    first.save(path)
    session = FakeSession([[5]])
    second = make_chat(tokenizer, session)
    second.send("something else")
    second.load(str(path))
    assert second.messages == first.messages
    assert (second.system, second.stats().turns, session.tokens) == ("the", 0, [])
    second.send("y")
    assert "é🙂" in tokenizer.decode(second.ids)
    check_agreement(second)
    second.save(path)
    assert json.loads(path.read_text(encoding="utf-8"))["messages"] == second.messages


def test_a_byte_order_mark_is_no_part_of_a_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Editors and shells of Windows put one in front."""
    path = tmp_path / "talk.json"
    first = make_chat(tokenizer, FakeSession([[5]]), system="the")
    first.send("x")
    first.save(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    second = make_chat(tokenizer, FakeSession([[5]]))
    second.load(path)
    assert second.messages == first.messages


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files by a POSIX call")
def test_a_failed_save_leaves_the_old_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    import resource
    import signal

    chat = make_chat(tokenizer, FakeSession([spelled(tokenizer, "the" * 100)]))
    path = tmp_path / "talk.json"
    chat.save(path)
    before = path.read_bytes()
    chat.send("x")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), limits[1]))
    try:
        with pytest.raises(FileError, match=r"talk.json: cannot write: File too large"):
            chat.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileError, match="cannot write there: No such file"):
        chat.save(tmp_path / "absent" / "talk.json")
    with pytest.raises(FileError, match="zero character"):
        chat.save("a\0b")


def test_a_link_stays_a_link(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "real.json").chmod(0o644)
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    make_chat(tokenizer, FakeSession([[5]])).save(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert "pylogquant-chat" in (tmp_path / "real.json").read_text()
    assert (tmp_path / "real.json").stat().st_mode & 0o777 == 0o644


USER, ASSISTANT = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "has no format"),
        (b'{"format": "other"}', "has no format"),
        ({"version": 2}, "version 2; this release reads version 1"),
        ({"messages": None}, "no list of messages"),
        ({"messages": ["x"]}, "message 0 must have a role and a content"),
        ({"messages": [{"role": "user"}]}, "message 0 must have"),
        ({"messages": [{**USER, "more": 1}]}, "message 0 must have"),
        ({"messages": [{"role": "user", "content": 1}]}, "message 0 must have"),
        ({"messages": [{"role": 1, "content": "x"}]}, "message 0 must be of role system or user"),
        ({"messages": [ASSISTANT]}, "message 0 must be of role system or user"),
        ({"messages": [USER, USER]}, "message 1 must be of role assistant"),
        ({"messages": [{"role": "system", "content": "x"}, ASSISTANT]}, "message 1 must be of role user"),
        ({"messages": [USER, ASSISTANT, {"role": "system", "content": "x"}]}, "message 2 must be of role user"),
        ({"messages": [USER]}, "last message has no answer"),
        ({"messages": [USER, {"role": "assistant", "content": "\ud800"}]}, "message 1 holds a lone surrogate"),
    ],
)
def test_damaged_files_change_nothing(
    tokenizer: Tokenizer, tmp_path: Path, content: bytes | dict[str, object], message: str
) -> None:
    path = tmp_path / "talk.json"
    if isinstance(content, dict):
        content = json.dumps({"format": "pylogquant-chat", "version": 1, "messages": [], **content}).encode()
    path.write_bytes(content)
    chat = make_chat(tokenizer, FakeSession([[5]]), system="the")
    chat.send("x")
    state = (chat.messages, chat.ids, chat.session.tokens)
    with pytest.raises(FileError, match=message) as caught:
        chat.load(path)
    assert "\n" not in str(caught.value)
    assert (chat.messages, chat.ids, chat.session.tokens) == state


def test_files_that_cannot_be_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    chat = make_chat(tokenizer, FakeSession([[5]]))
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(FileError, match="cannot read"):
            chat.load(path)
    os.mkfifo(tmp_path / "fifo")  # opening one that nobody writes to would wait for ever
    with pytest.raises(FileError, match="no regular file"):
        chat.load(tmp_path / "fifo")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(FileError, match="larger than 64 MiB"):
        chat.load(tmp_path / "large")
