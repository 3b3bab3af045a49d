"use strict";
// Drawing: every figure of kind lines, intervals and parts, from its description, as wide as the place it gets.

const SVG = "http://www.w3.org/2000/svg";

function node(name, attributes = {}, ...children) {
  const made = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const shape = (name, attributes, ...children) => node("svg:" + name, attributes, ...children);

function format(value, step) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e5 || (size && step >= 1e4)) return value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 });
  if (step === undefined) {
    if (size && size < 0.001) return value.toExponential(1);
    return Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 3);
  }
  if (step < 0.001) return value ? value.toExponential(0) : "0";
  return value.toLocaleString("en", { minimumFractionDigits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) });
}

function ticksBetween(low, high, wanted) {
  const rough = (high - low) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step || 0); // never -0
  return { step, found };
}

function extent(values, axis, margin) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value === null || value === undefined) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (axis.min !== null && axis.min !== undefined) low = Math.min(axis.min, low);
  if (axis.max !== null && axis.max !== undefined) high = Math.max(axis.max, high);
  if (axis.cut) high = axis.max;
  if (!(high > low)) [low, high] = [low - (low === 0 || axis.min === low ? 0 : 0.5), low + (low === 0 ? 1 : 0.5)];
  const room = (high - low) * margin;
  return [axis.min === low ? low : low - room, axis.max === high ? high : high + room];
}

const scale = ([a, b], [c, d]) => (value) => c + ((value - a) / (b - a)) * (d - c);
const within = (value, [low, high]) => Math.max(low, Math.min(high, value));
const px = (value) => Math.round(value * 10) / 10;
const path = (points) => points.map(([x, y], i) => (i ? "L" : "M") + px(x) + " " + px(y)).join("");

// Texts at the right of lines, moved apart so that none covers another.
function apart(labels, gap, low, high) {
  labels.sort((a, b) => a.y - b.y);
  labels.forEach((label, i) => { if (i) label.y = Math.max(label.y, labels[i - 1].y + gap); });
  for (let i = labels.length - 1, most = high; i >= 0; i--, most -= gap) {
    labels[i].y = Math.max(low, Math.min(labels[i].y, labels[i + 1] ? labels[i + 1].y - gap : most));
  }
}

function yAxis(svg, axis, domain, y, left, right, top, count) {
  const { step, found } = ticksBetween(domain[0], domain[1], count);
  for (const value of found) {
    svg.append(shape("line", { class: value === 0 && domain[0] < 0 ? "zero" : "gridline", x1: left, x2: right, y1: px(y(value)), y2: px(y(value)) }));
    svg.append(shape("text", { x: left - 10, y: px(y(value)) + 4, "text-anchor": "end" }, format(value, step)));
  }
  svg.append(shape("text", { x: 0, y: top - 14 }, axis.label));
}

function xAxis(svg, axis, domain, x, bottom, right, count) {
  const marks = axis.marks ?? null;
  const { step, found } = ticksBetween(domain[0], domain[1], count);
  const ticks = marks ?? found.map((value) => [value, format(value, step)]);
  for (const [value, text] of ticks) {
    svg.append(shape("line", { class: "gridline", x1: px(x(value)), x2: px(x(value)), y1: bottom, y2: bottom + 4 }));
    svg.append(shape("text", { x: px(x(value)), y: bottom + 17, "text-anchor": "middle" }, text));
  }
  svg.append(shape("text", { x: right, y: bottom + 33, "text-anchor": "end" }, axis.label));
}

function drawLines(figure, width) {
  const wide = width >= 480, named = figure.series.filter((series) => series.label !== false);
  const points = named.length > 0 && named.every((series) => series.style === "points");
  // The same room at the right of every figure, so that those above one another have the same axis.
  const beside = wide && !points;
  const strip = figure.strip ? 36 : 0;
  const left = 46, right = width - (beside ? 104 : points ? 24 : 12);
  const top = 28 + strip, height = (figure.wide && wide ? 230 : 190) + strip + (points ? 110 : 0), bottom = height - 40;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, tabindex: "0", role: "img" });
  const all = (key) => figure.series.flatMap((series) => series[key] ?? []);
  const xs = extent(all("x"), figure.x, figure.x.marks ? 0.06 : points ? 0.08 : 0);
  const ys = extent([...all("y"), ...all("low"), ...all("high")], figure.y, 0.05);
  const x = scale(xs, [left, right]), exact = scale(ys, [bottom, top]);
  const y = figure.y.cut ? (value) => exact(within(value, ys)) : exact;
  if (figure.region) {
    const end = Math.min(x(figure.region[1]), right);
    svg.append(shape("rect", { class: "region", x: left, y: top, width: Math.max(0, px(end - left)), height: bottom - top }));
    if (figure.wide && end - left > 60) svg.append(shape("text", { x: left + 8, y: top + 15 }, figure.region[2]));
  }
  yAxis(svg, figure.y, ys, y, left, right, top, 5);
  xAxis(svg, figure.x, xs, x, bottom, right, Math.min(8, Math.floor((right - left) / 55)));
  if (strip) drawStrip(svg, figure.strip, x, left, right, 0);
  const whiskers = figure.series.filter((series) => series.style === "dots" && series.low);
  for (const series of figure.series) {
    // Beside one another, intervals at the same place can be told apart.
    const aside = whiskers.includes(series) ? 5 * (whiskers.indexOf(series) - (whiskers.length - 1) / 2) : 0;
    svg.append(drawSeries(series, (value) => x(value) + aside, y));
  }
  const ends = beside ? named.map((series) => ({ series, y: y(series.y.at(-1)) })) : [];
  apart(ends, 15, top + 4, bottom);
  for (const { series, y: place } of ends) {
    const text = named.length > 1 ? series.name : format(series.y.at(-1));
    svg.append(shape("text", { class: "name " + series.colour, x: right + 12, y: px(place) + 4 }, text));
  }
  if (points) labelPoints(svg, named, x, y, left, width, top, bottom);
  return { svg, x, y, left, right, top: top - strip, bottom, beside: beside || points || named.length < 2 };
}

// Columns narrower than a pixel or so would show some steps and hide others.
function merged(columns, size) {
  if (size < 2) return columns;
  const found = [];
  for (let i = 0; i < columns.length; i += size) {
    const group = columns.slice(i, i + size), mean = (at) => group.reduce((sum, column) => sum + column[at], 0) / group.length;
    found.push([group[0][0], group.at(-1)[1], mean(2), mean(3)]);
  }
  return found;
}

function drawStrip(svg, columns, x, left, right, top) {
  const all = { grpo: "", both: "", sft: "" };
  const bar = (from, to, y, h) => (h > 0 ? `M${px(from)} ${px(y)}H${px(to)}V${px(y + h)}H${px(from)}Z` : "");
  for (const [first, last, sft, both] of merged(columns, Math.ceil((1.5 * columns.length) / (right - left)))) {
    const from = Math.max(left, x(first - 0.5)), to = Math.min(right, x(last + 0.5)), size = 22;
    all.sft += bar(from, to, top, size * sft);
    all.both += bar(from, to, top + size * sft, size * both);
    all.grpo += bar(from, to, top + size * (sft + both), size * (1 - sft - both));
  }
  for (const [colour, d] of Object.entries(all)) svg.append(shape("path", { class: "fill " + colour, d }));
}

function drawSeries(series, x, y) {
  const group = shape("g", { class: series.colour }), joined = series.style !== "points";
  const points = series.x.map((value, i) => [x(value), y(series.y[i])]);
  const dots = series.style === "dots" || series.style === "points";
  if (series.low && dots) {
    series.low.forEach((low, i) => group.append(shape("line", {
      class: "whisker thin", x1: px(points[i][0]), x2: px(points[i][0]), y1: px(y(low)), y2: px(y(series.high[i])),
    })));
  } else if (series.low) {
    const edge = series.x.map((value, i) => [x(value), y(series.low[i])]).reverse();
    const upper = series.x.map((value, i) => [x(value), y(series.high[i])]);
    group.append(shape("path", { class: "band", d: path([...upper, ...edge]) + "Z" }));
  }
  if (joined && series.style !== "band") group.append(shape("path", { class: "line " + series.style, d: path(points) }));
  if (dots || points.length === 1) {
    for (const [cx, cy] of points) group.append(shape("circle", { class: "dot", cx: px(cx), cy: px(cy), r: 4 }));
  }
  return group;
}

// Each name beside its point, in the first place around it that is free; one without a place shows in the read-out.
function labelPoints(svg, named, x, y, left, width, top, bottom) {
  const taken = named.flatMap((s) => s.x.map((value, i) => [x(value) - 5, y(s.y[i]) - 5, x(value) + 5, y(s.y[i]) + 5]));
  for (const series of named) {
    const px0 = x(series.x[0]), py0 = y(series.y[0]), size = 7.2 * series.name.length;
    const places = [[9, 4, "start"], [-9, 4, "end"], [0, -10, "middle"], [0, 19, "middle"], [9, -8, "start"], [9, 16, "start"], [-9, -8, "end"], [-9, 16, "end"]];
    for (const [dx, dy, anchor] of places) {
      const from = px0 + dx - (anchor === "end" ? size : anchor === "middle" ? size / 2 : 0);
      const box = [from, py0 + dy - 11, from + size, py0 + dy + 3];
      const free = taken.every((t) => box[2] < t[0] || box[0] > t[2] || box[3] < t[1] || box[1] > t[3]);
      if (!free || box[0] < left || box[2] > width || box[1] < top - 6 || box[3] > bottom) continue;
      taken.push(box);
      svg.append(shape("text", { class: "name " + series.colour, x: px(px0 + dx), y: px(py0 + dy), "text-anchor": anchor }, series.name));
      break;
    }
  }
}

function drawIntervals(figure, width) {
  const wide = width >= 440, rows = figure.rows, row = wide ? 26 : 42;
  const longest = Math.max(...rows.map((r) => r.name.length));
  const left = wide ? Math.min(width * 0.34, 16 + 7 * longest) : 6, right = width - (wide ? 150 : 8);
  const top = 6, bottom = top + rows.length * row, height = bottom + 40;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, tabindex: "0", role: "img" });
  const values = rows.flatMap((r) => [r.value, r.low, r.high, ...(r.points ?? [])]);
  const domain = extent(figure.zero ? [...values, 0] : values, figure.x, 0.05), x = scale(domain, [left, right]);
  const { step, found } = ticksBetween(domain[0], domain[1], Math.max(3, Math.min(6, Math.floor((right - left) / 50))));
  for (const value of found) {
    svg.append(shape("line", { class: "gridline", x1: px(x(value)), x2: px(x(value)), y1: top, y2: bottom }));
    svg.append(shape("text", { x: px(x(value)), y: bottom + 17, "text-anchor": "middle" }, format(value, step)));
  }
  svg.append(shape("text", { x: right, y: bottom + 33, "text-anchor": "end" }, figure.x.label));
  if (figure.zero) svg.append(shape("line", { class: "zero", x1: px(x(0)), x2: px(x(0)), y1: top, y2: bottom }));
  rows.forEach((r, i) => {
    const y = top + i * row + (wide ? row / 2 : 30), group = shape("g", { class: r.colour });
    group.append(shape("text", { class: "name", x: 0, y: wide ? y + 4 : y - 13 }, r.name));
    group.append(shape("text", { class: "value", x: width, y: wide ? y + 4 : y - 13, "text-anchor": "end" }, r.text));
    for (const point of r.points ?? []) group.append(shape("circle", { class: "seed", cx: px(x(point)), cy: y, r: 3 }));
    if (r.low !== null && r.low !== undefined) group.append(shape("line", { class: "whisker", x1: px(x(r.low)), x2: px(x(r.high)), y1: y, y2: y }));
    group.append(shape("circle", { class: "dot", cx: px(x(r.value)), cy: y, r: 5 }));
    svg.append(group);
  });
  return { svg, rows: true, top, row, left };
}
