#!/bin/bash
# tokenizers 0.23.3: DecodeStream, which hands out text token by token, never hands out a U+FFFD that a text really ends
# with. It takes any text that ends with U+FFFD for a character whose bytes have not all come. decode() of the same ids
# gives the whole text; there is no call that flushes the stream. In the middle of a text it comes, a step late; a text of
# nothing but U+FFFD gives nothing at all.
#
# Seen:  'ok\ufffd'   decode 'ok\ufffd'   stream 'ok'
#        'ok\ufffd.'  decode 'ok\ufffd.'  stream 'ok\ufffd.'
#        '\ufffd\ufffd'  decode '\ufffd\ufffd'  stream ''
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.decoders import DecodeStream

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
seen = {}
for text in ("ok\ufffd", "ok\ufffd.", "\ufffd\ufffd"):
    ids, stream = tokenizer.encode(text).ids, DecodeStream(skip_special_tokens=False)
    streamed = "".join(filter(None, (stream.step(tokenizer, i) for i in ids)))
    print(f"{text!a:16} decode {tokenizer.decode(ids)!a:16} stream {streamed!a}")
    assert tokenizer.decode(ids) == text
    seen[text] = streamed
assert seen == {"ok\ufffd": "ok", "ok\ufffd.": "ok\ufffd.", "\ufffd\ufffd": ""}, "the behaviour has changed"
PYTHON
