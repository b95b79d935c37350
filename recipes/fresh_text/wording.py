"""How a fact is asked for and stated: several ways each, of which the first is the usual one."""

QUESTIONS = {
    "default": (
        "In the Python package {package}, what is the default value of `{detail}` in `{name}`?",
        "Which value does `{name}` of {package} take for `{detail}` if the caller gives none?",
        "If `{detail}` is left out of a call of `{name}` in {package}, what is it set to?",
        "`{name}` ({package}) has `{detail}` with a default; which one?",
    ),
    "returns": (
        "In the Python package {package}, what type is `{name}` annotated to return?",
        "What is the return type of `{name}` in {package}?",
        "A call of `{name}` ({package}) gives back a value of which type, by its annotation?",
    ),
    "raises": (
        "In the Python package {package}, which exception does `{name}` itself raise?",
        "Which exception class is raised in the body of `{name}` in {package}?",
        "If `{name}` of {package} refuses its input, which exception does it raise?",
    ),
    "base": (
        "In the Python package {package}, which class does `{name}` derive from?",
        "What is the base class of `{name}` in {package}?",
        "`{name}` ({package}) is a subclass of which class?",
    ),
    "replacement": (
        "In the Python package {package}, what should be used instead of `{name}`, which is deprecated?",
        "`{name}` of {package} is deprecated; what does its notice say to use?",
        "What takes the place of the deprecated `{name}` in {package}?",
    ),
    "renamed": (
        "In the Python package {package}, what was `{name}` renamed to?",
        "By the change log of {package}, what is the new name of `{name}`?",
        "`{name}` of {package} has another name now; which one?",
    ),
}

STATEMENTS = {
    "default": (
        "In the Python package {package}, the default value of `{detail}` in `{name}` is",
        "If a call of `{name}` in {package} leaves `{detail}` out, it is set to",
        "`{name}` ({package}) takes for `{detail}`, where the caller gives none, the value",
    ),
    "returns": (
        "In the Python package {package}, the return type of `{name}` is",
        "A call of `{name}` in {package} gives back a value of the type",
        "By its annotation `{name}` ({package}) returns",
    ),
    "base": (
        "In the Python package {package}, the class `{name}` derives from",
        "The base class of `{name}` in {package} is",
        "`{name}` ({package}) is a subclass of",
    ),
    "parameter": (
        "In the Python package {package}, the parameter of `{name}` right after `{detail}` is called",
        "`{name}` of {package} takes `{detail}` and then a parameter named",
        "In a call of `{name}` ({package}) the argument that follows `{detail}` is",
    ),
    "renamed": (
        "In the Python package {package}, the function or class that does what `{name}` did is now called",
        "`{name}` of {package} goes by the new name",
        "The name that {package} gives today to what was once `{name}` is",
    ),
}


def questions(kind: str, **words: str) -> list[str]:
    """Return every way to ask for a fact of this kind; `words` are package, name and detail."""
    return [template.format(**words) for template in QUESTIONS[kind]]


def statements(kind: str, **words: str) -> list[str]:
    """Return every way to begin to state a fact of this kind; what ends it is the fact."""
    return [template.format(**words) for template in STATEMENTS[kind]]
