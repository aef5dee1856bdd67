"use strict";
// The contents of a figure as a table of exactly what is drawn, made when the reader asks for it.
function toRows(figure) {
  const { data, layout } = JSON.parse(figure.querySelector("script").textContent);
  const titleOf = (trace, letter) => {
    const own = layout[`${letter}axis${(trace[`${letter}axis`] ?? letter).slice(1)}`]; // of its panel
    return own?.title?.text || layout[`${letter}axis`]?.title?.text || letter;
  };
  return data.flatMap((trace) => {
    const [x, y] = [titleOf(trace, "x"), titleOf(trace, "y")];
    const { color, colorbar } = trace.marker ?? {};
    return trace.x.map((value, at) => {
      const of = (values) => (Array.isArray(values) ? values[at] : values);
      const row = { series: trace.name ?? "", run_id: of(trace.meta) ?? "", [x]: value, [y]: trace.y ? trace.y[at] : trace.name };
      if (trace.customdata) row.value = of(trace.customdata);
      if (colorbar && Array.isArray(color)) row[colorbar.title.text] = color[at];
      for (const [bars, label] of [[trace.error_x, x], [trace.error_y, y]]) {
        if (!bars?.array) continue;
        row[`${label}: plus`] = bars.array[at];
        row[`${label}: minus`] = (bars.arrayminus ?? bars.array)[at];
      }
      return row;
    });
  });
}

function toCsv(rows) {
  const columns = [...new Set(rows.flatMap(Object.keys))];
  const cell = (value) => {
    const text = typeof value === "number" ? String(Number(value.toPrecision(8))) : String(value ?? "");
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [columns, ...rows.map((row) => columns.map((column) => row[column]))].map((line) => line.map(cell).join(",") + "\n").join("");
}

for (const link of document.querySelectorAll("figcaption .csv")) {
  link.addEventListener("click", () => {
    URL.revokeObjectURL(link.href);
    link.href = URL.createObjectURL(new Blob([toCsv(toRows(link.closest("figure")))], { type: "text/csv" }));
  });
}
