"""The lm-evaluation-harness plug-in: its model `uptake`, which adapts it to every request.

    python -m uptake.harness run --model uptake --model_args pretrained=gpt2,store=my-store,k=20 --tasks ...

is the harness's own command line, with our model in its registry. Passages are found with a request's
context alone, never with what is scored; the adapted model answers that request and is forgotten.
"""

import math
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from uptake import api, showing
from uptake.errors import BadInput, Diverged, Missing, UptakeError
from uptake.lm import loading
from uptake.lm.base import LM
from uptake.lm.examples import Example, of_target, rolling_windows
from uptake.lm.pretrained import Pretrained
from uptake.methods.contract.spending import Budget, Stop
from uptake.report.formatting import not_scored
from uptake.session import Session
from uptake.store.datastore import Datastore
from uptake.text.overlap import LeakFilter
from uptake.text.round_trip import Losses

try:
    import lm_eval.models  # noqa: F401  # else the harness leaves its own models out, once ours is there
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as error:
    raise Missing(f"lm-evaluation-harness is not here ({error}): pip install 'lm_eval>=0.4.13'") from error

Request = tuple[tuple[str, str], list[int], list[int]]
Answer = tuple[float, bool]


class UptakeLM(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """A base model and a method that adapts it, as a model of the harness.

    `pretrained` and `store` are folders, names or what `load` and `Datastore.open` gave. `set` holds
    settings as on the command line, with semicolons between. Tokens are those of the harness's own
    `hf` model, so that `method=base` scores as it does. Raises BadInput for what cannot be run.
    """

    def __init__(
        self,
        pretrained: str | Pretrained,
        store: str | Datastore | None = None,
        method: str = "ttt-nn",
        k: int = 20,
        set: str | Sequence[str] = "",
        encoder: str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        seed: int = 0,
        leak_filter: bool = True,
        max_tokens: int | None = None,
        max_steps: int | None = None,
        threads: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **others: object,
    ) -> None:
        super().__init__()
        for name in others:
            raise BadInput(f"model argument {name!r}: settings of a method go into set=name=value;name=value")
        settings = [part for part in set.split(";") if part.strip()] if isinstance(set, str) else list(set)
        self.spec = api.method_specs([method], settings)[method]
        _check(method, self.spec.segment, self.spec.method.sequential)
        if threads is not None:
            torch.set_num_threads(threads)
        if device.startswith("cuda") and not torch.cuda.is_available():
            # The harness asks for cuda:0 by default, whether there is one or not.
            warnings.warn(f"no CUDA device is usable here: {device} becomes cpu", stacklevel=2)
            device = "cpu"
        if self.spec.searches and k > 0 and store is None:
            raise BadInput(f"{method} reads neighbours and there is no store: give store=DIR or k=0")
        if isinstance(store, str):
            store = Datastore.open(store, encoder=encoder, device=device)
        self.store, self.k, self.seed = store, k, seed
        self.budget = Budget(max_tokens, max_steps)
        self.stopped: Counter[str] = Counter()  # requests whose reading ended early, by why
        self.leak = LeakFilter() if leak_filter else LeakFilter.off()
        self.base = (
            pretrained if isinstance(pretrained, Pretrained) else loading.load(pretrained, device, dtype)
        )
        self.tokenizer = self.base.tokenizer.inner
        self._device = self.base.device

    @property
    def eot_token_id(self) -> int:
        """The token a text begins after where it has no context."""
        return self.base.tokenizer.opening

    @property
    def tokenizer_name(self) -> str:
        """What the harness names its request cache by."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Return the tokens that the harness's `hf` model makes of a text."""
        opening = self.base.tokenizer.decode([self.eot_token_id])
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        if add_special_tokens is None and string.startswith(opening):
            special = {"add_special_tokens": False}
        return list(self.tokenizer.encode(string, verbose=False, **special))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as the tokenizer's own template writes it."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **_: object
    ) -> list[Answer]:
        """Score continuations; requests of one context, such as the choices of a question, share a model."""
        answers: dict[int, Answer] = {}
        for context, places in self._by_context([pair[0] for pair, _, _ in requests], disable_tqdm):
            lm = self.adapted(context)
            for place in places:
                pair, context_ids, ids = requests[place]
                answers[place] = _score(lm, context_ids, ids)
                self.cache_hook.add_partial("loglikelihood", pair, answers[place])
        return [answers[place] for place in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts, window after window, none of which is found by its own words.

        The base scores the first window; each later one is scored by the base adapted to what is
        found with the window before it. Passages that overlap with the text are withheld.

        The harness divides by all bytes or words, so what the tokenizer loses is told in a warning. Raises
        BadInput where that is too much.
        """
        self._check_losses([request.args[0] for request in requests])
        totals = []
        for request in _progress(requests, "texts", disable_tqdm):
            (text,) = request.args
            total = sum(_score(lm, context_ids, ids)[0] for lm, context_ids, ids in self._windows(text))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            totals.append(total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue contexts: greedily, or sampled at the task's temperature, each repeat by its own seed."""
        texts: dict[int, str] = {}
        for context, places in self._by_context([request.args[0] for request in requests], disable_tqdm):
            lm = self.adapted(context)
            for repeat, place in enumerate(places):
                wanted = normalize_gen_kwargs(requests[place].args[1])
                temperature = wanted.get("temperature", 0.0) if wanted.get("do_sample") else 0.0
                stop = [word for word in wanted["until"] if word]
                tokens, seed = wanted["max_gen_toks"], self.seed + repeat
                texts[place] = lm.generate(context, tokens, temperature, seed, stop)
                self.cache_hook.add_partial("generate_until", requests[place].args, texts[place])
        return [texts[place] for place in range(len(requests))]

    def adapted(self, context: str, whole_text: str = "") -> LM:
        """Return the model adapted to what is found with `context`; the base where there is none."""
        if not self.spec.method.reads or not context.strip():
            return self.base
        session = Session(
            self.base,
            self.spec,
            store=self.store,
            k=self.k,
            seed=self.seed,
            budget=self.budget,
            leak=self.leak,
            continues=False,
        )
        session.adapt(context, whole_text=whole_text)
        if session.stopped:
            self._note(session.stopped)
        return session.adapted

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes with its results: what ended readings early, and how many."""
        return {"uptake_stopped": dict(self.stopped)}

    def _check_losses(self, texts: Sequence[str]) -> None:
        losses = Losses(self.base.tokenizer)
        for number, text in enumerate(texts, 1):
            losses.add(f"text {number}", text)
        losses.check()
        if line := not_scored(losses.lost, losses.bytes - losses.lost):
            # These figures count them all the same, as tokens of whatever text comes back.
            warnings.warn(line.replace("not scored, because", "scored as another text, for"), stacklevel=3)

    def _note(self, stopped: Stop) -> None:
        """Count what ended a reading early, and warn of the first of each kind."""
        self.stopped[stopped.kind] += 1
        if self.stopped[stopped.kind] == 1:
            whose = "the base answers" if stopped.kind == "diverged" else "not all that was found was read"
            warnings.warn(f"{stopped}; for that request {whose} (further ones are counted)", stacklevel=2)

    def _windows(self, text: str) -> Iterator[tuple[LM, list[int], list[int]]]:
        """Yield a text's windows, as the harness cuts them: who scores it, the tokens before, its tokens."""
        ids, size = self.tok_encode(text), self.base.window
        for start in range(0, len(ids), size):
            before = ids[max(0, start - size) : start]
            lm = self.adapted(self.base.tokenizer.decode(before), text) if before else self.base
            yield lm, before or [self.prefix_token_id], ids[start : start + size]

    def _by_context(self, contexts: list[str], disable: bool) -> Iterator[tuple[str, list[int]]]:
        places: dict[str, list[int]] = {}
        for place, context in enumerate(contexts):
            places.setdefault(context, []).append(place)
        yield from _progress(list(places.items()), "contexts", disable)


def _check(method: str, segment: int | None, sequential: bool) -> None:
    """Raise BadInput for methods whose answers would not be a request's own."""
    if segment is not None:
        raise BadInput(f"{method} learns while it scores, which the harness cannot do: use `uptake compare`")
    if sequential:
        raise BadInput(
            f"{method} carries state from query to query, and the harness reorders: set reference=false"
        )


def _score(lm: LM, context: list[int], ids: list[int]) -> Answer:
    """Return the log-probability of `ids` after `context`, and whether each is the likeliest token.

    Where both do not fit into one window the context loses its beginning, as in the harness.
    """
    most = lm.max_input_tokens(0)
    if len(ids) <= most:
        context = context[-(most + 1 - len(ids)) :]
    total, greedy = 0.0, True
    for window in rolling_windows(Example(tuple(context), tuple(ids)), most):
        with torch.no_grad():
            (log_probs,) = lm.predictions([window])
        total += of_target(log_probs, window).double().sum().item()
        greedy = greedy and log_probs.argmax(-1).tolist() == [*window.target]
    if math.isnan(total):
        raise Diverged(
            "the model's score of a request is not finite: use another dtype, or another copy of it"
        )
    return total, greedy


def _progress(items: Sequence[Any], what: str, disable: bool) -> Any:
    from tqdm import tqdm

    return tqdm(items, desc=what, disable=disable)


def main() -> None:
    """Run the harness's own command line. Bad input of ours ends in one line and exit code 2."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UptakeError as error:
        print(showing.message(f"uptake: {error}"), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    # The module by its own name, so that there is one class and the registry names it.
    from uptake.harness import main as run

    run()
else:
    register_model("uptake")(UptakeLM)
