"""One engine in a process of its own, for bench_peers.py: takes commands from its standard input, a JSON list a line,
and answers each with a line on its standard output. Between commands it sleeps.

    python tools/measure/bench_worker.py ENGINE MODEL THREADS N_CTX STATES

ENGINE: pylogquant, llama.cpp, ik_llama.cpp, or ik_llama.cpp+repack, which rearranges weights when it loads them; the
interpreter that runs this file must have it, and nothing else is imported. STATES: a folder where filled KV caches are
kept and found again, or "" for none.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_CHUNK = 512  # tokens of a prompt at once, in every engine
_WARM = 2  # tokens decoded before those that are timed
_GGML_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 8}


class Engine(ABC):
    """One timeline for each KV cache type, all over the same weights."""

    name: str
    version: str

    @abstractmethod
    def open(self, kv: str) -> None:
        """Makes an empty timeline of a type, the current one from now on; or one that was made before is it again."""

    @abstractmethod
    def clear(self) -> None: ...

    @abstractmethod
    def append(self, ids: Sequence[int]) -> Callable[[], None]:
        """What evaluates ids behind those that are held, with the logits of the last; all is prepared."""

    @abstractmethod
    def go_back(self, n: int) -> None:
        """Forgets all but the first n tokens, which were kept with mark()."""

    @abstractmethod
    def mark(self) -> None: ...

    @abstractmethod
    def save(self, path: Path) -> None: ...

    @abstractmethod
    def load(self, path: Path) -> None: ...


class Ours(Engine):
    def __init__(self, model: Path, threads: int, n_ctx: int) -> None:
        import pylogquant
        from pylogquant.kv import KvOptions

        self._options = KvOptions.parse
        self._model = pylogquant.Model(model, threads=threads)
        self._n_ctx = n_ctx
        self._sessions: dict[str, Any] = {}
        self.name, self.version = "pylogquant", f"pylogquant {pylogquant.__version__}"

    def open(self, kv: str) -> None:
        self._kv = kv
        if kv not in self._sessions:
            self._sessions[kv] = self._model.session(self._n_ctx, self._options(kv), chunk=_CHUNK, allow_long=True)

    @property
    def _session(self) -> Any:
        return self._sessions[self._kv]

    def clear(self) -> None:
        self._session.reset()

    def append(self, ids: Sequence[int]) -> Callable[[], None]:
        session = self._session
        if len(ids) == 1:
            return lambda: session.append(ids[0])
        return lambda: session.prefill(ids)

    def mark(self) -> None:
        self._session.checkpoint()

    def go_back(self, n: int) -> None:
        self._session.rewind(n)

    def save(self, path: Path) -> None:
        self._session.save(path)

    def load(self, path: Path) -> None:
        self._sessions[self._kv].close()
        self._sessions[self._kv] = self._model.load_session(path)


class _Llama(Engine):
    """What both descendants of llama.cpp have in common; through C functions, which cost less than Python classes."""

    def __init__(self, library: Any, n_ctx: int) -> None:
        self._lib = library
        self._n_ctx = n_ctx
        self._contexts: dict[str, Any] = {}
        self._held: dict[str, int] = {}

    @abstractmethod
    def _new_context(self, type_number: int) -> Any: ...

    @abstractmethod
    def _batch(self, tokens: Any, n: int, position: int) -> Any: ...

    @abstractmethod
    def _forget(self, context: Any, first: int) -> bool: ...

    def open(self, kv: str) -> None:
        self._kv = kv
        if kv not in self._contexts:
            self._contexts[kv] = self._new_context(_GGML_TYPES[kv])
            self._held[kv] = 0
            if not self._contexts[kv]:
                raise RuntimeError(f"no context with {kv} KV")

    def clear(self) -> None:
        self._forget(self._contexts[self._kv], 0)
        self._held[self._kv] = 0

    def append(self, ids: Sequence[int]) -> Callable[[], None]:
        kv, context, lib = self._kv, self._contexts[self._kv], self._lib
        arrays = [(ctypes.c_int32 * len(part))(*part) for part in _chunks(ids)]
        first, batches = self._held[kv], []
        for array in arrays:
            batches.append(self._batch(array, len(array), first))
            first += len(array)
        self._held[kv] = first

        def run() -> None:
            for batch in batches:
                if lib.llama_decode(context, batch) != 0:
                    raise RuntimeError(f"{self.name} failed to decode")
            lib.llama_get_logits_ith(context, -1)[0]  # reading one waits until they are there
            arrays.clear()  # until now the batches pointed into them

        return run

    def mark(self) -> None:
        """Nothing is given up: every number of tokens can be gone back to."""

    def go_back(self, n: int) -> None:
        if not self._forget(self._contexts[self._kv], n):
            raise RuntimeError(f"{self.name} cannot go back to {n} tokens")
        self._held[self._kv] = n

    def save(self, path: Path) -> None:
        tokens = (ctypes.c_int32 * 1)(self._held[self._kv])  # how many there are, in place of which
        save = self._c_lib.llama_state_seq_save_file
        save.restype = ctypes.c_size_t
        save.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_size_t]
        if save(self._contexts[self._kv], os.fsencode(path), 0, tokens, 1) == 0:
            raise RuntimeError(f"{self.name} cannot save its state")

    def load(self, path: Path) -> None:
        tokens, count = (ctypes.c_int32 * 1)(), ctypes.c_size_t()
        load = self._c_lib.llama_state_seq_load_file
        load.restype = ctypes.c_size_t
        load.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_size_t,
                         ctypes.c_void_p]  # fmt: skip
        self.clear()
        if load(self._contexts[self._kv], os.fsencode(path), 0, tokens, 1, ctypes.byref(count)) == 0:
            raise RuntimeError(f"{self.name} cannot load its state from {path}")
        self._held[self._kv] = tokens[0]

    @property
    @abstractmethod
    def _c_lib(self) -> Any:
        """The shared library itself."""


class LlamaCpp(_Llama):
    def __init__(self, model: Path, threads: int, n_ctx: int) -> None:
        import llama_cpp

        super().__init__(llama_cpp, n_ctx)
        self.name, self.version = "llama.cpp", f"llama-cpp-python {llama_cpp.__version__}"
        self._threads = threads
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(model), llama_cpp.llama_model_default_params())

    @property
    def _c_lib(self) -> Any:
        return self._lib.llama_cpp._lib

    def _new_context(self, type_number: int) -> Any:
        params = self._lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = self._n_ctx, _CHUNK, _CHUNK
        params.n_threads = params.n_threads_batch = self._threads
        params.type_k = params.type_v = type_number
        params.flash_attn_type = self._lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        return self._lib.llama_init_from_model(self._model, params)

    def _batch(self, tokens: Any, n: int, position: int) -> Any:
        return self._lib.llama_batch_get_one(tokens, n)

    def _forget(self, context: Any, first: int) -> bool:
        return bool(self._lib.llama_memory_seq_rm(self._lib.llama_get_memory(context), 0, first, -1))


class IkLlamaCpp(_Llama):
    _REPACK = False

    def __init__(self, model: Path, threads: int, n_ctx: int) -> None:
        import ik_llama_cpp
        from ik_llama_cpp import _ctypes_api

        super().__init__(_ctypes_api, n_ctx)
        self.name, self.version = "ik_llama.cpp", f"ik-llama-cpp-python {ik_llama_cpp.__version__}"
        self._threads = threads
        self._get_one = _ctypes_api._lib.llama_batch_get_one
        self._get_one.restype = _ctypes_api.llama_batch
        self._get_one.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]
        self._remove = _ctypes_api._lib.llama_kv_cache_seq_rm
        self._remove.restype = ctypes.c_bool
        self._remove.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]
        _ctypes_api.llama_backend_init()
        params = _ctypes_api.llama_model_default_params()
        params.repack_tensors = self._REPACK
        self._model = _ctypes_api.llama_model_load_from_file(os.fsencode(model), params)

    @property
    def _c_lib(self) -> Any:
        return self._lib._lib

    def _new_context(self, type_number: int) -> Any:
        params = self._lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = self._n_ctx, _CHUNK, _CHUNK
        params.n_threads = params.n_threads_batch = self._threads
        params.type_k = params.type_v = type_number
        params.flash_attn = True
        return self._lib.llama_init_from_model(self._model, params)

    def _batch(self, tokens: Any, n: int, position: int) -> Any:
        return self._get_one(ctypes.addressof(tokens), n, position, 0)

    def _forget(self, context: Any, first: int) -> bool:
        return bool(self._remove(context, 0, first, -1))


class IkLlamaCppRepacked(IkLlamaCpp):
    _REPACK = True


def _chunks(ids: Sequence[int]) -> list[Sequence[int]]:
    return [ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK)]


class Worker:
    """Answers commands about one engine."""

    def __init__(self, engine: Engine, model: Path, n_ctx: int, states: Path | None) -> None:
        self.engine, self.model, self.n_ctx, self.states = engine, model, n_ctx, states
        self.ids: list[int] = []
        self.held: dict[str, int] = {}  # tokens of ids that a type's timeline holds

    def take_ids(self, ids: list[int]) -> str:
        self.ids = ids
        return self.engine.version

    def fill(self, kv: str, n: int) -> float:
        """Makes the timeline of a type hold the first n ids; seconds, 0 if they were kept in a file."""
        self.engine.open(kv)
        start, seconds = self.held.get(kv, 0), 0.0
        path = self._state_path(kv, n)
        if path is not None and path.exists():
            self.engine.load(path)
        else:
            if start > n or start == 0:
                self.engine.clear()
                start = 0
            if n > start:
                seconds = _seconds(self.engine.append(self.ids[start:n]))
            if path is not None:
                part = path.with_name(path.name + ".part")  # whole or not at all
                self.engine.save(part)
                part.replace(path)
        self.engine.mark()
        self.held[kv] = n
        return seconds

    def _state_path(self, kv: str, n: int) -> Path | None:
        if self.states is None or n == 0:
            return None
        key = json.dumps([self.engine.version, self.model.name, self.n_ctx, kv, self.ids[:n]])
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        return self.states / f"{self.engine.name}-{kv.partition('+')[0]}-{n}-{digest}"

    def prompt(self, kv: str, n: int) -> float:
        """Seconds that a prompt of n tokens takes, from an empty timeline to the logits of the last."""
        self.engine.open(kv)
        self.engine.clear()
        self.held[kv] = n
        return _seconds(self.engine.append(self.ids[:n]))

    def decode(self, kv: str, n: int) -> float:
        """Seconds for a token, of n decoded one by one behind those that fill() left, which are then held again."""
        self.engine.open(kv)
        held = self.held[kv]
        for token in self.ids[held : held + _WARM]:
            self.engine.append([token])()
        steps = [self.engine.append([token]) for token in self.ids[held + _WARM : held + _WARM + n]]
        seconds = _seconds(lambda: [step() for step in steps])
        self.engine.go_back(held)
        return seconds / n


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


_ENGINES: dict[str, Callable[[Path, int, int], Engine]] = {
    "pylogquant": Ours,
    "llama.cpp": LlamaCpp,
    "ik_llama.cpp": IkLlamaCpp,
    "ik_llama.cpp+repack": IkLlamaCppRepacked,
}


def main() -> None:
    name, model, threads, n_ctx, states = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    engine = _ENGINES[name](Path(model), int(threads), int(n_ctx))
    worker = Worker(engine, Path(model), int(n_ctx), Path(states) if states else None)
    commands: dict[str, Callable[..., Any]] = {
        "ids": worker.take_ids,
        "fill": worker.fill,
        "prompt": worker.prompt,
        "decode": worker.decode,
    }
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = {"value": commands[command](*arguments)}
        except Exception as error:  # told to bench_peers, which ends the run
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
