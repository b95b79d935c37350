"""The sizes of an NPLM, a Transformer-N or, to compare with, a Transformer of the same build."""

from typing import Any

from transformers import LlamaConfig

ATTENTION = ("none", "later", "all")


class NPLMConfig(LlamaConfig):  # type: ignore[no-untyped-call]
    """Sizes; those of attention, and the rotation of its positions, are Llama's.

    `attention` says which layers attend: `none` (NPLM), `later`, all but the first (Transformer-N), or `all`
    (a Transformer). The first layer of the first two reads `near` tokens side by side, the current one among
    them, and `averages` learnt averages of the `far` tokens before those, through `bottleneck` units.
    """

    model_type = "nplm"

    attention: str = "none"
    near: int = 15
    averages: int = 5
    far: int = 496
    bottleneck: int = 1500
    tie_word_embeddings: bool = True

    def __post_init__(self, **more: Any) -> None:
        if self.attention not in ATTENTION:
            raise ValueError(f"attention {self.attention!r}: use one of {', '.join(ATTENTION)}")
        for name in ("near", "averages", "far", "bottleneck"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: use 1 or more")
        super().__post_init__(**more)  # type: ignore[no-untyped-call]

    @property
    def reads_nearby(self) -> bool:
        """Whether the first layer reads its last tokens side by side."""
        return self.attention != "all"

    @property
    def reach(self) -> int:
        """How many tokens the first layer reads, the current one among them, where it does not attend."""
        return self.near + self.far
