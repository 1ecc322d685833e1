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
  tip.textContent = mark?.getAttribute("aria-label") ?? "";
  if (!mark) return;
  mark.classList.add("is-current");
  tip.style.left = "0"; // or the edge of the page would narrow it
  const box = mark.getBoundingClientRect();
  const widest = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const left = box.left + box.width / 2 - tip.offsetWidth / 2;
  tip.style.left = `${window.scrollX + Math.max(8, Math.min(left, widest))}px`;
  tip.style.top = `${window.scrollY + box.top - tip.offsetHeight - 8}px`;
}

for (const chart of document.querySelectorAll(".chart")) {
  const isMark = '[aria-roledescription="point"], [aria-roledescription="bar"]';
  const marks = [...chart.querySelectorAll(isMark)];
  const middle = (mark) => mark.getBoundingClientRect().left;
  chart.setAttribute("role", "group"); // an image would hide its parts from screen readers
  chart.setAttribute("tabindex", "0");
  chart.addEventListener("pointerover", (event) => point(event.target.closest(isMark)));
  chart.addEventListener("pointerleave", () => point(null));
  chart.addEventListener("blur", () => point(null));
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") point(null);
    if (!step || marks.length === 0) return;
    event.preventDefault();
    marks.sort((one, other) => middle(one) - middle(other));
    const next = marks.indexOf(current) + step;
    point(marks[(next + marks.length) % marks.length]);
  });
}

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
