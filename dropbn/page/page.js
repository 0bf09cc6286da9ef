"use strict";
const text = new Intl.Collator(undefined, {numeric: true});

function sort(table, column, direction, numeric) {
  const rows = [...table.tBodies[0].rows];
  for (const [place, row] of rows.entries()) row.dataset.place ??= place;
  rows.sort((one, other) => {
    const places = one.dataset.place - other.dataset.place;
    if (!direction) return places;
    const [a, b] = [one, other].map(row => row.cells[column].dataset.value);
    if (a === "" || b === "") return (a === "") - (b === "") || places;
    return direction * (numeric ? Number(a) - Number(b) || 0 : text.compare(a, b)) || places;
  });
  table.tBodies[0].append(...rows);
}

for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const next = {ascending: "descending", descending: ""}[head.getAttribute("aria-sort")] ?? "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    if (next) head.setAttribute("aria-sort", next);
    const direction = {ascending: 1, descending: -1, "": 0}[next];
    sort(head.closest("table"), head.cellIndex, direction, head.classList.contains("number"));
  });
}
