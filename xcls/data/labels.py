"""From labels in files to classes: their names, their order, and names that differ only in capitals or spaces."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from typing import Any, Iterable, Sequence

from xcls.config.schema import Labels, UserError
from xcls.data.source import is_missing, writable

WHOLE_NUMBER = re.compile(r"-?\d{1,300}")  # without superscripts and circled digits, which int() refuses
LIKE_MISSING = ("na", "n/a", "#n/a", "<na>", "null", "none", "nil", "nat", "?", "-", r"\n")
MOST_CLASSES = 1000
MOST_NAMED = 8  # pairs of names in one warning


def name_of_class(value: Any) -> str | None:
    """The class of a label in a file: 1, 1.0 and "1" are one class; None where the label is missing.

    Accents are put into one form (NFC).
    """
    if is_missing(value):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    name = unicodedata.normalize("NFC", writable(str(value).strip()))
    if not name.isprintable() and not fold(name):
        return None  # nothing but invisible characters
    return name[:-2] if name.endswith(".0") and WHOLE_NUMBER.fullmatch(name[:-2]) else name


def class_order(names: Iterable[str]) -> list[str]:
    """The names without repeats: sorted by value where all are whole numbers (equal values as text), else as text."""
    names = sorted(set(names))
    return sorted(names, key=int) if all(map(WHOLE_NUMBER.fullmatch, names)) else names


class ClassNames:
    """The classes of a data set, named by the labels of its training rows."""

    def __init__(self, settings: Labels) -> None:
        self.settings = settings
        self.missing = {"null" if text is None else str(text).strip().casefold() for text in settings.missing}
        self.numbers: dict[str, int] = {}  # of names in train, by appearance; after `settle` positions in `classes`
        self.counts: Counter[str] = Counter()  # rows of train by name
        self.left_out: Counter[str] = Counter()  # labels read as missing, in all parts
        self.classes: list[str] = []
        self.certain: set[str] = set()  # names of class folders, which are never "missing"

    def name(self, value: Any, *, folder: bool = False) -> str | None:
        """The name in a label, None where it is missing. The name of a `folder` is never missing."""
        name = name_of_class(value)
        if name is not None and not folder and name.casefold() in self.missing:
            self.left_out[name] += 1
            return None
        return name

    def add(self, labels: Sequence[Any], *, folder: bool = False) -> list[int | None]:
        """Labels of train -> numbers, in order of first appearance; None where missing."""
        found = [self.name(value, folder=folder) for value in labels]
        names = [name for name in found if name is not None]
        self.counts.update(names)
        if folder:
            self.certain.update(names)
        return [None if name is None else self.numbers.setdefault(name, len(self.numbers)) for name in found]

    def settle(self) -> list[int]:
        """Sorts the classes after train is read. Returns the position in `classes` of each number that `add` gave."""
        named = {name: name for name in self.numbers}
        if self.settings.casefold:
            for names in _groups(self.numbers):
                best = max(sorted(names), key=lambda name: self.counts[name])
                named.update(dict.fromkeys(names, best))
        self.classes = class_order(named.values())
        place = {name: number for number, name in enumerate(self.classes)}
        self.numbers = {name: place[named[name]] for name in self.numbers}
        return list(self.numbers.values())

    def ids(
        self, labels: Sequence[Any], *, where: str, row_names: Sequence[str], folder: bool = False
    ) -> list[int | None]:
        """Labels of another part -> positions in `classes`. Raises UserError, with the row, for a class not in train.

        A -1 that is not in train means no label: published data sets with hidden labels use it.
        """
        found: list[int | None] = []
        for value, row in zip(labels, row_names):
            name = self.name(value, folder=folder)
            number = self.numbers.get(name or "")
            if name == "-1" and number is None:
                self.left_out[name] += 1
            elif name is not None and number is None:
                number = next((its for other, its in self.numbers.items() if fold(other) == fold(name)), None)
                if number is None or not self.settings.casefold:
                    joins = " dataset.labels.casefold=true joins names that differ only in capitals or spaces."
                    raise UserError(
                        f"{where}, {row}: the label {name!r} is in no row of the training data (classes there: "
                        f"{some(self.classes)}). Take these rows out, or give training rows of this class."
                        f"{'' if number is None else joins}"
                    )
                self.numbers[name] = number
            found.append(number)
        return found

    def check(self, rows: int, *, where: str, label: str) -> None:
        """Raises UserError for fewer than two classes, or for a column that does not look like a label."""
        count = len(self.classes)
        if count < 2:
            seen = f"only the class {self.classes[0]!r}" if self.classes else "no labels"
            raise UserError(
                f"{where}: {seen} in the column '{label}'; a classifier needs two classes. Set dataset.label "
                "to the column with the classes, or add rows of another class."
            )
        if not self.settings.many and (count > MOST_CLASSES or (rows > 20 and count > rows // 2)):
            raise UserError(
                f"{where}: the column '{label}' holds {count} different values in {rows} rows. Set dataset.label to "
                "the column with the classes, or, if these are the classes, dataset.labels.many=true."
            )

    def notes(self, where: str) -> list[str]:
        """Warnings about names: labels read as missing, classes that look missing, names that look alike."""
        found = []
        for name, count in sorted(self.left_out.items()):
            remedy = ""
            if name == "-1":
                remedy = "; the training rows have no such class"
            elif self.settings.missing == Labels().missing:
                remedy = "; if it is a class: 'dataset.labels.missing=[]'"
            found.append(f"{where}: the label {name!r} of {count} rows is read as no label{remedy}.")
        like = [name for name in self.classes if name.casefold() in LIKE_MISSING and name not in self.certain]
        if like:
            listed = ",".join(map(_typed, [*self.settings.missing, *like]))
            counts = ", ".join(f"{name!r} ({self.counts[name]} rows)" for name in like)
            found.append(
                f"{where}: {counts} are read as classes; if they mean no label: 'dataset.labels.missing=[{listed}]'."
            )
        joined = "joined" if self.settings.casefold else "dataset.labels.casefold=true joins them"
        groups = _groups(self.counts)
        if groups:
            found.append(
                f"{where}: class names that differ only in capitals or spaces: {self._listed(groups)}; {joined}."
            )
        return found

    def _listed(self, groups: list[list[str]]) -> str:
        shown = ["/".join(f"{name!r} ({self.counts[name]} rows)" for name in names) for names in groups[:MOST_NAMED]]
        return ", ".join(shown) + (f" and {len(groups) - MOST_NAMED} more" if len(groups) > MOST_NAMED else "")


def fold(name: str) -> str:
    """The name without capitals, spaces and invisible characters: equal for names that differ only in these."""
    plain = "".join(sign for sign in name if not sign.isspace() and unicodedata.category(sign) != "Cf")
    return unicodedata.normalize("NFC", plain.casefold())


def _groups(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ only in capitals or spaces."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        groups[fold(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]


def _typed(text: str | None) -> str:
    """A label as the user enters it in a list on the command line."""
    if text is None:
        return "null"
    return text if re.fullmatch(r"[A-Za-z]+", text) and text.lower() != "null" else f'"{text}"'


def some(names: Sequence[str], most: int = 12) -> str:
    """The first names, and the number of others, as text for a message."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
