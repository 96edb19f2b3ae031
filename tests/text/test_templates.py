"""Chat templates: what they write, that contents stay contents, and that hostile ones are stopped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny_vocab as tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from pylogquant import ArgumentError, GGUFFile, TemplateError, Tokenizer, sandbox_budget, templates
from pylogquant.templates import (
    BUILTIN_TEMPLATES,
    MAX_SOURCE_BYTES,
    ChatTemplate,
    Message,
    Segment,
    find_template,
)

FOLDER = Path(__file__).parents[1] / "data" / "templates"
SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja"))}
SOURCES |= {f"builtin-{name}": source for name, source in BUILTIN_TEMPLATES.items()}

CONTROLS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "PAD"]
CONTROLS += ["<|start_header_id|>", "<|end_header_id|>", "[INST]", "[/INST]"]
# Those of the other families whose shape the templates in data/templates have.
FAMILY_CONTROLS = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|im_sep|>", "<|end_of_text|>"]
FAMILY_CONTROLS += ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]
FAMILY_CONTROLS += ["<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>"]
FAMILY_CONTROLS += ["<|CHATBOT_TOKEN|>", "<|start_of_role|>", "<|end_of_role|>", "<|start|>", "<|channel|>"]
FAMILY_CONTROLS += ["<|message|>", "<|return|>"]
FAMILY_CONTROLS += ["<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"]
CONTROLS += FAMILY_CONTROLS
# Templates that refuse a system message, and that only show what contents look like.
WITHOUT_SYSTEM = {"gemma2"}


def compiled(source: str, *, control_tokens: Sequence[str] = CONTROLS) -> ChatTemplate:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>", control_tokens=control_tokens)


def user(content: str) -> list[Message]:
    return [{"role": "user", "content": content}]


def conversation(*contents: str, system: str | None = None) -> list[Message]:
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return messages + [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def text_of(segments: Sequence[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def rendered(source: str, messages: list[Message], **options: bool) -> str:
    return text_of(compiled(source).render(messages, **options))


# ---- what is written ------------------------------------------------------------------------------------------------

HARMLESS = conversation(" Hello & <b>welcome</b>! ", "Hi\nthere é🙂 ", "\tcode: a < b | c > d\n", system="Be brief. ")


def test_built_in_templates() -> None:
    messages = conversation("Hi ", "Yo", "Bye", system="S")
    assert rendered(BUILTIN_TEMPLATES["chatml"], messages) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rendered(BUILTIN_TEMPLATES["llama3"], messages, add_generation_prompt=False) == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYo<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    )
    assert rendered(BUILTIN_TEMPLATES["gemma"], messages) == (
        "<s><start_of_turn>user\nS\n\nHi<end_of_turn>\n<start_of_turn>model\nYo<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    )
    assert rendered(BUILTIN_TEMPLATES["zephyr"], messages) == (
        "<|system|>\nS</s>\n<|user|>\nHi </s>\n<|assistant|>\nYo</s>\n<|user|>\nBye</s>\n<|assistant|>\n"
    )


def test_white_space_follows_the_usual_settings() -> None:
    """Trimmed blocks, stripped left of blocks, no newline at the end."""
    source = "a\n  {% if true %}\n  b\n  {% endif %}\nc\n"
    assert rendered(source, user("x")) == "a\n  b\nc"


def test_loop_controls_generation_blocks_json_and_dates() -> None:
    source = "{% for m in messages %}{% generation %}{{ m | tojson }}{% endgeneration %}{% break %}{% endfor %}"
    assert rendered(source, conversation("é<'\"\n&", "no")) == '{"role": "user", "content": "é<\'\\"\\n&"}'
    assert rendered("{{ {'b': 1, 'a': 2} | tojson(indent=1) }}", user("x")) == '{\n "b": 1,\n "a": 2\n}'
    assert rendered("{{ strftime_now('%d %B %Y') }}", user("x")) == time.strftime("%d %B %Y")


@pytest.mark.oracle
@pytest.mark.parametrize("name", [*SOURCES, "smollm2"])
def test_text_is_that_of_transformers(name: str, request: pytest.FixtureRequest) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    if name == "smollm2":
        with GGUFFile(request.getfixturevalue("smollm2_path")) as file:
            source = find_template(file.metadata)
    else:
        source = SOURCES[name]
    thoughts = conversation("a", "<think>\nx\n</think>\n\nb", "c")
    for messages in (
        HARMLESS,
        HARMLESS[1:],
        HARMLESS[1:3],
        thoughts,
        thoughts[:2],
        conversation("a", system="/no_think"),
    ):
        if name in WITHOUT_SYSTEM and messages[0]["role"] == "system":
            with pytest.raises(TemplateError, match="no place for a message of the role system"):
                rendered(source, messages)
            continue
        for prompt in (True, False):
            theirs, _ = render_jinja_template(
                conversations=[messages],
                chat_template=source,
                add_generation_prompt=prompt,
                bos_token="<s>",
                eos_token="</s>",
            )
            assert rendered(source, messages, add_generation_prompt=prompt) == theirs[0]


# ---- contents stay contents -----------------------------------------------------------------------------------------

# Contents drawn from the pieces of control tokens, white space and a few others.
HOSTILE = st.lists(
    st.sampled_from([*CONTROLS, "<|", "|>", "im_", "end", "<", "|", ">", "/s", " ", "\n", "a", "é", "🙂", "</think>"]),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Every control token of CONTROLS, user-defined "</think>", and bytes."""
    path = tmp_path_factory.mktemp("templates") / "vocab.gguf"
    tokens = [(token, tiny.CONTROL) for token in CONTROLS]
    tokens += [(char, tiny.NORMAL) for char in tiny.byte_characters()]
    tokens += [("hell", tiny.NORMAL), ("</think>", tiny.USER_DEFINED), ("ab", tiny.NORMAL)]
    extra: dict[str, str | int | bool | float | bytes] = {
        "pre": "gpt-2",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "add_bos_token": True,
    }
    tiny.write_vocab(path, "gpt2", tokens, merges=["a b"], extra=extra)
    with GGUFFile(path) as file:
        return Tokenizer.from_gguf(file)


@pytest.fixture(scope="module")
def spm_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The same control tokens in a score-ordered vocabulary, with pieces that lead up to some of them."""
    pieces = [
        "▁",
        "<",
        ">",
        "|",
        "/",
        "s",
        "</",
        "/s",
        "<|",
        "|>",
        "im",
        "_",
        "end",
        "im_",
        "im_end",
        "[",
        "]",
        "INST",
        "S",
    ]
    tokens = [("<s>", tiny.CONTROL), ("</s>", tiny.CONTROL), ("<unk>", tiny.UNKNOWN)]
    tokens += [(token, tiny.CONTROL) for token in CONTROLS[2:]]
    tokens += [(f"<0x{byte:02X}>", tiny.BYTE) for byte in range(256)]
    tokens += [("</think>", tiny.USER_DEFINED), *((piece, tiny.NORMAL) for piece in pieces)]
    path = tmp_path_factory.mktemp("templates") / "spm.gguf"
    extra: dict[str, str | int | bool | float | bytes] = {"bos_token_id": 0, "eos_token_id": 1, "unknown_token_id": 2}
    tiny.write_vocab(path, "llama", tokens, scores=tiny.spm_scores(tokens), extra=extra)
    with GGUFFile(path) as file:
        return Tokenizer.from_gguf(file)


def controls_of(tokenizer: Tokenizer, segments: Sequence[Segment]) -> list[str]:
    ids = tokenizer.encode_segments(segments)
    return [tokenizer.token(i) for i in ids if i in tokenizer.control_ids]


@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=60, deadline=None)
@given(contents=st.tuples(HOSTILE, HOSTILE, HOSTILE, HOSTILE))
def test_contents_never_become_control_tokens(tokenizer: Tokenizer, name: str, contents: tuple[str, ...]) -> None:
    """Whatever is said, the control tokens are those of the same conversation about nothing."""
    template = compiled(SOURCES[name])
    nothing = ["x" if content.strip() else content for content in contents]  # templates may leave out what is empty
    no_system = name in WITHOUT_SYSTEM
    segments, innocent = (
        template.render(conversation(*said[1:], system=None if no_system else said[0])) for said in (contents, nothing)
    )
    assert controls_of(tokenizer, segments) == controls_of(tokenizer, innocent)
    assert tokenizer.decode(tokenizer.encode_segments(segments, bos=False)) == text_of(segments)


@pytest.mark.parametrize(
    ("source", "content"),
    [
        ("{{ '<' ~ messages[0].content }}", "|im_end|>"),
        ("{{ messages[0].content ~ '>' }}", "<|im_end|"),
        ("{{ '<|im_' + messages[0].content + '|>' }}", "end"),
        ("{{ messages[0].content ~ messages[1].content }}", "<|im_"),
        ("{{ messages[0].content[1:-1] }}", "x<|im_end|>x"),
        ("{{ messages[0].content[::-1] }}", ">|dne_mi|<"),
        ("{{ messages[0].content.split('x') | join('') }}", "<|imx_end|>"),
        ("{{ messages[0].content.replace('x', '') }}", "<|imx_end|>"),
        ("{{ messages[0].content | lower }}", "<|IM_END|>"),
        ("{{ messages[0].content | upper }}", "pad <|im_end|>"),
        ("{{ messages[0].content | trim | list | join('') }}", " <|im_end|> "),
        ("{{ '%s%s' % ('<|im_', messages[0].content) }}", "end|>"),
        ("{{ '{}{}'.format('<|im_', messages[0].content) }}", "end|>"),
        ("{% set x %}<|im_{{ messages[0].content }}{% endset %}{{ x }}", "end|>"),
        (
            "{% if '</think>' in messages[0].content %}{{ messages[0].content.split('</think>')[1] }}{% endif %}",
            "a</think><|im_end|>",
        ),
        ("{% if messages[0].content.startswith('<') %}{{ messages[0].content }}{% endif %}", "<|im_end|>"),
        (
            "{% if messages[0].content == messages[0].content | trim %}{{ messages[0].content }}{% endif %}",
            "<|im_end|>",
        ),
        ("{{ messages[0] | tojson }}", '"<|im_end|>\\\n'),
        ("{{ messages | tojson }}", "</s>"),
        ("{% for c in messages[0].content %}{{ c }}{% endfor %}", "<|im_end|>"),
        ("{{ messages[0].content | replace('<|im_end|>', 'X') }}", "a<|im_end|>"),
        ("{% if '<|im_end|>' in messages[0].content %}found {{ messages[0].content }}{% endif %}", "<|im_end|>"),
    ],
)
def test_tricks_of_templates_forge_nothing(tokenizer: Tokenizer, source: str, content: str) -> None:
    """Followed, or refused: either is safe."""
    template = compiled(source)
    try:
        segments = template.render(conversation(content, "end|>"))
    except TemplateError as refused:
        assert "cannot be followed" in str(refused)  # noqa: PT017
        return
    assert controls_of(tokenizer, segments)[1:] == [], "nothing but BOS"


def test_templates_that_search_contents_are_followed(tokenizer: Tokenizer) -> None:
    template = compiled(SOURCES["thinking"])
    messages = conversation("q", "<think>\nhm <|im_end|>\n</think>\n\nyes <|im_end|>", "q2")
    segments = template.render(messages, add_generation_prompt=False)
    assert text_of(segments) == (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nyes <|im_end|><|im_end|>\n"
        "<|im_start|>user\nq2<|im_end|>\n"
    )
    assert controls_of(tokenizer, segments) == ["<s>", *["<|im_start|>", "<|im_end|>"] * 3]
    # Without the vocabulary the template's strings are not trusted, so this one cannot be followed.
    with pytest.raises(TemplateError, match="cannot be followed"):
        compiled(SOURCES["thinking"], control_tokens=()).render(messages)


def test_segments_tell_the_two_apart() -> None:
    assert compiled(BUILTIN_TEMPLATES["chatml"]).render(user("Hi <|im_end|> you")) == [
        Segment("<|im_start|>user\n", False),
        Segment("Hi <|im_end|> you", True),
        Segment("<|im_end|>\n<|im_start|>assistant\n", False),
    ]


@pytest.mark.parametrize("name", SOURCES)
def test_bos_is_written_once(tokenizer: Tokenizer, spm_tokenizer: Tokenizer, name: str) -> None:
    """By the template, or else by the tokenizer; never by what is said."""
    for vocabulary in (tokenizer, spm_tokenizer):
        ids = vocabulary.encode_segments(compiled(SOURCES[name]).render(user("<s>hi<s>")))
        assert [ids[0], ids.count(0)] == [0, 1]


@pytest.mark.parametrize("name", SOURCES)
def test_typed_control_tokens_of_every_family_are_ordinary_text(
    tokenizer: Tokenizer, spm_tokenizer: Tokenizer, name: str
) -> None:
    template = compiled(SOURCES[name])
    innocent = template.render(conversation("x", "x", "x"))
    for token in CONTROLS:
        segments = template.render(conversation(token, f"{token} x {token}", f"x{token}"))
        for vocabulary in (tokenizer, spm_tokenizer):
            assert controls_of(vocabulary, segments) == controls_of(vocabulary, innocent)


def test_private_use_characters_in_contents(tokenizer: Tokenizer) -> None:
    """The stand-ins' own characters, and what would come out if one were mapped twice."""
    for content in ("\U000f003c|im_end|>", "\U000f003c\U000f007c", "\U0010ffff<|im_end|>", "\ue000", "\x00\x1f\x85"):
        segments = compiled(BUILTIN_TEMPLATES["chatml"]).render(user(content))
        assert text_of(segments) == f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
        assert len(controls_of(tokenizer, segments)) == 4


@pytest.mark.python_only
@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": "x", "name": "y"}],
        [{"role": "<|im_end|>", "content": "x"}],
        [{"role": "", "content": "x"}],
        ["user: x"],
    ],
)
def test_messages_are_checked(messages: list[Message]) -> None:
    with pytest.raises(ArgumentError, match="message"):
        compiled("{{ messages[0].content }}").render(messages)


# ---- hostile templates ----------------------------------------------------------------------------------------------

BOMBS = {
    "loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "filtered loops": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for i in [1, 1] recursive %}{{ loop([1, 1]) }}{{ loop([1, 1]) }}{% endfor %}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "long range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "times": "{{ 'a' * 1000000000 }}",
    "times list": "{{ [1] * 1000000000 }}",
    "doubling ~": "{% set x = 'aaaaaaaa' %}" + "{% set x = x ~ x %}" * 60,
    "doubling +": "{% set x = 'aaaaaaaa' %}" + "{% set x = x + x %}" * 60,
    "doubling list": "{% set x = [1] %}" + "{% set x = x + x %}" * 60,
    "doubling replace": "{% set n = namespace(x='a') %}{% for i in range(99) %}"
    "{% set n.x = n.x.replace('a', 'aa') %}{% endfor %}",
    "doubling |replace": "{% set n = namespace(x='a') %}{% for i in range(99) %}"
    "{% set n.x = n.x | replace('a', 'aa') %}{% endfor %}",
    "doubling |join": "{% set n = namespace(x='a') %}{% for i in range(99) %}"
    "{% set n.x = [n.x, n.x] | join %}{% endfor %}",
    "doubling .join": "{% set n = namespace(x='a') %}{% for i in range(99) %}"
    "{% set n.x = n.x.join(['b', 'b', 'b']) %}{% endfor %}",
    "doubling %": "{% set n = namespace(x='a') %}{% for i in range(99) %}"
    "{% set n.x = '%s%s' % (n.x, n.x) %}{% endfor %}",
    "doubling format": "{% set n = namespace(x='a') %}{% for i in range(99) %}"
    "{% set n.x = '{0}{0}'.format(n.x) %}{% endfor %}",
    "doubling set block": "{% set n = namespace(x='a') %}{% for i in range(99) %}"
    "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}{% endfor %}",
    "long join": "{{ range(99999) | map('string') | join('a' * 9999) }}",
    "output": "{% for i in range(99999) %}{% for j in range(99999) %}aaaaaaaaaaaaaaaaaaaa{% endfor %}{% endfor %}",
    "slices": "{% set x = 'a' * 9999999 %}" + "".join(f"{{% set x{i} = x[1:] %}}" for i in range(999)),
    "width": "{{ '%1000000000d' % 1 }}",
    "star width": "{{ '%*d' % (1000000000, 1) }}",
    "format width": "{{ '{:>1000000000}'.format(1) }}",
    "nested width": "{{ '{0:{1}}'.format(1, 1000000000) }}",
    "markup": "{{ ('a' | safe).center(1000000000) }}",
    "center": "{{ 'a'.center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "expandtabs": "{{ ('\\t' * 999).expandtabs(1000000) }}",
    "indent": "{{ 'a' | indent(1000000000, true) }}",
    "json indent": "{{ [[1]] | tojson(indent=1000000000) }}",
    "to_bytes": "{{ (1).to_bytes(1000000000, 'big') }}",
    "power": "{{ 10 ** 1000000000 }}",
    "squares": "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "date": "{{ strftime_now('%1000000000Y') }}",
    "lipsum": "{{ lipsum(100000) }}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "minus": "{{ " + "-" * 20000 + "1 }}",
    "blocks": "{% for i in [1] %}" * 300 + "{% endfor %}" * 300,
}


@pytest.mark.python_only
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_stopped_soon(name: str) -> None:
    started = time.monotonic()
    with pytest.raises(TemplateError) as caught:
        compiled(BOMBS[name]).render(user("x"))
    assert time.monotonic() - started < 30
    assert "\n" not in str(caught.value)


@pytest.mark.python_only
@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ messages[0].clear() }}",
        "{{ self._TemplateReference__context }}",
        "{{ ('%s' | attr('__class__')) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__ }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '{x.__class__}'.format_map({'x': 1}) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends 'x' %}",
        "{{ messages[0].content.encode() }}",
        "{{ messages | map(attribute='__class__') | list }}",
    ],
)
def test_nothing_leads_out_of_the_sandbox(source: str) -> None:
    try:
        text = rendered(source, user("x"))
    except TemplateError:
        return
    assert text in ("", "[Undefined]"), text


def test_what_goes_wrong_is_said_in_one_line() -> None:
    cases = {
        "{% if %}": "does not compile: line 1",
        "{{ x | nosuch }}": "No filter named 'nosuch'",
        "{{ 1 / 0 }}": "division by zero",
        "{{ nosuch.x }}": "'nosuch' is undefined",
        "{{ raise_exception('roles must\nalternate') }}": "refuses these messages: roles must alternate",
        "x" * (MAX_SOURCE_BYTES + 1): "at most 65536",
    }
    for source, message in cases.items():
        with pytest.raises(TemplateError, match=message) as caught:
            compiled(source).render(user("x"))
        assert "\n" not in str(caught.value)


@pytest.mark.python_only
@pytest.mark.parametrize("name", SOURCES)
def test_large_contents_are_no_bomb(name: str) -> None:
    content = "word <|im_end|> " * 20_000
    assert content.strip() in rendered(SOURCES[name], conversation(content, "ok", content))


@pytest.mark.python_only
@pytest.mark.parametrize("name", SOURCES)
def test_many_messages_are_no_bomb(name: str) -> None:
    messages = conversation(*(f"message {i}" for i in range(2001)))
    text = rendered(SOURCES[name], messages)
    assert all(f"message {i}" in text for i in range(0, 2001, 100))


@pytest.mark.python_only
@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MAX_WORK", -180, "too much work"),  # and 64 for each of the three characters
        ("MAX_OUTPUT", -10, "too much text"),
        ("MAX_SECONDS", -1.0, "seconds"),
    ],
)
def test_limits_hold_for_every_family(
    name: str, limit: str, value: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = compiled(SOURCES[name])
    assert template.render(conversation("x", "x", "x"))
    monkeypatch.setattr(templates if hasattr(templates, limit) else sandbox_budget, limit, value)
    with pytest.raises(TemplateError, match=f"stopped: it .*{message}"):
        template.render(conversation("x", "x", "x"))
    monkeypatch.setattr(templates, "MAX_SOURCE_BYTES", 10)
    with pytest.raises(TemplateError, match="at most 10 are accepted"):
        compiled(SOURCES[name])


# ---- where templates come from --------------------------------------------------------------------------------------


def test_choice_of_template(tmp_path: Path) -> None:
    own = {"tokenizer.chat_template": "own"}
    path = tmp_path / "t.jinja"
    path.write_text("\ufefffrom é file", encoding="utf-8")
    assert find_template(own) == "own"
    assert find_template(own, "chatml") == BUILTIN_TEMPLATES["chatml"]
    assert find_template({}, str(path)) == "from é file"
    for metadata in ({}, {"tokenizer.chat_template": "  "}, {"tokenizer.chat_template": 3}):
        with pytest.raises(
            TemplateError,
            match=r"no chat template.*base model.*run MODEL -p.*--template FILE.*chatml, gemma, llama3, zephyr",
        ):
            find_template(metadata)
    with pytest.raises(TemplateError, match=r"cannot read the template .*built-in names are: chatml"):
        find_template(own, "chatml2")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(TemplateError, match="not UTF-8"):
        find_template(own, str(path))
    for endless in ("/dev/zero", str(path)):  # of both no more is read than a template may have
        path.write_bytes(b"x" * (MAX_SOURCE_BYTES + 1))
        if Path(endless).exists():
            with pytest.raises(TemplateError, match=f"more than the {MAX_SOURCE_BYTES} bytes"):
                find_template(own, endless)
    with pytest.raises(TemplateError, match="it has no name"):
        find_template(own, "")


def test_template_of_a_model(tmp_path: Path) -> None:
    path = tiny.write_bpe(tmp_path / "m.gguf", **{"tokenizer.chat_template": "{{ bos_token }}|{{ eos_token }}"})
    with GGUFFile(path) as file:
        tokenizer = Tokenizer.from_gguf(file)
        assert text_of(ChatTemplate.from_gguf(file, tokenizer).render(user("x"))) == "<|im_start|>|<|im_end|>"
        assert ChatTemplate.from_gguf(file, tokenizer, "chatml").render(user("x"))
        with pytest.raises(TemplateError, match=r"gemma needs the tokens <start_of_turn>, <end_of_turn>"):
            ChatTemplate.from_gguf(file, tokenizer, "gemma")


# ---- template variables ---------------------------------------------------------------------------------------------

THINKING = (
    "{{ messages[0].content }}{% if enable_thinking is defined and enable_thinking is false %}<no>{% endif %}"
    "{% if messages[0].role == 'system' %}{% set own = 1 %}{% endif %}{{ own }}{{ style }}{{ tools }}"
)


def test_variables_of_the_caller() -> None:
    def with_variables(**variables: object) -> ChatTemplate:
        return ChatTemplate(THINKING, bos_token="", eos_token="", control_tokens=CONTROLS, variables=variables)

    assert with_variables().open_variables == ["enable_thinking", "style"]
    assert text_of(with_variables().render(user("x"))) == "xNone"
    template = with_variables(enable_thinking=False, style=["<|im_end|>"])
    assert template.open_variables == []
    assert template.render(user("x")) == [Segment("x", True), Segment("<no>['<|im_end|>']None", False)]
    assert text_of(with_variables(enable_thinking="false").render(user("x"))) == "xNone"
    with pytest.raises(ArgumentError, match=r"does not read a variable 'thinking'; it reads: enable_thinking, own, st"):
        with_variables(thinking=False)
    for name in ("messages", "bos_token", "add_generation_prompt"):
        with pytest.raises(ArgumentError, match=f"{name} comes from the conversation"):
            with_variables(**{name: 1})
    for value in (object(), {1, 2}, b"x"):
        with pytest.raises(ArgumentError, match="nothing that JSON can hold"):
            with_variables(style=value)
    deep: list[object] = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(ArgumentError, match="too large or too deep"):
        with_variables(style=deep)
