"""The architecture families of docs/families.md: a tiny config of each, its tokenizer's habits, its chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests import chat_templates as chats

SHAPE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
PLAIN = dict(**SHAPE, num_key_value_heads=2, max_position_embeddings=256)
WIDE = dict(**PLAIN, head_dim=16)  # heads wider than hidden_size / num_attention_heads
WINDOW = dict(**PLAIN, head_dim=8, sliding_window=8)
VISION = dict(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """What tells one family from another: config, tokenizer, chat template, special tokens."""

    config: str
    fields: dict[str, Any]
    layers: str = "model.layers"
    norm: str = "model.norm"  # behind the last layer
    chat: str | None = None
    pieces: bool = False  # SentencePiece-like tokenizer; else byte-level BPE
    bos: str | None = None
    eos: str = "<|endoftext|>"
    stop: str | None = None  # ends a turn; generation_config alone knows it
    pad: str | None = None
    add_bos: bool = False  # the tokenizer by itself puts BOS first
    special: tuple[str, ...] = ()
    seed: int = 3  # one whose weights write three texts that differ
    # How far one value may be off by rounding, as a share of the largest; 99 % of them are within 2e-5 in any case. A
    # router behind a recurrence in float32 blows rounding up at single tokens: 1e-5 to 8e-5, by processor and seed.
    rounding: float = 2e-5


_CHATML = dict(eos="<|im_end|>", stop="<|endoftext|>", pad="<|endoftext|>", special=("<|im_start|>",))
_INST = dict(pieces=True, bos="<s>", eos="</s>", add_bos=True, special=("[INST]", "[/INST]"))
_GEMMA = dict(pieces=True, bos="<bos>", eos="<eos>", pad="<pad>", add_bos=True)
_TURNS = dict(**_GEMMA, stop="<end_of_turn>", special=("<start_of_turn>",))
_TURNS4 = dict(chat=chats.GEMMA4, **_GEMMA, stop="<turn|>", special=("<|turn>",))
_GEMMA4 = {
    **WINDOW, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
    "global_head_dim": 16, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
}  # fmt: skip
_GPT = dict(bos="<|endoftext|>", eos="<|endoftext|>")
KNOWN = {  # every check runs in the quick suite
    "Llama 3": Family(
        "LlamaConfig", PLAIN, chat=chats.LLAMA3, bos="<|begin_of_text|>", eos="<|end_of_text|>", stop="<|eot_id|>",
        add_bos=True, special=("<|start_header_id|>", "<|end_header_id|>"),
    ),
    "Mistral": Family("MistralConfig", WINDOW, chat=chats.MISTRAL, **_INST),
    "Mixtral": Family("MixtralConfig", {**PLAIN, "num_local_experts": 4}, chat=chats.MIXTRAL, **_INST),
    "Qwen 2.5": Family("Qwen2Config", PLAIN, chat=chats.QWEN25, **_CHATML),
    "Qwen 3": Family("Qwen3Config", WIDE, chat=chats.QWEN3, **_CHATML),
    "Qwen 3 MoE": Family(
        "Qwen3MoeConfig", {**WIDE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        chat=chats.QWEN3, **_CHATML,
    ),
    "Gemma 2": Family("Gemma2Config", WINDOW, chat=chats.GEMMA2, **_TURNS),
    "Gemma 3": Family("Gemma3TextConfig", {**WINDOW, "sliding_window_pattern": 2}, chat=chats.GEMMA3, **_TURNS),
    "Gemma 3, images": Family(
        "Gemma3Config", {"text_config": WINDOW, "vision_config": VISION, "mm_tokens_per_image": 4}, chat=chats.GEMMA3,
        layers="model.language_model.layers", norm="model.language_model.norm", **_TURNS,
    ),
    "Gemma 4": Family(
        "Gemma4TextConfig",
        {**_GEMMA4, "num_kv_shared_layers": 1, "hidden_size_per_layer_input": 8, "use_double_wide_mlp": True},
        **_TURNS4,
    ),
    "Phi 2": Family("PhiConfig", {**SHAPE, "partial_rotary_factor": 0.5}, norm="model.final_layernorm", **_GPT),
    "Phi 3": Family(
        "Phi3Config", PLAIN, chat=chats.PHI3, pieces=True, bos="<s>", stop="<|end|>", pad="<|endoftext|>",
        special=("<|system|>", "<|user|>", "<|assistant|>"),
    ),
    "GPT-2": Family(
        "GPT2Config", dict(n_embd=32, n_layer=3, n_head=4, n_positions=256), layers="transformer.h",
        norm="transformer.ln_f", **_GPT,
    ),
    "GPT-NeoX": Family(
        "GPTNeoXConfig", SHAPE, layers="gpt_neox.layers", norm="gpt_neox.final_layer_norm", **_GPT
    ),
    "OLMo 2": Family("Olmo2Config", PLAIN, chat=chats.OLMO2, pad="<|pad|>", **_GPT),
    "Falcon": Family(
        "FalconConfig", {k: v for k, v in SHAPE.items() if k != "intermediate_size"}, layers="transformer.h",
        norm="transformer.ln_f",
    ),
    "Granite": Family(
        "GraniteConfig",
        {
            **PLAIN, "tie_word_embeddings": True, "embedding_multiplier": 12.0, "residual_multiplier": 0.22,
            "attention_multiplier": 1.0, "logits_scaling": 8.0,
        },
        chat=chats.GRANITE, bos="<|end_of_text|>", eos="<|end_of_text|>", pad="<|end_of_text|>",
        special=("<|start_of_role|>", "<|end_of_role|>"),
    ),
    "gpt-oss": Family(
        "GptOssConfig", {**WINDOW, "max_position_embeddings": 131072, "num_local_experts": 4, "num_experts_per_tok": 2},
        chat=chats.HARMONY, bos="<|startoftext|>", eos="<|return|>", stop="<|end|>", pad="<|endoftext|>",
        special=("<|start|>", "<|message|>"),
    ),
}  # fmt: skip

_GPT_SIZE = dict(n_embd=32, n_layer=3, n_head=4, n_positions=256)
_NARROW = dict(
    **SHAPE, max_position_embeddings=256, kv_lora_rank=16, q_lora_rank=24, qk_rope_head_dim=4, qk_nope_head_dim=8,
    v_head_dim=8,
)  # fmt: skip
_LATENT = dict(
    **_NARROW, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, moe_intermediate_size=24,
    first_k_dense_replace=1, n_group=1, topk_group=1,
)  # fmt: skip
_DELTA = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, max_position_embeddings=256, layer_types=["linear_attention", "full_attention"] * 2,
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
)  # fmt: skip
_WINDOWS = {**WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_SHARED = {**_EXPERTS, "shared_expert_intermediate_size": 24}
_CONV = {**PLAIN, "num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2}
_MAMBA = dict(num_hidden_layers=4, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1, mamba_expand=2)
_TRANSFORMER = dict(layers="transformer.h", norm="transformer.ln_f")
_CODES = dict(**_TRANSFORMER, **_GPT)
_COMMAND = dict(
    chat=chats.COHERE, bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>", pad="<PAD>", add_bos=True,
    special=("<|START_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
)  # fmt: skip
_SENTENCE = dict(bos="<｜begin▁of▁sentence｜>", eos="<｜end▁of▁sentence｜>", add_bos=True)
_TURN_OF_ERNIE = dict(
    chat=chats.ERNIE, pieces=True, bos="<s>", eos="</s>", stop="<|end_of_sentence|>", special=("<|begin_of_sentence|>",)
)
_GMASK = dict(
    chat=chats.GLM, stop="<|user|>", pad="<|endoftext|>", special=("[gMASK]", "<sop>", "<|system|>", "<|assistant|>")
)
MORE = {  # two checks run in the quick suite, the others are slow
    "SmolLM3": Family("SmolLM3Config", {**PLAIN, "no_rope_layers": [1, 0, 1]}, chat=chats.SMOLLM3, **_CHATML),
    "OLMo 1": Family("OlmoConfig", {**PLAIN, "clip_qkv": 1.0}, chat=chats.OLMO2, pad="<|pad|>", **_GPT),
    "OLMo 3": Family("Olmo3Config", _WINDOWS, chat=chats.CHATML, **_CHATML),
    "OLMoE": Family("OlmoeConfig", {**PLAIN, **_EXPERTS}, chat=chats.OLMO2, pad="<|pad|>", **_GPT),
    "GLM": Family("GlmConfig", {**PLAIN, "head_dim": 8}, **_GMASK),
    "GLM 4": Family("Glm4Config", {**PLAIN, "head_dim": 8}, **_GMASK),
    "Cohere": Family("CohereConfig", {**PLAIN, "use_qk_norm": True}, **_COMMAND),
    "Cohere 2": Family("Cohere2Config", _WINDOWS, **_COMMAND),
    "DeepSeek V2": Family("DeepseekV2Config", _LATENT, chat=chats.DEEPSEEK2, **_SENTENCE),
    "DeepSeek V3": Family(
        "DeepseekV3Config", _LATENT, chat=chats.DEEPSEEK3, special=("<｜User｜>", "<｜Assistant｜>"), **_SENTENCE
    ),
    "StarCoder 2": Family("Starcoder2Config", {**PLAIN, "sliding_window": 8}, **_GPT),
    "BLOOM": Family(
        "BloomConfig", dict(hidden_size=32, n_layer=3, n_head=4), bos="<s>", eos="</s>", pad="<pad>", seed=7,
        **_TRANSFORMER,
    ),
    "OPT": Family(
        "OPTConfig",
        dict(
            hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=256,
        ),
        layers="model.decoder.layers", norm="model.decoder.final_layer_norm", bos="</s>", eos="</s>", pad="<pad>",
        add_bos=True,
    ),
    "MPT": Family(
        "MptConfig", dict(d_model=32, n_heads=4, n_layers=3, expansion_ratio=2, max_seq_len=256),
        layers="transformer.blocks", norm="transformer.norm_f",
    ),
    "GPT-J": Family("GPTJConfig", {**_GPT_SIZE, "rotary_dim": 4}, **_CODES),
    "GPT-Neo": Family(
        "GPTNeoConfig",
        dict(
            hidden_size=32, num_layers=3, num_heads=4, attention_types=[[["global", "local", "global"], 1]],
            window_size=8, max_position_embeddings=256,
        ),
        **_CODES,
    ),
    "GPTBigCode": Family("GPTBigCodeConfig", _GPT_SIZE, **_CODES),
    "Nemotron": Family(
        "NemotronConfig", PLAIN, chat=chats.NEMOTRON, bos="<s>", eos="</s>", special=("<extra_id_0>", "<extra_id_1>")
    ),
    "Apertus": Family(
        "ApertusConfig", {
            **PLAIN,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 12e6, "factor": 8.0, "original_max_position_embeddings": 64,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            },
        },
        chat=chats.APERTUS, bos="<s>", eos="<|assistant_end|>", stop="</s>", pad="<pad>", add_bos=True,
        special=(
            "<|system_start|>", "<|system_end|>", "<|developer_start|>", "<|developer_end|>", "<|user_start|>",
            "<|user_end|>", "<|assistant_start|>",
        ),
    ),
    "HunYuan": Family(
        "HunYuanDenseV1Config", WIDE, chat=chats.HUNYUAN, bos="<｜hy_begin▁of▁sentence｜>",
        eos="<｜hy_place▁holder▁no▁2｜>", pad="<｜hy_▁pad▁｜>",
        special=("<｜hy_User｜>", "<｜hy_Assistant｜>", "<｜hy_place▁holder▁no▁3｜>"),
    ),
    "EXAONE 4": Family(
        "Exaone4Config", _WINDOWS, chat=chats.EXAONE4, bos="[BOS]", eos="[|endofturn|]", pad="[PAD]",
        special=("[|system|]", "[|user|]", "[|assistant|]"),
    ),
    "Ministral 3": Family(
        "Ministral3Config",
        {
            **WIDE,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16,
                "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        },
        chat=chats.MINISTRAL3, bos="<s>", eos="</s>", pad="<pad>", add_bos=True,
        special=("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    ),
    "Falcon-H1": Family(
        "FalconH1Config",
        {
            **PLAIN, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8,
            "attention_out_multiplier": 0.9375, "ssm_out_multiplier": 0.25,
        },
        norm="model.final_layernorm", chat=chats.CHATML, **_CHATML,
    ),
    "StableLM": Family("StableLmConfig", PLAIN, chat=chats.STABLELM, **_GPT),
    "Seed-OSS": Family(
        "SeedOssConfig", WIDE, chat=chats.SEED, bos="<seed:bos>", eos="<seed:eos>", pad="<seed:pad>", seed=4
    ),
    "ERNIE 4.5": Family("Ernie4_5Config", WIDE, **_TURN_OF_ERNIE),
    "Arcee": Family("ArceeConfig", PLAIN, chat=chats.CHATML, bos="<|begin_of_text|>", **_CHATML),
    "Qwen 2 MoE": Family("Qwen2MoeConfig", {**PLAIN, **_SHARED}, chat=chats.QWEN25, **_CHATML),
    "Granite MoE": Family(
        "GraniteMoeConfig",
        {
            **PLAIN, "num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": True,
            "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 1.0,
            "logits_scaling": 6.0,
        },
        chat=chats.GRANITE, bos="<|end_of_text|>", eos="<|end_of_text|>", pad="<|end_of_text|>",
        special=("<|start_of_role|>", "<|end_of_role|>"),
    ),
    "Llama 4": Family(
        "Llama4TextConfig",
        {
            **PLAIN, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 4, "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2, "attention_chunk_size": 8, "no_rope_layers": [1, 0, 1],
        },
        chat=chats.LLAMA4, bos="<|begin_of_text|>", eos="<|end_of_text|>", stop="<|eot|>", pad="<|finetune_right_pad|>",
        add_bos=True, special=("<|header_start|>", "<|header_end|>"),
    ),
    "Qwen3-Next": Family("Qwen3NextConfig", {**_DELTA, **_SHARED}, chat=chats.CHATML, **_CHATML),
    "Qwen 3.5": Family("Qwen3_5TextConfig", _DELTA, chat=chats.QWEN3, **_CHATML),
    "LFM2": Family(
        "Lfm2Config",
        {**_CONV, "block_multiple_of": 16},
        norm="model.embedding_norm", chat=chats.CHATML, bos="<|startoftext|>", **_CHATML,
    ),
    "Gemma 4, large": Family(
        "Gemma4TextConfig",
        {
            **_GEMMA4, "num_global_key_value_heads": 1, "attention_k_eq_v": True, "enable_moe_block": True,
            "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24,
        },
        **_TURNS4, seed=5,
    ),
    "Gemma 4, images": Family(
        "Gemma4Config",
        {
            "text_config": _GEMMA4,
            "vision_config": {**VISION, "num_key_value_heads": 2, "head_dim": 8},
            "audio_config": None,
        },
        layers="model.language_model.layers", norm="model.language_model.norm", **_TURNS4,
    ),
    "Gemma 1": Family("GemmaConfig", WIDE, chat=chats.GEMMA2, **_TURNS),
    "VaultGemma": Family("VaultGemmaConfig", _WINDOWS, seed=4, **_GEMMA),
    "CodeGen": Family("CodeGenConfig", {**_GPT_SIZE, "rotary_dim": 4}, **_CODES),
    "XGLM": Family(
        "XGLMConfig", dict(d_model=32, ffn_dim=48, num_layers=3, attention_heads=4, max_position_embeddings=256),
        norm="model.layer_norm", seed=6,
    ),
    "NanoChat": Family("NanoChatConfig", PLAIN, bos="<|bos|>"),
    "Jais 2": Family("Jais2Config", PLAIN),
    "BitNet": Family("BitNetConfig", PLAIN),
    "Youtu": Family("YoutuConfig", _NARROW),
    "GLM 4 MoE": Family(
        "Glm4MoeConfig",
        {
            **PLAIN, "head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
            "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
        },
        **_GMASK,
    ),
    "GLM 4 MoE Lite": Family("Glm4MoeLiteConfig", _LATENT, **_GMASK),
    "ERNIE 4.5 MoE": Family(
        "Ernie4_5_MoeConfig",
        {
            **PLAIN, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1,
        },
        **_TURN_OF_ERNIE,
    ),
    "FlexOlmo": Family("FlexOlmoConfig", {**PLAIN, **_EXPERTS}),
    "AfMoE": Family("AfmoeConfig", {**_WINDOWS, **_EXPERTS, "num_dense_layers": 1, "num_shared_experts": 1}),
    "MiniMax M2": Family(
        "MiniMaxM2Config",
        {**PLAIN, "head_dim": 8, "rotary_dim": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "Laguna": Family("LagunaConfig", {**PLAIN, **_SHARED}),
    "LFM2 MoE": Family(
        "Lfm2MoeConfig", {**_CONV, **_EXPERTS, "num_dense_layers": 1},
        norm="model.embedding_norm", chat=chats.CHATML, bos="<|startoftext|>", **_CHATML,
    ),
    "Qwen 3.5 MoE": Family(
        "Qwen3_5MoeTextConfig", {**_DELTA, **_SHARED}, chat=chats.QWEN3, rounding=2e-4, **_CHATML,
    ),
    "OLMo hybrid": Family("OlmoHybridConfig", {k: v for k, v in _DELTA.items() if k != "head_dim"}, **_GPT),
    "Bamba": Family(
        "BambaConfig", {**PLAIN, **_MAMBA, "attn_layer_indices": [1, 3]}, norm="model.final_layernorm",
    ),
    "Jamba": Family(
        "JambaConfig",
        {
            **PLAIN, "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
            "expert_layer_offset": 1, "num_experts": 4, "mamba_d_state": 8, "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
        norm="model.final_layernorm",
    ),
    "Nemotron-H": Family(
        "NemotronHConfig",
        {
            **PLAIN, "num_hidden_layers": 4, "layers_block_type": ["mamba", "attention", "mlp", "attention"],
            "head_dim": 8, "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1,
            "use_mamba_kernels": False,
        },
        norm="model.norm_f",
    ),
    "Zamba 2": Family(
        "Zamba2Config",
        {
            **PLAIN, "num_hidden_layers": 4, "mamba_d_state": 8, "n_mamba_heads": 8, "mamba_ngroups": 1,
            "hybrid_layer_ids": [1, 3], "layers_block_type": ["mamba", "hybrid"] * 2, "use_mamba_kernels": False,
        },
        norm="model.final_layernorm", seed=6,
    ),
    "Phi-MoE": Family(
        "PhimoeConfig", {**PLAIN, "num_local_experts": 4, "num_experts_per_tok": 2}, chat=chats.PHI3, pieces=True,
        bos="<s>", stop="<|end|>", pad="<|endoftext|>", special=("<|system|>", "<|user|>", "<|assistant|>"), seed=5,
    ),
    "Granite 4 H": Family(
        "GraniteMoeHybridConfig",
        {
            **PLAIN, **_MAMBA, "layer_types": ["mamba", "attention"] * 2, "num_local_experts": 4,
            "num_experts_per_tok": 2, "shared_intermediate_size": 24, "residual_multiplier": 0.22,
            "attention_multiplier": 1.0, "embedding_multiplier": 12.0, "logits_scaling": 8.0,
            "tie_word_embeddings": True,
        },
        chat=chats.GRANITE, bos="<|end_of_text|>", eos="<|end_of_text|>", pad="<|end_of_text|>",
        special=("<|start_of_role|>", "<|end_of_role|>"),
    ),
}  # fmt: skip
FAMILIES = {**KNOWN, **MORE}
