// What the page does: it keeps what the hand drew, asks the program at /api for what the model makes of it, and shows that.
// Coordinates are those of the protocol: the canvas is [0, 1], x to the right, y down.

const VERSION = 1;
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#464646", "#a08c14"];
const MOST_SYMBOLS = 5;
// A redrawing shall be whole soon after the pen is lifted; played again, it may be watched.
const LIVE = 260, WATCHED = 450;
const PARTICLES = 4, PARTICLES_AGAIN = 24, REFINE = 40;

const $ = id => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");

// ---- State: what survives a reload, and what does not ----------------------------------------------------------------

const EMPTY = { lines: [], image: null };
const state = {
  // `pending`: what `redraw` shows is of something earlier.
  now: EMPTY, redraw: null, pending: false, ideas: null, symbols: [], seed: 0,
  settings: { model: null, pen: 0.085, fit: true, temperature: 0.3, many: 8 },
};
let past = [], future = [];
let models = [], scores = [];

function save() {
  try {
    localStorage.setItem("dood", JSON.stringify({ version: VERSION, ...state }));
  } catch { /* Full, or not allowed: the page works without. */ }
}

function restore() {
  try {
    const saved = JSON.parse(localStorage.getItem("dood"));
    if (saved?.version !== VERSION) return;
    const lines = saved.now.lines.every(line => line.points.length > 0 && line.width > 0);
    if (lines) Object.assign(state, { ...saved, settings: { ...state.settings, ...saved.settings } });
  } catch { /* Nothing saved, or not by this version. */ }
}

const isEmpty = drawing => drawing.lines.length === 0 && !drawing.image;

// ---- Asking the program ---------------------------------------------------------------------------------------------

const client = Math.random().toString(36).slice(2);
const asked = {};

// Asks for one thing in a slot; whatever that slot was asked before is given up. None if this was given up in turn.
async function ask(slot, kind, fields) {
  asked[slot]?.abort();
  const control = asked[slot] = new AbortController();
  const body = JSON.stringify({ version: VERSION, model: state.settings.model ?? undefined, client: `${client}-${slot}`, ...fields });
  try {
    const reply = await fetch(`/api/${kind}`, { method: "POST", headers: { "Content-Type": "application/json" }, body, signal: control.signal });
    const answer = await reply.json();
    if (control !== asked[slot]) return null;
    if (reply.ok) return answer;
    if (reply.status !== 409) say(answer.error);
  } catch (error) {
    if (error.name !== "AbortError") say("The program does not answer: is it still running?");
  } finally {
    if (control === asked[slot]) asked[slot] = null;
  }
  return null;
}

let silence;
function say(sentence) {
  $("status").textContent = sentence;
  clearTimeout(silence);
  silence = setTimeout(() => $("status").textContent = "", 6000);
}

// What was drawn, as a request gives it. An image with lines over it is sent as one image.
async function source(drawing) {
  if (!drawing.image) return { ink: { lines: drawing.lines } };
  const canvas = await inked(drawing, 256);
  return { image: canvas.toDataURL("image/png").split(",")[1] };
}

// Of a whole request: how it is fitted, and that images are bright ink on black.
async function given(drawing, fit = fitted()) {
  const fields = await source(drawing);
  if (drawing.image) fields.invert = "no";
  return { ...fields, ...fit };
}

function fitted() {
  const model = models.find(model => model.id === state.settings.model);
  return state.settings.fit && model ? { fit: model.fit } : {};
}

// ---- The pad --------------------------------------------------------------------------------------------------------

const pad = $("pad"), ink = pad.getContext("2d");
let line = null;
const cursor = { x: 0.5, y: 0.5, shown: false };

const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Lines on a canvas, smooth through the middles between points.
function trace(context, lines, size, colour) {
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = colour;
  for (const { points, width } of lines) {
    const at = points.map(([x, y]) => [x * size, y * size]);
    context.lineWidth = width * size;
    context.beginPath();
    context.moveTo(...at[0]);
    for (let i = 1; i < at.length - 1; i++) {
      context.quadraticCurveTo(...at[i], (at[i][0] + at[i + 1][0]) / 2, (at[i][1] + at[i + 1][1]) / 2);
    }
    context.lineTo(...at.at(-1));
    context.stroke();
  }
}

const images = new Map();
function picture(url) {
  if (!images.has(url)) {
    const image = new Image();
    image.src = url;
    images.set(url, image.decode().then(() => image));
  }
  return images.get(url);
}

// Bright ink on black.
async function inked(drawing, size) {
  const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
  const context = canvas.getContext("2d");
  context.fillRect(0, 0, size, size);
  if (drawing.image) context.drawImage(await picture(drawing.image), 0, 0, size, size);
  trace(context, drawing.lines, size, "#fff");
  return canvas;
}

// The image, its ink in the colour of ours.
async function tinted(url, size) {
  const canvas = await inked({ lines: [], image: url }, size);
  const context = canvas.getContext("2d"), pixels = context.getImageData(0, 0, size, size);
  const [r, g, b] = dark.matches ? [236, 232, 222] : [35, 38, 47];
  for (let i = 0; i < pixels.data.length; i += 4) pixels.data.set([r, g, b, pixels.data[i]], i);
  context.putImageData(pixels, 0, 0);
  return canvas;
}

let shownImage = { url: null, canvas: null };
async function showImage() {
  const url = state.now.image;
  shownImage = { url, canvas: url ? await tinted(url, 256) : null };
  drawPad();
  if (state.redraw) showStep();
}

function drawPad() {
  const size = pad.width;
  ink.clearRect(0, 0, size, size);
  if (state.now.image && shownImage.canvas) ink.drawImage(shownImage.canvas, 0, 0, size, size);
  trace(ink, line ? [...state.now.lines, line] : state.now.lines, size, style("--ink"));
  if (cursor.shown) {
    ink.strokeStyle = style("--accent");
    ink.lineWidth = 3;
    const [x, y] = [cursor.x * size, cursor.y * size];
    ink.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      ink.moveTo(x + 8 * dx, y + 8 * dy);
      ink.lineTo(x + 26 * dx, y + 26 * dy);
    }
    ink.stroke();
  }
  $("invitation").hidden = !isEmpty(state.now) || line !== null;
}

const within = v => Math.min(1.5, Math.max(-0.5, v));
function place(event) {
  const box = pad.getBoundingClientRect();
  return [within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)];
}

let pointer = null;
function begin(point, by = null) {
  line = { points: [point], width: state.settings.pen };
  pointer = by;
}

function extend(point) {
  const [x, y] = line.points.at(-1);
  if (Math.hypot(point[0] - x, point[1] - y) > 0.003 && line.points.length < 2000) line.points.push(point);
}

function lift() {
  if (!line) return;
  performance.clearMarks("pen-up");
  performance.mark("pen-up");
  const round = line.points.map(point => point.map(v => Math.round(v * 1e4) / 1e4));
  const drawn = { ...line, points: round };
  line = pointer = null;
  change({ ...state.now, lines: [...state.now.lines, drawn] });
}

pad.addEventListener("pointerdown", event => {
  if (event.button !== 0 || pointer !== null) return;
  lift();
  pad.setPointerCapture(event.pointerId);
  cursor.shown = false;
  begin(place(event), event.pointerId);
  drawPad();
});
pad.addEventListener("pointermove", event => {
  if (!line || event.pointerId !== pointer) return;
  const all = event.getCoalescedEvents?.() ?? [];
  for (const each of all.length ? all : [event]) extend(place(each));
  drawPad();
});
for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, event => event.pointerId === pointer && lift());

pad.addEventListener("keydown", event => {
  const step = event.shiftKey ? 0.005 : 0.025;
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  const move = moves[event.key];
  if (move) {
    cursor.x = Math.min(1, Math.max(0, cursor.x + move[0]));
    cursor.y = Math.min(1, Math.max(0, cursor.y + move[1]));
    if (line) extend([cursor.x, cursor.y]);
  } else if (event.key === " " || event.key === "Enter") {
    if (line) lift(); else begin([cursor.x, cursor.y]);
  } else if (event.key === "Escape") {
    line = pointer = null;
  } else return;
  event.preventDefault();
  cursor.shown = true;
  drawPad();
});
pad.addEventListener("blur", () => { lift(); cursor.shown = false; drawPad(); });

// ---- Changing what was drawn ----------------------------------------------------------------------------------------

function change(drawing) {
  past.push(state.now);
  if (past.length > 200) past.shift();
  future = [];
  move(drawing);
}

function move(drawing) {
  const image = drawing.image !== state.now.image;
  state.now = drawing;
  state.seed = 0;
  drawPad();
  if (image) showImage();
  $("grid").classList.add("stale");
  if (isEmpty(drawing)) {
    asked.redraw?.abort();
    state.pending = false;
    showRedraw(null);
    save();
  } else renew();
  buttons();
}

function undo() {
  if (past.length) { future.push(state.now); move(past.pop()); }
}

function redo() {
  if (future.length) { past.push(state.now); move(future.pop()); }
}

function buttons() {
  const empty = isEmpty(state.now);
  $("undo").disabled = !past.length;
  $("redo").disabled = !future.length;
  for (const id of ["clear", "complete", "vary"]) $(id).disabled = empty;
  $("keep").disabled = empty || state.symbols.length >= MOST_SYMBOLS;
  $("which").disabled = empty || state.symbols.length < 2;
  $("forget").disabled = !state.symbols.length;
  for (const id of ["play", "again", "refine", "png", "svg", "json", "copy"]) $(id).disabled = !state.redraw;
  $("steps").disabled = !state.redraw;
  const curves = state.redraw?.pictures[0].paths.length > 0;
  for (const id of ["png", "svg", "copy"]) $(id).disabled ||= !curves;
}

// Any picture becomes bright ink on black, in the middle of a square.
async function openImage(file) {
  try {
    const size = 256, bitmap = await createImageBitmap(file);
    const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const part = size / Math.max(bitmap.width, bitmap.height);
    const [wide, high] = [Math.max(1, bitmap.width * part), Math.max(1, bitmap.height * part)];
    const box = [Math.round((size - wide) / 2), Math.round((size - high) / 2), Math.round(wide), Math.round(high)];
    context.fillStyle = "#fff";
    context.fillRect(...box);
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, ...box);
    const pixels = context.getImageData(...box);
    const grey = i => 0.299 * pixels.data[i] + 0.587 * pixels.data[i + 1] + 0.114 * pixels.data[i + 2];
    let sum = 0;
    for (let i = 0; i < pixels.data.length; i += 4) sum += grey(i);
    const bright = sum / (pixels.data.length / 4) > 127.5;
    for (let i = 0; i < pixels.data.length; i += 4) {
      const value = bright ? 255 - grey(i) : grey(i);
      pixels.data.set([value, value, value, 255], i);
    }
    context.fillStyle = "#000";
    context.fillRect(0, 0, size, size);
    context.putImageData(pixels, box[0], box[1]);
    change({ lines: [], image: canvas.toDataURL("image/png") });
  } catch {
    say("This cannot be opened as an image: choose a PNG, JPEG, GIF or BMP.");
  }
}

// ---- What the model draws -------------------------------------------------------------------------------------------

function element(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const handPath = ({ points }) => "M" + points.map(point => point.map(v => (100 * v).toFixed(2)).join(" ")).join("L") + (points.length === 1 ? "h0" : "");
const handLines = (lines, kind) => lines.map(line => element("path", { class: `stroke ${kind}`, d: handPath(line), "stroke-width": 100 * line.width }));

const AS_IT_IS = { scale: 1, shift: [0, 0] };
// From the model's canvas back to where the hand drew.
const back = ({ scale, shift }) => `translate(${-100 * shift[0] / scale} ${-100 * shift[1] / scale}) scale(${1 / scale})`;
// Out to two standard deviations of the pen on both sides; a part of that where strokes lie over each other.
const width = (stroke, part = 1) => 400 * (stroke.width ?? 0.015) * part;
const SLIM = 0.42, TILE = 0.75;

// Strokes of drawing i of an answer as paths, without those before `from`.
function modelStrokes(answer, i, from = 0, part = 1) {
  const { strokes } = answer.drawings.drawings[i];
  return answer.pictures[i].paths.slice(from).map((d, k) =>
    element("path", { class: `stroke order-${(from + k) % 8}`, d, "stroke-width": width(strokes[from + k], part), pathLength: 1 }));
}

const decode = text => Uint8Array.from(atob(text), character => character.charCodeAt(0));

// Ink as it looks on this paper; with `other`, what `bytes` has and `other` has not in blue, the reverse in orange.
function showPixels(canvas, bytes, other) {
  const side = Math.round(Math.sqrt(bytes.length));
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d"), pixels = context.createImageData(side, side);
  const paper = dark.matches ? [29, 32, 39] : [255, 253, 248], full = dark.matches ? [236, 232, 222] : [35, 38, 47];
  const [more, less] = dark.matches ? [[74, 168, 224], [255, 138, 61]] : [[0, 114, 178], [213, 94, 0]];
  for (let i = 0; i < bytes.length; i++) {
    const value = other ? (bytes[i] - other[i]) / 255 : bytes[i] / 255;
    const towards = other ? (value > 0 ? more : less) : full;
    pixels.data.set([0, 1, 2].map(k => paper[k] + Math.abs(value) * (towards[k] - paper[k])), 4 * i);
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
}

function renew() {
  state.pending = true;
  save();
  redraw();
}

async function redraw(more = {}) {
  const answer = await ask("redraw", "redraw", { ...await given(state.now), particles: PARTICLES, seed: state.seed, ...more });
  if (!answer) return;
  const likelihood = answer => answer?.drawings.drawings[0].log_likelihood ?? -Infinity;
  if (more.refine && !state.pending && likelihood(answer) <= likelihood(state.redraw)) return say("Nothing better was found.");
  if (more.refine) say("");
  const { length } = answer.drawings.drawings[0].strokes;
  $("heard").textContent = `Redrawn in ${length} stroke${length === 1 ? "" : "s"}.`;
  state.pending = false;
  showRedraw(answer);
  play(LIVE);
  save();
}

function showRedraw(answer) {
  state.redraw = answer;
  cancelAnimationFrame(playing);
  const drawing = answer?.drawings.drawings[0], picture = answer?.pictures[0], strokes = drawing?.strokes.length ?? 0;
  $("steps").max = strokes;
  $("steps").value = strokes;
  $("waiting").hidden = answer !== null;
  $("count").textContent = answer ? strokes : "–";
  const number = new Intl.NumberFormat("en", { maximumFractionDigits: 1, minimumFractionDigits: 1 });
  $("likelihood").textContent = answer ? `${number.format(drawing.log_likelihood)} nats` : "–";
  $("residual").textContent = answer ? `${number.format(100 * picture.residual)} %` : "–";
  $("time").textContent = answer ? `${Math.round(1000 * answer.seconds)} ms` : "–";
  $("curves").setAttribute("aria-label", answer ? `Your drawing, redrawn in ${strokes} strokes` : "Nothing redrawn yet");
  const item = i => {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    const sample = element("svg", { viewBox: "0 0 16 8", "aria-hidden": "true" },
      element("path", { class: `stroke order-${i % 8}`, d: "M3 4H13", "stroke-width": 6 }));
    button.append(sample, `${i + 1}`);
    button.setAttribute("aria-label", `Stroke ${i + 1}: show its window`);
    for (const on of ["pointerenter", "focus"]) button.addEventListener(on, () => point(i));
    for (const off of ["pointerleave", "blur"]) button.addEventListener(off, () => point(null));
    const entry = document.createElement("li");
    entry.append(button);
    return entry;
  };
  $("legend").replaceChildren(...Array.from({ length: strokes }, (_, i) => item(i)));
  showStep();
  buttons();
}

// The drawing after so many strokes.
function showStep() {
  const answer = state.redraw, curves = $("curves");
  curves.replaceChildren();
  if (!answer) {
    for (const id of ["seen", "canvas", "left"]) $(id).getContext("2d").clearRect(0, 0, 1000, 1000);
    return;
  }
  const { place } = answer.seen, step = Number($("steps").value), [picture] = answer.pictures;
  if (state.now.image && shownImage.canvas) {
    curves.append(element("image", { href: shownImage.canvas.toDataURL(), width: 100, height: 100, opacity: 0.13 }));
  }
  curves.append(...handLines(state.now.lines, "ghost"));
  const group = element("g", { id: "strokes", transform: back(place) });
  modelStrokes(answer, 0, 0, SLIM * place.scale).slice(0, step).forEach((path, i) => {
    path.addEventListener("pointerenter", () => point(i));
    path.addEventListener("pointerleave", () => point(null));
    const [cx, cy] = answer.drawings.drawings[0].strokes[i].points[0].map(v => 100 * v);
    group.append(path, element("circle", { class: `start order-${i % 8}`, cx, cy, r: 1.1 * place.scale }));
  });
  curves.append(group);
  const seen = decode(answer.seen.pixels);
  const canvas = step ? decode(picture.canvases[step - 1]) : new Uint8Array(seen.length);
  showPixels($("seen"), seen);
  showPixels($("canvas"), canvas);
  showPixels($("left"), seen, canvas);
  // A model without curves has its picture only.
  if (step && !picture.paths.length) group.append(element("image", { href: $("canvas").toDataURL(), width: 100, height: 100, opacity: 0.8 }));
}

// One stroke stands out, with the window that it was drawn in.
function point(i) {
  const answer = state.redraw, group = $("strokes");
  if (!answer || !group) return;
  group.querySelector(".window")?.remove();
  group.querySelectorAll(".stroke").forEach((path, k) => path.classList.toggle("faded", i !== null && k !== i));
  group.querySelectorAll(".start").forEach((dot, k) => dot.classList.toggle("faded", i !== null && k !== i));
  const layout = i === null ? null : answer.drawings.drawings[0].strokes[i].layout;
  if (!layout) return;
  const [a, b, scale, angle] = layout, [c, s] = [scale * Math.cos(angle), scale * Math.sin(angle)];
  const corner = ([x, y]) => [50 * (c * x - s * y + a + 1), 50 * (s * x + c * y + b + 1)].join(",");
  group.append(element("polygon", { class: "window", points: [[-1, -1], [1, -1], [1, 1], [-1, 1]].map(corner).join(" ") }));
}

// The strokes one after the other, `time` milliseconds for all of them, or for each.
let playing = 0;
function play(time) {
  cancelAnimationFrame(playing);
  const paths = [...$("curves").querySelectorAll("#strokes .stroke")];
  const show = (path, part) => {
    for (const each of [path, path.nextElementSibling]) each.setAttribute("visibility", part > 0 ? "visible" : "hidden");
    if (part < 1) path.setAttribute("stroke-dasharray", `${Math.max(part, 0)} 2`);
    else path.removeAttribute("stroke-dasharray");
  };
  const each = time === LIVE ? LIVE / Math.max(paths.length, 1) : time;
  const live = time === LIVE && performance.getEntriesByName("pen-up").length > 0;
  let began = null;
  const frame = now => {
    began ??= now - 16;
    const done = calm.matches ? Infinity : (now - began) / each;
    paths.forEach((path, i) => show(path, done - i));
    if (live && done > 0 && began === now - 16) measure("first-stroke");
    if (done < paths.length) playing = requestAnimationFrame(frame);
    else if (live) measure("redrawn");
  };
  playing = requestAnimationFrame(frame);
}

// For whoever wants to know how long it took: performance.getEntriesByType("measure").
function measure(name, from = "pen-up") {
  if (performance.getEntriesByName(from).length) performance.measure(name, from);
}

// ---- Ideas ----------------------------------------------------------------------------------------------------------

async function think(kind) {
  $("stop").disabled = false;
  performance.clearMarks("asked");
  performance.mark("asked");
  const { temperature, many } = state.settings, seed = Math.floor(Math.random() * 2 ** 32);
  const fields = { count: many, seed };
  if (kind !== "vary") fields.temperature = temperature;
  // What has only been begun stays where it is: there must be room for the rest.
  if (kind !== "imagine") Object.assign(fields, await given(state.now, kind === "complete" ? {} : fitted()));
  const drawing = state.now;
  const answer = await ask("ideas", kind, fields);
  $("stop").disabled = !asked.ideas;
  if (!answer) return;
  state.ideas = { kind, answer, drawing };
  $("grid").classList.remove("stale");
  showIdeas();
  $("heard").textContent = `${answer.pictures.length} ideas.`;
  measure(kind, "asked");
  save();
}

function showIdeas() {
  if (!state.ideas) return;
  const { kind, answer, drawing } = state.ideas;
  const place = kind === "complete" ? answer.seen.place : AS_IT_IS;
  const tile = (_, i) => {
    const { begun = 0 } = answer.pictures[i], strokes = answer.drawings.drawings[i].strokes.length;
    const view = element("svg", { viewBox: "0 0 100 100", "aria-hidden": "true" });
    if (kind === "complete") {
      if (drawing.image) view.append(...modelStrokes(answer, i, 0, place.scale).slice(0, begun).map(path => {
        path.setAttribute("class", "stroke given");
        return element("g", { transform: back(place) }, path);
      }));
      view.append(...handLines(drawing.lines, "given"));
    }
    view.append(element("g", { transform: back(place) }, ...modelStrokes(answer, i, kind === "complete" ? begun : 0, TILE * place.scale)));
    const button = Object.assign(document.createElement("button"), { type: "button", className: "tile" });
    if (answer.pictures[i].paths.length < strokes) {
      const canvas = document.createElement("canvas");
      showPixels(canvas, decode(answer.pictures[i].canvases.at(-1)));
      view.append(element("image", { href: canvas.toDataURL(), width: 100, height: 100 }));
    }
    const further = strokes - begun;
    const words = kind === "complete" ? `${further} further stroke${further === 1 ? "" : "s"}` : `${strokes} stroke${strokes === 1 ? "" : "s"}`;
    button.setAttribute("aria-label", `Idea ${i + 1}, ${words}: draw on from it`);
    button.append(view);
    button.addEventListener("click", () => adopt(i));
    return button;
  };
  $("grid").replaceChildren(...answer.pictures.map(tile));
}

// Points along a Bézier curve, by de Casteljau's algorithm.
function along(points, count = 24) {
  return Array.from({ length: count + 1 }, (_, k) => {
    let level = points;
    while (level.length > 1) level = level.slice(1).map((b, i) => b.map((v, axis) => level[i][axis] + (k / count) * (v - level[i][axis])));
    return level[0];
  });
}

// An idea becomes lines of the hand.
function adopt(i) {
  const { kind, answer, drawing } = state.ideas;
  const { scale, shift } = kind === "complete" ? answer.seen.place : AS_IT_IS;
  const { begun = 0 } = answer.pictures[i];
  const whole = kind === "complete" ? drawing : EMPTY;
  const further = answer.drawings.drawings[i].strokes.slice(kind === "complete" ? begun : 0).filter(stroke => stroke.points?.length > 1);
  if (!further.length) return say("This idea has no further strokes.");
  const lines = further.map(stroke => ({
    points: along(stroke.points).map(point => point.map((v, axis) => Math.round(1e4 * (v - shift[axis]) / scale) / 1e4)),
    width: Math.min(0.16, Math.max(0.03, 4 * (stroke.width ?? 0.015))),
  }));
  change({ ...whole, lines: [...whole.lines, ...lines] });
  pad.scrollIntoView({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
}

// ---- Symbols --------------------------------------------------------------------------------------------------------

function showSymbols() {
  const best = scores.length ? scores.indexOf(Math.max(...scores)) : -1;
  const symbol = (drawing, i) => {
    const entry = document.createElement("li");
    const tile = Object.assign(document.createElement("div"), { className: "tile" });
    const view = element("svg", { viewBox: "0 0 100 100", role: "img", "aria-label": `Symbol ${i + 1}` }, ...handLines(drawing.lines, "given"));
    if (drawing.image) tinted(drawing.image, 128).then(canvas => view.prepend(element("image", { href: canvas.toDataURL(), width: 100, height: 100 })));
    tile.append(view);
    entry.append(tile);
    const words = document.createElement("p");
    words.textContent = scores.length ? `${i === best ? "This one: " : ""}${Math.round(100 * scores[i])} %` : `Symbol ${i + 1}`;
    entry.append(words);
    if (scores.length) {
      const bar = Object.assign(document.createElement("div"), { className: "bar" }), fill = document.createElement("i");
      fill.style.width = `${100 * scores[i]}%`;
      bar.append(fill);
      entry.append(bar);
      entry.classList.toggle("best", i === best);
    }
    return entry;
  };
  $("symbols").replaceChildren(...state.symbols.map(symbol));
  buttons();
}

$("keep").addEventListener("click", () => {
  state.symbols.push(state.now);
  scores = [];
  change(EMPTY);
  showSymbols();
  say(state.symbols.length < 2 ? "Kept. Now draw the next symbol." : "Kept. Draw another one, or one of them again, and ask which it is.");
});
$("which").addEventListener("click", async () => {
  const known = await Promise.all(state.symbols.map(source));
  const answer = await ask("score", "score", { ...await given(state.now), known });
  if (!answer) return;
  scores = answer.scores.map(score => score.share);
  showSymbols();
});
$("forget").addEventListener("click", () => {
  state.symbols = [];
  scores = [];
  showSymbols();
  save();
});

// ---- Take it with you -----------------------------------------------------------------------------------------------

function download(name, blob) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// The drawing as the model has it, by itself: true curves, dark on white.
function drawingSvg(answer) {
  const root = element("svg", { xmlns: SVG, viewBox: "0 0 100 100", width: 800, height: 800 }, element("rect", { width: 100, height: 100, fill: "#ffffff" }));
  modelStrokes(answer, 0).forEach((path, i) => {
    for (const name of ["class", "pathLength"]) path.removeAttribute(name);
    const look = { fill: "none", stroke: COLOURS[i % 8], "stroke-linecap": "round", "stroke-linejoin": "round", "stroke-opacity": 0.85 };
    for (const [key, value] of Object.entries(look)) path.setAttribute(key, value);
    root.append(path);
  });
  return new XMLSerializer().serializeToString(root);
}

async function drawingPng(answer) {
  const size = 800, canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, size, size);
  context.scale(size / 100, size / 100);
  context.lineCap = context.lineJoin = "round";
  context.globalAlpha = 0.85;
  answer.pictures[0].paths.forEach((d, i) => {
    context.strokeStyle = COLOURS[i % 8];
    context.lineWidth = width(answer.drawings.drawings[0].strokes[i]);
    context.stroke(new Path2D(d));
  });
  return new Promise(done => canvas.toBlob(done, "image/png"));
}

$("svg").addEventListener("click", () => download("drawing.svg", new Blob([drawingSvg(state.redraw)], { type: "image/svg+xml" })));
$("json").addEventListener("click", () => download("drawing.json", new Blob([JSON.stringify(state.redraw.drawings, null, 1)], { type: "application/json" })));
$("png").addEventListener("click", async () => download("drawing.png", await drawingPng(state.redraw)));
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.write([new ClipboardItem({ "image/png": drawingPng(state.redraw) })]);
    say("Copied.");
  } catch {
    say("This browser does not let pages copy images: take the PNG instead.");
  }
});

// ---- Controls -------------------------------------------------------------------------------------------------------

$("undo").addEventListener("click", undo);
$("redo").addEventListener("click", redo);
$("clear").addEventListener("click", () => change(EMPTY));
$("again").addEventListener("click", () => {
  state.seed = Math.floor(Math.random() * 2 ** 32);
  performance.clearMarks("pen-up");
  redraw({ particles: PARTICLES_AGAIN });
});
$("refine").addEventListener("click", () => {
  performance.clearMarks("pen-up");
  say("Refining …");
  redraw({ particles: PARTICLES_AGAIN, refine: REFINE });
});
$("play").addEventListener("click", () => { $("steps").value = $("steps").max; showStep(); play(WATCHED); });
$("steps").addEventListener("input", () => { cancelAnimationFrame(playing); showStep(); });
for (const kind of ["complete", "vary", "imagine"]) $(kind).addEventListener("click", () => think(kind));
$("stop").addEventListener("click", () => { asked.ideas?.abort(); $("stop").disabled = true; });

const settings = { pen: "valueAsNumber", fit: "checked", temperature: "valueAsNumber", many: "valueAsNumber" };
function showSettings() {
  for (const [id, field] of Object.entries(settings)) $(id)[field] = state.settings[id];
  $("degrees").textContent = state.settings.temperature.toFixed(2);
  $("number").textContent = state.settings.many;
}
for (const [id, field] of Object.entries(settings)) {
  $(id).addEventListener("input", () => {
    state.settings[id] = $(id)[field];
    showSettings();
    if (id === "fit" && !isEmpty(state.now)) renew(); else save();
  });
}

$("file").addEventListener("change", event => {
  const [file] = event.target.files;
  if (file) openImage(file);
  event.target.value = "";
});
addEventListener("paste", event => {
  const file = [...event.clipboardData.items].find(item => item.type.startsWith("image/"))?.getAsFile();
  if (file) openImage(file);
});
const frame = $("frame");
for (const name of ["dragenter", "dragover"]) frame.addEventListener(name, event => { event.preventDefault(); frame.classList.add("over"); });
for (const name of ["dragleave", "drop"]) frame.addEventListener(name, event => { event.preventDefault(); frame.classList.remove("over"); });
frame.addEventListener("drop", event => { if (event.dataTransfer.files[0]) openImage(event.dataTransfer.files[0]); });

addEventListener("keydown", event => {
  if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
  const key = event.key.toLowerCase();
  if (key === "z" && !event.shiftKey) undo();
  else if (key === "y" || key === "z") redo();
  else return;
  event.preventDefault();
});

dark.addEventListener("change", () => { showImage(); showStep(); showIdeas(); });

// ---- The menu -------------------------------------------------------------------------------------------------------

function about() {
  const model = models.find(model => model.id === state.settings.model);
  if (!model) return;
  const day = model.written && new Date(1000 * model.written).toLocaleDateString("en-GB", { day: "numeric", month: "long", year: "numeric" });
  const words = [model.learned_from && `learned from ${model.learned_from}`, model.reaches && `reaches ${model.reaches}`, day && `file of ${day}`];
  $("about").textContent = words.filter(Boolean).join(" · ");
}

$("model").addEventListener("change", () => {
  state.settings.model = $("model").value;
  about();
  if (isEmpty(state.now)) save(); else renew();
});

async function menu() {
  const reply = await fetch("/api/models");
  ({ models } = await reply.json());
  if (!models.some(model => model.id === state.settings.model)) state.settings.model = models[0]?.id ?? null;
  const name = ({ id, learned_from: set }) => !set || id.startsWith(set) ? id : `${id} (${set})`;
  $("model").replaceChildren(...models.map(model => new Option(name(model), model.id)));
  $("model").value = state.settings.model;
  about();
}

async function strips() {
  const { sets } = await (await fetch("/api/examples")).json();
  const strip = ({ set, images }) => {
    const row = Object.assign(document.createElement("div"), { className: "strip" });
    const name = document.createElement("span");
    name.textContent = set;
    const all = document.createElement("div");
    row.append(name, all);
    all.append(...images.map(({ name, image }) => {
      const button = Object.assign(document.createElement("button"), { type: "button" });
      const view = Object.assign(new Image(), { src: `data:image/png;base64,${image}`, alt: `${set}: ${name}` });
      button.append(view);
      button.addEventListener("click", () => openImage(new Blob([decode(image)], { type: "image/png" })));
      return button;
    }));
    return row;
  };
  $("examples").replaceChildren(...sets.map(strip));
}

restore();
showSettings();
await Promise.all([menu(), strips()]).catch(() => say("The program does not answer: is it still running?"));
try {
  await showImage();
  showRedraw(state.redraw);
  showIdeas();
  showSymbols();
} catch {
  // What was saved is not whole.
  Object.assign(state, { now: EMPTY, redraw: null, pending: false, ideas: null, symbols: [] });
  await showImage();
  showRedraw(null);
  showSymbols();
  save();
}
if ((state.pending || !state.redraw) && !isEmpty(state.now)) redraw();
buttons();
