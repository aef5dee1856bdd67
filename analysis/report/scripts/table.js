"use strict";
// The table of runs: sorted by its headings.
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

const filter = document.getElementById("filter");
filter.addEventListener("input", applyFilter);
applyFilter();
