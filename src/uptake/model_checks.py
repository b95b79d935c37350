"""Whether a network's files can be right: its weights are numbers, and every token has its row.

What loads a model or an encoder asks here, before anything is computed with it. It knows neither.
"""

import math
from typing import TYPE_CHECKING, Any

from uptake.errors import BadInput

if TYPE_CHECKING:
    from torch import nn


def check_model(module: "nn.Module", tokenizer: Any, what: str) -> None:
    """Raise BadInput, in one line that begins with `what`, where a network and its tokenizer cannot be used.

    `tokenizer` is a Hugging Face one. A network has a row for every token id; more may be there as padding.
    """
    _check_rows(module, tokenizer, what)
    _check_numbers(module, what)


def _check_rows(module: "nn.Module", tokenizer: Any, what: str) -> None:
    ids: dict[str, int] = tokenizer.get_vocab()
    last = max(ids, key=ids.__getitem__, default="")
    for rows, of in ((_rows(module, "get_input_embeddings"), "embedding has {} rows"),
                     (_rows(module, "get_output_embeddings"), "output layer has {} outputs")):  # fmt: skip
        if last and rows is not None and rows <= ids[last]:
            raise BadInput(
                f"{what}: its {of.format(f'{rows:,}')} and its tokenizer's ids go up to {ids[last]:,} "
                f"({last[:40]!r}): take the tokenizer of this very model"
            )


def _rows(module: "nn.Module", getter: str) -> int | None:
    """Return how many tokens an embedding or an output layer knows; None where there is none to ask."""
    try:
        found: Any = getattr(module, getter, lambda: None)()
    except NotImplementedError:  # what transformers raises for a network that names none
        return None
    weight = getattr(found, "weight", None)
    return None if weight is None or weight.ndim != 2 else int(weight.shape[0])


def _check_numbers(module: "nn.Module", what: str) -> None:
    odd, count = dict[str, float](), 0
    for name, weight in module.named_parameters():
        count += 1
        if not weight.is_floating_point() or not weight.numel() or weight.is_meta:
            continue
        # The least and the largest tell of all between, in one pass and without a copy.
        ends = [float(end) for end in weight.detach().aminmax()]
        if found := [end for end in ends if not math.isfinite(end)]:
            odd[name] = found[-1]
            narrow = weight.dtype.itemsize == 2 and "bfloat" not in str(weight.dtype)
    if not odd:
        return
    first, value = next(iter(odd.items()))
    cure = "take another copy of its files"
    if narrow and not any(math.isnan(each) for each in odd.values()):
        cure = "float16 cannot hold so large a number, use bfloat16 or float32; if it fails as well " + cure
    raise BadInput(
        f"{what}: {len(odd):,} of its {count:,} weights are not finite, {first} ({value}) the first: {cure}"
    )
