// The answer: its tokens, and the sources of each token or span.

import { $, arrows, colour, make, percent, short } from "./dom.js";
import { ofWhat, visible } from "./tokens.js";

let first = null, pressed = null;

export function showAnswer(found, explainSpan) {
  const start = found.text.n_prompt, texts = found.str_tokens.slice(start);
  const buttons = texts.map((text, i) => {
    const button = make("button", { type: "button", textContent: visible(text), className: "unscored" });
    Object.assign(button.dataset, { testid: "answer-token", out: i });
    button.setAttribute("aria-label", `${visible(text).trim() || "blank"}, token ${i + 1} of ${texts.length} of the answer, ${percent(found.predictions[i].target.probability)}`);
    button.addEventListener("click", event => {
      if (explainSpan && event.shiftKey && first !== null && first !== i) return explainSpan(Math.min(first, i), Math.max(first, i) + 1, found.tokens.slice(start));
      first = i;
      showRow(found, i, buttons);
    });
    button.addEventListener("focus", () => showRow(found, i, buttons));
    button.addEventListener("pointerdown", event => { if (!event.shiftKey) pressed = i; });
    button.addEventListener("pointerup", () => { if (pressed !== null && pressed !== i) explainSpan?.(Math.min(pressed, i), Math.max(pressed, i) + 1, found.tokens.slice(start)); pressed = null; });
    return button;
  });
  $("answer-tokens").replaceChildren(...buttons);
  arrows($("answer-tokens"), [buttons]);
  $("answer-of").textContent = `${ofWhat(found, start)}:`;
  $("answer-template").textContent = found.template;
  $("continued").hidden = false;
  first = null;
  showRow(found, 0, buttons);
}

export function showRow(found, row, buttons) {
  const span = found.rows[row];
  if (buttons) buttons.forEach((b, i) => b.setAttribute("aria-pressed", String(i >= span.start && i < span.stop)));
  const scores = found.scores[row], kept = scores.filter((_, j) => !found.hidden[j]), top = Math.max(...kept, 1e-30);
  const { target, target_rank: rank, top: best } = found.predictions[span.start];
  const alternatives = span.stop - span.start === 1 ? `, rank ${rank}; most probable: ${best.slice(0, 3).map(t => `${JSON.stringify(visible(t.str_token))} ${percent(t.probability)}`).join(", ")}` : "";
  $("answer-said").textContent = `${JSON.stringify(visible(span.text))}: probability ${percent(Math.exp(span.log_prob))}${alternatives}. Sources, in ${found.unit}:`;
  const words = found.sources.map((source, j) => {
    if (found.hidden[j]) return null;
    const error = found.stderr === null ? "" : ` ± ${short(found.stderr[row][j])}`;
    const e = make("span", { textContent: visible(source.text), title: `${short(scores[j])}${error} ${found.unit}`, tabIndex: -1 });
    e.dataset.testid = "source";
    e.dataset.score = scores[j];
    Object.assign(e.style, { backgroundColor: colour(Math.min(1, scores[j] / top)), color: scores[j] / top > 0.98 ? "#fff" : "#000", padding: "0 .1rem", borderRadius: "3px" });
    return [source.role, e];
  }).filter(Boolean);
  const parts = [];
  for (const [role, e] of words) {
    if (parts.at(-1)?.role !== role) parts.push({ role, words: [] });
    parts.at(-1).words.push(e, " ");
  }
  $("answer-sources").replaceChildren(...parts.map(part => make("div", { className: "tokens" }, make("b", { textContent: `${part.role}: `, className: "quiet" }), ...part.words)));
}
