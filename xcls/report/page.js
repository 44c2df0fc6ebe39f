const missing = text => text === "" || text === "–";
// A cell of numbers begins with one: 0.677 ± 0.019, −3.18, 1,759 (0.92×).
const number = /^[-+−]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?(e[-+]?\d+)?(?=$|[\s×%*±(])/i;
const valueOf = text => number.test(text) ? Number(number.exec(text)[0].replaceAll(",", "").replace("−", "-")) : NaN;

for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const cells = [...body.rows].map(row => row.cells[column]), texts = cells.map(cell => cell.textContent.trim());
    const filled = texts.filter(text => !missing(text)), numeric = filled.length > 0 && filled.every(text => number.test(text));
    if (numeric) for (const cell of [head, ...cells]) cell.classList.add("num");
    const rows = texts.map((text, place) => [missing(text), numeric ? valueOf(text) : text, body.rows[place]]);
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort by this column";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down === -1 ? "descending" : "ascending");
      const compare = (a, b) => numeric ? a - b : a.localeCompare(b, "en", {numeric: true});
      rows.sort(([gap, a], [hole, b]) => gap || hole ? gap - hole : down * compare(a, b));
      body.append(...rows.map(row => row[2]));
    });
  });
}

let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details.prints:not([open])")];
  opened.forEach(part => part.open = true);
});
addEventListener("afterprint", () => opened.forEach(part => part.open = false));
