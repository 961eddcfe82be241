"""Sentences about results: exact where a table has a known answer; no claim where no difference was found."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from emolab import EmotionVectors, plot, say
from emolab.base.labels import EMOTIONS, NEUTRAL
from emolab.experiments import compare, equal_effect
from emolab.say.sentences import Sentences, listed, number
from tests.plot import made


def texts(hits: dict, n: int = 8, **columns) -> pd.DataFrame:
    """Scored texts: hits[emotion, control, alpha] is the share of n queries read as the target, others as neutral."""
    rows = []
    for (emotion, control, alpha), share in hits.items():
        for q in range(n):
            top = emotion if q < round(share * n) else NEUTRAL
            p = {f"p_{label}": 0.9 if label == top else 0.02 for label in (*EMOTIONS, NEUTRAL)}
            rows.append({"query_id": f"q{q}", "emotion": emotion, "control": control, "alpha": alpha, "top": top, **p})
    return pd.DataFrame(rows).assign(**columns)


def swept(joy=(0, 1, 1), fear=(0, 0, 1), random=0.0) -> pd.DataFrame:
    hits = {}
    for emotion, shares in {"joy": joy, "fear": fear}.items():
        for alpha, share in zip((0, 1, 2), shares, strict=True):
            hits[emotion, "none", alpha] = share
            if alpha:
                hits[emotion, "random", alpha] = random
    return texts(hits, named=False, adherence=0.8)


def test_a_sentence_is_markdown_and_text_and_has_a_verdict():
    said = Sentences("First.", "", "Second.")
    assert (str(said), said.verdict, said._repr_markdown_()) == ("First. Second.", "First.", "First. Second.")
    assert listed([]) == "none" and listed("ab") == "a and b" and listed("abc") == "a, b and c"
    assert number(-0.001) == "0.00" and number(float("nan")) == "unknown"
    assert number(0.775) == number(0.775 - 1e-12) == "0.78"
    assert number(0.5, 0.25, 0.75, signed=True) == "+0.50 [+0.25, +0.75]"


def test_a_table_of_which_every_part_is_unknown_is_said_to_be():
    methods = made.methods().assign(value=np.nan)
    assert say.tradeoff(methods) == "No value was measured."


def test_the_dose_stands_beside_its_controls_and_names_who_comes_first():
    told = texts({("joy", "x", 0): 0.5, ("fear", "x", 0): 0.0}).rename(columns={"emotion": "condition"})
    said = say.dose_response(swept(), reference=told)
    assert said.verdict.startswith("Steering brings 1.00 [0.68, 1.00] of the texts to the target at dose 2 (random")
    assert "random direction 0.00 [0.00, 0.32]" in said and "unsteered 0.00 [0.00, 0.32]" in said
    assert "instructed 0.25" in said.verdict
    assert "Joy passes the random direction first, at dose 1, fear last, at dose 2." in said
    assert "There 100% of the adherence to the question is left (random direction 100%)." in said
    assert "Joy passes its random direction at dose 1." in say.dose_response(swept(fear=(0, 0, 0)))
    assert "Fear and joy pass their random direction at dose 1." in say.dose_response(swept(fear=(0, 1, 1)))


def test_the_figure_and_the_sentence_print_the_same_share():
    """39 of 40 texts are 0.975, which sums in one order to a little less, and in another to a little more."""
    hits = {(e, "none", dose): dose * (0.875 if e == "joy" else 1) for e in EMOTIONS for dose in (0, 1)}
    table = texts(hits, adherence=0.5)
    title = plot.dose_response(table).emolab_info["title"]
    assert "brings 0.98 of texts" in title and "Steering brings 0.98 [" in say.dose_response(table)


def test_where_steering_does_no_more_than_a_random_push_no_difference_was_found():
    said = say.dose_response(swept((0, 1, 1), (0, 1, 1), random=1.0))
    assert "For fear and joy no difference from the random direction was found at any dose." in said
    assert "passes" not in said
    assert say.effect_forest(compare(swept((0, 0, 0), (0, 0, 0)))).verdict.startswith("No difference from the random")


def test_effects_count_what_is_significant_and_name_the_largest():
    table = made.differences().assign(q=0.5, difference=0.1, lo=-0.1, hi=0.3)
    joy = (table["emotion"] == "joy") & (table["alpha"] == 2)
    table.loc[joy, ["q", "difference", "lo", "hi"]] = 0.01, 0.6, 0.4, 0.8
    said = say.effect_forest(table)
    assert said.verdict == (
        "The vector does more than the random direction (q < .05) for 0 at dose 0.5, 0 at dose 1 and 1 at dose 2, of 5 "
        "emotions."
    )
    assert said.endswith("The largest difference is that of joy at dose 2, +0.60 [+0.40, +0.80].")


def test_naming_counts_the_word_the_blind_judge_and_texts_without_the_word():
    table = swept()
    table["named"] = (table["query_id"] < "q4") & (table["alpha"] == 2) & (table["control"] == "none")
    table["blind_top"] = np.where(table["query_id"] < "q2", NEUTRAL, table["top"])
    said = say.naming(table)
    assert said.verdict.startswith("At dose 2, 0.50 [") and "reads the target in 0.75 [" in said
    assert said.endswith("Of the 8 texts without the name 1.00 [0.51, 1.00] are read as the target.")


def test_settings_whose_intervals_overlap_are_not_ranked():
    few = {(e, c, 1): s for e in ("joy", "fear") for c, s in (("none", 0.5), ("random", 0.25))}
    both = pd.concat([texts(few, site="attn"), texts({**few, ("joy", "none", 1): 0.75}, site="resid")])
    said = say.site_map(both.reset_index(drop=True))
    assert said.verdict.startswith("Beyond the random direction the target is read most with resid: +0.38")
    assert said.endswith("Their intervals overlap: no difference between them was found.")


def test_equal_effect_takes_the_dose_nearest_to_the_instruction_and_says_what_it_costs():
    table = swept((0, 0.5, 1), (0, 0.5, 1)).assign(blind_top=lambda t: t["top"], repetition=0.0, refusal=False)
    table.loc[table["alpha"] == 1, "adherence"] = 0.4
    told = texts({("joy", "x", 0): 0.5, ("fear", "x", 0): 0.5}, adherence=0.6, named=True, blind_top=NEUTRAL)
    told = told.rename(columns={"emotion": "condition"}).assign(repetition=0.0, refusal=False)
    equal = equal_effect({"frames": table}, told)
    assert equal.loc["frames", ["alpha", "target", "adherence_kept"]].tolist() == [1, 0.5, 0.5]
    assert equal.loc["instruction", "named"] == 1 and equal.loc["instruction", "n"] == 16
    said = say.sources(equal)
    assert said.verdict == (
        "Near the effect of the instruction (0.50 on target, 75% of the adherence, the emotion named in 100%), frames "
        "keep most of the topic: 50% of the adherence."
    )
    assert said.endswith(
        "Frames at dose 1: 0.50 on target (blind judge 0.50), 50% of the adherence, the emotion named in 0%."
    )
    with pytest.raises(ValueError, match="holds no steered and unsteered texts"):
        equal_effect({"frames": table[table["alpha"] > 0]}, told)


def test_shares_by_any_column():
    said = say.shares(swept().query("alpha == 1"), by="control")
    assert said.verdict == (
        "The target is read in 0.50 [0.50, 0.50] (the vector) and 0.00 [0.00, 0.32] (random direction) of the texts."
    )
    assert said.endswith("Adherence to the question is 0.80 (the vector) and 0.80 (random direction).")


def test_probes_and_words_whose_intervals_overlap_do_not_differ():
    words = made.words().assign(lo=0.4, hi=0.6)
    probe = made.probes().assign(accuracy=0.55, lo=0.5, hi=0.7)
    assert say.probe_curve(probe, words=words).endswith("The two intervals overlap: no difference was found.")
    assert say.probe_curve(probe.assign(lo=0.65, hi=0.7), words=words).endswith("The two intervals lie apart.")


def test_neighbours_and_maps_say_where_there_are_no_groups():
    purity = made.purity()
    assert "share their question most at layer" in say.neighbours(purity)
    nothing = say.neighbours(purity.assign(null_hi=0.9))
    assert nothing.verdict == "Neighbours do not share their question more than under shuffled labels, at any layer."
    assert say.response_map(made.map_scores().assign(silhouette=0.01)).verdict.startswith("The answers do not group")
    assert say.response_map(made.map_scores().assign(silhouette=0.2)).verdict.startswith(
        "The answers group by condition"
    )


def test_vectors_that_turn_at_one_layer():
    vectors = made.make_vectors(6)
    x = vectors.get("resid")
    x[:, :4], x[:, 4:] = x[:, :1], x[:, 5:]
    said = say.layer_map(vectors, part="whole")
    assert said.verdict.startswith("The vectors change most between layers 3 and 4 (cosine ")
    assert "neighbouring layers have 1.00 in the median" in said


def test_heads_are_named_and_random_ones_stand_beside():
    effects = made.effects().assign(
        n=8, name=lambda t: [f"L{a}H{b}" for a, b in zip(t["layer"], t["head"], strict=True)]
    )
    nothing = say.head_forest(effects.assign(q=0.5))
    assert "For joy no single head differs from random directions (q < .05)." in nothing
    one = effects.assign(q=0.5, share=0.1)
    which = (one["name"] == "L2H3") & (one["emotion"] == "joy")
    one.loc[which, ["q", "share", "effect", "lo", "hi"]] = 0.01, 0.4, 0.8, 0.5, 1.1
    assert "For joy most comes with L2H3 (40%, +0.80 [+0.50, +1.10] nats)." in say.head_forest(one)
    curve = say.ablation_curve(made.ablation())
    assert curve.verdict.startswith("With 4 heads ablated 0.20 [0.10, 0.30] of the emotion is kept")
    assert curve.endswith("The ranked heads matter more than random ones for anger, joy and calm.")
    same = made.ablation().assign(lo=0.0, hi=1.0)
    assert say.ablation_curve(same).endswith("No difference between ranked and random heads was found for any emotion.")


def test_neurons_are_told_beside_random_ones():
    curve = say.ablation_curve(made.neuron_curve())
    assert curve.verdict.startswith("With 40 neurons ablated 0.20 [0.10, 0.30] of the emotion is kept")
    assert "as many random neurons of the same layers 0.60 [0.50, 0.70]" not in curve
    both = say.heads_or_neurons(made.ablation(), made.neuron_curve())
    assert both.verdict == "Of the numbers tried, 4 heads and 40 neurons are the fewest that carry half of the emotion."
    assert "40 neurons leave, when ablated, 0.20 [0.10, 0.30] of the emotion, as many random ones" in both
    few = made.neuron_curve().assign(kept=lambda t: t["kept"].clip(lower=0.6))
    assert say.heads_or_neurons(made.ablation(), few).verdict.endswith("of the emotion; no number of neurons does.")
    none = say.heads_or_neurons(made.ablation().assign(kept=0.9), few).verdict
    assert none == "No number of heads and neurons carries half of the emotion."
    said = say.sublayers(made.sublayer_table())
    assert said.verdict.startswith("For joy all attention layers write 0.10 of the vector (random directions at most")
    assert "with them 50% of the emotion (-1.00 [-1.20, -0.60] nats; along random directions -0.10); all MLPs" in said
    assert "take with them 0% of the emotion (+0.00 [-0.20, +0.40] nats" in said
    assert said.count("no difference was found") == 2
    words = pd.DataFrame({"emotion": "joy", "name": ["L0N0", "L0N0", "L0N1", "L0N2"], "rank": 2, "direction": "raised"})
    words = words.assign(token=[" Happy", "sad", "glad", "happiness"])
    assert say.neuron_words(words, {"joy": ["happy", "glad"], "sadness": ["sad"]}) == (
        "Of 3 neurons that write joy, 2 raise a word of it among their first 2, and 1 one of another emotion."
    )
    neurons = pd.DataFrame({"emotion": "joy", "name": ["L0N0", "L0N1", "L1N0"], "direct": [0.1, 0.3, -0.2]})
    assert say.neuron_map(neurons, top=(1, 2, 10)) == (
        "For joy the 1 and 2 neurons that write most of the last layer's vector write 0.30 and 0.40 of it, and all 3 "
        "together 0.20; first come L0N1, L0N0 and L1N0."
    )


def test_of_too_few_questions_the_sentence_says_that_they_can_tell_nothing():
    few = "4 questions are too few to find a difference by: no p below 0.125 is possible."
    effects = made.effects().assign(name=lambda t: t["layer"].astype(str) + "." + t["head"].astype(str), q=0.125)
    heads = say.head_forest(effects.assign(n=4))
    assert heads.verdict == few and "no single head" not in heads and "for every emotion" not in heads
    enough = say.head_forest(effects.assign(n=6))
    assert "too few" not in enough and enough.count("no single head differs") == 3
    assert say.sublayers(made.sublayer_table().assign(n=4)).endswith(few)
    assert say.effect_forest(made.differences().assign(n=4, q=0.125)).endswith(few)
    assert "too few" not in say.effect_forest(made.differences().assign(q=0.125))
    found = made.differences().assign(q=0.01)
    assert say.effect_forest(found.set_axis([0] * len(found))) == say.effect_forest(found)


def test_affect_is_told_with_its_nulls():
    said = say.circumplex(made.affect_points())
    assert "valence r = 0.90 (ratings permuted: up to 0.20)" in said
    assert "Of arousal no more is read than by chance." in said and said.endswith("Rand index 0.40 (0 by chance).")
    curve = say.affect_curve(made.affect_fit())
    assert "r = 0.80 [0.70, 0.90], permuted ratings 0.25 at most; from other frames 0.80" in curve.verdict
    assert curve.verdict.endswith("the word's input embedding gives 0.50, which is less.")
    near = made.affect_fit()
    near.loc[near["method"] == "word embedding", "r"] = 0.75
    assert "no more than the word was found" in say.affect_curve(near)
    shift = say.affect_shift(made.affect_shifts())
    assert "valence by -1.00 [-1.20, -0.80] at dose -1 and +1.00 [+0.80, +1.20] at dose 1 (random" in shift.verdict
    assert "no difference between the ends was found" in shift and "no difference" not in shift.verdict


def test_two_models_are_told_with_null_ceiling_and_controls():
    maps, doses = made.two_maps(), made.two_doses()
    values = {"value": 0.8, "null_hi": 0.4, "p": 0.008, "halves": 0.5, "ceiling": 0.6}
    maps = maps.assign(**values, halves_lo=0.3, halves_hi=0.7, ceiling_lo=0.4, ceiling_hi=0.8)
    maps.loc[maps["measure"] == "cka", "p"] = 0.4
    said = say.two_models(maps, doses)
    assert said.verdict == (
        "The maps of emotions of mini and mini, tuned are alike beyond permuted labels by RSA and cosine of the "
        "vectors: RSA 0.80 (permuted up to 0.40, p = 0.008); CKA of the answers 0.80 (permuted up to 0.40, p = 0.400); "
        "cosine of the vectors 0.80 (permuted up to 0.40, p = 0.008), means over layers."
    )
    assert "with itself (middle 95 % of splits): RSA 0.50 [0.30, 0.70] against 0.60 [0.40, 0.80]; CKA" in said
    assert "brings 0.40 [0.32, 0.48] of the texts of mini and 0.50 [0.42, 0.58] of those of mini, tuned" in said
    assert "(random directions 0.04 [-0.04, 0.12] and 0.14 [0.06, 0.22]); difference +0.10 [+0.02, +0.18]. Bey" in said
    assert "that is +0.40 [+0.32, +0.48] for mini and +0.50 [+0.42, +0.58] for mini, tuned; difference +0.10" in said
    assert said.endswith("unsteered fear +0.10 [+0.02, +0.18] and joy +0.10 [+0.02, +0.18] differ.")
    same = say.two_models(maps.assign(p=0.2, halves=np.nan), doses.assign(lo=-1.0))
    assert "tuned are not alike beyond permuted labels: RSA" in same.verdict and "itself" not in same
    assert "+0.10 [-1.00, +0.18]: no difference was found. Beyond" in same
    assert same.endswith("For single emotions unsteered no difference was found.")


SAID = {
    "two_models": lambda: say.two_models(made.two_maps(), made.two_doses()),
    "circumplex": lambda: say.circumplex(made.affect_points()),
    "affect_curve": lambda: say.affect_curve(made.affect_fit()),
    "affect_shift": lambda: say.affect_shift(made.affect_shifts()),
    "norms": lambda: say.norms(made.make_vectors()),
    "cosine_map": lambda: say.cosine_map(made.make_vectors(), [0, 2]),
    "layer_map": lambda: say.layer_map(made.make_vectors(6)),
    "shared_energy_curve": lambda: say.shared_energy_curve({"resid": made.shared_energy()}),
    "agreement_curve": lambda: say.agreement_curve({"a and b": made.by_layer(cosine=0.5, mismatched=-0.1, random=0.1)}),
    "reliability_curve": lambda: say.reliability_curve({"specific": made.reliability()}),
    "without_confounds": lambda: say.without_confounds(made.by_layer(cosine=0.8, kept=0.6, null_kept=1.0)),
    "confound_curve": lambda: say.confound_curve(made.confounded()),
    "instruction_following": lambda: say.instruction_following(made.answers()),
    "judge_agreement": lambda: say.judge_agreement(made.agreement()),
    "purity_dots": lambda: say.purity_dots(made.parts()),
    "head_umap": lambda: say.head_umap(made.head_cosines()),
    "dose_response": lambda: say.dose_response(made.scored()),
    "tradeoff": lambda: say.tradeoff(made.methods()),
}


@pytest.mark.parametrize("name", SAID)
def test_every_sentence_is_whole(name):
    said = SAID[name]()
    assert said[0].isupper() and said.endswith(".") and " nan" not in said and "  " not in said
    assert any(letter.isdigit() for letter in said.verdict)


UNKNOWN = {
    "two_models": lambda: say.two_models(made.two_maps().assign(value=np.nan), made.two_doses()),
    "norms": lambda: say.norms(unknown_norms()),
    "cosine_map": lambda: say.cosine_map(made.make_vectors().select(["joy"])),
    "layer_map": lambda: say.layer_map(made.make_vectors(1)),
    "reliability_curve": lambda: say.reliability_curve({"specific": made.reliability().assign(cosine=np.nan)}),
    "response_map": lambda: say.response_map(made.map_scores().assign(silhouette=np.nan)),
    "head_forest": lambda: say.head_forest(made.effects().assign(n=0)),
    "confound_curve": lambda: say.confound_curve(made.unknown(made.confounded())),
}


def unknown_norms():
    """Of an import that does not know how long the residual stream is."""
    vectors = made.make_vectors()
    return EmotionVectors({"resid": vectors.get("resid")}, vectors.emotions, 0 * vectors.resid_norm, vectors.meta)


@pytest.mark.parametrize("name", UNKNOWN)
def test_where_nothing_was_measured_the_sentence_says_so(name):
    assert UNKNOWN[name]() == "No value was measured."


def test_a_head_is_strong_for_every_emotion_only_where_each_was_told_from_chance():
    effects = made.effects().assign(n=8, q=0.5, share=0.1)
    effects["name"] = [f"L{a}H{b}" for a, b in zip(effects["layer"], effects["head"], strict=True)]
    one = (effects["name"] == "L2H3") & (effects["emotion"] == "joy")
    assert say.head_forest(effects.assign(q=np.where(one, 0.01, 0.5))).endswith("for every emotion: none.")
    every = effects.assign(q=np.where(effects["name"] == "L2H3", 0.01, 0.5))
    assert say.head_forest(every).endswith("for every emotion: L2H3.")


def test_texts_that_a_judge_cannot_read_are_no_misses():
    told = texts({("joy", "x", 0): 1.0}).rename(columns={"emotion": "condition"})
    told.loc[told["query_id"] >= "q4", "top"] = "unread"
    assert "instructed 1.00 [" in say.dose_response(swept().query("emotion == 'joy'"), reference=told)


def test_methods_stand_in_their_order_at_their_best_and_at_equal_damage():
    said = say.tradeoff(made.methods())
    assert said.verdict.startswith("At its best dose the overall score is: instruction 0.90 [0.81, 0.99], lora 0.80")
    assert (
        "At equal damage the overall score is: instruction 0.90" in said
        and "unsteered" not in said.split("At equal damage")[1]
    )


def test_heads_group_by_what_is_more_alike():
    table = made.head_cosines()
    assert "group by what each head does, not by emotion: cosine 0.60 for one head" in say.head_umap(table)
    turned = table.assign(alike=table["alike"].replace({"head": "emotion", "emotion": "head"}))
    assert "group by emotion: cosine 0.10 for one head" in say.head_umap(turned)


def test_confounds_that_explain_no_more_than_chance_are_named():
    table = made.confounded()
    table.loc[table["factor"] == "tense", "null_hi"] = 0.9
    assert "tense explain no more than by chance." in say.confound_curve(table)


def test_vectors_beyond_the_instruction_are_those_of_the_emotion_that_it_brings_worst():
    told = texts({("joy", "x", 0): 1.0, ("fear", "x", 0): 0.25}).rename(columns={"emotion": "condition"})
    said = say.beyond_instruction({"own": swept((0, 1, 1), (0, 0, 0.5)), "frames": swept((0, 0, 0), (0, 1, 0))}, told)
    assert said == (
        "Told to, the model writes fear in 0.25 [0.07, 0.59] of its answers; vectors of frames reach 1.00 [0.68, 1.00] "
        "at dose 1."
    )
