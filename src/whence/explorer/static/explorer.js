// Pages are complete without this script, but for what changes something: buttons with `data-post`
// send JSON with the token; running questions tell how far they are; the review listens to keys.

const token = document.querySelector('meta[name="whence-token"]').content;
const told = document.getElementById("told");

// The token stays out of the history and of addresses that are copied.
const here = new URL(location.href);
if (here.searchParams.has("token")) {
  here.searchParams.delete("token");
  history.replaceState(null, "", here);
}

async function post(path, body) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json", "x-whence-token": token },
    body: JSON.stringify(body),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error([answer.error.found, answer.error.remedy].join(" ").trim());
  return answer;
}

async function ask(path, body, button) {
  if (button) button.disabled = true;
  try {
    return await post(path, body);
  } catch (error) {
    told.textContent = error instanceof TypeError
      ? "The server does not answer any more. Start whence explore again; nothing was lost."
      : error.message;
    return null;
  } finally {
    if (button) button.disabled = false;
  }
}

function goTo(answer) {
  if (answer) location.assign(answer.href);
}

for (const button of document.querySelectorAll("[data-post]")) {
  button.addEventListener("click", async () => {
    const body = JSON.parse(button.dataset.body ?? "{}");
    const answer = await ask(button.dataset.post, body, button);
    if (!answer) return;
    if ("follow" in button.dataset) goTo(answer);
    if ("reload" in button.dataset) location.reload();
  });
}

// ------------------------------------------------------------------------------ what if

const change = document.getElementById("change");

function ticked() {
  return new FormData(change).getAll("example").map(Number);
}

function count() {
  const amount = ticked().length;
  const output = change.querySelector("[data-ticked]");
  if (output) output.textContent = `${amount} ticked`;
  if (output) change.classList.toggle("has-ticks", amount > 0);
  for (const button of change.querySelectorAll("[data-needs]")) {
    button.disabled = button.dataset.needs === "one" ? amount !== 1 : amount === 0;
  }
}

function wanted(action) {
  const query = Number(change.dataset.query);
  const label = new FormData(change).get("label");
  if (action === "opponents") return { kind: "change", side_of: ["opponents", query] };
  if (action === "pixels") return { kind: "pixels", query, example: ticked()[0] };
  if (action === "remove") return { kind: "change", remove: ticked() };
  return { kind: "change", relabel: Object.fromEntries(ticked().map((one) => [one, label])) };
}

if (change) {
  document.addEventListener("change", count);
  change.addEventListener("submit", async (event) => {
    event.preventDefault();
    goTo(await ask("/api/questions", wanted(event.submitter.value), event.submitter));
  });
  count(); // the browser's back button brings ticks back
}

// -------------------------------------------------------------------- tokens of a text

async function finished(id) {
  for (;;) {
    const question = await (await fetch(`/api/questions/${id}`)).json();
    if (!["waiting", "running"].includes(question.state)) return question;
    await new Promise((done) => setTimeout(done, 400));
  }
}

// The text as its own page shows it; its scripts, if it had any, would not run.
async function highlightedText(address) {
  const page = await (await fetch(address)).text();
  const found = new DOMParser().parseFromString(page, "text/html").querySelector(".highlighted");
  return document.importNode(found, true);
}

async function findTokens(button) {
  const body = JSON.parse(button.dataset.body);
  const asked = await ask("/api/questions", body, button);
  if (!asked) return null;
  const question = await finished(asked.id);
  if (question.state === "done") return highlightedText(button.dataset.tokens);
  told.textContent = question.error?.found ?? "There is no answer; ask again.";
  return null;
}

function toggleTokens(button, isShown) {
  const effect = button.closest(".effect");
  effect.querySelector(".what").hidden = isShown;
  effect.querySelector(".highlighted").hidden = !isShown;
  button.setAttribute("aria-expanded", String(isShown));
}

for (const button of document.querySelectorAll("[data-tokens]")) {
  button.addEventListener("click", async () => {
    const effect = button.closest(".effect");
    if (!effect.querySelector(".highlighted")) {
      button.setAttribute("aria-busy", "true");
      const text = await findTokens(button).finally(() => button.removeAttribute("aria-busy"));
      if (!text) return;
      effect.querySelector(".what").after(text);
      walkTokens(text);
      text.insertAdjacentHTML("beforeend", '<p class="note"><a>These tokens in a table</a></p>');
      text.querySelector(".note a").href = button.dataset.tokens;
    }
    toggleTokens(button, button.getAttribute("aria-expanded") !== "true");
  });
}

// ---------------------------------------------------------------------- running questions

async function follow(box) {
  const bar = box.querySelector("progress");
  const label = box.querySelector("[data-label]");
  for (;;) {
    await new Promise((done) => setTimeout(done, 400));
    let question;
    try {
      question = await (await fetch(`/api/questions/${box.dataset.question}`)).json();
    } catch {
      label.textContent = "The server does not answer any more; what it has done is kept.";
      continue;
    }
    if (!["waiting", "running"].includes(question.state)) return location.reload();
    const steps = question.steps;
    if (!steps) continue;
    label.textContent = steps.total ? `${steps.label}: ${steps.done} of ${steps.total}` : `${steps.label} …`;
    if (steps.total) {
      bar.max = steps.total;
      bar.value = steps.done;
    }
  }
}

for (const box of document.querySelectorAll("[data-question]")) follow(box);

const state = document.querySelector('.state[data-state="loading"]');

async function waitForModel() {
  for (;;) {
    await new Promise((done) => setTimeout(done, 1500));
    try {
      const run = await (await fetch("/api/run")).json();
      if (run.live.state !== "loading") break;
    } catch {
      return;
    }
  }
  const isIdle = !document.querySelector("input:checked, [data-question]");
  if (isIdle) location.reload();
  else state.textContent = "Model at hand: load this page again";
}

if (state) waitForModel();

// ------------------------------------------------------------------------------- review

const review = document.getElementById("review");

let isDeciding = false; // a second key would decide on the same suspect again

async function decide(action, button) {
  if (isDeciding) return;
  isDeciding = true;
  const label = document.getElementById("new-label").value;
  const body = { position: Number(review.dataset.position), action, label };
  if (!(await ask("/api/review", body, button))) {
    isDeciding = false;
    return;
  }
  const at = action === "undo" ? review.dataset.at : review.dataset.after;
  location.assign(`/review?at=${at}`);
}

if (review) {
  const keys = { k: "keep", r: "relabel", d: "drop", u: "undo" };
  for (const button of review.querySelectorAll("[data-decide]")) {
    button.addEventListener("click", () => decide(button.dataset.decide, button));
  }
  addEventListener("keydown", (event) => {
    const isTyping = event.target.closest("input, select, textarea, audio") !== null;
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    const action = keys[event.key.toLowerCase()];
    if (action) decide(action);
  });
}

document.querySelector("[data-retrain]")?.addEventListener("click", async (event) => {
  goTo(await ask("/api/questions", { kind: "change", reviewed: true, retrain: true }, event.target));
});

// -------------------------------------------------------------------------------- arrows

addEventListener("keydown", (event) => {
  const relation = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  const isElsewhere = event.target.closest("input, select, textarea, audio, .chart, .scroll") !== null;
  if (!relation || isElsewhere || event.defaultPrevented || event.altKey) return;
  document.querySelector(`a[rel="${relation}"]`)?.click();
});
