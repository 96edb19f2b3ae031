#!/usr/bin/env bash
# llguidance 1.9.1: a grammar made from a JSON schema takes fewer strings than JSON has. The escapes \/ and \uXXXX are
# refused, but for the control characters \u0000 to \u001f, so that a model which has learnt to write "\u00e9" is led away
# from it after "\u00"; "é" itself and \n are taken. Properties come in the schema's order only.
# Seen: bytes taken of each text: "\u00e9" 5 of 8, "\/" 2 of 4, "\u000a" 8 of 8, "é" 4 of 4; {"b":..,"a":..} 2 of 13.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check llguidance==1.9.1
venv/bin/python - <<'PY'
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper


class Bytes:
    """A tokenizer of single bytes and an end token."""

    tokens = [bytes([b]) for b in range(256)] + [b"<end>"]
    special_token_ids = [256]
    bos_token_id, eos_token_id = None, 256

    def __call__(self, text):
        return list(text.encode() if isinstance(text, str) else text)


tokenizer = LLTokenizer(TokenizerWrapper(Bytes()))


def taken(schema, text):
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(schema))
    return matcher.try_consume_tokens(list(text.encode()))


number = {"type": "integer"}
pair = {"type": "object", "properties": {"a": number, "b": number}, "required": ["a", "b"]}
found = {text: taken({"type": "string"}, text) for text in (r'"\u00e9"', r'"\/"', r'"\u000a"', '"é"', r'"\n"')}
found |= {text: taken(pair, text) for text in ('{"a":1,"b":2}', '{"b":2,"a":1}')}
print(found)
assert list(found.values()) == [5, 2, 8, 4, 4, 13, 2], "other strings are taken now"
PY
