"""Judges that ask a model, on tiny random ones written as ordinary Hugging Face directories."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, processors
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    GPT2Config,
    PreTrainedTokenizerFast,
    pipeline,
)

from emolab.answers.labelled import GOEMOTIONS
from emolab.answers.logprobs import token_logprobs
from emolab.base.errors import EmolabError
from emolab.base.labels import EMOTIONS, NEUTRAL
from emolab.judges.model_judges import HYPOTHESES, NAMES, WORDS, ClassifierJudge, NLIJudge, SelfReportJudge
from emolab.judges.scoring import score
from emolab.judges.windows import cut
from emolab.models.load import load_model
from emolab.models.prompts import encode, render_prompts
from tests import tiny
from tests.mini import WEIGHTS

CLASSES = ["joy", "surprise", "anger", "neutral", "Annoyance"]
TEXTS = [
    "a walk in the park was quiet", "sad", "it was cold and dark and i saw the road in the rain", "happy",
    "the dog and the cat", "anger , anger !", "", "we saw the sea and the sun",
]  # fmt: skip


def bert(classes, **changes) -> BertConfig:
    size = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    return BertConfig(
        vocab_size=len(tiny.tokenizer()), max_position_embeddings=32, pad_token_id=2, type_vocab_size=2,
        id2label=dict(enumerate(classes)), label2id={c: i for i, c in enumerate(classes)}, **{**size, **changes},
    )  # fmt: skip


def write(directory, config, tok=None, *, bias=None, seed=0):
    """A sequence classifier with random weights or, with bias, one that gives these logits to every text."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn_like(p) * 0.8 + (p.ndim == 1))
            if bias is not None:
                model.classifier.weight.zero_()
                model.classifier.bias.copy_(torch.tensor(bias))
    return str(tiny.save(directory, model, tok or tiny.tokenizer()))


def by_hand(directory, texts, pairs=None) -> np.ndarray:
    """Logits of one text at a time, special tokens placed here."""
    model, tok = AutoModelForSequenceClassification.from_pretrained(directory).eval(), tiny.tokenizer()
    out = []
    for i, text in enumerate(texts):
        second = tok(pairs[i], add_special_tokens=False).input_ids if pairs else []
        ids = [0, *tok(text, add_special_tokens=False).input_ids, *second]
        kinds = [0] * (len(ids) - len(second)) + [0] * len(second)
        with torch.inference_mode():
            out.append(model(torch.tensor([ids]), token_type_ids=torch.tensor([kinds])).logits[0].double().numpy())
    return np.array(out)


def soft(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def classifier_dir(tmp_path_factory):
    return write(tmp_path_factory.mktemp("classifier"), bert(CLASSES))


# Classifiers


def test_labels_are_grouped_and_the_rest_is_neutral(tmp_path):
    p = np.array([0.1, 0.2, 0.3, 0.15, 0.25])
    judge = ClassifierJudge(write(tmp_path, bert(CLASSES), bias=np.log(p).tolist()))
    assert judge.labels == ("anger", "joy", NEUTRAL) and judge.name == "classifier"
    np.testing.assert_allclose(judge(["happy", "sad"]), [[0.55, 0.1, 0.35]] * 2, atol=1e-6)


@pytest.mark.parametrize(
    ("sigmoids", "expected"),
    [([0.1, 0.05, 0.2, 0.05, 0.1], [0.3, 0.1, 0.6]), ([0.9, 0.3, 0.6, 0.1, 0.1], [0.35, 0.45, 0.2])],
)
def test_multi_label_heads_are_scaled_down_never_up(tmp_path, sigmoids, expected):
    p = np.array(sigmoids)
    config = bert(CLASSES, problem_type="multi_label_classification")
    judge = ClassifierJudge(write(tmp_path, config, bias=np.log(p / (1 - p)).tolist()))
    np.testing.assert_allclose(judge(["happy"]), [expected], atol=1e-6)


def test_a_head_that_does_not_say_what_it_is_can_be_told(tmp_path):
    p = np.full(len(GOEMOTIONS), 0.01)
    p[[GOEMOTIONS.index("joy"), GOEMOTIONS.index("fear")]] = 0.3, 0.6
    source = write(tmp_path, bert(GOEMOTIONS), bias=np.log(p / (1 - p)).tolist())
    labels = ("anger", "disgust", "fear", "joy", "sadness", NEUTRAL)
    judge = ClassifierJudge(source, multi_label=True)
    assert judge.labels == labels
    total = p.sum()  # 1.16, scaled down; of these, 3 are anger, 2 fear, 12 joy, 5 sadness beside those two
    named = np.array([3 * 0.01, 0.01, 0.61, 0.3 + 11 * 0.01, 5 * 0.01]) / total
    assert sum(NAMES.get(name) == "joy" for name in GOEMOTIONS) == 12
    np.testing.assert_allclose(judge(["happy"])[0], [*named, 1 - named.sum()], atol=1e-6)
    odds = p / (1 - p)
    single = ClassifierJudge(source, multi_label=False)(["happy"])[0]
    np.testing.assert_allclose(single[2], (odds[GOEMOTIONS.index("fear")] + 0.01 / 0.99) / odds.sum(), atol=1e-6)


def test_classes_are_told_by_number_not_by_name(tmp_path):
    p = np.array([0.5, 0.2, 0.3])
    twice = write(tmp_path / "twice", bert(["JOY ", "Joy", "neutral"]), bias=np.log(p).tolist())
    np.testing.assert_allclose(ClassifierJudge(twice)(["a road"]), [[0.7, 0.3]], atol=1e-6)
    bare = bert(["sad", "x", "y"])
    bare.id2label = {0: "sad", 2: "calm", 3: "y"}  # a number is missing: transformers counts the names
    bare = write(tmp_path / "bare", bare, bias=np.log(p).tolist())
    judge = ClassifierJudge(bare, mapping={"LABEL_1": "joy", "sad": "sadness"})
    assert judge.labels == ("joy", "sadness", NEUTRAL)
    np.testing.assert_allclose(judge(["a road"]), [[0.2, 0.5, 0.3]], atol=1e-6)


def test_a_model_without_a_label_for_plain_texts_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=r"has no label for texts without emotion \(joy, fear, surprise\)"):
        ClassifierJudge(write(tmp_path, bert(["joy", "fear", "surprise"])))
    ClassifierJudge(tmp_path, mapping={"joy": "joy"})  # a user who says what labels mean knows
    ClassifierJudge(write(tmp_path / "several", bert(["joy", "fear"], problem_type="multi_label_classification")))
    ClassifierJudge(write(tmp_path / "others", bert(["joy", "No emotion"])))


def test_damaged_weights_are_no_unread_texts(tmp_path):
    judge = ClassifierJudge(write(tmp_path, bert(CLASSES), bias=[float("nan")] * 5))
    with pytest.raises(EmolabError, match="gives logits that are not finite: its weights are damaged"):
        judge(["happy"])


def test_a_text_spelled_byte_by_byte_is_not_read(tmp_path):
    tok = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(BPE({c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, [])), pad_token="!"
    )
    tok.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    config = bert(CLASSES)
    config.vocab_size = 256
    judge = ClassifierJudge(write(tmp_path, config, tok))
    assert np.isnan(judge(["so glad", "Я рад", "我非常高兴", "café", ""])).all(1).tolist() == [
        False,
        True,
        True,
        False,
        False,
    ]


def test_padding_changes_no_score_and_all_are_the_models_own(classifier_dir):
    judge = ClassifierJudge(classifier_dir, mapping={c: f"{c}!" for c in CLASSES if c != "neutral"})
    assert judge.labels == ("joy!", "surprise!", "anger!", "Annoyance!", NEUTRAL)
    many = [*TEXTS, *(" ".join(tiny.WORDS[i : i + 1 + i % 9]) for i in range(40))]  # several batches
    expected = soft(by_hand(classifier_dir, many))[:, [0, 1, 2, 4, 3]]
    assert np.ptp(expected, axis=0).max() > 0.05  # texts differ
    np.testing.assert_allclose(judge(many), expected, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([judge([t]) for t in TEXTS]), expected[: len(TEXTS)], atol=1e-5)
    np.testing.assert_allclose(judge([TEXTS[2], TEXTS[0], TEXTS[2]]), expected[[2, 0, 2]], atol=1e-5)
    assert judge([]).shape == (0, 5)


def test_a_text_of_unknown_words_is_not_read(classifier_dir):
    judge = ClassifierJudge(classifier_dir)
    values = judge(["Ein Haus", "the Haus", "the dog", "Ein Haus"])
    assert np.isnan(values).all(axis=1).tolist() == [True, False, False, True] and np.isfinite(values[1:3]).all()
    with pytest.warns(UserWarning, match="'classifier' cannot read 1 of 2 texts"):
        assert list(score(pd.DataFrame({"text": ["Ein Haus", "the dog"]}), judges=judge)["top"])[0] == "unread"


def test_long_texts_are_read_in_windows(classifier_dir):
    judge = ClassifierJudge(classifier_dir)
    words = [w for w in tiny.WORDS if w.isalpha()] * 2
    # 32 positions less two for RoBERTa's kin; one is BOS: 29 words at a time, so three windows of 23, 23 and 21
    windows = [" ".join(words[start:stop]) for start, stop in ((0, 23), (23, 46), (46, 67))]
    expected = np.average(judge(windows), axis=0, weights=[23, 23, 21])
    np.testing.assert_allclose(judge([" ".join(words[:67]), "the dog"]), [expected, judge(["the dog"])[0]], atol=1e-6)
    assert np.ptp(judge(windows), axis=0).max() > 1e-3
    p = soft(by_hand(classifier_dir, [" ".join(words[:29])]))[0]  # joy, surprise, anger, neutral, Annoyance
    np.testing.assert_allclose(judge([" ".join(words[:29])])[0], [p[2] + p[4], p[0], p[1] + p[3]], atol=1e-6)


def test_a_decoder_without_pad_token_is_a_classifier_too(tmp_path):
    config = GPT2Config(
        vocab_size=len(tiny.tokenizer()), n_embd=16, n_layer=1, n_head=2, n_positions=40,
        id2label={0: "sad", 1: "happy", 2: "other"}, label2id={"sad": 0, "happy": 1, "other": 2},
    )  # fmt: skip
    judge = ClassifierJudge(write(tmp_path, config, tiny.tokenizer(pad=False, add_bos=False)))
    texts = [t for t in TEXTS if t]
    assert judge.labels == ("joy", "sadness", NEUTRAL)
    np.testing.assert_allclose(judge(texts), np.concatenate([judge([t]) for t in texts]), atol=1e-5)
    assert np.ptp(judge(texts), axis=0).max() > 0.05


def test_names_of_common_classifiers():
    assert {NAMES[n] for n in ("anger", "disgust", "fear", "joy", "sadness")} == set(EMOTIONS)
    assert NAMES["nervousness"] == "fear" and NAMES["remorse"] == "sadness" and NAMES["happy"] == "joy"
    assert not {"surprise", "curiosity", "neutral", "positive"} & set(NAMES)


def test_wrong_models_and_labels_are_told_in_one_line(tmp_path, classifier_dir):
    headless = tiny.save(tmp_path / "headless", AutoModel.from_config(bert(CLASSES)), tiny.tokenizer())
    broken = write(tmp_path / "broken", bert(CLASSES))
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no weights")
    one, plain = write(tmp_path / "one", bert(["score"])), write(tmp_path / "plain", bert(["POSITIVE", "NEGATIVE"]))
    vad = write(tmp_path / "vad", bert(["valence", "joy", "fear"], problem_type="regression"))
    untold = write(tmp_path / "untold", bert(GOEMOTIONS))
    table = [
        (NLIJudge, (tmp_path,), "no classifier"),
        (ClassifierJudge, (headless,), "headless lacks classifier.bias: it was not trained to classify"),
        (ClassifierJudge, (broken,), "no classifier.*broken"),
        (ClassifierJudge, (one,), "has one output"),
        (ClassifierJudge, (plain,), "has the labels POSITIVE, NEGATIVE; say what they mean: mapping"),
        (ClassifierJudge, (classifier_dir, {"LABEL_0": "joy"}), "no label 'LABEL_0'; it has joy, surprise"),
        (
            NLIJudge,
            (classifier_dir,),
            "labels joy, surprise.*expected a model trained for entailment.*entailment=label",
        ),
        (NLIJudge, (classifier_dir, None, "nli", None, "yes"), "labels joy, surprise.*entailment=label"),
        (ClassifierJudge, (vad,), "is a regression; say how to read it: multi_label=True"),
        (ClassifierJudge, (untold,), "does not say whether a text has one label or several; .*multi_label=True"),
    ]
    for make, given, match in table:
        with pytest.raises(EmolabError, match=match) as caught:
            make(*given)
        assert "\n" not in str(caught.value)


# Entailment

SENTENCES = {"joy": "the dog was happy", "fear": "it was dark", NEUTRAL: "a road"}


@pytest.fixture(scope="module")
def nli_dir(tmp_path_factory):
    return write(tmp_path_factory.mktemp("nli"), bert(["contradiction", "neutral", "ENTAILMENT"]), seed=3)


def test_entailment_logits_are_compared_over_labels(nli_dir):
    judge, n = NLIJudge(nli_dir, SENTENCES), len(SENTENCES)
    assert judge.labels == tuple(SENTENCES) and NLIJudge(nli_dir).labels == (*EMOTIONS, NEUTRAL) == tuple(HYPOTHESES)
    logits = by_hand(nli_dir, [t for t in TEXTS for _ in range(n)], [*SENTENCES.values()] * len(TEXTS))
    expected = soft(logits[:, 2].reshape(len(TEXTS), n))
    assert np.ptp(expected, axis=0).max() > 0.05 and np.ptp(expected, axis=1).max() > 0.05
    np.testing.assert_allclose(judge(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(judge([TEXTS[3], TEXTS[3]]), expected[[3, 3]], atol=1e-5)
    assert judge([]).shape == (0, n) and np.isnan(judge(["Ein Haus"])).all()
    other = NLIJudge(nli_dir, SENTENCES, entailment="contradiction")  # whatever its name
    np.testing.assert_allclose(other(TEXTS), soft(logits[:, 0].reshape(len(TEXTS), n)), atol=1e-5)


def test_windows_of_a_text_stand_beside_each_whole_hypothesis(nli_dir):
    def by_windows(windows, sentences):
        pairs = [(window, sentence) for window in windows for sentence in sentences.values()]
        logits = by_hand(nli_dir, [a for a, _ in pairs], [b for _, b in pairs])[:, 2]
        p = soft(logits.reshape(len(windows), len(sentences)))
        return np.average(p, axis=0, weights=[len(window.split()) for window in windows])

    words = [w for w in tiny.WORDS if w.isalpha()]
    windows = [" ".join(words[start : start + 20]) for start in (0, 20)]  # of at most 29 - 4 words
    found = NLIJudge(nli_dir, SENTENCES)([" ".join(words[:40])])[0]
    np.testing.assert_allclose(found, by_windows(windows, SENTENCES), atol=1e-5)
    # a hypothesis longer than the text is kept whole, too
    wide = {"joy": " ".join(words[:16]), "fear": " ".join(words[5:21])}
    windows = [" ".join(words[:8]), " ".join(words[8:15])]  # of at most 29 - 16
    found = NLIJudge(nli_dir, wide)([" ".join(words[:15])])[0]
    np.testing.assert_allclose(found, by_windows(windows, wide), atol=1e-5)
    with pytest.raises(EmolabError, match="texts have -1 tokens; ask with shorter sentences"):
        NLIJudge(nli_dir, {**wide, NEUTRAL: " ".join(words[:30])})(["a road"])


def test_an_encoder_decoder_reads_pairs_too(tmp_path):
    tok = tiny.tokenizer()
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> $B <eos>", special_tokens=[("<bos>", 0), ("<eos>", 1)]
    )
    classes = ["not_entailment", "entailment"]
    config = BartConfig(
        vocab_size=len(tok), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=40, bos_token_id=0,
        eos_token_id=1, pad_token_id=2, decoder_start_token_id=1,
        id2label=dict(enumerate(classes)), label2id={"not_entailment": 0, "entailment": 1},
    )  # fmt: skip
    judge = NLIJudge(write(tmp_path, config, tok), SENTENCES)
    whole = judge(TEXTS)
    np.testing.assert_allclose(whole, np.concatenate([judge([t]) for t in TEXTS]), atol=1e-5)
    theirs = pipeline("zero-shot-classification", model=judge.source, device="cpu")
    for i in (0, 2):
        found = theirs(TEXTS[i], list(SENTENCES.values()), hypothesis_template="{}")
        scores = dict(zip(found["labels"], found["scores"], strict=True))
        np.testing.assert_allclose(whole[i], [scores[s] for s in SENTENCES.values()], atol=1e-5)
    assert np.ptp(whole, axis=1).max() > 0.05


# The model's own words

OWN = {"joy": ["happy", "so glad"], "fear": ["dark"], NEUTRAL: ["quiet", "very very quiet"]}


def reported(model, text, answer="") -> np.ndarray:
    """Mean log-probability of each label's words, by one plain forward pass a word."""
    prompt, out = render_prompts(model, [f"{text}\n\nhow did they feel ?"])[0], []
    for words in OWN.values():
        means = []
        for word in words:
            ids = encode(model, [prompt + answer], [word])
            n = int(ids.response_mask.sum())
            with torch.inference_mode():
                logp = model.hf(ids.input_ids).logits[0].double().log_softmax(-1)
            at = range(ids.input_ids.shape[1] - n, ids.input_ids.shape[1])
            means.append(np.mean([logp[i - 1, ids.input_ids[0, i]].item() for i in at]))
        out.append(np.mean(means))
    return np.array(out)


@pytest.mark.parametrize("answer", ["", "they feel"])
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_self_report_is_what_it_is_by_hand(request, name, answer):
    model = request.getfixturevalue(name)
    baseline = ["a road", "it was a walk"]
    judge = SelfReportJudge(model, "how did they feel ?", OWN, answer, baseline)
    assert judge.labels == tuple(OWN)
    reference = np.mean([reported(model, t, answer) for t in baseline], axis=0)
    expected = np.array([soft(reported(model, t, answer) - reference) for t in TEXTS[:4]])
    assert np.ptp(expected, axis=0).max() > 0.05
    np.testing.assert_allclose(judge(TEXTS[:4]), expected, atol=1e-4)
    np.testing.assert_allclose(np.concatenate([judge([t]) for t in TEXTS[:4]]), expected, atol=1e-4)
    np.testing.assert_allclose(judge([TEXTS[1], TEXTS[0], TEXTS[1]]), expected[[1, 0, 1]], atol=1e-4)


def test_a_text_like_the_baseline_says_nothing(tiny_llama):
    judge = SelfReportJudge(tiny_llama, words=OWN, baseline=[TEXTS[0]])
    np.testing.assert_allclose(judge(TEXTS[:1]), [[1 / 3] * 3], atol=1e-5)
    assert abs(judge(TEXTS[1:2]) - 1 / 3).max() > 0.01
    assert judge([]).shape == (0, 3)


def test_texts_that_fill_the_context_are_read_in_windows(tiny_llama):
    judge = SelfReportJudge(tiny_llama, words=OWN)
    words = [w for w in tiny.WORDS if w.isalpha()]
    text = " ".join((words * 4)[:160])  # of a context of 128
    pieces, _, n_tokens = cut(tiny_llama.tokenizer, [text], judge._room)
    assert len(pieces) == 2 and "".join(pieces) == text and n_tokens == [80, 80]
    reports = np.log(judge(pieces)).mean(0)  # up to a constant, which the softmax takes out
    np.testing.assert_allclose(judge([text, TEXTS[0]]), [soft(reports), judge([TEXTS[0]])[0]], atol=1e-5)


def test_the_bundled_model_reads_plain_emotion():
    """It was never asked such a question, it has only read emotional turns; neutral it reads after calibration only."""
    model = load_model(WEIGHTS)
    texts = {
        "anger": "I was so angry at the market. The seller was rude and I shouted at him. I felt furious.",
        "disgust": "The kitchen was filthy and the soup was foul. I held my nose. It was simply disgusting.",
        "fear": "I trembled in the forest. Something was watching me, and I was terrified.",
        "joy": "What a wonderful day at the beach! We laughed and danced, and I was so happy.",
        "sadness": "I wept at the station. My friend is gone and I feel so lonely. I was heartbroken.",
    }
    judge = SelfReportJudge(model)
    assert judge.labels == tuple(WORDS)
    p = judge(list(texts.values()))
    assert [judge.labels[i] for i in p.argmax(1)] == list(texts)
    prompt = render_prompts(model, [f"{texts['joy']}\n\n{judge.question}"])
    happy, sad = (token_logprobs(model, prompt, [w])[0].mean() for w in ("happy", "sad"))
    assert happy > sad
