"""The style and the script of `views.answer`. They affect only elements of the class ``jscope-answer``, and use no ids."""

from jscope_tl.views.scale import DARK, LIGHT

CHANNELS = ",".join(f"calc({low} + {high - low}*var(--i,0))" for low, high in zip(LIGHT, DARK, strict=True))
STYLE = """<style>
.jscope-answer { font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
.jscope-answer p { margin: .35em 0 } .jscope-answer h4 { margin: 1em 0 .2em; font-size: 1em }
.jscope-answer h5 { margin: .7em 0 0; font-size: .85em; font-weight: 600 } .jscope-answer small { font-size: .85em }
.jscope-answer .hint, .jscope-answer .how { font-size: .9em }
.jscope-answer .rows { white-space: pre-wrap; line-height: 2 }
.jscope-answer button { font: inherit; line-height: 1.4; white-space: pre-wrap; text-align: start; min-width: 24px; min-height: 26px;
  padding: 0 .15em; margin: 0 1px; border: 1px solid #8c959f; border-radius: 4px; background: #fff; color: #1f2328; cursor: pointer }
.jscope-answer button:hover { background: #ddf4ff }
.jscope-answer.live button[aria-pressed=true], .jscope-answer.live .panel summary { background: #0550ae; color: #fff; border-color: #0550ae }
.jscope-answer :focus-visible { outline: 3px solid #0550ae; outline-offset: 2px }
.jscope-answer .sides { display: flex; flex-wrap: wrap; gap: 0 2.5rem } .jscope-answer .sides > div { flex: 1 1 22rem; min-width: min(100%, 18rem) }
.jscope-answer .panel summary { cursor: pointer; padding: .2em .5em; border-radius: 4px; font-weight: 600; white-space: pre-wrap }
.jscope-answer.live .panel:not([open]) { display: none } .jscope-answer.live .panel summary { list-style: none; pointer-events: none }
.jscope-answer.live .panel summary::-webkit-details-marker { display: none }
.jscope-answer .listed { overflow-x: auto } .jscope-answer table { table-layout: auto; border-collapse: collapse; font-size: .9em; width: 100%; margin: .4em 0 }
.jscope-answer th, .jscope-answer td { text-align: left; vertical-align: top; padding: .15em .8em .15em 0; border-bottom: 1px solid #d0d7de;
  white-space: pre-wrap; background: none } .jscope-answer th, .jscope-answer td { overflow-wrap: break-word } .jscope-answer td:last-child { white-space: nowrap; font-variant-numeric: tabular-nums }
.jscope-answer td i { display: inline-block; height: .7em; background: rgb(DARK) }
.jscope-answer .legend { font-size: .9em } .jscope-answer .scale { display: inline-block; width: 6em; height: .9em; vertical-align: -.1em;
  background: linear-gradient(to right, rgb(LIGHT), rgb(DARK)); border: 1px solid #8c959f }
.jscope-answer .message { border-left: 3px solid #d0d7de; padding-left: .7em; margin: .4em 0 }
.jscope-answer .message p { margin: 0; white-space: pre-wrap; line-height: 1.9 }
.jscope-answer .src { padding: .15em 0; border-radius: 2px; background: rgb(CHANNELS); color: #000; box-shadow: inset -1px 0 #fff }
.jscope-answer .src.strong { color: #fff } .jscope-answer .src.later { background: none; color: inherit; opacity: .65; box-shadow: none }
.jscope-answer .src.explained { outline: 2px solid #0550ae; opacity: 1 } .jscope-answer .src:hover, .jscope-answer .src:focus { outline: 3px solid #0550ae }
.jscope-answer .hid { display: none } .jscope-answer:has(input:checked) span.hid { display: inline; border-bottom: 2px dashed #57606a }
.jscope-answer:has(input:checked) div.hid { display: block }
.jscope-answer .said { position: sticky; bottom: 0; min-height: 1.5em; padding: .2em 0; font-weight: 600; background: var(--jp-layout-color0, #fff) }
.jscope-answer .said:empty { background: none; pointer-events: none }
.jscope-answer .spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
</style>""".replace("CHANNELS", CHANNELS)
for _name, _colour in (("DARK", DARK), ("LIGHT", LIGHT)):
    STYLE = STYLE.replace(_name, ",".join(map(str, _colour)))
SCRIPT = """<script type="module">
for (const view of document.querySelectorAll(".jscope-answer:not(.live)")) {
  view.classList.add("live");
  const one = what => view.querySelector(what), all = what => [...view.querySelectorAll(what)];
  const data = JSON.parse(one("script").textContent), said = one(".said"), spoken = one(".spoken"), panels = all(".panel");
  const rows = all(".rows button"), sources = all(".src");
  one(".how").textContent =
    "Choose what to explain: click it, or Tab to it and use the arrow keys. Hover over the text below, or Tab to it, to read its scores.";
  let chosen = 0;
  const read = j => {
    const scores = data.rows[chosen].scores, at = sources[j].dataset.at;
    if (j >= scores.length) return `${at}: comes after what is explained`;
    return `${at}: ${scores[j] || `less than ${data.least} of the highest`} ${scores[j] && data.unit}`;
  };
  const show = () => {
    const {top, explained, scores} = data.rows[chosen];
    rows.forEach((row, i) => { row.setAttribute("aria-pressed", i === chosen); row.tabIndex = i === chosen ? 0 : -1 });
    panels.forEach((panel, i) => { panel.open = i === chosen });
    one(".top").textContent = top;
    sources.forEach((source, j) => {
      const share = Math.min(1, parseFloat(scores[j]) / top) || 0, is = {strong: share > 0.98, later: j >= scores.length, explained: explained.includes(j)};
      source.style.setProperty("--i", share);
      source.title = read(j);
      for (const name in is) source.classList.toggle(name, is[name]);
      source.setAttribute("aria-label", `${source.textContent.trim()}, ${source.title}`);
    });
  };
  const choose = i => { if (i !== chosen) { chosen = i; show(); said.textContent = ""; spoken.textContent = data.rows[i].says } };
  const say = j => { said.textContent = `${sources[j].textContent.trim()} \\u2013 ${sources[j].title}` };
  const along = (items, act, kinds) => items.forEach((item, i) => {
    for (const kind of kinds) item.addEventListener(kind, () => act(i));
    item.addEventListener("keydown", e => {
      const shown = items.filter(other => other.offsetParent), at = shown.indexOf(item);
      const to = shown[{ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: shown.length - 1}[e.key]];
      if (to) { e.preventDefault(); item.tabIndex = -1; to.tabIndex = 0; to.focus() }
    });
  });
  const first = sources.find(source => !source.classList.contains("hid"));
  sources.forEach(source => { source.tabIndex = source === first ? 0 : -1 });
  all("summary").forEach(summary => { summary.tabIndex = -1 });
  along(rows, choose, ["click", "focus"]);
  along(sources, say, ["mouseenter", "focus", "click"]);
  show();
}
</script>"""
