"use strict";
// Figures are stored with placeholder colours, replaced here by those of the current scheme.
const narrow = () => window.innerWidth < 600;

function colours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return { "#010101": read("--ink"), "#020202": read("--soft"), "#030303": read("--line"), "#040404": read("--paper"), "#050505": read("--law") };
}

// Draw a figure; the document then gets the event "figure-drawn", whose target is the figure.
async function draw(figure) {
  const plot = figure.querySelector(".plot");
  let text = figure.querySelector("script").textContent;
  for (const [placeholder, colour] of Object.entries(colours())) text = text.replaceAll(placeholder, colour);
  const { data, layout } = JSON.parse(text);
  if (window.matchMedia("(pointer: coarse)").matches) layout.dragmode = false; // fingers scroll the page
  if (narrow()) {
    layout.font = { size: 11 };
    layout.margin = { l: 44, r: 8, t: 8, b: 40 };
  }
  await Plotly.react(plot, data, layout, { responsive: true, displayModeBar: false });
  figure.dispatchEvent(new CustomEvent("figure-drawn", { bubbles: true }));
}

const drawable = () => [...document.querySelectorAll("figure:not([hidden])")].filter((figure) => figure.querySelector(".plot"));
const drawAll = () => Promise.all(drawable().map(draw));

// What the reader sees comes first; the rest follows between frames.
async function drawInOrder() {
  const inView = (figure) => { const box = figure.getBoundingClientRect(); return box.top < window.innerHeight && box.bottom > 0; };
  const [first, rest] = [drawable().filter(inView), drawable().filter((figure) => !inView(figure))];
  await Promise.all(first.map(draw));
  document.documentElement.dataset.ready = "yes";
  for (const figure of rest) {
    await new Promise((next) => setTimeout(next));
    await draw(figure);
  }
  document.documentElement.dataset.drawn = "yes";
}

for (const list of document.querySelectorAll('[role="tablist"]')) {
  const tabs = [...list.children];
  const panel = (tab) => document.getElementById(tab.getAttribute("aria-controls"));
  const open = (chosen) => {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", tab === chosen);
      tab.tabIndex = tab === chosen ? 0 : -1;
      panel(tab).hidden = tab !== chosen;
    }
    draw(panel(chosen));
  };
  for (const tab of tabs) tab.addEventListener("click", () => open(tab));
  list.addEventListener("keydown", (event) => {
    const at = tabs.indexOf(event.target);
    const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: -1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const tab = tabs.at(next % tabs.length);
    open(tab);
    tab.focus();
  });
}

for (const button of document.querySelectorAll(".png")) {
  const plot = button.closest("figure").querySelector(".plot");
  button.addEventListener("click", () =>
    Plotly.downloadImage(plot, { format: "png", scale: 2, width: plot.clientWidth, height: plot.clientHeight, filename: button.dataset.name }));
}

window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
window.addEventListener("beforeprint", () => { document.documentElement.classList.add("print"); drawAll(); });
window.addEventListener("afterprint", () => { document.documentElement.classList.remove("print"); drawAll(); });
drawInOrder();
