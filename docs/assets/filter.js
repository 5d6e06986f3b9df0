// A box above the tables of the page "My model did not quantize": only rows with all of its words, or of a pasted message, are shown.
function setUp() {
  const box = document.getElementById("message-filter");
  if (!box || box.dataset.ready) return;
  box.dataset.ready = "yes";
  box.hidden = false;
  const plain = text => text.toLowerCase().replace(/[^\p{L}\p{N}-]+/gu, " ").trim();
  const rows = [...document.querySelectorAll("article tbody tr")].map(row => ({
    row, message: plain(row.cells[0].textContent).split(" … ").join(" "), all: plain(row.textContent),
  }));
  const count = document.getElementById("message-count");
  function filter() {
    const asked = plain(box.value), words = asked.split(" ").filter(Boolean);
    let shown = 0;
    for (const {row, message, all} of rows) {
      const pasted = message.length > 5 && asked.includes(message);
      const found = pasted || words.every(word => all.includes(word));
      row.classList.toggle("filtered-out", !found);
      shown += found;
    }
    for (const table of document.querySelectorAll("article table")) {
      const empty = ![...table.tBodies[0].rows].some(row => !row.classList.contains("filtered-out"));
      const block = table.closest(".md-typeset__scrollwrap") || table;
      block.classList.toggle("filtered-out", empty);
      let heading = block.previousElementSibling;
      while (heading && heading.tagName !== "H2") heading = heading.previousElementSibling;
      if (heading) heading.classList.toggle("filtered-out", empty);
    }
    count.textContent = asked ? `${shown} of ${rows.length} messages` : "";
  }
  box.addEventListener("input", filter);
  if (location.hash.startsWith("#message=")) box.value = decodeURIComponent(location.hash.slice(9));
  filter();
}
document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", setUp) : setUp();
