// Downloads and copies: JSON, a picture, the page as one file.

import { fetchText } from "./api.js";
import { colour, make } from "./dom.js";
import { scaleOf, titled, visible } from "./tokens.js";

export function save(name, content, type) {
  const link = make("a", { download: name, href: URL.createObjectURL(new Blob([content], { type })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// The JSON of a saved `Attribution`, without the additions of the page.
export function attributionOf({ control, asked, name, off_scale, series, seconds, link, ...saved }) {
  return JSON.stringify(saved, null, 1);
}

// The clipboard is available only on this machine and with HTTPS, and not in every frame; otherwise use execCommand.
export async function toClipboard(text) {
  if (await navigator.clipboard?.writeText(text).then(() => true, () => false)) return;
  const before = document.activeElement, held = make("textarea", { value: text });
  document.body.append(held);
  held.select();
  const done = document.execCommand("copy");
  held.remove();
  before?.focus();
  if (!done) throw new Error(`The browser does not allow this page to copy. Copy the text from here: ${text}`);
}

export const frozenPage = async data => (await fetchText("shell")).replace('<meta name="jscope-data">', () => `<script type="application/json" id="frozen">${JSON.stringify(data).replaceAll("<", "\\u003c")}</script>`);

const [SHEET, MARGIN, STEP] = [900, 24, 30];

// The coloured tokens of every column on a canvas with twice the resolution of the screen.
export function picture(results, log, model) {
  const canvas = make("canvas"), drawing = canvas.getContext("2d");
  let height = 0;
  const walk = paint => {
    let y = MARGIN;
    const line = (said, font, ink) => { drawing.font = font; if (paint) { drawing.fillStyle = ink; drawing.fillText(said, MARGIN, y + 14, SHEET - 2 * MARGIN); } y += 24; };
    for (const one of results) {
      line(`${titled(one)}, ${one.unit}`, "600 15px sans-serif", "#1f2328");
      y = tokensOf(one, scaleOf([one], log), drawing, y, paint) + STEP + 10;
    }
    line(`${model}; ${scaleOf([results[0]], log).says}${results.length > 1 ? "; each on its own scale" : ""}`, "13px sans-serif", "#57606a");
    height = y + MARGIN / 2;
  };
  walk(false);
  [canvas.width, canvas.height] = [2 * SHEET, 2 * height];
  drawing.scale(2, 2);
  drawing.fillStyle = "#fff";
  drawing.fillRect(0, 0, SHEET, height);
  walk(true);
  return new Promise(done => canvas.toBlob(done, "image/png"));
}

function tokensOf(one, scale, drawing, y, paint) {
  let x = MARGIN;
  drawing.font = "16px sans-serif";
  one.str_tokens.forEach((text, i) => {
    const said = visible(text), width = drawing.measureText(said).width, share = i <= one.position ? scale.at(one.scores[i]) : 0;
    if (x + width > SHEET - MARGIN && x > MARGIN) [x, y] = [MARGIN, y + STEP];
    if (paint) {
      drawing.fillStyle = i <= one.position ? colour(share) : "#fff";
      drawing.fillRect(x, y, width, STEP - 6);
      if (i === one.position) { drawing.strokeStyle = "#0550ae"; drawing.lineWidth = 2; drawing.strokeRect(x, y, width, STEP - 6); }
      drawing.fillStyle = share > 0.98 ? "#fff" : "#000";
      drawing.fillText(said, x, y + 17);
    }
    x += width + 1;
  });
  return y;
}
