"""emolab: emotion vectors in language models, extracted, mapped by layer and head, steered and put to the test.

>>> import emolab
>>> model = emolab.load_model("smollm2")
>>> responses = emolab.collect_responses(model, emolab.load_queries("general", split="train", n=12))
>>> vectors = emolab.extract_vectors(model, responses)
>>> emolab.generate(model, "Tell me about the park.", steering=emolab.Steering(vectors, {"joy": 2.0}, site="attn"))
"""

from __future__ import annotations

from emolab.base.lazy import on_use

__version__ = "0.1.0"

# name -> module that holds it. Loaded on first use, so that `import emolab` needs neither torch nor TransformerLens.
_PUBLIC = {
    "Comparison": "comparisons.comparison",
    "EMOTIONS": "base.labels",
    "EmolabError": "base.errors",
    "EmotionVectors": "vectors.vectors",
    "HeadTest": "heads.patching",
    "Model": "models.model",
    "ResponseMeans": "vectors.activations",
    "Setting": "steering.settings",
    "Steering": "steering.steering",
    "When": "steering.conditions",
    "Writing": "answers.writing",
    "ablation_curve": "heads.curves",
    "at": "steering.steering",
    "check_claims": "comparisons.claim_runs",
    "choices": "experiments.options",
    "choose_wording": "experiments.wordings",
    "collect_responses": "answers.responses",
    "compare_methods": "comparisons.compare",
    "extract_vectors": "vectors.vectors",
    "find_breaking": "experiments.breaking",
    "generate": "answers.generation",
    "head_effects": "heads.effects",
    "load_model": "models.load",
    "load_queries": "answers.queries",
    "load_ratings": "answers.texts",
    "load_texts": "answers.texts",
    "load_vectors": "vectors.vectors",
    "neuron_effects": "heads.neurons",
    "response_means": "vectors.activations",
    "responses_from_texts": "answers.responses",
    "save_figure": "plot",
    "score": "judges.scoring",
    "set_progress": "base.progress",
    "steered": "steering.steering",
    "study": "studies.pipeline",
    "sweep": "experiments.sweeps",
    "versions": "base.storage",
    "workers": "models.workers",
}
_ROOMS = (
    "answers", "base", "comparisons", "experiments", "geometry", "heads", "judges", "models", "plot",
    "say", "steering", "studies", "vectors", "widgets",
)  # fmt: skip
__all__ = sorted([*_PUBLIC, *_ROOMS, "__version__"])
__getattr__ = on_use(__name__, _PUBLIC | {name: name for name in _ROOMS}, __all__)


def __dir__() -> list[str]:
    return __all__
