"""A small random model with a tokenizer of its own: tests of the pages need no real one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pomona.models.presets import PRESETS
from pomona.models.random_init import random_model

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TINY = replace(
    PRESETS["afm-nano"],
    vocab_size=288,
    hidden_size=128,
    intermediate_size=320,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=4096,
    eos_token_ids=(256,),
    pad_token_id=None,
)


def tiny_model(folder: Path) -> Path:
    """A random model whose tokens are bytes: it answers nonsense, at once."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    source, target = folder / "tokenizer", folder / "tiny"
    source.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    backend.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    (source / "chat_template.jinja").write_text(TEMPLATE)
    return random_model(TINY, target, seed=5, perturb_norms=True, tokenizer_from=source)
