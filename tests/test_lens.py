"""The page of a server in a real browser: it runs, stops, shows hostile text as text, asks nobody else."""

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import server_world
from server_world import Running

pytestmark = pytest.mark.long
CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script> the cat sat"
STOPS = """() => {
    const before = document.querySelector('#before');
    new MutationObserver((_, me) => {
        if (before.textContent.length > 3) { me.disconnect(); document.querySelector('#stop').click(); }
    }).observe(before, {childList: true, characterData: true, subtree: true});
}"""
# Where pictures of the page go, for the documentation.
PICTURES = os.environ.get("UPTAKE_PICTURES")


@pytest.fixture(scope="module", name="server")
def server_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("server")
    with server_world.running(server_world.config(folder, data=str(folder / "data"))) as found:
        yield found


@pytest.fixture(scope="module", name="browser")
def browser_fixture() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("there is no chromium here")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1200, "dark")])
def test_a_person_sees_what_reading_does(server: Running, browser: Any, width: int, scheme: str) -> None:
    page = browser.new_page(bypass_csp=True, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(120_000)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.url}/lens")
    page.wait_for_function("document.querySelector('#model').options.length > 1")
    page.fill("#prompt", "the cat sat on")
    page.fill("#tokens", "12")
    page.locator("summary").first.click()
    page.fill("#own", HOSTILE)
    page.click("#run")
    page.wait_for_function("document.querySelector('#status').textContent.startsWith('done')")
    body = {"model": "toy", "prompt": "the cat sat on", "max_tokens": 12, "temperature": 0}
    assert page.text_content("#before") == server.post("/v1/completions", body).json()["choices"][0]["text"]
    after = page.text_content("#after")
    assert after and "[" not in after[-60:].split("]")[-1]
    # Hostile text was read, is shown as it is, and does nothing.
    assert HOSTILE in page.text_content("#neighbours") and page.evaluate("window.hacked") is None
    # Without one of them, it is read again: what is left alone, and nothing is searched.
    boxes = page.locator("#neighbours input")
    count, again = boxes.count(), page.locator("#again")
    assert count > 1 and again.is_disabled()
    boxes.last.uncheck()
    again.click()
    page.wait_for_function(f"document.querySelectorAll('#neighbours input').length === {count - 1}")
    page.wait_for_function("document.querySelector('#status').textContent.startsWith('done')")
    page.click("#keep")
    page.wait_for_selector("#kept a")
    page.fill("#text", " the mat and " + HOSTILE)
    page.click("#score button")
    page.wait_for_function("document.querySelector('#status').textContent === 'scored'")
    assert page.locator(".strip").count() == 3 and page.locator(".strip span.marked").count() > 0
    page.locator(".strip span").last.focus()
    assert "bits gained" in page.text_content("#token")
    assert page.evaluate("window.hacked") is None
    # Nothing stands beyond the edge of a narrow screen.
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/lens-{width}.png", full_page=True)
    assert said == [] and all(url.startswith((server.url, "data:")) for url in asked)
    page.close()


def test_another_method_store_and_number_of_neighbours_are_chosen(server: Running, browser: Any) -> None:
    page = browser.new_page(bypass_csp=True)
    page.set_default_timeout(120_000)
    page.goto(f"{server.url}/lens")
    page.wait_for_function("document.querySelector('#model').options.length > 1")
    names = page.eval_on_selector_all("#methods option", "all => all.map((each) => each.value)")
    assert {"in-context", "ttt-nn"} <= set(names)
    page.select_option("#model", "toy")
    page.click("#other summary")
    page.fill("#method", "in-context")
    page.select_option("#store", "notes")
    page.fill("#count", "1")
    # A passage of the store, word for word: that it stands in the prompt is marked.
    page.fill("#prompt", server_world.TEXTS[0])
    page.click("#run")
    page.wait_for_function("document.querySelector('#status').textContent.startsWith('done')")
    assert page.locator("#neighbours li").count() == 1
    assert "overlap 100 %" in page.text_content("#neighbours li.overlapping summary")
    page.fill("#text", " the mat and more")
    page.click("#score button")
    page.wait_for_function("document.querySelector('#status').textContent === 'scored'")
    titles = page.locator("#strips h3").all_text_contents()
    assert [title.partition(",")[0] for title in titles] == [
        "base",
        "after reading",
        "control: passages drawn at random",
    ]
    assert "1 of its passages stand in the text" in titles[1]
    page.close()


def test_stop_frees_the_rows(server: Running, browser: Any) -> None:
    page = browser.new_page(bypass_csp=True)
    page.set_default_timeout(120_000)
    page.goto(f"{server.url}/lens")
    page.wait_for_function("document.querySelector('#model').options.length > 1")
    page.fill("#prompt", "a")
    page.fill("#tokens", "250")
    # Within the page, since the toy has written all before a click from here arrives.
    page.evaluate(STOPS)
    page.click("#run")
    page.wait_for_function("document.querySelector('#status').textContent === 'stopped'")
    for _ in range(200):
        facts = server.http.get("/metrics").text
        if 'what="rows"} 0.0' in facts and "uptake_running 0.0" in facts:
            break
    assert 'what="rows"} 0.0' in facts and "uptake_running 0.0" in facts
    page.close()


def test_a_text_is_forgotten_with_a_receipt(tmp_path: Path, browser: Any) -> None:
    config = server_world.config(tmp_path, data=str(tmp_path / "data"))
    with server_world.running(config) as server:
        made = server.post("/uptake/memories", {"user": "ann", "text": "the cat sat on ann's mat"}).json()[
            "id"
        ]
        page = browser.new_page(bypass_csp=True)
        page.set_default_timeout(120_000)
        page.goto(f"{server.url}/lens")
        page.wait_for_function("document.querySelector('#model').options.length > 1")
        # The page lists what a request has read; here one that read a memory.
        told = server.post(
            "/v1/completions",
            {"model": "toy", "prompt": "cat", "uptake": {"method": "in-context", "memory": "ann", "k": 1}},
        ).json()["uptake"]
        assert [each["document"] for each in told["neighbours"]] == [f"{made}/0"]
        page.route(
            "**/v1/completions",
            lambda route: route.continue_(
                post_data=json.dumps(
                    {
                        **json.loads(route.request.post_data),
                        "model": "toy",
                        "uptake": {"method": "in-context", "memory": "ann", "k": 1, "explain": True},
                    }
                )
            ),
        )
        page.fill("#prompt", "cat")
        page.click("#run")
        forget = page.locator("#neighbours button").first
        forget.click()
        forget.click()
        page.wait_for_function("document.querySelector('#receipt').textContent.includes('is forgotten')")
        assert made in page.text_content("#receipt") and "1 texts" in page.text_content("#receipt")
        assert server.http.get(f"/uptake/memories/{made}").status_code == 404
        page.close()


def test_what_came_of_reading_is_kept_and_downloaded(tmp_path: Path, browser: Any) -> None:
    config = server_world.config(tmp_path, data=str(tmp_path / "data"))
    with server_world.running(config) as server:
        page = browser.new_page(bypass_csp=True, accept_downloads=True)
        page.set_default_timeout(120_000)
        page.goto(f"{server.url}/lens")
        page.wait_for_function("document.querySelector('#model').options.length > 1")
        assert page.locator("#keep").is_disabled()
        page.fill("#prompt", "the cat sat on")
        page.fill("#tokens", "8")
        page.click("#run")
        page.wait_for_function("document.querySelector('#status').textContent.startsWith('done')")
        after = page.text_content("#after")
        page.click("#keep")
        name = page.text_content("#kept code")
        body = {"model": name, "prompt": "the cat sat on", "max_tokens": 8, "temperature": 0}
        assert server.post("/v1/completions", body).json()["choices"][0]["text"] == after
        with page.expect_download() as found:
            page.click("#kept a")
        state = name.partition("@")[2]
        assert found.value.suggested_filename == f"{state}.zip"
        with zipfile.ZipFile(found.value.path()) as packed:
            assert "adapter_model.safetensors" in packed.namelist()
        # It is among what can be asked, and says the same.
        page.select_option("#model", name)
        page.click("#run")
        page.wait_for_function("document.querySelector('#status').textContent.startsWith('done')")
        assert page.text_content("#after") == after
        page.fill("#text", " the mat")
        page.click("#score button")
        page.wait_for_function("document.querySelector('#status').textContent === 'scored'")
        assert page.locator(".strip").count() == 2
        # What is no adapter is told, and the page goes on.
        page.select_option("#model", "toy+read")
        page.click("#run")
        page.wait_for_function("document.querySelector('#status').textContent.startsWith('done')")
        assert page.text_content("#kept") == ""
        page.click("#keep")
        page.click("#kept a")
        page.wait_for_function("document.querySelector('#status').className === 'error'")
        assert "changes more than weights" in page.text_content("#status")
        page.close()


def test_what_goes_wrong_is_said(server: Running, browser: Any) -> None:
    page = browser.new_page(bypass_csp=True)
    page.set_default_timeout(120_000)
    page.goto(f"{server.url}/lens")
    page.wait_for_function("document.querySelector('#model').options.length > 1")
    page.fill("#prompt", "a" * 400)
    page.click("#run")
    page.wait_for_function("document.querySelector('#status').className === 'error'")
    assert "room for 256 tokens" in page.text_content("#status")
    page.close()
