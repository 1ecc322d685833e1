"use strict";
// The page is complete without this script. It adds words to the marks of the charts, for pointer
// and keyboard; opens a folded query that a link points to; and unfolds everything for paper.

const tip = document.createElement("div");
tip.className = "tip";
tip.setAttribute("role", "status");
document.body.append(tip);

let current = null;

function point(mark) {
  current?.classList.remove("is-current");
  current = mark;
  tip.textContent = mark?.getAttribute("aria-label") ?? mark?.title ?? "";
  if (!mark) return;
  mark.classList.add("is-current");
  tip.style.left = "0"; // or the edge of the page would narrow it
  const box = mark.getBoundingClientRect();
  const widest = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const left = box.left + box.width / 2 - tip.offsetWidth / 2;
  tip.style.left = `${window.scrollX + Math.max(8, Math.min(left, widest))}px`;
  tip.style.top = `${window.scrollY + box.top - tip.offsetHeight - 8}px`;
}

// Arrows go from mark to mark of a box, in the order of `inOrder`.
function walk(box, inOrder) {
  box.setAttribute("role", "group"); // an image would hide its parts from screen readers
  box.setAttribute("tabindex", "0");
  box.addEventListener("blur", () => point(null));
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") point(null);
    const marks = step ? inOrder() : [];
    if (marks.length === 0) return;
    event.preventDefault();
    const at = marks.indexOf(current);
    const next = at < 0 && step < 0 ? marks.length - 1 : at + step;
    point(marks[(next + marks.length) % marks.length]);
  });
}

for (const chart of document.querySelectorAll(".chart")) {
  const isMark = '[aria-roledescription="point"], [aria-roledescription="bar"]';
  const marks = [...chart.querySelectorAll(isMark)];
  const middle = (mark) => mark.getBoundingClientRect().left;
  walk(chart, () => marks.sort((one, other) => middle(one) - middle(other)));
  chart.addEventListener("pointerover", (event) => point(event.target.closest(isMark)));
  chart.addEventListener("pointerleave", () => point(null));
}

// The pointer finds the effect of a token in its title.
function walkTokens(root) {
  for (const text of root.querySelectorAll(".tokens")) {
    walk(text, () => [...text.querySelectorAll(".token")]);
  }
}
walkTokens(document);

function unfoldTarget() {
  const target = document.getElementById(location.hash.slice(1));
  if (!(target instanceof HTMLDetailsElement)) return;
  target.open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", unfoldTarget);
unfoldTarget();

let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("details:not([open])")];
  for (const details of unfolded) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of unfolded) details.open = false;
});
