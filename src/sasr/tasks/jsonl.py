"""The user's own rows: prompt, completion and answer in a JSONL file, without any code."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, ClassVar

from sasr.errors import InputError
from sasr.tasks.base import Row, Task, Verdict
from sasr.tasks.text import (
    after_thinking,
    currency_of,
    last_boxed,
    one_line,
    parse_number,
    squeeze,
    unified,
    whole_box,
    without_currency,
)

_OPTION_WORD = r"(?:(?:the )?(?:option|choice)\s+)"
# "The correct choice is a prime" says of which kind it is; only a letter is an option.
_ANSWER = re.compile(
    r"\b(?:answer(?: is|\**:)(?:\s*:)?|correct (?:option|choice)(?: is|\**:)(?:\s*:)?"
    rf"(?=[\s*`(]{{0,5}}{_OPTION_WORD}?[*`(]{{0,3}}(?-i:[A-Z])(?![\w'’])))",
    re.IGNORECASE,
)
_MARK = re.compile(r"####(?!#)")
_OPENED, _CLOSED = "<answer>", "</answer>"
# Headings in Markdown, with text below: of what is no answer; of the answer, which is then below it.
_OTHER_HEADING = re.compile(
    r"[ \t*]*(?:step[ \t]*[0-9][^\n]{0,200}|(?:explanation|verification|check|notes?|reasoning|justification|proof"
    r"|solution|calculations?)[ \t*:]*)\n\s*\S",
    re.IGNORECASE,
)
_HEADING = re.compile(r"[ \t*]*(?:the )?(?:final )?answer[ \t*]*\n", re.IGNORECASE)
# "So the answer is right", of an answer that was a number or an option; else it may be one.
_NO_ANSWER = re.compile(
    r"[ \t]*(?:indeed |also |therefore |thus )?(?:(?:right|correct|confirmed|verified|consistent|reasonable|valid"
    r"|helpful|useful|clear|complete|accurate|understandable)(?=[\s.,;:!*]|$)"
    r"|(?:obtained|found|calculated|computed|given|derived)\b)"
    r"|(?<=is)[ \t]+(?:(?:based|because|explained)\b"
    # "in meters", "rounded to 2 decimals"; not "in 20 minutes", "rounded to 20"
    r"|(?:in|expressed|rounded)\b(?![^\n0-9]{0,80}[0-9]+(?![0-9]| (?:decimal|significant|places|digits))))",
    re.IGNORECASE,
)
_DEFINITE = re.compile(rf"[0-9]|^[*`(]*(?i:{_OPTION_WORD}[*`(]*)?[^\W\d_](?:[*`).:,]|$)")
_DISPLAY = re.compile(r"\\\[.*?\\\]|\$\$.*?\$\$", re.DOTALL)
# What ends a sentence or wraps an answer in Markdown or quotes, and is no part of it. Not `!`: 5! is not 5.
_ENDING = " \t\r\n.,;:?*`\"'"
# Not the sign of a currency, as in `$42`; not brackets that belong to an answer, as in (1, 2).
_WRAPPERS = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"\$\$([^$]+)\$\$",
        r"\$([^$]+)\$",
        r"\\\((.+)\\\)",
        r"\\\[(.+)\\\]",
        r"\(([^(),;]+)\)",
        r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]+)\}",
        r"(?i:(?:the )?(?:final )?answer(?: is|\**:)(?:\s*:)?)(.+)",
        rf"(?i:{_OPTION_WORD})([*`(]*[^\W\d_][*`)]*)",
    )
]
_MOST_WRAPPERS = 5  # one in another
_MOST_AROUND = 20  # letters that they come to
_SENTENCE_END = re.compile(r"[.!?][*`\"')]*\s+(?=\S)")
_OPTION = re.compile(
    rf"[*`(\s]*(?:(?i:{_OPTION_WORD})[*`(]*)?([^\W\d_])[*`]*[).:][*`).:]*\s+(?P<rest>\S.*)", re.DOTALL
)
_OTHER_OPTION = re.compile(
    r"(?<![\w'])(?:[B-HJ-Z](?![\w'])|[AI](?=\s*(?:[.,;:)/]|$|and\b|or\b)))|\([A-Za-z]\)|(?<!\S)[a-z]\)"
)
_DIGITS = re.compile(r"[0-9](?:[0-9,.]*[0-9])?")
_SECOND_THOUGHTS = re.compile(
    r"(?:^|[.,;:!?])\W{0,5}(?:or|no|but|and|nor|versus|vs)\b"
    r"|\b(?:not|wait|actually|however|alternatively|maybe|perhaps|possibly|instead|otherwise|rather|sorry|correction"
    r"|could|might|wrong|incorrect|mistake|hmm+)\b|n['’]t\b",
    re.IGNORECASE,
)

_COLUMNS = ("prompt", "completion", "answer", "difficulty")


class JsonlTask(Task):
    """Rows with `prompt` (text or a list of messages) and, optionally, `completion` and `answer`; other columns are
    kept. The arguments name the fields of a record that these are, with `difficulty`.

    The final answer of a completion is what follows its last `####`, or what is in its last `<answer>...</answer>`,
    whichever is later, if no `\\boxed{}`, `Answer:` or `answer is` comes after it; failing that its last `\\boxed{}`;
    failing that what follows its last `Answer:`, `answer is` or `correct option is`; failing that its last line. It is
    compared with `answer` as an exact number where both are numbers, else as text without regard to case, spacing,
    final punctuation, the form of quotes, dashes and accents, and what Markdown or LaTeX puts around it. After `answer
    is` another sentence, or the text of an option, may follow, unless it names another answer.
    """

    name: ClassVar[str] = "jsonl"
    _fields: Mapping[str, str] = {name: name for name in _COLUMNS}

    def __init__(
        self, prompt: str = "prompt", completion: str = "completion", answer: str = "answer",
        difficulty: str = "difficulty",
    ):  # fmt: skip
        self._fields = dict(zip(_COLUMNS, (prompt, completion, answer, difficulty), strict=True))
        for column, name in self._fields.items():
            if not isinstance(name, str) or not name:
                raise InputError(f"task jsonl: {column} is {name!r}, but it must be the name of a field")

    def to_row(self, record: Mapping[str, Any]) -> Row:
        given, record = record, self._renamed(record)
        prompt, completion = record.get("prompt"), record.get("completion")
        if prompt is None:
            have = ", ".join(str(key) for key in given) or "none"
            wanted = self._fields["prompt"]
            raise InputError(
                f"record has no field {wanted!r} (its fields: {one_line(have)}); add it, or name another in "
                'task_options: {"prompt": "question"}'
            )
        _require_text("prompt", prompt)
        if completion is not None:
            _require_text("completion", completion)
        if isinstance(prompt, list) and isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        elif isinstance(prompt, str) and isinstance(completion, list):
            raise InputError("'completion' is a list of messages but 'prompt' is a string; write both in one form")
        answer = record.get("answer")
        if not isinstance(answer, str | int | float | None):
            raise InputError(f"field 'answer' must be a string, a number or null, not {one_line(repr(answer), 80)}")
        own = {
            "prompt": prompt,
            "completion": completion,
            "answer": None if answer is None or not str(answer).strip() else _text_of(answer),
            "difficulty": record.get("difficulty"),
        }
        return {**record, **own}

    def _renamed(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The record with our columns by our names. A field with one of these names that was named for another column
        is that one's alone."""
        named = {name for column, name in self._fields.items() if name != column}
        ours = {
            column: None if name == column and name in named else record.get(name)
            for column, name in self._fields.items()
        }
        return {**{k: v for k, v in record.items() if k not in _COLUMNS and k not in named}, **ours}

    def check(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        expected = row.get("answer")
        if isinstance(expected, int | float):  # in Python, where rows do not go through `to_row`
            expected = _text_of(expected)
        written, found_by = _statement(completion)
        correct = expected is not None and (
            same_answer(written, expected) or (found_by == "sentence" and _begins_with(written, expected))
        )
        return Verdict(correct=correct, well_formed=self.well_formed(completion))

    def stated(self, answer: str) -> tuple[str, ...]:
        return f"#### {answer}", rf"\boxed{{{answer}}}", answer, f"{_OPENED}{answer}{_CLOSED}"

    def well_formed(self, completion: str) -> bool:
        text = after_thinking(completion).strip()
        if not text:
            return False
        return _statement(text)[1] != "line" or len(text.splitlines()) == 1


def final_answer(completion: str) -> str:
    """The part of a completion that states its answer; empty when there is no text at all. What a model only thinks,
    up to `</think>`, states none."""
    return _statement(completion)[0]


def same_answer(written: str, expected: str) -> bool:
    """Whether two final answers agree: as exact numbers where both are, else as text."""
    written, expected = _bare(unified(written)), _bare(unified(expected))
    left, right = (parse_number(without_currency(text)) for text in (written, expected))
    other_currency = {currency_of(written), currency_of(expected)} - {None}
    if left is not None and right is not None and len(other_currency) < 2:
        return left == right
    return bool(written) and squeeze(written).casefold() == squeeze(expected).casefold()


def _statement(completion: str) -> tuple[str, str]:
    """The statement that decides, and what marks it: `mark`, `box`, `sentence`, or `line` where nothing does. It is
    found without a look at the expected answer, so that two guesses are never both tried."""
    text = after_thinking(completion)
    rest, marked = text, False
    for mark in reversed(list(_MARK.finditer(text))):
        if not _OTHER_HEADING.match(text, mark.end()):
            rest, marked = text[mark.end() :], True
            break
    tag = _tag(text, len(text) - len(rest) if marked else 0)
    inside = _statement(text[slice(*tag)]) if tag else None
    if tag:
        rest, marked = text[tag[1] + len(_CLOSED) :], True
    boxed = last_boxed(rest)
    if boxed is not None:
        return boxed, "box"
    if inside and inside[1] == "box":
        return inside
    marks = list(_ANSWER.finditer(rest))
    told = len(marks)  # the last of them that says what the answer is
    while told and _NO_ANSWER.match(rest, marks[told - 1].end()):
        told -= 1
    heading = _HEADING.match(rest) if marked else None
    under = _first_line(rest[heading.end() :] if heading else rest) if marked else ""
    under = inside[0] if inside else under
    before = _first_line(rest[marks[told - 1].end() :]) if told else under
    if told < len(marks) and not _DEFINITE.search(before):
        told = len(marks)  # "right" and the like are an answer where none was given before
    if told:
        sentence = _first_line(rest[marks[told - 1].end() :])
        return (under, "mark") if marked and _repeats(sentence, under) else (sentence, "sentence")
    if inside:
        return _beside(*inside, rest)
    return (under, "mark") if marked else (_last_line(text), "line")


def _tag(text: str, after: int) -> tuple[int, int] | None:
    """Where what the last `<answer>` holds begins and ends, if it is closed, behind `after`, and holds something."""
    opened = text.rfind(_OPENED)
    begins, ends = opened + len(_OPENED), text.find(_CLOSED, max(opened, 0))
    return (begins, ends) if opened >= 0 and ends >= after and text[begins : max(ends, 0)].strip() else None


def _beside(stated: str, found_by: str, rest: str) -> tuple[str, str]:
    """What `<answer>` states, with what stands behind it on its line: `<answer>18</answer> or 20` states no 18."""
    more = rest.partition("\n")[0].strip("!" + _ENDING)
    return (f"{stated}. {more}", "sentence") if more else (stated, "sentence" if found_by == "sentence" else "mark")


def _repeats(sentence: str, answer: str) -> bool:
    """Whether a sentence says a marked answer again, in more words: `18 dollars` after `#### 18`."""
    answer = _bare(answer)
    sentence = sentence.lstrip("*`")
    rest = sentence[len(answer) :]
    begins = bool(answer) and sentence[: len(answer)].casefold() == answer.casefold()
    return begins and not re.match(r"[^\W_]|[.,/][0-9]", rest) and _adds_no_answer(rest, answer)


def _begins_with(sentence: str, expected: str) -> bool:
    """Whether what follows "answer is" is the expected answer with another sentence, or with the text of an option,
    behind it: `18. I hope this helps`, `B. Paris`."""
    sentence, expected = unified(sentence), _bare(unified(expected))
    if len(expected) == 1 and expected.isalpha():
        option = _OPTION.match(sentence)
        return option is not None and same_answer(option[1], expected) and _adds_no_answer(option["rest"], expected)
    for end in _SENTENCE_END.finditer(sentence[: len(expected) + _MOST_AROUND]):
        rest = sentence[end.end() :]
        if same_answer(sentence[: end.end()], expected):
            return len(re.split("[.!?]", rest)[0].split()) > 2 and _adds_no_answer(rest, expected)
    return False


def _adds_no_answer(rest: str, answer: str) -> bool:
    """Whether what follows an answer leaves it the only one: no second thoughts, no other option, no other number."""
    if _SECOND_THOUGHTS.search(rest):
        return False
    if len(answer) == 1 and answer.isalpha():
        return all(letter.strip("()").casefold() == answer.casefold() for letter in _OTHER_OPTION.findall(rest))
    value, numbers = parse_number(without_currency(answer)), _DIGITS.findall(rest)
    return value is None or not numbers or parse_number(numbers[-1]) == value


def _bare(text: str) -> str:
    """An answer without what Markdown, LaTeX, quotes, brackets and the end of a sentence put around it."""
    for _ in range(_MOST_WRAPPERS):
        before = text
        text = text.rstrip(_ENDING).lstrip(" \t\r\n*`\"'")
        exclaimed = text.rstrip("!" + _ENDING)
        if exclaimed[-2:].isalpha() and len(exclaimed) > 1:  # a word: `Yes!` is yes, and 5! is not 5
            text = exclaimed
        found = next(filter(None, (wrapper.fullmatch(text) for wrapper in _WRAPPERS)), None)
        inside = found[1] if found else whole_box(text)
        if inside is not None and inside.strip("!" + _ENDING):
            text = inside.strip()
        if text == before:
            break
    return text


def _first_line(text: str) -> str:
    # Markdown may close a bold marker right after the mark ("**Answer:** 5").
    text = text.strip().lstrip("* \n")
    display = _DISPLAY.match(text)  # a formula on lines of its own
    end = text.find("\n", display.end() if display else 0)
    return (text if end < 0 else text[:end]).strip()


def _last_line(text: str) -> str:
    text = text.strip()
    for opening, closing in ((r"\[", r"\]"), ("$$", "$$")):
        if text.rpartition("\n")[2].strip() == closing:
            begins = text.rfind(opening, 0, -len(closing))
            return text[begins:] if begins >= 0 else closing
    return text.rpartition("\n")[2].strip()


def _require_text(field: str, value: Any) -> None:
    if isinstance(value, str) and (value.strip() or field == "completion"):
        return
    messages = value if isinstance(value, list) else []
    good = all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in messages
    )
    if not messages or not good:
        raise InputError(
            f"field '{field}' must be a non-empty string or a list of messages with 'role' and 'content',"
            f" not {one_line(repr(value), 80)}"
        )


def _text_of(answer: str | int | float) -> str:
    """A number as people write it: no completion would say 1e-05 for 0.00001."""
    if isinstance(answer, float) and math.isfinite(answer):
        return format(Decimal(repr(answer)), "f")
    return str(answer)
