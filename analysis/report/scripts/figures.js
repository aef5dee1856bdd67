"use strict";
// Figures are stored with placeholder colours, replaced here by those of the current scheme.
const narrow = () => window.innerWidth < 600;

function colours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return { "#010101": read("--ink"), "#020202": read("--soft"), "#030303": read("--line"), "#040404": read("--paper"), "#050505": read("--law") };
}

// The data and layout of a figure, in the colours of the current scheme.
function contents(figure) {
  let text = figure.querySelector("script").textContent;
  for (const [placeholder, colour] of Object.entries(colours())) text = text.replaceAll(placeholder, colour);
  return JSON.parse(text);
}

// Draw a figure; the document then gets the event "figure-drawn", whose target is the figure.
async function draw(figure) {
  const plot = figure.querySelector(".plot");
  const { data, layout } = contents(figure);
  if (window.matchMedia("(pointer: coarse)").matches) layout.dragmode = false; // fingers scroll the page
  if (narrow()) {
    layout.font = { size: 11 };
    layout.margin = { l: 54, r: 8, t: 8, b: 50 }; // as in theme.py: less room would draw most figures twice
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

// A figure as HTML to paste into another page that has loaded plotly.js.
function fragment(figure, name) {
  const { data, layout } = contents(figure);
  const text = (plain) => JSON.stringify(plain).replaceAll("</", "<\\/");
  return `<div id="${name}" style="height: ${layout.height}px"></div>\n<script>Plotly.newPlot("${name}", ${text(data)}, ${text(layout)}, { responsive: true });</scr` + "ipt>\n";
}

function save(file, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/html" }));
  link.download = file;
  link.click();
  URL.revokeObjectURL(link.href);
}

for (const button of document.querySelectorAll(".save")) {
  const figure = button.closest("figure");
  const { format, name } = button.dataset;
  button.addEventListener("click", () => {
    const plot = figure.querySelector(".plot");
    if (format === "html") save(`${name}.html`, fragment(figure, name));
    else Plotly.downloadImage(plot, { format, scale: format === "png" ? 2 : 1, width: plot.clientWidth, height: plot.clientHeight, filename: name });
  });
}

window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
window.addEventListener("beforeprint", () => { document.documentElement.classList.add("print"); drawAll(); });
window.addEventListener("afterprint", () => { document.documentElement.classList.remove("print"); drawAll(); });
drawInOrder();
