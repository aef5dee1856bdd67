"use strict";
// Figures are stored with placeholder colours, replaced here by those of the current scheme.
const narrow = () => window.innerWidth < 600;

function colours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return { "#010101": read("--ink"), "#020202": read("--soft"), "#030303": read("--line"), "#040404": read("--paper"), "#050505": read("--law") };
}

function draw(figure) {
  const plot = figure.querySelector(".plot");
  let text = figure.querySelector("script").textContent;
  for (const [placeholder, colour] of Object.entries(colours())) text = text.replaceAll(placeholder, colour);
  const { data, layout } = JSON.parse(text);
  if (narrow()) {
    layout.font = { size: 11 };
    layout.margin = { l: 44, r: 8, t: 8, b: 40 };
  }
  return Plotly.react(plot, data, layout, { responsive: true, displayModeBar: false });
}

function drawAll() {
  return Promise.all([...document.querySelectorAll("figure:not([hidden])")].filter((f) => f.querySelector(".plot")).map(draw));
}

for (const list of document.querySelectorAll(".tabs")) {
  const tabs = [...list.children];
  for (const tab of tabs) {
    tab.addEventListener("click", () => {
      for (const other of tabs) {
        const chosen = other === tab;
        other.setAttribute("aria-selected", chosen);
        document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
      }
      draw(document.getElementById(tab.getAttribute("aria-controls")));
    });
  }
}

for (const button of document.querySelectorAll(".png")) {
  const plot = button.closest("figure").querySelector(".plot");
  button.addEventListener("click", () =>
    Plotly.downloadImage(plot, { format: "png", scale: 2, width: plot.clientWidth, height: plot.clientHeight, filename: button.dataset.name }));
}

const body = document.querySelector("#run-table tbody");
const heads = [...document.querySelectorAll("#run-table th")];
const key = (row, column) => row.cells[column].dataset.value;

function compare(a, b) {
  if (a === b) return 0;
  if (a === "") return 1; // missing values come last
  if (b === "") return -1;
  const [x, y] = [Number(a), Number(b)];
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
}

heads.forEach((head, column) => {
  head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].sort((a, b) => {
      const order = compare(key(a, column), key(b, column));
      const missing = key(a, column) === "" || key(b, column) === "";
      return down && !missing ? -order : order;
    });
    body.append(...rows);
  });
});

function applyFilter() {
  const words = filter.value.toLowerCase().split(/\s+/);
  let count = 0;
  for (const row of body.rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    count += row.hidden ? 0 : 1;
  }
  document.getElementById("shown").textContent = `${count} of ${body.rows.length} runs`;
}

const filter = document.getElementById("filter"); // of the page of a study
if (filter) {
  filter.addEventListener("input", applyFilter);
  applyFilter();
}

window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
window.addEventListener("beforeprint", () => { document.documentElement.classList.add("print"); drawAll(); });
window.addEventListener("afterprint", () => { document.documentElement.classList.remove("print"); drawAll(); });
drawAll().then(() => { document.documentElement.dataset.drawn = "yes"; });
