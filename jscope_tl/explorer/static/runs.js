// The rows of a run of many prompts.

import { $, make, percent, short } from "./dom.js";
import { tail, visible } from "./tokens.js";

export function showRuns(found, open, turn) {
  $("run-said").textContent = found.says;
  const head = make("tr", {}, ...["id", "prompt", "target", "probability", "strongest source", ""].map(textContent => make("th", { scope: "col", textContent })));
  const rows = found.rows.map(row => {
    const button = make("button", { type: "button", textContent: "Explain", onclick: () => open(row) });
    button.dataset.testid = "run-row";
    button.setAttribute("aria-label", `explain row ${row.id}`);
    return make("tr", {}, make("td", { textContent: row.id }), make("td", { textContent: tail(row.str_tokens?.join("") ?? "", 80) }), ...(row.error
      ? [make("td", { colSpan: 4, textContent: row.error })]
      : [make("td", { textContent: visible(row.target_str) }), make("td", { className: "n", textContent: percent(row.probability) }),
        make("td", { textContent: `${row.top === null ? "" : `${visible(row.str_tokens[row.top])} at ${row.top}: ${short(row.score)}`}` }), make("td", {}, button)]));
  });
  const pages = [[found.first > 0, -1, "Earlier rows"], [found.more, 1, "Later rows"]].filter(([there]) => there).map(([, by, textContent]) => make("button", { type: "button", textContent, onclick: () => turn(by) }));
  const focused = $("run-rows").contains(document.activeElement);
  $("run-rows").replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)), make("p", { className: "row" }, ...pages));
  if (focused) $("run-rows").querySelector("button")?.focus();
}
