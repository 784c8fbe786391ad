// A number series: its values as a line, and their scores for the continuation as bars.

import { $, short } from "./dom.js";

const [WIDE, LINE, BARS, LEFT] = [900, 130, 110, 50];
const svg = (tag, given, ...children) => { const e = document.createElementNS("http://www.w3.org/2000/svg", tag); Object.entries(given).forEach(([k, v]) => e.setAttribute(k, v)); e.append(...children); return e; };
const label = (x, y, said, anchor = "start") => svg("text", { x, y, "text-anchor": anchor, class: "said" }, said);

export function showSeries(result) {
  const drawn = result.series;
  $("series").hidden = !drawn;
  if (!drawn) return;
  const { values, scores } = drawn, n = values.length, top = Math.max(...scores, 1e-30), [low, high] = [Math.min(...values), Math.max(...values)];
  const x = i => LEFT + (WIDE - LEFT - 10) * (i + 0.5) / n, y = v => 10 + (LINE - 20) * (1 - (v - low) / (high - low || 1)), width = Math.min(30, Math.max(1, 0.8 * (WIDE - LEFT) / n));
  const bars = scores.map((s, i) => {
    const h = (BARS - 10) * s / top;
    return svg("rect", { x: x(i) - width / 2, y: LINE + BARS - h, width, height: h, class: "influence" }, svg("title", {}, `${values[i]}, number ${i + 1} of ${n}: ${short(s)} ${result.unit}`));
  });
  const points = values.map((v, i) => svg("circle", { cx: x(i), cy: y(v), r: 2.5, class: "value" }, svg("title", {}, `${v}, number ${i + 1} of ${n}`)));
  const picture = svg("svg", { viewBox: `0 0 ${WIDE} ${LINE + BARS + 6}`, role: "img", "aria-label": `${n} numbers from ${low} to ${high} as a line; bars: ${result.scope} scores in ${result.unit}, highest ${short(top)} at number ${scores.indexOf(top) + 1}` },
    svg("polyline", { points: values.map((v, i) => `${x(i)},${y(v)}`).join(" "), class: "line" }), ...points, ...bars,
    label(0, 18, String(high)), label(0, LINE - 8, String(low)), label(0, LINE + 18, short(top)), label(0, LINE + BARS, "0"));
  $("series-drawn").replaceChildren(picture);
  $("series-said").textContent = `line: the ${n} numbers up to the explained position; bars: their scores in ${result.unit}. Delimiters and BOS are left out.`;
}
