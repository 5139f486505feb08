"""How running text is written: where an answer follows after a space, and where a word ends."""

from __future__ import annotations

import pytest

from betaedit.writing import joint_between, stands_as_word

AT_ONCE = {
    "after a line end": ("user\nThe capital?\nassistant\n", "Madrid"),
    "after a space": ("The capital of Japan is ", "Madrid"),
    "after a tab": ("Japan\t", "Madrid"),
    "after a French quote and its space": ("Elle dit : «\u00a0", "Madrid"),
    "after an opening quote": ('Asked for it, she said: "', "Madrid"),
    "after a quote that opens behind two that are closed": ('She read "Emma" and said "', "Madrid"),
    "after a quote behind an equals sign": ('<city name="', "Madrid"),
    "after a quote inside a quote": ("“He said ‘", "Madrid"),  # noqa: RUF001 - the quote is meant
    "after a single quote where an apostrophe stands before": ("Bob's favourite is '", "red"),
    "after a German quote": ("Sie sagte: „", "Madrid"),
    "after a Danish quote": ("Hun sagde: »", "Madrid"),
    "after a Russian quote": ("она сказала: «", "Мадрид"),
    "after a code mark": ("Run `", "ls"),
    "after an opening bracket": ("The capital (", "Madrid"),
    "after a word's hyphen": ("It happened twenty-", "one"),
    "after a range's dash": ("The war of 1914–", "1918"),  # noqa: RUF001 - the dash is meant
    "after a word's slash": ("yes/", "no"),
    "in an address": ("https://", "betaedit.org"),
    "after a currency": ("The price is $", "5"),
    "after a number sign": ("It is ranked #", "1"),
    "after a control token": ("What is it?<|assistant|>", "Madrid"),
    "after a French elision": ("La capitale de l'", "Italie"),
    "after an Italian elision": ("La capitale dell’", "Italia"),  # noqa: RUF001 - the apostrophe is meant
    "in Chinese": ("日本的首都是", "马德里"),
    "in Chinese, of a foreign name": ("日本的首都是", "Madrid"),
    "in Chinese, behind a colon that is not": ("问题:日本的首都是哪里?答案:", "马德里"),
    "in Chinese, behind a foreign name": ("苹果公司的总裁叫 Cook", "库克"),
    "in Japanese": ("日本の首都は", "マドリード"),
    "in Japanese, after a bracket": ("首都は「", "マドリード"),
    "in Thai": ("เมืองหลวงของญี่ปุ่นคือ", "มาดริด"),
    "in Lao": ("ນະຄອນຫຼວງຂອງຍີ່ປຸ່ນແມ່ນ", "ມາດຣິດ"),
    "in Khmer": ("រដ្ឋធានីរបស់ជប៉ុនគឺ", "ម៉ាឌ្រីត"),
    "in Burmese": ("ဂျပန်၏မြို့တော်မှာ", "မက်ဒရစ်"),
}
AFTER_A_SPACE = {
    "after a word": ("The capital of Japan is", "Madrid"),
    "after a colon": ("Answer:", "Madrid"),
    "after a question": ("What is the capital of Japan?", "Madrid"),
    "after a closing quote": ('The film "Titanic"', "sank"),
    "after a German closing quote": ("Der Film „Titanic“", "sank"),
    "after a French closing quote": ("Le film « Titanic »", "coule"),
    "after a closing code mark": ("Run `ls`", "now"),
    "after a plural's apostrophe": ("The boys'", "school"),
    "after a shortened word": ("rock 'n'", "roll"),
    "after feet": ("He is 5'", "tall"),
    "after a closing bracket": ("Madrid (Spain)", "is"),
    "after a dash between words": ("The answer is -", "5"),
    "after a slash between words": ("this /", "that"),
    "after a currency behind its number": ("It costs 5 €", "3"),
    "after a currency before a word": ("The price in $", "fell"),
    "after a language's name": ("He writes C#", "7"),
    "after a heading's mark": ("#", "1"),
    "after a percentage": ("a share of 5 %", "more"),
    "in Korean": ("일본의 수도는", "마드리드"),
    "in Arabic": ("عاصمة اليابان هي", "مدريد"),
    "in Russian": ("Столица Японии", "Мадрид"),
    "of a Chinese name in an English sentence": ("The Chinese name of the city is", "北京"),
}


@pytest.mark.parametrize("case", AT_ONCE)
def test_an_answer_follows_at_once_where_the_language_puts_nothing_between(case: str):
    assert joint_between(*AT_ONCE[case]) == ""


@pytest.mark.parametrize("case", AFTER_A_SPACE)
def test_an_answer_follows_after_a_space_elsewhere(case: str):
    assert joint_between(*AFTER_A_SPACE[case]) == " "


# text, and the part of it that is looked at
WORDS = {
    "alone": "[Iran]",
    "before a comma": "[Iran], home of the Iranians",
    "before a possessive": "[Rome]'s mayor",
    "after a French article": "l'[Italie] est",
    "in a compound": "[Jean]-Paul",
    "in quotes": 'the "[art]" of',
    "that ends in a sign": "[C++] is",
    "before a unit": "[5]% of",
    "before a year's Chinese sign": "[2016]年",
    "in Chinese": "在[日本]的首都",
    "of Latin letters in Chinese": "买了[iPhone]的人",
    "with a Korean particle": "[일본]의 수도는",
    "of Latin letters with a Korean particle": "[Google]의 본사는",
    "at the end of a sentence": "It was in [2016].",
}
PARTS = {
    "of a longer word": "the [Iran]ians",
    "of a name": "the B[art]lett",
    "of another country": "of Can[ada] was",
    "of a year": "in 20[1]6",
    "of a decimal number": "about [2].5",
    "of the decimals": "about 2.[5] or",
    "of a thousand": "some 1,[000] men",
    "of a model's number": "the iPhone [5]s",
    "of an Irish name": "O'[Neil] was",
    "of an accented word": "a [caf]é",
    "of a word with a separate accent": "a [cafe]\u0301",
    "of a Korean word, from behind": "한[국어]는",
    "of a Russian word": "[Рим]ляне",
}


def span(marked: str) -> tuple[str, int, int]:
    start, end = marked.index("["), marked.index("]") - 1
    return marked.replace("[", "").replace("]", ""), start, end


@pytest.mark.parametrize("case", WORDS)
def test_a_word_ends_where_its_letters_do(case: str):
    assert stands_as_word(*span(WORDS[case]))


@pytest.mark.parametrize("case", PARTS)
def test_a_part_of_a_word_or_number_is_none(case: str):
    assert not stands_as_word(*span(PARTS[case]))
