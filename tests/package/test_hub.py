"""The model cache and its sources, against a local stand-in for the Hub and a stand-in for pip. No network."""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_hub import CONTENT, PIP, SHA256, FakeHub, FakePip, serving

from pylogquant import _download, _sources, hub
from pylogquant.errors import ArgumentError, DownloadError, FileError

pytestmark = pytest.mark.python_only


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PYLOGQUANT_CACHE", str(folder))
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(_download, "_SPARE_BYTES", 0)
    return folder


@pytest.fixture
def fake_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving(FakeHub()) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.endpoint)
        yield fake


@pytest.fixture
def fake_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    folder = tmp_path / "pip"
    (folder / "index").mkdir(parents=True)
    (folder / "pip.py").write_text(textwrap.dedent(PIP))
    monkeypatch.setattr(_download, "_pip_command", lambda: [sys.executable, str(folder / "pip.py")])
    return FakePip(folder)


@pytest.fixture
def builtin(monkeypatch: pytest.MonkeyPatch) -> hub.Builtin:
    """A small built-in model with a Hub source and, after it, two wheels."""
    wheels = _sources.Wheels(
        (_sources.Wheel("tiny-a==1.0", "a/m.part0", 1000), _sources.Wheel("tiny-b==1.0", "b/m.part1", 1000))
    )
    model = hub.Builtin(
        name="tiny-1",
        title="tiny",
        file="tiny.gguf",
        n_bytes=len(CONTENT),
        sha256=SHA256,
        licence="none",
        sources=(_sources.HubFile("acme/tiny", "tiny.gguf"), wheels),
    )
    monkeypatch.setattr(hub, "BUILTINS", {model.name: model})
    monkeypatch.setattr(hub, "_HUB_PATIENCE_S", 5.0)
    return model


def stock_wheels(pip: FakePip, content: bytes = CONTENT) -> None:
    pip.add_wheel("tiny-a", "a/m.part0", content[:100_000])
    pip.add_wheel("tiny-b", "b/m.part1", content[100_000:])


def leftovers(cache: Path) -> list[Path]:
    """Files in the staging area, locks aside."""
    return [path for path in (cache / "incoming").rglob("*") if path.is_file() and path.suffix != ".lock"]


# ---- resolve ---------------------------------------------------------------------------------------------------------


def test_an_existing_file_wins_over_every_name(
    tmp_path: Path, cache: Path, builtin: hub.Builtin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny-1").write_bytes(b"x")
    assert hub.resolve("tiny-1") == Path("tiny-1")
    assert hub.resolve(tmp_path / "tiny-1") == tmp_path / "tiny-1"
    assert not cache.exists(), "an existing path must not touch the cache"


def test_a_folder_does_not_hide_a_name(
    tmp_path: Path, fake_hub: FakeHub, builtin: hub.Builtin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny-1").mkdir()
    fake_hub.files["acme/tiny/tiny.gguf"] = CONTENT
    assert hub.resolve("tiny-1").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.gguf", ["nowhere.gguf", "no such file", "pylogquant list"]),
        ("smollm2-135", ["did you mean smollm2-135m?"]),
        ("smollm2:135m", ["did you mean smollm2-135m?"]),
        ("SmolLM2-135M", ["did you mean smollm2-135m?"]),
        ("model.safetensors", ["no such file", "only GGUF files are read", "-GGUF", "convert_hf_to_gguf.py"]),
        ("owner/repo:model.safetensors", ["only GGUF files are read"]),
        ("hf.co/owner/repo:Q4_0", ["not in the cache", "pylogquant pull owner/repo:Q4_0"]),
        ("https://huggingface.co/owner/repo/blob/main/my%20model.gguf", ["pylogquant pull 'owner/repo:my model.gguf'"]),
        ("https://example.com/model.gguf", ["huggingface.co are understood", "download the file"]),
        ("https://[bad/model.gguf", ["huggingface.co are understood"]),
        ("owner/repo:Q4_0", ["not in the cache", "pylogquant pull owner/repo:Q4_0"]),
        ("models/nowhere.gguf", ["no such file"]),
        ("", ["no model"]),
        ("a\0b", ["no model"]),
    ],
)
def test_resolve_says_what_to_do(cache: Path, name: str, words: list[str]) -> None:
    with pytest.raises(FileError) as caught:
        hub.resolve(name)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_resolve_looks_into_folders(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "owner" / "repo"  # it reads like a name of the Hub, too
    folder.mkdir(parents=True)

    def said(name: str) -> str:
        with pytest.raises(FileError) as caught:
            hub.resolve(name)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "owner/repo is a folder, not a model: give the path of a .gguf file" in said("owner/repo")
    (folder / "model.safetensors").touch()
    assert "a folder with a model of another kind; only GGUF" in said("owner/repo")
    (folder / "mmproj.gguf").touch()
    (folder / "Model-Q8_0.gguf").touch()
    assert said("owner/repo").endswith("it is owner/repo/Model-Q8_0.gguf")
    for number in range(7):
        (folder / f"m{number}.gguf").touch()
    assert said("owner/repo").endswith("owner/repo/m3.gguf and 3 more")
    assert "give one of owner/repo/Model-Q8_0.gguf, owner/repo/m0.gguf, " in said("owner/repo")
    if not (folder / "MODEL-q8_0.gguf").exists():  # there are systems where it does
        assert said("owner/repo/MODEL-q8_0.gguf").endswith("did you mean owner/repo/Model-Q8_0.gguf?")
    assert said("owner/repo/Model-Q8.gguf").endswith("did you mean owner/repo/Model-Q8_0.gguf?")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        assert "not a regular file" in said("fifo")


def test_a_quoted_tilde(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    (tmp_path / "x.gguf").touch()
    assert hub.resolve("~/x.gguf") == tmp_path / "x.gguf"
    with pytest.raises(FileError, match=r"no such file.* did you mean .*x\.gguf"):
        hub.resolve("~/xx.gguf")


# ---- built-in names, from the Hub ------------------------------------------------------------------------------------


def test_builtin_from_the_hub(fake_hub: FakeHub, fake_pip: FakePip, builtin: hub.Builtin, cache: Path) -> None:
    fake_hub.files["acme/tiny/tiny.gguf"] = CONTENT
    notes: list[str] = []
    path = hub.pull("tiny-1", note=notes.append)
    assert path == cache / "models" / "builtin" / "tiny-1" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert notes == []
    assert fake_pip.calls == []
    assert leftovers(cache) == []
    n_requests = len(fake_hub.requests)
    assert hub.resolve("tiny-1") == path
    assert hub.pull("tiny-1") == path
    assert len(fake_hub.requests) == n_requests, "what is in the cache needs no network"


def test_another_checksum_on_the_hub_is_not_even_downloaded(
    fake_hub: FakeHub, fake_pip: FakePip, builtin: hub.Builtin, cache: Path
) -> None:
    fake_hub.files["acme/tiny/tiny.gguf"] = b"GGUF something else"
    stock_wheels(fake_pip)
    notes: list[str] = []
    assert hub.pull("tiny-1", note=notes.append).read_bytes() == CONTENT
    assert [method for method, _, _ in fake_hub.requests] == ["HEAD"]
    assert len(notes) == 1
    assert "another checksum" in notes[0]
    assert "trying the next source" in notes[0]


def test_content_that_does_not_match_falls_through_to_the_wheels(
    fake_hub: FakeHub, fake_pip: FakePip, builtin: hub.Builtin, cache: Path
) -> None:
    # The server claims the right checksum and the right size, and sends something else.
    fake_hub.files["acme/tiny/tiny.gguf"] = CONTENT[:-1] + b"!"
    fake_hub.etags["acme/tiny/tiny.gguf"] = SHA256
    stock_wheels(fake_pip)
    notes: list[str] = []
    assert hub.pull("tiny-1", note=notes.append).read_bytes() == CONTENT
    assert len(notes) == 1
    assert "does not verify (sha256" in notes[0]
    assert leftovers(cache) == []


@pytest.mark.parametrize("trouble", ["closed", "silent", "500"])
def test_no_hub_leads_to_the_wheels_within_seconds(
    trouble: str,
    fake_hub: FakeHub,
    fake_pip: FakePip,
    builtin: hub.Builtin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if trouble == "closed":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    elif trouble == "silent":
        fake_hub.silent = True
        monkeypatch.setattr(hub, "_HUB_PATIENCE_S", 0.5)
    else:
        fake_hub.status = 500
    stock_wheels(fake_pip)
    notes: list[str] = []
    start = time.monotonic()
    assert hub.pull("tiny-1", note=notes.append).read_bytes() == CONTENT
    assert time.monotonic() - start < 15
    assert len(notes) == 1
    assert "trying the next source" in notes[0]
    assert [call.split()[-1] for call in fake_pip.calls] == ["tiny-a==1.0", "tiny-b==1.0"]
    assert all("--no-deps" in call and "--only-binary" in call for call in fake_pip.calls)


def test_notes_go_to_the_logger_by_default(
    fake_hub: FakeHub,
    fake_pip: FakePip,
    builtin: hub.Builtin,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fake_hub.status = 404
    stock_wheels(fake_pip)
    with caplog.at_level(logging.WARNING, logger="pylogquant"):
        hub.pull("tiny-1")
    assert [record.name for record in caplog.records] == ["pylogquant"]
    assert capfd.readouterr() == ("", "")


# ---- built-in names, from wheels -------------------------------------------------------------------------------------


@pytest.fixture
def no_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("flip", "does not verify (sha256"),
        ("short", "bytes instead of"),
        ("long", "larger than the model"),
        ("truncated wheel", "damaged"),
        ("not a wheel", "damaged"),
        ("no member", "holds no b/m.part1"),
        ("no wheel", "No matching distribution found for tiny-b==1.0"),
        ("no magic", "not a GGUF file"),
    ],
)
def test_bad_wheels_are_refused(
    spoil: str, words: str, fake_pip: FakePip, builtin: hub.Builtin, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {
        "flip": CONTENT[:-1] + b"!",
        "short": CONTENT[:-1],
        "long": CONTENT + b"!",
        "no magic": b"FUGG" + CONTENT[4:],
    }.get(spoil, CONTENT)
    stock_wheels(fake_pip, content)
    wheel = fake_pip.folder / "index" / "tiny_b-1.0-py3-none-any.whl"
    if spoil == "truncated wheel":
        os.truncate(wheel, wheel.stat().st_size // 2)
    elif spoil == "not a wheel":
        wheel.write_bytes(b"<html>sign in first</html>")
    elif spoil == "no member":
        fake_pip.add_wheel("tiny-b", "b/other", b"x")
    elif spoil == "no wheel":
        wheel.unlink()
    with pytest.raises(DownloadError) as caught:
        hub.pull("tiny-1", note=lambda line: None)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not hub.list_models()[0].path
    assert leftovers(cache) == []


@pytest.mark.usefixtures("no_hub")
def test_a_wheel_that_bursts_its_member_is_stopped(fake_pip: FakePip, builtin: hub.Builtin, cache: Path) -> None:
    fake_pip.add_wheel("tiny-a", "a/m.part0", b"GGUF" + bytes(50 << 20))
    with pytest.raises(DownloadError, match="larger than the model"):
        hub.pull("tiny-1", note=lambda line: None)
    assert leftovers(cache) == []


@pytest.mark.usefixtures("no_hub")
def test_python_without_pip(builtin: hub.Builtin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('/usr/bin/python3: No module named pip')"]
    monkeypatch.setattr(_download, "_pip_command", lambda: command)
    with pytest.raises(DownloadError, match="ensurepip"):
        hub.pull("tiny-1", note=lambda line: None)
    monkeypatch.setattr(_download, "_pip_command", lambda: [str(tmp_path / "gone")])
    with pytest.raises(DownloadError, match="cannot start pip"):
        hub.pull("tiny-1", note=lambda line: None)


@pytest.mark.usefixtures("no_hub")
def test_no_space_is_seen_before_anything_is_fetched(
    fake_pip: FakePip, builtin: hub.Builtin, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock_wheels(fake_pip)
    total = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: total._replace(free=1000))
    with pytest.raises(DownloadError, match="PYLOGQUANT_CACHE"):
        hub.pull("tiny-1", note=lambda line: None)
    assert fake_pip.calls == []


def test_no_space_on_the_way_to_the_hub(
    fake_hub: FakeHub, fake_pip: FakePip, builtin: hub.Builtin, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.files["acme/tiny/tiny.gguf"] = CONTENT
    stock_wheels(fake_pip)
    total = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: total._replace(free=1000))
    with pytest.raises(DownloadError, match="are free"):
        hub.pull("tiny-1", note=lambda line: None)
    assert fake_pip.calls == [], "a full disk is no reason to try another source"
    assert all(method == "HEAD" for method, _, _ in fake_hub.requests)


@pytest.mark.usefixtures("no_hub")
def test_interrupted_pip_leaves_nothing_behind(fake_pip: FakePip, builtin: hub.Builtin, cache: Path) -> None:
    stock_wheels(fake_pip)
    (fake_pip.folder / "slow").touch()

    def interrupt() -> None:
        while not (fake_pip.folder / "started").exists():
            time.sleep(0.02)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        hub.pull("tiny-1", note=lambda line: None)
    thread.join()
    assert leftovers(cache) == []
    (fake_pip.folder / "slow").unlink()
    assert hub.pull("tiny-1", note=lambda line: None).read_bytes() == CONTENT


@pytest.mark.usefixtures("no_hub")
def test_progress_comes_from_the_growing_file(
    fake_pip: FakePip, builtin: hub.Builtin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_download, "_POLL_S", 0.001)
    stock_wheels(fake_pip)
    seen: list[tuple[str, int, int]] = []
    hub.pull("tiny-1", progress=lambda *step: seen.append(step), note=lambda line: None)
    assert {"tiny.gguf (part 1 of 2)", "tiny.gguf (part 2 of 2)"} <= {what for what, _, _ in seen}
    assert all(0 <= done <= total for _, done, total in seen)


# ---- damage, offline, two at a time ----------------------------------------------------------------------------------


def test_a_damaged_file_in_the_cache_is_fetched_again(fake_hub: FakeHub, builtin: hub.Builtin, cache: Path) -> None:
    fake_hub.files["acme/tiny/tiny.gguf"] = CONTENT
    path = hub.pull("tiny-1")
    os.truncate(path, 1000)
    assert hub.list_models()[0].path is None
    notes: list[str] = []
    assert hub.resolve("tiny-1", note=notes.append).read_bytes() == CONTENT
    assert "damaged" in notes[0]
    path.write_bytes(CONTENT[:-1] + b"!")  # of the right size: only pull looks that closely
    assert hub.pull("tiny-1", note=notes.append).read_bytes() == CONTENT


@pytest.mark.parametrize("how", ["argument", "HF_HUB_OFFLINE"])
def test_offline(
    how: str,
    fake_hub: FakeHub,
    fake_pip: FakePip,
    builtin: hub.Builtin,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_hub.files["acme/tiny/tiny.gguf"] = CONTENT
    fake_hub.files["acme/other/x-Q4_0.gguf"] = CONTENT
    stock_wheels(fake_pip)
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = how == "argument"
    for name in ("tiny-1", "acme/other:Q4_0", "acme/other:x-Q4_0.gguf"):
        with pytest.raises(DownloadError, match="offline"):
            hub.pull(name, offline=offline)
    assert fake_hub.requests == []
    assert fake_pip.calls == []
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    paths = [hub.pull(name) for name in ("tiny-1", "acme/other:Q4_0")]
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fake_hub.requests.clear()
    assert [hub.pull(name, offline=offline) for name in ("tiny-1", "acme/other:Q4_0")] == paths
    assert fake_hub.requests == []


def test_two_at_a_time_fetch_once(fake_hub: FakeHub, builtin: hub.Builtin, cache: Path) -> None:
    fake_hub.files["acme/tiny/tiny.gguf"] = CONTENT
    code = textwrap.dedent(f"""
        import dataclasses
        from pylogquant import hub, _download, _sources
        _download._SPARE_BYTES = 0
        model = hub.Builtin("tiny-1", "", "tiny.gguf", {len(CONTENT)}, "{SHA256}", "", (
            _sources.HubFile("acme/tiny", "tiny.gguf"),))
        hub.BUILTINS = {{"tiny-1": model}}
        print(hub.pull("tiny-1"))
    """)
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], results
    assert len({out for out, _ in results}) == 1
    assert sum(method == "GET" and path.endswith("/tiny.gguf") for method, path, _ in fake_hub.requests) == 1
    assert leftovers(cache) == []


# ---- owner/repo ------------------------------------------------------------------------------------------------------


def test_pull_a_file_and_find_it_by_name_and_tag(fake_hub: FakeHub, cache: Path) -> None:
    fake_hub.files["acme/big/sub/big-Q4_0.gguf"] = CONTENT
    path = hub.pull("acme/big:sub/big-Q4_0.gguf")
    assert path == cache / "models" / "hub" / "acme" / "big" / "sub" / "big-Q4_0.gguf"
    assert path.read_bytes() == CONTENT
    assert leftovers(cache) == []
    for name in ("acme/big:sub/big-Q4_0.gguf", "acme/big:Q4_0", "acme/big:q4_0", "acme/big"):
        assert hub.resolve(name) == path
    assert [model.name for model in hub.list_models() if not model.builtin] == ["acme/big:sub/big-Q4_0.gguf"]


def test_tags(fake_hub: FakeHub) -> None:
    for name in ("m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-IQ4_K.gguf", "m-Q8_0.gguf", "README.md"):
        fake_hub.files[f"acme/many/{name}"] = CONTENT
    assert hub.pull("acme/many:Q4_K_M").name == "m-Q4_K_M.gguf"
    assert hub.pull("acme/many:q8_0").name == "m-Q8_0.gguf"
    assert hub.pull("acme/many:IQ4_K").name == "m-IQ4_K.gguf"
    with pytest.raises(DownloadError, match=r"fits several models.*m-IQ4_K.gguf, m-Q4_K_M.gguf, m-Q4_K_S.gguf"):
        hub.pull("acme/many:Q4_K")
    with pytest.raises(DownloadError, match=r"no file name contains 'Q5_0'.*m-Q8_0.gguf"):
        hub.pull("acme/many:Q5_0")
    with pytest.raises(FileError, match="several pulled files match"):
        hub.resolve("acme/many:Q")


def test_no_tag_is_the_usual_one(fake_hub: FakeHub, cache: Path) -> None:
    for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-m-Q4_K_M.gguf"):
        fake_hub.files[f"acme/many/{name}"] = CONTENT
    assert hub.pull("acme/many").name == "m-Q4_K_M.gguf"
    hub.pull("acme/many:Q8_0")
    assert hub.resolve("acme/many").name == "m-Q4_K_M.gguf"
    assert hub.pull("acme/many", offline=True).name == "m-Q4_K_M.gguf"
    fake_hub.files["acme/other/m-Q8_0.gguf"] = fake_hub.files["acme/other/m-Q6_K.gguf"] = CONTENT
    with pytest.raises(DownloadError, match=r"none of its models is the only Q4_K_M, name one of: m-Q6_K.gguf, m-Q8_0"):
        hub.pull("acme/other")


HELPERS = ["mtp-m-Q8_0.gguf", "mmproj-F16.gguf", "imatrix.gguf", "m.imatrix.gguf", "MTP/m-Q8_0.gguf", "draft/m.gguf"]


@pytest.mark.parametrize(
    ("files", "asked", "right"),
    [
        (["m-Q8_0.gguf"], "", "m-Q8_0.gguf"),
        (["m-Q8_0.gguf"], ":Q8_0", "m-Q8_0.gguf"),
        (["m-UD-Q4_K_XL.gguf"], "", "m-UD-Q4_K_XL.gguf"),
        (["m-UD-Q4_K_XL.gguf"], ":Q8_0", "no file name contains 'Q8_0'; there are: m-UD-Q4_K_XL.gguf"),
        (["m-Q4_K_M.gguf", "m-UD-Q4_K_M.gguf"], "", "m-Q4_K_M.gguf"),
        (["m-Q4_K_M.gguf", "m-UD-Q4_K_M.gguf"], ":ud-q4_k_m", "m-UD-Q4_K_M.gguf"),
        (["m+chat-Q4_0.gguf"], "", "m+chat-Q4_0.gguf"),
        (["m chat (v2), é-Q4_0.gguf"], ":Q4_0", "m chat (v2), é-Q4_0.gguf"),
        (["m chat (v2), é-Q4_0.gguf"], ":m chat (v2), é-Q4_0.gguf", "m chat (v2), é-Q4_0.gguf"),
        ([], ":mtp-m-Q8_0.gguf", "mtp-m-Q8_0.gguf"),  # asked for by its name
        ([], "", "holds no GGUF model, only parts of one or what helps another model, MTP/m-Q8_0.gguf, draft/m.gguf"),
    ],
)
def test_helpers_of_a_model_are_no_models(fake_hub: FakeHub, files: list[str], asked: str, right: str) -> None:
    for name in [*files, *HELPERS]:
        fake_hub.files[f"a/b/{name}"] = CONTENT
    if right.endswith(".gguf") and "contains" not in right and "only" not in right:
        path = hub.pull(f"a/b{asked}")
        assert path.name == right
        assert hub.resolve(f"a/b{asked}") == path
        assert [model.path for model in hub.list_models() if not model.builtin] == ([path] if files else [])
        assert hub.remove(f"a/b:{right}") == len(CONTENT)
        return
    with pytest.raises(DownloadError) as caught:
        hub.pull(f"a/b{asked}")
    assert right in str(caught.value)


def test_models_of_another_kind(fake_hub: FakeHub) -> None:
    fake_hub.files["a/b/model.safetensors"] = fake_hub.files["a/b/README.md"] = CONTENT
    with pytest.raises(DownloadError, match=r"a/b holds no GGUF model, but one of another kind; only GGUF.*-GGUF"):
        hub.pull("a/b")
    for name in ("a/b:model.safetensors", "model.safetensors", "https://hf.co/a/b/blob/main/model.safetensors"):
        with pytest.raises((ArgumentError, DownloadError), match="only GGUF files are read"):
            hub.pull(name)


REVISIONS = "v2", "refs/pr/1"


@pytest.mark.parametrize(
    ("name", "revision", "file"),
    [
        ("a/b@v2", "v2", "m-Q4_K_M.gguf"),
        ("a/b@v2:q8_0", "v2", "m-Q8_0.gguf"),
        ("a/b@refs/pr/1:m-Q8_0.gguf", "refs/pr/1", "m-Q8_0.gguf"),
        ("a/b@main", "", "m-Q4_K_M.gguf"),
        ("https://huggingface.co/a/b", "", "m-Q4_K_M.gguf"),
        ("huggingface.co/a/b/", "", "m-Q4_K_M.gguf"),
        ("HTTPS://HuggingFace.co/a/b/tree/main", "", "m-Q4_K_M.gguf"),
        ("https://huggingface.co/a/b/tree/v2", "v2", "m-Q4_K_M.gguf"),
        ("https://huggingface.co/a/b/tree/main/sub", "", "sub/m+1-Q2_K.gguf"),
        ("https://huggingface.co/a/b/blob/main/sub/m%2B1-Q2_K.gguf", "", "sub/m+1-Q2_K.gguf"),
        ("https://huggingface.co/a/b/blob/refs%2Fpr%2F1/m-Q8_0.gguf", "refs/pr/1", "m-Q8_0.gguf"),
        ("https://hf.co/a/b/resolve/main/m-Q8_0.gguf?download=true", "", "m-Q8_0.gguf"),
        ("hf.co/a/b:Q8_0", "", "m-Q8_0.gguf"),
        ("ENDPOINT/a/b/blob/v2/m-Q8_0.gguf", "v2", "m-Q8_0.gguf"),
    ],
)
def test_revisions_and_addresses(fake_hub: FakeHub, cache: Path, name: str, revision: str, file: str) -> None:
    for at in ("", *(f"@{revision}" for revision in REVISIONS)):
        for n in ("m-Q4_K_M.gguf", "m-Q8_0.gguf", "sub/m+1-Q2_K.gguf"):
            fake_hub.files[f"a/b{at}/{n}"] = CONTENT + f"{at} {n}".encode()
    name = name.replace("ENDPOINT", fake_hub.endpoint)
    at = f"@{revision}" if revision else ""
    path = hub.pull(name)
    assert path.read_bytes() == CONTENT + f"{at} {file}".encode()
    assert path.is_relative_to(cache / "models" / "hub" / "a")
    assert hub.resolve(name) == path
    assert [model.name for model in hub.list_models() if not model.builtin] == [f"a/b{at}:{file}"]
    assert hub.resolve(f"a/b{at}:{file}") == path
    if revision:
        with pytest.raises(FileError, match="not in the cache"):
            hub.resolve(f"a/b:{file}")
    assert hub.remove(name) > len(CONTENT)
    assert not (cache / "models" / "hub").exists()


def test_the_wrong_case_of_a_pulled_model(fake_hub: FakeHub) -> None:
    fake_hub.files["Acme/Big-GGUF/m-Q4_0.gguf"] = CONTENT
    hub.pull("Acme/Big-GGUF")
    with pytest.raises(FileError, match=r"not in the cache.*did you mean Acme/Big-GGUF:m-Q4_0\.gguf\?"):
        hub.resolve("acme/big-gguf")


def test_what_was_mapped_stays_when_it_is_fetched_anew(fake_hub: FakeHub) -> None:
    """A file that a process has mapped is never written to: reading it would end that process."""
    fake_hub.files["a/b/m-Q4_0.gguf"] = CONTENT
    path = hub.pull("a/b")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        before = path.stat().st_ino
        fake_hub.files["a/b/m-Q4_0.gguf"] = b"GGUF another, far shorter one"
        assert hub.pull("a/b") == path
        assert path.read_bytes() == b"GGUF another, far shorter one"
        assert path.stat().st_ino != before
        assert mapped[:] == CONTENT
        hub.remove("a/b")
        assert mapped[:] == CONTENT


SPLIT = [f"Q4_K_M/m-Q4_K_M-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


@pytest.fixture
def split_hub(fake_hub: FakeHub) -> FakeHub:
    """A repository with a model in three parts, one in two of which one is missing, and a whole one."""
    for number, name in enumerate(SPLIT):
        fake_hub.files[f"acme/split/{name}"] = CONTENT + bytes([number])
    fake_hub.files["acme/split/m-Q8_0-00001-of-00002.gguf"] = CONTENT
    fake_hub.files["acme/split/m-Q2_K.gguf"] = CONTENT
    return fake_hub


@pytest.mark.parametrize(
    "name", ["acme/split", "acme/split:q4_k_m", f"acme/split:{SPLIT[0]}", f"acme/split:{SPLIT[2]}"]
)
def test_a_split_model_is_one_model(split_hub: FakeHub, cache: Path, name: str) -> None:
    folder = cache / "models" / "hub" / "acme" / "split"
    assert hub.pull(name) == folder / SPLIT[0]
    for number, part in enumerate(SPLIT):
        assert (folder / part).read_bytes() == CONTENT + bytes([number])
    assert leftovers(cache) == []
    assert hub.resolve(name) == folder / SPLIT[0]
    assert hub.pull(name, offline=True) == folder / SPLIT[0]
    found = [model for model in hub.list_models() if not model.builtin]
    assert [(model.name, model.n_bytes) for model in found] == [(f"acme/split:{SPLIT[0]}", 3 * len(CONTENT) + 3)]
    n_requests = len(split_hub.requests)
    hub.pull(name)  # verified again, nothing fetched again
    assert all(method == "HEAD" or "/resolve/" not in path for method, path, _ in split_hub.requests[n_requests:])
    assert hub.remove(name) == 3 * len(CONTENT) + 3
    assert not folder.exists()


def test_an_incomplete_split_model_is_none(split_hub: FakeHub, cache: Path) -> None:
    with pytest.raises(DownloadError, match=r"no file name contains 'Q8_0'; there are: Q4_K_M/m-Q4_K_M-00001-of"):
        hub.pull("acme/split:Q8_0")
    path = hub.pull("acme/split")
    (path.parent / "m-Q4_K_M-00002-of-00003.gguf").unlink()
    with pytest.raises(FileError, match="not in the cache; fetch it with: pylogquant pull acme/split"):
        hub.resolve("acme/split")
    assert [model.name for model in hub.list_models() if not model.builtin] == []
    assert hub.pull("acme/split") == path
    assert hub.resolve("acme/split") == path


def test_a_split_model_is_resumed(split_hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fetched of it stays, and the next attempt goes on from there."""
    second = split_hub.files.pop(f"acme/split/{SPLIT[1]}")
    with pytest.raises(DownloadError, match="no such file"):
        hub.pull(f"acme/split:{SPLIT[0]}")
    split_hub.files[f"acme/split/{SPLIT[1]}"] = second
    hub.pull(f"acme/split:{SPLIT[0]}")
    gets = [
        path.rpartition("/")[2] for method, path, _ in split_hub.requests if method == "GET" and "/resolve/" in path
    ]
    assert gets == [part.rpartition("/")[2] for part in SPLIT]


def test_errors_of_the_hub_say_what_to_do(fake_hub: FakeHub) -> None:
    fake_hub.files["acme/some/m-00001-of-00002.gguf"] = CONTENT
    fake_hub.files["acme/text/README.md"] = b"hello"
    fake_hub.files["acme/html/m-Q4_0.gguf"] = b"<html>"
    for name, words in (
        ("acme/nothing:Q4_0", "no such repository"),
        ("acme/nothing:m.gguf", "no such repository"),
        ("acme/some:m.gguf", "no such file in that repository"),
        ("acme/some:00001", "holds no GGUF model"),
        ("acme/text:Q4_0", "holds no GGUF model"),
        ("acme/text@v9:Q4_0", "no such revision"),
        ("acme/html:Q4_0", "not a GGUF file"),
    ):
        with pytest.raises(DownloadError) as caught:
            hub.pull(name)
        assert words in str(caught.value), name
        assert "\n" not in str(caught.value)


NO_NAMES = [
    *("/etc/passwd", "../x/y:z", "a/b:../z", "a/b:c/../../z", "a/b:/z", "a:b", "smolm", "a/b/c", "", "a/..:b"),
    *("a/b@../c", "a/b@v1/../../c:m.gguf", "a/b@:m", "a/b@/x", "a/b:x\\y", "a/b:c:d", "a/b:x\n", "a/b:.x", "a/b:x "),
    *("https://huggingface.co/a/../b", "https://huggingface.co/a/b/blob/main/..%2f..%2fx.gguf", "https://hf.co/a"),
    *("https://huggingface.co/a/b/blob/..%2f..%2f/x.gguf", "https://evil.example/a/b/blob/main/x.gguf"),
]


@pytest.mark.parametrize("name", NO_NAMES)
def test_pull_refuses_what_is_no_name(cache: Path, name: str) -> None:
    with pytest.raises(ArgumentError):
        hub.pull(name)
    assert not cache.exists()


def test_a_repository_cannot_smuggle_in_a_path(fake_hub: FakeHub, cache: Path) -> None:
    fake_hub.files["acme/evil/../../../../evil-Q4_0.gguf"] = CONTENT
    with pytest.raises(DownloadError, match="no GGUF model"):
        hub.pull("acme/evil:Q4_0")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_is_resumed(
    ranges: bool, fake_hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    fake_hub.files["acme/big/big-Q4_0.gguf"] = CONTENT
    fake_hub.cut_at = 200_000
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)  # 10 MB: more than this file has
        # Ctrl-C while the library waits before it would try again by itself; older versions give up at once.
        patch.setattr(
            "huggingface_hub.file_download.time.sleep", lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises((KeyboardInterrupt, DownloadError)):
            hub.pull("acme/big:Q4_0")
    assert sum(path.stat().st_size for path in leftovers(cache)) == 200_000
    assert not any(model.path for model in hub.list_models())
    fake_hub.no_ranges = not ranges
    assert hub.pull("acme/big:Q4_0").read_bytes() == CONTENT
    assert fake_hub.requests[-1] == ("GET", fake_hub.requests[-1][1], "bytes=200000-")
    assert leftovers(cache) == []


def test_a_file_that_changed_meanwhile_is_not_mixed_with_the_old_one(fake_hub: FakeHub, cache: Path) -> None:
    fake_hub.files["acme/big/big-Q4_0.gguf"] = CONTENT
    staging = cache / "incoming" / hub._key("acme/big:big-Q4_0.gguf") / "hub"
    staging.mkdir(parents=True)
    old = hashlib.sha256(b"another etag").hexdigest()[:16]
    (staging / f"{old}.part").write_bytes(b"old" * 1000)
    assert hub.pull("acme/big:Q4_0").read_bytes() == CONTENT
    assert leftovers(cache) == []


def test_the_token_stays_with_the_hub(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fake_hub.files["acme/big/a-Q4_0.gguf"] = fake_hub.files["acme/big/b-Q8_0.gguf"] = CONTENT
    fake_hub.token_seen = []
    hub.pull("acme/big:Q4_0")
    assert fake_hub.token_seen == ["Bearer hf_secret"]
    with serving(FakeHub(files=dict(fake_hub.files), token_seen=[])) as storage:
        fake_hub.elsewhere = storage.endpoint
        assert hub.pull("acme/big:Q8_0").read_bytes() == CONTENT
        assert storage.token_seen == [None]


def test_checksums_that_are_not_sha256(fake_hub: FakeHub, cache: Path) -> None:
    git = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    for number, (etag, works, n_notes) in enumerate(((git, True, 0), ("0" * 40, False, 0), ("weird", True, 1))):
        name = f"acme/e{number}/m-Q4_0.gguf"
        fake_hub.files[name], fake_hub.etags[name] = CONTENT, etag
        notes: list[str] = []
        if works:
            assert hub.pull(f"acme/e{number}:m-Q4_0.gguf", note=notes.append).read_bytes() == CONTENT
        else:
            with pytest.raises(DownloadError, match="does not verify"):
                hub.pull(f"acme/e{number}:m-Q4_0.gguf", note=notes.append)
        assert len(notes) == n_notes


# ---- remove ----------------------------------------------------------------------------------------------------------


def test_remove(fake_hub: FakeHub, builtin: hub.Builtin, cache: Path) -> None:
    fake_hub.files["acme/tiny/tiny.gguf"] = CONTENT
    fake_hub.files["acme/big/sub/big-Q4_0.gguf"] = CONTENT
    hub.pull("tiny-1")
    path = hub.pull("acme/big:Q4_0")
    assert hub.remove("acme/big:Q4_0") == len(CONTENT)
    assert not path.exists()
    assert not (cache / "models" / "hub").exists(), "empty folders go too"
    assert hub.remove("tiny-1") == len(CONTENT)
    assert [model for model in hub.list_models() if model.path] == []
    for name in ("tiny-1", "acme/big:Q4_0"):
        with pytest.raises(FileError, match="not in the cache"):
            hub.remove(name)


def test_remove_takes_away_a_half_fetched_model(cache: Path, builtin: hub.Builtin) -> None:
    folder = cache / "incoming" / hub._key("tiny-1")
    folder.mkdir(parents=True)
    (folder / "part").write_bytes(bytes(5000))
    assert hub.remove("tiny-1") > 0
    assert not folder.exists()


def test_remove_never_leaves_the_cache(tmp_path: Path, cache: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    precious = outside / "m-Q4_0.gguf"
    precious.write_bytes(CONTENT)
    for name in (str(precious), f"../{outside.name}/m-Q4_0.gguf", "a/b:../../m-Q4_0.gguf", "..", "/", "nothing"):
        with pytest.raises(FileError):
            hub.remove(name)
    (cache / "models" / "hub" / "acme").mkdir(parents=True)
    (cache / "models" / "hub" / "acme" / "link").symlink_to(outside, target_is_directory=True)
    with pytest.raises(FileError):
        hub.remove("acme/link:m-Q4_0.gguf")
    assert precious.exists()


def test_a_cache_that_cannot_be_written(tmp_path: Path, builtin: hub.Builtin, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("PYLOGQUANT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(FileError, match="PYLOGQUANT_CACHE"):
        hub.pull("tiny-1")


# ---- the real records ------------------------------------------------------------------------------------------------


def test_records_are_consistent() -> None:
    for name, model in hub.BUILTINS.items():
        assert name == model.name
        assert len(model.sha256) == 64
        assert isinstance(model.sources[0], _sources.HubFile)
        assert isinstance(model.sources[-1], _sources.Wheels)
        assert all("==" in wheel.requirement for wheel in model.sources[-1].wheels)
        assert hub._parse(name) is None, "a built-in name must not read as owner/repo"


def test_records_are_frozen() -> None:
    with pytest.raises(AttributeError):
        hub.BUILTINS["smollm2-135m"].sha256 = ""  # type: ignore[misc]
    assert replace(hub.BUILTINS["smollm2-135m"], title="x").title == "x"
