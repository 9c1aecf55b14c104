"""The text of the mini family, written by a seeded generator and stored as token shards."""

from __future__ import annotations

import hashlib
import os
import random
import struct
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")

MAGIC = 20240520
VERSION = 1
HEADER_INTS = 256


class Shard(NamedTuple):
    """One file of the corpus: its seed, its length in tokens and the SHA-256 of the file."""

    seed: int
    tokens: int
    sha256: str


SHARDS = {
    "mini_train_000001.bin": Shard(
        1, 1_500_000, "05c581cdd3f6a52f2ea6e8e450d1b148498fdc53c0119066ff23c26fba220d65"
    ),
    "mini_train_000002.bin": Shard(
        2, 1_500_000, "0fff6e4e27fb3642f4a2422003f31db5c43d9f69ec71e463bc730c420ffd681a"
    ),
    "mini_val_000001.bin": Shard(
        3, 131_072, "335bca6dccf2e762e5e672c539e2d778ae6b3d4391fec9e98b33d275d8ade002"
    ),
}
"""The files by name; a token is a byte (vocabulary 256), stored as uint16."""


def prepare(folder: Path) -> None:
    """Fill `folder` with the shards; files that are there and intact are left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, shard in SHARDS.items():
        path = folder / name
        if path.is_file() and _sha256(path.read_bytes()) == shard.sha256:
            continue
        content = encode(write_text(shard.seed, shard.tokens))
        if _sha256(content) != shard.sha256:
            raise RuntimeError(f"{name}: the generated text does not have the pinned SHA-256")
        _replace(path, content)


def encode(text: bytes) -> bytes:
    """Return `text` as a shard: 256 int32 of header, then a uint16 for each byte, little-endian."""
    header = struct.pack(f"<{HEADER_INTS}i", MAGIC, VERSION, len(text), *[0] * (HEADER_INTS - 3))
    tokens = bytearray(2 * len(text))
    tokens[0::2] = text
    return header + bytes(tokens)


def write_text(seed: int, size: int) -> bytes:
    """Return exactly `size` bytes of documents in the one language that all seeds share."""
    author = Author(Language(random.Random(0)), random.Random(seed))
    documents, length = [], 0
    while length < size:
        documents.append(author.document())
        length += len(documents[-1])
    return "".join(documents).encode("ascii")[:size]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _replace(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _zipf_pool(words: Sequence[str]) -> list[str]:
    """Repeat words so that a uniform draw finds the one of rank r in proportion to 1/(r + 2)."""
    scale = 2 * len(words)
    return [word for rank, word in enumerate(words) for _ in range(scale // (rank + 2))]


class Dice:
    """Draws that need only `random()`, whose numbers are the same in every Python version."""

    def __init__(self, rng: random.Random) -> None:
        """Draw from `rng`."""
        self._random = rng.random

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self._random() < probability

    def below(self, limit: int) -> int:
        """Return an integer from 0 to limit - 1."""
        return int(self._random() * limit)

    def pick(self, items: Sequence[T]) -> T:
        """Return one item, all being equally likely."""
        return items[int(self._random() * len(items))]

    def pick_early(self, items: Sequence[T]) -> T:
        """Return one item, the first ones being the likeliest."""
        draw = self._random()
        return items[int(draw * draw * len(items))]

    def pick_some(self, items: Sequence[T], count: int) -> list[T]:
        """Return `count` different items, early ones being likelier and standing first."""
        chosen: dict[T, None] = {}
        while len(chosen) < count:
            chosen[self.pick_early(items)] = None
        return list(chosen)


class Topic(NamedTuple):
    """The words that documents about one subject prefer, as pools to draw from."""

    nouns: list[str]
    verbs: list[str]
    adjectives: list[str]
    places: list[str]


class Language:
    """An invented vocabulary of names and topics, among which English function words stand."""

    ONSETS = "t/s/r/m/l/d/b/p/c/n/st/br/tr/f/g/h/pl/sh/gr/cl/w/v/ch/fl/dr/th"
    VOWELS = "a/e/i/o/u/ea/ai/oo/ou"
    CODAS = "///n/r/l/t/s/m/nd/ck/st/ng"

    def __init__(self, rng: random.Random) -> None:
        """Invent the words with the random numbers of `rng`."""
        self._dice = Dice(rng)
        self._syllable_parts = [p.split("/") for p in (self.ONSETS, self.VOWELS, self.CODAS)]
        self._known: set[str] = set()
        nouns, verbs, adjectives = self._words(600), self._words(250), self._words(200, "ish")
        self.names = [word.capitalize() for word in self._words(150)]
        places = [word.capitalize() for word in self._words(60, "ton")]
        self.topics = [
            Topic(
                _zipf_pool(self._dice.pick_some(nouns, 60)),
                _zipf_pool(self._dice.pick_some(verbs, 30)),
                _zipf_pool(self._dice.pick_some(adjectives, 20)),
                self._dice.pick_some(places, 6),
            )
            for _ in range(16)
        ]

    def _words(self, count: int, ending: str = "") -> list[str]:
        return [self._word(1 + 2 * rank // count, ending) for rank in range(count)]

    def _word(self, longest: int, ending: str) -> str:
        while True:
            syllables = longest + self._dice.below(2)
            word = "".join(self._syllable() for _ in range(syllables)) + ending
            if len(word) > 2 and word not in self._known:
                self._known.add(word)
                return word

    def _syllable(self) -> str:
        return "".join(map(self._dice.pick_early, self._syllable_parts))


class Author:
    """Writes documents, each of which keeps its topic, people, things, place and year."""

    def __init__(self, language: Language, rng: random.Random) -> None:
        """Write in `language` with the random numbers of `rng`."""
        self._language = language
        self._dice = Dice(rng)

    def document(self) -> str:
        """Return the next document: a title, prose, and parts of several kinds."""
        dice = self._dice
        self._topic = dice.pick(self._language.topics)
        self._people = [dice.pick(self._language.names) for _ in range(3)]
        self._pronoun = dice.pick(("he", "she"))
        self._things = [dice.pick(self._topic.nouns) for _ in range(4)]
        self._place = dice.pick(self._topic.places)
        self._year = 1800 + dice.below(220)
        kinds = (self._prose, self._prose, self._prose, self._dialogue, self._table, self._code)
        parts = [dice.pick(kinds)() for _ in range(3 + dice.below(4))]
        return "\n\n".join([self._title(), self._prose(), *parts]) + "\n\n\n"

    def _title(self) -> str:
        thing, other = self._things[:2]
        return f"== The {thing} and the {other} of {self._place}, {self._year} =="

    def _prose(self) -> str:
        count = 3 + self._dice.below(4)
        return " ".join([f"{self._people[0]} {self._told(False)}.", *self._sentences(count)])

    def _sentences(self, count: int) -> Iterator[str]:
        for _ in range(count):
            sentence = self._opening() + self._clause()
            if self._dice.chance(0.3):
                sentence += self._dice.pick((", and ", ", but ", " because ")) + self._clause()
            yield sentence[0].upper() + sentence[1:] + "."

    def _opening(self) -> str:
        if self._dice.chance(0.75):
            return ""
        year = self._year + self._dice.below(3)
        return self._dice.pick((f"in {year}, ", f"near {self._place}, ", "at first, ", "later, "))

    def _clause(self) -> str:
        subject, plural = self._subject()
        return f"{subject} {self._told(plural)}"

    def _subject(self) -> tuple[str, bool]:
        draw = self._dice.below(10)
        if draw < 3:
            return self._pronoun, False
        if draw < 5:
            return self._dice.pick(self._people), False
        if draw < 8:
            return f"the {self._described()}", False
        return f"{self._dice.pick(('these', 'many', 'the'))} {self._described()}s", True

    def _told(self, plural: bool) -> str:
        draw, verb = self._dice.below(10), self._dice.pick(self._topic.verbs)
        if draw < 5:
            return f"{verb if plural else verb + 's'} {self._object()}"
        if draw < 7:
            return f"{'were' if plural else 'was'} {self._dice.pick(self._topic.adjectives)}"
        if draw < 9:
            return f"{'have' if plural else 'has'} {verb}ed {self._object()}"
        return f"{'do' if plural else 'does'} not {verb} {self._object()}"

    def _object(self) -> str:
        draw, thing = self._dice.below(10), self._described()
        if draw < 4:
            return f"the {thing}"
        if draw < 6:
            return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"
        if draw < 8:
            return f"the {self._dice.pick(self._things)} of {self._place}"
        return f"{2 + self._dice.below(98)} {thing}s"

    def _described(self) -> str:
        dice = self._dice
        noun = dice.pick(self._things if dice.chance(0.4) else self._topic.nouns)
        return f"{dice.pick(self._topic.adjectives)} {noun}" if dice.chance(0.3) else noun

    def _dialogue(self) -> str:
        first, second = self._people[:2]
        lines = []
        for _ in range(2 + self._dice.below(3)):
            verb, thing = self._dice.pick(self._topic.verbs), self._described()
            lines.append(f'"Does {self._people[2]} {verb} the {thing}?" asked {first}.')
            answer = self._dice.pick((f"Yes, {self._pronoun} {verb}s the {thing}", self._clause()))
            lines.append(f'"{answer[0].upper()}{answer[1:]}," said {second}.')
        return "\n".join(lines)

    def _table(self) -> str:
        things = dict.fromkeys([*self._things, *(self._described() for _ in range(3))])
        counts = [1 + self._dice.below(99) for _ in things]
        rows = [f"{thing:<18}|{count:>5}" for thing, count in zip(things, counts, strict=True)]
        return "\n".join(
            [f"{self._place:<18}|{self._year:>5}", *rows, f"{'':<18}|{sum(counts):>5}"]
        )

    def _code(self) -> str:
        item, other = self._things[:2]
        verb = self._dice.pick(self._topic.verbs)
        return "\n".join(
            [
                f"def {verb}_{item}({item}s, {other}={self._dice.below(10)}):",
                "    total = 0",
                f"    for {item} in {item}s:",
                f"        if {item}.{self._dice.pick(self._topic.adjectives)}:",
                f"            total += {item}.{self._dice.pick(self._topic.nouns)} * {other}",
                f"    return {self._dice.pick(('total', other))}",
            ]
        )
