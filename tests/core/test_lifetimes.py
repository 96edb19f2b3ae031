"""Memory does not grow: rounds of load, chat, close, on a generated model and on a real one."""

from __future__ import annotations

import gc
from pathlib import Path

import psutil
import pytest

from pylogquant import Model, SamplingOptions

ROUNDS = 50
WARM_UP = 10  # allocators and caches settle
# Bytes. The allocator's own growth levels off near 15 MiB; a session or a tokenizer that leaked once a round would add
# hundreds, and so would 1 MiB a round.
GROWTH_LIMIT = 24 << 20


def one_round(path: Path) -> None:
    with Model(path, threads=2) as model:
        chat = model.chat(n_ctx=256, sampling=SamplingOptions(temperature=0))
        chat.send("Hello", max_tokens=3)
        chat.close()


@pytest.mark.without_sanitizers
@pytest.mark.parametrize("fixture", ["tiny_llama_path", "smollm2_path"])
def test_rounds_of_load_chat_close(fixture: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(fixture)
    process = psutil.Process()
    for _ in range(WARM_UP):
        one_round(path)
    gc.collect()
    before, threads_before = process.memory_info().rss, process.num_threads()
    files_before = process.num_fds() if hasattr(process, "num_fds") else 0
    for _ in range(ROUNDS):
        one_round(path)
    gc.collect()
    growth = process.memory_info().rss - before
    assert growth < GROWTH_LIMIT, f"{growth / 2**20:.1f} MiB more after {ROUNDS} rounds"
    assert process.num_threads() == threads_before
    assert not files_before or process.num_fds() == files_before
