"use strict";

// Counts of runs and problems, and intervals of whole arms, which the library computed: see dphlib/report/explorer.py.
const data = JSON.parse(document.getElementById("data").textContent);
const BASE = data.methods.findIndex((method) => method.id === "base");
const GROUPS = { paper: "The paper's", controls: "Controls and rivals", studies: "Other settings and domains" };
const VERDICTS = { correct: ["supported", "✔"], wrong: ["not-supported", "✘"], infra_error: ["none", "–"] };
const NARROW = 720;

const $ = (id) => document.getElementById(id);
const escapes = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escaped = (text) => String(text).replace(/[&<>"']/g, (mark) => escapes[mark]);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const sum = (values) => values.reduce((total, value) => total + value, 0);
const fixed = (value) => (Math.round(10 * value) / 10 + 0).toFixed(1);

// --- What is chosen

const state = { suite: 0, k: 8, methods: new Set(), seeds: new Set(), problem: 0 };
const everySeed = [
  ...new Set(data.suites.flatMap((suite) => Object.entries(suite.arms).flatMap(([number, arm]) => (number == BASE ? [] : arm.seeds)))),
].sort((a, b) => a - b);

const suite = () => data.suites[state.suite];
const shown = () => [...data.methods.keys()].filter((number) => state.methods.has(number) && suite().arms[number]);

/** Rows of an arm's runs that are chosen; of the base, of the models that a chosen run started from. */
function chosenRuns(number) {
  const arm = suite().arms[number];
  const bases = new Set([...state.seeds].map((seed) => data.bases[seed]));
  const wanted = (run) => (number === BASE ? bases.has(arm.bases[run]) : state.seeds.has(arm.seeds[run]));
  return [...arm.seeds.keys()].filter(wanted);
}

// --- Counts and means

const place = Object.fromEntries([...data.digits].map((digit, value) => [digit, value]));

function decode(code, length) {
  if (typeof code === "number") return new Array(length).fill(code);
  const width = Number(code[0]);
  return Array.from({ length }, (_, entry) => {
    let value = 0;
    for (let digit = 0; digit < width; digit++) value = 64 * value + place[code[1 + entry * width + digit]];
    return value;
  });
}

const kept = new Map();
function once(key, make) {
  if (!kept.has(key)) kept.set(key, make());
  return kept.get(key);
}

/** A column of counts of one run of an arm, by problem. */
function column(number, run, name, which) {
  const arm = suite().arms[number];
  const problems = suite().problems.length;
  const code = which === undefined ? arm[name] : arm[name][which];
  const all = once([state.suite, number, name, which].join(), () => decode(code, arm.seeds.length * problems));
  return all.slice(run * problems, (run + 1) * problems);
}

/** 1 - C(n - c, k) / C(n, k). */
function passAtK(n, c, k) {
  if (n - c < k) return 1;
  let miss = 1;
  for (let i = 0; i < k; i++) miss *= (n - c - i) / (n - i);
  return 1 - miss;
}

/** Pass@k of each problem, of one run of an arm. */
function passes(number, run, k) {
  return once(["pass", state.suite, number, run, k].join(), () => {
    const [n, correct] = [column(number, run, "n"), column(number, run, "correct")];
    return n.map((drawn, problem) => passAtK(drawn, correct[problem], k));
  });
}

/** The base's row from which a run of an arm started. */
const baseRow = (number, run) => suite().arms[BASE].bases.indexOf(suite().arms[number].bases[run]);

/** The mean over runs in which every base model counts alike. */
function overBases(number, runs, of) {
  const byBase = new Map();
  for (const run of runs) {
    const base = suite().arms[number].bases[run];
    byBase.set(base, [...(byBase.get(base) || []), of(run)]);
  }
  return mean([...byBase.values()].map(mean));
}

/** Expected problems of a run with k answers of it and of its base: solved by the base, by both, by the run alone. */
function split(number, run, k) {
  const base = passes(BASE, baseRow(number, run), k);
  const problems = base.length;
  if (number === BASE) {
    const both = 2 * sum(base) - sum(passes(BASE, run, 2 * k));
    return { problems, solved: sum(base), both, gained: sum(base) - both };
  }
  const tuned = passes(number, run, k);
  const both = sum(base.map((b, problem) => b * tuned[problem]));
  return { problems, solved: sum(base), both, gained: sum(tuned) - both };
}

/** What a measure says of an arm: mean of the chosen runs, each of them, the interval where all are chosen. Per cent. */
const MEASURES = {
  pass: (number, k) => (run) => [100 * mean(passes(number, run, k)), 1],
  minus: (number, k) => (run) => [100 * (mean(passes(number, run, k)) - mean(passes(BASE, baseRow(number, run), k))), 1],
  greedy: (number) => (run) => [suite().arms[number].greedy[run], 1],
  keep: (number, k) => (run) => {
    const { solved, both } = split(number, run, k);
    return [100 * both, solved];
  },
  explore: (number, k) => (run) => {
    const { problems, solved, gained } = split(number, run, k);
    return [100 * gained, problems - solved];
  },
};

function measure(name, number, k) {
  const arm = suite().arms[number];
  const runs = chosenRuns(number);
  if (!runs.length || (name === "greedy" && !arm.greedy.length)) return null;
  const parts = MEASURES[name](number, k);
  const whole = overBases(number, runs, (run) => parts(run)[1]);
  if (!(whole > 0)) return null;
  const all = runs.length === arm.seeds.length;
  const ends = name === "greedy" ? arm.ends.greedy : arm.ends[name][suite().ks.indexOf(k)];
  return {
    value: overBases(number, runs, (run) => parts(run)[0]) / whole,
    dots: runs.map((run) => parts(run)[0] / parts(run)[1]).filter(Number.isFinite),
    ends: all ? ends : null,
    unknown: all && !ends,
  };
}

// --- Drawing

function swatch({ colour, dashes }) {
  return `<svg class="swatch" width="32" height="14" viewBox="0 0 32 14" aria-hidden="true"><path d="M2 7H30" stroke="${colour}"
    stroke-width="2" stroke-dasharray="${dashes}"/><circle cx="16" cy="7" r="3.2" fill="${colour}"/></svg>`;
}

const stripWidth = () => (window.innerWidth < NARROW ? 130 : 160);

function along([low, high]) {
  const width = stripWidth();
  return (value) => (5 + ((width - 10) * (value - low)) / (high - low)).toFixed(1);
}

/** One number on an axis that all rows share: interval, runs, mean. */
function strip(got, range, colour) {
  const at = along(range);
  const zero = range[0] < 0 ? `<path d="M${at(0)} 2V24" stroke="var(--soft)"/>` : "";
  const bar = got.ends ? `<path d="M${at(got.ends[0])} 13H${at(got.ends[1])}" stroke="${colour}" stroke-width="7" opacity=".35"/>` : "";
  const dots = got.dots.map((dot) => `<circle cx="${at(dot)}" cy="13" r="2.4" fill="var(--card)" stroke="${colour}"/>`).join("");
  return `<svg width="${stripWidth()}" height="26" aria-hidden="true"><path d="M${at(range[0])} 13H${at(range[1])}"
    stroke="var(--line)"/>${zero}${bar}${dots}<circle cx="${at(got.value)}" cy="13" r="4.6" fill="${colour}" stroke="var(--card)"/></svg>`;
}

function axis(range) {
  const at = along(range);
  const [low, high] = range;
  const ticks = [low, (low + high) / 2, high];
  const anchors = ["start", "middle", "end"];
  return `<svg class="axis" width="${stripWidth()}" height="20" aria-hidden="true">${ticks
    .map((tick, i) => `<text x="${i === 1 ? at(tick) : i ? stripWidth() : 0}" y="14" text-anchor="${anchors[i]}">${tick}</text>`)
    .join("")}</svg>`;
}

function numberCell(got) {
  if (!got) return "<td>-</td>";
  const ends = got.ends ? `[${got.ends.map(fixed).join(", ")}]` : got.unknown ? "too few problems for an interval" : "";
  return `<td><b>${fixed(got.value)}</b><span class="ci">${ends}</span></td>`;
}

const stripCell = (got, range, colour) => `<td class="strip">${got ? strip(got, range, colour) : ""}</td>`;

const everyEnd = (gots) => gots.flatMap((got) => (got ? [got.value, ...got.dots, ...(got.ends || [])] : []));

/** One axis for numbers of one unit, ending at tens: from the least to the largest, or as far below zero as above. */
function spanned(gots) {
  const ends = everyEnd(gots);
  const low = 10 * Math.floor(Math.min(90, ...ends) / 10);
  return [low, Math.max(low + 10, 10 * Math.ceil(Math.max(0, ...ends) / 10))];
}

function symmetric(gots) {
  const most = Math.max(10, 10 * Math.ceil(Math.max(0, ...everyEnd(gots).map(Math.abs)) / 10));
  return [-most, most];
}

const headOf = (cells) => `<thead><tr>${cells.map(([text, kind]) => `<th scope="col"${kind ? ` class="${kind}"` : ""}${kind === "strip" ? ' aria-label="drawn"' : ""}>${text}</th>`).join("")}</tr></thead>`;

/** A method's line and its name, which breaks at no hyphen. */
function named(number, name) {
  const text = escaped(name || data.methods[number].name).replaceAll("-", "\u2011");
  return `<span class="named">${swatch(data.methods[number])}<span>${text}</span></span>`;
}

const rowHead = (number, name) => `<th scope="row">${named(number, name)}</th>`;

function runsText(number) {
  const [runs, all] = [chosenRuns(number).length, suite().arms[number].seeds.length];
  return `${runs} of ${all}${runs === 1 && all === 1 ? '<span class="ci">interval over problems only</span>' : ""}`;
}

function showPass() {
  const rows = shown().map((number) => ({
    number,
    pass: measure("pass", number, state.k),
    minus: number === BASE ? null : measure("minus", number, state.k),
    greedy: measure("greedy", number),
  }));
  const range = symmetric(rows.map((row) => row.minus));
  const shares = spanned(rows.map((row) => row.pass));
  $("pass-table").innerHTML =
    headOf([["method"], [`Pass@${state.k}, %`], [axis(shares), "strip"], ["minus its base, points"], [axis(range), "strip"], ["greedy, %"], ["runs"]]) +
    `<tbody>${rows
      .map(({ number, pass, minus, greedy }) => {
        const { colour, id } = data.methods[number];
        return `<tr data-method="${escaped(id)}">${rowHead(number)}${numberCell(pass)}${stripCell(pass, shares, colour)}${numberCell(minus)}${stripCell(
          minus,
          range,
          colour,
        )}${numberCell(greedy)}<td>${runsText(number)}</td></tr>`;
      })
      .join("")}</tbody>`;
}

function showCurves() {
  const width = Math.max(260, $("curves").clientWidth);
  const height = width < 500 ? 260 : 340;
  const [left, right, top, bottom] = [36, width - 14, 12, height - 36];
  const ks = suite().ks;
  const lines = shown().map((number) => ({ number, points: ks.map((k) => measure("pass", number, k)) }));
  const drawn = lines.filter(({ points }) => points.every(Boolean));
  const [low, high] = spanned(drawn.flatMap(({ points }) => points.map((got) => ({ ...got, dots: [] }))));
  const last = Math.log2(ks[ks.length - 1]) || 1;
  const x = (k) => left + 14 + ((right - left - 28) * Math.log2(k)) / last;
  const y = (value) => bottom - ((bottom - top) * (value - low)) / (high - low);
  const step = high - low > 50 ? 20 : 10;
  let svg = "";
  for (let tick = step * Math.ceil(low / step); tick <= high; tick += step) {
    svg += `<path d="M${left} ${y(tick)}H${right}" stroke="#e6e6e6"/><text x="${left - 6}" y="${y(tick) + 4}" text-anchor="end">${tick}</text>`;
  }
  for (const k of ks) svg += `<text x="${x(k)}" y="${bottom + 17}" text-anchor="middle">${k}</text>`;
  svg += `<text x="${(left + right) / 2}" y="${height - 4}" text-anchor="middle">k</text>`;
  svg += `<path d="M${x(state.k)} ${top}V${bottom}" stroke="#9aa3af" stroke-dasharray="2 3"/>`;
  drawn.forEach(({ number, points }, order) => {
    const { colour, dashes, name } = data.methods[number];
    const aside = (order - (drawn.length - 1) / 2) * Math.min(width < 500 ? 2 : 3.5, 24 / drawn.length);
    const at = points.map((got, i) => [x(ks[i]) + aside, y(got.value)]);
    points.forEach((got, i) => {
      if (got.ends) svg += `<path d="M${at[i][0]} ${y(got.ends[0])}V${y(got.ends[1])}" stroke="${colour}" opacity=".55"/>`;
    });
    svg += `<path d="M${at.map((point) => point.join(" ")).join("L")}" fill="none" stroke="${colour}" stroke-width="1.8" stroke-dasharray="${dashes}"/>`;
    at.forEach(([cx, cy], i) => {
      svg += `<circle cx="${cx}" cy="${cy}" r="3.2" fill="${colour}" stroke="#fff" stroke-width=".6"><title>${escaped(name)}, Pass@${ks[i]}: ${fixed(points[i].value)} %</title></circle>`;
    });
  });
  $("curves").innerHTML =
    `<svg width="${width}" height="${height}" role="img" aria-label="Pass@k in per cent against k; the table below has the numbers at the chosen k"
      font-size="12" fill="#1d2129">${svg}</svg>`;
  $("curve-legend").innerHTML = drawn
    .map(({ number }) => named(number))
    .join("");
}

function showKept() {
  const possible = (number) => number !== BASE || 2 * state.k <= suite().ks[suite().ks.length - 1];
  const rows = shown().filter(possible).filter((number) => chosenRuns(number).length);
  const [keeps, explores] = ["keep", "explore"].map((name) => spanned(rows.map((number) => measure(name, number, state.k))));
  const average = (number, of) => overBases(number, chosenRuns(number), (run) => of(split(number, run, state.k)));
  $("kept-table").innerHTML =
    headOf([["method"], [`keep at k = ${state.k}, %`], [axis(keeps), "strip"], ["explore, %"], [axis(explores), "strip"], ["both solve"], ["lost"], ["gained"]]) +
    `<tbody>${rows
      .map((number) => {
        const { colour, id } = data.methods[number];
        const [keep, explore] = ["keep", "explore"].map((name) => measure(name, number, state.k));
        const problems = [(one) => one.both, (one) => one.solved - one.both, (one) => one.gained].map((of) => average(number, of));
        return `<tr data-method="${escaped(id)}">${rowHead(number, number === BASE ? data.again : "")}${numberCell(keep)}${stripCell(keep, keeps, colour)}${numberCell(
          explore,
        )}${stripCell(explore, explores, colour)}${problems.map((value) => `<td>${fixed(value)}</td>`).join("")}</tr>`;
      })
      .join("")}</tbody>`;
}

// --- Styles

const inkOn = (colour) => {
  const [red, green, blue] = [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  return 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#000" : "#fff";
};

/** Answers of each style, `other` last, of the chosen runs to one problem, or to all. */
function styleCounts(number, problem) {
  const taken = (values) => (problem === undefined ? sum(values) : values[problem]);
  const runs = chosenRuns(number);
  const known = data.styles.slice(0, -1).map((_, which) => sum(runs.map((run) => taken(column(number, run, "styles", which)))));
  return [...known, sum(runs.map((run) => taken(column(number, run, "drawn")))) - sum(known)];
}

function styleBar(counts) {
  const all = sum(counts);
  if (!all) return "-";
  const shares = counts.map((count) => (100 * count) / all);
  const text = data.styles.map(({ name }, i) => `${name} ${fixed(shares[i])} %`).join(", ");
  const parts = data.styles.map(({ colour }, i) =>
    shares[i] ? `<span style="flex:${shares[i]} 0 0;background:${colour};color:${inkOn(colour)}">${shares[i] >= 12 ? Math.round(shares[i]) : ""}</span>` : "",
  );
  return `<div class="bar" role="img" aria-label="${text}" title="${text}">${parts.join("")}</div>`;
}

function showStyles() {
  $("styles").hidden = !data.styles.length;
  if (!data.styles.length) return;
  $("style-legend").innerHTML = data.styles.map(({ name, colour }) => `<span><i style="background:${colour}"></i>${name}</span>`).join("");
  $("style-table").innerHTML = `<thead><tr><th scope="col">method</th><th scope="col">share of each style, %</th></tr></thead><tbody>${shown()
    .map((number) => `<tr data-method="${escaped(data.methods[number].id)}">${rowHead(number)}<td>${styleBar(styleCounts(number))}</td></tr>`)
    .join("")}</tbody>`;
}

// --- One problem

const answersOf = (problem) => data.answers[suite().problems[problem]];

/** Problems in the order of the list: those first whose answers were kept. */
function listed() {
  const all = [...suite().problems.keys()];
  return [...all.filter(answersOf), ...all.filter((problem) => !answersOf(problem))];
}

function showProblem() {
  const { problems, families, family } = suite();
  const problem = state.problem;
  const answers = answersOf(problem);
  const facts = [["Family", families[family[problem]]], ...(answers ? [["Prompt", answers.prompt], ["Gold", answers.gold]] : [])];
  $("asked").innerHTML = `<dl>${facts.map(([name, text]) => `<dt>${name}</dt><dd><code>${escaped(text)}</code></dd>`).join("")}</dl>`;
  const order = listed();
  $("before").disabled = order[0] === problem;
  $("after").disabled = order[order.length - 1] === problem;
  $("problem").value = problem;
  const styled = data.styles.length ? [["styles, %", "left"]] : [];
  $("problem-table").innerHTML =
    headOf([["method"], ["right answers"], [`Pass@${state.k}, %`], [axis([0, 100]), "strip"], ...styled]) +
    `<tbody>${shown()
      .map((number) => {
        const runs = chosenRuns(number);
        const total = (name) => sum(runs.map((run) => column(number, run, name)[problem]));
        const of = (run) => 100 * passes(number, run, state.k)[problem];
        const got = runs.length ? { value: overBases(number, runs, of), dots: runs.map(of) } : null;
        const { colour, id } = data.methods[number];
        return `<tr data-method="${escaped(id)}">${rowHead(number)}<td>${total("correct")} of ${total("n")}</td>${numberCell(got)}${stripCell(got, [0, 100], colour)}${
          styled.length ? `<td>${styleBar(styleCounts(number, problem))}</td>` : ""
        }</tr>`;
      })
      .join("")}</tbody>`;
  showAnswers(answers, problems[problem]);
}

function showAnswers(answers, name) {
  const there = answers ? shown().filter((number) => answers.of[data.methods[number].id]) : [];
  $("answers-note").textContent = !Object.keys(data.answers).length
    ? "This run kept no answers."
    : !answers
      ? `No answers to ${name} were kept: the first problems of the list have some.`
      : !there.length
        ? "None of the chosen methods answered: the base and the paper's methods did."
        : "Fresh answers of the final models, drawn for this page and not among those counted above; equal ones are counted.";
  $("answers").innerHTML = there.map((number) => answerCard(number, answers)).join("");
}

function answerCard(number, { texts, of }) {
  const { id, name } = data.methods[number];
  const { seed, answers } = of[id];
  const total = (wanted) => sum(answers.map(([text, times]) => (wanted(texts[text][1]) ? times : 0)));
  const rows = answers.map(([text, times]) => {
    const [style, verdict, answer] = texts[text];
    const [look, mark] = VERDICTS[verdict] || ["not-testable", "⊘"];
    const known = data.styles.find((one) => one.name === style);
    const shownStyle = known ? `<span class="legend"><i style="background:${known.colour}"></i>${known.name}</span>` : "";
    return `<li class="answer">${times} × <span class="chip ${look}">${mark} ${escaped(verdict.replace("_", " "))}</span> ${shownStyle}<code>${escaped(answer)}</code></li>`;
  });
  const who = number === BASE ? `base model ${seed}` : `${name}, run ${seed}`;
  const right = `${total((verdict) => verdict === "correct")} of ${total(() => true)} right`;
  return `<article data-method="${escaped(id)}"><h4>${named(number, `${who}: ${right}`)}</h4><ol>${rows.join("")}</ol></article>`;
}

// --- Choosing

const options = (values, text) => values.map((value) => `<option value="${value}">${escaped(text(value))}</option>`).join("");

function offerMethods() {
  const box = (number) =>
    `<label><input type="checkbox" value="${number}"${state.methods.has(number) ? " checked" : ""}${suite().arms[number] ? "" : " disabled"}>${named(number)}</label>`;
  const numbers = [...data.methods.keys()];
  $("methods").innerHTML = Object.entries(GROUPS)
    .map(([group, title]) => [title, numbers.filter((number) => data.methods[number].group === group)])
    .filter(([, members]) => members.length)
    .map(([title, members]) => `<fieldset><legend>${title}</legend>${members.map(box).join("")}</fieldset>`)
    .join("");
}

function offerSeeds() {
  $("seeds").innerHTML = everySeed
    .map((seed) => `<label><input type="checkbox" value="${seed}"${state.seeds.has(seed) ? " checked" : ""}> ${seed}</label>`)
    .join("");
}

function offerSuite() {
  const { ks, problems, families, family } = suite();
  state.k = Math.max(...ks.filter((k) => k <= state.k));
  state.problem = listed()[0];
  $("k").innerHTML = options(ks, (k) => `k = ${k}`);
  $("k").value = state.k;
  const groups = { "answers kept": listed().filter(answersOf), "counts only": listed().filter((problem) => !answersOf(problem)) };
  $("problem").innerHTML = Object.entries(groups)
    .filter(([, members]) => members.length)
    .map(([title, members]) => `<optgroup label="${title}">${options(members, (problem) => `${problems[problem]}: ${families[family[problem]]}`)}</optgroup>`)
    .join("");
  offerMethods();
}

function show() {
  showPass();
  showCurves();
  showKept();
  showStyles();
  showProblem();
  $("said").textContent = `${suite().name}, k = ${state.k}: ${shown().length} methods, ${state.seeds.size} of ${everySeed.length} seeds, ${suite().problems.length} problems`;
  $("method-count").textContent = `${state.methods.size} of ${data.methods.length}`;
  $("seed-count").textContent = `${state.seeds.size} of ${everySeed.length}`;
}

function toggle(members, event) {
  members[event.target.checked ? "add" : "delete"](Number(event.target.value));
  show();
}

function chooseSeeds(seeds) {
  state.seeds = new Set(seeds);
  offerSeeds();
  show();
}

function step(by) {
  const order = listed();
  state.problem = order[order.indexOf(state.problem) + by];
  showProblem();
}

function begin() {
  data.methods.forEach((method, number) => method.shown && state.methods.add(number));
  everySeed.forEach((seed) => state.seeds.add(seed));
  if (window.innerWidth < NARROW) document.querySelectorAll(".choices details").forEach((one) => (one.open = false));
  $("suite").innerHTML = options([...data.suites.keys()], (number) => data.suites[number].name);
  offerSuite();
  offerSeeds();
  show();
  $("choices").addEventListener("submit", (event) => event.preventDefault());
  $("suite").addEventListener("change", (event) => {
    state.suite = Number(event.target.value);
    offerSuite();
    show();
  });
  $("k").addEventListener("change", (event) => {
    state.k = Number(event.target.value);
    show();
  });
  $("methods").addEventListener("change", (event) => toggle(state.methods, event));
  $("seeds").addEventListener("change", (event) => toggle(state.seeds, event));
  $("all").addEventListener("click", () => chooseSeeds(everySeed));
  $("none").addEventListener("click", () => chooseSeeds([]));
  $("problem").addEventListener("change", (event) => {
    state.problem = Number(event.target.value);
    showProblem();
  });
  $("before").addEventListener("click", () => step(-1));
  $("after").addEventListener("click", () => step(1));
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (width !== (width = window.innerWidth)) show(); // a phone's address bar changes the height alone
  });
}

begin();
