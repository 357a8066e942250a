"""Which values of a database a question names: the value retrieval of OmniSQL, which the authors' prompts show.

OmniSQL indexes every short text value of a database with Lucene, looks up each run of one to eight words of the
question and the question itself, and keeps of the ten best hits of each those that occur in the question. Here the same
ranking is computed in memory, without Java; how, and where it departs from theirs, is in `docs/method.md`.
"""

from __future__ import annotations

import math
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from heapq import nsmallest
from itertools import islice

from dphlib.verify.sqlite_files import bounded_rows, open_read_only, quoted

MAX_VALUES = 300_000
MAX_COLUMN_VALUES = 100_000
MAX_OPS = 100_000_000
MAX_CHARS = 40
MAX_WORDS = 8
TOP_HITS = 10
KEPT_VALUES = 20
MIN_SHARE = 0.85
K1, B = 0.9, 0.4

_WORD = re.compile(r"\w+(?:(?<=[^\W\d_])[.:'’·](?=[^\W\d_])\w+|(?<=\d)[.,;'’](?=\d)\w+)*")
_POSSESSIVE = re.compile(r"['’][sS]$")
_STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
    "this to was will with".split()
)
_STEMMED = re.compile(r"[a-z0-9]{3,60}")
_PUNCTUATION = re.compile(r"([^\w\s.,:'’/-]|[,:](?!\d)|(?<!\w)'|'(?!\w)|\.(?=\s|$)|--)")
_CONTRACTION = re.compile(r"('(?:s|m|d|ll|re|ve)|n't)\b", re.IGNORECASE)


def porter_stems(words: Iterable[str]) -> dict[str, str]:
    """Each word with its Porter stem, by the stemmer in SQLite's FTS5. Words in lower case.

    >>> porter_stems(["engineering", "uses", "é"])
    {'engineering': 'engin', 'uses': 'us', 'é': 'é'}
    """
    stems = {word: word for word in words}
    asked = [word for word in stems if _STEMMED.fullmatch(word)]
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE VIRTUAL TABLE words USING fts5(word, tokenize = 'porter ascii')")
        connection.execute("CREATE VIRTUAL TABLE stems USING fts5vocab(words, instance)")
        connection.executemany("INSERT INTO words (rowid, word) VALUES (?, ?)", enumerate(asked))
        stems.update((asked[row], stem) for stem, row in connection.execute("SELECT term, doc FROM stems"))
    return stems


def words_of(text: str) -> list[str]:
    """Words as Lucene's English analyser has them before stemming.

    >>> words_of("The U.S. share of Stark's 1,000 e-mails")
    ['u.s', 'share', 'stark', '1,000', 'e', 'mails']
    """
    words = (_POSSESSIVE.sub("", word).lower() for word in _WORD.findall(text))
    return [word for word in words if word and word not in _STOP_WORDS]


def word_runs(question: str) -> list[str]:
    """What is looked up: each run of 1 to `MAX_WORDS` words, shortest first, then the question.

    >>> word_runs("Kyle's id?")
    ['Kyle', "'s", 'id', '?', "Kyle 's", "'s id", 'id ?', "Kyle 's id", "'s id ?", "Kyle 's id ?", "Kyle's id?"]
    """
    words = _CONTRACTION.sub(r" \1", _PUNCTUATION.sub(r" \1 ", question)).split()
    runs = [" ".join(words[i : i + n]) for n in range(1, MAX_WORDS + 1) for i in range(len(words) - n + 1)]
    return list(dict.fromkeys([*runs, question]))


def share_found(value: str, text: str) -> float:
    """The longest piece of `value` that occurs in `text`, as a share of `value`; 0.0 unless above `MIN_SHARE`.

    >>> share_found("engineers", "the engineering department"), share_found("engines", "an engineer")
    (0.8888888888888888, 0.8571428571428571)
    >>> share_found("gear", "gea")
    0.0
    """
    for size in range(len(value), 0, -1):
        if size / len(value) <= MIN_SHARE:
            return 0.0
        if any(value[i : i + size] in text for i in range(len(value) - size + 1)):
            return size / len(value)
    return 0.0


class ValueIndex:
    """The short text values of one database, ready to be looked up.

    Args:
        connection: read while building, not kept.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._values: list[tuple[str, str, str]] = []  # "table.column" in lower case, tie-breaker, value
        for table, column, number, value in _short_texts(connection):
            if len(self._values) == MAX_VALUES:
                break
            self._values.append((f"{table}.{column}".lower(), f"{table}-**-{column}-**-{number}", value))
        documents = [words_of(value) for *_, value in self._values]
        stems = porter_stems({word for words in documents for word in words})
        self._lengths = [len(words) for words in documents]
        self._filled = sum(map(bool, self._lengths))
        self._mean_length = sum(self._lengths) / max(1, self._filled)
        self._postings: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for place, words in enumerate(documents):
            for stem, count in Counter(stems[word] for word in words).items():
                self._postings[stem].append((place, count))

    def named_in(self, question: str) -> dict[str, list[str]]:
        """Values that the question names, best first, by "table.column" in lower case."""
        runs = [words_of(run) for run in word_runs(question)]
        stems = porter_stems({word for words in runs for word in words})
        weights = {stem: self._weights(stem) for stem in set(stems.values()) if stem in self._postings}
        hits: dict[int, None] = {}
        for run in dict.fromkeys(tuple(stems[word] for word in words if stems[word] in weights) for words in runs):
            hits |= dict.fromkeys(self._best([weights[stem] for stem in run]))
        lower = question.lower()
        scored = []
        for order, place in enumerate(hits):
            if share := share_found(self._values[place][2].lower(), lower):
                scored.append((share, len(self._values[place][2]), order, place))
        named: dict[str, list[str]] = {}
        for *_, place in sorted(scored, reverse=True)[:KEPT_VALUES]:
            column, _, value = self._values[place]
            named.setdefault(column, []).append(value)
        return named

    def _weights(self, stem: str) -> dict[int, float]:
        """BM25's share of one stem in the score of each value that has it."""
        postings = self._postings[stem]
        rarity = math.log(1 + (self._filled - len(postings) + 0.5) / (len(postings) + 0.5))
        return {
            place: rarity * count / (count + K1 * (1 - B + B * self._lengths[place] / self._mean_length))
            for place, count in postings
        }

    def _best(self, weights: Sequence[dict[int, float]]) -> list[int]:
        scores: dict[int, float] = defaultdict(float)
        for one in weights:
            for place, weight in one.items():
                scores[place] += weight
        return nsmallest(TOP_HITS, scores, key=lambda place: (-round(scores[place], 5), self._values[place][1]))


@lru_cache(maxsize=2)
def value_index(uri: str) -> ValueIndex:
    """The index of the database of a URI of `read_only_uri`; the last two are kept."""
    with closing(open_read_only(uri)) as connection:
        return ValueIndex(connection)


def _short_texts(connection: sqlite3.Connection) -> Iterator[tuple[str, str, int, str]]:
    """Table, column, number and text of every distinct text of up to `MAX_CHARS` characters that is not a number."""
    tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name <> 'sqlite_sequence'"
    for (table,) in connection.execute(tables).fetchall():
        for _, column, *_ in connection.execute(f"PRAGMA table_info({quoted(table)})").fetchall():
            name = quoted(column)
            start = f"SELECT DISTINCT substr({name}, 1, {MAX_CHARS + 1}) FROM {quoted(table)}"
            rows = bounded_rows(connection, f"{start} WHERE typeof({name}) = 'text'", MAX_OPS)
            texts = (text for (text,) in rows if not _is_number(text))
            for number, text in enumerate(islice(texts, MAX_COLUMN_VALUES)):
                if 0 < len(text) <= MAX_CHARS:
                    yield table, column, number, text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
