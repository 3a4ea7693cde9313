// The map: points on a canvas, a legend that filters, and one segment's details. Data: fusion/report/segment_map.py.
// Whatever comes from the data goes into the page as text, never as markup.

function startMap(data) {
  const NOWHERE = 0xffff;
  const COLOURS = ["#2f86c8", "#d2741a", "#2a9d78", "#b0589f", "#8a7a12", "#7d6bd0", "#c2505a", "#3f9fb0"];
  const OTHER = "#8b949e";
  const MOST_CLASSES = 24; // with a colour and a shape of their own; the rest is grey
  const STEPS = 16; // of a number's colours, from the first of the ends to the second
  const ENDS = ["#2f86c8", "#d2741a"];
  const element = (id) => document.getElementById(id);
  const canvas = element("map-canvas");
  const context = canvas.getContext("2d");
  const bytes = (base64) => Uint8Array.from(atob(base64), (char) => char.charCodeAt(0)).buffer;

  const features = data.features.map((feature) => ({ ...feature, xy: new Uint16Array(bytes(feature.xy)) }));
  const colours = data.colours.map((colour) =>
    colour.kind === "classes"
      ? { ...colour, codes: new Uint16Array(bytes(colour.codes)) }
      : { ...colour, values: new Float32Array(bytes(colour.values)) });
  const facts = data.facts.map((fact) => ({ ...fact, values: new Float32Array(bytes(fact.values)) }));

  let feature = features[0];
  let colour = colours[0];
  let bins = new Uint8Array(data.n); // of each point, its place in the legend
  let legend = []; // {label, count, colour, shape, shown}
  let matches = null; // Uint8Array, where something is sought
  let selected = -1;
  let hovered = -1;
  let view = { scale: 1, x: 0, y: 0 }; // canvas pixels = unit position × scale + (x, y)
  let size = { width: 1, height: 1, ratio: 1 };
  let onMap = [];

  const make = (tag, properties = {}, children = []) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };

  // what a point says

  const tidy = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(4))) : "");
  const valueOf = (of, point) =>
    of.kind === "classes" ? of.classes[of.codes[point]] ?? "" : tidy(of.values[point]);

  // the legend

  const mix = (share) => {
    const parts = ENDS.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
    return `rgb(${parts[0].map((low, at) => Math.round(low + (parts[1][at] - low) * share)).join(" ")})`;
  };

  function buildLegend() {
    legend = [];
    if (colour.kind === "classes") {
      const kept = colour.classes.length > MOST_CLASSES ? MOST_CLASSES - 1 : colour.classes.length;
      colour.classes.slice(0, kept).forEach((label, at) => legend.push({
        label, colour: COLOURS[at % COLOURS.length], shape: (at + Math.floor(at / COLOURS.length)) % 4,
      }));
      const others = colour.classes.length - kept;
      if (others) legend.push({ label: `${others} others`, colour: OTHER, shape: 0 });
      const unknown = legend.push({ label: "not known", colour: OTHER, shape: 4 }) - 1;
      colour.codes.forEach((code, point) => { bins[point] = code === NOWHERE ? unknown : Math.min(code, others ? kept : code); });
    } else {
      const step = (colour.high - colour.low) / STEPS || 1;
      for (let at = 0; at < STEPS; at++) {
        const low = colour.low + at * step;
        legend.push({ label: `${tidy(low)} to ${tidy(low + step)}`, colour: mix(at / (STEPS - 1)), shape: 0 });
      }
      legend.push({ label: "not known", colour: OTHER, shape: 4 });
      colour.values.forEach((value, point) => {
        bins[point] = Number.isNaN(value) ? STEPS : Math.min(STEPS - 1, Math.max(0, Math.floor((value - colour.low) / step)));
      });
    }
    for (const entry of legend) Object.assign(entry, { shown: true, count: 0 });
    const xy = feature.xy;
    for (let point = 0; point < data.n; point++) if (xy[2 * point] !== NOWHERE) legend[bins[point]].count++;
    showLegend();
  }

  function showLegend() {
    const box = element("map-legend");
    const filtered = legend.some((entry) => !entry.shown);
    const buttons = legend.flatMap((entry, at) => {
      if (!entry.count) return [];
      const swatch = make("canvas", { className: "swatch", width: 24, height: 24 });
      const brush = swatch.getContext("2d");
      drawShape(brush, entry, 12, 12, 9);
      const count = make("span", { className: "quiet", textContent: entry.count.toLocaleString("en") });
      const button = make("button", { type: "button", className: "legend" }, [swatch, make("span", { textContent: entry.label }), count]);
      button.setAttribute("aria-pressed", String(entry.shown));
      button.addEventListener("click", () => {
        // the first press asks for this one alone; later ones add and remove
        if (!filtered) legend.forEach((other) => { other.shown = other === entry; });
        else entry.shown = !entry.shown;
        if (legend.every((other) => !other.shown || !other.count)) legend.forEach((other) => { other.shown = true; });
        showLegend();
        box.querySelectorAll("button")[Math.min(buttons.indexOf(button), box.children.length - 1)]?.focus();
      });
      return [button];
    });
    if (filtered) {
      const all = make("button", { type: "button", className: "legend", textContent: "Show all" });
      all.addEventListener("click", () => {
        legend.forEach((entry) => { entry.shown = true; });
        showLegend();
        box.querySelector("button")?.focus();
      });
      buttons.push(all);
    }
    box.replaceChildren(...buttons);
    refresh();
  }

  const isShown = (point) =>
    feature.xy[2 * point] !== NOWHERE && legend[bins[point]].shown && (matches === null || matches[point] === 1);

  function refresh() {
    onMap = [];
    let placed = 0;
    for (let point = 0; point < data.n; point++) {
      if (feature.xy[2 * point] !== NOWHERE) placed++;
      if (isShown(point)) onMap.push(point);
    }
    // the largest class first: what is rare lies on top
    onMap.sort((a, b) => legend[bins[b]].count - legend[bins[a]].count || a - b);
    const n = (value) => value.toLocaleString("en");
    element("map-status").textContent = `${n(onMap.length)} of ${n(placed)} segments shown; ${n(data.n - placed)} have no ${feature.name}.`;
    redraw();
  }

  // drawing

  function drawShape(brush, { colour: fill, shape }, x, y, radius) {
    brush.fillStyle = fill;
    brush.strokeStyle = fill;
    brush.beginPath();
    if (shape === 0) brush.arc(x, y, radius, 0, 7);
    if (shape === 1) brush.rect(x - 0.85 * radius, y - 0.85 * radius, 1.7 * radius, 1.7 * radius);
    if (shape === 2) { brush.moveTo(x, y - 1.1 * radius); brush.lineTo(x + radius, y + 0.8 * radius); brush.lineTo(x - radius, y + 0.8 * radius); brush.closePath(); }
    if (shape === 3) { brush.moveTo(x, y - 1.2 * radius); brush.lineTo(x + 1.1 * radius, y); brush.lineTo(x, y + 1.2 * radius); brush.lineTo(x - 1.1 * radius, y); brush.closePath(); }
    if (shape === 4) { brush.lineWidth = radius / 3; brush.arc(x, y, 0.8 * radius, 0, 7); brush.stroke(); return; }
    brush.fill();
  }

  // Points are blended into one image by hand: thousands of calls of drawImage take 30 ms a frame, this takes a few.

  let stamps = { key: "" };

  /** For each entry of the legend its colour, and the pixels it covers as x, y and opacity, about its centre. */
  function stampsOf(radius) {
    const alpha = onMap.length > 1500 ? 0.75 : 0.9;
    const key = `${radius} ${alpha} ${legend.map((entry) => entry.colour + entry.shape).join()}`;
    if (stamps.key === key) return stamps;
    const reach = Math.ceil(1.3 * radius);
    const side = 2 * reach + 1;
    const brush = make("canvas", { width: side, height: side }).getContext("2d", { willReadFrequently: true });
    const marks = legend.map((entry) => {
      brush.clearRect(0, 0, side, side);
      drawShape(brush, entry, side / 2, side / 2, radius);
      const pixels = brush.getImageData(0, 0, side, side).data;
      const covered = [];
      let rgb = [0, 0, 0];
      for (let at = 0, opaque = 0; at < side * side; at++) {
        const opacity = pixels[4 * at + 3];
        if (opacity > opaque) [opaque, rgb] = [opacity, [...pixels.slice(4 * at, 4 * at + 3)]];
        if (opacity) covered.push(at % side - reach, Math.floor(at / side) - reach, alpha * opacity / 255);
      }
      return { rgb, covered: Float32Array.from(covered) };
    });
    stamps = { key, marks, reach };
    return stamps;
  }

  let frame = null;
  function drawPoints() {
    const { width, height } = canvas;
    if (!frame || frame.width !== width || frame.height !== height) frame = context.createImageData(width, height);
    const pixels = frame.data;
    const [red, green, blue] = getComputedStyle(canvas).backgroundColor.match(/\d+/g).map(Number);
    const one = new Uint32Array(Uint8Array.of(red, green, blue, 255).buffer)[0];
    new Uint32Array(pixels.buffer).fill(one);
    const { marks, reach } = stampsOf(pointRadius());
    const xy = feature.xy;
    const scale = view.scale / 65534;
    for (const point of onMap) {
      const x = Math.round(xy[2 * point] * scale + view.x);
      const y = Math.round(xy[2 * point + 1] * scale + view.y);
      if (x < reach || y < reach || x >= width - reach || y >= height - reach) continue;
      const { rgb, covered } = marks[bins[point]];
      for (let at = 0; at < covered.length; at += 3) {
        const pixel = 4 * ((y + covered[at + 1]) * width + x + covered[at]);
        const opacity = covered[at + 2];
        pixels[pixel] += (rgb[0] - pixels[pixel]) * opacity;
        pixels[pixel + 1] += (rgb[1] - pixels[pixel + 1]) * opacity;
        pixels[pixel + 2] += (rgb[2] - pixels[pixel + 2]) * opacity;
      }
    }
    context.putImageData(frame, 0, 0);
  }

  let waiting = false;
  function redraw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(draw);
  }

  function pointRadius() {
    const base = onMap.length > 6000 ? 2 : onMap.length > 1500 ? 2.6 : onMap.length > 300 ? 3.4 : 4.5;
    return Math.round(base * size.ratio * Math.min(3, Math.max(1, Math.sqrt(view.scale / wholeScale()))) * 2) / 2;
  }

  const place = (point) => [
    feature.xy[2 * point] / 65534 * view.scale + view.x,
    feature.xy[2 * point + 1] / 65534 * view.scale + view.y,
  ];

  function draw() {
    waiting = false;
    drawPoints();
    const ink = getComputedStyle(canvas).color;
    for (const [point, width] of [[hovered, 1.5], [selected, 3]]) {
      if (point < 0 || feature.xy[2 * point] === NOWHERE) continue;
      const [x, y] = place(point);
      drawShape(context, legend[bins[point]], x, y, pointRadius() + 2 * size.ratio);
      context.strokeStyle = ink;
      context.lineWidth = width * size.ratio;
      context.beginPath();
      context.arc(x, y, pointRadius() + 5 * size.ratio, 0, 7);
      context.stroke();
    }
  }

  // the view

  const margin = () => 14 * size.ratio;
  const wholeScale = () => Math.max(1, Math.min(canvas.width, canvas.height) - 2 * margin());

  function showWhole() {
    // positions fill a square along one axis only: the picture is scaled to what is there
    let [left, top, right, bottom] = [1, 1, 0, 0];
    for (let point = 0; point < data.n; point++) {
      if (feature.xy[2 * point] === NOWHERE) continue;
      const [x, y] = [feature.xy[2 * point] / 65534, feature.xy[2 * point + 1] / 65534];
      left = Math.min(left, x); right = Math.max(right, x); top = Math.min(top, y); bottom = Math.max(bottom, y);
    }
    if (right < left) [left, top, right, bottom] = [0, 0, 1, 1];
    const scale = Math.min(
      (canvas.width - 2 * margin()) / Math.max(right - left, 1e-3),
      (canvas.height - 2 * margin()) / Math.max(bottom - top, 1e-3));
    view = {
      scale,
      x: canvas.width / 2 - (left + right) / 2 * scale,
      y: canvas.height / 2 - (top + bottom) / 2 * scale,
    };
    redraw();
  }

  function zoom(factor, x = canvas.width / 2, y = canvas.height / 2) {
    const scale = Math.min(wholeScale() * 400, Math.max(wholeScale() * 0.5, view.scale * factor));
    const change = scale / view.scale;
    view = { scale, x: x - (x - view.x) * change, y: y - (y - view.y) * change };
    redraw();
  }

  function pan(dx, dy) {
    view = { ...view, x: view.x + dx, y: view.y + dy };
    redraw();
  }

  function fitCanvas() {
    const box = canvas.getBoundingClientRect();
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const [width, height] = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
    if (!width || !height || (width === canvas.width && height === canvas.height)) return;
    const first = size.width === 1;
    canvas.width = width;
    canvas.height = height;
    size = { width, height, ratio };
    if (first) showWhole();
    else redraw();
  }

  // choosing a point

  function nearest(x, y, reach) {
    let best = -1;
    let least = reach * reach;
    for (const point of onMap) {
      const [px, py] = place(point);
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance <= least) [best, least] = [point, distance];
    }
    return best;
  }

  /** The point to go to in a direction: near, and not far off to the side. */
  function towards(dx, dy) {
    const [x, y] = selected >= 0 && isShown(selected) ? place(selected) : [canvas.width / 2, canvas.height / 2];
    let [best, least] = [-1, Infinity];
    for (const point of onMap) {
      if (point === selected) continue;
      const [px, py] = place(point);
      const along = (px - x) * dx + (py - y) * dy;
      const aside = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
      if (along <= 0 || aside > along) continue;
      if (along + 2 * aside < least) [best, least] = [point, along + 2 * aside];
    }
    return best;
  }

  function select(point) {
    selected = point;
    showDetail();
    if (point >= 0 && feature.xy[2 * point] !== NOWHERE) {
      const [x, y] = place(point);
      const edge = 30 * size.ratio;
      const dx = x < edge ? edge - x : x > canvas.width - edge ? canvas.width - edge - x : 0;
      const dy = y < edge ? edge - y : y > canvas.height - edge ? canvas.height - edge - y : 0;
      if (dx || dy) pan(dx, dy);
    }
    redraw();
  }

  function showDetail() {
    const box = element("map-detail");
    for (const audio of box.querySelectorAll("audio")) audio.pause();
    if (selected < 0) {
      box.replaceChildren(make("p", { className: "quiet", textContent: "No segment selected." }));
      return;
    }
    const id = data.ids[selected];
    const rows = [["group", data.groups[selected]], ...[...colours, ...facts].map((of) => [of.name, valueOf(of, selected)])];
    const list = make("dl", {}, rows.filter(([, value]) => value !== "").flatMap(([name, value]) => [
      make("dt", { textContent: name }), make("dd", { textContent: value })]));
    const children = [make("h3", { textContent: id }), list];
    if (feature.xy[2 * selected] === NOWHERE) children.push(make("p", { className: "quiet small", textContent: `It has no ${feature.name}.` }));
    if (data.texts) children.push(data.texts[selected]
      ? make("blockquote", { textContent: data.texts[selected] })
      : make("p", { className: "quiet small", textContent: "It has no text." }));
    if (Object.hasOwn(clips, id)) {
      const audio = make("audio", { controls: true, preload: "none", src: clipUrl(id) });
      audio.setAttribute("aria-label", `Audio of ${id}`);
      children.push(audio);
    } else children.push(make("p", { className: "quiet small", textContent: data.noAudio || "It has no audio, or it is not among the clips in this file." }));
    box.replaceChildren(...children);
  }

  // controls

  const featureButtons = features.map((of) => {
    const button = make("button", { type: "button", className: "tool", textContent: of.name });
    button.addEventListener("click", () => showFeature(of));
    return button;
  });
  element("map-features").replaceChildren(...featureButtons);

  function showFeature(of) {
    feature = of;
    featureButtons.forEach((button, at) => button.setAttribute("aria-pressed", String(features[at] === of)));
    element("map-said").textContent = `${of.name}: ${of.said}`;
    buildLegend();
    showWhole();
    showDetail();
  }

  const choice = element("map-colour");
  choice.replaceChildren(...colours.map((of, at) => make("option", { value: at, textContent: of.name })));
  choice.addEventListener("change", () => { colour = colours[choice.value]; buildLegend(); });

  function search() {
    const wanted = element("map-find").value.trim().toLowerCase();
    const audible = element("map-audible")?.checked;
    matches = null;
    if (wanted || audible) {
      matches = new Uint8Array(data.n);
      for (let point = 0; point < data.n; point++) {
        const found = !wanted || [data.ids[point], data.groups[point], data.texts?.[point] ?? ""].some((text) => text.toLowerCase().includes(wanted));
        matches[point] = Number(found && (!audible || Object.hasOwn(clips, data.ids[point])));
      }
    }
    refresh();
  }
  element("map-find").addEventListener("input", search);
  element("map-audible")?.addEventListener("change", search);
  element("map-in").addEventListener("click", () => zoom(1.5));
  element("map-out").addEventListener("click", () => zoom(1 / 1.5));
  element("map-whole").addEventListener("click", showWhole);

  for (const button of document.querySelectorAll("button[data-show]")) {
    const point = data.ids.indexOf(button.dataset.show);
    button.hidden = point < 0;
    button.addEventListener("click", () => {
      element("map-find").value = "";
      if (element("map-audible")) element("map-audible").checked = false;
      matches = null;
      if (feature.xy[2 * point] === NOWHERE) showFeature(features.find((of) => of.xy[2 * point] !== NOWHERE) ?? feature);
      legend.forEach((entry) => { entry.shown = true; });
      showLegend();
      element("map").scrollIntoView();
      canvas.focus({ preventScroll: true });
      select(point);
    });
  }

  // pointers: one drags or taps, two zoom

  const pointers = new Map();
  let dragged = false;
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * size.ratio, (event.clientY - box.top) * size.ratio];
  };

  canvas.addEventListener("pointerdown", (event) => {
    pointers.set(event.pointerId, at(event));
    canvas.setPointerCapture(event.pointerId);
    if (pointers.size === 1) dragged = false;
  });
  canvas.addEventListener("pointermove", (event) => {
    const here = at(event);
    const before = pointers.get(event.pointerId);
    if (!before) {
      const point = nearest(...here, 10 * size.ratio);
      if (point !== hovered) {
        hovered = point;
        canvas.style.cursor = point < 0 ? "grab" : "pointer";
        canvas.title = point < 0 ? "" : data.ids[point];
        redraw();
      }
      return;
    }
    if (pointers.size === 1) {
      if (!dragged && Math.hypot(here[0] - before[0], here[1] - before[1]) < 4 * size.ratio) return;
      dragged = true;
      pan(here[0] - before[0], here[1] - before[1]);
    } else {
      dragged = true;
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      const [was, is] = [before, here].map(([x, y]) => Math.hypot(x - other[0], y - other[1]) || 1);
      zoom(is / was, other[0], other[1]);
    }
    pointers.set(event.pointerId, here);
  });
  const release = (event) => {
    if (!pointers.delete(event.pointerId)) return;
    if (event.type === "pointerup" && !dragged) select(nearest(...at(event), (event.pointerType === "mouse" ? 10 : 22) * size.ratio));
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => { hovered = -1; redraw(); });
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas && !event.ctrlKey) return; // else nobody could scroll past the map
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.002)), ...at(event));
  }, { passive: false });

  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = ARROWS[event.key];
    if (arrow && event.shiftKey) pan(-60 * arrow[0] * size.ratio, -60 * arrow[1] * size.ratio);
    else if (arrow) {
      const point = towards(...arrow);
      if (point >= 0) select(point);
    } else if (event.key === "+" || event.key === "=") zoom(1.5);
    else if (event.key === "-") zoom(1 / 1.5);
    else if (event.key === "0") showWhole();
    else if (event.key === "Escape") select(-1);
    else if (event.key === "Enter") {
      const audio = element("map-detail").querySelector("audio");
      if (audio) audio.paused ? audio.play() : audio.pause();
    } else return;
    event.preventDefault();
  });

  document.addEventListener("themechange", redraw);
  element("map-tool").hidden = false;
  new ResizeObserver(fitCanvas).observe(canvas);
  fitCanvas();
  showFeature(feature);
}

{
  const data = embedded("map-data");
  if (data) startMap(data);
}
