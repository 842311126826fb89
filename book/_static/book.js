// What scrolls sideways can be reached by keyboard, and inline formulas wider than their
// column scroll too. Which these are depends on the width of the screen.
addEventListener("load", async () => {
  const article = document.querySelector(".bd-article");
  if (!article) return;
  await window.MathJax?.startup?.promise;

  const mark = () => {
    for (const formula of article.querySelectorAll("span.math mjx-container")) {
      formula.classList.remove("wide-formula");
      const column = formula.closest("p, li, td, dd, figcaption") ?? article;
      formula.classList.toggle(
        "wide-formula",
        formula.getBoundingClientRect().right > column.getBoundingClientRect().right + 1,
      );
    }
    const boxes = article.querySelectorAll(
      "table, pre, figure, .cell_output, div.math, mjx-container, .pst-scrollable-table-container",
    );
    for (const box of boxes) {
      const scrolls =
        box.scrollWidth > box.clientWidth &&
        ["auto", "scroll"].includes(getComputedStyle(box).overflowX);
      if (scrolls) box.tabIndex = 0;
      else if (!box.closest("a, button")) box.removeAttribute("tabindex");
    }
  };

  // The column changes with the screen and with the sidebars, which slide.
  let width = -1;
  new ResizeObserver(() => {
    if (article.clientWidth !== width) requestAnimationFrame(mark);
    width = article.clientWidth;
  }).observe(article);
  article.addEventListener("toggle", mark, true); // folded cells
});
