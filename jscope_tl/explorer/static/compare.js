// Several results as columns, or as one table by position.

import { colour, make, short } from "./dom.js";
import { correlation, draw, said, scaleOf, titled, visible } from "./tokens.js";

const sameTokens = (a, b) => a.str_tokens.join("\0") === b.str_tokens.join("\0");
const scored = (one, i) => short(one.scores[i]) + (one.stderr ? ` ± ${short(one.stderr[i])}` : "");
function agreement(first, one) {
  if (one === first || !sameTokens(first, one)) return "";
  const found = correlation(first, one);
  return `rank correlation with the first column ${Number.isNaN(found) ? "not known" : found.toFixed(2)}`;
}


export function columns(results, log, choose, remove) {
  const [first] = results;
  return results.map(one => {
    const best = one.scores.map((s, i) => i).filter(i => i <= one.position && !one.off_scale.includes(i)).sort((a, b) => one.scores[b] - one.scores[a]).slice(0, 5);
    const rows = best.map(i => make("tr", {}, make("td", { textContent: JSON.stringify(visible(one.str_tokens[i])) }), make("td", { className: "n", textContent: i }), make("td", { className: "n", textContent: scored(one, i) })));
    const head = make("tr", {}, ...["token", "position", `score (${one.unit})`].map(textContent => make("th", { scope: "col", textContent })));
    const button = remove(one) ? [make("button", { type: "button", textContent: "Remove", onclick: remove(one) })] : [];
    return make("section", { className: "column" }, make("h3", { textContent: titled(one) }), draw(one, scaleOf([one], log), choose), make("p", { className: "quiet", textContent: agreement(first, one) }),
      make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)), ...button);
  });
}

// The table has only results with the same tokens.
export function aligned(results, log) {
  const alike = results.filter(one => sameTokens(results[0], one)), scales = alike.map(one => scaleOf([one], log));
  const head = make("tr", {}, ...["position", "token", ...alike.map(one => `${titled(one)} (${one.unit})`)].map(textContent => make("th", { scope: "col", textContent })));
  const rows = results[0].str_tokens.slice(0, results[0].position + 1).map((text, i) => make("tr", {}, make("td", { className: "n", textContent: i }), make("td", { textContent: visible(text) }),
    ...alike.map((one, k) => {
      const share = i <= one.position ? scales[k].at(one.scores[i]) : 0, cell = make("td", { className: "n", title: said(one, i), textContent: i <= one.position ? scored(one, i) : "" });
      Object.assign(cell.style, { backgroundColor: colour(share), color: share > 0.98 ? "#fff" : "#000" });
      return cell;
    })));
  const last = make("tr", {}, make("td"), make("td"), ...alike.map(one => make("td", { className: "quiet", textContent: agreement(results[0], one) })));
  return make("div", { className: "wide" }, make("table", { className: "aligned" }, make("thead", {}, head), make("tbody", {}, ...rows, last)));
}
