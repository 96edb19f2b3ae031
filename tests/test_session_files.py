"""Saved sessions: loaded in a new process they go on as if they had never been away; damage is found."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from make_tiny_gguf import make_tiny
from session_inputs import ids_for
from test_timelines import EVERY_TYPE

import pylogquant
from pylogquant import Model, Session
from pylogquant.kv import KvOptions
from pylogquant.session import OnFull

N_CTX, N_HELD = 500, 430


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {
        "llama": make_tiny(folder / "llama.gguf", n_ctx=N_CTX),
        "ring": make_tiny(folder / "ring.gguf", arch="gemma3", n_layers=12, window=24, n_ctx=N_CTX),
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
@pytest.mark.parametrize("name", ["llama", "ring"])
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
        with pytest.raises(pylogquant.ModelFormatError, match=r"cut short|not a saved session|empty"):
            llama.load_session(path)
    path.write_bytes(saved + b"\0")
    with pytest.raises(pylogquant.ModelFormatError, match="written"):
        llama.load_session(path)


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
    with pytest.raises(pylogquant.OutOfMemory):
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
