"""Where vectors live: the hook points of a site in TransformerLens, and the same points as plain modules.

>>> from emolab.models.sites import hf_modules, site_hooks
>>> site_hooks(model, "attn")[0]
'blocks.0.attn.hook_out'
>>> hf_modules(model, "attn")[0]
(LlamaAttention(...), 'output')
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from emolab.base.errors import EmolabError, first_line, need_model
from emolab.models.model import Model

SITES = ("resid", "attn", "mlp", "head")  # whose vectors are of d_model
ALL_SITES = (*SITES, "neuron")
# Share by which logits that should be the same may differ; in half precision, whose rounding adds up, 0.2.
_LOGIT_TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-6}
# The architectures of docs/families.md; with any other, padding is tried when it is loaded.
CHECKED = (
    "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration",
    "Gemma4ForCausalLM", "Gemma4ForConditionalGeneration", "PhiForCausalLM", "Phi3ForCausalLM", "GPT2LMHeadModel",
    "GPTNeoXForCausalLM", "Olmo2ForCausalLM", "FalconForCausalLM", "GraniteForCausalLM", "GptOssForCausalLM",
    "SmolLM3ForCausalLM", "OlmoForCausalLM", "Olmo3ForCausalLM", "OlmoeForCausalLM", "GlmForCausalLM",
    "Glm4ForCausalLM", "CohereForCausalLM", "Cohere2ForCausalLM", "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM",
    "Starcoder2ForCausalLM", "BloomForCausalLM", "OPTForCausalLM", "MptForCausalLM", "GPTJForCausalLM",
    "GPTNeoForCausalLM", "GPTBigCodeForCausalLM", "NemotronForCausalLM", "ApertusForCausalLM",
    "HunYuanDenseV1ForCausalLM", "Exaone4ForCausalLM", "Ministral3ForCausalLM", "FalconH1ForCausalLM",
    "StableLmForCausalLM", "SeedOssForCausalLM", "Ernie4_5ForCausalLM", "ArceeForCausalLM", "Qwen2MoeForCausalLM",
    "GraniteMoeForCausalLM", "Llama4ForCausalLM", "Qwen3NextForCausalLM", "Qwen3_5ForCausalLM", "Lfm2ForCausalLM",
    "GemmaForCausalLM", "VaultGemmaForCausalLM", "CodeGenForCausalLM", "XGLMForCausalLM", "NanoChatForCausalLM",
    "Jais2ForCausalLM", "BitNetForCausalLM", "YoutuForCausalLM", "Glm4MoeForCausalLM", "Glm4MoeLiteForCausalLM",
    "Ernie4_5_MoeForCausalLM", "FlexOlmoForCausalLM", "AfmoeForCausalLM", "MiniMaxM2ForCausalLM", "LagunaForCausalLM",
    "Lfm2MoeForCausalLM", "Qwen3_5MoeForCausalLM", "OlmoHybridForCausalLM", "BambaForCausalLM", "JambaForCausalLM",
    "NemotronHForCausalLM", "Zamba2ForCausalLM", "PhimoeForCausalLM", "GraniteMoeHybridForCausalLM",
)  # fmt: skip
_HOOKS = {"resid": "hook_out", "attn": "hook_attn_out", "mlp": "hook_mlp_out"}
_HOOKS |= {"head": "attn.o.hook_in", "neuron": "mlp.out.hook_in"}
# What single parts are of: their sublayer, and where an architecture has one, the norm behind it.
WHOLE = {"head": "attn", "neuron": "mlp"}
_NORMS = {"head": "ln1_post", "neuron": "ln2_post"}


def is_checked(hf: Any) -> bool:
    """Whether a model's architecture is among those of docs/families.md."""
    return any(kind.__name__ in CHECKED for kind in type(hf).__mro__)


def site_layers(model: Model, site: str) -> list[int]:
    """The layers that have a site: all of them, but for heads (and attention) of hybrid models, and neurons of experts.

    >>> site_layers(model, "head")
    [0, 1, 2, ..., 29]

    Raises EmolabError where no layer has it.
    """
    point = _point(site)
    layers = [layer for layer in range(model.n_layers) if f"blocks.{layer}.{point}" in model._hook_names]
    if not layers:
        raise EmolabError(f"no layer of {model.name!r} has a hook point for the site {site!r}; leave this site out")
    return layers


def site_hooks(model: Model, site: str, layers: Sequence[int] | None = None) -> list[str]:
    """Canonical TransformerLens hook name of a site, one per layer, of all layers or of these.

    attn and mlp are what a block adds to the residual stream: on models with a norm after attention that is
    `ln1_post.hook_out`.
    """
    point = _point(site)
    names = [f"blocks.{layer}.{point}" for layer in (range(model.n_layers) if layers is None else layers)]
    missing = [name for name in names if name not in model._hook_names]
    if missing:
        raise EmolabError(f"{model.name!r} has no hook point {missing[0]}; its architecture offers no site {site!r}")
    return [model._hook_names[name] for name in names]


def _point(site: str) -> str:
    if site not in _HOOKS:
        raise EmolabError(f"unknown site {site!r}; expected one of {', '.join(ALL_SITES)}")
    return _HOOKS[site]


def hf_modules(model: Model, site: str, layers: Sequence[int] | None = None) -> list[tuple[nn.Module, str]] | None:
    """The same points as plain modules of `model.hf`: (module, "output" or "input") per layer, of all or of these.

    None where there are none: the bridge is the user's own (then `hf` is its inside), or the block has no such module
    (Granite scales the attention output by itself). Callers then hook the bridge.
    """
    names = site_hooks(model, site, layers)
    if model.hf is model.bridge.original_model:
        return None
    modules = []
    for layer, name in zip(range(model.n_layers) if layers is None else layers, names, strict=True):
        *parts, point = name.split(".")[2:]
        component = model.bridge.blocks[layer]
        path = component.name
        for part in parts:
            component = getattr(component, part)
            # Without a name: no module of its own, such as the MLP of OPT, whose parts are the block's.
            path = f"{path}.{component.name}" if component.name else path
        try:
            modules.append((model.hf.get_submodule(path), {"hook_in": "input", "hook_out": "output"}[point]))
        except (AttributeError, KeyError):
            return None
    return modules


def bridge_has_hooks(model: Model) -> bool:
    """Whether the bridge carries hooks, of `emolab.steered` or the user's own: then it is what has to run."""
    return any(point.has_hooks() for point in model.bridge.hook_dict.values())


def check_bridge(model: Model) -> None:
    """Raise EmolabError where the bridge does not compute what the model itself does; looked at once for a model.

    TransformerLens rebuilds attention in its own code, which some variants of an architecture are not covered by:
    Falcon with ALiBi runs there without it, and nothing says so.
    """
    if model.hf is model.bridge.original_model or model._bridge_checked or bridge_has_hooks(model):
        return  # a bridge with hooks is meant to differ
    try:
        off, allowed = bridge_gap(model)
    except Exception as error:  # its own code for attention, blocks and rotation fails in its own ways
        dtype = str(model.dtype).removeprefix("torch.")
        what = f"{model.name!r} ({type(model.hf).__name__})"
        raise EmolabError(f"TransformerLens cannot run {what} in {dtype}: {first_line(error)}") from error
    if off >= allowed:  # NaN passes: what is not finite is told where it is measured
        raise EmolabError(
            f"TransformerLens computes {model.name!r} ({type(model.hf).__name__}) otherwise than transformers does "
            f"(logits off by {off:.1%}); its activations would be those of another model"
        )
    model._bridge_checked = True


def bridge_gap(model: Model) -> tuple[float, float]:
    """How far the logits of bridge and model differ on a sentence, as a share of their spread; and how far they may."""
    ids = model.tokenizer("The rain fell all day, and they stayed at home.", add_special_tokens=False).input_ids[:16]
    batch = torch.tensor([ids], device=model.device)
    with torch.inference_mode():
        ours, plain = model.bridge(batch)[0].float(), model.hf(batch).logits[0].float()
    return logit_gap(model, ours, plain)


def logit_gap(model: Model, logits: Tensor, expected: Tensor) -> tuple[float, float]:
    """How far logits are from those expected, as a share of the spread of these; and how far they may be."""
    off = (logits - expected).norm() / (expected - expected.mean()).norm()
    return off.item(), _LOGIT_TOLERANCE.get(model.dtype, 0.2)


def output_weights(model: Model) -> Float[Tensor, "layer head d_head d_model"]:
    """What maps each head's mean z to its contribution to the residual stream: W_O, float64, on the CPU.

    Where a norm follows attention (Gemma 2 to 4, OLMo 2, GLM 4), its gain is in here and its per-token scale in the
    stored z; Granite's residual multiplier is in here, too. So heads sum to `attn` minus its bias everywhere. Layers
    with narrower heads than others (Gemma 4), or without heads (hybrids), are filled up with zeros. Raises EmolabError
    for weights that cannot be read as a matrix (quantised ones).
    """
    need_model(model)
    weights = {layer: output_weight(model, layer, torch.float64) for layer in site_layers(model, "head")}
    width = max(W_O.shape[1] for W_O in weights.values())
    filled = torch.zeros(model.n_layers, model.n_heads, width, model.d_model, dtype=torch.float64, device="cpu")
    for layer, W_O in weights.items():
        filled[layer, :, : W_O.shape[1]] = W_O
    return filled


def output_weight(model: Model, layer: int, dtype: torch.dtype) -> Float[Tensor, "head d_head d_model"]:
    """`output_weights` of one layer, in its own width."""
    return _with_gain(model, "head", layer, head_weights(model, layer).to("cpu", dtype))


def neuron_weight(model: Model, layer: int, dtype: torch.dtype) -> Float[Tensor, "neuron d_model"]:
    """What one unit of each neuron's activation adds to the residual stream: W_out of one layer, on the CPU.

    A neuron's activation is the input of the MLP's output projection, in gated MLPs act(gate) * up. A norm behind the
    MLP (Gemma 2 to 4, OLMo 2, GLM 4) and Granite's multiplier are treated as by `output_weights`. Raises EmolabError
    for weights that cannot be read as a matrix.
    """
    mlp = model.bridge.blocks[layer].mlp
    _need_plain(model, "neuron", mlp.out.weight)
    return _with_gain(model, "neuron", layer, mlp.W_out.detach().to("cpu", dtype))


def neuron_counts(model: Model) -> dict[int, int]:
    """How many neurons each layer has, of those whose MLP is no mixture of experts."""
    return {layer: len(model.bridge.blocks[layer].mlp.W_out) for layer in site_layers(model, "neuron")}


def _need_plain(model: Model, site: str, weight: Tensor) -> None:
    """EmolabError for an output projection that cannot be read as a matrix."""
    from transformer_lens.utilities.quantization import unreadable_weight_reason

    reason = unreadable_weight_reason(weight)
    if reason:
        raise EmolabError(
            f"{model.name!r} is quantised, so what each {site} adds cannot be told (the output projection: {reason}); "
            f"measure resid, attn or mlp, without {site!r}, or load the model unquantised"
        )


def _with_gain(model: Model, site: str, layer: int, weight: Tensor) -> Tensor:
    """Weights of single parts with what stands between them and the residual stream."""
    block = model.bridge.blocks[layer]
    if output_norm(block, site) is not None:
        weight = weight * output_gain(block, site).to(weight.dtype)
    return weight * float(getattr(model.hf.config.get_text_config(), "residual_multiplier", 1.0))


def head_weights(model: Model, layer: int) -> Float[Tensor, "head d_head d_model"]:
    """W_O of one layer as the model holds it. Raises EmolabError for weights that are no plain matrix."""
    attn = model.bridge.blocks[layer].attn
    _need_plain(model, "head", attn.o.weight)
    try:
        return attn.W_O.detach()
    except ValueError:  # heads of another width than the config names: Gemma 4's layers of full attention
        return attn.o.weight.detach().T.reshape(model.n_heads, -1, model.d_model)


def output_norm(block: nn.Module, site: str) -> nn.Module | None:
    """The norm between heads' attention, or neurons' MLP, and the residual stream, where the architecture has one."""
    return block._modules.get(_NORMS[site])


def output_gain(block: nn.Module, site: str) -> Float[Tensor, " d_model"]:
    """That RMS norm's gain, float64: what it returns for a large constant (some store the gain, some gain - 1)."""
    norm = block.get_submodule(_NORMS[site])
    return norm(torch.full_like(next(norm.parameters()), 1e3)).detach().to("cpu", torch.float64)
