"""`pylogquant build --cuda`: what it says is missing, and the way of a library into the user's data folder. The
compiler itself is a stand-in here; tools/check.py compiles the sources with the real one, where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import call, one_error

from pylogquant import ArgumentError, Unsupported
from pylogquant.build import Tools, build_cuda, choose_archs, find_tools, source_folder
from pylogquant.devices import built_library

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts")

NVCC = """#!/bin/sh
case "$1" in
    --version) echo 'Cuda compilation tools, release {release}, V0' ;;
    --list-gpu-arch) printf 'compute_75\\ncompute_86\\ncompute_120\\n' ;;
    -o) printf '#!/bin/sh\\n{look}\\n' > "$2"; chmod +x "$2" ;;
esac
"""
CMAKE = """#!/bin/sh
case "$1" in
    --version) echo 'cmake version 3.31.0' ;;
    -S) echo "configured $@" ;;
    --build) echo '[1/2] one'; echo '[2/2] two'; {made} ;;
esac
"""


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nvcc and cmake as the only programs besides the shell's, and a data folder of its own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script(folder / "nvcc", NVCC.format(release="12.4", look="printf 86; echo; echo 75; echo 86"))
    script(folder / "cmake", CMAKE.format(made="true"))
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    monkeypatch.setenv("CUDACXX", str(folder / "nvcc"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return folder


def test_the_sources_are_there() -> None:
    folder = source_folder() / "native" / "src"
    assert (folder / "backends" / "cuda" / "attention.cu").is_file()
    for name in ("backends/backend.h", "formats/formats.def", "formats/iq_grids.c", "core/half.h"):
        assert (folder / name).is_file()


def test_tools_are_found(tools: Path) -> None:
    assert find_tools() == Tools(tools / "nvcc", (12, 4), str(tools / "cmake"))


def test_an_old_toolkit(tools: Path) -> None:
    script(tools / "nvcc", NVCC.format(release="11.1", look=""))
    one_error(call("build", "--cuda"), "CUDA 11.1", "11.2 or newer")


def test_no_compiler(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDACXX", str(tools / "none"))
    one_error(call("build", "--cuda"), "CUDACXX names")


def test_nothing_to_build() -> None:
    found = call("build")
    assert found.status == 2
    assert "--cuda" in found.err


def test_archs(tools: Path) -> None:
    found = find_tools()
    assert choose_archs("native", found) == ("75", "86")
    assert choose_archs("120,86", found) == ("86", "120")
    with pytest.raises(ArgumentError, match="--arch is native, or numbers"):
        choose_archs("sm_86", found)
    with pytest.raises(Unsupported, match=r"7\.2 or newer"):
        choose_archs("61", found)
    with pytest.raises(Unsupported, match="cannot compile for 90; it can for 75, 86, 120"):
        choose_archs("90", found)


def test_no_device_to_compile_for(tools: Path) -> None:
    script(tools / "nvcc", NVCC.format(release="12.4", look="echo no driver >&2; exit 1"))
    one_error(call("build", "--cuda"), "no device to compile for was found (no driver)", "--arch 75,86")


def test_a_library_is_put_in_place_and_tested(tools: Path, cuda_library: Path) -> None:
    made = f'cp "{cuda_library}" "$2/{built_library().name}"'
    script(tools / "cmake", CMAKE.format(made=made))
    steps: list[tuple[int, int]] = []
    built = build_cuda(find_tools(), ["75", "86"], progress=lambda done, total: steps.append((done, total)))
    assert built.library == built_library()
    assert built.library.read_bytes() == cuda_library.read_bytes()
    assert built.archs == ("75", "86")
    assert [device.split(",")[0] for device in built.tested] == ["cuda:0"]
    assert steps == [(1, 2), (2, 2)]
    assert "-DCMAKE_CUDA_ARCHITECTURES=75;86" in (built.library.parent / "build.log").read_text()
    found = call("build", "--cuda", "--arch", "86")
    assert found.status == 0
    assert found.out.strip() == str(built.library)
    assert "self-test passed on cuda:0" in found.err


def test_a_library_that_does_not_work(tools: Path) -> None:
    script(tools / "cmake", CMAKE.format(made=f'echo nothing > "$2/{built_library().name}"'))
    with pytest.raises(Unsupported, match="was built, but does not work here"):
        build_cuda(find_tools(), ["86"])
    assert not list(built_library().parent.glob("*logquant_cuda*"))


def test_a_library_that_computes_wrongly(tools: Path, cuda_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "emulated" not in cuda_library.name:
        pytest.skip("needs a device that can be broken")
    script(tools / "cmake", CMAKE.format(made=f'cp "{cuda_library}" "$2/{built_library().name}"'))
    built_library().parent.mkdir(parents=True)
    built_library().write_bytes(b"the one before")
    monkeypatch.setenv("LQ_EMULATED_FAULT", "products")
    found = call("build", "--cuda", "--arch", "86")
    assert found.status == 1
    assert "does not work here, and was not put in place: the device computes wrongly: products with" in found.err
    assert [path.read_bytes() for path in built_library().parent.glob("*logquant_cuda*")] == [b"the one before"]


def test_compiling_fails(tools: Path) -> None:
    script(tools / "cmake", CMAKE.format(made="echo 'x.cu(3): error: no such thing'; exit 1"))
    found = call("build", "--cuda", "--arch", "86")
    assert found.status == 1
    assert "error: the CUDA backend could not be built: x.cu(3): error: no such thing" in found.err
    assert "build.log" in found.err
