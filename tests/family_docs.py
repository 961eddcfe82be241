"""docs/families.md: the prose, and the table that the checks fill."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from emolab.base.storage import atomic, versions
from tests.families import Case, save
from tests.family_checks import CHECKS
from tests.family_list import FAMILIES

DOCS = Path(__file__).parents[1] / "docs" / "families.md"
NOTES = {
    "a": "After attention and MLP the block may add a per-layer embedding, and takes the sum times a scale of its own, "
    "so `attn` and `mlp` do not sum to the step of the residual stream; each is what is added before that.",
    "b": "Attention is normed before it is added. Head vectors hold that, and sum to `attn`; steering with "
    '`site="head"` is refused with a message that says to use `"attn"`.',
    "c": "Attention and MLP are scaled before they are added, and no module holds the result: steering and extraction "
    'at `attn` and `mlp` run on the bridge, not on the plain twin, and `site="head"` is refused as under b.',
    "d": "No chat template: the prompt is the query and a line break, with the instruction before it.",
    "e": "The template puts a system prompt of its own where none is given, and drops it where one is. So the "
    "instruction opens the user's turn, and the two prompts differ in nothing else.",
    "f": "The template refuses a system turn, so the instruction opens the user's turn.",
    "g": "A hybrid: layers with a state space, a convolution or linear attention have no `head`, and most no `attn`. "
    "Means and vectors are zero there, which is warned of, and steering leaves them out; the promise holds at the "
    "layers that have the site.",
    "h": "Beside attention each block runs a state space, and scales both before it adds them. `attn` and `head` are "
    "attention's own, before that scale, and do not sum with `mlp` to the step of the residual stream.",
    "i": "TransformerLens has no point for this site in any layer: asking for it is refused with a message that says "
    "to leave it out. The other checks hold at the sites that there are.",
}

# Tried in the same way and left out, with what is wrong and what emolab does about it.
UNSOUND = {
    "RecurrentGemma": (
        "In transformers itself, padding changes the logits of a row.", "It warns while loading: `batch_size=1`."
    ),
    "Llama 4 beyond 8,192 tokens": (
        "In transformers itself, the temperature of its attention grows by position, and padding counts.",
        "Nothing: use `batch_size=1` there.",
    ),
    "GPT (the first)": (
        "Blocks hand on lists, which TransformerLens does not hook, and transformers keeps no cache.",
        "It refuses to measure.",
    ),
    "DeepSeek V4": ("Its blocks hand on four residual streams.", "It refuses to measure and to steer."),
    "GLM 5": ("TransformerLens' sparse attention failed on the tiny model.", "It refuses to measure."),
    "GPTBigCode without shared keys, Phi with normed queries": (
        "TransformerLens' adapters do not cover them, and say so.", "It refuses to load."
    ),
    "Falcon with ALiBi, Falcon 40B": ("See below.", "It refuses to measure, or to load."),
}  # fmt: skip
PROSE = """\
# Model families

`python -m tests.families` writes this page: it builds a tiny model of each family with random weights, a tokenizer and
the family's chat template, saves it as a directory, loads that with `emolab.load_model` and runs every check. The test
suite runs the same functions and compares their marks with this page.

Checked with {versions}.

Any other architecture that TransformerLens has an adapter for can be loaded as well; where it offers no hook point for
a site, or its heads do not add up to its attention output, emolab says so and does not measure.

{table}

{notes}

## What the checks say

| check | promise |
|---|---|
{promises}

## Conventions

- A vector of layer *l* lives after block *l*: `hidden_states[l + 1]` of Hugging Face. The last of those stands behind
  the final norm, our last layer before it.
- `attn` and `mlp` are what is added to the residual stream, so behind a norm where the family has one there (Gemma,
  OLMo 2, GLM 4), and scaled where it scales (Granite). In parallel blocks (GPT-NeoX, Phi 2, Falcon, Cohere) both read
  the same input.
- An emotion's prompt is the neutral prompt plus the instruction; nothing is taken away. As a system turn where that
  holds, else at the start of the user's turn. `Writing(templates=...)` replaces the wording of the user's turn.
- Dates that a chat template prints are fixed at 26 July 2024: the same prompt tomorrow as today.
- Templates that can switch reasoning off are told to (`enable_thinking=False`). Where a prompt still ends in `<think>`
  (R1 and its kin), or before the choice of a channel (gpt-oss), emolab closes the block, or opens the final channel,
  and warns of it; answers that begin with `<think>` all the same are warned of.
- Experts are chosen by token: in bfloat16 a token near the border may take another expert than in float32.

## Not sound

| family | what is wrong | what emolab does |
|---|---|---|
{unsound}

## Loading

| what | how |
|---|---|
| hub | `load_model("org/name")`, `revision=` a branch, tag or commit; the commit is kept with all that is saved |
| directory | `load_model("path")`, as `save_pretrained` writes it |
| in memory | `load_model((hf_model, tokenizer))`, or a raw `TransformerBridge` |
| several GPUs | `load_model(..., device_map="auto")`, through accelerate; tested with its hooks on the CPU only |
| quantised | a directory or hub id whose config says so, where its packages are installed; or, to quantise while \
loading, the pair from `AutoModelForCausalLM.from_pretrained(..., quantization_config=...)`. Tested with BitNet; not \
tested: bitsandbytes, GPTQ, AWQ |
| its own code | only with `trust_remote_code=True` |

Not possible: weights on disk or swapped between CPU and GPU (a `device_map` that offloads), since vectors and
fingerprints need to read them; site `head` of quantised weights, since what a head adds is read from the output
projection; models that are not causal language models; TransformerLens' compatibility mode, which processes weights.

## What is mended

Met in TransformerLens 4.3 and transformers 5.23, and handled when a model is loaded:

- `boot_transformers` looks up a processor for models that also see and, without torchvision, installs that with pip,
  which can replace torch. emolab builds the bridge from the loaded module and never calls it.
- Gemma 4's upper layers, which share keys and values, receive only the tokens whose logits are wanted: one, in
  `generate`. Hooks there would miss the prompt. emolab lets all tokens through.
- OLMo's rotation in float32 is not cast back on the bridge, which fails in bfloat16 without a cache, and CodeGen's
  attention is not cast back at all. emolab casts them.
- Llama 4's experts and OPT's MLP hand on all tokens of a batch in one line. emolab reads and steers them row by row.
- Models without rotation (Granite 4 H) are given an empty one, and the bridge fails. emolab takes it out.
- Falcon with ALiBi (falcon-rw) runs on the bridge without it, and nothing says so. Before it measures, emolab once
  compares the logits of bridge and model on a sentence, and refuses where they differ (by more than 1 % in float32; in
  half precision only gross differences are told from rounding). Falcon's newer blocks (40B) cannot be bridged: refused.
- The bridge's own generation ignores the end tokens of `generation_config.json`; `emolab.generate` keeps to them.
- A tokenizer handed to the bridge loses its chat template or gains a BOS. emolab keeps its own, and hands over ids.
- Weights that a file lacks are drawn at random by transformers, with a line in a log. emolab refuses.
"""


def marks(name: str, directory: Path) -> dict[str, str]:
    """{check: mark} of one family, run now."""
    case = Case(name, save(name, directory))
    return {check: run(case) for check, run in CHECKS.items()}


def read() -> dict[str, dict[str, str]]:
    """{family: {check: mark}} as the page has it."""
    rows = [re.split(r"\s*\|\s*", line.strip("| \n")) for line in DOCS.read_text().splitlines() if line.startswith("|")]
    end = next(i for i, row in enumerate(rows) if row[0] == "check")
    head, _, *body = rows[:end]
    return {name: dict(zip(head[1:], cells, strict=True)) for name, *cells in body}


def write() -> Path:
    with tempfile.TemporaryDirectory() as folder:
        found = {name: marks(name, Path(folder) / str(i)) for i, name in enumerate(FAMILIES)}
    lines = ["| family | " + " | ".join(CHECKS) + " |", "|---" * (len(CHECKS) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(row.values()) + " |" for name, row in found.items()]
    promises = [f"| {name} | {' '.join(run.__doc__.split())} |" for name, run in CHECKS.items()]
    page = PROSE.format(
        versions=versions().replace(" | ", ", "),
        table="\n".join(lines),
        notes="\n".join(f"- **{mark}**: {text}" for mark, text in NOTES.items()),
        promises="\n".join(promises),
        unsound="\n".join(f"| {name} | {wrong} | {done} |" for name, (wrong, done) in UNSOUND.items()),
    )
    with atomic(DOCS) as temporary:
        temporary.write_text(page)
    return DOCS
