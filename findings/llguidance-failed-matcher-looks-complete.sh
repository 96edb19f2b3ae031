#!/usr/bin/env bash
# llguidance 1.9.1: a matcher that was given a token which its grammar does not allow looks like one whose text is
# complete: is_stopped() is true, and the mask allows the end token alone. A loop that ends on is_stopped(), or on the end
# token that the mask forces, takes half a JSON text for a whole one. Only is_error() and is_accepting() tell.
# Seen: after '{"a":' and the bad token: stopped True, mask [256] (the end token), error True, accepting False.
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
schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def state(text):
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(schema))
    for byte in text:
        matcher.consume_token(byte)
    mask = matcher.compute_bitmask()
    allowed = [token for token in range(257) if mask[token // 8] >> (token % 8) & 1]
    return matcher.is_stopped(), allowed, matcher.is_error(), matcher.is_accepting()


complete, failed = state(b'{"a":1}'), state(b'{"a":x')
print("complete:", complete, "failed:", failed)
assert complete[:2] == failed[:2] == (True, [256]), "a failed matcher can be told from a complete one by these now"
assert complete[2:] == (False, True)
assert failed[2:] == (True, False)
PY
