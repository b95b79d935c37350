// The page of a server: one prompt before and after reading. Whatever comes from a model or a store is shown as
// text, by textContent alone; nothing is asked of any other host.

const $ = (id) => document.getElementById(id);
let running = null;

$("key").value = sessionStorage.getItem("uptake-key") ?? "";
$("key").addEventListener("change", () => {
  sessionStorage.setItem("uptake-key", $("key").value.trim());
  models();
});

function headers() {
  const key = $("key").value.trim();
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").className = bad ? "error" : "";
}

async function told(response) {
  if (response.ok) return response;
  let error = { message: `the server answered ${response.status}` };
  try { error = (await response.json()).error; } catch { /* no JSON: the status is all there is */ }
  const wait = response.headers.get("retry-after");
  throw Object.assign(new Error(error.message + (wait ? ` (again in ${wait} s)` : "")), { param: error.param });
}

async function models() {
  try {
    const found = await (await told(await fetch("/v1/models", { headers: headers() }))).json();
    const writers = found.data.filter((each) => each.uptake.method !== "embeddings");
    const [plain, ...recipes] = writers.map((each) => each.uptake);
    keeps = plain.keeps_stores;
    const offered = [...writers.map((each) => each.id), ...(keeps ? await kept() : [])];
    const chosen = $("model").value;
    $("model").replaceChildren(...offered.map((each) => new Option(each, each)));
    $("model").value = offered.includes(chosen) ? chosen : offered[1] ?? offered[0];
    $("methods").replaceChildren(...plain.methods.map((each) => new Option(each)));
    await stores(recipes.map((each) => each.store), plain.keeps_stores);
    say("");
  } catch (error) {
    $("keys").open = true;
    say(error.message, true);
  }
}

// The states that were kept, by the names they answer to.
async function kept() {
  const found = await told(await fetch("/uptake/states?limit=100", { headers: headers() }));
  return (await found.json()).data.filter((each) => each.answers).map((each) => each.model);
}

async function stores(named, own_too) {
  const found = [...new Set(named.filter(Boolean))].map((each) => new Option(each, each));
  if (own_too) {
    const own = await (await told(await fetch("/v1/vector_stores?limit=100", { headers: headers() }))).json();
    found.push(...own.data.map((each) => new Option(each.name ? `${each.name} (${each.id})` : each.id, each.id)));
  }
  const chosen = $("store").value;
  $("store").replaceChildren($("store").options[0], ...found);
  $("store").value = found.some((each) => each.value === chosen) ? chosen : "";
}

const base = () => $("model").options[0]?.value;

// Whether the server keeps anything, and the last request that could be kept.
let keeps = false, keepable = null;

// How the model adapts, as far as its name alone does not say it.
function adaptation() {
  const method = $("method").value.trim(), settings = $("settings").value.split(/\s+/).filter(Boolean);
  const own = $("own").value, store = $("store").value, count = $("count").value;
  return {
    ...(method ? { method } : {}),
    ...(settings.length ? { settings } : {}),
    ...(store ? { store } : {}),
    ...(count === "" ? {} : { k: Number(count) }),
    ...(own ? { texts: [own] } : {}),
    explain: true,
  };
}

function body(model, adapts) {
  return {
    model,
    prompt: $("prompt").value,
    max_tokens: Number($("tokens").value),
    temperature: Number($("temperature").value),
    seed: Number($("seed").value),
    ...(adapts ? { uptake: { ...adaptation(), ...(left ? { texts: left, k: 0 } : {}) } } : {}),
  };
}

// The base becomes another model where a method is named.
const adapts = () => $("model").value !== base() || $("method").value.trim() !== "";

async function write(asked, out, signal) {
  out.textContent = "";
  out.className = "";
  out.setAttribute("aria-busy", "true");
  try {
    const sent = { method: "POST", headers: headers(), body: JSON.stringify({ ...asked, stream: true }), signal };
    const response = await told(await fetch("/v1/completions", sent));
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = "", part; !(part = await reader.read()).done;) {
      const lines = (rest + part.value).split("\n\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: {")) continue;
        const found = JSON.parse(line.slice(6));
        if (found.error) throw new Error(found.error.message);
        if (found.uptake) neighbours(found.uptake);
        out.append(found.choices?.[0]?.text ?? "");
      }
    }
  } catch (error) {
    const cut = document.createElement("span");
    cut.className = "error";
    cut.textContent = signal.aborted ? " [stopped]" : ` [${error.message}]`;
    out.append(cut);
    if (!signal.aborted) throw error;
  } finally {
    out.removeAttribute("aria-busy");
  }
}

// What was read may be read again without some of it: then nothing is searched, and what is ticked is read as texts.
let left = null;

async function forget(near) {
  const kind = near.document.startsWith("mem_") ? "/uptake/memories/" : "/v1/files/";
  const id = near.document.split("/")[0];
  try {
    const sent = { method: "DELETE", headers: headers() };
    const told_ = await (await told(await fetch(kind + encodeURIComponent(id), sent))).json();
    const went = Object.entries(told_.uptake.forgotten).map(([what, count]) => `${count} ${what}`);
    $("receipt").textContent = `${id} is forgotten: ${went.join(", ") || "nothing was made of it"}`;
    return true;
  } catch (error) {
    say(error.message, true);
    return false;
  }
}

function ticked() {
  const boxes = [...document.querySelectorAll("#neighbours input")];
  left = boxes.length && boxes.some((box) => !box.checked) ? boxes.filter((box) => box.checked).map((box) => box.value) : null;
  $("again").disabled = left === null;
}

function tick(near) {
  const box = document.createElement("input");
  box.type = "checkbox";
  box.checked = true;
  box.value = near.text ?? "";
  box.setAttribute("aria-label", `read ${near.document || "your own text"} at ${near.start}`);
  box.addEventListener("change", ticked);
  return box;
}

function forgets(near, item) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Forget";
  let sure = false;
  button.addEventListener("click", async () => {
    if (!sure) {
      sure = true;
      button.textContent = "Forget the whole text for good?";
      return;
    }
    if (await forget(near)) {
      item.remove();
      ticked();
    }
  });
  return button;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

function neighbours(uptake) {
  const { ms, steps, tokens_trained: trained, cache, stopped } = uptake;
  $("cost").textContent =
    `${cache}: found in ${ms.search} ms, adapted in ${ms.adapt} ms, ${steps} steps over ${trained} tokens` +
    (stopped ? `, stopped by ${stopped}` : "");
  $("neighbours").replaceChildren(...uptake.neighbours.map((near) => {
    const item = document.createElement("li"), more = document.createElement("details");
    const head = document.createElement("summary"), text = document.createElement("pre");
    const overlap = near.overlap ? `, overlap ${percent(near.overlap)}` : "";
    item.className = near.overlap ? "overlapping" : "";
    head.textContent = `${near.document || "your own text"} at ${near.start}, score ${near.score.toFixed(2)}${overlap}`;
    text.textContent = near.text ?? "";
    more.append(head, text);
    item.append(tick(near), more);
    if (/^(file|mem)_/.test(near.document)) item.append(forgets(near, item));
    return item;
  }));
  ticked();
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  left = null;
  run();
});
$("again").addEventListener("click", () => run());

// The same request once more, of one token: it reads the same, so what comes of it is the same state.
$("keep").addEventListener("click", async () => {
  $("keep").disabled = true;
  try {
    const asked = JSON.stringify({ ...keepable, max_tokens: 1, uptake: { ...keepable.uptake, keep: true } });
    const sent = { method: "POST", headers: headers(), body: asked };
    const { uptake } = await (await told(await fetch("/v1/completions", sent))).json();
    const name = document.createElement("code"), link = document.createElement("a");
    name.textContent = `${base()}@${uptake.state}`;
    link.href = `/uptake/states/${encodeURIComponent(uptake.state)}/adapter`;
    link.textContent = "Download adapter";
    link.addEventListener("click", (event) => {
      event.preventDefault();
      download(link.href, `${uptake.state}.zip`);
    });
    await models();
    $("kept").replaceChildren("Kept: it answers as the model ", name, ", whatever is asked. ", link);
  } catch (error) {
    $("keep").disabled = false;
    say(error.message, true);
  }
});

// Fetched and not followed, since a link would not send the key.
async function download(address, name) {
  try {
    const file = await (await told(await fetch(address, { headers: headers() }))).blob();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
    say(`downloaded ${name}`);
  } catch (error) {
    say(error.message, true);
  }
}

async function run() {
  running?.abort();
  const mine = (running = new AbortController());
  $("stop").disabled = false;
  say("running");
  const started = performance.now();
  $("cost").textContent = $("receipt").textContent = "";
  $("kept").replaceChildren();
  $("keep").disabled = true;
  const asked = [body(base(), false), body($("model").value, adapts())];
  const both = [write(asked[0], $("before"), mine.signal), write(asked[1], $("after"), mine.signal)];
  $("neighbours").replaceChildren();
  $("again").disabled = true;
  const failed = (await Promise.allSettled(both)).find((each) => each.status === "rejected");
  if (running !== mine) return;
  running = null;
  keepable = failed || mine.signal.aborted || !asked[1].uptake ? null : asked[1];
  $("keep").disabled = !keeps || !keepable;
  $("stop").disabled = true;
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  say(failed ? failed.reason.message : mine.signal.aborted ? "stopped" : `done in ${seconds} s`, Boolean(failed));
}
$("stop").addEventListener("click", () => running?.abort());

const BITS = Math.log(2);

function shown(raw) {
  try {
    return JSON.stringify(new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(raw)));
  } catch { // part of a character
    return "bytes:" + raw.map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("");
  }
}

function strip(found, against) {
  const box = document.createElement("div");
  box.className = "strip";
  found.tokens.forEach((token, place) => {
    const part = document.createElement("span"), was = against.tokens[place];
    const gained = (token.logprob - was.logprob) / BITS;
    part.textContent = token.text;
    part.tabIndex = 0;
    const strength = Math.min(1, Math.abs(gained) / 3);
    if (strength > 0.05) {
      part.className = "marked";
      // Mixed with white in the dark as well, since the letters on it are dark.
      const mixed = (gained > 0 ? [88, 160, 240] : [240, 150, 50])
        .map((full) => Math.round(255 + (full - 255) * (0.25 + 0.75 * strength)));
      part.style.backgroundColor = `rgb(${mixed.join(", ")})`;
    }
    const show = () => {
      const share = (each) => `${(100 * Math.exp(each.logprob)).toFixed(2)} %`;
      const best = token.top.map(([raw, value]) => `${shown(raw)} ${(100 * Math.exp(value)).toFixed(1)} %`);
      $("token").textContent =
        `"${token.text}": ${share(was)} before, ${share(token)} here, ${gained.toFixed(2)} bits gained\n` +
        `likeliest here: ${best.join(" | ")}`;
    };
    part.addEventListener("pointerenter", show);
    part.addEventListener("focus", show);
    box.append(part);
  });
  return box;
}

async function scored(compare) {
  const asked = JSON.stringify({ text: $("text").value, context: $("prompt").value, compare });
  const sent = { method: "POST", headers: headers(), body: asked };
  return (await (await told(await fetch("/uptake/score", sent))).json()).results;
}

$("score").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("strips").replaceChildren();
  say("scoring");
  const model = $("model").value, compare = [base()];
  if (adapts()) compare.push({ model, uptake: adaptation() });
  // A state that was kept has read what it has read.
  if (adapts() && !model.includes("@")) compare.push({ model, uptake: { ...adaptation(), control: true } });
  try {
    let results, none = "";
    try {
      results = await scored(compare);
    } catch (error) {
      if (!error.param?.endsWith("control")) throw error;
      results = await scored(compare.slice(0, 2));
      none = "; there is no control: nothing is chosen from a store";
    }
    const [before] = results, names = ["base", "after reading", "control: passages drawn at random"];
    results.forEach((found, place) => {
      const title = document.createElement("h3"), bits = `${found.bits_per_byte.toFixed(3)} bits a byte`;
      const copies = found.uptake?.neighbours.filter((near) => near.overlap).length;
      title.textContent = `${names[place]}, ${found.model}: ` + (place
        ? `${before.bits_per_byte.toFixed(3)} → ${bits}, adapted in ${Math.round(found.uptake.ms.adapt)} ms` +
          (copies ? `; ${copies} of its passages stand in the text, whole or in part` : "")
        : bits);
      $("strips").append(title, strip(found, before));
    });
    say("scored" + none);
  } catch (error) {
    say(error.message, true);
  }
});

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("copied");
  } catch {
    say(text);
  }
}
$("curl").addEventListener("click", () => {
  const quoted = JSON.stringify(body($("model").value, adapts())).replaceAll("'", "'\\''");
  const key = $("key").value ? " -H \"authorization: Bearer $UPTAKE_KEY\"" : "";
  copy(`curl ${location.origin}/v1/completions -H 'content-type: application/json'${key} -d '${quoted}'`);
});
$("python").addEventListener("click", () => {
  const { uptake, ...rest } = body($("model").value, adapts());
  const more = uptake ? `, extra_body=json.loads(${JSON.stringify(JSON.stringify({ uptake }))})` : "";
  copy("import json\nfrom openai import OpenAI\n\n" +
    `client = OpenAI(base_url="${location.origin}/v1", api_key="none")\n` +
    `asked = json.loads(${JSON.stringify(JSON.stringify(rest))})\n` +
    `print(client.completions.create(**asked${more}).choices[0].text)`);
});

models();
