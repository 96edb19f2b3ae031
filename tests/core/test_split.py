"""Models in several files: opened as one, or refused with the name of the file that is wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf_copy import copy_gguf
from make_tiny_gguf import make_tiny

from pylogquant import GGUFFile, Model
from pylogquant.errors import LogQuantError, ModelFormatError

pytestmark = pytest.mark.tiny_model
_PER_PART = 7


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("split") / "whole.gguf", n_layers=2)


def split(whole: Path, folder: Path) -> list[Path]:
    """The file's parts, as the gguf package writes them."""
    copy_gguf(whole, folder / "model.gguf", per_part=_PER_PART)
    return sorted(folder.glob("model-*.gguf"))


def patch_u16(path: Path, key: str, value: int) -> None:
    """Overwrites a 16-bit value: key, type, value."""
    data = bytearray(path.read_bytes())
    at = data.index(key.encode()) + len(key) + 4
    data[at : at + 2] = value.to_bytes(2, "little")
    path.write_bytes(data)


def test_parts_are_one_model(whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path)
    assert len(parts) > 2
    with GGUFFile(whole) as one, GGUFFile(parts[0]) as several:
        names = {tensor.name: (tensor.type_name, tensor.shape) for tensor in one.tensors}
        assert {tensor.name: (tensor.type_name, tensor.shape) for tensor in several.tensors} == names
        assert several.file_bytes == sum(part.stat().st_size for part in parts)
    ids = list(range(1, 40))
    logits = []
    for path in (whole, parts[0]):
        with Model(path) as model, model.session(64) as session:
            found = session.eval(ids, "all")
            assert found is not None
            logits.append(found.copy())
    np.testing.assert_array_equal(*logits)


def rename_first(parts: list[Path]) -> Path:
    return parts[0].rename(parts[0].with_name("other.gguf"))


def remove_third(parts: list[Path]) -> Path:
    parts[2].unlink()
    return parts[0]


def cut_second(parts: list[Path]) -> Path:
    parts[1].write_bytes(parts[1].read_bytes()[:-100])
    return parts[0]


def swap(parts: list[Path]) -> Path:
    shutil.move(parts[1], parts[0].with_name("x"))
    shutil.move(parts[2], parts[1])
    shutil.move(parts[0].with_name("x"), parts[2])
    return parts[0]


def other_count(parts: list[Path]) -> Path:
    patch_u16(parts[1], "split.count", len(parts) + 1)
    return parts[0]


def same_tensors_again(parts: list[Path]) -> Path:
    shutil.copy(parts[1], parts[2])
    patch_u16(parts[2], "split.no", 2)
    return parts[0]


def fewer_tensors(parts: list[Path]) -> Path:
    for part in parts:
        patch_u16(part, "split.tensors.count", 3)
    return parts[0]


def not_a_part(parts: list[Path]) -> Path:
    make_tiny(parts[1])
    return parts[0]


def endless(parts: list[Path]) -> Path:
    patch_u16(parts[0], "split.count", 0xFFFF)
    return parts[0].rename(parts[0].with_name("model-00001-of-65535.gguf"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda parts: parts[1], r"00002-of-\d+.gguf: part 2 of a model.*open the first one"),
        (rename_first, r"other.gguf: the first part of a model in \d, whose name must end in -00001-of-0000\d.gguf"),
        (remove_third, r"00003-of-\d+.gguf: .*No such file"),
        (cut_second, r"00002-of-\d+.gguf: .*truncated"),
        (swap, r"00002-of-\d+.gguf: says it is part 3 of a model, by its name it is part 2"),
        (other_count, r"00002-of-\d+.gguf: says it is one of \d parts, the first part says \d"),
        (same_tensors_again, r"00003-of-\d+.gguf: tensor '.*' is in an earlier part too"),
        (fewer_tensors, r"00001-of-\d+.gguf: says that its \d parts hold 3 tensors, they hold \d+"),
        (not_a_part, r"00002-of-\d+.gguf: .*split.no"),
        (endless, r"00002-of-65535.gguf: .*No such file"),
    ],
)
def test_damage_is_named(whole: Path, tmp_path: Path, damage: Callable[[list[Path]], Path], message: str) -> None:
    path = damage(split(whole, tmp_path))
    with pytest.raises(LogQuantError, match=message) as caught:
        GGUFFile(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(LogQuantError, match=message):
        Model(path)


def test_one_part_is_a_whole_model(whole: Path, tmp_path: Path) -> None:
    """A count of one, as some tools write it, whatever the file's name."""
    parts = split(whole, tmp_path)
    patch_u16(parts[0], "split.count", 1)
    with GGUFFile(parts[0]) as file:
        assert len(file.tensors) == _PER_PART
    with pytest.raises(ModelFormatError, match="is missing"):
        Model(parts[0])


CUT = """
import os, sys
from pylogquant import FileError, Model
with Model(sys.argv[1], threads=1) as model, model.session(64) as session, model.session(64) as other:
    session.eval([1, 2, 3])
    session.save(sys.argv[3])
    with open(sys.argv[2], "r+b") as file:
        whole = file.read()
        file.truncate(int(sys.argv[4]))
        file.flush()
        calls = (
            lambda: session.eval([4, 5]),
            lambda: session.append(4),
            lambda: model.step([session, other], [4, 4]),
            lambda: session.save(sys.argv[3]),
            lambda: model.load_session(sys.argv[3]),
        )
        for call in calls:
            try:
                call()
                print("no error")
            except FileError as error:
                print(str(error).partition(";")[0])
        file.seek(0)
        file.write(whole)
        file.flush()
        session.eval([4, 5])
        print(session.tokens)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there a file that is open cannot be cut")
@pytest.mark.parametrize(("part", "left"), [(0, 0), (0, 5000), (2, 100)])
def test_a_file_cut_short_while_it_is_open(whole: Path, tmp_path: Path, part: int, left: int) -> None:
    """By `cp` over it, for one: an error at the next evaluation, where reading it would end the process; the session
    goes on if the file is made whole again."""
    parts = split(whole, tmp_path)
    command = [sys.executable, "-c", CUT, str(parts[0]), str(parts[part]), str(tmp_path / "s"), str(left)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        *[f"{parts[part]}: the file was cut short while it was open"] * 5,
        "[1, 2, 3, 4, 5]",
    ]
