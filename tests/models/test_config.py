"""ModelConfig: which config.json files are understood, what they mean, which are refused and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig, RopeScaling

# As the model's own page has them; written by transformers 4.
SMOLLM2_135M: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}
LLAMA_3_2_1B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
QWEN2_5_0_5B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_0_6B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
REAL = {"SmolLM2": SMOLLM2_135M, "Llama-3.2": LLAMA_3_2_1B, "Qwen2.5": QWEN2_5_0_5B, "Qwen3": QWEN3_0_6B}

# What transformers 4's to_dict() adds to each of them.
TRANSFORMERS_4_EXTRAS: dict[str, Any] = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "decoder_start_token_id": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "finetuning_task": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict": True,
    "return_dict_in_generate": False,
    "sep_token_id": None,
    "suppress_tokens": None,
    "task_specific_params": None,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tokenizer_class": None,
    "top_k": 50,
    "top_p": 1.0,
    "torchscript": False,
    "typical_p": 1.0,
    "use_bfloat16": False,
}


def read(data: dict[str, Any], **changes: Any) -> ModelConfig:
    return ModelConfig.from_hf({**data, **changes}, "config.json")


def refusal(data: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(PomonaError) as caught:
        read(data, **changes)
    message = str(caught.value)
    assert message.startswith("config.json: ")
    assert "\n" not in message
    return message


def test_smollm2_is_read() -> None:
    config = read(SMOLLM2_135M)
    assert config == ModelConfig(
        model_type="llama",
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        rope_theta=100_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_ids=(2,),
        pad_token_id=2,
    )
    assert (config.qk_norm, config.qkv_bias, config.architecture) == (False, False, "LlamaForCausalLM")
    assert config.non_embedding_parameters + config.embedding_parameters == 134_515_008


def test_llama_3_2_is_read() -> None:
    config = read(LLAMA_3_2_1B)
    assert config.rope_scaling == RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
    assert config.eos_token_ids == (128001, 128008, 128009)
    assert config.non_embedding_parameters + config.embedding_parameters == 1_235_814_400


def test_qwen2_5_has_biases_and_a_window_that_is_off() -> None:
    config = read(QWEN2_5_0_5B)
    assert (config.qkv_bias, config.qk_norm, config.head_dim) == (True, False, 64)
    assert config.tensor_shapes()["model.layers.23.self_attn.k_proj.bias"] == (128,)
    assert config.non_embedding_parameters + config.embedding_parameters == 494_032_768


def test_qwen3_normalises_heads() -> None:
    config = read(QWEN3_0_6B)
    assert (config.qkv_bias, config.qk_norm) == (False, True)
    assert config.tensor_shapes()["model.layers.0.self_attn.q_norm.weight"] == (128,)
    assert config.linear_shapes()["model.layers.0.self_attn.q_proj"] == (2048, 1024)
    assert config.non_embedding_parameters + config.embedding_parameters == 596_049_920


def test_linear_shapes_are_the_matrices_of_each_layer_in_order() -> None:
    config = read(SMOLLM2_135M)
    linear = config.linear_shapes()
    assert len(linear) == 30 * 7
    assert list(linear)[:8] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.k_proj",
        "model.layers.0.self_attn.v_proj",
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.0.mlp.down_proj",
        "model.layers.1.self_attn.q_proj",
    ]
    shapes = config.tensor_shapes()
    assert {name: shapes[f"{name}.weight"] for name in linear} == linear


def test_an_output_matrix_of_its_own_is_the_last_tensor_and_counts_as_embedding() -> None:
    tied, untied = read(SMOLLM2_135M), read(SMOLLM2_135M, tie_word_embeddings=False)
    assert "lm_head.weight" not in tied.tensor_shapes()
    assert list(untied.tensor_shapes())[-1] == "lm_head.weight"
    assert untied.embedding_parameters == 2 * tied.embedding_parameters
    assert untied.non_embedding_parameters == tied.non_embedding_parameters


@pytest.mark.parametrize("name", REAL)
def test_the_complete_dict_of_transformers_4_means_the_same(name: str) -> None:
    assert read(TRANSFORMERS_4_EXTRAS | REAL[name]) == read(REAL[name])


@pytest.mark.parametrize("name", REAL)
def test_transformers_5_spelling_of_rope_means_the_same(name: str) -> None:
    new = dict(REAL[name])
    parameters = new.pop("rope_scaling", None) or {"rope_type": "default"}
    new["rope_parameters"] = {**parameters, "rope_theta": new.pop("rope_theta")}
    assert read(new) == read(REAL[name])
    # Both spellings in one file, as converters leave them, are fine as long as they agree.
    both = {**REAL[name], "rope_parameters": new["rope_parameters"]}
    assert read(both) == read(REAL[name])
    assert "contradict each other" in refusal(both, rope_theta=12345.0)


@pytest.mark.parametrize("name", REAL)
def test_written_and_read_again_is_the_same(name: str) -> None:
    config = read(REAL[name])
    written = json.loads(json.dumps(config.to_hf()))
    assert ModelConfig.from_hf(written, "again") == config


@pytest.mark.parametrize("name", REAL)
def test_transformers_understands_what_we_read_and_write(name: str, tmp_path: Path) -> None:
    """Our reading of a file equals our reading of what transformers made of it; and it loads what we write.

    transformers is the `train` extra; the project's own test run always installs it.
    """
    transformers = pytest.importorskip("transformers")
    config = read(REAL[name])
    (tmp_path / "config.json").write_text(json.dumps(REAL[name]))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert ModelConfig.from_hf(theirs.to_dict(), "theirs") == config
    theirs.save_pretrained(tmp_path / "saved")
    assert ModelConfig.from_directory(tmp_path / "saved") == config

    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is type(theirs)
    assert ModelConfig.from_hf(loaded.to_dict(), "loaded") == config
    assert str(loaded.dtype).endswith("bfloat16")
    ignored = {"architectures", "transformers_version", "_name_or_path", "initializer_range", "dtype"}
    changed = {
        key
        for key in theirs.to_dict()
        if key not in ignored and loaded.to_dict().get(key) != theirs.to_dict()[key]
    }
    # Leftovers that no model class reads, and where an inactive window would start.
    assert changed <= {"is_llama_config", "rope_interleaved", "transformers.js_config", "max_window_layers"}


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_a_fresh_config_of_transformers_is_read(family: str) -> None:
    """transformers is the `train` extra; the project's own test run always installs it."""
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, f"{family}Config")()
    config = ModelConfig.from_hf(theirs.to_dict(), "fresh")
    assert (config.model_type, config.hidden_size) == (family.lower(), 4096)
    assert config.intermediate_size == theirs.intermediate_size
    assert config.head_dim == 128


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_tensor_names_and_shapes_are_those_of_transformers(family: str) -> None:
    """transformers is the `train` extra; the project's own test run always installs it."""
    transformers = pytest.importorskip("transformers")
    small = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 64,
    }
    for tied in (True, False):
        data = {"model_type": family.lower(), **small, "tie_word_embeddings": tied, "bos_token_id": None}
        config = ModelConfig.from_hf({**data, "eos_token_id": None}, "small")
        theirs = transformers.AutoConfig.for_model(**config.to_hf())
        model = transformers.AutoModelForCausalLM.from_config(theirs)
        assert type(model).__name__ == config.architecture
        shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
        assert shapes == config.tensor_shapes()
        assert sum(p.numel() for p in model.parameters()) == (
            config.embedding_parameters + config.non_embedding_parameters
        )


def test_missing_keys_take_transformers_values() -> None:
    bare = {
        key: SMOLLM2_135M[key]
        for key in (
            "model_type",
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
        )
    }
    config = read(bare)
    assert (config.num_key_value_heads, config.head_dim) == (9, 64)
    assert (config.rope_theta, config.rms_norm_eps, config.tie_word_embeddings) == (10_000.0, 1e-6, False)
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (1, (2,), None)
    assert read(bare, eos_token_id=None).eos_token_ids == ()


@pytest.mark.parametrize(
    "key", ["vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings", "head_dim"]
)
def test_a_missing_size_is_refused(key: str) -> None:
    data = {k: v for k, v in QWEN3_0_6B.items() if k != key}
    assert f"has no {key}" in refusal(data)


@pytest.mark.parametrize(
    ("base", "changes", "words"),
    [
        ("SmolLM2", {"mlp_bias": True}, "mlp_bias = True is not supported"),
        ("SmolLM2", {"attention_bias": True}, "attention_bias = True is not supported"),
        ("Qwen3", {"attention_bias": True}, "attention_bias = True is not supported"),
        ("SmolLM2", {"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported"),
        ("SmolLM2", {"rope_interleaved": True}, "rope_interleaved"),
        ("SmolLM2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("SmolLM2", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("SmolLM2", {"is_encoder_decoder": True}, "is_encoder_decoder"),
        ("SmolLM2", {"add_cross_attention": True}, "add_cross_attention"),
        ("SmolLM2", {"model_type": "mistral"}, "model_type 'mistral' is not supported"),
        ("SmolLM2", {"model_type": ["llama"]}, "is not supported"),
        ("SmolLM2", {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ("SmolLM2", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        ("SmolLM2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
        ("SmolLM2", {"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "unknown key 'factor'"),
        ("SmolLM2", {"rope_scaling": {"rope_type": "llama3"}}, "has no rope_scaling.factor"),
        ("SmolLM2", {"rope_scaling": {"rope_type": "llama3", "type": "yarn"}}, "rope_type 'llama3' and type"),
        ("SmolLM2", {"rope_scaling": "llama3"}, "must be an object"),
        ("SmolLM2", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("SmolLM2", {"sliding_window": 4096}, "sliding window of 4096"),
        ("Qwen2.5", {"use_sliding_window": True}, "sliding window of 32768"),
        ("Qwen2.5", {"layer_types": ["full_attention"] * 23 + ["sliding_attention"]}, "'sliding_attention'"),
        ("Qwen2.5", {"layer_types": ["full_attention"]}, "layer_types"),
        ("SmolLM2", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "'gptq'"),
        ("SmolLM2", {"quantization_config": 4}, "quantization method None"),
        ("SmolLM2", {"logits_soft_cap": 30.0}, "does not know the key 'logits_soft_cap'"),
        ("SmolLM2", {"vocab_size": 1 << 22}, "vocab_size"),
        ("SmolLM2", {"hidden_size": 0}, "hidden_size = 0"),
        ("SmolLM2", {"hidden_size": -576}, "hidden_size = -576"),
        ("SmolLM2", {"hidden_size": 576.0}, "hidden_size = 576.0"),
        ("SmolLM2", {"num_hidden_layers": True}, "num_hidden_layers = True"),
        ("SmolLM2", {"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ("SmolLM2", {"num_attention_heads": 0}, "num_attention_heads = 0"),
        ("SmolLM2", {"num_attention_heads": 7}, "not divisible by 7 heads"),
        ("SmolLM2", {"num_key_value_heads": 2}, "9 heads cannot share 2"),
        ("SmolLM2", {"head_dim": 63}, "head_dim = 63 must be even"),
        ("SmolLM2", {"rms_norm_eps": 0}, "rms_norm_eps"),
        ("SmolLM2", {"rms_norm_eps": "1e-5"}, "rms_norm_eps = '1e-5' must be a number"),
        ("SmolLM2", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ("SmolLM2", {"rope_theta": -1.0}, "rope_theta"),
        ("SmolLM2", {"rope_theta": 10**400}, "rope_theta"),
        ("SmolLM2", {"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes'"),
        ("SmolLM2", {"eos_token_id": 49152}, "eos_token_id = 49152 lies outside"),
        ("SmolLM2", {"eos_token_id": ["2"]}, "eos_token_id"),
        ("SmolLM2", {"bos_token_id": -1}, "bos_token_id = -1"),
        ("SmolLM2", {"bos_token_id": "<s>"}, "bos_token_id = '<s>'"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(base: str, changes: dict[str, Any], words: str) -> None:
    assert words in refusal(REAL[base], **changes)


def test_values_that_change_nothing_are_accepted() -> None:
    assert read(SMOLLM2_135M, hidden_act="swish", partial_rotary_factor=1.0) == read(SMOLLM2_135M)
    assert read(QWEN2_5_0_5B, use_sliding_window=True, max_window_layers=24) == read(QWEN2_5_0_5B)
    assert read(QWEN2_5_0_5B, layer_types=["full_attention"] * 24) == read(QWEN2_5_0_5B)
    assert read(QWEN2_5_0_5B, attention_bias=True) == read(QWEN2_5_0_5B)
    assert read(SMOLLM2_135M, rope_scaling={"type": "default"}) == read(SMOLLM2_135M)
    assert read(SMOLLM2_135M, quantization_config={"quant_method": "palettized"}) == read(SMOLLM2_135M)
    assert read(SMOLLM2_135M, pad_token_id=-1).pad_token_id is None  # how the first Llama says "none"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    base=st.sampled_from(sorted(REAL)),
    changes=st.dictionaries(
        st.sampled_from(sorted({key for data in REAL.values() for key in data} | {"rope_parameters"})),
        JSON_VALUES,
        min_size=1,
        max_size=3,
    ),
)
def test_any_value_at_any_key_gives_a_config_or_a_one_line_refusal(
    base: str, changes: dict[str, Any]
) -> None:
    try:
        config = read(REAL[base], **changes)
    except PomonaError as error:
        assert str(error).isprintable()
    else:
        assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf())), "again") == config


def test_a_config_made_in_python_is_checked_too() -> None:
    with pytest.raises(PomonaError, match="model config: vocab_size = 0"):
        ModelConfig("llama", 0, 64, 64, 1, 1, 1, 64, 64, 10_000.0, 1e-5, True)


def test_the_config_of_a_directory_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(PomonaError, match=r"config\.json: cannot be read"):
        ModelConfig.from_directory(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(PomonaError) as caught:
        ModelConfig.from_directory(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": 1, "a": 2}', '{"a": NaN}', "[" * 100_000, '"\\ud800"', "null", "\xff"]
)
def test_a_broken_json_file_is_one_line_that_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(PomonaError) as caught:
        ModelConfig.from_directory(tmp_path)
    assert "\n" not in str(caught.value)
    assert "JSON" in str(caught.value)


def test_messages_stay_one_printable_line_whatever_the_file_says() -> None:
    message = refusal(SMOLLM2_135M, **{"evil\n\x1b[2Jkey\ud800": 1})
    assert message.isprintable()
    message = refusal(SMOLLM2_135M, hidden_act="x" * 1_000_000)
    assert len(message) < 3000
    assert message.endswith("use another model")
