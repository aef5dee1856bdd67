"use strict";
// The table of runs: sorted by its headings, filtered for the whole page, and a way to choose runs
// by keyboard.
{
  const table = document.getElementById("run-table");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const form = document.getElementById("filters");
  const controls = [...form.querySelectorAll("select, input")];
  const pill = document.getElementById("filtered");
  const key = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const has = (run, key, value) => (key === "tag" ? run.tag.split(", ").includes(value) : run[key] === value);
  const visible = () => [...body.rows].filter((row) => !row.hidden);
  const rowOf = (id) => body.querySelector(`[data-run="${CSS.escape(id)}"]`);

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
      allowTab();
    });
  });

  // Tab stops at one row only: the chosen one if it is shown, otherwise the first.
  function allowTab() {
    const rows = visible();
    const stop = rows.find((row) => row.dataset.run === selection.chosen) ?? rows[0];
    for (const row of body.rows) row.tabIndex = row === stop ? 0 : -1;
  }

  function filter() {
    const groups = controls.filter((control) => control.matches("select") && control.value);
    const words = form.elements.find.value.toLowerCase().split(/\s+/);
    selection.kept.clear();
    for (const row of body.rows) {
      const run = runById.get(row.dataset.run);
      const text = `${row.textContent} ${run.id} ${run.label}`.toLowerCase();
      row.hidden = !(groups.every(({ name, value }) => has(run, name.slice("show-".length), value)) && words.every((word) => text.includes(word)));
      if (!row.hidden) selection.kept.add(run.id);
    }
    const count = `${selection.kept.size} of ${runById.size} runs`;
    const active = controls.some((control) => control.value);
    document.getElementById("shown").textContent = count;
    form.querySelector("[type=reset]").hidden = !active;
    pill.firstElementChild.textContent = `Filtered: ${count}`;
    pill.hidden = !active;
    allowTab();
    announce("runs-filtered");
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    for (const { name, value } of controls) remember(name, value || null);
    filter();
  });
  form.addEventListener("reset", () => {
    for (const { name } of controls) remember(name, null);
    setTimeout(filter); // after the browser has emptied the controls
  });
  pill.lastElementChild.addEventListener("click", () => form.reset());

  function restore() {
    for (const control of controls) control.value = pageState.get(control.name) ?? "";
    filter();
  }
  window.addEventListener("hashchange", restore);

  body.addEventListener("keydown", (event) => {
    const rows = visible();
    const at = rows.indexOf(event.target);
    if (at < 0) return;
    const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1, Enter: at, " ": at }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const row = rows[Math.min(Math.max(next, 0), rows.length - 1)];
    chooseRun(row.dataset.run);
    row.focus();
  });

  document.addEventListener("run-chosen", () => {
    for (const row of body.rows) row.setAttribute("aria-selected", row.dataset.run === selection.chosen);
    allowTab();
    const row = selection.chosen && rowOf(selection.chosen);
    if (!row || row.hidden || table.contains(document.activeElement)) return;
    const frame = table.parentElement; // scrolls within itself: the page stays where it is
    frame.scrollTop = row.offsetTop - frame.clientHeight / 2;
  });
  document.addEventListener("run-pointed", () => {
    body.querySelector(".pointed")?.classList.remove("pointed");
    if (selection.pointed) rowOf(selection.pointed)?.classList.add("pointed");
  });
  restore();
}
