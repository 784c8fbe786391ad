// The most probable next tokens, as bars: click one to use it as the target, or as the baseline.

import { $, arrows, make, percent } from "./dom.js";
import { visible } from "./tokens.js";

// `explain` and `against` are functions of a token's text; without them, the bars are not buttons.
export function bars(top, position, texts, explain, against) {
  $("next-where").textContent = texts.length ? `after position ${position} (${JSON.stringify(visible(texts[position]))})` : "";
  const focused = $("next").contains(document.activeElement) && document.activeElement.closest("li").querySelector(".pick").dataset.token;
  $("next").replaceChildren(...top.map(t => {
    const pick = make(explain ? "button" : "span", { className: "pick" }, make("span", { textContent: visible(t.str_token) }),
      make("meter", { min: 0, max: 1, value: t.probability }), make("span", { textContent: percent(t.probability) }));
    Object.assign(pick.dataset, { testid: "next-token", token: t.token });
    pick.querySelector("meter").setAttribute("aria-hidden", "true");
    if (!explain) return make("li", {}, pick);
    Object.assign(pick, { type: "button", title: "explain this token", onclick: () => explain(t.str_token) });
    const beside = make("button", { type: "button", textContent: "against", onclick: () => against(t.str_token) });
    beside.setAttribute("aria-label", `explain the target against ${visible(t.str_token)}`);
    return make("li", {}, pick, beside);
  }));
  arrows($("next"), [...$("next").children].map(row => [...row.querySelectorAll("button")]));
  if (focused) ($("next").querySelector(`button[data-token="${focused}"]`) ?? $("next").querySelector("button"))?.focus();
}
