/* Choose, sort and show features without a kernel. Rows of the index and the numbers to
   sort by are in the page; what is known of a feature lies in a file of its own, loaded
   as a script because a page opened from a disk may not fetch anything else. */
(() => {
  "use strict";
  const root = document.currentScript.closest(".cx-explorer");
  const find = (name) => root.querySelector(`[data-cx="${name}"]`);
  const { base, rows } = JSON.parse(find("rows").textContent);
  const view = find("view"), status = find("status"), count = find("count");
  const controls = ["block", "lineage", "claim", "sort", "search"];
  const body = root.querySelector(".cx-index tbody");
  const views = new Map(); // name: HTML of features seen
  let shown = []; // names in the order of the index
  let current = view.dataset.name; // asked for last

  for (const row of rows) {
    row.element = document.getElementById(row.name);
    row.text = row.element.textContent.toLowerCase();
  }
  const byName = new Map(rows.map((row) => [row.name, row]));

  /* Size by which a row is sorted; null is unknown and comes last. */
  const size = (row, sort, lineage) =>
    sort === "cds" && lineage ? row.lineages[lineage] : row.sizes[sort];

  const arrange = () => {
    const [block, lineage, claim, sort, search] = controls.map((x) => find(x).value);
    const words = search.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = rows.filter(
      (row) =>
        (block === "" || row.block === +block) &&
        (lineage === "" || row.behind.includes(lineage)) &&
        (claim === "" || row.claims.includes(+claim)) &&
        words.every((word) => row.text.includes(word)),
    );
    if (sort !== "number") {
      const value = (row) => size(row, sort, lineage) ?? -1;
      kept.sort((a, b) => value(b) - value(a));
    } else {
      kept.sort((a, b) => a.block - b.block || a.feature - b.feature);
    }
    body.replaceChildren(...kept.map((row) => row.element));
    shown = kept.map((row) => row.name);
    count.textContent = `${shown.length} of ${rows.length} features`;
    mark();
  };

  const mark = () => {
    const at = shown.indexOf(current);
    for (const row of rows) {
      const here = row.name === current;
      row.element.classList.toggle("cx-here", here);
      const link = row.element.querySelector("a");
      if (here) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    find("previous").disabled = at < 1;
    find("next").disabled = shown.length === 0 || at === shown.length - 1;
    find("page").href = `${base}${current}.html`;
  };

  const place = (name, html) => {
    views.set(name, html);
    if (name !== current) return; // another one was chosen meanwhile
    view.innerHTML = html;
    view.dataset.name = name;
    status.textContent = `Shown: ${byName.get(name).label}`;
  };
  globalThis.receiveFeature = place;

  const show = (name) => {
    current = name;
    mark();
    if (views.has(name)) {
      place(name, views.get(name));
      return;
    }
    status.textContent = `Loading ${byName.get(name).label} …`;
    const script = document.createElement("script");
    script.src = `${base}data/${name}.js`;
    script.onload = () => script.remove();
    script.onerror = () => {
      if (name === current) status.textContent = `${script.src} is missing`;
    };
    document.head.append(script);
  };

  const choose = (name) => {
    history.replaceState(null, "", `#${name}`); // a link to what is shown
    show(name);
  };
  const step = (by) => {
    const at = shown.indexOf(current) + by;
    if (shown[at]) choose(shown[at]);
  };

  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (event.ctrlKey || event.metaKey || event.shiftKey || !row) return;
    event.preventDefault();
    choose(row.id);
  });
  for (const name of controls) find(name).addEventListener("input", arrange);
  find("previous").addEventListener("click", () => step(-1));
  find("next").addEventListener("click", () => step(1));
  const follow = () => {
    const name = location.hash.slice(1);
    if (byName.has(name) && name !== current) show(name);
  };
  addEventListener("hashchange", follow);

  for (const part of root.querySelectorAll("[data-cx-script]")) part.hidden = false;
  arrange();
  follow();
})();
