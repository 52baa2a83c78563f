"use strict";
(() => {
  const D = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const NAMES = ["sagittal", "coronal", "axial"], LETTERS = ["LR", "PA", "IS"], XYZ = "xyz";
  const NO_FIT = [194, 24, 91];
  const KINDS = [[31, 119, 180], [255, 127, 14], [148, 103, 189], [140, 86, 75], [23, 190, 207], [188, 189, 34], [227, 119, 194], [127, 127, 127]];
  const VIRIDIS = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"]
    .map((h) => [0, 2, 4].map((i) => parseInt(h.slice(i, i + 2), 16)));

  // ---- what is packed
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const u16 = (text) => new Uint16Array(bytes(text).buffer);
  const f32 = (text) => new Float32Array(bytes(text).buffer);
  const [NX, NY, NZ] = D.shape, N = [NX, NY, NZ];
  const index = (p) => (p[0] * NY + p[1]) * NZ + p[2];
  const row = new Int32Array(NX * NY * NZ).fill(-1), place = [];
  const bits = bytes(D.mask);
  for (let i = 0; i < row.length; i++) if (bits[i >> 3] & (128 >> (i & 7))) { row[i] = place.length; place.push(i); }
  const point = (i) => [Math.floor(i / (NY * NZ)), Math.floor(i / NZ) % NY, i % NZ];

  function ramp(t) {
    const x = Math.min(Math.max(t, 0), 1) * 9, k = Math.min(Math.floor(x), 8), f = x - k;
    return VIRIDIS[k].map((a, c) => a + f * (VIRIDIS[k + 1][c] - a));
  }
  const LUT = Array.from({ length: 256 }, (_, i) => ramp(i / 255));
  const ENDS = [[33, 102, 172], [247, 247, 247], [178, 24, 43]]; // below, at and above zero
  const SIGNED = LUT.map((_, i) => ENDS[1].map((a, c) => a + (ENDS[i < 128 ? 0 : 2][c] - a) * Math.abs(i / 127.5 - 1)));

  // ---- maps: each gives a colour and words for a row of the mask
  const V = D.voxels; // null: the page has maps alone
  const kinds = D.kinds.map(([value, text, lost], k) => ({ value, text, colour: lost ? NO_FIT : value ? KINDS[k % KINDS.length] : [120, 170, 130] }));
  const statuses = D.status.map((s) => bytes(s.data)), which = statuses[0];
  const maps = D.maps.map((m) => {
    const codes = m.bits === 16 ? u16(m.data) : bytes(m.data), top = m.bits === 16 ? 65535 : 255;
    const value = (r) => {
      const t = (codes[r] - 1) / (top - 1);
      return !codes[r] ? NaN : t <= m.even ? m.low + (t / m.even) * (m.middle - m.low) : m.middle + span * Math.expm1(((t - m.even) / (1 - m.even)) * m.tail);
    };
    const span = m.range[1] - m.range[0] || 1, lut = m.signed ? SIGNED : LUT, none = m.signed ? [90, 90, 90] : NO_FIT;
    return {
      ...m, value, lut,
      colour: (r) => (codes[r] ? lut[Math.round(255 * Math.min(Math.max((value(r) - m.range[0]) / span, 0), 1))] : none),
      words: (r) => (!codes[r] ? "no fit" : (codes[r] === 1 && m.below ? "≤ " : "") + number(value(r)) + (m.unit ? " " + m.unit : "")),
    };
  });
  const colours = D.colour && bytes(D.colour);
  if (colours) maps.push({ label: "direction of e1", text: "colour: axis, brightness: PA", colour: (r) => colours.subarray(3 * r, 3 * r + 3), words: () => "" });
  statuses.forEach((found, i) => maps.push({ label: D.status[i].label, text: "what happened in a voxel", colour: (r) => kinds[found[r]].colour, words: (r) => kinds[found[r]].value + ": " + kinds[found[r]].text }));
  document.querySelectorAll(".swatch").forEach((s) => { s.style.background = "rgb(" + kinds[s.dataset.kind].colour + ")"; });

  const dark = () => matchMedia("(prefers-color-scheme: dark)").matches;
  const tone = (t) => "rgb(" + ramp(dark() ? 0.3 + 0.7 * t : 0.92 * t).map(Math.round) + ")"; // seen on the page's ground

  function number(x) {
    if (!isFinite(x)) return "–";
    const a = Math.abs(x);
    return a && (a < 1e-3 || a >= 1e5) ? x.toExponential(2).replace("e+", "e") : String(Number(x.toPrecision(4)));
  }

  // ---- planes: canonical axes; the convention mirrors the x axis of two of them
  const state = { map: 0, at: N.map((n) => Math.floor(n / 2)), convention: D.convention, sheet: 2, axis: 2 };
  const best = [0, 1, 2].map((a) => { const c = new Array(N[a]).fill(0); place.forEach((i) => c[point(i)[a]]++); return c; });
  best.forEach((c, a) => { const most = Math.max(...c), full = c.map((n, i) => [n, i]).filter(([n]) => n === most); state.at[a] = full.length ? full[full.length >> 1][1] : 0; });
  const across = (axis) => (axis === 0 ? 1 : 0), upward = (axis) => (axis === 2 ? 1 : 2);
  const mirrored = (axis) => D.affine !== null && axis !== 0 && state.convention === "radiological";

  function stored(p) {
    const out = [0, 0, 0];
    p.forEach((v, c) => { const a = D.stored.order[c], full = (v + D.first[c]) * D.step; out[a] = D.stored.flip[c] ? D.stored.shape[a] - 1 - full : full; });
    return out;
  }
  const mm = (p) => D.affine && [0, 1, 2].map((c) => D.affine[c][3] + D.affine[c][0] * p[0] + D.affine[c][1] * p[1] + D.affine[c][2] * p[2]);

  function paint(canvas, map, axis) {
    const r = across(axis), u = upward(axis), w = N[r], h = N[u], flip = mirrored(axis);
    if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; canvas.style.aspectRatio = w * D.size[r] + " / " + h * D.size[u]; }
    const context = canvas.getContext("2d"), image = context.createImageData(w, h), p = state.at.slice();
    for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
      p[r] = flip ? w - 1 - x : x; p[u] = h - 1 - y;
      const k = row[index(p)];
      if (k < 0) continue;
      const c = map.colour(k), o = 4 * (y * w + x);
      image.data[o] = c[0]; image.data[o + 1] = c[1]; image.data[o + 2] = c[2]; image.data[o + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  function cross(element, axis) {
    const r = across(axis), u = upward(axis), x = (mirrored(axis) ? N[r] - 1 - state.at[r] : state.at[r]) + 0.5, y = N[u] - state.at[u] - 0.5;
    element.children[0].style.left = (100 * x) / N[r] + "%";
    element.children[1].style.top = (100 * y) / N[u] + "%";
  }

  function locate(event, canvas, axis) {
    const box = canvas.getBoundingClientRect(), r = across(axis), u = upward(axis), p = state.at.slice();
    const x = Math.min(N[r] - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * N[r])));
    const y = Math.min(N[u] - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * N[u])));
    p[r] = mirrored(axis) ? N[r] - 1 - x : x; p[u] = N[u] - 1 - y;
    return p;
  }

  function frame(axis, letters) {
    const box = document.createElement("div"), canvas = document.createElement("canvas"), lines = document.createElement("div");
    box.className = "frame"; lines.className = "cross";
    lines.append(document.createElement("i"), document.createElement("i"));
    box.append(canvas, lines);
    const edges = letters && D.affine ? ["l", "r", "b", "t"].map((side) => { const s = document.createElement("span"); s.className = "edge " + side; s.setAttribute("aria-hidden", "true"); box.append(s); return s; }) : [];
    return { box, canvas, lines, edges };
  }

  const views = [2, 1, 0].filter((axis) => N[across(axis)] > 1 && N[upward(axis)] > 1);
  if (!views.length) views.push(2);
  state.sheet = state.axis = views[0];
  [...$("plane").options].forEach((o) => { if (!views.includes(+o.value)) o.remove(); });
  $("planes").classList.toggle("one", views.length === 1);
  $("planes").style.setProperty("--columns", views.map((axis) => "minmax(0, " + N[across(axis)] * D.size[across(axis)] + "fr)").join(" ")); // one scale
  const planes = views.map((axis) => {
    const f = frame(axis, true), holder = document.createElement("div"), label = document.createElement("label");
    holder.className = "plane";
    const slider = document.createElement("input"), shown = document.createElement("output"), name = D.affine ? NAMES[axis] : "slices along " + XYZ[axis];
    Object.assign(slider, { type: "range", min: 0, max: N[axis] - 1, step: 1 });
    slider.setAttribute("aria-label", name + " slice");
    label.append(name, slider, shown);
    f.canvas.tabIndex = 0; f.canvas.setAttribute("role", "application");
    f.canvas.setAttribute("aria-label", name + " plane: arrow keys move the cross" + (V ? ", Enter opens the voxel" : ""));
    holder.append(f.box, label); $("planes").append(holder);
    slider.addEventListener("input", () => { state.at[axis] = +slider.value; state.axis = axis; refresh(); });
    f.canvas.addEventListener("pointermove", (e) => read(locate(e, f.canvas, axis)));
    f.canvas.addEventListener("pointerleave", () => read(state.at));
    f.canvas.addEventListener("click", (e) => { state.at = locate(e, f.canvas, axis); state.axis = axis; refresh(); if (V) open(); });
    f.canvas.addEventListener("keydown", (e) => {
      const side = mirrored(axis) ? -1 : 1, moves = { ArrowRight: [across(axis), side], ArrowLeft: [across(axis), -side], ArrowUp: [upward(axis), 1], ArrowDown: [upward(axis), -1], PageUp: [axis, 1], PageDown: [axis, -1] };
      const move = moves[e.key];
      if (move) state.at[move[0]] = Math.min(N[move[0]] - 1, Math.max(0, state.at[move[0]] + move[1]));
      else if (e.key !== "Enter" && e.key !== " ") return;
      e.preventDefault(); state.axis = axis; refresh();
      if (!move && V) open();
    });
    return { axis, ...f, slider, shown };
  });

  const sheet = maps.map((m, k) => {
    const f = frame(2, false), button = document.createElement("button");
    const title = document.createElement("span"), note = document.createElement("small");
    title.innerHTML = m.label;
    note.textContent = m.range ? number(m.range[0]) + " to " + number(m.range[1]) + (m.unit ? " " + m.unit : "") : m.text;
    button.type = "button"; button.append(title, f.box, note); $("sheet").append(button);
    f.canvas.setAttribute("aria-hidden", "true");
    button.addEventListener("click", () => { state.map = k; refresh(); });
    f.canvas.addEventListener("pointermove", (e) => read(locate(e, f.canvas, state.sheet)));
    f.canvas.addEventListener("pointerleave", () => read(state.at));
    const option = new Option("", k);
    option.text = m.label.replace(/<sup>/g, "^").replace(/<[^>]*>/g, "") + ", " + m.text;
    $("choice").append(option);
    return { ...f, button };
  });

  function read(p) {
    const k = row[index(p)], at = mm(p);
    let text = "<span><b>voxel (" + stored(p).join(", ") + ")</b></span>" + (at ? "<span>" + at.map((x, c) => XYZ[c] + " " + x.toFixed(1)).join(", ") + " mm</span>" : "");
    if (k < 0) text += "<span>outside the mask</span>";
    else maps.forEach((m, i) => { const words = V || !m.range || Math.floor(i / 3) === Math.floor(state.map / 3) ? m.words(k) : ""; if (words) text += "<span><b>" + m.label + "</b> " + words + "</span>"; });
    $("readout").innerHTML = text;
  }

  function refresh() {
    const m = maps[state.map];
    planes.forEach((v) => {
      paint(v.canvas, m, v.axis); cross(v.lines, v.axis);
      v.slider.value = state.at[v.axis];
      const at = mm(state.at);
      v.shown.textContent = at ? XYZ[v.axis] + " " + at[v.axis].toFixed(1) + " mm" : String(state.at[v.axis]);
      v.slider.setAttribute("aria-valuetext", v.shown.textContent);
      const a = LETTERS[across(v.axis)], b = LETTERS[upward(v.axis)];
      const letters = (mirrored(v.axis) ? a[1] + a[0] : a) + b;
      v.edges.forEach((e, i) => { e.textContent = letters[i]; });
    });
    sheet.forEach((s, k) => { paint(s.canvas, maps[k], state.sheet); cross(s.lines, state.sheet); s.button.setAttribute("aria-pressed", String(k === state.map)); });
    $("choice").value = state.map;
    $("bar").style.visibility = m.range ? "visible" : "hidden";
    if (m.range) {
      const bar = $("bar-colours").getContext("2d");
      for (let i = 0; i < 128; i++) { bar.fillStyle = "rgb(" + m.lut[2 * i].map(Math.round) + ")"; bar.fillRect(i, 0, 1, 10); }
      $("bar-low").textContent = number(m.range[0]); $("bar-high").textContent = number(m.range[1]) + (m.unit ? " " + m.unit : "");
    }
    read(state.at);
  }

  let shown = -1;
  $("convention").value = state.convention;
  $("convention").parentElement.hidden = D.affine === null;
  $("choice").addEventListener("change", (e) => { state.map = +e.target.value; refresh(); });
  $("convention").addEventListener("change", (e) => { state.convention = e.target.value; refresh(); if (shown >= 0) drawOdf(shown); });
  $("plane").value = String(state.sheet);
  $("plane").addEventListener("change", (e) => { state.sheet = +e.target.value; refresh(); });
  document.documentElement.dataset.ready = "yes";
  refresh();
  if (!V) return;

  // ---- one voxel
  const [CURVE, PLANE, BALL] = V.points, HALF = (PLANE >> 1) + 1, KNOWN = BALL >> 1;
  const where = new Int32Array(bytes(V.at).buffer), odd = bytes(V.odd), top = f32(V.top), rmse = f32(V.rmse), floors = f32(V.floor), e1 = f32(V.e1), reach = f32(V.reach);
  const samples = V.samples && u16(V.samples), curve = u16(V.curve), cuts = bytes(V.planes), odf = bytes(V.odf), ball = f32(V.sphere), faces = u16(V.faces);
  const b = D.table.b, g = f32(D.table.g), spots = Array.from(where, (k) => (k < 0 ? null : point(place[k])));
  const oddOnes = Array.from(odd.keys()).filter((v) => odd[v] && spots[v]);
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

  function open() {
    let least = Infinity, found = -1;
    spots.forEach((s, v) => { if (s) { const d = s.reduce((sum, x, c) => sum + ((x - state.at[c]) * D.size[c]) ** 2, 0); if (d < least) { least = d; found = v; } } });
    show(found, Math.sqrt(least));
  }
  function show(v, away) {
    shown = v;
    if (v < 0) { $("voxel-name").textContent = "No voxel has a fit."; return; }
    const k = where[v], words = away > 0 ? "The nearest voxel that is kept in this page, " + number(away) + (D.affine ? " mm" : " voxels") + " away. " : "";
    $("voxel-name").innerHTML = "<b>Voxel (" + stored(spots[v]).join(", ") + ")</b>" + (odd[v] ? ", an outlier" : "") + ". " + words +
      "RMSE " + number(rmse[v]) + ". Status " + kinds[which[k]].value + ": " + kinds[which[k]].text + "." + (samples ? "" : " The series was not at hand when this page was made (--dwi): no samples.");
    drawSignal(v); drawPropagator(v); drawOdf(v);
  }
  function fresh(id) {
    const canvas = $(id), context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.font = "12px system-ui, sans-serif"; context.fillStyle = context.strokeStyle = style("--ink"); context.lineWidth = 1;
    return [context, canvas.width, canvas.height];
  }
  const nice = (x) => { const e = 10 ** Math.floor(Math.log10(x)), f = x / e; return (f < 1.5 ? 1 : f < 3.5 ? 2 : f < 7.5 ? 5 : 10) * e; };

  function drawSignal(v) {
    const [c, w, h] = fresh("signal"), left = 62, bottom = h - 40, n = b.length, most = V.most_b;
    const floor = floors[v], value = (k) => (samples[v * n + k] === 65535 ? NaN : (samples[v * n + k] / 65534) * top[v]);
    const low = Math.max(top[v] / 1e4, Math.min(floor / 3, top[v] / 10)), X = (x) => left + ((w - left - 12) * x) / most;
    const Y = (y) => bottom - ((bottom - 12) * Math.log(Math.max(y, low) / low)) / Math.log(1.15 * top[v] / low);
    c.strokeStyle = style("--line"); c.textAlign = "center";
    for (let x = 0, s = nice(most / 5); x <= most; x += s) { c.beginPath(); c.moveTo(X(x), 12); c.lineTo(X(x), bottom); c.stroke(); c.fillText(number(x), X(x), bottom + 16); }
    c.textAlign = "right";
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(top[v] * 1.15); e++) [1, 2, 5].forEach((f) => { const y = f * 10 ** e; if (y >= low && y <= 1.15 * top[v]) { c.beginPath(); c.moveTo(left, Y(y)); c.lineTo(w - 12, Y(y)); c.stroke(); c.fillText(number(y), left - 6, Y(y) + 4); } });
    c.textAlign = "center"; c.fillText("b (s/mm²)", (left + w) / 2, h - 6);
    c.save(); c.translate(13, bottom / 2); c.rotate(-Math.PI / 2); c.fillText("signal (units of the data)", 0, 0); c.restore();
    c.setLineDash([5, 4]); c.strokeStyle = style("--bad"); c.beginPath(); c.moveTo(left, Y(floor)); c.lineTo(w - 12, Y(floor)); c.stroke(); c.setLineDash([]);
    const axes = [0, 0.55, 1];
    if (samples) for (let k = 0; k < n; k++) {
      const y = value(k), t = D.table.b0[k] ? -1 : Math.acos(Math.min(1, Math.abs(g[3 * k] * e1[3 * v] + g[3 * k + 1] * e1[3 * v + 1] + g[3 * k + 2] * e1[3 * v + 2]))) / (Math.PI / 2);
      if (!(y >= 0)) continue;
      c.fillStyle = t < 0 ? style("--soft") : tone(t); c.beginPath(); c.arc(X(b[k]), Y(y), 2.4, 0, 7); c.fill();
    }
    axes.forEach((t, a) => {
      c.strokeStyle = tone(t); c.lineWidth = 2; c.beginPath();
      for (let i = 0; i < CURVE; i++) { const y = (curve[(v * 3 + a) * CURVE + i] / 65534) * top[v], x = (most * i) / (CURVE - 1); if (i) c.lineTo(X(x), Y(y)); else c.moveTo(X(x), Y(y)); }
      c.stroke(); c.fillStyle = c.strokeStyle; c.textAlign = "left"; c.fillRect(w - 66, 20 + 16 * a, 16, 3); c.fillStyle = style("--ink"); c.fillText("e" + (a + 1), w - 44, 26 + 16 * a);
    });
  }

  function drawPropagator(v) {
    const [c, w, h] = fresh("propagator"), size = Math.min(h - 44, w / 2 - 56), steps = 2 * D.voxels.decades;
    [0, 1].forEach((panel) => {
      const left = 46 + panel * (w / 2), image = c.createImageData(size, size), first = (v * 2 + panel) * HALF * PLANE;
      const at = (i, j) => (j >= PLANE >> 1 ? cuts[first + (j - (PLANE >> 1)) * PLANE + i] : cuts[first + ((PLANE >> 1) - j) * PLANE + PLANE - 1 - i]);
      const level = new Float32Array(size * size);
      for (let y = 0; y < size; y++) for (let x = 0; x < size; x++) {
        const s = (x / (size - 1)) * (PLANE - 1), t = (1 - y / (size - 1)) * (PLANE - 1), i = Math.min(Math.floor(s), PLANE - 2), j = Math.min(Math.floor(t), PLANE - 2), f = s - i, q = t - j;
        const near = at(Math.round(s), Math.round(t));
        const mixed = (at(i, j) * (1 - f) + at(i + 1, j) * f) * (1 - q) + (at(i, j + 1) * (1 - f) + at(i + 1, j + 1) * f) * q;
        level[y * size + x] = near === 0 ? -1 : Math.floor((Math.max(mixed, 1) - 2) / 253 * steps);
      }
      for (let y = 0; y < size; y++) for (let x = 0; x < size; x++) {
        const k = y * size + x, l = level[k], line = (x && level[k - 1] !== l) || (y && level[k - size] !== l);
        const colour = line ? [20, 20, 20] : l === -1 && cutsNegative(at, x, y, size) ? NO_FIT : ramp(Math.max(0, l + 0.5) / steps);
        image.data.set([colour[0], colour[1], colour[2], 255], 4 * k);
      }
      c.putImageData(image, left, 6);
      c.strokeStyle = style("--ink"); c.strokeRect(left, 6, size, size);
      c.textAlign = "center";
      [-1, 0, 1].forEach((t) => { const text = number(t * reach[v] * 0.8); c.fillText(text, left + (size * (1 + 0.8 * t)) / 2, size + 20); c.textAlign = "right"; c.fillText(text, left - 4, 10 + (size * (1 - 0.8 * t)) / 2); c.textAlign = "center"; });
      c.fillText("e" + (panel + 1) + " (µm)", left + size / 2, size + 36);
      c.save(); c.translate(left - 34, 6 + size / 2); c.rotate(-Math.PI / 2); c.fillText("e" + (panel + 2), 0, 0); c.restore();
    });
  }
  function cutsNegative(at, x, y, size) {
    return at(Math.round((x / (size - 1)) * (PLANE - 1)), Math.round((1 - y / (size - 1)) * (PLANE - 1))) === 0;
  }

  function drawOdf(v) {
    const [c, w, h] = fresh("odf"), axis = state.axis, r = across(axis), u = upward(axis), side = mirrored(axis) ? -1 : 1, out = side * (axis === 1 ? -1 : 1);
    const radius = (k) => odf[v * KNOWN + (k % KNOWN)] / 255, sign = (k) => (k < KNOWN ? 1 : -1);
    const P = Array.from({ length: BALL }, (_, k) => { const d = [0, 1, 2].map((a) => sign(k) * ball[3 * (k % KNOWN) + a]), s = radius(k); return { x: side * d[r] * s, y: d[u] * s, z: out * d[axis] * s, d, s }; });
    const tiles = [];
    for (let f = 0; f < faces.length; f += 3) {
      const t = [P[faces[f]], P[faces[f + 1]], P[faces[f + 2]]], [o, p, q] = t;
      const ax = p.x - o.x, ay = p.y - o.y, az = p.z - o.z, bx = q.x - o.x, by = q.y - o.y, bz = q.z - o.z;
      let n = [ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx];
      const length = Math.hypot(...n) || 1, shade = 0.4 + 0.6 * Math.max(0, (-0.4 * n[0] + 0.5 * n[1] + 0.77 * n[2]) / length);
      if (n[2] > 0) tiles.push({ t, z: o.z + p.z + q.z, shade });
    }
    tiles.sort((m, n) => m.z - n.z);
    const scale = 0.46 * Math.min(w, h);
    tiles.forEach(({ t, shade }) => {
      const d = [0, 1, 2].map((a) => Math.abs(t[0].d[a] + t[1].d[a] + t[2].d[a]) / 3);
      c.fillStyle = c.strokeStyle = "rgb(" + d.map((x) => Math.round(255 * Math.min(1, (0.1 + 0.9 * x) * shade))) + ")";
      c.beginPath(); t.forEach((p, i) => c[i ? "lineTo" : "moveTo"](w / 2 + scale * p.x, h / 2 - scale * p.y)); c.closePath(); c.fill(); c.stroke();
    });
    if (!D.affine) return;
    c.fillStyle = style("--ink"); c.textAlign = "center";
    const a = LETTERS[r], letters = (side < 0 ? a[1] + a[0] : a) + LETTERS[u];
    [[8, h / 2], [w - 8, h / 2], [w / 2, h - 4], [w / 2, 12]].forEach(([x, y], i) => c.fillText(letters[i], x, y));
  }

  let turn = -1;
  function step(by) {
    turn = (turn + by + oddOnes.length) % oddOnes.length;
    const v = oddOnes[turn];
    state.at = spots[v].slice(); refresh(); show(v, 0);
  }
  [["previous", -1], ["next", 1]].forEach(([id, by]) => { $(id).disabled = !oddOnes.length; $(id).addEventListener("click", () => step(by)); });

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (shown >= 0) show(shown, 0); });
  if (place.length) open();
})();
