"""emolab: emotion vectors in language models, extracted, mapped by layer and head, steered and put to the test.

>>> import emolab
>>> model = emolab.load_model("smollm2")
>>> responses = emolab.collect_responses(model, emolab.load_queries("general", split="train"))
>>> vectors = emolab.extract_vectors(model, responses)
>>> emolab.generate(model, "Tell me about the park.", steering=emolab.Steering(vectors, {"joy": 2.0}, site="attn"))
"""

from __future__ import annotations

from emolab.lazy import on_use

__version__ = "0.1.0"

# name -> module that holds it. Loaded on first use, so that `import emolab` needs neither torch nor TransformerLens.
_PUBLIC = {
    "EMOTIONS": "emotions",
    "EmolabError": "errors",
    "EmotionVectors": "vectors",
    "Model": "models",
    "ResponseMeans": "activations",
    "Steering": "steering",
    "Writing": "writing",
    "ablation_curve": "causal",
    "check_claims": "claim_runs",
    "choose_wording": "wordings",
    "collect_responses": "responses",
    "compare_methods": "baselines",
    "extract_vectors": "vectors",
    "find_breaking": "breaking",
    "generate": "generation",
    "head_effects": "causal",
    "load_model": "models",
    "load_queries": "queries",
    "load_ratings": "texts",
    "load_texts": "texts",
    "load_vectors": "vectors",
    "pull_run": "hub",
    "push_run": "hub",
    "response_means": "activations",
    "responses_from_texts": "responses",
    "save_figure": "plot",
    "score": "scoring",
    "set_progress": "progress",
    "steered": "steering",
    "study": "pipeline",
    "sweep": "experiments",
    "versions": "storage",
}
_MODULES = (
    "attention", "attribution", "baselines", "calibration", "claims", "classroom", "dose_response", "embedding",
    "geometry", "heads", "interop", "judges", "plot", "purity", "reliability", "widgets",
)  # fmt: skip
__all__ = sorted([*_PUBLIC, *_MODULES, "__version__"])
__getattr__ = on_use(__name__, _PUBLIC | {name: name for name in _MODULES}, __all__)


def __dir__() -> list[str]:
    return __all__
