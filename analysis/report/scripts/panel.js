"use strict";
// The panel that shows one run: the one under the pointer, or else the chosen one.
{
  const panel = document.getElementById("run-panel");
  const find = (selector) => panel.querySelector(selector);
  const write = (selector, text) => { find(selector).textContent = text; find(selector).hidden = !text; };

  function curve([images, losses]) {
    const path = find(".curve path");
    find(".curve").hidden = !images;
    write(".curve-words", images ? `Training loss ${losses.at(-1).toFixed(3)} after ${images.at(-1).toLocaleString("en")} images` : "");
    if (!images) return;
    find(".curve").setAttribute("aria-label", find(".curve-words").textContent);
    // Losses start far above where they end: the curve begins below its highest tenth.
    const high = losses.toSorted((a, b) => a - b)[Math.floor(0.9 * (losses.length - 1))];
    const from = losses.findIndex((loss) => loss <= high);
    const shown = losses.slice(from);
    const low = Math.min(...shown);
    const [first, last] = [Math.log(images[from]), Math.log(images.at(-1))];
    const place = (loss, index) => {
      const x = (300 * (Math.log(images[from + index]) - first)) / (last - first || 1);
      const y = 4 + (52 * (high - Math.min(loss, high))) / (high - low || 1);
      return `${x.toFixed(1)} ${y.toFixed(1)}`;
    };
    path.setAttribute("d", `M${shown.map(place).join("L")}`);
  }

  function samples(run) {
    const embedded = (place) => document.querySelector(`#samples ${place} img[data-run="${CSS.escape(run.id)}"]`);
    const shown = embedded(".gallery") ?? embedded(".strips");
    const source = shown?.src ?? run.samples;
    const image = find("img");
    image.hidden = !source;
    if (source) image.src = source;
    else image.removeAttribute("src");
    image.alt = source ? `Samples, ${run.name}` : "";
    const missing = run.samples === "" ? "This run has no samples." : `The page holds no samples of this run: see runs/${run.id}/samples.png in the folder of the study.`;
    write(".no-samples", source ? "" : missing);
  }

  function show() {
    const run = runById.get(selection.pointed ?? selection.chosen);
    panel.hidden = !run;
    if (!run) return;
    panel.classList.toggle("preview", !selection.chosen);
    panel.classList.toggle("left", selection.left);
    write("h2", run.name);
    write(".note", run.note);
    write(".config", run.config);
    write("code", run.id);
    find("dl").replaceChildren(...run.facts.flatMap((words) => ["dt", "dd"].map((tag, index) => Object.assign(document.createElement(tag), { textContent: words[index] }))));
    curve(run.curve);
    samples(run);
  }

  for (const event of ["run-chosen", "run-pointed"]) document.addEventListener(event, show);
  panel.addEventListener("click", async ({ target }) => {
    const { step, close, copy } = target.dataset;
    if (step) stepRun(Number(step));
    if (close !== undefined) {
      const row = document.querySelector('#run-table [aria-selected="true"]');
      chooseRun(null);
      row?.focus({ preventScroll: true });
    }
    if (copy !== undefined) {
      getSelection().selectAllChildren(find("code")); // stays selected where copying is not allowed
      await navigator.clipboard?.writeText(find("code").textContent).then(() => { target.textContent = "Copied"; }, () => {});
      setTimeout(() => { target.textContent = "Copy id"; }, 2000);
    }
  });
}
