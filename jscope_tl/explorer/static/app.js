// The page: what is asked lives in `state`, which is also what a permalink holds.

import { showAnswer, showRow } from "./answer.js";
import { ask, cancelAll, job } from "./api.js";
import { $, make, percent, short } from "./dom.js";
import { showHeads, showLayers } from "./maps.js";
import { correlation, draw, said, scaleOf, visible } from "./tokens.js";

const NO_TARGET = new Set(["temperature", "logit_temperature", "entropy", "fisher", "fisher_input", "random_direction"]);

let about, state = { prompt: "", scope: "log_prob", target: "", baseline: "", gradient: "plain", layer: 0, position: -1 };
let current = null, kept = [], chosen = null, asked = 0;

const at = layer => layer ? `blocks.${layer - 1}.hook_resid_post` : "hook_embed";

function options() {
  const found = {};
  if (!NO_TARGET.has(state.scope) && state.target) found.target = state.target;
  if (state.baseline && ["contrastive", "alternatives"].includes(state.scope)) found.baseline = state.baseline;
  return found;
}

const request = () => ({ prompt: state.prompt, scope: state.scope, options: options(), position: state.position, at: at(state.layer), gradient: state.gradient });

async function busy(what, call) {
  const turn = ++asked;
  $("error").textContent = "";
  $("status").textContent = what;
  $("cancel").disabled = false;
  try {
    return await call(text => { if (turn === asked) $("status").textContent = text; });
  } catch (error) {
    if (error.status === 409) $("status").textContent = "cancelled";
    else { $("error").textContent = error.message; $("status").textContent = ""; }
    return null;
  } finally {
    if (turn === asked) { $("cancel").disabled = true; if ($("status").textContent !== "cancelled") $("status").textContent = ""; }
  }
}

async function explain() {
  read();
  location.hash = encodeURIComponent(JSON.stringify(state));
  const [found, control] = await busy("explaining", async tell => {
    const result = await job("explain", request(), tell);
    const { prompt, position, gradient } = request();
    return [result, await job("control", { prompt, position, at: at(state.layer), gradient }, tell)];
  }) ?? [];
  if (!found) return;
  current = { ...found, name: nameOf(found), asked: request() };
  current.control = { ...control, off_scale: found.off_scale, name: "random direction (control)" };
  chosen = null;
  $("token").hidden = true;
  show();
  bars(found.prediction.top, found.position, found.str_tokens);
}

const nameOf = r => `${r.scope}${r.options.target === undefined ? "" : ` of ${JSON.stringify(r.prediction.target.str_token)}`}${r.baseline ? ` against ${JSON.stringify(r.baseline)}` : ""}`;

function show() {
  const columns = [current, ...kept.filter(one => one !== current), current.control], log = $("log").checked;
  $("result").hidden = false;
  $("headline").textContent = `${nameOf(current)}, at position ${current.position} (${JSON.stringify(current.str_tokens[current.position])}), ${current.provenance.hook_point}, in ${current.unit}; ` +
    `${current.provenance.n_forward} forward and ${current.provenance.n_backward} backward passes. The scores are sizes, not shares: they do not add up.`;
  $("columns").replaceChildren(...columns.map(one => column(one, scaleOf([one], log))));
  $("scale").textContent = `${scaleOf([current], log).says}; each column has its own; BOS and a first token that is an attention sink are left out of it; outlined: the explained position.`;
  $("warnings").replaceChildren(...current.warnings.map(text => make("p", { textContent: text })));
  $("permalink").href = `${location.search}#${encodeURIComponent(JSON.stringify(state))}`;
  URL.revokeObjectURL($("json").href);
  const { control, asked: _, name, off_scale, ...saved } = current;
  $("json").href = URL.createObjectURL(new Blob([JSON.stringify(saved, null, 1)], { type: "application/json" }));
}

function column(one, scale) {
  const same = one === current, alike = one.str_tokens.join("\0") === current.str_tokens.join("\0");
  const agrees = same || !alike ? "" : `rank correlation with the first column ${correlation(current, one).toFixed(2)}`;
  const best = one.scores.map((s, i) => i).filter(i => i <= one.position && !one.off_scale.includes(i)).sort((a, b) => one.scores[b] - one.scores[a]).slice(0, 5);
  const rows = best.map(i => make("tr", {}, make("td", { textContent: JSON.stringify(visible(one.str_tokens[i])) }), make("td", { className: "n", textContent: i }),
    make("td", { className: "n", textContent: short(one.scores[i]) + (one.stderr ? ` ± ${short(one.stderr[i])}` : "") })));
  const head = make("tr", {}, ...["token", "position", `score (${one.unit})`].map(textContent => make("th", { textContent })));
  const remove = kept.includes(one) ? [make("button", { type: "button", textContent: "Remove", onclick: () => { kept = kept.filter(other => other !== one); show(); } })] : [];
  return make("section", { className: "column" }, make("h3", { textContent: one.name }), draw(one, scale, choose), make("p", { className: "quiet", textContent: agrees }),
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)), ...remove);
}

function choose(result, i, button, focused = false) {
  chosen = { result, i };
  for (const other of document.querySelectorAll(".tokens [aria-pressed=true]")) other.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-pressed", "true");
  $("token").hidden = false;
  $("token-heading").textContent = `Token ${JSON.stringify(visible(result.str_tokens[i]))}`;
  $("token-said").textContent = said(result, i);
  if (!focused) $("measured").replaceChildren();
}

async function ablate() {
  const { result, i } = chosen;
  const found = await busy("measuring", tell => job("ablate", {
    prompt: result.asked?.prompt ?? state.prompt, position: result.position, token: i, replacement: $("replacement").value || "zero", target: result.prediction.target.str_token,
  }, tell));
  if (!found) return;
  const listed = top => top.map(t => `${JSON.stringify(visible(t.str_token))} ${percent(t.probability)}`).join(", ");
  const predicted = found.predicted_kl == null ? "" : `; Fisher information predicts ${short(found.predicted_kl)} to second order, which holds for small changes`;
  $("measured").replaceChildren(
    make("p", { textContent: `Without it (replaced by ${found.replacement}): KL divergence ${short(found.kl)} nat measured${predicted}.` }),
    make("p", { textContent: `${JSON.stringify(visible(found.target))}: ${percent(found.probability)} before, ${percent(found.without)} without (${short(found.log_prob)} nat).` }),
    make("p", { className: "quiet", textContent: `before: ${listed(found.top)}. Without: ${listed(found.top_without)}.` }));
}

async function answer() {
  read();
  const given = { prompt: state.prompt, scope: NO_TARGET.has(state.scope) || state.scope === "semantic" ? state.scope : "log_prob", gradient: state.gradient, at: at(state.layer), by: "word" };
  const own = $("answer").value;
  const found = await busy("continuing", tell => job("answer", own ? { ...given, continuation: own } : { ...given, max_new_tokens: Number($("more").value) }, tell));
  if (!found) return;
  showAnswer(found, async (start, stop, tokens) => {
    const span = await busy("explaining a span", tell => job("answer", { ...given, continuation_tokens: tokens, spans: [[start, stop]], prompt: undefined, tokens: found.tokens.slice(0, found.text.n_prompt) }, tell));
    if (span) showRow(span, 0, [...document.querySelectorAll("[data-testid=answer-token]")]);
  });
}

async function layers() {
  read();
  const found = await busy("every layer", tell => job("explain", { ...request(), at: "resid_pre" }, tell));
  if (found) showLayers(found, layer => { $("layer").value = layer; describe(); });
}

async function heads() {
  read();
  const { prompt, scope, options: given, position, gradient } = request();
  const found = await busy("predicting all heads", tell => job("heads", { prompt, scope, options: given, position, gradient }, tell));
  if (found) showHeads(found);
}

function bars(top, position, texts) {
  $("next-where").textContent = texts.length ? `after position ${position} (${JSON.stringify(visible(texts[position]))})` : "";
  $("next").replaceChildren(...top.map(t => {
    const pick = make("button", { type: "button", className: "pick" }, make("span", { textContent: visible(t.str_token) }),
      make("meter", { min: 0, max: 1, value: t.probability }), make("span", { textContent: percent(t.probability) }));
    Object.assign(pick.dataset, { testid: "next-token", token: t.token });
    pick.title = "explain this token";
    pick.querySelector("meter").setAttribute("aria-hidden", "true");
    pick.addEventListener("click", () => { $("target").value = t.str_token; if (NO_TARGET.has($("scope").value)) $("scope").value = "log_prob"; explain(); });
    const against = make("button", { type: "button", textContent: "against", onclick: () => { $("baseline").value = t.str_token; $("scope").value = "contrastive"; describe(); explain(); } });
    against.setAttribute("aria-label", `hold the target against ${visible(t.str_token)}`);
    return make("li", {}, pick, against);
  }));
}

let typing;
function typed() {
  state.position = -1;
  clearTimeout(typing);
  typing = setTimeout(predict, 250);
}

async function predict() {
  if (!$("prompt").value) return;
  const prompt = $("prompt").value;
  const found = await ask("predict", { prompt, position: state.position }).catch(error => { $("count").textContent = error.message; });
  if (!found || prompt !== $("prompt").value) return;
  $("count").textContent = `${found.tokens.length} tokens`;
  bars(found.top, found.position, found.str_tokens);
}

function read() {
  for (const name of ["prompt", "scope", "target", "baseline", "gradient"]) state[name] = $(name).value;
  state.layer = Number($("layer").value);
}

function write() {
  for (const name of ["prompt", "scope", "target", "baseline", "gradient"]) $(name).value = state[name];
  $("layer").value = state.layer;
  describe();
}

function describe() {
  const scope = about.scopes.find(one => one.name === $("scope").value);
  $("where").textContent = at(Number($("layer").value));
  $("question").textContent = scope ? `${scope.question} Unit: ${scope.unit}. Price: ${scope.price}.` : "";
  $("target").disabled = NO_TARGET.has($("scope").value);
  $("baseline").disabled = !["contrastive", "alternatives"].includes($("scope").value);
}

const literal = JSON.stringify;
function copied(what) {
  const { prompt, scope, options: given, position, at: where, gradient } = current.asked;
  const more = [...Object.entries(given), ...(position === -1 ? [] : [["position", position]]), ...(where === "hook_embed" ? [] : [["at", where]]), ...(gradient === "plain" ? [] : [["gradient", gradient]])];
  if (what === "python") return `js.attribute(model, ${literal(prompt)}, ${literal(scope)}${more.map(([k, v]) => `, ${k}=${literal(v)}`).join("")})`;
  const quoted = text => `'${String(text).replaceAll("'", "'\\''")}'`;
  return `jscope ${quoted(prompt)} --scope ${scope} --model ${quoted(about.model)}${more.map(([k, v]) => ` --${k} ${quoted(v)}`).join("")}`;
}

async function start() {
  about = await ask("about");
  $("model").textContent = `${about.model}, ${about.n_layers} layers, up to ${about.n_ctx} tokens`;
  $("scope").append(...about.scopes.map(s => make("option", { value: s.name, textContent: s.name, title: s.question })));
  $("gradient").append(...about.gradients.map(name => make("option", { value: name, textContent: name })));
  $("examples").append(...about.examples.map(text => make("option", { value: text, textContent: text })));
  $("layer").max = about.n_layers;
  if (matchMedia("(prefers-color-scheme: dark)").matches) $("dark").checked = true;
  document.documentElement.classList.toggle("dark", $("dark").checked);
  const linked = location.hash.length > 1;
  if (linked) try { state = { ...state, ...JSON.parse(decodeURIComponent(location.hash.slice(1))) }; } catch { /* a link that was cut */ }
  state.prompt ||= about.examples[0];
  write();
  if (linked) await explain();
  if (!current) await predict();
}

$("ask").addEventListener("submit", event => { event.preventDefault(); explain(); });
$("prompt").addEventListener("input", typed);
$("prompt").addEventListener("keydown", event => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); explain(); } });
$("cancel").addEventListener("click", cancelAll);
$("examples").addEventListener("change", event => { if (event.target.value) { $("prompt").value = event.target.value; $("target").value = $("baseline").value = ""; typed(); } });
for (const name of ["scope", "layer"]) $(name).addEventListener("input", describe);
$("log").addEventListener("change", show);
$("dark").addEventListener("change", () => document.documentElement.classList.toggle("dark", $("dark").checked));
$("compare-add").addEventListener("click", () => { if (!kept.includes(current)) kept = [...kept, current].slice(-3); show(); });
$("ablate").addEventListener("click", ablate);
$("continue").addEventListener("click", answer);
$("layers").addEventListener("click", layers);
$("heads").addEventListener("click", heads);
$("explain-here").addEventListener("click", () => { state.position = chosen.i; explain(); });
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", async () => { await navigator.clipboard.writeText(copied(button.dataset.copy)); $("status").textContent = "copied"; });
start().catch(error => { $("error").textContent = error.message; });
