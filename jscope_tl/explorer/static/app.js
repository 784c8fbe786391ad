// The page. The settings of a request are in `state`, which is also the content of a permalink.

import { showAnswer, showRow } from "./answer.js";
import { ask, cancelAll, frozen, job } from "./api.js";
import { bars } from "./bars.js";
import { addMessage, messagesOf, writeMessages } from "./chat.js";
import { aligned, columns } from "./compare.js";
import { $, make, percent, short } from "./dom.js";
import { attributionOf, frozenPage, picture, save, toClipboard } from "./export.js";
import { copied, fromLink } from "./links.js";
import { clearMap, showFrame, showHeads, showLayers } from "./maps.js";
import { showRuns } from "./runs.js";
import { showSeries } from "./series.js";
import { rankOf, said, scaleOf, tail, visible } from "./tokens.js";

const FIELDS = ["prompt", "scope", "target", "baseline", "gradient"];
const literal = JSON.stringify;
const quoted = text => literal(visible(text));

const fresh = () => ({ prompt: "", messages: null, tokens: null, scope: "log_prob", target: "", baseline: "", gradient: "plain", layer: 0, position: -1, options: {} });
let about, state = fresh(), linked = "", predicting = null;
let current = null, kept = [], chosen = null, asked = 0, answered = null, mapped = null;
const seconds = {};

const at = layer => layer ? `blocks.${layer - 1}.hook_resid_post` : "hook_embed";
const scopeOf = name => about.scopes.find(one => one.name === name);
const takes = (option, scope = state.scope) => Boolean(scopeOf(scope)?.options.includes(option));
const promptOf = () => state.tokens ? { tokens: state.tokens } : state.messages ? { messages: state.messages } : { prompt: state.prompt };
const where = () => ({ ...promptOf(), position: state.position, gradient: state.gradient });
const places = () => state.scope !== "explain"; // `explain` has its own hook point and rules
const request = () => ({ ...(places() ? { ...where(), at: at(state.layer) } : { ...promptOf(), position: state.position }), scope: state.scope, options: options() });

function options() {
  const own = Object.entries(state.options).filter(([name, value]) => value !== "" && takes(name)).map(([name, value]) => [name, parsed(value)]);
  for (const name of ["target", "baseline"]) if (takes(name) && state[name]) own.push([name, state[name]]);
  return Object.fromEntries(own);
}

function parsed(value) {
  try { return JSON.parse(value); } catch { return value; }
}

async function busy(what, call) {
  const turn = ++asked;
  $("error").textContent = "";
  $("status").textContent = what;
  $("cancel").disabled = false;
  let says = "";
  try {
    return await call(text => { if (turn === asked) $("status").textContent = text; });
  } catch (error) {
    if (error.status === 409) says = "cancelled";
    else $("error").textContent = error.message;
    return null;
  } finally {
    if (turn === asked) { $("cancel").disabled = true; $("status").textContent = says; }
  }
}

async function explain() {
  read();
  const link = linked = encodeURIComponent(literal(state));
  location.hash = link;
  const asking = request(), [found, control] = await busy("explaining", async tell => [
    await job("explain", asking, tell),
    $("control").checked ? await job("control", { ...where(), at: places() ? at(state.layer) : "hook_embed" }, tell) : null,
  ]) ?? [];
  if (!found) return;
  seconds[asking.scope] = found.seconds;
  current = { ...found, name: nameOf(found, asking), asked: asking, link };
  if (control) current.control = { ...control, off_scale: found.off_scale, name: "random direction (control)" };
  chosen = null;
  const focused = $("token").contains(document.activeElement);
  $("token").hidden = true;
  show();
  if (focused) $("columns").querySelector(".explained").focus();
}

// The name of a result: the scope, followed by its rules, reductions and options.
function nameOf(r, { options: given }) {
  const [scope, ...rules] = r.scope.split(", ");
  const own = Object.entries(given).filter(([name]) => !["target", "baseline"].includes(name));
  const target = r.options.target === undefined ? "" : ` of ${quoted(r.prediction.target.str_token)}`;
  return [`${scope}${target}${r.baseline ? ` against ${quoted(r.baseline)}` : ""}`, ...rules, ...own.map(([name, value]) => `${name} ${value}`)].join(", ");
}

const shown = () => [current, ...kept.filter(one => one !== current), ...(current.control ? [current.control] : [])];

function show() {
  const { provenance: p } = current, results = shown(), log = $("log").checked, layered = current.hook_points.length > 0;
  const took = current.seconds === undefined ? "" : ` in ${current.seconds.toFixed(2)} s`;
  $("result").hidden = false;
  document.querySelector("[data-save=png]").hidden = layered; // the picture has only rows of tokens, and no layer maps
  $("headline").textContent = `${current.name}, at position ${current.position} (${quoted(current.str_tokens[current.position])}), ${p.hook_point}, in ${current.unit}; ` +
    `${p.n_forward} forward, ${p.n_backward} backward passes${took}. The scores are unsigned and not shares: they do not add up.`;
  $("columns").replaceChildren(...(layered ? [] : $("aligned").checked ? [aligned(results, log)] : columns(results, log, choose, removal)));
  $("scale").textContent = layered ? "" : `${scaleOf([current], log).says}; each column has its own scale; BOS and a first token that is an attention sink are left out of it; outlined: the explained position.`;
  $("warnings").replaceChildren(...current.warnings.map(text => make("p", { textContent: text })));
  $("permalink").href = `${location.search}#${current.link ?? ""}`;
  showSeries(current);
  if (layered) showLayers(current);
  nextTokens({ ...current, top: current.prediction.top });
}

const removal = one => !frozen && kept.includes(one) && (() => { kept = kept.filter(other => other !== one); show(); $("compare-add").focus(); });

function choose(result, i, button, focused = false) {
  const same = chosen?.result === result && chosen.i === i;
  if (!focused || !same) $("measured").replaceChildren();
  chosen = { result, i };
  for (const other of document.querySelectorAll(".tokens [aria-pressed=true]")) other.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-pressed", "true");
  $("token").hidden = false;
  $("token-heading").textContent = `Token ${quoted(result.str_tokens[i])}`;
  $("token-said").textContent = said(result, i);
  $("cause").textContent = causeOf(result);
}

// The known cause of an example, with its rank among the scores.
function causeOf(result) {
  const known = about.examples.find(one => one.prompt === result.asked?.prompt)?.cause;
  if (!known) return "";
  const places = result.str_tokens.flatMap((text, i) => known.includes(text.trim()) && i <= result.position ? [i] : []);
  const listed = places.map(i => `${quoted(result.str_tokens[i])} at ${i}, ranked ${rankOf(result, i)} of ${result.position + 1}`).join("; ");
  return listed && `Known cause of this prompt, by construction: ${listed}.`;
}

async function ablate() {
  const { result, i } = chosen;
  const found = await busy("measuring", tell => job("ablate", {
    tokens: result.tokens, position: result.position, token: i, replacement: $("replacement").value || "zero", target: result.prediction.target.token,
  }, tell));
  if (!found || chosen?.result !== result || chosen.i !== i) return; // another token was chosen in the meantime
  const listed = top => top.map(t => `${quoted(t.str_token)} ${percent(t.probability)}`).join(", ");
  const predicted = found.predicted_kl == null ? "" : `; Fisher information predicts ${short(found.predicted_kl)} (second order, accurate only for small changes)`;
  $("measured").replaceChildren(
    make("p", { textContent: `Without it (replaced by ${found.replacement}): measured KL divergence ${short(found.kl)} nat${predicted}.` }),
    make("p", { textContent: `${quoted(found.target)}: ${percent(found.probability)} before, ${percent(found.without)} without (${short(found.log_prob)} nat).` }),
    make("p", { className: "quiet", textContent: `before: ${listed(found.top)}. Without: ${listed(found.top_without)}.` }));
}

async function answer() {
  read();
  const scope = takes("target") && state.scope !== "semantic" ? "log_prob" : state.scope;
  const { target, baseline, ...more } = scope === state.scope ? options() : {};
  const given = { ...promptOf(), scope, options: more, gradient: state.gradient, at: at(state.layer), by: "word" }, own = $("answer").value;
  const found = await busy("continuing", tell => job("answer", own ? { ...given, continuation: own } : { ...given, max_new_tokens: Number($("more").value) }, tell));
  if (!found) return;
  answered = found;
  showAnswer(found, async (start, stop, tokens) => {
    const { prompt, messages, ...rest } = given;
    const span = await busy("explaining a span", tell => job("answer", { ...rest, continuation_tokens: tokens, spans: [[start, stop]], tokens: found.tokens.slice(0, found.text.n_prompt) }, tell));
    if (span) showRow(span, 0, [...document.querySelectorAll("[data-testid=answer-token]")]);
  });
}

async function layers() {
  read();
  const found = await busy("every layer", tell => job("explain", { ...where(), ...ofComponents(), at: "resid_pre" }, tell));
  if (!found) return;
  mapped = { layers: found };
  showLayers(found, layer => { $("layer").value = layer; describe(); });
}

// `explain` is not a scope; for components it is replaced by a contrast, or by a log-probability.
const ofComponents = () => ({ scope: state.scope !== "explain" ? state.scope : state.baseline ? "contrastive" : "log_prob", options: options() });

async function heads() {
  read();
  const found = await busy("predicting all heads, measuring the strongest", tell => job("heads", { ...where(), ...ofComponents(), measure: 8 }, tell));
  if (!found) return;
  mapped = { heads: found };
  showHeads(found);
}

async function edges() {
  read();
  const found = await busy("predicting all edges", tell => job("edges", { ...where(), ...ofComponents() }, tell));
  if (found) showFrame(found.view, found.says);
}

function nextTokens({ top, position, str_tokens }) {
  if (frozen) return bars(top, position, str_tokens);
  const ask = (field, scope) => text => { $(field).value = text; $("scope").value = scope(); describe(); explain(); };
  bars(top, position, str_tokens, ask("target", () => takes("target", $("scope").value) ? $("scope").value : "log_prob"), ask("baseline", () => "contrastive"));
}

let typing;
function typed() {
  state.position = -1;
  state.tokens = null;
  clearTimeout(typing);
  typing = setTimeout(predict, 250);
}

async function predict() {
  read();
  const asking = literal(promptOf()), count = $(state.messages ? "chat-count" : "count");
  if (!state.messages && !state.prompt && !state.tokens) { count.textContent = "0 tokens"; $("next").replaceChildren(); return; }
  predicting?.abort(); // the previous request is no longer needed
  const { signal } = predicting = new AbortController();
  const found = await ask("predict", { ...promptOf(), position: state.position }, signal).catch(error => { if (!signal.aborted) count.textContent = error.message; });
  if (!found || asking !== literal(promptOf())) return;
  count.textContent = `${found.tokens.length} tokens`;
  nextTokens(found);
}

function read() {
  for (const name of FIELDS) state[name] = $(name).value;
  state.layer = Number($("layer").value);
  state.messages = $("as-chat").checked ? messagesOf() : null;
}

function write() {
  for (const name of FIELDS) $(name).value = state[name];
  $("layer").value = state.layer;
  $("as-chat").checked = Boolean(state.messages) && about.has_chat_template;
  writeMessages(state.messages ?? [{ role: "user", content: state.prompt }], typed);
  asChat();
  describe();
}

function asChat() {
  const chat = $("as-chat").checked;
  $("plain").hidden = chat;
  $("chat").hidden = !chat;
}

function describe() {
  const scope = scopeOf($("scope").value), took = seconds[scope?.name];
  $("where").textContent = at(Number($("layer").value));
  $("question").textContent = scope ? `${scope.question} Unit: ${scope.unit}. Cost: one forward pass and ${scope.price}${took === undefined ? "" : `; last time ${took.toFixed(2)} s`}.` : "";
  for (const name of ["target", "baseline"]) $(name).disabled = !takes(name, scope?.name);
  for (const name of ["layer", "gradient"]) $(name).disabled = scope?.name === "explain";
  const own = scope?.options.filter(name => !["target", "baseline"].includes(name)) ?? [];
  $("more-options").hidden = !own.length;
  $("options").replaceChildren(...own.map(name => make("label", {}, `${name} `, make("input", { name, size: 8, placeholder: "default", value: state.options[name] ?? "" }))));
  if (own.some(name => (state.options[name] ?? "") !== "")) $("more-options").open = true;
}

async function copy(what) {
  try {
    await toClipboard(copied(what, current));
    $("status").textContent = "copied";
  } catch (error) { $("error").textContent = error.message; }
}

const SAVES = {
  json: () => save("attribution.json", attributionOf(current), "application/json"),
  png: async () => save("attribution.png", await picture(shown(), $("log").checked, about.model), "image/png"),
  html: async () => save("attribution.html", await frozenPage({ about, results: shown().filter(one => one !== current.control), answer: answered, ...mapped }), "text/html"),
};

const filtered = () => ({ folder: $("run-folder").value, contains: $("run-contains").value || null, target: $("run-target").value || null });

async function runs(of = filtered(), first = 0) {
  const asking = { ...of, first };
  const found = await busy("opening the run", tell => job("runs", asking, tell));
  if (!found) return;
  showRuns(found, row => {
    const prompt = row.str_tokens.join("");
    Object.assign(state, { gradient: "plain", prompt, tokens: row.tokens, messages: null, position: row.position, target: "", ...found.how });
    if (takes("target")) state.target = row.target_str;
    write();
    explain();
    $("prompt").scrollIntoView();
  }, by => runs(of, found.first + by * found.shown));
}

async function start() {
  about = frozen?.about ?? await ask("about");
  $("model").textContent = about.n_layers ? `${about.model}, ${about.n_layers} layers, up to ${about.n_ctx} tokens` : about.model;
  if (matchMedia("(prefers-color-scheme: dark)").matches) $("dark").checked = true;
  document.documentElement.classList.toggle("dark", $("dark").checked);
  if (frozen) return showFrozen();
  $("scope").append(...about.scopes.map(s => make("option", { value: s.name, textContent: s.name, title: s.question })));
  $("gradient").append(...about.gradients.map(name => make("option", { value: name, textContent: name })));
  $("examples").append(...about.examples.map((one, i) => make("option", { value: i, textContent: one.prompt })));
  $("layer").max = about.n_layers;
  $("as-chat-label").hidden = !about.has_chat_template;
  state.prompt = about.examples[0].prompt;
  if (location.hash.length > 1) await followed();
  else write();
  if (!current) await predict();
}

// Read the state from a link, also if it is pasted, reached with the back button, or opened in this page.
async function followed() {
  linked = location.hash.slice(1);
  state = { ...fresh(), ...fromLink(linked, fresh()) };
  state.prompt ||= about.examples[0].prompt;
  write();
  await explain();
}

function showFrozen() {
  document.documentElement.classList.add("frozen");
  const pick = (result, button) => {
    current = result;
    kept = frozen.results.filter(one => one !== result && !one.hook_points.length && one.str_tokens.join("\0") === result.str_tokens.join("\0")).slice(0, 3);
    for (const other of $("results").children) other.setAttribute("aria-pressed", String(other === button));
    $("token").hidden = true;
    clearMap();
    show();
    if (frozen.layers && !result.hook_points.length) showLayers(frozen.layers);
    if (frozen.heads) showHeads(frozen.heads);
    $("layers-section").hidden = !$("map").children.length;
  };
  const buttons = frozen.results.map(result => {
    const button = make("button", { type: "button", textContent: `${result.name} · ${tail(result.str_tokens.join("").trim(), 50)}`, onclick: () => pick(result, button) });
    return button;
  });
  $("results").replaceChildren(...buttons);
  $("results").hidden = buttons.length < 2;
  pick(frozen.results[0], buttons[0]);
  if (frozen.answer) showAnswer(frozen.answer);
}

$("ask").addEventListener("submit", event => { event.preventDefault(); explain(); });
addEventListener("hashchange", () => { if (about && !frozen && location.hash.length > 1 && location.hash.slice(1) !== linked) followed(); });
$("runs-form").addEventListener("submit", event => { event.preventDefault(); runs(); });
$("prompt").addEventListener("input", typed);
$("prompt").addEventListener("keydown", event => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); explain(); } });
$("cancel").addEventListener("click", cancelAll);
$("examples").addEventListener("change", event => {
  const one = about.examples[event.target.value];
  if (!one) return;
  read();
  const scope = one.baseline ? "contrastive" : state.scope === "contrastive" ? "log_prob" : state.scope;
  Object.assign(state, { prompt: one.prompt, messages: null, target: one.target ?? "", baseline: one.baseline ?? "", scope });
  write();
  typed();
});
$("options").addEventListener("input", event => { state.options[event.target.name] = event.target.value; });
$("as-chat").addEventListener("change", () => { asChat(); typed(); });
$("message-add").addEventListener("click", () => addMessage(typed));
for (const name of ["scope", "layer"]) $(name).addEventListener("input", describe);
for (const name of ["log", "aligned"]) $(name).addEventListener("change", show);
$("dark").addEventListener("change", () => document.documentElement.classList.toggle("dark", $("dark").checked));
$("compare-add").addEventListener("click", () => { if (!kept.includes(current)) kept = [...kept, current].slice(-3); show(); });
for (const [id, action] of Object.entries({ ablate, continue: answer, layers, heads, edges })) $(id).addEventListener("click", action);
$("explain-here").addEventListener("click", () => { // a column may have another prompt than the page
  const { prompt = chosen.result.str_tokens.join(""), messages = null, tokens = null } = chosen.result.asked ?? current.asked;
  read();
  Object.assign(state, { prompt, messages, tokens, position: chosen.i });
  write();
  explain();
});
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button.dataset.copy));
for (const button of document.querySelectorAll("[data-save]")) button.addEventListener("click", () => Promise.resolve(SAVES[button.dataset.save]()).catch(error => { $("error").textContent = error.message; }));
start().catch(error => { $("error").textContent = error.message; });
