"""Filters, one by one: what each drops, the figures it gives, and that neither hostile nor long texts trouble it."""

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from pipeline.filters import FILTERS, wrong_step
from pipeline.records import Example
from pipeline.shots import FewShot
from pipeline.text import normalise, words
from tests.rows import example, judgement, votes

SPLIT = votes("sports", "food", "sports", "\x1b[2J" * 30, "travel")
GOAL = "Late goal sinks the leaders"
LOOP = "The sacks were not harvested. "
LONG_SENTENCE = " ".join(f"w{number:03}" for number in range(43)) + ". "
GERMAN = "Der Text handelt von einem Spiel, das in der letzten Minute entschieden wurde."
PROMPT = {"prompt": "a.jinja"}
CHOICE = {"label_type": "choice"}
EQUATION = {"label_type": "equation"}
CHOICES = {"choices": ["river", "bank"], "label": "river"}
EXAMPLES = ["The text is about a red card in a match.", "Peel the pears and poach them."]
CARD, IBAN = "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00"


def sure(mean_logprob: float) -> dict[str, Any]:
    """Two votes, of which the second is that of the kept response."""
    first, second = votes("sports", "sports")
    return {
        "votes": [first.changed(mean_logprob=-9.0), second.changed(mean_logprob=mean_logprob)],
        "response": second.response,
    }


CASES: list[tuple[str, dict[str, Any], dict[str, Any], str | None]] = [
    ("label_in_set", {"label": "football"}, {"labels": ["sports", "food"]}, "the label 'football' is not among sports, food"),
    ("label_in_set", {"label": "sports"}, {"labels": ["sports", "food"]}, None),
    ("label_in_set", {"label": "(b) banck", "choices": ["river", "bank"]}, {}, "the label '(b) banck' is not among river, bank"),
    ("label_in_set", {"label": "food", "choices": ["river", "bank"]}, {"labels": ["food"]}, "'food' is not among river, bank"),
    ("label_in_set", {"label": "bank", "choices": ["river", "bank"]}, {"labels": ["sports"]}, None),
    ("label_in_set", {"label": "anything"}, {}, None),
    ("label_in_set", {"label": None}, {"labels": ["sports"]}, None),
    ("label_has_value", {"label": "some - 8"}, EQUATION, "the label 'some - 8' is no equation that has a value"),
    ("label_has_value", {"label": "4 / 0"}, EQUATION, "the label '4 / 0' is no equation that has a value"),
    ("label_has_value", {"label": "(4 - 1) / 2"}, EQUATION, None),
    ("label_has_value", {"label": "twelve"}, {"label_type": "number"}, "the label 'twelve' is no number that has a value"),
    ("label_has_value", {"label": "-12.5"}, {"label_type": "number"}, None),
    ("label_has_value", {"label": "sports"}, {"label_type": "text"}, None),
    ("matches_gold", {"label": "sports", "gold": "food"}, {}, "the label 'sports' differs from the true label 'food'"),
    ("matches_gold", {"label": "sports", "gold": "Sports"}, {}, None),
    ("matches_gold", {"label": "84 / 2", "gold": "( 84.0 / 2.0 )"}, EQUATION, None),
    ("matches_gold", {"label": "84 / 2", "gold": "2 / 84"}, EQUATION, "differs from the true label '2 / 84'"),
    ("matches_gold", {"label": "x / 2", "gold": "x / 2"}, EQUATION, "the label 'x / 2' differs"),
    ("matches_gold", {"label": "sports", "gold": None}, {}, None),
    ("matches_gold", {"label": None, "gold": "food"}, {}, None),
    ("finish_reason", {"finish_reason": "length"}, {}, "the response ended with 'length', not with stop or recorded"),
    ("finish_reason", {"finish_reason": "recorded"}, {}, None),
    ("finish_reason", {"finish_reason": "length"}, {"allowed": ["length"]}, None),
    ("min_words", {"rationale": "Sports, clearly."}, {}, "the rationale has 2 words, fewer than 4"),
    ("min_words", {"rationale": ""}, {}, "the rationale has 0 words, fewer than 4"),
    ("min_words", {"rationale": "One two three four"}, {}, None),
    ("min_words", {"rationale": None}, {}, None),
    ("max_words", {"rationale": "one two three"}, {"maximum": 2}, "the rationale has 3 words, more than 2"),
    ("max_words", {"rationale": "one two"}, {"maximum": 2}, None),
    ("max_words", {"rationale": None}, {"maximum": 0}, None),
    ("tokens", {"rationale": "one two three"}, {"maximum": 2}, "the rationale has 3 tokens, more than 2"),
    ("tokens", {"rationale": "one two three"}, {"minimum": 4}, "the rationale has 3 tokens, fewer than 4"),
    ("tokens", {"rationale": "one two three"}, {"minimum": 3, "maximum": 3}, None),
    ("tokens", {"rationale": None}, {"minimum": 3}, None),
    ("repeats_label", {"rationale": "The answer is sports, so the topic is Sports."}, {}, "only repeats the label 'sports'"),
    ("repeats_label", {"rationale": "The topic is this."}, {}, "only repeats the label 'sports'"),
    ("repeats_label", {"rationale": "A goal is sports."}, {}, None),
    ("repeats_label", {"rationale": ""}, {}, None),
    ("repeats_input", {"input": GOAL, "rationale": "LATE goal sinks the leaders!"}, {}, "3 of the rationale's 3 runs of three"),
    ("repeats_input", {"input": "Don't sink the ship", "rationale": "dont sink the ship"}, {}, "2 of the rationale's 2 runs"),
    ("repeats_input", {"input": "It is 1,200 now", "rationale": "it is 1200 now"}, {}, "2 of the rationale's 2 runs"),
    ("repeats_input", {"input": GOAL, "rationale": "A late goal sinks the leaders"}, {}, None),
    ("repeats_input", {"input": GOAL, "rationale": "A late goal sinks the leaders"}, {"maximum": 0.75}, None),
    ("repeats_input", {"input": GOAL, "rationale": "A late goal sinks the leaders"}, {"maximum": 0.5}, "3 of the rationale's 4 runs"),
    ("repeats_input", {"rationale": "A goal"}, {"maximum": 0.0}, None),
    ("repeats_input", {"rationale": None}, {}, None),
    ("copies_example", {"rationale": "The text is about a red card in a match."}, PROMPT, "6 of the rationale's 6 runs of five"),
    ("copies_example", {"rationale": "The text is about a red card in a long match."}, PROMPT, None),
    ("copies_example", {"rationale": "is about a red card Peel the pears and poach them"}, PROMPT, None),
    ("copies_example", {"rationale": "Here they poach the pears in wine!"}, {"few_shot": "shots.jsonl"}, "3 of the rationale's 3 runs"),
    ("copies_example", {"rationale": "The text is about a red card in a match."}, {}, None),
    ("copies_example", {"rationale": None}, PROMPT, None),
    ("repetition", {"rationale": LOOP * 8}, {}, "stand there 8 times and hold 16.8% of 1000 characters, more than 16%"),
    ("repetition", {"rationale": LONG_SENTENCE * 2}, {}, "runs of 5 words said before hold 17.2% of 1000 characters, more than 15%"),
    ("repetition", {"rationale": LONG_SENTENCE}, {}, None),
    ("repetition", {"rationale": "Bottle caps. " * 22}, {}, "'bottle caps' stand there 22 times and hold 22.0% of 1000 characters"),
    ("repetition", {"rationale": LOOP * 2}, {}, None),
    ("repetition", {"rationale": LOOP * 2}, {"shortest": 50}, "stand there 2 times"),
    ("repetition", {"rationale": "\n".join(["One.", "Two."] * 3)}, {}, "4 of 6 lines repeat an earlier one, more than 30% of 10"),
    ("repetition", {"rationale": "\n".join(["One.", "Two."] * 2)}, {}, None),
    ("repetition", {"rationale": "a b.\n" + "x" * 300 + "\n" + "x" * 300}, {}, "lines said before hold 30.0% of 1000 characters"),
    ("repetition", {"rationale": "It is a late goal goal goal goal goal"}, {}, "the words 'goal' stand there 5 times in a row"),
    ("repetition", {"rationale": "It is a late goal goal goal goal"}, {}, None),
    ("repetition", {"rationale": "It is a late goal goal goal goal"}, {"in_a_row": 4}, "the words 'goal' stand there 4 times in a row"),
    ("repetition", {"rationale": "A goal. " + "So it is, so he says. " * 5}, {}, "the words 'so it is so he says' stand there 5 times"),
    ("repetition", {"rationale": "5 + 5 + 5 + 5 + 5 + 5 + 5 = 35"}, {}, None),
    ("repetition", {"rationale": "5 cents + " * 7 + "5 cents = 40 cents"}, {}, None),
    ("repetition", {"rationale": "So 5 + 5 = 10. " + "5 + 5 = 10. " * 5}, {}, "stand there 6 times in a row"),
    ("repetition", {"rationale": "1 " * 20}, {}, "the words '1' stand there 20 times in a row"),
    ("repetition", {"label": None, "rationale": None, "text": LOOP * 8}, {}, "stand there 8 times"),
    ("other_conclusion", {**CHOICES, "rationale": "So the answer is (b)."}, CHOICE, "it concludes 'bank', and the label is 'river'"),
    ("other_conclusion", {**CHOICES, "rationale": "The answer must be Bank because of the money."}, CHOICE, "it concludes 'bank'"),
    ("other_conclusion", {**CHOICES, "rationale": "The answer is bank. No, the answer is (a) river."}, CHOICE, None),
    ("other_conclusion", {**CHOICES, "rationale": "The answer must be a place that holds money."}, CHOICE, None),
    ("other_conclusion", {**CHOICES, "rationale": "The answer is either (a) or (b)."}, CHOICE, None),
    ("other_conclusion", {"rationale": "It has a goal, so the topic is food."}, {"labels": ["sports", "food"]}, "it concludes 'food'"),
    ("other_conclusion", {"rationale": "The answer is clear."}, {}, None),
    ("other_conclusion", {**CHOICES, "rationale": "Of the above, only a bank holds money."}, CHOICE, "it concludes 'bank', and"),
    ("other_conclusion", {**CHOICES, "rationale": "Of the above, only a bank or a mill is built."}, CHOICE, None),
    ("other_conclusion", {**CHOICES, "rationale": "Only the bank and river are near, only banks."}, CHOICE, None),
    ("other_conclusion", {**CHOICES, "rationale": "Of the above, only the bank of a river is wet."}, CHOICE, None),
    ("other_conclusion", {**CHOICES, "rationale": "Not only a bank is near."}, CHOICE, None),
    ("other_conclusion", {**CHOICES, "rationale": "It is wet, and only bankers are not."}, CHOICE, None),
    ("other_conclusion", {"choices": ["lose it", "losing"], "label": "lose it", "rationale": "So only losing fits."}, CHOICE, None),
    ("other_conclusion", {"label": "84 / 2", "rationale": "The answer is 43."}, EQUATION, "it concludes '43', and the label is '84 / 2'"),
    ("other_conclusion", {"label": "84 / 2", "rationale": "The answer is 42.0."}, EQUATION, None),
    ("other_conclusion", {"label": "x / 2", "rationale": "The answer is 42."}, EQUATION, None),
    ("other_conclusion", {"rationale": None}, {}, None),
    ("wrong_step", {"rationale": "So 7 * 36 = 225."}, {}, "7 * 36 = 225, but it is 252"),
    ("wrong_step", {"rationale": None}, {}, None),
    ("last_value", {"label": "84 / 2", "rationale": "84 / 2 = 42, and 42 + 1 = 43."}, EQUATION, "to 43, and the label '84 / 2' to 42"),
    ("last_value", {"label": "84 / 2", "rationale": "42 + 1 = 43 and 84 / 2 = 42."}, EQUATION, None),
    ("last_value", {"label": "20 / 3", "rationale": "20 / 3 = 6.67"}, EQUATION, None),
    ("last_value", {"label": "3 - 5", "rationale": "5 - 3 = 2 are lost."}, EQUATION, None),
    ("last_value", {"label": "84 / 2", "rationale": "That is 43."}, EQUATION, None),
    ("last_value", {"label": "food", "rationale": "1 + 1 = 3"}, {}, None),
    ("refusal", {"rationale": "I’m sorry, but I cannot say."}, {}, "the teacher declines: 'i am sorry but i'"),
    ("refusal", {"rationale": "As an AI model I have no view."}, {}, "the teacher declines: 'as an ai'"),
    ("refusal", {"rationale": "It was as an aid to the team."}, {}, None),
    ("refusal", {"rationale": "It says 'I am unable to'.", "input": "I am unable to log in"}, {}, None),
    ("refusal", {"rationale": "No comment on that one."}, {"phrases": ["no comment"]}, "the teacher declines: 'no comment'"),
    ("refusal", {"label": None, "rationale": None, "text": "I can't help with this."}, {}, "the teacher declines"),
    ("refusal", {"rationale": "That is for others.", "input": "Is it?"}, {}, None),
    ("boilerplate", {"rationale": "It is a goal. I hope this helps!"}, {}, "it speaks to whoever asked: 'i hope this helps'"),
    ("boilerplate", {"rationale": "They say: let me know if you come.", "input": "Let me know if you come"}, {}, None),
    ("boilerplate", {"rationale": "It helps, I hope."}, {}, None),
    ("run_on", {"rationale": "A goal.\n\nQ: What is"}, {}, "it runs on with 'Q: What is'"),
    ("run_on", {"rationale": "A goal.\n**Example 12:** Late"}, {}, "it runs on with '**Example 12:** Late'"),
    ("run_on", {"rationale": "A goal.\nText: Late"}, {"marks": ["Text:"]}, "it runs on with 'Text: Late'"),
    ("run_on", {"rationale": "Q: is it sports?\nA goal is one. FAQ: none"}, {}, None),
    ("chat_tokens", {"rationale": "A goal.<|im_end|>"}, {}, "it holds the token '<|im_end|>'"),
    ("chat_tokens", {"rationale": "A goal.", "text": "[INST] A goal."}, {}, "it holds the token '[INST]'"),
    ("chat_tokens", {"rationale": "The tag <s> strikes.", "input": "What does <s> do?"}, {}, None),
    ("chat_tokens", {"rationale": "a < b and [c] is"}, {}, None),
    ("chat_tokens", {"rationale": "A goal. ### Response: It"}, {}, "it holds the token '### Response:'"),
    ("chat_tokens", {"rationale": "A goal ###"}, {"tokens": ["###"]}, "it holds the token '###'"),
    ("broken_text", {"rationale": "A caf\ufffd is"}, {}, "it holds the character U+FFFD at place 6"),
    ("broken_text", {"rationale": "A\x00b"}, {}, "it holds the character U+0000 at place 2"),
    ("broken_text", {"rationale": "A\u200bb"}, {}, "it holds the character U+200B at place 2"),
    ("broken_text", {"rationale": "Tab\tand\r\nline, é, 你好, a\u200cb 👩\u200d🍳"}, {}, None),
    ("private_data", {"rationale": "Write to jo.doe@uni-bonn.de now."}, {}, "it holds an e-mail address, at characters 10 to 27"),
    ("private_data", {"rationale": "Write to jo@example.com now."}, {}, None),
    ("private_data", {"rationale": "Call +44 20 7946 0958 now."}, {}, "it holds a telephone number, at characters 6 to 21"),
    ("private_data", {"rationale": "Call +44 20 7946 0958 12 times."}, {}, "it holds a telephone number, at characters 6 to 21"),
    ("private_data", {"rationale": "So 3 +44 20 7946 0958 4 - 1 = 3"}, {}, "it holds a telephone number, at characters 6 to 21"),
    ("private_data", {"rationale": "So 1 +44 20 30 12 99 = 12"}, {}, None),
    ("private_data", {"rationale": "Call (650) 253-0000 now."}, {}, None),
    ("private_data", {"rationale": "Call (650) 253-0000 now."}, {"region": "US"}, "a telephone number, at characters 6 to 19"),
    ("private_data", {"rationale": f"Charge {CARD}."}, {}, "it holds the number of a payment card, at characters 8 to 26"),
    ("private_data", {"rationale": "Charge 4111 1111 1111 1112."}, {}, None),
    ("private_data", {"rationale": f"Pay to {IBAN}."}, {}, "it holds an IBAN, at characters 8 to 34"),
    ("private_data", {"rationale": "Pay to DE88 3704 0044 0532 0130 00."}, {}, None),
    ("private_data", {"rationale": "It came from 8.8.8.8."}, {}, "it holds an IP address, at characters 14 to 20"),
    ("private_data", {"rationale": "Write to jo.doe@uni-bonn.de."}, {}, "it holds an e-mail address, at characters 10 to 27"),
    ("private_data", {"rationale": "Section 1.2.3.4.5 and 192.168.0.1 at 12:30:45"}, {}, None),
    ("private_data", {"rationale": f"The key is ghp_{'a1' * 18}"}, {}, "it holds a secret key, at characters 12 to 51"),
    ("private_data", {"rationale": "The key is AKIAABCDEFGHIJKLMNOP."}, {}, "it holds a secret key, at characters 12 to 31"),
    ("private_data", {"rationale": f"The key is sk-{'task-management-system' * 2}"}, {}, None),
    ("private_data", {"rationale": f"Charge {CARD}."}, {"kinds": ["email"]}, None),
    ("secrets", {"rationale": f"The key is {'gh' + 'p_' + 'a1' * 18}"}, {}, "a secret (GitHub Token), at characters 12 to 51"),
    ("secrets", {"rationale": "The password is too long."}, {}, None),
    ("private_data", {"rationale": f"Charge {CARD}.", "input": f"Is {CARD} valid?"}, {}, None),
    ("private_data", {"rationale": f"Charge {CARD}.", "input": f"Is {CARD} valid?"}, {"given": True}, "payment card"),
    ("language", {"rationale": GERMAN}, {}, "it is in de, not in en, the language of the input: 'Der Text"),
    ("language", {"rationale": GERMAN}, {"expected": "en"}, "it is in de, not in en: 'Der Text"),
    ("language", {"rationale": GERMAN}, {"expected": "de"}, None),
    ("language", {"rationale": GERMAN, "input": GERMAN}, {}, None),
    ("language", {"rationale": "这篇文章讲的是一场足球比赛的事。"}, {"expected": "en"}, "it is in zh, not in en"),
    ("language", {"rationale": "这是体育。"}, {"expected": "en"}, None),
    ("language", {"rationale": "Das ist Sport."}, {"expected": "en"}, None),
    ("language", {"rationale": "12 + 30 = 42, 42 * 2 = 84, 84 - 80 = 4"}, {"expected": "de"}, None),
    ("allow_list", {"rationale": "A goal."}, {"phrases": ["match"]}, "nothing of the allow list stands in the rationale"),
    ("allow_list", {"rationale": "A Match!"}, {"phrases": ["match"]}, None),
    ("allow_list", {"rationale": None}, {"phrases": ["match"]}, None),
    ("allow_list", {"label": "food"}, {"patterns": ["^sports$"], "where": ["label", "input"]}, "stands in the label or input"),
    ("block_list", {"rationale": "See Figure 3."}, {"patterns": ["Figure [0-9]"]}, "holds 'Figure 3', which is on the block list"),
    ("block_list", {"rationale": "A  STOCK, phrase"}, {"phrases": ["stock phrase"]}, "the rationale holds 'stock phrase'"),
    ("block_list", {"rationale": "Restocked phrases"}, {"phrases": ["stock phrase"]}, None),
    ("block_list", {"rationale": "He is called Bad Word."}, {"file": "blocked.txt"}, "the rationale holds 'bad word'"),
    ("block_list", {"input": "Bad word."}, {"file": "blocked.txt", "where": ["rationale", "input"]}, "the input holds 'bad word'"),
    ("block_list", {"rationale": None}, {"phrases": ["stock phrase"]}, None),
    ("marked_bad", {"id": "b1"}, {"file": "marks.jsonl"}, "marked bad: 'wrong\\x1b[2J match'"),
    ("marked_bad", {"id": "b2"}, {"file": "marks.jsonl"}, "marked bad, without a note"),
    ("marked_bad", {"id": "g1"}, {"file": "marks.jsonl"}, None),
    ("min_agreement", {"agreement": 0.4, "votes": SPLIT}, {}, "the label won 0.4 of the votes, less than 0.6: 'sports' 2, 'food' 1, '"),
    ("min_agreement", {"agreement": 0.6}, {}, None),
    ("min_agreement", {"agreement": 0.6}, {"minimum": 0.61}, "the label won 0.6 of the votes, less than 0.61"),
    ("min_agreement", {"agreement": None}, {}, None),
    ("max_entropy", {"entropy": 1.5, "votes": SPLIT}, {}, "the votes have an entropy of 1.5 bits, more than 1: 'sports' 2"),
    ("max_entropy", {"entropy": 1.0}, {}, None),
    ("max_entropy", {"entropy": 0.2}, {"maximum": 0}, "the votes have an entropy of 0.2 bits, more than 0"),
    ("max_entropy", {"entropy": None}, {"maximum": 0}, None),
    ("mean_logprob", sure(-2.5), {}, "the mean log-probability is -2.5, less than -2 (perplexity 12.18)"),
    ("mean_logprob", sure(-0.01), {"maximum": -0.05}, "the mean log-probability is -0.01, more than -0.05 (perplexity 1.01)"),
    ("mean_logprob", sure(-0.5), {}, None),
    ("mean_logprob", sure(float("-inf")), {}, "is not known"),
    ("mean_logprob", {"votes": []}, {}, "the log-probability of the response 'r1#0' is not known"),
    ("min_judge_score", {"judgement": judgement(2, "Vague.\x07")}, {}, "the judge gave 2, less than 3: 'Vague.\\x07'"),
    ("min_judge_score", {"judgement": judgement(3)}, {}, None),
    ("min_judge_score", {"judgement": judgement(4)}, {"minimum": 5}, "the judge gave 4, less than 5: 'It names what decides.'"),
    ("min_judge_score", {"judgement": None}, {"minimum": 1}, "it was not judged"),
]  # fmt: skip


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that splits at spaces, a prompt with two examples, a file of examples, a block list."""
    folder = tmp_path_factory.mktemp("filters")
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    blocks = {"user_1": "Q", "assistant_1": EXAMPLES[0], "user": EXAMPLES[1] + "\n\n{{ text }}"}
    (folder / "a.jinja").write_text(
        "\n".join(f"{{% block {name} %}}{text}{{% endblock %}}" for name, text in blocks.items())
    )
    (folder / "shots.jsonl").write_text(
        json.dumps({"text": "Pears", "why": "Here they poach the pears in wine.", "n": 1})
    )
    (folder / "blocked.txt").write_text("# a list\n\nBad word\nother\n")
    (folder / "marks.jsonl").write_text(
        '{"id": "b1", "mark": "bad", "note": "wrong\\u001b[2J match", "stage": "quality"}\n'
        '{"id": "b2", "mark": "bad"}\n{"id": "g1", "mark": "good"}\n'
    )
    return folder


def placed(name: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Settings with their files in ``folder``, and what a filter cannot do without."""
    given = dict(settings)
    given |= {knob: folder / given[knob] for knob in ("prompt", "file") if knob in given}
    given |= {"few_shot": FewShot(path=folder / given["few_shot"])} if "few_shot" in given else {}
    needed: dict[str, dict[str, Any]] = {
        "tokens": {"tokenizer": folder / "tokenizer.json"},
        "marked_bad": {"file": folder / "marks.jsonl"},
        "allow_list": {} if given else {"phrases": ["text"]},
        "block_list": {} if given else {"patterns": ["(?!)"]},
    }
    return needed.get(name, {}) | given


@pytest.mark.parametrize(("name", "fields", "settings", "why"), CASES)
def test_filters(name: str, fields: dict[str, Any], settings: dict[str, Any], why: str | None, folder: Path) -> None:
    found = FILTERS[name](example(**fields), **placed(name, settings, folder))
    assert found is None if why is None else found is not None and why in found


def test_every_filter_passes_a_good_row_and_is_tried_both_ways(folder: Path) -> None:
    good = example(agreement=1.0, entropy=0.0, judgement=judgement(), **sure(-0.5))
    assert {name: function(good, **placed(name, {}, folder)) for name, function in FILTERS.items()} == dict.fromkeys(
        FILTERS
    )
    assert (
        {case[0] for case in CASES if case[3]}
        == {case[0] for case in CASES if not case[3]} | {"wrong_step"}
        == set(FILTERS)
    )


@pytest.mark.parametrize("name", FILTERS)
def test_a_docstring_says_first_what_is_dropped(name: str) -> None:
    lines = (FILTERS[name].__doc__ or "").split("\n\n")[0]
    assert len(lines) > 20 and lines.rstrip().endswith((".", '".'))


DECLINED = """\
I'm unable to answer that.|I am really not able to help.|Unfortunately, I see no way.|It would not be appropriate for me to say.|
This goes against my guidelines.|I do not have enough information to tell.|I must respectfully decline.|I'd rather not choose.|
I’m afraid I can’t determine it.|I won't be able to assist.|We are unable to provide one.|Your request cannot be fulfilled.|
I lack the context needed.|My apologies, but no.|I'm just an AI.|I've no way of knowing.|Unable to comply."""
SPOKEN_OF = """\
We cannot determine the order from the first clue.|I cannot find my keys when they are lost.|It is inappropriate to laugh there.|
It is against the rules to run.|He is unable to help.|A person who cannot answer asks.|I can't help but laugh.|He refused to comply.|
The policy of the store is to help.|I do not have any apples left.|We cannot divide by zero.|The mentally ill refuse help."""


@pytest.mark.parametrize("text", [text.strip() for text in DECLINED.split("|")])
def test_declining_is_found_in_its_many_forms_unless_the_input_holds_it(text: str) -> None:
    assert "the teacher declines: " in str(
        FILTERS["refusal"](example(rationale=f"Well. {text}" if text[0] != "U" else text))
    )
    assert FILTERS["refusal"](example(rationale=text, input=f"He said: {text}")) is None


@pytest.mark.parametrize("text", [text.strip() for text in SPOKEN_OF.split("|")])
def test_what_cannot_be_done_is_no_refusal(text: str) -> None:
    assert FILTERS["refusal"](example(rationale=text)) is None


STEPS_RIGHT = """\
84 / 2 = 42.|So 22 + 8 = 30 bottle caps|2 + 3 = 5 * 4 = 20|17 + 15 + 2 = 34 kids|$3.50 x 2 = $7|20/3 = 6.67|20 / 3 = 6.66|
7 / 2 = 3 remainder 1|1,200 + 300 = 1,500|20% of 50 = 10|30/120 = 25%|30/120 * 100 = 25%|100% - 20% = 80%|
5 apples + 3 apples = 8 apples|**5 + 3 = 8**|- 3 + 5 = 8|-3 + 5 = 2|(5 + 3) * 2 = 16|(5 + 3 = 8)|1/2 + 1/4 = 3/4|5 times 3 = 15|
3 plus 4 = 7|10 divided by 4 = 2.5|3 + 5 = 8!|5 × 3 = 15|5 – 3 = 2|5 + 3 = 8 so he has 5 + 2 = 7|1. 3 + 4 = 7|1/4 of 20 = 5|
12 * (3 + 4) = 84 and 84 - 4 = 80|5 + -3 = 2|a = 3 + 4 = 7|10 - 3 = 7 - 2 = 5|12 x 3 = 36 x 2 = 72|[5 + 3] * 2 = 16|0.33 = 1/3|
He had -4 + 5 = 1 dollar|3x4 = 12|10X3 = 30"""
STEPS_UNSURE = """\
3 + 2x = 13|3 + 2 x = 13|x + 3 + 5 = 18|5x + 3 + 2 = 18|2^3 + 1 = 9|2**3 + 1 = 9|f(3) + 2 = 7|1 1/2 + 1/2 = 2|half of 10 + 3 = 8|
5 \\times 3 + 2 = 17|? + 3 + 2 = 8|5! + 3 = 123|3,5 + 2,5 = 6|10:30 + 2 = 12|1/0 = 3|3 + 5 <= 9|3 thousand + 20 = 3020|5 + 3 ≈ 9|
$5 + 50 cents = $5.50|1 hour + 30 minutes = 90 minutes|2 feet = 24 inches|5 (3 + 2) = 25|5(3 + 2) = 25|½ + 2 + 3 = 5.5|2² + 1 = 5|
√16 + 3 = 7|square root of 16 + 3 = 7|5 + 3 = eight|50 - 20% = 40|= 5|3 + = 4|) + 3 = 4|== 3 + 4 = 8 =|= = =|1 + 1 =|5e3 + 1 = 5001|
0x10 + 1 = 17|one-half of 10 + 3 = 8|5 a-b + 3 = 9|5 half-hours + 1 hour = 7"""
STEPS_WRONG = """\
84 / 2 = 43.|So 22 + 8 = 31 bottle caps|2 + 3 = 5 * 4 = 21|17 + 15 + 2 = 35 kids|$3.50 x 2 = $8|20/3 = 6.68|1,200 + 300 = 1,600|
20% of 50 = 11|30/120 = 26%|100% - 20% = 81%|5 apples + 3 apples = 9 apples|**5 + 3 = 9**|- 3 + 5 = 9|-3 + 5 = 3|
(5 + 3) * 2 = 11|(5 + 3 = 9)|1/2 + 1/4 = 3/5|5 times 3 = 16|10 divided by 4 = 2.6|3 + 5 = 9!|5 × 3 = 16|5 – 3 = 3|
5 + 3 = 8 so he has 5 + 2 = 8|1/4 of 20 = 6|12 * (3 + 4) = 84 and 84 - 4 = 81|a = 3 + 4 = 8|12 x 3 = 36 x 2 = 73|[5 + 3] * 2 = 17|
So he paid $15 * 3 days = $46|3 apples x 4 = 13|5+3=9|Then (4 * 3) + 2 = 15 boxes.|0.1 + 0.2 = 0.4|7 * 36 is 252, and 252 + 1 = 254|
3 plus 5 + 2 = 7|So David did 19 + 39 = 68 push-ups.|Dean's height is 14 - 8 = 8 feet|
6 push-ups + 3 push-ups = 8 push-ups|he has 43 - 62 = 19 fewer|
2x3 = 5"""


@pytest.mark.parametrize("text", [text.strip() for text in (STEPS_RIGHT + "|" + STEPS_UNSURE).split("|")])
def test_steps_that_are_right_or_cannot_be_judged_pass(text: str) -> None:
    assert wrong_step(example(rationale=text)) is None


@pytest.mark.parametrize("text", [text.strip() for text in STEPS_WRONG.split("|")])
def test_wrong_steps_are_found(text: str) -> None:
    assert ", but it is " in str(wrong_step(example(rationale=text)))


def decimal(value: Fraction, places: int) -> str:
    scaled = abs(value) * 10**places
    assert scaled.denominator == 1
    digits = f"{scaled.numerator:0{places + 1}d}"
    whole = f"{int(digits[: len(digits) - places]):,}" if value.denominator % 7 else digits[: len(digits) - places]
    return f"{'-' if value < 0 else ''}{whole}{'.' + digits[len(digits) - places :] if places else ''}"


NUMBER = st.tuples(st.integers(1, 99_999), st.integers(0, 2)).map(
    lambda pair: (Fraction(pair[0], 10 ** pair[1]), pair[1])
)
FRAMES = [
    "{}",
    "So she has {} apples.",
    "First, {}. Then they left!",
    "**{}**",
    "1. {}\n2. Done",
    "- {}\n- Next",
    "({})",
    "x = 7. {}; so",
]


@given(
    st.lists(st.tuples(st.sampled_from("+-"), st.lists(NUMBER, min_size=1, max_size=3)), min_size=1, max_size=4),
    st.sampled_from([" {} ", "{}"]),
    st.sampled_from("*×x"),
    st.sampled_from(FRAMES),
    st.sampled_from(["", "$"]),
    st.integers(-50, 50).filter(bool),
    st.data(),
)
def test_right_steps_pass_and_a_changed_result_never_does(
    terms: list[Any], spaced: str, times: str, frame: str, currency: str, change: int, data: st.DataObject
) -> None:
    """Sums of products of decimals, exactly; the result is then changed by some of its last decimal place."""
    if sum(len(factors) for _, factors in terms) == 1:
        terms.append(("+", terms[0][1]))
    value, written, places = Fraction(0), "", 0
    for position, (sign, factors) in enumerate(terms):
        product = Fraction(1)
        for factor, _ in factors:
            product *= factor
        value += product if sign == "+" or not position else -product
        places = max(places, sum(digits for _, digits in factors))
        written += spaced.format(sign) if position else ""
        written += spaced.format(times).join(f"{currency}{decimal(factor, digits)}" for factor, digits in factors)
    if len(decimal(value, places)) > 18:
        return
    right, changed = (
        f"{written} = {currency}{decimal(result, places)}" for result in (value, value + Fraction(change, 10**places))
    )
    assert wrong_step(example(rationale=frame.format(right))) is None
    assert wrong_step(example(rationale=frame.format(changed))) is not None
    other = data.draw(st.sampled_from(["2 + 2 = 4", "9 / 2 = 4.5", "10 - 3 = 7"]))
    assert wrong_step(example(rationale=f"{other}. {frame.format(changed)}")) is not None


@given(
    st.integers(1, 99_999),
    st.integers(1, 999),
    st.integers(0, 3),
    st.sampled_from(["cut", "rounded", "wrong"]),
    st.sampled_from(FRAMES),
)
def test_quotients_may_be_rounded_to_the_digits_written(
    left: int, right: int, places: int, how: str, frame: str
) -> None:
    exact = Fraction(left, right) * 10**places
    shown = Fraction(round(exact) if how == "rounded" else int(exact) + (2 if how == "wrong" else 0), 10**places)
    found = wrong_step(example(rationale=frame.format(f"{left} / {right} = {decimal(shown, places)}")))
    assert (found is not None) == (how == "wrong")


SAID = st.lists(st.sampled_from("goal match the a late sinks 7 12 sports. food, Don't é".split()), max_size=24).map(
    " ".join
)


def gopher(text: str, shortest: int) -> bool:
    """Table A1's ratios and the loops of one to six words, each worked out in full."""
    said = words(text)
    total = max(sum(map(len, said)), shortest, 1)
    for n, share in zip(range(2, 5), (0.2, 0.18, 0.16), strict=True):
        for first in range(len(said) - n + 1):
            run, place, count = said[first : first + n], 0, 0
            while place <= len(said) - n:
                same = said[place : place + n] == run
                count += same
                place += n if same else 1
            if count > 1 and count * sum(map(len, run)) > share * total:
                return True
    for n, share in zip(range(5, 11), (0.15, 0.14, 0.13, 0.12, 0.11, 0.10), strict=True):
        runs = [tuple(said[first : first + n]) for first in range(len(said) - n + 1)]
        later = {place for first, run in enumerate(runs) if run in runs[:first] for place in range(first, first + n)}
        if sum(len(said[place]) for place in later) > share * total:
            return True
    return any(
        said[first : first + length] * 5 == said[first : first + 5 * length]
        and any(map(str.isalpha, said[first : first + length]))
        for length in range(1, 7)
        for first in range(len(said) - 5 * length + 1)
    )


def runs(text: str, n: int) -> list[str]:
    said = words(text)
    return [" ".join(said[start : start + n]) for start in range(len(said) - n + 1)]


@given(SAID, SAID, st.sampled_from(["sports", "food", "12"]), st.integers(0, 20), st.integers(20, 120), st.floats(0, 1))
def test_a_reason_holds_on_every_row_dropped_and_on_none_kept(
    rationale: str, input: str, label: str, count: int, shortest: int, share: float
) -> None:
    row = example(
        rationale=rationale, input=input, label=label, agreement=share, entropy=share, gold="food", **sure(-share)
    )
    given_runs, threes = set(runs(input, 3)), runs(rationale, 3)
    spelled = f" {normalise(rationale)} "
    expected: dict[str, tuple[dict[str, Any], bool]] = {
        "min_words": ({"minimum": count}, len(words(rationale)) < count),
        "max_words": ({"maximum": count}, len(words(rationale)) > count),
        "label_in_set": ({"labels": ["sports"]}, label != "sports"),
        "label_has_value": ({"label_type": "number"}, label != "12"),
        "matches_gold": ({}, label != "food"),
        "min_agreement": ({"minimum": 0.5}, share < 0.5),
        "max_entropy": ({"maximum": 0.5}, share > 0.5),
        "mean_logprob": ({"minimum": -0.8, "maximum": -0.2}, share > 0.8 or share < 0.2),
        "repeats_input": ({"maximum": share}, bool(threes) and sum(run in given_runs for run in threes) > share * len(threes)),
        "repetition": ({"shortest": shortest}, gopher(rationale, shortest)),
        "refusal": ({"phrases": ["late goal"]}, " late goal " in spelled and " late goal " not in f" {normalise(input)} "),
        "block_list": ({"phrases": ["dont é"], "patterns": ["7.*7"]}, " dont é " in spelled or re.search("7.*7", rationale) is not None),
        "allow_list": ({"phrases": ["dont é"], "patterns": ["7.*7"]}, " dont é " not in spelled and not re.search("7.*7", rationale)),
    }  # fmt: skip
    found = {name: FILTERS[name](row, **settings) is not None for name, (settings, _) in expected.items()}
    assert found == {name: holds for name, (_, holds) in expected.items()}


COPIED = st.lists(
    st.sampled_from("the text is about a red card in a match peel pears and poach them".split()), max_size=16
).map(" ".join)


@given(rationale=COPIED, share=st.floats(0, 1))
def test_copies_are_told_by_one_example_alone(folder: Path, rationale: str, share: float) -> None:
    found = FILTERS["copies_example"](example(rationale=rationale), maximum=share, prompt=folder / "a.jinja")
    own = runs(rationale, 5)
    most = max(sum(run in runs(text, 5) for run in own) for text in EXAMPLES)
    assert (found is not None) == (bool(own) and most > share * len(own))


HOSTILE = st.text(
    alphabet=st.one_of(
        st.characters(exclude_categories=["Cs"]), st.sampled_from("0123456789.,+-*/=()%$@:<|[] \n\u200b\ufffd")
    ),
    max_size=120,
)


@given(rationale=HOSTILE, input=HOSTILE, label=st.one_of(st.none(), HOSTILE))
def test_any_text_gets_a_verdict_of_one_line(folder: Path, rationale: str, input: str, label: str | None) -> None:
    row = example(rationale=rationale, input=input, label=label, text=rationale, gold=input, choices=[input, "river"])
    verdicts(row, folder)


LONG = 100_000
SHAPES = [
    *(
        "a",
        "1",
        "=",
        "1+",
        "1=",
        "1 + 1 = ",
        "(",
        "()",
        "1.",
        "1,",
        "1,000,",
        "a@",
        "a.",
        "@",
        "a.b@c.",
        "+1",
        "+1 ",
        "4111 ",
    ),
    *(
        "DE89 ",
        "1.1.",
        ":",
        "a:",
        "sk-",
        "sk-a",
        "ghp_",
        "xoxb-",
        "-----BEGIN ",
        "<",
        "<|",
        "[",
        "\n",
        "\nQ",
        "\n ",
        " ",
        "\t",
    ),
    *(
        "answer is ",
        "answer: (a",
        "\u200d",
        "é",
        "١",
        "9" * 50 + " * ",
        "the answer is not ",
        "- ",
        "** ",
        "1 x ",
        "A1",
        "f:",
    ),
    *("1 apple + ", "5% of ", "a a a\n", "ab cd ef "),
    *("i really ", "i cannot really ", "my big ", "i do not have ", "ab-", "only ", "+44 1 ", "5 + ", "unfortunately "),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_hundred_thousand_characters_of_anything_are_judged(shape: str, folder: Path) -> None:
    """A pattern that takes quadratic time would keep this test busy for minutes."""
    text = (shape * (LONG // len(shape) + 1))[:LONG]
    for rationale in (text, f"4{text}= 3 @x.de"):
        verdicts(
            example(rationale=rationale, input=text, text=rationale, label="3", choices=["river"], gold="3"), folder
        )


def verdicts(row: Example, folder: Path) -> None:
    for name, function in FILTERS.items():
        settings = placed(name, {}, folder)
        settings |= {"prompt": folder / "a.jinja"} if name == "copies_example" else {}
        for kind in (
            ("choice", "equation")
            if name in ("label_has_value", "matches_gold", "last_value", "other_conclusion")
            else (None,)
        ):
            why = function(row, **settings, **({"label_type": kind} if kind else {}))
            assert why is None or (why.isprintable() and len(why) < 400), name
