"""Options: written once, taken by every method that makes or plans a session, refused where they cannot be."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from command_line import call

from pylogquant import ArgumentError, ChatOptions, KvOptions, Model, Sampler, SamplingOptions, SessionOptions
from pylogquant.cli.options import LengthGroup, SessionGroup
from pylogquant.options import fill_session_options

OTHERS = SessionOptions(
    272, "q8_0", chunk=32, on_full="drop", budget=2**26, checkpoints=3, checkpoint_bytes=2**20, allow_long=True
)


def arguments(function: Any) -> dict[str, object]:
    """Names and defaults of what may be given to a method."""
    found = inspect.signature(function).parameters
    return {name: parameter.default for name, parameter in found.items() if name != "self"}


def test_every_method_takes_every_option() -> None:
    session = {field.name: field.default for field in fields(SessionOptions)}
    assert arguments(Model.session) == arguments(Model.plan) == session
    assert arguments(Model.chat) == {field.name: field.default for field in fields(ChatOptions)}
    assert session.items() <= arguments(Model.chat).items()
    assert list(arguments(Model.session))[:2] == ["n_ctx", "kv"]
    assert next(iter(arguments(Model.chat))) == "system"


def test_help_explains_every_option() -> None:
    for options, methods in ((SessionOptions, (Model.session, Model.plan)), (ChatOptions, (Model.chat,))):
        own = [name for name in vars(options)["__annotations__"] if name != "_"]
        for method in methods:
            text = inspect.getdoc(method) or ""
            assert "Raises" in text or "raises" in text
            assert [name for name in own if f"\n{name}: " not in text] == []


def test_the_core_has_the_same_defaults() -> None:
    raw, _keep = fill_session_options(SessionOptions(chunk=0))
    from pylogquant._native import ffi, lib

    usual = ffi.new("lq_session_options *")
    lib.lq_session_options_init(usual)
    for name, _ in ffi.typeof("lq_session_options").fields:
        if name != "kv":
            assert getattr(raw, name) == getattr(usual, name), name


def test_the_command_line_has_the_same_defaults() -> None:
    group = SessionGroup(length=LengthGroup(ctx=0))
    assert replace(group.options(2048), n_ctx=0, kv="") == SessionOptions(kv="")
    assert group.kv_options == KvOptions()


def test_fields_and_an_object_are_the_same(tiny_llama_path: Path) -> None:
    with Model(tiny_llama_path, threads=1) as model:
        given: dict[str, Any] = vars(OTHERS)
        assert (
            model.plan(OTHERS)
            == model.plan(**given)
            == model.plan(272, "q8_0", chunk=32, on_full="drop", checkpoints=3)
        )
        assert model.plan(OTHERS) != model.plan(272, "q8_0", chunk=33, on_full="drop")
        with model.session(OTHERS) as session, model.session(272, "q8_0", chunk=32, on_full="drop") as other:
            assert session.info().n_chunk == other.info().n_chunk == 32
            assert session.n_ctx == 272 < other.n_limit < session.n_limit
        with model.chat(ChatOptions("Hi.", template="chatml", **given)) as chat:
            assert (chat.system, chat.session.n_ctx, chat.session.info().kv) == ("Hi.", 272, "q8_0")
            chat.session.prefill([1, 2])
            for n in range(5):
                chat.session.append(n)
                chat.session.checkpoint()
            assert len(chat.session.checkpoints) == 3
        with model.chat("Hi.", template="chatml", n_ctx=96, sampling=SamplingOptions(seed=5), loop_guard=False) as chat:
            assert (chat.sampler.seed, chat.loop_guard, chat.skip_special) == (5, False, True)


@pytest.mark.parametrize("name", ["n_ctx", "chunk", "checkpoints", "budget", "checkpoint_bytes"])
def test_numbers_that_cannot_be(tiny_llama_path: Path, name: str) -> None:
    with Model(tiny_llama_path, threads=1) as model:
        for value in (-1, 2**64):
            options: dict[str, Any] = {name: value}
            for method in (model.session, model.plan):
                with pytest.raises(ArgumentError, match=f"{name} must be 0 to .*, not {value}"):
                    method(**options)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("n_ctx", ["5", None, 1.5, 5.0]),
        ("kv", [None, 5]),
        ("chunk", [1.0, "7"]),
        ("allow_long", ["yes", None, 2]),
        ("on_full", [None, b"stop"]),
        ("watch_attention", ["no", []]),
        ("max_tentative", [None]),
        ("budget", [1e9, "1"]),
        ("checkpoints", [0.5]),
        ("checkpoint_bytes", [None]),
        ("system", [5, b"x", ["a"]]),
        ("sampling", [5, {"temperature": 0}]),
        ("template_vars", [5, [("x", 1)]]),
    ],
)
def test_values_of_other_kinds_are_told_by_name(tiny_llama_path: Path, name: str, values: list[Any]) -> None:
    said = {"system": "a message", "template_vars": "the template's variables"}.get(name, name)
    is_of_sessions = name in {field.name for field in fields(SessionOptions)}
    with Model(tiny_llama_path, threads=1) as model:
        for value in values:
            options: dict[str, Any] = {name: value}
            for method in (model.session, model.plan) if is_of_sessions else ():
                with pytest.raises(ArgumentError, match=f"^{said} must be "):
                    method(**options)
            with pytest.raises(ArgumentError, match=f"^{said} must be "):
                model.chat(template="chatml", **options)


@pytest.mark.parametrize("name", [field.name for field in fields(SamplingOptions) if field.name != "logprobs"])
def test_sampling_options_of_other_kinds_are_told_by_name(name: str) -> None:
    options: dict[str, Any] = {name: "x"}
    with pytest.raises(ArgumentError, match=name.replace("_", "[- ]")):
        Sampler(SamplingOptions(**options))


def test_an_unknown_option_is_a_type_error(tiny_llama_path: Path) -> None:
    wrong: Any = {"context": 5}
    with Model(tiny_llama_path, threads=1) as model:
        with pytest.raises(TypeError, match=r"SessionOptions.* 'context'"):
            model.session(**wrong)
        with pytest.raises(TypeError, match=r"ChatOptions.* 'context'"):
            model.chat(**wrong)


def test_a_wrong_choice_is_told_before_a_model_is_looked_for() -> None:
    for command in (["chat"], ["run", "-p", "hello"]):
        assert "--on-full is stop or drop, not shift" in call(*command, "no-such-model", "--on-full", "shift").err
        chat = ["--chat"] if command[0] == "run" else []
        assert "--template-var is" in call(*command, *chat, "no-such-model", "--template-var", "x").err
