"use strict";
{
  const data = JSON.parse(document.getElementById("data").textContent);

  const quoted = (cell) => {
    const text = cell === null ? "" : String(cell);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const asCsv = ({ columns, rows }) => [columns, ...rows].map((row) => row.map(quoted).join(",")).join("\r\n") + "\r\n";
  const asRecords = ({ columns, rows }) =>
    rows.map((row) => Object.fromEntries(row.map((cell, place) => [columns[place], cell])));
  const forms = {
    csv: (key) => [`${key}.csv`, "text/csv", asCsv(data[key])],
    json: (key) => [`${key}.json`, "application/json", JSON.stringify(asRecords(data[key]), null, 1)],
    everything: () => {
      const all = Object.fromEntries(Object.entries(data).map(([key, found]) => [key, asRecords(found)]));
      return ["report.json", "application/json", JSON.stringify(all, null, 1)];
    },
  };

  const download = (name, type, text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if (!("value" in cell.dataset)) return cell.textContent;
    return cell.dataset.value === "" ? NaN : Number(cell.dataset.value);
  };
  // Cells without a value stay last in both directions.
  const compare = (a, b, sign) => {
    if (typeof a === "string") return sign * a.localeCompare(b, undefined, { numeric: true });
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return sign * (a - b);
  };
  const sort = (header) => {
    const order = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of header.parentElement.children) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", order);
    const body = header.closest("table").tBodies[0];
    const column = header.cellIndex;
    const sign = order === "ascending" ? 1 : -1;
    body.append(...[...body.rows].sort((a, b) => compare(valueOf(a, column), valueOf(b, column), sign)));
  };

  document.addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (button?.dataset.form) download(...forms[button.dataset.form](button.dataset.key));
    else if (button?.closest("th")) sort(button.closest("th"));
  });

  addEventListener("beforeprint", () => {
    for (const fold of document.querySelectorAll("details")) fold.open = true;
  });
}
