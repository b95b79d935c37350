"""Every verb as a person runs it: what it prints, what it writes, and that it goes on after Ctrl-C."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from cli_world import Run, World, made_fixture, refused, run_fixture, world_fixture, write_lines  # noqa: F401
from tests import toys
from uptake.evaluation.journal import Journal

# The report's keys, as they were promised.
METHOD_KEYS = {
    "bits_per_byte",
    "base_bits_per_byte",
    "gain",
    "gain_ci",
    "share_helped",
    "queries",
    "failed",
    "cpu_seconds_per_query",
    "tokens_trained_per_query",
    "peak_rss_bytes",
    "overlap_bins",
}
SMALL = ("--suffix", "80", "-k", "2", "--no-leak-filter")


def test_build_add_search_remove_export(run: Run, world: World, tmp_path: Path) -> None:
    store = tmp_path / "new.store"
    built = run("index", "build", store, world.corpus, "--retriever", "lexical", "--chunk", "256", "--json")
    assert built.code == 0
    assert built.json["documents"] == 24 and built.json["passages"] == built.json["passages_added"]

    again = run("index", "build", store, world.corpus, "--retriever", "lexical", "--chunk", "256", "--json")
    assert (
        again.json["passages_added"] == 0 and again.json["passages_already_there"] == built.json["passages"]
    )

    more = write_lines(tmp_path / "more.jsonl", {"id": "anchor", "text": "the anchor chain"}, {"text": 5})
    added = run("index", "add", store, more)
    assert added.code == 0 and added.out.startswith("added 1 passage of 1 document;")
    assert (
        added.err == f"left out: skipped 1: 1 text is not a string (first: {more}:2: text is not a string)\n"
    )

    found = run("index", "search", store, "anchor chain", "-k", "1", "--json").json
    assert [(hit["document"], hit["text"]) for hit in found] == [("anchor", "the anchor chain")]
    assert "anchor, line 1 @ 0" in run("index", "search", store, "anchor chain").out

    out = tmp_path / "out.parquet"
    assert run("index", "export", store, out).out == f"wrote {added.out.split()[-1]} passages to {out}\n"
    removed = run("index", "remove", store, "anchor", "--json").json
    assert removed["passages_removed"] == 1 and removed["passages"] == built.json["passages"]
    nothing = run("index", "search", store, "anchor chain")
    assert (nothing.code, nothing.out) == (0, "") and "nothing found" in nothing.err


def test_purged_text_is_gone_from_the_disk(run: Run, world: World, tmp_path: Path) -> None:
    secret = write_lines(tmp_path / "s.jsonl", {"id": "s", "text": "the zanzibarcode is hidden"})
    run("index", "add", world.lexical, secret)
    held = [file for file in world.lexical.rglob("*") if file.is_file()]
    assert any(b"zanzibarcode" in file.read_bytes() for file in held)
    assert "rewrote the files" in run("index", "remove", "--purge", world.lexical, "s").out
    held = [file for file in world.lexical.rglob("*") if file.is_file()]
    assert not any(b"zanzibarcode" in file.read_bytes() for file in held)


def test_info_and_verify(run: Run, world: World) -> None:
    told = run("index", "info", world.dense, "--json").json
    assert told["documents"] == 24 and told["encoder"] == f"lm:{world.model}"
    shown = run("index", "info", world.dense).out.splitlines()
    assert "documents 24" in [" ".join(line.split()) for line in shown]
    assert run("index", "verify", world.dense).out == "sound: no fault found\n"
    assert run("index", "verify", world.dense, "--json").json == {"faults": []}


def test_a_store_of_vectors_in_half_the_room(run: Run, world: World, tmp_path: Path) -> None:
    half = tmp_path / "half"
    build = ("index", "build", half, world.corpus, "--encoder", f"lm:{world.model}", "--retriever", "dense")
    assert run(*build, "--vectors", "float16").code == 0
    assert run("index", "info", half, "--json").json["vectors"] == "float16"
    assert run("index", "info", world.dense, "--json").json["vectors"] == "float32"
    assert run("index", "info", world.lexical, "--json").json["vectors"] == "none"
    whole = run("index", "search", world.dense, "anchor chain", "--json").json
    found = run("index", "search", half, "anchor chain", "--json").json
    assert [one["document"] for one in found] == [one["document"] for one in whole]
    run("index", "remove", "--purge", half, "anchor/0")
    assert run("index", "verify", half).out == "sound: no fault found\n"
    assert run("index", "export", half, tmp_path / "half.parquet").code == 0
    refused(run(*build), "is there with vectors float16, not float32")
    refused(run(*build, "--vectors", "half"), "--vectors", "float16")
    lexical = ("index", "build", tmp_path / "l", world.corpus, "--retriever", "lexical")
    refused(run(*lexical, "--vectors", "float16"), "a lexical store has none")


def test_eval_writes_the_report_and_leaves_no_journal(run: Run, world: World, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    ran = run("eval", "--model", world.model, "--store", world.lexical, "--data", world.data,
              "--method", "ttt-nn", *SMALL, "--set", "learning_rate=2e-5", "--json", out)  # fmt: skip
    assert ran.code == 0 and ran.err == f"report: {out}\n"
    assert "ttt-nn" in ran.out and "6 queries: ttt-nn saves" in ran.out
    report = json.loads(out.read_text())
    assert set(report["methods"]) == {"ttt-nn"}
    figures = report["methods"]["ttt-nn"]
    assert figures.keys() >= METHOD_KEYS
    assert figures["cpu_seconds_per_query"].keys() == {"retrieve", "train", "score", "total"}
    assert figures["queries"] == 6 and figures["failed"] == 0 and figures["tokens_trained_per_query"] > 0
    assert {"seed", "versions", "model", "store", "settings"} <= report.keys()
    assert report["model"]["fingerprint"] and report["store"]["fingerprint"]
    assert report["settings"]["ttt-nn"]["optimizer"]["learning_rate"] == 2e-5
    assert [path.name for path in tmp_path.iterdir() if "journal" in path.name] == []


def test_compare_writes_page_and_report(run: Run, world: World, tmp_path: Path) -> None:
    out, page = tmp_path / "out.json", tmp_path / "page.html"
    ran = run("compare", "-m", world.model, "-s", world.lexical, "--data", world.data, "--suffix", "80",
              "-k", "1,2", "--set", "learning_rate=1e-3", "--json", out, "--html", page)  # fmt: skip
    assert ran.code == 0 and "gain at k" in ran.out
    report = json.loads(out.read_text())
    assert list(report["methods"]) == [
        "base", "random", "in-context", "n-gram", "ttt-nn", "in-context+n-gram", "in-context+n-gram/ttt-nn"
    ]  # fmt: skip
    assert [at["k"] for at in report["methods"]["ttt-nn"]["by_k"]] == [1, 2]
    assert report["settings"]["random"]["optimizer"]["learning_rate"] == 1e-3
    assert page.read_text().startswith("<!doctype html>") or "<html" in page.read_text()[:200]


def test_the_table_never_loses_the_method_on_a_narrow_screen(
    run: Run, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    ran = run("compare", "-m", world.model, "-s", world.lexical, "--data", world.data, *SMALL, "--limit", "2")
    assert max(map(len, ran.out.splitlines()[:-1])) <= 60
    assert re.search(r"in-context\+n-gram/ttt-nn +2", ran.out) and "…" not in ran.out


def test_the_base_alone_needs_no_store(run: Run, world: World) -> None:
    ran = run("compare", "-m", world.model, "--data", world.data, "--methods", "base", "--json", "-")
    assert ran.code == 0 and ran.err == "" and list(ran.json["methods"]) == ["base"]


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (("--methods", "base"), "no method retrieves neighbours"),
        (("--methods", "finetune", "--protocol", "running"), "--protocol running needs none"),
        (("--methods", "ttt-nn", "-k", "0"), "-k is 0"),
    ],
)
def test_a_store_that_is_not_needed_is_not_opened(run: Run, world: World, asked, why) -> None:
    ran = run("compare", "-m", world.model, "-s", "nowhere", "--data", world.data, "--limit", "1", *asked)
    assert (ran.code, ran.err) == (0, f"--store nowhere is not used: {why}\n")


def test_generate(run: Run, world: World) -> None:
    asked = ("generate", "-m", world.model, "-s", world.lexical, "-k", "2", "--tokens", "5", "The pump")
    plain = run(*asked, "--neighbours")
    assert plain.code == 0 and plain.out.startswith("The pump") and "pump/" in plain.err
    told = run(*asked, "--json").json
    assert told["prompt"] + told["text"] + "\n" == plain.out
    assert [n["document"].split("/")[0] for n in told["neighbours"]] == ["pump", "pump"]
    base = run("generate", "-m", world.model, "--method", "base", "--tokens", "5", "The pump")
    assert base.code == 0 and base.err == ""


def test_generate_says_what_stopped_reading(run: Run, world: World) -> None:
    asked = ("generate", "-m", world.model, "-s", world.lexical, "-k", "3", "--tokens", "5", "The pump")
    base = run("generate", "-m", world.model, "--method", "base", "--tokens", "5", "The pump").out
    wild = run(*asked, "--set", "learning_rate=1e20")
    assert wild.code == 3 and wild.out == base
    assert "ttt-nn stopped" in wild.err and "smaller learning rate" in wild.err and wild.err.count("\n") == 1
    told = run(*asked, "--set", "learning_rate=1e20", "--json")
    assert told.code == 3 and told.json["stopped"]["kind"] == "diverged"
    assert told.json["stopped"]["reason"] in wild.err
    short = run(*asked, "--max-steps", "1")
    assert short.code == 0 and "1 of 1 steps are taken; the answer uses what was read" in short.err
    assert run(*asked, "--max-steps", "1", "--json").json["stopped"]["kind"] == "budget"
    whole = run(*asked, "--json")
    assert (whole.code, whole.json["stopped"]) == (0, None) and "stopped" not in whole.err
    assert whole.err.startswith("ttt-nn: learning rate ") and whole.err.count("\n") == 1


def test_generate_says_when_nothing_was_found(run: Run, world: World) -> None:
    ran = run("generate", "-m", world.model, "-s", world.lexical, "--tokens", "1", "zzz")
    assert ran.code == 0 and "this is the base model's answer" in ran.err


def test_methods(run: Run) -> None:
    assert {"base", "random", "in-context", "ttt-nn"} <= run("methods", "--json").json.keys()
    assert "ttt-nn" in run("methods").out
    assert "making.kind" in run("methods", "source-code").out
    shown = run("methods", "ttt-nn").out
    assert "optimizer.learning_rate" in shown and "lora(rank=16" in shown
    assert "nearest-first | farthest-first" in shown
    blank = run("methods", "in-context").out
    assert re.search(r"separator +'\\n\\n' +text", blank)


def figures_of(path: Path) -> object:
    """The report without what no two runs share: seconds, memory and so the sum over all."""

    def timeless(value: object) -> object:
        if isinstance(value, dict):
            return {
                key: timeless(part)
                for key, part in value.items()
                if key != "sha256" and not key.endswith(("_seconds", "_bytes", "_seconds_per_query"))
            }
        return [timeless(part) for part in value] if isinstance(value, list) else value

    return timeless(json.loads(path.read_text()))


def test_an_interrupted_eval_goes_on(
    run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (
        "eval",
        "-m",
        world.model,
        "-s",
        world.lexical,
        "--data",
        world.data,
        *SMALL,
        "--batch",
        "1",
        "--json",
    )
    whole, broken = tmp_path / "whole.json", tmp_path / "broken.json"
    assert run(*asked, whole).code == 0

    kept = 0
    keep = Journal.keep

    def keep_two(*arguments) -> None:
        nonlocal kept
        keep(*arguments)
        kept += 1
        if kept == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "keep", keep_two)
        stopped = run(*asked, broken)
    journal = tmp_path / "broken.json.journal"
    assert stopped.code == 130 and str(journal) in stopped.err and stopped.err.count("\n") == 1
    assert journal.is_file() and not broken.exists()
    # A line cut short, as by a crash, is that query not done.
    journal.write_bytes(journal.read_bytes()[:-20])
    ran = run(*asked, broken)
    assert ran.code == 0 and "resuming an interrupted run: 1 of 6 are done" in ran.err
    assert figures_of(broken) == figures_of(whole)
    assert not journal.exists()


def test_fresh_begins_anew(run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = (
        "eval",
        "-m",
        world.model,
        "--method",
        "base",
        "--data",
        world.data,
        "--json",
        tmp_path / "o.json",
    )
    with monkeypatch.context() as patched:
        patched.setattr(
            "uptake.report.summary.write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        assert run(*asked).code == 130
    assert "resuming" in run(*asked).err
    with monkeypatch.context() as patched:
        patched.setattr(
            "uptake.report.summary.write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        assert run(*asked).code == 130
    assert "resuming" not in run(*asked, "--fresh").err


def test_a_journal_of_rubbish_is_refused_and_deleted_if_asked(run: Run, world: World, tmp_path: Path) -> None:
    (tmp_path / "o.json.journal").write_bytes(b'\xff\x00{"rows": 5}\n[]\n')
    asked = ("eval", "-m", world.model, "--method", "base", "--data", world.data)
    asked = (*asked, "--json", tmp_path / "o.json")
    refused(run(*asked), "o.json.journal", "not a journal", "--fresh")
    assert run(*asked, "--fresh").code == 0 and not (tmp_path / "o.json.journal").exists()


def test_another_plan_does_not_erase_what_is_finished(
    run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("eval", "-m", world.model, "-s", world.lexical, "--data", world.data, *SMALL, "--json")
    asked = (*asked, tmp_path / "o.json")
    with monkeypatch.context() as patched:
        patched.setattr("uptake.report.summary.write_json", _interrupted)
        assert run(*asked).code == 130
    before = (tmp_path / "o.json.journal").read_bytes()
    ran = run(*asked, "--seed", "1", "--limit", "3")
    refused(ran, "o.json.journal", "not the same: seed, documents", "--fresh")
    assert (tmp_path / "o.json.journal").read_bytes() == before
    assert "6 of 6 are done" in run(*asked).err


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_long_documents_cost_no_more_than_what_is_scored(
    run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, real = [0], PreTrainedTokenizerBase.__call__

    def counted(tokenizer: PreTrainedTokenizerBase, text: str, *more: object, **named: object) -> Any:
        lengths.append(len(text))
        return real(tokenizer, text, *more, **named)

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", counted)
    long = write_lines(
        tmp_path / "long.jsonl", {"id": "long", "text": "All the pumps of the world. " * 100_000}
    )
    asked = ("eval", "-m", world.model, "--data", long, "--method", "base", "--suffix", "80", "--json", "-")
    assert run(*asked).json["methods"]["base"]["queries"] == 1
    assert 80 <= max(lengths) < 10_000, "what is scored and what stands before it, not the whole"
    built = run(
        "index", "build", tmp_path / "s", long, "--retriever", "lexical", "--chunk", "50000", "--json"
    )
    assert max(lengths) < 10_000
    assert built.json["documents"] == 1 and built.json["passages"] >= 50


def test_starting_reads_nothing_heavy_and_says_the_version() -> None:
    asked = (
        "import sys; from uptake.cli.main import main; sys.argv = ['uptake', sys.argv[1]]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )

    def start(option: str) -> tuple[str, set[str]]:
        told = subprocess.run(
            [sys.executable, "-c", asked, option], capture_output=True, text=True, check=True
        )
        return told.stdout, set(ast.literal_eval(told.stderr))

    told, read = start("--help")
    verbs = ("index", "eval", "compare", "generate", "methods")
    assert [verb for verb in verbs if verb not in told] == []
    # Each of these takes a tenth of a second or more to import; together they are seconds.
    assert read & {"torch", "transformers", "numpy", "pyarrow", "lance", "faiss", "peft", "jinja2"} == set()
    assert "uptake" in read
    assert start("--version")[0].startswith("uptake ")


def test_a_reader_that_leaves_is_no_error() -> None:
    program = Path(sys.executable).with_name("uptake")
    shell = f"'{program}' methods --json | head -c 1; exit ${{PIPESTATUS[0]}}"
    told = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert told.stderr == "" and told.returncode in (0, 1)


def test_a_tuned_recipe_is_taken_by_eval_compare_and_generate(
    run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import uptake.evaluation.tune

    small = uptake.evaluation.tune.Space(trainable=("all",), start=1e-2, climbs=1, ks=(1, 2), others=())
    monkeypatch.setattr(uptake.evaluation.tune, "Space", lambda **_: small)
    common = ("-m", world.model, "-s", world.lexical, "--data", world.data, "--suffix", "80", "--limit", "2")
    recipe = tmp_path / "r.recipe"
    tuned = run("tune", *common, "-k", "1,2", "--out", recipe, "--json")
    assert tuned.code == 0 and tuned.json["recipe"]["method"] == "ttt-nn" and tuned.json["frontier"]
    assert "tried, best so far" in tuned.err
    k, settings = tuned.json["recipe"]["k"], tuned.json["recipe"]["settings"]
    rate = float(settings[1].partition("=")[2])

    report = run("eval", *common, "--recipe", recipe, "--json", "-").json
    assert report["methods"]["ttt-nn"]["k"] == k
    assert report["settings"]["ttt-nn"]["optimizer"]["learning_rate"] == rate
    report = run(
        "compare", *common, "--methods", "base,random", "--recipe", recipe, "-k", "1",
        "--set", "random.learning_rate=2e-5", "--json", "-"
    ).json  # fmt: skip
    assert list(report["methods"]) == ["base", "random", "ttt-nn"] and report["methods"]["ttt-nn"]["k"] == 1
    assert report["settings"]["random"]["optimizer"]["learning_rate"] == 2e-5
    written = run(
        "generate", "-m", world.model, "-s", world.lexical, "--recipe", recipe, "--json", "The pump"
    ).json
    assert len(written["neighbours"]) == k

    shown = run("tune", *common, "-k", "1,2", "--out", recipe)
    assert shown.code == 0 and ">" in shown.out and "CPU s a query" in shown.out
    for arguments, words in (
        (("eval", *common, "--method", "random", "--recipe", recipe), "the recipe is for ttt-nn"),
        (("eval", *common, "--recipe", world.data), "no recipe"),
        (("tune", *common, "--budget", "soon", "--out", recipe), "--budget soon"),
        (("tune", *common, "--budget", "0.00001s", "-k", "1", "--out", recipe), "no setting keeps to"),
        (("tune", *common, "--method", "base", "--out", recipe), "reads some"),
    ):
        failed = run(*arguments)
        assert failed.code == 2 and words in failed.err and failed.err.count("\nuptake: ") <= 1


def test_a_model_reads_a_store_token_by_token(run: Run, world: World) -> None:
    assert "tokens" not in json.loads(run("index", "info", world.lexical, "--json").out)
    read = json.loads(run("index", "tokens", world.lexical, "-m", world.model, "--json").out)
    assert read["tokens_read"] == read["tokens"] > 1000 and read["documents_read"] > 1
    again = run("index", "tokens", world.lexical, "-m", world.model)
    assert again.out == f"read 0 tokens of 0 documents; lexical.store holds {read['tokens']:,}\n"
    assert f"{read['tokens']:,}" in run("index", "info", world.lexical).out
    refused(run("index", "tokens", world.lexical, "-m", world.other), "were read by", "--fresh")
    fresh = run("index", "tokens", world.lexical, "-m", world.other, "--fresh", "--json")
    assert json.loads(fresh.out)["tokens_read"] == read["tokens"]


def test_what_enters_upper_blocks_is_kept_and_trained_from(run: Run, world: World) -> None:
    asked = ("index", "activations", world.lexical, "-m", world.model, "--layers", "1")
    few = run(*asked, "--max-bytes", "200000", "--json").json
    assert few["passages_read"] > 0 and few["tokens"] > 0
    rest = run(*asked, "--json").json
    assert rest["tokens"] == few["tokens"] + rest["tokens_read"] > 2 * few["tokens"]
    assert run(*asked).out == f"read 0 tokens of 0 passages; lexical.store holds {rest['tokens']:,}\n"
    info = run("index", "info", world.lexical, "--json").json
    assert info["activations"] == rest["tokens"] and info["activations_enter_top"] == 1
    common = ("--store", world.lexical, "--data", world.data, "-m", world.model, "--limit", "2", "-k", "2")
    trains = ("--method", "ttt-nn", "--set", "activations=view", "--set", "token_weights=baseloss")
    top = ("--set", "trainable=top(layers=1)")
    assert run("eval", *common, *trains, *top).code == 0
    refused(run("eval", *common, *trains), "trainable=top(layers=N)")
    refused(
        run("eval", *common, *trains, *top, "--set", "opening_token=false"),
        "with the opening token",
        "--fresh",
    )
    refused(run(*asked, "--no-opening-token"), "with the opening token", "--fresh")
    refused(run(*asked, "--keep-as", "float32"), "kept as float16, asked for is float32", "--fresh")
    refused(run(*asked, "--layers", "9"), "keep what enters the top 1 to 1")
    refused(run("index", "activations", world.lexical, "-m", world.other, "--layers", "1"), "--fresh")


@pytest.mark.parametrize("view", ["tokens", "chunks", "activations"])
def test_a_view_is_of_a_causal_model_and_an_encoder_decoder_is_refused(
    view: str, run: Run, world: World, tmp_path: Path
) -> None:
    toys.seq2seq_module().save_pretrained(tmp_path / "t5")
    toys.tokenizer().save_pretrained(tmp_path / "t5")
    ran = run("index", view, world.lexical, "-m", tmp_path / "t5")
    refused(ran, f"an index of {view} needs a causal model", "give a decoder")


def test_chunks_are_cut_once_and_another_length_is_refused(run: Run, world: World) -> None:
    asked = ("index", "chunks", world.lexical, "-m", world.model)
    cut = run(*asked, "--json").json
    assert cut["tokens_read"] == cut["tokens"] > 1000 and cut["documents_read"] > 1
    assert run(*asked).out == f"read 0 tokens of 0 documents; lexical.store holds {cut['tokens']:,}\n"
    refused(run(*asked, "--length", "32"), "of 64 tokens", "--fresh")
    refused(run(*asked, "--length", "1"), "chunk length 1")
    refused(run("index", "chunks", world.lexical, "-m", "./nowhere"), "is no folder")
    fresh = run(*asked, "--length", "32", "--fresh", "--json").json
    info = run("index", "info", world.lexical, "--json").json
    assert fresh["tokens_read"] == cut["tokens"] and info["chunk_tokens"] == 32
    assert info["chunks"] > info["documents"]
    assert run("index", "chunks", world.dense, "-m", world.model, "--json").json["tokens"] > 1000
