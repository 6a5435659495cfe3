"use strict";

// Replays a run: `show` draws one depth step of one problem, everything else calls it.

const data = JSON.parse(byId("data").textContent);
const SVG = "http://www.w3.org/2000/svg"; // a name, not an address that anything is fetched from
const WORDS = { fine: "✓ fine", look: "! look", trouble: "✗ trouble" };
const calm = matchMedia("(prefers-reduced-motion: reduce)");
// Okabe and Ito's colours, which colour-blind readers tell apart: of vertices, beside their number.
const COLOURS = ["#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#F0E442", "#CC79A7"];
const narrow = matchMedia("(max-width: 46rem)"); // as in the style
const PAUSE = () => (calm.matches ? 1500 : 600); // milliseconds between depth steps when it plays

let problem; // the one on display, unpacked
let row = 0; // recorded depth step, from 0
let chosen = 0; // trajectory, in the order of display
let timer = null;

function byId(id) {
  return document.getElementById(id);
}

// -- reading ------------------------------------------------------------------------------------------------

/** Numbers of so many bits each, one after another, the most significant bit first. */
function unpack({ bits, count, data }) {
  const bytes = atob(data);
  const values = new Uint32Array(count);
  for (let i = 0, at = 0; i < count; i++) {
    for (let bit = 0; bit < bits; bit++, at++) {
      values[i] = values[i] * 2 + ((bytes.charCodeAt(at >> 3) >> (7 - (at & 7))) & 1);
    }
  }
  return values;
}

function maybe(packed) {
  return packed ? unpack(packed) : null;
}

function read(raw) {
  const answers = raw.answers && {
    ...raw.answers,
    index: unpack(raw.answers.index),
    verified: maybe(raw.answers.verified),
    cells: maybe(raw.answers.cells),
    given: maybe(raw.answers.given),
    broken: maybe(raw.answers.broken),
    edges: maybe(raw.answers.edges),
  };
  return { ...raw, answers, slots: unpack(raw.slots), ancestors: maybe(raw.ancestors) };
}

/** Which answer trajectory i gives at depth row s. */
function answerOf(i, s = row) {
  return problem.answers.index[s * problem.shown + i];
}

function slotOf(i, s = row) {
  return problem.slots[s * problem.shown + i];
}

/** "right", "wrong", or "" where the task cannot tell. */
function kind(answer) {
  const { verified } = problem.answers;
  return verified ? (verified[answer] ? "right" : "wrong") : "";
}

function mark(answer) {
  return { right: "✓", wrong: "✗", "": "" }[kind(answer)];
}

function percent(share) {
  return `${(100 * share).toFixed(1)}%`;
}

function plural(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

/** A figure at a depth step; null where it was not recorded or is not finite. */
function valueAt(figure, depth) {
  const at = figure.depths.indexOf(depth);
  return at < 0 ? null : figure.values[at];
}

function written(value) {
  if (value === null) return "none";
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 1 ? value.toFixed(1) : String(Number(value.toFixed(3)));
}

// -- elements -----------------------------------------------------------------------------------------------

function element(tag, { text, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

function drawing(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// -- boards -------------------------------------------------------------------------------------------------

/** A picture of one answer, `size` pixels wide at the most where cells need no more room for their text. */
function picture(answer, size) {
  const { answers } = problem;
  if (!answers.cells) return element("pre", { text: answers.texts[answer] });
  const area = answers.rows * answers.columns;
  const part = (marks) => marks && marks.subarray(answer * area, (answer + 1) * area);
  if (answers.edges) return graph(part(answers.cells), answers.edges, part(answers.broken), size);
  return grid(answers.rows, answers.columns, part(answers.cells), answers.given, part(answers.broken), size);
}

function problemPicture(size) {
  const { problem: given, edges, rows, columns } = problem.answers;
  if (edges) return graph(new Uint32Array(rows * columns), edges, null, size);
  if (typeof given === "string") return element("p", { class: "tokens", text: given });
  const cells = unpack(given.cells);
  return grid(given.shape[0], given.shape[1], cells, problem.answers.given, null, size);
}

/** A canvas of so many CSS pixels and its pen, sharp on any screen. */
function sheet(wide, high) {
  const canvas = element("canvas");
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(wide * scale);
  canvas.height = Math.round(high * scale);
  canvas.style.width = `${wide}px`;
  canvas.style.height = `${high}px`;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  return [canvas, pen];
}

function grid(rows, columns, cells, given, broken, size) {
  const look = data.board;
  const longest = Math.max(...look.symbols.map((symbol) => symbol.length));
  let side = Math.max(3, Math.min(36, Math.floor(size / Math.max(rows, columns))));
  if (!look.colours.length) side = Math.max(side, 10); // the text must be read
  const wide = longest > 2 ? Math.max(side, Math.ceil(0.62 * Math.min(side, 16) * longest) + 4) : side;
  const [canvas, pen] = sheet(columns * wide + 2, rows * side + 2);
  pen.translate(1, 1);
  for (let cell = 0; cell < rows * columns; cell++) {
    if (!cells[cell]) continue; // no cell here
    const [r, c] = [Math.floor(cell / columns), cell % columns];
    drawCell(pen, c * wide, r * side, wide, side, {
      symbol: look.symbols[cells[cell] - 1] ?? "?",
      colour: look.colours[cells[cell] - 1],
      dark: look.chequered && (r + c) % 2 === 1,
      given: given && given[cell],
      broken: broken && broken[cell],
    });
  }
  if (look.box) {
    pen.strokeStyle = "#30353b";
    pen.lineWidth = 1.5;
    pen.beginPath();
    for (let r = 0; r <= rows; r += look.box[0]) pen.moveTo(0, r * side), pen.lineTo(columns * wide, r * side);
    for (let c = 0; c <= columns; c += look.box[1]) pen.moveTo(c * wide, 0), pen.lineTo(c * wide, rows * side);
    pen.stroke();
  }
  return canvas;
}

function drawCell(pen, x, y, wide, side, cell) {
  const [light, dark] = cell.given ? ["#d3dae2", "#b9c3ce"] : ["#fff", "#eee3d0"];
  pen.fillStyle = cell.colour || (cell.dark ? dark : light);
  pen.fillRect(x, y, wide, side);
  if (side >= 6) {
    pen.strokeStyle = "#c3c7cc";
    pen.lineWidth = 0.5;
    pen.strokeRect(x, y, wide, side);
  }
  if (cell.broken) {
    // A corner as well as a colour.
    pen.fillStyle = "rgba(200, 40, 30, 0.22)";
    pen.fillRect(x, y, wide, side);
    pen.fillStyle = "#a8322a";
    pen.beginPath();
    pen.moveTo(x + wide, y);
    pen.lineTo(x + wide - side * 0.38, y);
    pen.lineTo(x + wide, y + side * 0.38);
    pen.fill();
  }
  if (side < 10 || !cell.symbol) return;
  pen.fillStyle = cell.colour ? readable(cell.colour) : cell.given ? "#111" : "#0b4a8f";
  const high = Math.min(side * 0.78, 16 + side / 6, (wide - 2) / (0.62 * cell.symbol.length));
  pen.font = `${cell.given ? "bold " : ""}${high.toFixed(1)}px system-ui, sans-serif`;
  pen.fillText(cell.symbol, x + wide / 2, y + side / 2 + side * 0.04);
}

/**
 * Vertices on a circle, the first at the top, then clockwise; edges that break a rule are dashed. A cell of 0 is a
 * vertex without an answer, and shows its number.
 */
function graph(cells, edges, broken, size) {
  const [canvas, pen] = sheet(size, size);
  const radius = Math.max(5, Math.min(11, size / (1.2 * cells.length)));
  const places = Array.from(cells, (_, i) => {
    const angle = (2 * Math.PI * i) / cells.length;
    const reach = size / 2 - radius - 2;
    return [size / 2 + reach * Math.sin(angle), size / 2 - reach * Math.cos(angle)];
  });
  for (let edge = 0; edge < edges.length; edge += 2) {
    const [from, to] = edges.subarray(edge, edge + 2);
    const bad = broken && broken[from] && broken[to] && cells[from] === cells[to];
    pen.strokeStyle = bad ? "#a8322a" : "#9aa0a6";
    pen.lineWidth = bad ? 2 : 1;
    pen.setLineDash(bad ? [4, 2] : []);
    pen.beginPath();
    pen.moveTo(...places[from]);
    pen.lineTo(...places[to]);
    pen.stroke();
  }
  pen.setLineDash([]);
  pen.font = `bold ${Math.round(1.25 * radius)}px system-ui, sans-serif`;
  places.forEach(([x, y], i) => {
    const colour = cells[i] ? COLOURS[(cells[i] - 1) % COLOURS.length] : "#ffffff";
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fillStyle = colour;
    pen.fill();
    pen.strokeStyle = broken && broken[i] ? "#a8322a" : "#30353b";
    pen.lineWidth = broken && broken[i] ? 2.5 : 0.8;
    pen.stroke();
    pen.fillStyle = readable(colour);
    pen.fillText(cells[i] ? (data.board.symbols[cells[i] - 1] ?? "?") : i, x, y + 0.5);
  });
  return canvas;
}

/** Black or white, whichever can be read on "#rrggbb". */
function readable(colour) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#111" : "#fff";
}

// -- one problem --------------------------------------------------------------------------------------------

function open(number) {
  stop();
  problem = read(data.problems[number]);
  chosen = 0;
  row = problem.depths.length - 1;
  const slider = byId("depth");
  slider.max = row;
  slider.disabled = byId("play").disabled = row === 0;
  showFindings(data.runs[problem.run]);
  for (const part of ["boards-part", "answers-part"]) byId(part).hidden = !problem.answers;
  if (problem.answers) makeTiles();
  byId("genealogy-note").textContent = genealogyWords();
  show();
}

function makeTiles() {
  const { shown, width, answers, ancestors } = problem;
  byId("boards-note").textContent = [
    shown < width
      ? `The ${shown} of ${width} trajectories with the largest weights; the figures are of all.`
      : "",
    "A board is a trajectory that reached the end, followed back along its ancestors;",
    "equal last answers stand side by side.",
    answers.verified ? "✓, solid: verified. ✗, dashed: not right." : "The answers are not verified.",
    answers.given && answers.given.includes(1) ? "Grey: given." : "",
    answers.broken ? (answers.edges ? "Red rings and dashes" : "Red corner") + ": breaks a rule." : "",
    ancestors ? "Before a branch several trajectories share a board." : "",
  ].join(" ");
  const list = byId("tiles");
  list.replaceChildren();
  for (let i = 0; i < shown; i++) {
    const caption = element("div", { class: "caption" }, element("span"), element("span", { class: "mark" }));
    const tile = element("div", { role: "option", tabindex: -1 }, caption, element("div", { class: "board" }));
    tile.addEventListener("click", () => choose(i));
    list.append(tile);
  }
}

/** Everything at the depth step `row`. */
function show() {
  const depth = problem.depths[row];
  const last = problem.depths[problem.depths.length - 1];
  const slider = byId("depth");
  slider.value = row;
  slider.setAttribute("aria-valuetext", `depth step ${depth} of ${last}`);
  byId("depth-now").textContent = `depth step ${depth} of ${last}`;
  byId("summary").textContent = summary(depth);
  for (const words of document.querySelectorAll(".at-depth")) words.textContent = `after depth step ${depth}`;
  if (problem.answers) {
    byId("problem-board").replaceChildren(problemPicture(narrow.matches ? 156 : 200));
    showTiles();
    showChosen();
    showAnswers();
  }
  showGenealogy();
  showFigures(depth);
}

function summary(depth) {
  const at = Object.fromEntries(problem.figures.map((figure) => [figure.name, valueAt(figure, depth)]));
  const words = [];
  if (problem.answers) {
    const right = problem.answers.verified ? `, ${at["distinct verified answers"]} verified` : "";
    words.push(plural(at["distinct answers"], "different answer") + right);
    if (right) words.push(`${at["share verified"].toFixed(1)}% of the weight is on verified ones`);
  }
  words.push(`effective sample size ${written(at["effective sample size"])} of ${problem.width}`);
  return `${words.join("; ")}.`;
}

/** Pixels for a board, so that the tiles fill their line. */
function tileSize() {
  const all = byId("tiles").clientWidth;
  return Math.floor(all / Math.max(1, Math.round(all / 118))) - 20;
}

function showTiles() {
  const tiles = byId("tiles").children;
  const size = tileSize();
  for (let i = 0; i < problem.shown; i++) {
    const answer = answerOf(i);
    const tile = tiles[i];
    const weight = problem.weights[row][i];
    const number = slotOf(i, problem.depths.length - 1);
    const selected = i === chosen;
    tile.className = `tile ${kind(answer)}${weight ? "" : " gone"}`;
    tile.tabIndex = selected ? 0 : -1;
    tile.setAttribute("aria-selected", selected);
    tile.setAttribute("aria-label", `trajectory ${number}, ${inWords(answer)}weight ${percent(weight)}`);
    const [name, sign] = tile.firstChild.children;
    name.textContent = number;
    sign.textContent = mark(answer);
    const drawn = `${answer} ${size}`;
    if (tile.dataset.drawn !== drawn) tile.lastChild.replaceChildren(picture(answer, size));
    tile.dataset.drawn = drawn;
  }
}

function inWords(answer) {
  return { right: "verified, ", wrong: "not right, ", "": "" }[kind(answer)];
}

function showChosen() {
  const answer = answerOf(chosen);
  const name = slotOf(chosen, problem.depths.length - 1);
  byId("chosen-caption").textContent = `trajectory ${name} ${mark(answer)}`;
  byId("chosen-board").replaceChildren(picture(answer, narrow.matches ? 156 : 240));
  const facts = [["weight", percent(problem.weights[row][chosen])]];
  for (const [head, values] of Object.entries(problem.heads)) {
    if (values[row][chosen] !== null) facts.push([`${head} head`, percent(values[row][chosen])]);
  }
  const steps = problem.depths.map((_, s) => s);
  const when = (s) => (s === undefined ? "never" : `depth step ${problem.depths[s]}`);
  facts.push(["last changed", when(steps.findLast((s) => s > 0 && answerOf(chosen, s) !== answerOf(chosen, s - 1)))]);
  const right = steps.find((s) => kind(answerOf(chosen, s)) === "right");
  if (problem.answers.verified) facts.push(["first right", when(right)]);
  if (problem.ancestors) facts.push(["slot now", slotOf(chosen)]);
  byId("chosen-facts").replaceChildren(...pairs(facts));
}

function choose(i) {
  chosen = Math.max(0, Math.min(problem.shown - 1, i));
  showTiles();
  showChosen();
  showGenealogy();
  byId("tiles").children[chosen].focus();
}

function pairs(rows) {
  return rows.flatMap(([term, text]) => [element("dt", { text: term }), element("dd", { text })]);
}

function showAnswers() {
  const listed = problem.answers.posterior[row];
  const size = tileSize();
  const items = listed.map(([answer, share]) => {
    const bar = element("span");
    bar.style.width = percent(share);
    const words = { right: " ✓ verified", wrong: " ✗", "": "" }[kind(answer)];
    return element("li", { class: kind(answer) },
      element("div", { class: "share", text: percent(share) }, element("span", { class: `mark ${kind(answer)}`, text: words })),
      element("div", { class: "bar", "aria-hidden": "true" }, bar),
      element("div", { class: "board" }, picture(answer, size)));
  });
  byId("answers").replaceChildren(...items);
  const figure = problem.figures.find(({ name }) => name === "distinct answers");
  const rest = valueAt(figure, problem.depths[row]) - listed.length;
  const share = 1 - listed.reduce((sum, [, each]) => sum + each, 0);
  const words = `and ${plural(rest, "more answer")} with ${percent(share)} of the weight`;
  byId("answers-rest").textContent = rest > 0 ? words : "";
}

// -- curves -------------------------------------------------------------------------------------------------

const HEIGHT = 110;

function showFigures(depth) {
  byId("figures").replaceChildren(...problem.figures.map((figure) => curve(figure, depth)));
  const depths = [...new Set(problem.figures.flatMap((figure) => figure.depths))].sort((a, b) => a - b);
  const names = ["depth step", ...problem.figures.map((figure) => figure.name)];
  const head = element("tr", {}, ...names.map((text) => element("th", { text, scope: "col" })));
  const rows = depths.map((each) =>
    element("tr", each === depth ? { class: "now" } : {}, element("th", { text: each, scope: "row" }),
      ...problem.figures.map((figure) => element("td", { text: written(valueAt(figure, each)) }))),
  );
  byId("table").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

function curve(figure, depth) {
  const value = valueAt(figure, depth);
  const unit = figure.unit === "%" ? "%" : figure.unit && ` ${figure.unit}`;
  const now = element("b", { text: written(value) + (value === null ? "" : unit) });
  const caption = element("figcaption", { text: `${figure.name} ` }, now);
  const known = figure.values.filter((each) => each !== null);
  const low = Math.min(0, ...known);
  const high = figure.most ?? Math.max(low + 1, ...known);
  const wide = Math.max(160, figureWidth());
  const [first, last] = [figure.depths[0], figure.depths[figure.depths.length - 1]];
  const x = (each) => 34 + ((wide - 44) * (each - first)) / Math.max(1, last - first);
  const y = (each) => 8 + (HEIGHT - 16) * (1 - (each - low) / (high - low));
  const path = figure.values
    .map((each, i) => [figure.depths[i], each])
    .filter(([, each]) => each !== null)
    .map(([at, each], i) => `${i ? "L" : "M"}${x(at).toFixed(1)} ${y(each).toFixed(1)}`);
  const svg = drawing("svg", { viewBox: `0 0 ${wide} ${HEIGHT + 16}`, height: HEIGHT + 16, "aria-hidden": "true" },
    drawing("path", { class: "axis", d: `M34 ${y(low)}H${wide - 10}M34 ${y(high)}H${wide - 10}` }),
    label(30, y(high) + 4, written(high), "end"),
    label(30, y(low) + 4, written(low), "end"),
    label(x(first), HEIGHT + 12, first, "middle"),
    label(x(last), HEIGHT + 12, first === last ? "" : last, "middle"),
    drawing("path", { class: "curve", d: path.length === 1 ? `${path[0]}h0` : path.join("") }));
  if (value !== null) {
    svg.append(drawing("path", { class: "point", d: `M${x(depth).toFixed(1)} ${y(value).toFixed(1)}h0` }));
  }
  return element("figure", {}, caption, svg);
}

/** What a cell of the grid of curves will measure, before there is one. */
function figureWidth() {
  const all = byId("figures").clientWidth;
  const columns = Math.max(1, Math.min(problem.figures.length, Math.floor((all + 32) / (17 * 16 + 32))));
  return Math.floor((all - 32 * (columns - 1)) / columns);
}

function label(x, y, words, anchor) {
  const text = drawing("text", { x, y, "text-anchor": anchor });
  text.textContent = words;
  return text;
}

// -- genealogy ----------------------------------------------------------------------------------------------

function genealogyWords() {
  const steps = problem.depths.length;
  if (steps < 2) return "The run recorded one depth step only; made with keep=\"paths\" it can be replayed.";
  const origin = new Set(Array.from({ length: problem.shown }, (_, i) => slotOf(i, 0))).size;
  const dots = problem.answers && problem.answers.verified ? " A green dot is a verified answer." : "";
  const follow = problem.answers ? " The thick line is the trajectory chosen above." : "";
  if (problem.ancestors === null) {
    const words = origin < problem.shown
      ? `A line is a trajectory that reached the end; those shown come from ${plural(origin, "slot")} of the first depth step.`
      : "A line is a trajectory; nothing was resampled, so every one reaches the end.";
    return words + dots + follow;
  }
  return `Dark lines reach the end, pale ones were dropped: the ${problem.width} final trajectories come from ` +
    `${plural(origin, "slot")} of the first depth step.${dots}${follow}`;
}

function showGenealogy() {
  const holder = byId("genealogy");
  const steps = problem.depths.length;
  holder.hidden = steps < 2;
  if (steps < 2) return;
  const { shown, width, ancestors, answers } = problem;
  const wide = holder.clientWidth;
  const high = Math.max(90, Math.min(460, 9 * width));
  const gap = (wide - 40) / (steps - 1);
  const x = (s) => 20 + gap * s;
  const y = (slot) => 8 + ((high - 16) * slot) / Math.max(1, width - 1);
  const spot = (s, slot) => `${x(s).toFixed(1)} ${y(slot).toFixed(1)}`;
  let [dead, alive, followed, verified] = ["", "", "", ""];
  const drawn = new Set();
  const dotted = new Set();
  for (let i = 0; i < shown; i++) {
    for (let s = 0; s < steps; s++) {
      const slot = slotOf(i, s);
      if (s) {
        const edge = `M${spot(s - 1, slotOf(i, s - 1))}L${spot(s, slot)}`;
        if (!drawn.has(edge)) alive += edge;
        drawn.add(edge);
        if (i === chosen && answers) followed += edge;
      }
      if (answers && kind(answerOf(i, s)) === "right" && !dotted.has(`${s} ${slot}`)) {
        verified += `M${spot(s, slot)}h0`;
        dotted.add(`${s} ${slot}`);
      }
    }
  }
  if (ancestors) {
    for (let s = 1; s < steps; s++) {
      for (let slot = 0; slot < width; slot++) {
        const edge = `M${spot(s - 1, ancestors[s * width + slot])}L${spot(s, slot)}`;
        if (!drawn.has(edge)) dead += edge;
      }
    }
  }
  const band = Math.min(gap, 24);
  const every = Math.ceil(26 / gap); // labels need room
  const labelled = (s) => s === steps - 1 || (s % every === 0 && steps - 1 - s >= every);
  const dot = Math.max(2.5, Math.min(6, 0.6 * (y(1) - y(0))));
  const words = byId("genealogy-note").textContent;
  const svg = drawing("svg", { viewBox: `0 0 ${wide} ${high + 20}`, height: high + 20, role: "img", "aria-label": words },
    drawing("rect", { class: "now", x: x(row) - band / 2, y: 0, width: band, height: high }),
    drawing("path", { class: "dead", d: dead }),
    drawing("path", { class: "alive", d: alive }),
    drawing("path", { class: "followed", d: followed }),
    drawing("path", { class: "verified", d: verified, "stroke-width": dot }),
    ...problem.depths.map((depth, s) => label(x(s), high + 14, labelled(s) ? depth : "", "middle")));
  svg.addEventListener("click", (event) => {
    const across = (event.clientX - svg.getBoundingClientRect().left - 20) / gap;
    go(Math.round(across));
  });
  holder.replaceChildren(svg);
}

// -- words --------------------------------------------------------------------------------------------------

function showFindings({ findings, left_out: leftOut, about }) {
  const items = findings.map(([name, status, figure, sentence, advice]) =>
    element("li", { class: status },
      element("p", {}, element("span", { class: "status", text: `${WORDS[status]}: ${name}` }), ` ${figure}`),
      element("p", { text: sentence }),
      ...(advice ? [element("p", { text: `Try: ${advice}` })] : [])),
  );
  byId("findings").replaceChildren(...items);
  byId("diagnosis-part").hidden = byId("diagnosis-in-short").hidden = !findings.length;
  byId("left-out").textContent = leftOut.length ? `Not looked at: ${leftOut.join("; ")}.` : "";
  const count = (status) => findings.filter((finding) => finding[1] === status).length;
  const link = element("a", { href: "#diagnosis-title", text: "Diagnosis" });
  const short = `: ${count("trouble")} in trouble, ${count("look")} to look at, ${count("fine")} fine.`;
  byId("diagnosis-in-short").replaceChildren(link, short);
  byId("about").replaceChildren(...pairs(about));
}

// -- moving -------------------------------------------------------------------------------------------------

function go(to) {
  row = Math.max(0, Math.min(problem.depths.length - 1, to));
  show();
}

function play() {
  if (byId("play").disabled) return;
  if (row === problem.depths.length - 1) go(0);
  byId("play").textContent = "Pause";
  byId("play").setAttribute("aria-pressed", "true");
  byId("summary").setAttribute("aria-live", "off"); // not a sentence every moment
  timer = setInterval(() => {
    go(row + 1);
    if (row === problem.depths.length - 1) stop();
  }, PAUSE());
}

function stop() {
  clearInterval(timer);
  timer = null;
  byId("play").textContent = "Play";
  byId("play").setAttribute("aria-pressed", "false");
  byId("summary").setAttribute("aria-live", "polite");
}

function toggle() {
  if (timer === null) play();
  else stop();
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const at = event.target;
  const inTiles = byId("tiles").contains(at);
  if (event.key === " " && (at === document.body || at === byId("depth") || inTiles)) {
    event.preventDefault();
    toggle();
  } else if (inTiles) {
    const top = (i) => byId("tiles").children[i].offsetTop;
    let line = 1; // tiles in a line
    while (line < problem.shown && top(line) === top(0)) line++;
    const moves = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1, ArrowUp: chosen - line, ArrowDown: chosen + line };
    const to = { ...moves, Home: 0, End: problem.shown - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(to);
  } else if (at === document.body && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
    stop();
    go(row + (event.key === "ArrowLeft" ? -1 : 1));
  }
}

byId("depth").addEventListener("input", (event) => {
  stop();
  go(Number(event.target.value));
});
byId("play").addEventListener("click", toggle);
byId("problem").addEventListener("change", (event) => open(Number(event.target.value)));
byId("problem").append(...data.problems.map(({ label: text }, value) => element("option", { value, text })));
byId("problem-choice").hidden = data.problems.length < 2;
document.addEventListener("keydown", onKey);
let across = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth === across) return; // a phone's bars come and go
  across = window.innerWidth;
  show();
});
open(0);
