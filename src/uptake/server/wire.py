"""Requests as clients write them: OpenAI's shapes, and the `uptake` object beside them.

What is unknown at the top is passed over and told; what is unknown within `uptake` is refused, and so is what
is known and not supported, unless its value means nothing. This file knows no model.
"""

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)

from uptake.server.errors import ApiError, bad
from uptake.server.refusals import refusal

MOST_CHOICES = 8
MOST_STOPS = 4
MOST_TOP = 20
MOST_TOKENS = 1 << 20
MOST_PROMPTS = 64
MOST_TEXTS = 256
MOST_INPUTS = 2048

Number = StrictFloat | StrictInt
Text = StrictStr
Ids = list[Annotated[StrictInt, Field(ge=0)]]
Seed = Annotated[StrictInt, Field(ge=-(1 << 63), lt=1 << 64)]
Count = Annotated[StrictInt, Field(ge=0, le=MOST_TOKENS)]


class Strict(BaseModel):
    """A shape that knows all its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EditText(Strict):
    """An edit among the texts to read: after the prompt the model is to say the target."""

    prompt: Text
    target: Text
    subject: Text = ""
    old: Text = ""  # what was true before


Texts = Annotated[list[Text | EditText], Field(max_length=MOST_TEXTS)]


class Budget(Strict):
    """The most that adapting may take: tokens trained on, steps, milliseconds until the request fails."""

    tokens: Count | None = None
    steps: Count | None = None
    deadline_ms: Annotated[StrictInt, Field(ge=1, le=3_600_000)] | None = None


class Adaptation(Strict):
    """The `uptake` object: how the model adapts for this request alone."""

    method: Text | None = None
    settings: Annotated[list[Text], Field(max_length=64)] = []
    store: Text | None = None
    k: Annotated[StrictInt, Field(ge=0, le=1000)] | None = None
    query: Text | None = None
    texts: Texts = []
    session: Text | None = None
    memory: Text | None = None  # the user whose memories are searched
    seed: Seed | None = None
    budget: Budget = Budget()
    on_limit: Literal["answer", "fail"] = "answer"
    explain: StrictBool = False
    keep: StrictBool = False  # the state on the disk, to answer under a name of its own
    control: StrictBool = False  # passages drawn at random in place of the nearest


class StreamOptions(BaseModel):
    """What a stream has beside its text."""

    model_config = ConfigDict(extra="allow", frozen=True)
    include_usage: StrictBool = False


class Shape(BaseModel):
    """A request: known fields are checked, others are kept by name in `ignored`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    # Known to OpenAI and not supported here: what each may be, since it then means nothing.
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}
    # Known, without effect here, and no reason to say so.
    silent: ClassVar[frozenset[str]] = frozenset({"user", "metadata", "store", "safety_identifier"})
    # Texts or tokens, one or many: the most of them.
    either: ClassVar[dict[str, int]] = {}

    @property
    def ignored(self) -> list[str]:
        """The names of fields that were passed over."""
        return sorted(set(self.model_extra or {}) - set(self.neutral) - self.silent)

    def check(self) -> None:
        """Raise ApiError for a field that is known, not supported and would mean something."""
        for name, value in (self.model_extra or {}).items():
            if name in self.neutral and not any(_same(value, each) for each in self.neutral[name]):
                raise bad(f"{name} is not supported here: leave it out", name, "unsupported")


class Generation(Shape):
    """What completions and chats have in common."""

    model: Text
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=MOST_CHOICES)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=MOST_STOPS)] | None = None
    seed: Seed | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    uptake: Adaptation | None = None

    def check(self) -> None:
        super().check()
        if self.stream_options is not None and not self.stream:
            raise bad("stream_options are for a stream: set stream", "stream_options")

    @property
    def stops(self) -> list[str]:
        """The texts to stop before."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in given if text]


class Completion(Generation):
    """A body of /v1/completions."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "suffix": (None, ""),
        "best_of": (None, 1),
        "presence_penalty": (None, 0),
        "frequency_penalty": (None, 0),
        "logit_bias": (None, {}),
    }
    either: ClassVar[dict[str, int]] = {"prompt": MOST_PROMPTS}
    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS)]
        | Annotated[Ids, Field(min_length=1)]
        | Annotated[list[Annotated[Ids, Field(min_length=1)]], Field(min_length=1, max_length=MOST_PROMPTS)]
    )
    max_tokens: Count | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=MOST_TOP)] | None = None
    echo: StrictBool | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class Part(Shape):
    """A piece of a message; text is all there is."""

    type: Literal["text"]
    text: Text


class Message(Shape):
    """One message of a chat."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "tool_calls": (None, []),
        "function_call": (None,),
        "audio": (None,),
        "refusal": (None,),
    }
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(max_length=MOST_TEXTS)] | None = None

    @property
    def text(self) -> str:
        """The message as one text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class Chat(Generation):
    """A body of /v1/chat/completions."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "tools": (None, []),
        "tool_choice": (None, "none", "auto"),
        "functions": (None, []),
        "function_call": (None, "none", "auto"),
        "parallel_tool_calls": (None, True, False),
        "response_format": (None, {"type": "text"}),
        "presence_penalty": (None, 0),
        "frequency_penalty": (None, 0),
        "logit_bias": (None, {}),
        "modalities": (None, ["text"]),
        "audio": (None,),
        "prediction": (None,),
        "web_search_options": (None,),
    }
    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=MOST_TOP)] | None = None

    def check(self) -> None:
        super().check()
        for place, message in enumerate(self.messages):
            try:
                message.check()
            except ApiError as error:
                error.param = f"messages.{place}.{error.param}"
                raise
        if self.top_logprobs is not None and not self.logprobs:
            raise bad("top_logprobs need logprobs: set both", "top_logprobs")

    @property
    def most_tokens(self) -> int | None:
        """How many tokens may be written; None leaves it to the window."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class Compared(BaseModel):
    """One of the models that score a text, and how it adapts where its name alone does not say it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    model: Text
    uptake: Adaptation | None = None


class Score(Shape):
    """A body of /uptake/score: a text, scored under several models, by name alone with `uptake`."""

    text: Text
    context: Text = ""
    compare: Annotated[list[Text | Compared], Field(min_length=1, max_length=8)]
    uptake: Adaptation | None = None

    @property
    def compared(self) -> list[Compared]:
        """The models, each with how it adapts."""
        return [
            Compared(model=each, uptake=self.uptake) if isinstance(each, str) else each
            for each in self.compare
        ]


class Embeddings(Shape):
    """A body of /v1/embeddings."""

    either: ClassVar[dict[str, int]] = {"input": MOST_INPUTS}
    model: Text
    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_INPUTS)]
        | Annotated[Ids, Field(min_length=1)]
        | Annotated[list[Annotated[Ids, Field(min_length=1)]], Field(min_length=1, max_length=MOST_INPUTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = None

    def check(self) -> None:
        super().check()
        for place, text in enumerate(self.inputs):
            if not text:
                where = f"input.{place}" if self.many else "input"
                raise bad("an empty text has no vector: leave it out", where)

    @property
    def many(self) -> bool:
        """Whether a list of inputs was sent, be it of one."""
        return not isinstance(self.input, str) and not isinstance(self.input[0], int)

    @property
    def inputs(self) -> list[str | list[int]]:
        """What is embedded, each a text or tokens."""
        if isinstance(self.input, str) or isinstance(self.input[0], int):
            return [self.input]
        return list(self.input)


class Tokenize(Shape):
    """A body of /tokenize."""

    model: Text | None = None
    prompt: Text
    add_special_tokens: StrictBool = True


class Detokenize(Shape):
    """A body of /detokenize."""

    model: Text | None = None
    tokens: Annotated[Ids, Field(max_length=MOST_TOKENS)]


ShapeT = TypeVar("ShapeT", bound=Shape)
# The fields of each object within a body; None stands for the `uptake` object.
_SHAPES: dict[Any, list[str]] = {
    None: [*Adaptation.model_fields],
    "budget": [*Budget.model_fields],
    Compared.__name__: [*Compared.model_fields],
    EditText.__name__: [*EditText.model_fields],
}


def read(kind: type[ShapeT], body: dict[str, Any]) -> ShapeT:
    """Return a body as its shape. Raises ApiError, which names what is wrong in `param`."""
    try:
        found = kind.model_validate(body)
    except ValidationError as error:
        raise refusal(error, body, kind.either, _SHAPES) from None
    found.check()
    return found


def _same(value: Any, neutral: Any) -> bool:
    """Whether values are equal as JSON: true is not 1."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)
