"""What the server is meant to reach, each figure beside its anchor: five runs in turns, medians and ranges.

    OMP_NUM_THREADS=1 python bench/server.py [--model FOLDER] [--only rows,http,...]  # writes server.json
    python bench/server.py --show                                                     # the table again

Without --model it is the repository's model of 5 M parameters. Parts that are run take their place among the
figures that are there. The server is two processes over loopback, the engine with one thread.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import server_curve, server_first, server_http, server_sizes
from bench.served import MODEL, WAY, Served, served, spread, until
from uptake.server.keys import Limits

OUT = Path(__file__).parent / "server.json"
RUNS = 5
LARGE = 50_000_000  # parameters: a larger model is measured at fewer rows, tokens and requests
MOST_STATES, FEWER_STATES = 10_000, 400  # the second of a larger model


def rows(model: Path, large: bool) -> dict[str, Any]:
    """Decode private rows, and adapt together, within this process."""
    from bench import server_rows

    found = server_rows.decoding(model, 8 if large else 16, 8 if large else 24, 2 if large else 16)
    return {"decoding": found, "together": server_rows.together(model, 1 if large else 4)}


def mixing(model: Path, large: bool) -> dict[str, Any]:
    """Write rows of kNN-LM together and one by one, within this process."""
    from bench import server_rows

    return server_rows.mixing(model, 8, 6 if large else 24)


def first(server: Served, **body: Any) -> tuple[float, dict[str, Any]]:
    """Return the milliseconds to the first text of a stream, and what was told of adapting."""
    started, told = time.perf_counter(), {}
    asked = {"model": "m", "max_tokens": 4, "stream": True, "temperature": 0, **body}
    with server.http.stream("POST", "/v1/completions", json=asked) as found:
        for line in found.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                told = chunk.get("uptake") or told
                if chunk["choices"] and chunk["choices"][0]["text"]:
                    break
    return (time.perf_counter() - started) * 1000, told


def waits(model: Path, large: bool) -> dict[str, Any]:
    """Time first tokens: of the base, of a state that is made and one that is kept, and of a session."""
    found: dict[str, list[float]] = {}

    def put(name: str, *values: float) -> None:
        found.setdefault(name, []).extend(values)

    with served(model) as server:
        for run in range(RUNS):
            for number in range(4 if large else 8):
                prompt = f"The method of run {run}, number {number}, "
                base, _ = first(server, prompt=prompt)
                made, told = first(server, prompt=prompt, model="m+docs")
                hit, kept = first(server, prompt=prompt, model="m+docs")
                assert (told["cache"], kept["cache"]) == ("made", "hit")
                put("base", base)
                put("made", made)
                put("hit", hit)
                put("hit_over_base", hit - base)
                put("made_over_adapting", made - told["ms"]["adapt"])
                put("search", told["ms"]["search"])
            way = {"method": "ttt-nn", "settings": [*WAY], "store": "docs", "k": 20, "query": f"method {run}"}
            session = server.http.post("/uptake/sessions", json={"uptake": way}).json()["id"]
            made, told = first(server, prompt="The ", uptake={"session": session})
            hits = [first(server, prompt=f"The {each} ", uptake={"session": session}) for each in range(5)]
            assert told["cache"] == "made" and {each["cache"] for _, each in hits} == {"hit"}
            put("session_made", made)
            put("session_times", *(made / hit for hit, _ in hits))
    return {name: spread(values) for name, values in found.items()}


def leaving(model: Path, large: bool) -> dict[str, Any]:
    """Time how long a row stays after its client left, beside a step, and beside stock Starlette."""
    from bench.stock import after_leaving

    freed, steps = [], []
    with served(model) as server:
        for _ in range(4 * RUNS):
            body = {"model": "m", "prompt": "def main(", "max_tokens": 400, "stream": True}
            with server.http.stream("POST", "/v1/completions", json=body) as found:
                lines, times = found.iter_lines(), []
                for line in lines:
                    if '"text":"' in line:
                        times.append(time.perf_counter())
                    if len(times) == 12:
                        break
            steps.append((times[-1] - times[1]) * 100)
            left = until(lambda: not server.held(), 30)
            assert left is not None
            freed.append(left * 1000)
    stock = [after_leaving(0.02, 100) for _ in range(RUNS)]
    return {
        "freed": spread(freed),
        "step": spread(steps),
        "stock_whole": spread([each["whole"] for each in stock]),
        "stock_stream": spread([each["stream"] for each in stock]),
    }


def states(model: Path, large: bool) -> dict[str, Any]:
    """Make many states under a key that may keep 64 MB of them: whether all answer, and memory is flat."""
    count = FEWER_STATES if large else MOST_STATES
    sizes: list[tuple[int, int]] = []
    codes: dict[int, int] = {}

    async def all_of_them(server: Served, key: str) -> None:
        numbers = iter(range(count))
        async with server.client(16, key) as http:

            async def one() -> None:
                for number in numbers:
                    way = {"method": "online", "settings": ["trainable=lora(rank=8)", "learning_rate=1e-3"]}
                    body = {"model": "m", "prompt": "a", "max_tokens": 1}
                    body["uptake"] = {**way, "texts": [f"note {number} says"]}
                    found = await http.post("/v1/completions", json=body)
                    codes[found.status_code] = codes.get(found.status_code, 0) + 1
                    if number % (count // 40) == 0:
                        sizes.append((number, server.memory()))

            await asyncio.gather(*(one() for _ in range(16)))

    with served(model) as server:
        asyncio.run(
            all_of_them(server, server.key("many", Limits(10**7, 10**9, 10**9, 10**5, 1 << 30, 64 << 20)))
        )
        facts = server.counts()
    later = [size for number, size in sizes if number >= count // 10]
    return {
        "states": count,
        "codes": codes,
        "kept": facts["states"],
        "kept_bytes": facts["state_bytes"],
        "evicted": facts["state_evictions"],
        "memory": spread(later),
        "memory_grew": later[-1] / later[0] - 1,
        "memory_range": (max(later) - min(later)) / 2 / (sum(later) / len(later)),
    }


def ready(model: Path, large: bool) -> dict[str, Any]:
    """Kill the engine and time until the server is ready, beside a process that loads the model and ends."""
    program = f"import uptake; uptake.load({str(model)!r})"
    back, loads = [], []
    with served(model) as server:
        for run in range(RUNS):
            started = time.monotonic()
            subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
            loads.append(time.monotonic() - started)
            os.kill(server.engine, signal.SIGKILL)

            def again(run: int = run) -> bool:
                told = server.http.get("/health/ready")
                return told.status_code == 200 and told.json()["restarts"] > run

            took = until(again, 120)
            assert took is not None
            back.append(took)
            server.ask()
    return {
        "ready": spread(back),
        "load": spread(loads),
        "over": spread([a - b for a, b in zip(back, loads, strict=True)]),
    }


PARTS: dict[str, Callable[[Path, bool], dict[str, Any]]] = {
    "rows": rows,
    "mixing": mixing,
    "http": server_http.http,
    "waits": waits,
    "first": server_first.first,
    "leaving": leaving,
    "ready": ready,
    "sizes": server_sizes.sizes,
    "curve": server_curve.curve,
    "states": states,
}

Figures = dict[str, Any]
Bound = float | Callable[[Figures], float]


@dataclass(frozen=True)
class Goal:
    """One line of the table: where its figure stands, and the least or the most that its median may be.

    A bound that follows from other figures is told by `says`; `also` has to hold beside it.
    """

    what: str
    at: str
    digits: int
    least: Bound | None = None
    most: Bound | None = None
    says: str = ""
    also: Callable[[Figures], bool] = lambda found: True

    @property
    def goal(self) -> str:
        """The bound as text."""
        return self.says or (f"≥ {self.least}" if self.least else f"≤ {self.most}" if self.most else "")

    def of(self, found: Figures) -> Figures:
        """Return the figure. Raises KeyError where it was not measured."""
        for name in self.at.split("."):
            found = found[name]
        return found if isinstance(found, dict) else {"median": found}

    def met(self, found: Figures) -> bool:
        """Whether it was reached."""
        median = self.of(found)["median"]

        def value(bound: Bound) -> float:
            return bound(found) if callable(bound) else bound

        low = self.least is None or median >= value(self.least)
        return low and (self.most is None or median <= value(self.most)) and self.also(found)


GOALS = [
    Goal(
        "private rows decoding, tokens a CPU second against the loop",
        "rows.decoding.times_loop",
        1,
        least=lambda found: 5 if found["rows"]["decoding"]["rows"] == 16 else 3,
        says="≥ 5 (110 M and more: ≥ 3)",
    ),
    Goal("the same against peft's mixed batch", "rows.decoding.times_peft", 1),
    Goal("seconds of the same, of a plain batch's", "rows.decoding.of_plain", 2, most=1.3),
    Goal(
        "8 adaptations together, pieces of 128 tokens, against one by one", "rows.together.128", 2, least=1.3
    ),
    Goal("the same, pieces of 32", "rows.together.32", 2, least=2),
    Goal("8 rows of kNN-LM writing together against one by one, CPU", "mixing.times_one_by_one", 1),
    Goal("HTTP over the same work without it, CPU ms a request", "http.request", 2, most=1.5),
    Goal("the same, a token", "http.token", 3, most=0.1),
    Goal(
        "through stock Starlette before a process that does this work alone, a request",
        "http.stock_request",
        2,
    ),
    Goal("the same, a token", "http.stock_token", 3),
    Goal("of all this the door's own, a request", "http.door_a_request", 2),
    Goal("the same, a token", "http.door_a_token", 3),
    Goal("stock Starlette's own, a request", "http.stock_door_a_request", 2),
    Goal("the same, a token", "http.stock_door_a_token", 3),
    Goal("first token of a kept state over the base's, ms", "waits.hit_over_base", 1, most=10),
    Goal("first token of a state that is made over adapting's, ms", "waits.made_over_adapting", 1, most=15),
    Goal("CPU ms of the engine to the base's first token", "first.base.all", 1),
    Goal("the same to a kept state's", "first.hit.all", 1),
    Goal("the same to that of a state that is made, but for adapting", "first.made.all", 1),
    Goal("a session's hit against its making, k=20, times sooner", "waits.session_times", 0, least=20),
    Goal(
        "a client leaves: ms until its row is free",
        "leaving.freed",
        0,
        most=lambda found: found["leaving"]["step"]["median"] + 50,
        says="≤ a step + 50",
    ),
    Goal(
        "10,000 states (110 M and more: 400) under 64 MB: memory of both processes, ± share",
        "states.memory_range",
        3,
        most=0.05,
        says="≤ 0.05, all answer",
        also=lambda found: found["states"]["codes"] == {"200": found["states"]["states"]},
    ),
    Goal("ready after kill -9 over loading the model, s", "ready.over", 2, most=2),
]


def told(figure: Figures, digits: int) -> str:
    """Return a figure as text: its median, and the range of its runs."""
    text = f"{figure['median']:.{digits}f}"
    return (
        f"{text} [{figure['least']:.{digits}f}, {figure['most']:.{digits}f}]" if "least" in figure else text
    )


def show(found: dict[str, Figures]) -> None:
    """Print the goals, and what each model reached."""
    table = Table("what", "goal", *found, title="medians \\[range of the runs]; * missed")
    for goal in GOALS:
        cells = []
        for own in found.values():
            try:
                cells.append(told(goal.of(own), goal.digits) + ("" if goal.met(own) else " *"))
            except KeyError:
                cells.append("")
        table.add_row(goal.what, goal.goal, *cells)
    Console(width=150).print(table)


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--json", type=Path, default=OUT)
    parser.add_argument(
        "--show", action="store_true", help="print the table of what was found, and run nothing"
    )
    asked = parser.parse_args()
    found = json.loads(asked.json.read_text()) if asked.json.exists() else {}
    if not asked.show:
        name = asked.model.absolute().name  # of a link, where it is one
        large = sum(each.stat().st_size for each in asked.model.glob("*.safetensors")) > 2 * LARGE
        for part in asked.only.split(","):
            started = time.monotonic()
            own = json.loads(json.dumps(PARTS[part](asked.model, large)))
            found.setdefault(name, {})[part] = own
            print(part, f"{time.monotonic() - started:.0f} s", json.dumps(own), flush=True)
            asked.json.write_text(json.dumps(found, indent=1) + "\n")
    show(found)


if __name__ == "__main__":
    main()
