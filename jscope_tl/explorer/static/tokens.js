// A prompt as coloured tokens, with a description of each token. Token text is never HTML: it is set as text.

import { arrows, colour, short } from "./dom.js";

const DECADES = 3;
const NAMED = { "\n": "↵", "\r": "␍", "\t": "⇥" };
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff\ufffe\uffff]/gu;

export const visible = text => text.replace(UNSEEN, c => NAMED[c] ?? `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`);

export function scaleOf(results, log) {
  const kept = results.flatMap(r => r.scores.filter((s, i) => s > 0 && !r.off_scale.includes(i)));
  const high = Math.max(0, ...kept), low = log ? Math.max(Math.min(high, ...kept), high / 10 ** DECADES) : 0;
  const at = s => s <= low || high <= 0 ? 0 : log ? Math.min(1, Math.log(s / low) / Math.log(high / low) || 1) : Math.min(1, s / high);
  return { at, says: `colour: ${log ? "logarithmic" : "linear"} from ${short(low)} to the highest score, ${short(high)}` };
}

// The rank of a token among those that are not left out of the scale, as in lists.
export function rankOf(result, i) {
  return 1 + result.scores.filter((s, t) => t <= result.position && !result.off_scale.includes(t) && s > result.scores[i]).length;
}

// The end of a text.
export const tail = (text, n) => { const letters = [...visible(text)]; return letters.length > n ? `…${letters.slice(-n).join("")}` : letters.join(""); };

// What is explained: the scope, and the words before the explained prediction.
export const ofWhat = (r, n = r.position + 1) => `${r.scope}, after ${JSON.stringify(tail(r.str_tokens.slice(0, n).join(""), 50))}`;

// The title of a result: its name, and its hook point and position if these are not the default ones.
export function titled(r) {
  const place = r.provenance.hook_point === "hook_embed" ? "" : `, ${r.provenance.hook_point}`;
  return `${r.name}${place}${r.position === r.str_tokens.length - 1 ? "" : `, at position ${r.position}`}`;
}

export function said(result, i) {
  if (i > result.position) return `${visible(result.str_tokens[i]).trim() || "blank"}, position ${i}, after the explained position ${result.position}: no influence on it`;
  const [score, error] = [result.scores[i], result.stderr?.[i]];
  const kept = result.scores.filter((s, t) => !result.off_scale.includes(t));
  const share = score / Math.max(...kept, 1e-30);
  const off = result.off_scale.includes(i) ? "; left out of the colour scale" : `; rank ${rankOf(result, i)}; ${Math.round(100 * share)}% of the largest`;
  return `${visible(result.str_tokens[i]).trim() || "blank"}, position ${i}, ${short(score)}${error == null ? "" : ` ± ${short(error)}`} ${result.unit}${off}`;
}

const text = (part, whole) => part === undefined ? visible(whole) : part;

// A character may consist of several tokens: its text is shown at the first.
const piece = whole => text(whole.match(/^([\s\S]*)⟨(\d+)\/\d+⟩$/u)?.[2] === "1" ? whole.replace(/⟨.*$/u, "") : /⟨\d+\/\d+⟩$/u.test(whole) ? "·" : undefined, whole);

export function draw(result, scale, choose) {
  const box = Object.assign(document.createElement("div"), { className: "tokens" });
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", "tokens; arrow keys move, Enter chooses");
  result.str_tokens.forEach((whole, i) => {
    const button = document.createElement("button");
    const share = i <= result.position ? scale.at(result.scores[i]) : 0;
    Object.assign(button, { type: "button", textContent: piece(whole), title: said(result, i), tabIndex: i === result.position ? 0 : -1 });
    Object.assign(button.dataset, { testid: "token", pos: i, score: result.scores[i] });
    button.setAttribute("aria-label", said(result, i));
    button.setAttribute("aria-pressed", "false");
    button.style.backgroundColor = i > result.position ? "" : colour(share);
    if (share > 0.98) button.style.color = "#fff";
    button.classList.toggle("unscored", i > result.position);
    button.classList.toggle("explained", i === result.position);
    button.addEventListener("click", () => choose(result, i, button));
    button.addEventListener("focus", () => choose(result, i, button, true));
    box.append(button, ..."\n".repeat((whole.match(/\n/g) ?? []).length));
  });
  const buttons = [...box.querySelectorAll("button")];
  arrows(box, [buttons]);
  buttons[0].tabIndex = -1;
  buttons[result.position].tabIndex = 0;
  return box;
}

// Spearman's correlation of the scores of two results of the same prompt, without tokens that are left out of the scale.
export function correlation(a, b) {
  const kept = a.scores.map((_, i) => i).filter(i => i <= Math.min(a.position, b.position) && !a.off_scale.includes(i) && !b.off_scale.includes(i));
  const ranks = r => { const v = kept.map(i => r.scores[i]); return v.map(x => v.filter(y => y < x).length + (v.filter(y => y === x).length - 1) / 2); };
  const [x, y] = [ranks(a), ranks(b)], mean = v => v.reduce((s, t) => s + t, 0) / v.length, [mx, my] = [mean(x), mean(y)];
  const sum = f => kept.reduce((s, _, i) => s + f(i), 0);
  return sum(i => (x[i] - mx) * (y[i] - my)) / Math.sqrt(sum(i => (x[i] - mx) ** 2) * sum(i => (y[i] - my) ** 2));
}
