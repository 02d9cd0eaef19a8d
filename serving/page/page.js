"use strict";
// The live page: asks /v1/status once a second and shows it. No other source.

const number = (value, digits) => value == null ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
const whole = (value) => number(value, 0);
const seconds = (value) => value == null ? "–" : value < 1 ? `${number(value * 1000, value < 0.1 ? 1 : 0)} ms` : `${number(value, 2)} s`;
const percent = (value) => value == null ? "–" : `${number(value * 100, 2)} %`;
const pair = (values) => `${seconds(values.p50)} / ${seconds(values.p99)}`;
const last = (column) => column && column.length ? column[column.length - 1] : null;
const NONE = {};
// The figures of one head and maturity, of all traffic: displays of ten minutes, clicks of a day.
const WINDOW_S = { click: 600, conversion: 86400 };
const of = (status, head, maturity) => status.quality.find((f) => f.head === head && f.maturity === maturity && f.slice === "all" && f.window_s === WINDOW_S[head]) || NONE;
const both = (status, head, show) => `${show(of(status, head, "early"))} / ${show(of(status, head, "mature"))}`;

const TILES = [
  ["Model version", (s) => whole(s.model_version), (s) => `${whole(s.swaps)} swaps, ${whole(s.gaps)} gaps`],
  ["Freshness p50 / p99", (s) => pair(s.freshness), (s) => `${whole(s.freshness.count)} clicks`],
  ["Requests per second", (s) => number(last(s.series.requests_per_s), 1), (s) => `${whole(s.requests)} in all`],
  ["Latency p50 / p99", (s) => pair(s.latency_s), (s) => `${whole(s.calls)} calls`],
  ["Ads scored", (s) => whole(s.rows), (s) => `${number(last(s.series.rows_per_s), 0)} per second`],
  ["Observed / expected", (s) => both(s, "click", (f) => number(f.observed_over_expected, 3)), (s) => `early / mature, ${whole(of(s, "click", "mature").observed)} clicks`],
  ["AUC of served p", (s) => both(s, "click", (f) => number(f.auc, 4)), () => "early / mature"],
  ["Log loss", (s) => number(of(s, "click", "mature").log_loss, 4), (s) => `${number(of(s, "click", "mature").normalized_entropy, 3)} of the entropy of the rate`],
  ["Mean p", (s) => percent(last(s.series.click_predicted_mean)), (s) => `answered last second, map ${whole(s.map_version)}`],
  ["Conversions: observed / expected", (s) => both(s, "conversion", (f) => number(f.observed_over_expected, 3)), (s) => `early / mature, ${whole(of(s, "conversion", "mature").observed)} conversions`, (s) => s.heads.includes("conversion")],
  ["Mean p of a click's conversion", (s) => percent(last(s.series.conversion_predicted_mean)), () => "answered last second", (s) => s.heads.includes("conversion")],
];

const CHARTS = [
  ["Per second", [["requests", "requests_per_s"], ["ads", "rows_per_s"]], (v) => number(v, 0)],
  ["Latency", [["p50", "latency_p50_s"], ["p99", "latency_p99_s"]], seconds],
  ["Freshness", [["p50", "freshness_p50_s"], ["p99", "freshness_p99_s"]], seconds],
  ["Model version", [["version", "model_version"]], whole],
  ["Mean p", [["click", "click_predicted_mean"]], percent],
  ["Mean p of a click's conversion", [["conversion", "conversion_predicted_mean"]], percent, true],
  ["Clicks: observed / expected", [["early", "click_early_observed_over_expected_10m"], ["mature", "click_mature_observed_over_expected_10m"]], (v) => number(v, 3), true],
  ["AUC of served p", [["early", "click_early_auc_10m"], ["mature", "click_mature_auc_10m"]], (v) => number(v, 4), true],
  ["Log loss of served p", [["early", "click_early_log_loss_10m"], ["mature", "click_mature_log_loss_10m"]], (v) => number(v, 4), true],
  ["Conversions: observed / expected", [["early", "conversion_early_observed_over_expected_1d"], ["mature", "conversion_mature_observed_over_expected_1d"]], (v) => number(v, 3), true],
];

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const tileOf = new Map();
const charts = new Map();

function showTiles(status) {
  for (const [title, value, below, present] of TILES) {
    if (present && !present(status)) continue;
    if (!tileOf.has(title)) {
      const tile = document.createElement("div");
      tile.className = "tile";
      tile.append(...["h2", "p", "small"].map((tag) => document.createElement(tag)));
      tile.firstChild.textContent = title;
      document.getElementById("tiles").append(tile);
      tileOf.set(title, tile);
    }
    tileOf.get(title).children[1].textContent = value(status);
    tileOf.get(title).children[2].textContent = below(status);
  }
}

function makeChart(title, lines, format) {
  const card = document.createElement("div");
  card.className = "chart";
  card.append(document.createElement("h2"));
  card.firstChild.textContent = title;
  document.getElementById("charts").append(card);
  const axis = { stroke: () => colour("quiet"), grid: { stroke: () => colour("line"), width: 1 }, ticks: { show: false } };
  const options = {
    width: card.clientWidth - 30,
    height: 190,
    cursor: { sync: { key: "time" } },
    axes: [{ ...axis }, { ...axis, size: 68, values: (_, ticks) => ticks.map(format) }],
    series: [{ value: (_, at) => at == null ? "–" : new Date(at * 1000).toLocaleTimeString() }].concat(lines.map(([label], i) => ({
      label, width: 1.6, points: { show: false }, stroke: () => colour(i ? "second" : "first"), value: (_, v) => format(v),
    }))),
  };
  return { card, plot: new uPlot(options, [[]].concat(lines.map(() => [])), card) };
}

function showCharts(series) {
  for (const [title, lines, format, optional] of CHARTS) {
    const columns = lines.map(([, key]) => series[key] || []);
    if (optional && !columns.some((column) => column.some((value) => value != null))) continue;
    if (!charts.has(title)) charts.set(title, makeChart(title, lines, format));
    charts.get(title).plot.setData([series.at_s || [], ...columns]);
  }
}

// One row a head and slice: by cohort of display time, served p against what came.
const COLUMNS = [
  ["exposures", (f) => whole(f.exposures)], ["observed", (f) => whole(f.observed)], ["expected", (f) => number(f.expected, 1)],
  ["O/E", (f) => number(f.observed_over_expected, 3)], ["log loss", (f) => number(f.log_loss, 4)],
  ["NE", (f) => number(f.normalized_entropy, 3)], ["AUC", (f) => number(f.auc, 4)],
];

function showSlices(quality) {
  const table = document.getElementById("slices");
  table.hidden = !quality.length;
  const cells = (texts, tag) => texts.map((text) => Object.assign(document.createElement(tag), { textContent: text }));
  const row = (texts, tag = "td") => {
    const line = document.createElement("tr");
    line.append(...cells(texts, tag));
    return line;
  };
  table.tHead.replaceChildren(row(["head", "maturity", "window", "slice", ...COLUMNS.map(([name]) => name)], "th"));
  table.tBodies[0].replaceChildren(...quality.map((f) => row([f.head, f.maturity, `${f.window_s / 60} min`, f.slice, ...COLUMNS.map(([, show]) => show(f))])));
}

function showState(text, good, reasons) {
  const state = document.getElementById("state");
  state.textContent = text;
  state.className = `state ${good ? "good" : "bad"}`;
  const list = document.getElementById("reasons");
  list.hidden = !reasons.length;
  list.replaceChildren(...reasons.map((reason) => {
    const item = document.createElement("li");
    item.textContent = reason;
    return item;
  }));
}

function show(status) {
  document.getElementById("spec").textContent = `${status.spec}, ${status.clock} clock`;
  const applied = status.applied_ms > 0 ? new Date(status.applied_ms).toISOString().replace("T", " ").slice(0, 19) : "nothing yet";
  document.getElementById("applied").textContent = `applied up to ${applied} UTC`;
  showState(status.ready ? "ready" : "not ready", status.ready, status.reasons);
  showTiles(status);
  showSlices(status.quality);
  if (last(status.series.at_s)) showCharts(status.series);
}

async function poll() {
  try {
    const answer = await fetch("v1/status", { cache: "no-store" });
    show(await answer.json());
  } catch (error) {
    showState("serving does not answer", false, [String(error)]);
  }
  setTimeout(poll, 1000);
}

addEventListener("resize", () => charts.forEach(({ card, plot }) => plot.setSize({ width: card.clientWidth - 30, height: 190 })));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach(({ plot }) => plot.redraw()));
poll();
