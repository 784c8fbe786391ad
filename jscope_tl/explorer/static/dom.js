// Helpers for elements, numbers and colours.

export const $ = id => document.getElementById(id);
export const make = (tag, properties = {}, ...children) => { const e = Object.assign(document.createElement(tag), properties); e.append(...children); return e; };
export const percent = p => p >= 0.9995 && p < 1 ? ">99.9%" : p > 0 && p < 0.0005 ? "<0.1%" : `${(100 * p).toFixed(1)}%`;
export const short = x => x === null || x === undefined ? "not known" : Number(x.toPrecision(4)).toString();

const LIGHT = [255, 240, 224], DARK = [191, 84, 0], FALLS = [84, 39, 136];
export const colour = (share, falls = false) => `rgb(${LIGHT.map((l, k) => Math.round(l + ((falls ? FALLS : DARK)[k] - l) * share))})`;

// Arrow keys move the focus among elements in rows; `rows` is a list of lists.
export function arrows(box, rows) {
  rows.flat().forEach((e, n) => { e.tabIndex = n ? -1 : 0; });
  box.onkeydown = event => {
    const i = rows.findIndex(row => row.includes(document.activeElement)), j = rows[i]?.indexOf(document.activeElement);
    const to = { ArrowRight: [i, j + 1], ArrowLeft: [i, j - 1], ArrowDown: [i + 1, j], ArrowUp: [i - 1, j], Home: [i, 0], End: [i, rows[i]?.length - 1] }[event.key];
    const next = to && rows[to[0]]?.[to[1]];
    if (!next) return;
    event.preventDefault();
    rows[i][j].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  };
}
