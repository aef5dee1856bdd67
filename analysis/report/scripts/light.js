"use strict";
// Figures light up the chosen run and the one under the pointer, and fade those that the filters
// leave out. The marks are drawn over a figure, not in it: its data and its CSV stay as they are.
{
  const SVG = "http://www.w3.org/2000/svg";
  const FADED = 0.12; // opacity
  const plots = new Set();
  const runOf = (trace, point) => (Array.isArray(trace.meta) ? trace.meta[point] : trace.meta);

  function shape(kind, name, values) {
    const made = document.createElementNS(SVG, name);
    made.setAttribute("class", kind);
    for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
    return made;
  }

  // The marks of a run in one trace: its line, or a ring around each of its points.
  function marks(points, id, kind, { xaxis, yaxis }) {
    const trace = points[0].trace;
    if (trace.visible !== true || !trace.meta) return [];
    const at = (point) => [xaxis.c2p(point.x), yaxis.c2p(point.y)];
    const drawn = (place) => place.every(Number.isFinite);
    if (trace.meta === id && trace.mode.includes("lines")) {
      const line = points.map(at).filter(drawn).map((place) => place.map((value) => value.toFixed(1)));
      return [shape(kind, "path", { d: `M${line.join("L")}` })];
    }
    return points.flatMap((point, index) => {
      const place = at(point);
      if (runOf(trace, index) !== id || !drawn(place)) return [];
      const size = Array.isArray(trace.marker?.size) ? trace.marker.size[index] : (trace.marker?.size ?? 6);
      return [shape(kind, "circle", { cx: place[0], cy: place[1], r: size / 2 + 4 })];
    });
  }

  function light(plot) {
    const layer = plot.querySelector(":scope > .marks") ?? plot.appendChild(shape("marks", "svg", { "aria-hidden": "true" }));
    layer.replaceChildren();
    const axes = plot._fullLayout?._plots?.xy;
    if (!axes) return;
    Object.assign(layer.style, { left: `${axes.xaxis._offset}px`, top: `${axes.yaxis._offset}px`, width: `${axes.xaxis._length}px`, height: `${axes.yaxis._length}px` });
    for (const kind of ["pointed", "chosen"]) {
      const id = selection[kind];
      if (id) layer.append(...plot.calcdata.flatMap((points) => marks(points, id, kind, axes)));
    }
  }

  function fade(plot) {
    const all = selection.kept.size === runById.size;
    if (all && !plot.dataset.faded) return;
    const [traces, selectedpoints, opacity] = [[], [], []];
    plot.data.forEach((trace, number) => {
      if (!trace.meta) return;
      const list = Array.isArray(trace.meta);
      const kept = all ? null : [...trace.meta.keys?.() ?? []].filter((index) => selection.kept.has(trace.meta[index]));
      const any = all || (list ? kept.length > 0 : selection.kept.has(trace.meta));
      traces.push(number);
      selectedpoints.push(list && any ? kept : null);
      opacity.push(any ? (plot.opacities[number] ?? 1) : FADED);
    });
    plot.dataset.faded = all ? "" : "yes";
    if (traces.length) Plotly.restyle(plot, { selectedpoints, opacity }, traces);
  }

  function listen(plot) {
    plot.on("plotly_hover", ({ points: [point], event }) => pointAtRun(runOf(point.data, point.pointNumber), event));
    plot.on("plotly_unhover", () => pointAtRun(null));
    plot.on("plotly_click", ({ points: [point] }) => chooseRun(runOf(point.data, point.pointNumber) ?? null));
    plot.on("plotly_afterplot", () => light(plot));
  }

  document.addEventListener("figure-drawn", ({ target }) => {
    const plot = target.querySelector(".plot");
    if (!plots.has(plot)) listen(plot);
    plots.add(plot);
    plot.opacities = plot.data.map((trace) => trace.opacity);
    fade(plot);
    light(plot);
  });
  for (const event of ["run-chosen", "run-pointed"]) document.addEventListener(event, () => plots.forEach(light));
  let waiting;
  document.addEventListener("runs-filtered", () => { // a reader who types does not wait for figures
    clearTimeout(waiting);
    waiting = setTimeout(() => plots.forEach(fade), 150);
  });
}
