"use strict";
// The budget slider. Its stops are plans that Python made: a stop shows exactly what
// `python -m analysis best` would recommend for that budget.
if (pageData.budgets) {
  const { stops, machines, ratios, runs, yaml, start, limit, bits_unit: bitsUnit } = pageData.budgets;
  const slider = document.getElementById("slider");
  const [stop, unit, machine] = ["stop", "unit", "machine"].map((name) => document.getElementById(`slider-${name}`));
  const best = ratios.indexOf("best");
  let chosen = start; // index of a stop
  let size = best; // index of a ratio

  // Positions of the slider: stops by compute, or by price, which grows with compute but for rounding.
  const price = (at) => stops[at].times[machine.selectedIndex][2] ?? Infinity;
  function positions() {
    const order = stops.map((_, at) => at);
    return unit.value === "dollars" ? order.sort((a, b) => price(a) - price(b) || a - b) : order;
  }

  function show(texts) {
    for (const [name, text] of Object.entries(texts)) {
      const place = slider.querySelector(`[data-show="${name}"]`);
      place.textContent = text;
      place.hidden = !text;
    }
  }

  function render() {
    const item = stops[chosen];
    const device = machines[machine.selectedIndex];
    const [time, cost] = item.times[machine.selectedIndex];
    const run = runs[item.nearest];
    const order = positions();
    const budget = unit.value === "dollars" ? cost : item.budget;
    const place = unit.value === "dollars" ? `on ${device.name}: ${item.budget}, ${item.ratio}` : item.ratio;
    stop.value = order.indexOf(chosen);
    stop.setAttribute("aria-valuetext", `${budget}, ${place}${item.zone === "beyond" ? ", farther than predictions were tested" : ""}`);
    show({
      budget, ratio: place, bits: item.bits, band: `90% interval ${item.band}`,
      kidLabel: item.kid ? "Sample quality, KID (lower is better)" : "Sample quality of the nearest run, KID",
      kid: item.kid ? item.kid[0] : run.kid,
      kidNote: item.kid ? `predicted, 90% interval ${item.kid[1]}` : "measured, not predicted",
      size: item.size, shape: item.shape, images: item.images, epochs: item.epochs,
      time, machine: `on ${device.name}`, price: cost, priceNote: device.priced ? `for ${device.name}` : "unknown: choose an accelerator",
      caution: item.caution, notes: item.notes, basis: device.basis, wrong: wrongSize(item),
      nearest: run.name, measured: `measured: ${run.bits} ${bitsUnit}, KID ${run.kid}`,
    });
    showZones(order);
    showPicture(item.nearest);
    slider.querySelectorAll('[name="slider-size"]')[size].checked = true;
    document.getElementById("slider-yaml").value = text(item);
    document.getElementById("slider-copied").textContent = "";
    moveMarker();
  }

  function wrongSize(item) {
    if (!item.wrong.length) return "These runs do not tell the best size, so the cost of another size is unknown.";
    const one = item.wrong[size];
    if (size === best) return `The best size by the law is ${one.params} parameters. Choose another to see what it costs.`;
    const bits = `At ${ratios[size]} the best size (${one.params} parameters) and the same compute, the law expects ${one.bits} more ${bitsUnit} (90% interval ${one.band}).`;
    const compute = one.compute
      ? ` That size needs ${one.compute} times the compute to be as good.`
      : ` Even ${limit} times the compute would not make that size as good.`;
    return bits + compute + (one.trained ? "" : " The study trained no model of about that size, so this is a guess.");
  }

  function showZones(order) {
    for (const zone of slider.querySelectorAll(".zones span")) {
      const share = order.filter((at) => stops[at].zone === zone.className).length;
      zone.style.flexGrow = share;
      zone.hidden = !share;
    }
  }

  // The samples section embeds the pictures; the slider shows the same image again.
  function showPicture(id) {
    const source = document.querySelector(`img[data-run="${CSS.escape(id)}"]`);
    const picture = slider.querySelector(".nearest img");
    picture.hidden = !source;
    if (source) picture.src = source.src;
    document.getElementById("slider-run").hidden = typeof chooseRun === "undefined";
  }

  function moveMarker() {
    const plot = document.querySelector("#budget-1 .plot");
    const trace = plot?.data?.findIndex((one) => one.name === "this budget") ?? -1;
    if (trace >= 0) Plotly.restyle(plot, { x: [[stops[chosen].flops]], y: [[stops[chosen].bpd]] }, [trace]);
  }

  const text = (item) => yaml.map((line, at) => item.yaml[at] ?? line).join("\n") + "\n";

  async function copy() {
    const area = document.getElementById("slider-yaml");
    const copied = document.getElementById("slider-copied");
    try {
      await navigator.clipboard.writeText(area.value);
      area.hidden = true;
      copied.textContent = "Copied. Save it as run.yaml and train it: python -m tarflow train run.yaml";
    } catch {
      area.hidden = false;
      area.select();
      copied.textContent = "The browser did not let this page copy. The text below is selected: copy it with Ctrl+C.";
    }
  }

  // What the address holds; anything it holds wrongly is left as it is.
  function restore() {
    const flops = Number(pageState.get("budget"));
    if (flops > 0) {
      const away = stops.map((item) => Math.abs(Math.log(item.flops / flops)));
      chosen = away.indexOf(Math.min(...away));
    }
    const device = machines.findIndex((one) => one.name === pageState.get("device"));
    if (device >= 0) machine.selectedIndex = device;
    if (ratios.includes(pageState.get("size"))) size = ratios.indexOf(pageState.get("size"));
    unit.value = pageState.get("unit") === "dollars" && machines[machine.selectedIndex].priced ? "dollars" : "compute";
    render();
  }

  stop.addEventListener("input", () => {
    chosen = positions()[stop.value];
    remember("budget", stops[chosen].key);
    render();
  });
  unit.addEventListener("change", () => {
    if (unit.value === "dollars" && !machines[machine.selectedIndex].priced) {
      machine.selectedIndex = machines.findIndex((one) => one.priced);
      remember("device", machine.value);
    }
    remember("unit", unit.value === "dollars" ? "dollars" : null);
    render();
  });
  machine.addEventListener("change", () => {
    if (!machines[machine.selectedIndex].priced) { unit.value = "compute"; remember("unit", null); }
    remember("device", machine.value);
    render();
  });
  slider.querySelector(".sizes").addEventListener("change", (event) => {
    size = Number(event.target.value);
    remember("size", ratios[size]);
    render();
  });
  document.getElementById("slider-copy").addEventListener("click", copy);
  document.getElementById("slider-run").addEventListener("click", () => chooseRun(stops[chosen].nearest));
  document.addEventListener("figure-drawn", (event) => { if (event.target.id === "budget-1") moveMarker(); });
  window.addEventListener("hashchange", restore);
  restore();
}
