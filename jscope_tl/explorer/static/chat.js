// The messages of a chat.

import { $, make } from "./dom.js";

const ROLES = ["user", "assistant", "system"];

export const messagesOf = () => [...$("messages").children].map(row => ({ role: row.querySelector("select").value, content: row.querySelector("textarea").value }));

export function writeMessages(messages, changed) {
  $("messages").replaceChildren(...messages.map(one => row(one, changed)));
}

export function addMessage(changed) {
  const last = messagesOf().at(-1)?.role;
  $("messages").append(row({ role: last === "user" ? "assistant" : "user", content: "" }, changed));
}

function row({ role, content }, changed) {
  const who = make("select", {}, ...ROLES.map(name => make("option", { value: name, textContent: name, selected: name === role })));
  const says = make("textarea", { rows: 2, value: content, spellcheck: false });
  who.setAttribute("aria-label", "role");
  says.setAttribute("aria-label", "message");
  const e = make("div", { className: "message" }, who, says, make("button", { type: "button", textContent: "Remove", onclick: () => { e.remove(); changed(); } }));
  e.addEventListener("input", changed);
  return e;
}
