"""The few rules of English that captions need: articles, plurals, third person, -ing forms."""

from __future__ import annotations

from dataclasses import dataclass

VOWELS = "aeiou"
# Verbs that double their last letter before -ing. English decides by stress, so the list is by hand.
DOUBLING = {
    "beg", "chop", "chug", "clap", "cut", "dig", "drip", "drop", "drum", "flap", "hit", "hum", "pop", "put", "rap",
    "rip", "rub", "run", "scrub", "shut", "sip", "skip", "slam", "snap", "snip", "spin", "split", "step", "stir",
    "stop", "strum", "tap", "throb", "trot", "whir", "yap", "zap",
}  # fmt: skip
IRREGULAR_PLURALS = {
    "man": "men",
    "woman": "women",
    "person": "people",
    "child": "children",
    "sheep": "sheep",
    "wolf": "wolves",
    "calf": "calves",
    "mouse": "mice",
    "glass": "glasses",
}
PLURAL_NOUNS = {"people", "cattle", "children", "men", "women"}
SINGULAR_IN_S = {"glass", "grass", "gas", "brass"}


def third_person(verb: str) -> str:
    """ "bark" → "barks", "buzz loudly" → "buzzes loudly"."""
    head, _, rest = verb.partition(" ")
    if head.endswith(("s", "sh", "ch", "x", "z")) or head in ("go", "do", "echo"):
        head += "es"
    elif head.endswith("y") and head[-2] not in VOWELS:
        head = head[:-1] + "ies"
    else:
        head += "s"
    return f"{head} {rest}".rstrip()


def gerund(verb: str) -> str:
    """ "bark" → "barking", "chime" → "chiming", "drip" → "dripping"."""
    head, _, rest = verb.partition(" ")
    if head in DOUBLING:
        head += head[-1]
    elif head.endswith("e") and not head.endswith(("ee", "ye", "oe")):
        head = head[:-1]
    return f"{head}ing {rest}".rstrip()


def without_article(noun: str) -> str:
    for article in ("a ", "an ", "the "):
        if noun.startswith(article):
            return noun.removeprefix(article)
    return noun


def is_plural(noun: str) -> bool:
    """Whether a noun phrase takes the plural of a verb: "birds", "wind chimes", but "a bus", "glass"."""
    if noun.startswith(("a ", "an ")):
        return False
    last = without_article(noun).split()[-1]
    return last in PLURAL_NOUNS or (last.endswith("s") and not last.endswith("ss") and last not in SINGULAR_IN_S)


def plural(noun: str) -> str | None:
    """ "a church bell" → "church bells"; None where there is none: "rain", "someone", "the wind"."""
    if not noun.startswith(("a ", "an ")):
        return None
    *before, last = without_article(noun).split()
    if last in IRREGULAR_PLURALS:
        last = IRREGULAR_PLURALS[last]
    elif last.endswith(("s", "sh", "ch", "x", "z")):
        last += "es"
    elif last.endswith("y") and last[-2] not in VOWELS:
        last = last[:-1] + "ies"
    else:
        last += "s"
    return " ".join([*before, last])


@dataclass(frozen=True, slots=True)
class Wording:
    """How a kind of sound is put into words: who makes it, what they do, and names of the sound itself.

    groups: subjects with their article ("a dog", "the wind", "rain", "birds", "someone") and the verbs that go with
        them in their plain form, objects included ("bark", "type on a keyboard").
    labels: noun phrases that stand alone: "birdsong", "the roar of an engine".
    """

    groups: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    labels: tuple[str, ...]

    @classmethod
    def parse(cls, nouns: str, verbs: str, labels: str) -> Wording:
        """Alternatives divided by "|"; ";" divides groups: the first nouns go with the first verbs, and so on."""
        groups = zip(nouns.split(";"), verbs.split(";"), strict=True)
        return cls(
            tuple((tuple(some.split("|")), tuple(them.split("|"))) for some, them in groups),
            tuple(filter(None, labels.split("|"))),
        )

    @property
    def phrases(self) -> tuple[str, ...]:
        """Every caption of one such sound, the plain form first."""
        pairs = [(noun, verb) for nouns, verbs in self.groups for verb in verbs for noun in nouns]
        forms = [bare(n, v) for n, v in pairs] + list(self.labels)
        for form in (participle, present, progressive):
            forms += [form(noun, verb) for noun, verb in pairs]
        return tuple(dict.fromkeys(forms))


def present(noun: str, verb: str) -> str:
    """ "a dog barks", "birds sing"."""
    return f"{noun} {verb if is_plural(noun) else third_person(verb)}"


def progressive(noun: str, verb: str) -> str:
    """ "a dog is barking", "birds are singing"."""
    return f"{noun} {'are' if is_plural(noun) else 'is'} {gerund(verb)}"


def participle(noun: str, verb: str) -> str:
    """ "a dog barking": a noun phrase, for use after "with" or "followed by"."""
    return f"{noun} {gerund(verb)}"


def bare(noun: str, verb: str) -> str:
    """ "dog barking", as a tag would say."""
    return participle(without_article(noun), verb)
