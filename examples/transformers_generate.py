"""Generates text in Hugging Face transformers with keys and values in 2-bit pages.

    pip install '.[transformers]'                                # in a clone of this repository
    python examples/transformers_generate.py                     # SmolLM2-135M from its GGUF file, fetched once
    python examples/transformers_generate.py MODEL --prompt "..." --preset logquant-small --tokens 200

MODEL: a folder or a name on the hub, as from_pretrained() takes it, or a GGUF file.
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

from pylogquant import hub
from pylogquant.transformers import LogQuantCache, LogQuantConfig


def load(name: str) -> tuple[Any, Any]:
    """Loads a model, with attention that reads packed pages, and its tokenizer."""
    options: dict[str, str] = {}
    if name.endswith(".gguf"):
        path = Path(name)
        name, options = str(path.parent), {"gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="logquant", **options)
    return model.eval(), AutoTokenizer.from_pretrained(name, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="default: SmolLM2-135M-Instruct")
    parser.add_argument("--prompt", default="Explain in a few sentences why the sky is blue.")
    parser.add_argument("--preset", default="logquant", help="logquant, logquant-small, logquant-hq, logquant-paper")
    parser.add_argument("--tokens", type=int, default=100)
    options = parser.parse_args()

    model, tokenizer = load(options.model or str(hub.pull("smollm2-135m")))
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": options.prompt}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        inputs = tokenizer(options.prompt, return_tensors="pt")

    cache = LogQuantCache(model.config, LogQuantConfig(options.preset))
    # transformers 4 calls the argument past_key_values; there write past_key_values=cache.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    model.generate(
        inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        **{name: cache},
        max_new_tokens=options.tokens,
        do_sample=False,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    )
    usage = cache.usage()
    print(
        f"\n{usage.n_tokens} tokens: {usage.n_sinks + usage.n_full} in full precision, {usage.n_packed} packed;"
        f" {usage.total_bytes / 2**20:.1f} MiB"
    )


if __name__ == "__main__":
    main()
