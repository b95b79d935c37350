"""Made-up facts as edits: what no model can have known, in several words, with neighbours nobody edited."""

from random import Random

from uptake.errors import BadInput
from uptake.tasks._words import ATTRIBUTES, Attribute
from uptake.tasks.edits import Edit, Probe
from uptake.tasks.worlds import NAMES, Split, name


def made_up_edits(
    count: int = 100, neighbours: int = 2, split: Split = "test", seed: int = 0
) -> tuple[Edit, ...]:
    """Return edits that these numbers and the seed fix, each about a person of its own.

    Rephrases are other sentences that end in the answer, and questions; a neighbour asks the same of another
    person, whom no edit is about. Names of one split never occur in another.
    """
    if count < 1 or neighbours < 0 or count * (1 + neighbours) > NAMES:
        raise BadInput(
            f"{count} edits with {neighbours} neighbours each: use 1 or more, 0 or more, and at most "
            f"{NAMES} names"
        )
    random = Random(f"edits {split} {seed}")
    people = [name(number, split) for number in random.sample(range(NAMES), count * (1 + neighbours))]
    made = []
    for number in range(count):
        person, *others = people[number * (1 + neighbours) : (number + 1) * (1 + neighbours)]
        attribute = random.choice(ATTRIBUTES)
        first, *rest = random.sample(prompts := _prompts(attribute), len(prompts))
        made.append(
            Edit(
                f"{split}-{seed}/edit/{number:05d}",
                first.replace("PERSON", person),
                random.choice(attribute.values),
                person,
                rephrases=tuple(text.replace("PERSON", person) for text in rest),
                neighbours=tuple(Probe(first.replace("PERSON", other)) for other in others),
                relation=attribute.name,
            )
        )
    return tuple(made)


def _prompts(attribute: Attribute) -> list[str]:
    """Return the ways to ask for what a person has, PERSON in the place of the name."""
    sentences = [form.partition("VALUE")[0].rstrip() for form in attribute.statements]
    return [
        *(text for text in sentences if "PERSON" in text),
        *(f"Question: {question}\nAnswer:" for question in attribute.questions),
    ]
