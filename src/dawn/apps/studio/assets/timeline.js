// The motion view: draws what timeline.py's `view` holds on one canvas, and tells Python which part was chosen by dragging.
const canvas = element.querySelector("canvas");
const where = element.querySelector(".dawn-where");
const pan = element.querySelector(".dawn-pan");
const LEFT = 8, RIGHT = 8, AXIS = 22, GAP = 6, EDGE_PX = 9;
const PANELS = [
  { name: "Sound", height: 54 },
  { name: "Lips", height: 78, curves: [["lips", "opening", "--dawn-a"]], floor: 0, least: 0.1 },
  { name: "Head, degrees", height: 104, least: 4, zero: true,
    curves: [["yaw", "turn", "--dawn-a"], ["pitch", "nod", "--dawn-b"], ["roll", "tilt", "--dawn-c"]] },
  { name: "Eyes", height: 70, curves: [["eyes", "opening", "--dawn-a"]], floor: 0, least: 0.05 },
];
let data = null, region = null, shown = [0, 1], drag = null, playhead = 0;

const seconds = () => (data ? data.frames / data.fps : 1);
const video = () => document.querySelector("#dawn-stage video");
const colour = (name) => getComputedStyle(element).getPropertyValue(name).trim() || "gray";
const wide = () => canvas.clientWidth - LEFT - RIGHT;
const toX = (s) => LEFT + ((s - shown[0]) / (shown[1] - shown[0])) * wide();
const toS = (x) => Math.min(seconds(), Math.max(0, shown[0] + ((x - LEFT) / wide()) * (shown[1] - shown[0])));
const panels = () => PANELS.filter((p) => (p.curves ? data.curves[p.curves[0][0]] : data.wave));

function draw() {
  if (!data || !canvas.clientWidth) return;
  const list = panels();
  const height = list.reduce((sum, p) => sum + p.height + GAP, 0) + AXIS;
  const ratio = window.devicePixelRatio || 1;
  canvas.style.height = height + "px";
  canvas.width = Math.round(canvas.clientWidth * ratio);
  canvas.height = Math.round(height * ratio);
  const g = canvas.getContext("2d");
  g.scale(ratio, ratio);
  g.font = "12px system-ui, sans-serif";
  let top = 0;
  for (const panel of list) {
    g.save();
    g.beginPath();
    g.rect(LEFT, top, wide(), panel.height);
    g.clip();
    g.fillStyle = colour("--dawn-panel");
    g.fillRect(LEFT, top, wide(), panel.height);
    shade(g, top, panel.height);
    if (panel.curves) curves(g, panel, top);
    else wave(g, top, panel.height);
    label(g, panel, top);
    g.restore();
    top += panel.height + GAP;
  }
  axis(g, top);
  line(g, playhead, 0, top - GAP, "--dawn-playhead", 2);
}

function shade(g, top, height) {
  g.fillStyle = colour("--dawn-changed");
  for (const [start, stop] of data.changed) {
    const x = toX(start / data.fps);
    g.fillRect(x, top, Math.max(1, toX(stop / data.fps) - x), height);
  }
  if (!region) return;
  g.fillStyle = colour("--dawn-region");
  g.fillRect(toX(region[0]), top, toX(region[1]) - toX(region[0]), height);
  line(g, region[0], top, top + height, "--dawn-edge", 1.5);
  line(g, region[1], top, top + height, "--dawn-edge", 1.5);
}

function line(g, at, top, bottom, name, width) {
  g.strokeStyle = colour(name);
  g.lineWidth = width;
  g.beginPath();
  g.moveTo(toX(at), top);
  g.lineTo(toX(at), bottom);
  g.stroke();
}

function wave(g, top, height) {
  const { high, low, seconds: long } = data.wave;
  const middle = top + height / 2, half = height / 2 - 4;
  g.fillStyle = colour("--dawn-sound");
  g.beginPath();
  high.forEach((v, i) => g.lineTo(toX(((i + 0.5) / high.length) * long), middle - v * half - 0.5));
  for (let i = low.length - 1; i >= 0; i--) g.lineTo(toX(((i + 0.5) / low.length) * long), middle - low[i] * half + 0.5);
  g.fill();
}

function curves(g, panel, top) {
  const all = panel.curves.map(([key]) => data.curves[key]);
  const before = data.drawn ? panel.curves.map(([key]) => data.drawn[key]) : [];
  let low = Infinity, high = -Infinity;
  for (const values of all.concat(before)) for (const v of values) { low = Math.min(low, v); high = Math.max(high, v); }
  if (panel.floor !== undefined) low = Math.min(panel.floor, low);
  const middle = (low + high) / 2, half = Math.max(panel.least, (high - low) * 1.1) / 2;
  const toY = (v) => top + 18 + (1 - (v - middle + half) / (2 * half)) * (panel.height - 22);
  if (panel.zero) {
    g.strokeStyle = colour("--dawn-grid");
    g.lineWidth = 1;
    g.beginPath();
    g.moveTo(LEFT, toY(0));
    g.lineTo(LEFT + wide(), toY(0));
    g.stroke();
  }
  const stroke = (values, name, faint) => {
    g.globalAlpha = faint ? 0.35 : 1;
    g.setLineDash(faint ? [3, 3] : []);
    g.strokeStyle = colour(name);
    g.lineWidth = 1.6;
    g.beginPath();
    values.forEach((v, i) => g.lineTo(toX((i + 0.5) / data.fps), toY(v)));
    g.stroke();
    g.setLineDash([]);
    g.globalAlpha = 1;
  };
  panel.curves.forEach((curve, i) => {
    if (before[i]) stroke(before[i], curve[2], true);
    stroke(all[i], curve[2], false);
  });
}

function label(g, panel, top) {
  g.textBaseline = "top";
  let x = LEFT + 6;
  g.fillStyle = colour("--dawn-text");
  g.fillText(panel.name, x, top + 4);
  x += g.measureText(panel.name).width + 12;
  if (!panel.curves || panel.curves.length < 2) return;
  for (const [, name, tint] of panel.curves) {
    g.fillStyle = colour(tint);
    g.fillRect(x, top + 9, 12, 3);
    g.fillStyle = colour("--dawn-text");
    g.fillText(name, x + 16, top + 4);
    x += g.measureText(name).width + 28;
  }
}

function axis(g, top) {
  const span = shown[1] - shown[0];
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120].find((s) => (s / span) * wide() > 56) || 300;
  g.fillStyle = colour("--dawn-text");
  g.textBaseline = "top";
  g.textAlign = "center";
  for (let s = Math.ceil(shown[0] / step) * step; s <= shown[1] + 1e-6; s += step) {
    const text = step < 1 ? s.toFixed(1) : String(Math.round(s)), x = toX(s);
    g.fillText(text + " s", Math.min(LEFT + wide() - 14, Math.max(LEFT + 12, x)), top + 2);
    g.fillRect(x - 0.5, top - GAP, 1, 5);
  }
  g.textAlign = "left";
}

function tell() {
  where.textContent = region
    ? `Part ${region[0].toFixed(2)} to ${region[1].toFixed(2)} s`
    : "Drag over the curves to choose a part";
  const zoomed = shown[1] - shown[0] < seconds() - 1e-6;
  pan.hidden = !zoomed;
  if (zoomed) pan.value = String((1000 * shown[0]) / (seconds() - (shown[1] - shown[0])));
  draw();
}

function zoom(factor) {
  if (!data) return;
  const span = Math.min(seconds(), Math.max(0.5, (shown[1] - shown[0]) / factor));
  const middle = region ? (region[0] + region[1]) / 2 : playhead || (shown[0] + shown[1]) / 2;
  const start = Math.min(seconds() - span, Math.max(0, middle - span / 2));
  shown = [start, start + span];
  tell();
}

// A drag chooses a part, or moves the edge that it begins on; a click moves the video to that moment.
canvas.addEventListener("pointerdown", (event) => {
  if (!data || event.button) return;
  canvas.setPointerCapture(event.pointerId);
  const x = event.offsetX, edge = region ? region.findIndex((s) => Math.abs(toX(s) - x) < EDGE_PX) : -1;
  drag = { x, fixed: edge >= 0 ? region[1 - edge] : toS(x), moved: edge >= 0 };
});
canvas.addEventListener("pointermove", (event) => {
  if (!drag) {
    const near = region && region.some((s) => Math.abs(toX(s) - event.offsetX) < EDGE_PX);
    canvas.style.cursor = near ? "ew-resize" : "crosshair";
    return;
  }
  if (Math.abs(event.offsetX - drag.x) > 4) drag.moved = true;
  if (!drag.moved) return;
  const frame = (s) => Math.round(s * data.fps) / data.fps;
  region = [drag.fixed, toS(event.offsetX)].sort((a, b) => a - b).map(frame);
  tell();
});
canvas.addEventListener("pointerup", (event) => {
  if (!drag) return;
  const was = drag;
  drag = null;
  if (was.moved && region) trigger("select", { start: region[0], stop: region[1] });
  else if (video()) video().currentTime = toS(event.offsetX);
});
canvas.addEventListener("pointercancel", () => { drag = null; });
element.querySelectorAll("[data-zoom]").forEach((b) => b.addEventListener("click", () => zoom(Number(b.dataset.zoom))));
pan.addEventListener("input", () => {
  const span = shown[1] - shown[0], start = (Number(pan.value) / 1000) * (seconds() - span);
  shown = [start, start + span];
  tell();
});
window.addEventListener("dawn-region", (event) => {
  const [start, stop] = event.detail;
  if (drag || !(stop > start)) return;
  region = [start, stop];
  tell();
});

function update() {
  const long = data ? data.frames : 0;
  data = props.value && props.value.curves ? props.value : null;
  if (data && data.frames !== long) { region = null; shown = [0, seconds()]; playhead = 0; }
  if (data) tell();
}
watch("value", update);
update();
new ResizeObserver(draw).observe(canvas.parentElement);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

(function follow() {
  if (!element.isConnected && data) return;
  const now = video() ? video().currentTime : 0;
  if (now !== playhead && data && !drag) {
    playhead = now;
    draw();
  }
  requestAnimationFrame(follow);
})();
