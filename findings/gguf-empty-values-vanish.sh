#!/usr/bin/env bash
# gguf 0.17.1 (Python): GGUFWriter leaves out a key whose value is an empty string or an empty list, without a word; 0 and
# False are kept. So "there, but empty" (no suppressed tokens, a chat template that adds nothing) cannot be written with
# it, and a reader that requires such a key fails on a file whose writer did set it.
# Seen: keys read back are ['general.architecture', 'x.zero', 'x.no'].
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check gguf==0.17.1 numpy==2.2.6
venv/bin/python - <<'PY'
from gguf import GGUFReader, GGUFWriter

writer = GGUFWriter("x.gguf", "llama")
writer.add_string("x.text", "")
writer.add_array("x.list", [])
writer.add_uint32("x.zero", 0)
writer.add_bool("x.no", False)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
keys = [key for key in GGUFReader("x.gguf").fields if not key.startswith("GGUF.")]
print("keys read back:", keys)
assert keys == ["general.architecture", "x.zero", "x.no"], "empty values are written now"
PY
