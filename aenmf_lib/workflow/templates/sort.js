// Sorts a table when a column name is selected: numbers as numbers, empty cells last, again in reverse.
document.querySelectorAll("table.sortable th").forEach((head) => {
  const sort = () => {
    const body = head.closest("table").tBodies[0], column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    const text = (row) => (row.cells[column] ? row.cells[column].textContent.trim() : "");
    const order = (a, b) => {
      const [x, y] = [text(a), text(b)];
      if (!x || !y) return !x - !y;
      const difference = head.classList.contains("n") ? parseFloat(x) - parseFloat(y) : x.localeCompare(y);
      return down ? -difference : difference;
    };
    body.append(...[...body.rows].sort(order));
    head.parentElement.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
  };
  head.tabIndex = 0;
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
});
