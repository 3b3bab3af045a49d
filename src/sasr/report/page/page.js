"use strict";
// The page: what the report says, as elements. Texts of models and data only ever become text nodes.

const report = JSON.parse(document.getElementById("report").textContent);
const drawn = [];

function chart(figure, place) {
  const state = { figure, place, tip: node("div", { class: "tip", hidden: "" }), said: node("div", { class: "unseen", "aria-live": "polite" }), at: -1 };
  state.draw = (width) => {
    if (width < 40) return;
    state.width = width;
    Object.assign(state, figure.kind === "lines" ? drawLines(figure, width) : drawIntervals(figure, width));
    state.svg.setAttribute("aria-label", `${figure.title}. ${figure.caption} ${summary(figure)}`);
    place.replaceChildren(key(figure, state), state.svg, state.tip, state.said);
    if (figure.kind === "lines") readable(state);
  };
  drawn.push(state);
}

function summary(figure) {
  if (figure.kind === "intervals") return figure.rows.map((row) => `${row.name}: ${row.text}`).join("; ");
  return figure.series.filter((series) => series.label !== false && series.style !== "points")
    .map((series) => `${series.name}: last ${format(series.y.at(-1))}`).join("; ");
}

function key(figure, state) {
  const bar = node("div", { class: "key" });
  const names = { sft: "SFT", grpo: "GRPO", both: "both" };
  for (const [colour, count] of Object.entries(figure.counts ?? {})) {
    if (count) bar.append(node("span", { class: colour }, `${names[colour]} ${count.toLocaleString("en")} steps`));
  }
  if (figure.kind === "lines" && !state.beside && !figure.counts) {
    for (const series of figure.series) if (series.label !== false) bar.append(node("span", { class: series.colour }, series.name));
  }
  return bar.childElementCount ? bar : "";
}

// The cross-hair: by pointer or arrow keys, in all figures that share an axis at once.
function readable(state) {
  const { svg, figure } = state;
  state.places = [...new Set(figure.series.flatMap((series) => series.x))].sort((a, b) => a - b);
  state.cross = shape("line", { class: "cross", y1: state.top, y2: state.bottom, visibility: "hidden" });
  svg.append(state.cross);
  const value = (event) => {
    const box = svg.getBoundingClientRect();
    return ((event.clientX - box.left) * state.width) / box.width;
  };
  svg.addEventListener("pointermove", (event) => {
    const at = value(event);
    state.at = nearest(state.places, at, state.x);
    show(state, state.places[state.at]);
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (!move) return event.key === "Escape" ? hide() : undefined;
    event.preventDefault();
    state.at = Math.max(0, Math.min(state.places.length - 1, state.at + move));
    show(state, state.places[state.at]);
    state.said.textContent = state.tip.innerText;
  });
}

function nearest(values, at, x) {
  let best = 0;
  values.forEach((value, i) => { if (Math.abs(x(value) - at) < Math.abs(x(values[best]) - at)) best = i; });
  return best;
}

function show(state, place) {
  const { figure, tip } = state;
  for (const other of drawn) {
    const joined = other === state || (figure.group && other.figure.group === figure.group);
    if (!other.cross) continue;
    other.cross.setAttribute("visibility", joined ? "visible" : "hidden");
    if (joined) for (const end of ["x1", "x2"]) other.cross.setAttribute(end, px(other.x(place)));
    if (other !== state) other.tip.hidden = true;
  }
  const mark = (figure.x.marks ?? []).find(([value]) => value === place);
  const rows = [node("div", {}, `${figure.x.name ?? figure.x.label} ${mark ? mark[1] : format(place)}`)];
  const column = (figure.strip ?? []).find(([first, last]) => place >= first && place <= last);
  if (column) rows.push(node("div", {}, kinds(column)));
  for (const series of figure.series) {
    const index = series.style === "points" ? series.x.indexOf(place) : nearest(series.x, state.x(place), state.x);
    // A series without a value near the place (SFT loss in a stretch of GRPO) says nothing there.
    if (index < 0 || Math.abs(state.x(series.x[index]) - state.x(place)) > 12) continue;
    let text = format(series.y[index]);
    if (series.style === "band") text = `${format(series.low[index])} to ${format(series.high[index])}`;
    else if (series.low) text += ` (${format(series.low[index])} to ${format(series.high[index])})`;
    rows.push(node("div", { class: series.colour }, node("b", {}, series.name), node("span", {}, text)));
  }
  tip.replaceChildren(...rows);
  tip.hidden = false;
  const at = (state.x(place) * state.place.clientWidth) / state.width, size = tip.offsetWidth;
  const left = at + 14 + size > state.place.clientWidth ? at - 14 - size : at + 14;
  tip.style.transform = `translate(${Math.max(0, Math.min(left, state.place.clientWidth - size))}px, ${state.top + 30}px)`;
}

function kinds([first, last, sft, both]) {
  if (first === last) return sft ? "SFT step" : both ? "step of both" : "GRPO step";
  const share = (name, value) => (value ? [`${Math.round(100 * value)}% ${name}`] : []);
  return `steps ${first} to ${last}: ${[...share("SFT", sft), ...share("both", both), ...share("GRPO", 1 - sft - both)].join(", ")}`;
}

function hide() {
  for (const state of drawn) {
    state.tip.hidden = true;
    state.cross?.setAttribute("visibility", "hidden");
  }
}

function parts(figure, place) {
  const whole = figure.parts.reduce((sum, part) => sum + part.value, 0);
  const bar = node("div", { class: "parts", "aria-hidden": "true" });
  const list = node("ul", { class: "shares" });
  for (const part of figure.parts) {
    const piece = node("i", { class: part.colour });
    piece.style.flexGrow = part.value / whole;
    bar.append(piece);
    const share = node("small", {}, ` ${part.text}, ${Math.round((100 * part.value) / whole)}%`);
    list.append(node("li", {}, node("b", { class: part.colour }, part.name), share));
  }
  place.append(bar, list);
}

function table(figure, place) {
  const cell = (name, content, attributes = {}) => {
    const { text, note, href } = typeof content === "string" ? { text: content } : content;
    const link = href ? node("a", { href }, text) : text;
    return node(name, attributes, link, note ? node("small", {}, note) : null);
  };
  // Columns of words stand to the left, of numbers to the right.
  const words = figure.head.map((_, i) => figure.rows.filter((row) => /^[a-z]/i.test(row[i].text ?? row[i])).length * 2 > figure.rows.length);
  const side = (i) => (words[i] ? { class: "words" } : {});
  const head = node("tr", {}, ...figure.head.map((text, i) => node("th", { scope: "col", ...side(i) }, text)));
  const rows = figure.rows.map(([first, ...others]) =>
    node("tr", {}, cell("th", first, { scope: "row" }), ...others.map((content, i) => cell("td", content, side(i + 1)))));
  const made = node("table", { class: figure.texts ? "texts" : "", "aria-label": figure.title }, node("thead", {}, head), node("tbody", {}, ...rows));
  const box = node("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": figure.title }, made);
  place.append(figure.folded ? node("details", {}, node("summary", {}, `Show all ${rows.length}`), box) : box);
  if (figure.notes) place.append(node("ul", { class: "notes" }, ...figure.notes.map((text) => node("li", {}, text))));
}

const VERDICTS = {
  all: ["right and wrong", () => true],
  right: ["right", (v) => v === "right" || v === "reason"],
  reason: ["right, for the wrong reason", (v) => v === "reason"],
  wrong: ["wrong, for any reason", (v) => v !== "right" && v !== "reason"],
  answer: ["wrong answer", (v) => v === "wrong"],
  format: ["bad format", (v) => v === "format"],
  cut: ["cut at the limit", (v) => v === "cut"],
  failed: ["verifier failed", (v) => v === "failed"],
};
const AT_A_TIME = 5;

function completions(figure, place) {
  const exam = node("select", { name: "exam" }, node("option", { value: "" }, "all"));
  figure.exams.forEach((name, i) => exam.append(node("option", { value: i }, name)));
  if (figure.exams.length > 3) exam.value = figure.exams.length - 1; // all of them at once are a wall of text
  const verdict = node("select", { name: "verdict" });
  const present = new Set(figure.questions.flatMap((question) => question.tries.map((entry) => entry.verdict)));
  for (const [value, [name, fits]] of Object.entries(VERDICTS)) {
    if (value === "all" || [...present].some(fits)) verdict.append(node("option", { value }, name));
  }
  const search = node("input", { type: "search", name: "search", placeholder: "in question or completion" });
  const found = node("p", { class: "found", role: "status" }), list = node("div", { class: "questions" });
  const more = node("button", { class: "more", type: "button" }, "Show more");
  let shown = AT_A_TIME;
  const update = () => {
    const words = search.value.toLowerCase(), fits = VERDICTS[verdict.value][1];
    const kept = [];
    for (const question of figure.questions) {
      const asked = `${question.prompt} ${question.note}`.toLowerCase().includes(words);
      const tries = question.tries.filter((entry) => (exam.value === "" || entry.exam === Number(exam.value))
        && fits(entry.verdict) && (asked || entry.text.toLowerCase().includes(words)));
      if (tries.length) kept.push({ question, tries });
    }
    const count = kept.reduce((sum, entry) => sum + entry.tries.length, 0);
    const of = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
    found.textContent = `${of(count, "completion")} of ${of(kept.length, "question")}`;
    list.replaceChildren(...kept.slice(0, shown).map(({ question, tries }) => asked(question, tries, figure.exams)));
    more.hidden = kept.length <= shown;
  };
  for (const control of [exam, verdict, search]) {
    control.addEventListener("input", () => { shown = AT_A_TIME; update(); });
  }
  more.addEventListener("click", () => { shown += 2 * AT_A_TIME; update(); });
  const label = (text, control, name = "") => node("label", { class: name }, text, control);
  const filters = node("div", { class: "filters", role: "search" });
  if (figure.exams.length > 1) filters.append(label("Exam", exam));
  filters.append(label("Verdict", verdict), label("Search", search, "search"));
  place.append(filters, found, list, more);
  update();
}

function asked(question, tries, exams) {
  const meta = [`expected ${question.answer}`, question.note, `question ${question.row + 1}`].filter(Boolean).join(" · ");
  const box = node("article", { class: "question" },
    node("p", { class: "asked", dir: "auto" }, question.prompt), node("p", { class: "meta" }, meta));
  for (const entry of tries) {
    const who = [exams.length > 1 ? exams[entry.exam] : "", entry.how, `${entry.tokens} tokens`].filter(Boolean).join(" · ");
    const about = node("div", { class: "who" }, node("div", { class: "verdict " + entry.verdict }, entry.why), node("span", {}, who));
    if (entry.score) about.append(node("span", {}, entry.score));
    if (entry.path) about.append(node("span", {}, `path ${entry.path}`));
    box.append(node("div", { class: "try" }, about, node("pre", { class: "text", dir: "auto" }, entry.text || "(nothing)")));
  }
  return box;
}

function header() {
  const title = node("div", {}, node("p", { class: "over" }, report.subtitle), node("h1", {}, report.title));
  if (report.state) title.append(node("p", { class: "state " + report.state.tone }, report.state.text));
  const toggle = node("button", { type: "button", id: "theme" });
  const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const say = () => { toggle.textContent = dark() ? "Light" : "Dark"; toggle.setAttribute("aria-label", `Switch to the ${dark() ? "light" : "dark"} theme`); };
  toggle.addEventListener("click", () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; say(); });
  say();
  const facts = report.facts.map((fact) => node("div", {}, node("dt", {}, fact.title),
    node("dd", { class: "value" }, fact.value), node("dd", { class: "note" }, fact.note)));
  return node("header", {}, node("div", { class: "top" }, title, toggle), node("dl", { class: "facts" }, ...facts));
}

function build() {
  document.title = `${report.title} – ${report.subtitle}`;
  const main = node("main");
  for (const part of report.sections) {
    const grid = node("div", { class: "grid" });
    for (const figure of part.figures) {
      const place = node("div", { class: "chart" });
      const caption = node("figcaption", {}, node("h3", {}, figure.title), node("p", {}, figure.caption));
      grid.append(node("figure", { class: figure.wide ? "wide" : "" }, caption, place));
      ({ lines: chart, intervals: chart, parts, table, completions })[figure.kind](figure, place);
    }
    main.append(node("section", {}, node("h2", {}, part.title), part.lead ? node("p", { class: "lead" }, part.lead) : null, grid));
  }
  document.body.append(header(), main, node("footer", {}, report.made));
  for (const state of drawn) state.draw(state.place.clientWidth);
  new ResizeObserver(() => {
    for (const state of drawn) if (state.place.clientWidth !== state.width) state.draw(state.place.clientWidth);
  }).observe(main);
}

build();
