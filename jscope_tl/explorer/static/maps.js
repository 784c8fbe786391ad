// Maps of layers by position, and of layers by head.

import { $, arrows, colour, make, short } from "./dom.js";
import { ofWhat, visible } from "./tokens.js";

const topOf = cells => Math.max(1e-30, ...cells.filter(c => !c.off).map(c => Math.abs(c.value)));

// `tops`: the upper limit of each row's scale.
function grid(rows, columns, cells, tops, tell, choose) {
  const head = make("tr", {}, make("td"), ...columns.map(name => make("th", { scope: "col" }, make("span", { textContent: name }))));
  const elements = cells.map((row, i) => row.map((cell, j) => {
    const td = make("td", { title: cell.says });
    td.setAttribute("aria-label", cell.says);
    td.style.backgroundColor = colour(Math.min(1, Math.abs(cell.value) / tops[i]), cell.value < 0);
    for (const kind of ["mouseenter", "focus"]) td.addEventListener(kind, () => tell(cell.says));
    td.addEventListener("click", () => choose?.(i, j));
    td.addEventListener("keydown", event => { if (event.key === "Enter") choose?.(i, j); });
    return td;
  }));
  const body = elements.map((row, i) => make("tr", {}, make("th", { scope: "row", textContent: rows[i] }), ...row));
  const table = make("table", { className: "map" }, make("thead", {}, head), make("tbody", {}, ...body));
  arrows(table, elements);
  return table;
}

const tell = text => { $("map-said").textContent = text; };

export function showLayers(found, choose) {
  const rows = found.hook_points.map(name => name.replace("blocks.", "layer ").replace(".hook_resid_pre", ""));
  const columns = found.str_tokens.slice(0, found.position + 1).map(visible);
  const scores = Array.isArray(found.scores[0][0]) ? found.scores.flat() : found.scores; // with a row for each head
  const cells = scores.map((row, l) => columns.map((text, t) => ({
    value: row[t], off: found.off_scale.includes(t), says: `${JSON.stringify(text)} at ${t}, ${found.hook_points[l]}: ${short(row[t])} ${found.unit}`,
  })));
  const shared = found.hook_points[0].includes("pattern"), tops = cells.map(row => topOf(shared ? cells.flat() : row));
  $("map").replaceChildren(grid(rows.map((name, l) => shared ? name : `${name}, to ${short(tops[l])}`), columns, cells, tops, tell, choose));
  $("map-of").textContent = ofWhat(found);
  tell(`${shared ? "One scale for all layers" : "Each layer has its own scale, up to the score beside it, because the norm of x grows over the layers"}. Hover, or use the arrow keys, to read a score${choose ? "; click a cell or press Enter to use its layer for the next explanation" : ""}.`);
}

export function showHeads(found) {
  const cells = found.values.map((row, l) => row.map((value, h) => ({
    value, says: `${found.hook_points[l]} head ${h}: ${short(value)} ${found.unit}${found.measured?.[l][h] != null ? ", measured" : found.refined[l][h] ? ", refined" : ", predicted"}`,
  })));
  $("map").replaceChildren(grid(found.values.map((_, l) => `layer ${l}`), found.values[0].map((_, h) => String(h)), cells, cells.map(() => topOf(cells.flat())), tell));
  $("map-of").textContent = ofWhat(found);
  tell(`Effect of ablating each head (measured for the strongest, predicted for the others), in ${found.unit}: ${found.top.slice(0, 5).map(one => `${one.name} ${short(one.effect)} ${one.how}`).join(", ")}. Predictions can be wrong by a factor of ten.`);
}

export function clearMap() {
  $("map").replaceChildren();
  $("map-of").textContent = "";
  tell("");
}

// A circuitsvis view is a separate page, which has no access to this page or to the server.
export function showFrame(address, says) {
  const frame = make("iframe", { src: address, title: says, className: "view" });
  frame.setAttribute("sandbox", "allow-scripts");
  $("frame").replaceChildren(make("p", { className: "quiet", textContent: says }), frame);
}
