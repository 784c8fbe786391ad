// Ways to repeat a shown result: a link, a line of Python, a command.

const literal = JSON.stringify;
const PLAIN = { model: "jscope-pocket", device: "cpu", dtype: "float32" };
const FLAGS = ["target", "baseline", "position", "at", "gradient"];

// The fields of a link that have the types of the state; none if the link is truncated.
export function fromLink(text, state) {
  const alike = { ...state, messages: [], tokens: [] }, kind = value => Array.isArray(value) ? "list" : value === null ? "null" : typeof value;
  try {
    const found = Object.fromEntries(Object.entries(JSON.parse(decodeURIComponent(text))).filter(([name, value]) => name in alike && kind(value) === kind(alike[name])));
    if (found.messages && !found.messages.every(one => typeof one?.content === "string")) delete found.messages;
    if (found.tokens && !(found.tokens.length && found.tokens.every(Number.isInteger))) delete found.tokens;
    return found;
  } catch { return {}; }
}

const python = value => value === null ? "None" : value === true ? "True" : value === false ? "False" : literal(value);
const shell = text => `'${String(text).replaceAll("'", "'\\''")}'`;
const flag = (name, value) => FLAGS.includes(name) ? `--${name}=${shell(value)}` : `-o ${shell(`${name}=${value}`)}`;

export function copied(what, result) {
  const { prompt, messages, tokens, scope, options: given, position, at: place = "hook_embed", gradient = "plain" } = result.asked;
  const more = [...Object.entries(given), ...(position === -1 ? [] : [["position", position]]), ...(place === "hook_embed" ? [] : [["at", place]]), ...(gradient === "plain" ? [] : [["gradient", gradient]])];
  if (what === "python" && scope === "explain") return `js.explain(model, ${literal(prompt ?? result.tokens)}${Object.entries(given).map(([k, v]) => `, ${k}=${python(v)}`).join("")}${position === -1 ? "" : `, position=${position}`})`;
  if (what === "python") return `js.attribute(model, ${literal(prompt ?? result.tokens)}, ${literal(scope)}${more.map(([k, v]) => `, ${k}=${python(v)}`).join("")})`;
  if (messages || tokens) throw new Error("There is no command for a chat or a row of a run; copy it as Python.");
  const { model_name: model, device, dtype } = result.provenance, loaded = Object.entries({ model, device, dtype }).filter(([name, value]) => value !== PLAIN[name]);
  const said = [`--scope ${scope}`, ...loaded.map(([name, value]) => `--${name}=${shell(value)}`), ...more.map(pair => flag(...pair))].join(" ");
  return prompt.startsWith("-") ? `jscope ${said} -- ${shell(prompt)}` : `jscope ${shell(prompt)} ${said}`;
}
