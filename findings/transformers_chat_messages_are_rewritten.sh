#!/bin/bash
# transformers 5.24.0: apply_chat_template() does not hand messages to the template as they are given. Keys whose value
# is None are gone, so a template's `message.content is none` is never true and `"content" in message` is false; and a
# message with any one of reasoning_content, thinking and reasoning has the first two in the template, whatever was given.
# Both are done to the message itself, not to what is inside it: None in a tool call's arguments stays. In 4.57.6 a
# template sees what was passed.
#
# Seen:  5.24.0  {'role': 'assistant', 'tool_calls': [{'arguments': {'unit': None}}]}   content is none: False
#                {'thinking': 'why', 'role': 'assistant', 'content': 'a', 'reasoning': 'why', 'reasoning_content': 'why'}
#        4.57.6  {'role': 'assistant', 'content': None, 'tool_calls': [{'arguments': {'unit': None}}]}   ... True
#                {'role': 'assistant', 'content': 'a', 'reasoning': 'why'}
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 5.24.0 4.57.6; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install -q "transformers==$version" jinja2==3.1.6
    "$folder/$version/bin/python" -W ignore - <<'PYTHON'
import logging

logging.disable(logging.CRITICAL)  # that there is no torch
import transformers
from tokenizers import Tokenizer, models

tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
show = "{{ messages[0] }}   content is none: {{ messages[0].content is none }}"
call = {"role": "assistant", "content": None, "tool_calls": [{"arguments": {"unit": None}}]}
thought = {"role": "assistant", "content": "a", "reasoning": "why"}
texts = [tokenizer.apply_chat_template([m], chat_template=show, tokenize=False) for m in (call, thought)]
print(transformers.__version__, *texts, sep="\n    ")
rewrites = transformers.__version__ == "5.24.0"
assert ("content is none: False" in texts[0]) == rewrites, "the behaviour has changed"
assert ("'content': None" in texts[0]) != rewrites, "the behaviour has changed"
assert "'unit': None" in texts[0], "the behaviour has changed"
assert ("'reasoning_content': 'why'" in texts[1] and "'thinking': 'why'" in texts[1]) == rewrites
PYTHON
done
