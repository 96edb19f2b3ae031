#!/bin/bash
# transformers 5.24.0 and 4.57.6, Cache.crop(): it crops layer by layer, so where one refuses, those before it are cropped
# already, and layers hold different numbers of tokens. A sliding layer refuses once its window is full, so this meets a
# model with both kinds of layers whose first one sees everything. And a positive argument, in 4.57.6 how many tokens to
# keep, is an error in 5.24.0.
#
# Seen, with ten tokens, as (error, tokens that each layer says it has):
#   5.24.0   crop(4) of one layer ('ValueError', [10])   crop(-2) of two ('RuntimeError', [8, 10])
#   4.57.6   crop(4) of one layer (None, [4])            crop(-2) of two ('ValueError', [8, 10])
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install -q torch==2.13.0 numpy
for version in 5.24.0 4.57.6; do
    "$folder/bin/pip" install -q "transformers==$version"
    "$folder/bin/python" -W ignore - <<'PYTHON'
import torch
import transformers
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

old = transformers.__version__.startswith("4.")


def filled(*layers):
    cache = DynamicCache()
    cache.layers, cache.layer_class_to_replicate = list(layers), None
    for i in range(len(layers)):
        cache.update(torch.zeros(1, 1, 10, 4), torch.zeros(1, 1, 10, 4), i)
    return cache


def attempt(cache, n):
    try:
        cache.crop(n)
        error = None
    except (RuntimeError, ValueError) as raised:
        error = type(raised).__name__
    return error, [layer.get_seq_length() for layer in cache.layers]


print(transformers.__version__, end=": ")
found = attempt(filled(DynamicLayer()), 4), attempt(filled(DynamicLayer(), DynamicSlidingWindowLayer(8)), -2)
print(*found)
assert found[0] == ((None, [4]) if old else ("ValueError", [10])), "the behaviour has changed"
assert found[1] == ("ValueError" if old else "RuntimeError", [8, 10]), "the behaviour has changed"
PYTHON
done
