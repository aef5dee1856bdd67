"use strict";
// Which run the reader has chosen, which one the pointer is on, and which ones the filters keep.
// The document gets the events "run-chosen", "run-pointed" and "runs-filtered".
const runById = new Map(pageData.runs.map((run) => [run.id, run]));
const selection = { chosen: null, pointed: null, kept: new Set(runById.keys()), left: false };
const announce = (event) => document.dispatchEvent(new CustomEvent(event));

// Choose a run everywhere on the page; null chooses none. An unknown run changes nothing.
function chooseRun(id) {
  if (id !== null && !runById.has(id)) return;
  selection.chosen = id;
  selection.pointed = null;
  remember("run", id);
  announce("run-chosen");
}

// Light up a run for as long as the pointer is on it. The panel opens on the other side.
function pointAtRun(id, pointer) {
  const known = runById.has(id) ? id : null;
  if (known === selection.pointed) return;
  selection.pointed = known;
  if (known && pointer && !selection.chosen) selection.left = pointer.clientX > window.innerWidth / 2;
  announce("run-pointed");
}

// Choose the next run in the order of compute among those that the filters keep.
function stepRun(step) {
  const order = [...runById.keys()].filter((id) => selection.kept.has(id) || id === selection.chosen);
  chooseRun(order[Math.min(Math.max(order.indexOf(selection.chosen) + step, 0), order.length - 1)]);
}

{
  const runAt = (event) => event.target.closest?.("[data-run]")?.dataset.run ?? null;
  document.addEventListener("click", (event) => {
    const id = runAt(event);
    if (id) chooseRun(id);
  });
  const inFigure = (element) => Boolean(element?.closest?.(".plot"));
  document.addEventListener("pointerover", (event) => {
    if (event.pointerType !== "mouse") return;
    if (inFigure(event.target) && inFigure(event.relatedTarget)) return; // its points say so themselves
    pointAtRun(runAt(event), event);
  });
  document.addEventListener("keydown", (event) => {
    if (!selection.chosen || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select, textarea")) return;
    if (event.key === "Escape") chooseRun(null);
    else if (event.key === "ArrowLeft") stepRun(-1);
    else if (event.key === "ArrowRight") stepRun(1);
    else return;
    event.preventDefault();
  });
  document.addEventListener("run-chosen", () => {
    for (const name of document.querySelectorAll(".name[data-run]")) {
      name.setAttribute("aria-pressed", name.dataset.run === selection.chosen);
    }
  });

  const restore = () => { if ((pageState.get("run") ?? null) !== selection.chosen) chooseRun(pageState.get("run") ?? null); };
  window.addEventListener("hashchange", restore);
  document.addEventListener("DOMContentLoaded", restore); // once every script listens
}
