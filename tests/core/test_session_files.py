"""Saved sessions: loaded in a new process they go on as if they had never been away; damage is found."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from make_tiny_gguf import make_tiny
from session_inputs import EVERY_TYPE, ids_for

import pylogquant
from pylogquant import Model, Session
from pylogquant._native import write_file
from pylogquant.devices import check_cuda, look_at_cuda
from pylogquant.kv import KvOptions
from pylogquant.session import OnFull

N_CTX, N_HELD = 500, 430


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {
        "llama": make_tiny(folder / "llama.gguf", n_ctx=N_CTX),
        "ring": make_tiny(folder / "ring.gguf", arch="gemma3", n_layers=12, window=24, n_ctx=N_CTX),
        "lfm2": make_tiny(folder / "lfm2.gguf", arch="lfm2", n_layers=5, attention_layers=(1, 3), n_ctx=N_CTX),
    }


@pytest.fixture(scope="module")
def llama(paths: dict[str, Path]) -> Model:
    return Model(paths["llama"], threads=2)


def filled(model: Model, kv: KvOptions | str, *, on_full: OnFull = "stop") -> Session:
    session = model.session(N_CTX, kv, chunk=48, on_full=on_full, allow_long=True)
    if on_full == "drop":
        session.eval(ids_for(model, 300, 2))
    session.eval(ids_for(model, N_HELD - 10))
    for token in ids_for(model, 10, 1):
        session.append(token)
    return session


GO_ON = """
import json, sys
import numpy as np
from pylogquant import Model, Sampler, SamplingOptions
model = Model(sys.argv[1], threads=2)
found = []
for path in sys.argv[2:]:
    with model.load_session(path) as s:
        sampler = Sampler(SamplingOptions(temperature=1.0, seed=3))
        out = []
        for _ in range(40):
            out.append(s.sample(sampler).token)
            s.append(out[-1])
        s.rewind(s.n_tokens - 60)
        out.append(s.eval([1, 2, 3]).view(np.uint32).tolist())
        found.append([out, s.tokens, s.extra.decode()])
print(json.dumps(found))
"""


@pytest.mark.tiny_model
@pytest.mark.parametrize("on_full", ["stop", "drop"])
@pytest.mark.parametrize("name", ["llama", "ring", "lfm2"])
def test_a_new_process_goes_on_alike(name: str, on_full: OnFull, paths: dict[str, Path], tmp_path: Path) -> None:
    """Sampled tokens, a piece gone back to, and the logits after it, of every type."""
    wanted, files = [], []
    with Model(paths[name], threads=2) as model:
        for index, kv in enumerate(EVERY_TYPE):
            files.append(tmp_path / f"{index}.session")
            with filled(model, kv, on_full=on_full) as s:
                s.save(files[-1], f"number {index}".encode())
                sampler = pylogquant.Sampler(pylogquant.SamplingOptions(temperature=1.0, seed=3))
                out: list[object] = []
                for _ in range(40):
                    token = s.sample(sampler).token
                    out.append(token)
                    s.append(token)
                s.rewind(s.n_tokens - 60)
                logits = s.eval([1, 2, 3])
                assert logits is not None
                out.append(logits.view(np.uint32).tolist())
                wanted.append([out, s.tokens, f"number {index}"])
    command = [sys.executable, "-c", GO_ON, str(paths[name]), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout) == wanted


@pytest.mark.parametrize("kv", ["logquant", "logquant-small", "f16", "q4_0", "streaming"])
def test_all_options_come_back(llama: Model, kv: str, tmp_path: Path) -> None:
    asked = KvOptions(kv, window=64) if kv in ("logquant", "streaming") else kv
    with llama.session(N_CTX, asked, chunk=33, checkpoints=3, checkpoint_bytes=10**6) as s:
        s.eval(ids_for(llama, 100), "none")
        s.save(tmp_path / "a")
        with llama.load_session(tmp_path / "a") as again:
            assert again.extra == b""
            before, after = s.info(), again.info()
            assert before == after
            assert again.kv.usage() == s.kv.usage()
            with pytest.raises(pylogquant.ArgumentError, match="no logits"):
                again.sample(pylogquant.Sampler())
    with llama.session(N_CTX, kv) as empty:
        empty.save(tmp_path / "a")
        with llama.load_session(tmp_path / "a") as again:
            assert again.n_tokens == 0


@pytest.mark.parametrize("kv", ["logquant", "logquant-small", "f16", "q8_0"])
def test_a_file_is_about_as_large_as_the_cache(kv: str, tmp_path: Path) -> None:
    with Model(make_tiny(tmp_path / "m.gguf", n_ctx=4096, head_dim=64, n_layers=4), threads=2) as model:
        with model.session(4096, kv) as s:
            s.eval(ids_for(model, 4000))
            s.save(tmp_path / "a")
            cache, extra = s.kv.usage().total_bytes, 5 * 4000 + 4 * model.info().n_vocab + 1000
        size = (tmp_path / "a").stat().st_size
        assert 0.7 * cache < size < cache + extra


def test_a_whole_chain_of_saves(llama: Model, tmp_path: Path) -> None:
    """Saved, loaded, saved again: the same bytes; and a file is replaced by the next one."""
    with filled(llama, "logquant-small") as s:
        s.save(tmp_path / "a", b"x")
        with llama.load_session(tmp_path / "a") as again:
            again.save(str(tmp_path / "b"), again.extra)
            assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
            again.eval([1])
            again.save(tmp_path / "a")
        assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(llama: Model, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "s"
    with filled(llama, "logquant-small") as s:
        s.save(path, b"some more")
    return path.read_bytes()


def test_any_changed_byte_is_found(llama: Model, saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s"
    rng = np.random.default_rng(0)
    places = {*range(400), *range(len(saved) - 300, len(saved)), *rng.integers(0, len(saved), 1500).tolist()}
    for at in sorted(places):
        changed = bytearray(saved)
        changed[at] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        with pytest.raises((pylogquant.ModelFormatError, pylogquant.Unsupported)) as caught:
            llama.load_session(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_cut_short_and_too_long(llama: Model, saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s"
    for n in (0, 1, 7, 100, 223, 231, 232, 1000, len(saved) // 2, len(saved) - 1):
        path.write_bytes(saved[:n])
        with pytest.raises(pylogquant.ModelFormatError, match=r"the file is damaged|not a saved session|empty"):
            llama.load_session(path)
    path.write_bytes(saved + b"\0")
    with pytest.raises(pylogquant.ModelFormatError, match="written"):
        llama.load_session(path)


def checksum(data: bytes) -> int:
    """docs/format.md, Session files."""
    mask, found = 2**64 - 1, 0x70796C6F67717561
    tail = len(data) % 8
    words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data) - tail, 8)]
    for word in [*words, int.from_bytes(data[len(data) - tail :], "little") | tail << 56] if tail else words:
        found ^= word
        for _ in range(2):
            found = (found ^ found >> 32) * 0xD6E8FEB86659FD93 & mask
        found ^= found >> 32
    return found


@pytest.mark.parametrize(
    ("at", "value", "error", "words"),
    [
        (108, b"nonsense\0", "Unsupported", "nonsense"),  # the type's name
        (140, b"nonsense\0", "Unsupported", "key widths"),  # of its keys
        (68, b"\xff\xff\xff\xff", "Unsupported", "chunk of 4294967295"),
        (76, b"\x07\0\0\0", "Unsupported", "no choice 7"),
        (88, b"\xff\xff\xff\x0f", "ModelFormatError", "numbers do not agree"),
        (240, b"\xff\xff\xff\xff", "ModelFormatError", "outside the vocabulary"),
    ],
)
def test_errors_of_what_a_file_asks_for_name_it(
    llama: Model, tmp_path: Path, at: int, value: bytes, error: str, words: str
) -> None:
    """Made on purpose, or by a later version: the checksum is right."""
    path = tmp_path / "s"
    with llama.session(64, "f16") as s:
        s.eval([1, 2, 3])
        s.save(path)
    data = bytearray(path.read_bytes())
    assert checksum(bytes(data[:-8])).to_bytes(8, "little") == data[-8:]
    data[at : at + len(value)] = value
    path.write_bytes(data[:-8] + checksum(bytes(data[:-8])).to_bytes(8, "little"))
    with pytest.raises(getattr(pylogquant, error), match=words) as caught:
        llama.load_session(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_foreign_files(llama: Model, paths: dict[str, Path], saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(b"# not a session, but long enough to be one\n" * 100)
    with pytest.raises(pylogquant.ModelFormatError, match="not a saved session"):
        llama.load_session(path)
    with pytest.raises(pylogquant.ModelFormatError, match="not a saved session"):
        llama.load_session(paths["llama"])
    with pytest.raises(pylogquant.FileError, match="No such file"):
        llama.load_session(tmp_path / "none")
    with pytest.raises(pylogquant.FileError, match="directory"):
        llama.load_session(tmp_path)


def test_another_model(saved: bytes, tmp_path: Path) -> None:
    """Of the same shape and metadata, with other weights; and a copy of the first is the first."""
    path = tmp_path / "s"
    path.write_bytes(saved)
    other, same = make_tiny(tmp_path / "o.gguf", n_ctx=N_CTX, seed=5), make_tiny(tmp_path / "l.gguf", n_ctx=N_CTX)
    with Model(other) as model, pytest.raises(pylogquant.ArgumentError, match="another model"):
        model.load_session(path)
    with Model(same) as model, model.load_session(path) as s:
        assert s.n_tokens == N_HELD


def test_no_room_in_memory(llama: Model, saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(saved)
    with pytest.raises(pylogquant.OutOfMemory, match=re.escape(str(path))):
        llama.load_session(path, budget=1000)
    with pytest.raises(pylogquant.ArgumentError):
        llama.load_session(path, budget=-1)


def test_where_nothing_can_be_written(llama: Model, tmp_path: Path) -> None:
    with filled(llama, "logquant") as s:
        with pytest.raises(pylogquant.FileError, match="No such file"):
            s.save(tmp_path / "none" / "s")
        with pytest.raises(pylogquant.FileError, match=r"directory|Is a"):
            s.save(tmp_path)
        with pytest.raises(pylogquant.FileError, match=r"too long|name"):
            s.save(tmp_path / ("x" * 5000))
        assert s.n_tokens == N_HELD
        s.append(1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_a_file_is_for_its_owner_alone(llama: Model, tmp_path: Path) -> None:
    """It holds a conversation."""
    with filled(llama, "logquant") as s:
        s.save(tmp_path / "s")
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600


def test_saved_to_one_path_at_the_same_time(llama: Model, tmp_path: Path) -> None:
    """By sessions in several threads: the last one wins, as a whole."""
    path = tmp_path / "s"
    sessions = [filled(llama, "f16") for _ in range(4)]
    workers = [threading.Thread(target=lambda s=s: [s.save(path) for _ in range(20)]) for s in sessions]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for s in sessions:
        s.close()
    assert os.listdir(tmp_path) == ["s"]
    with llama.load_session(path) as loaded:
        assert loaded.n_tokens == N_HELD


@pytest.mark.skipif(sys.platform == "win32", reason="links and FIFOs of POSIX")
def test_links_stay_and_devices_too(llama: Model, tmp_path: Path) -> None:
    """A save writes through links, keeps permissions, and refuses what is no regular file, for sessions as for all else
    that is written whole; what there is more is in test_replace.c."""
    target, link, far = tmp_path / "disk" / "s", tmp_path / "s", tmp_path / "far"
    target.parent.mkdir()
    link.symlink_to("disk/s")
    far.symlink_to(link)
    with filled(llama, "logquant") as s:
        s.save(far)  # to a file that is not there yet
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        target.write_bytes(b"old")
        target.chmod(0o640)
        s.save(far)
        assert link.is_symlink()
        assert far.is_symlink()
        assert stat.S_IMODE(target.stat().st_mode) == 0o640
        with llama.load_session(target) as again:
            assert again.n_tokens == N_HELD
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "loop").symlink_to("loop")
        for name, words in (
            ("fifo", "it is a FIFO, no regular file"),
            ("disk", "a directory"),
            ("loop", "symbolic link"),
        ):
            for save in (s.save, lambda path: write_file(path, b"x")):
                with pytest.raises(pylogquant.FileError, match=words) as caught:
                    save(tmp_path / name)
                assert str(tmp_path / name) in str(caught.value)
        if os.access("/dev/full", os.W_OK):
            with pytest.raises(pylogquant.FileError, match="it is a device"):
                write_file(os.path.realpath("/dev/full"), b"x")
            assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    assert sorted(os.listdir(tmp_path)) == ["disk", "far", "fifo", "loop", "s"]
    assert os.listdir(tmp_path / "disk") == ["s"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
def test_root_leaves_the_owner(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(b"old")
    os.chown(path, 1234, 2345)
    path.chmod(0o460)
    write_file(path, b"new")
    about = path.stat()
    assert (about.st_uid, about.st_gid, stat.S_IMODE(about.st_mode)) == (1234, 2345, 0o460)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everything")
def test_a_file_that_may_not_be_written_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with pytest.raises(pylogquant.FileError, match="Permission denied"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"


SAVES = """
import sys
from pylogquant._native import write_file
print("begin", flush=True)
while True:
    write_file(sys.argv[1], b"x" * 5_000_000)
"""


def test_killed_saves_leave_nothing_that_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_file(path, b"y")
    for wait in (0.01, 0.03, 0.02):
        command = [sys.executable, "-c", SAVES, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"begin\n"
            time.sleep(wait)
            child.kill()
        assert path.stat().st_size in (1, 5_000_000)
    write_file(path, b"z")
    assert os.listdir(tmp_path) == ["s"]


def test_paths_that_no_file_can_have(llama: Model, tmp_path: Path) -> None:
    """A path ends at its first zero in C: another file would be read, or replaced."""
    path, tricky = tmp_path / "s", f"{tmp_path}/s\0.session"
    with filled(llama, "logquant") as s:
        s.save(path)
        before = path.read_bytes()
        s.append(1)
        calls: list[Callable[[], object]] = [
            lambda: s.save(tricky),
            lambda: write_file(tricky, b""),
            lambda: llama.load_session(tricky),
            lambda: pylogquant.GGUFFile(f"{llama.path}\0"),
            lambda: Model(f"{llama.path}\0"),
            lambda: check_cuda(Path(f"{path}\0")),
            lambda: look_at_cuda(Path(f"{path}\0")),
        ]
        for call in calls:
            with pytest.raises(pylogquant.FileError) as caught:
                call()
            assert "\n" not in str(caught.value)
        with pytest.raises(pylogquant.FileError, match="no file name can have"):
            s.save(tmp_path / "\ud800")
    assert path.read_bytes() == before


FULL_DISK = """
import resource, signal, sys
from pylogquant import Model, FileError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = Model(sys.argv[1], threads=1)
session = model.load_session(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    session.save(sys.argv[2])
except FileError as error:
    print(error)
session.append(1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files by a POSIX call")
def test_a_full_disk_keeps_the_file_that_was_there(paths: dict[str, Path], saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(saved)
    command = [sys.executable, "-c", FULL_DISK, str(paths["llama"]), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "cannot write: File too large" in done.stdout
    assert path.read_bytes() == saved
    assert os.listdir(tmp_path) == ["s"]


def test_use_after_close(llama: Model, tmp_path: Path) -> None:
    s = llama.session(64)
    s.close()
    calls: list[Callable[[], object]] = [lambda: s.save(tmp_path / "s"), lambda: s.extra, s.fork, s.checkpoint]
    for call in calls:
        with pytest.raises(pylogquant.ClosedError):
            call()
