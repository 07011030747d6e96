// A heading that is clicked sorts its table; a second click turns the order round. Long tables get a field that
// keeps the rows with all of its words.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const value = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.sort ?? (cell.firstChild ? cell.firstChild.textContent : "");
    const number = text.trim() === "∞" ? Infinity : parseFloat(text.replaceAll(",", ""));
    return Number.isNaN(number) ? cell.textContent.trim() : number;
  };
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const compare = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
      const keyed = [...body.rows].map((row) => [value(row, column), row]);
      const rows = keyed.sort(([a], [b]) => compare(a, b)).map(([, row]) => row);
      body.append(...(descending ? rows.reverse() : rows));
    });
  });
}
const FEW_ROWS = 5;
for (const table of document.querySelectorAll("table.sortable, table.checks")) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length <= FEW_ROWS) continue;
  const box = document.createElement("p"), label = document.createElement("label");
  const field = document.createElement("input"), count = document.createElement("span");
  box.className = "filter";
  field.type = "search";
  count.className = "quiet";
  count.setAttribute("role", "status");
  label.append("Filter rows ", field);
  box.append(label, " ", count);
  (table.closest(".scroll") ?? table).before(box);
  const texts = rows.map((row) => row.textContent.toLowerCase());
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !words.every((word) => texts[i].includes(word));
      shown += row.hidden ? 0 : 1;
    });
    count.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
  });
}
