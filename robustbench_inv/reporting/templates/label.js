// Asks about one image after the other, keeps every answer in the browser, and writes them as CSV.
"use strict";
const page = JSON.parse(document.getElementById("page").textContent);
const at = (id) => document.getElementById(id);
const store = `invbench-label-${page.id}`;
let answers = []; // a class as a number, null for none or unclear; the next trial is answers.length

const recall = () => {
  try {
    const kept = JSON.parse(localStorage.getItem(store) ?? "{}");
    answers = (kept.answers ?? []).slice(0, page.trials.length);
    at("rater").value = kept.rater ?? "";
  } catch {
    at("trouble").textContent = "This browser keeps nothing: do not reload, download before you close.";
  }
};

const keep = () => {
  try {
    localStorage.setItem(store, JSON.stringify({ answers, rater: at("rater").value }));
  } catch {
    at("trouble").textContent = "This browser keeps nothing: do not reload, download before you close.";
  }
};

const caught = () => {
  const known = answers.map((label, i) => [label, page.trials[i].known]).filter(([, class_]) => class_ !== null);
  const right = known.filter(([label, class_]) => label === class_).length;
  return known.length ? `Of ${known.length} unchanged images that were mixed in, you named ${right} as they are labelled.` : "";
};

const show = () => {
  const { length } = answers;
  const total = page.trials.length;
  const done = length === total;
  at("trial").hidden = done;
  at("done").hidden = !done;
  if (!done) at("image").src = page.trials[length].png;
  at("caught").textContent = done ? caught() : "";
  at("progress").value = length;
  at("count").textContent = `${length} of ${total} labelled`;
  at("undo").disabled = length === 0;
  at("download").disabled = length === 0;
};

const answer = (label) => {
  if (answers.length === page.trials.length) return;
  answers.push(label);
  keep();
  show();
};

const undo = () => {
  answers.pop();
  keep();
  show();
};

const field = (value) => (/[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

const table = () => {
  const rater = at("rater").value.trim().replace(/^(?=[=+@-])/, "'"); // no formula in a spreadsheet
  const rows = answers.map((label, i) => {
    const { image, cell, sample, known } = page.trials[i];
    const row = { image, cell, sample, human_label: label ?? page.unclear, rater, known: known ?? "" };
    return page.columns.map((column) => field(String(row[column])));
  });
  return [page.columns, ...rows].map((row) => row.join(",")).join("\n") + "\n";
};

const download = () => {
  const link = document.createElement("a");
  const rater = at("rater").value.trim().replace(/[^A-Za-z0-9-]+/g, "-");
  link.href = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
  link.download = ["labels", page.id, rater].filter(Boolean).join("-") + ".csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
};

const flash = (button) => {
  button?.classList.add("pressed");
  setTimeout(() => button?.classList.remove("pressed"), 120);
};

document.addEventListener("keydown", (event) => {
  if (event.target === at("rater") || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const label = event.key === "u" || event.key === " " ? "" : event.key;
  const button = [...document.querySelectorAll("[data-label]")].find((each) => each.dataset.label === label);
  if (event.key === "Backspace") undo();
  else if (button) answer(label === "" ? null : Number(label));
  else return;
  event.preventDefault();
  flash(event.key === "Backspace" ? at("undo") : button);
});

for (const button of document.querySelectorAll("[data-label]")) {
  button.addEventListener("click", () => {
    answer(button.dataset.label === "" ? null : Number(button.dataset.label));
    button.blur(); // a space that follows is an answer, not a second click
  });
}
at("undo").addEventListener("click", () => { undo(); at("undo").blur(); });
at("download").addEventListener("click", download);
at("rater").addEventListener("input", keep);
at("classes").classList.toggle("named", page.classes.some((name, i) => name !== String(i)));
recall();
show();
