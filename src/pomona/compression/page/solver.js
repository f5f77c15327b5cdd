// The allocation: one choice for every module, at most `budget` bytes in all, the least total loss.
//
// A multiple-choice knapsack. Steps along the convex hulls of (bytes, loss), the best rate first, give a good
// allocation and a bound on how much better any other can be. A choice whose reduced cost exceeds that gap is in
// no better allocation; the few that remain are searched exactly, as lists of undominated (bytes, loss).
"use strict";

const MAX_STATES = 20000; // beyond it the lists are thinned and the result is only nearly exact

// What a module may take: its pinned choice, or all of them.
function allowedChoices(module, pins) {
  const bits = pins.get(module.name);
  const all = module.choices.map((choice, index) => ({ index, bytes: choice.bytes, loss: choice.loss, bits: choice.bits }));
  const pinned = all.filter((choice) => choice.bits === bits);
  return pinned.length > 0 ? pinned : all;
}

// The lower left hull of (bytes, loss), from the smallest choice to the one of least loss.
function hull(options) {
  const sorted = [...options].sort((a, b) => a.bytes - b.bytes || a.loss - b.loss);
  const line = [];
  for (const option of sorted) {
    if (line.length > 0 && option.loss >= line[line.length - 1].loss) continue;
    while (line.length > 1) {
      const [a, b] = line.slice(-2);
      const before = (a.loss - b.loss) * (option.bytes - b.bytes);
      const after = (b.loss - option.loss) * (b.bytes - a.bytes);
      if (before > after) break;
      line.pop();
    }
    line.push(option);
  }
  return line;
}

// Sizes that no budget below or above makes a difference to.
function byteRange(modules, pins) {
  let least = 0, most = 0;
  for (const module of modules) {
    const line = hull(allowedChoices(module, pins));
    least += line[0].bytes;
    most += line[line.length - 1].bytes;
  }
  return { least, most };
}

function greedy(options, budget) {
  const lines = options.map(hull);
  const picks = lines.map((line) => line[0]);
  let bytes = picks.reduce((sum, pick) => sum + pick.bytes, 0);
  const steps = [];
  lines.forEach((line, place) => {
    for (let i = 1; i < line.length; ++i) {
      const size = line[i].bytes - line[i - 1].bytes, gain = line[i - 1].loss - line[i].loss;
      steps.push({ place, to: line[i], size, gain, rate: gain / size });
    }
  });
  steps.sort((a, b) => b.rate - a.rate || a.place - b.place);
  // The relaxed problem takes steps in this order until one does not fit; its rate is the price of a byte.
  let price = 0, stopped = new Set();
  for (const step of steps) {
    if (stopped.has(step.place)) continue; // a hull's steps come in order
    if (bytes + step.size > budget) {
      if (price === 0) price = step.rate;
      stopped.add(step.place);
      continue;
    }
    bytes += step.size;
    picks[step.place] = step.to;
  }
  return { picks, price };
}

// Gives { feasible, picks: index of the choice per module, bytes, loss, exact }.
function solve(modules, budget, pins = new Map()) {
  const options = modules.map((module) => allowedChoices(module, pins));
  const least = options.reduce((sum, list) => sum + Math.min(...list.map((choice) => choice.bytes)), 0);
  if (least > budget) return { feasible: false, picks: [], bytes: least, loss: Infinity, exact: true };
  const { picks, price } = greedy(options, budget);
  const search = improve(options, picks, price, budget);
  const best = search.picks;
  return {
    feasible: true,
    picks: best.map((choice) => choice.index),
    bytes: best.reduce((sum, choice) => sum + choice.bytes, 0),
    loss: best.reduce((sum, choice) => sum + choice.loss, 0),
    exact: search.exact,
  };
}

function improve(options, picks, price, budget) {
  // Reduced cost: what a choice adds to the relaxed optimum. All of them >= 0, and one of each module is 0.
  const lowest = options.map((list) => Math.min(...list.map((choice) => choice.loss + price * choice.bytes)));
  const reduced = (place, choice) => choice.loss + price * choice.bytes - lowest[place];
  const sum = (list, value) => list.reduce((total, item) => total + value(item), 0);
  const upper = sum(picks, (choice) => choice.loss);
  const gap = upper - (sum(lowest, (value) => value) - price * budget);
  const slack = gap * (1 + 1e-9) + 1e-15;
  const core = [];
  let fixed = 0;
  const result = [...picks];
  options.forEach((list, place) => {
    const open = list.filter((choice) => reduced(place, choice) <= slack);
    if (open.length === 1) {
      fixed += open[0].bytes;
      result[place] = open[0];
    } else {
      core.push({ place, open });
    }
  });
  // Large reduced costs first: they prune soonest.
  const weightOf = (item) => Math.min(...item.open.map((choice) => reduced(item.place, choice)).filter((cost) => cost > 0), slack);
  core.sort((a, b) => weightOf(b) - weightOf(a) || a.place - b.place);
  const smallest = core.map((item) => Math.min(...item.open.map((choice) => choice.bytes)));
  let rest = sum(smallest, (bytes) => bytes);
  let exact = true;
  let states = [{ bytes: fixed, cost: 0, loss: 0, choice: null, from: null }];
  core.forEach((item, depth) => {
    rest -= smallest[depth];
    const next = [];
    for (const state of states)
      for (const choice of item.open) {
        const bytes = state.bytes + choice.bytes, cost = state.cost + reduced(item.place, choice);
        if (bytes + rest > budget || cost > slack) continue;
        next.push({ bytes, cost, loss: state.loss + choice.loss, choice, from: state });
      }
    next.sort((a, b) => a.bytes - b.bytes || a.loss - b.loss);
    let bound = Infinity;
    states = next.filter((state) => state.loss < bound && ((bound = state.loss), true));
    if (states.length > MAX_STATES) {
      exact = false;
      const keep = states.length / MAX_STATES;
      states = Array.from({ length: MAX_STATES }, (_, i) => states[Math.floor(i * keep)]);
    }
  });
  const last = states[states.length - 1]; // sorted by bytes, so the last one loses least
  if (last === undefined) return { picks, exact };
  for (let state = last, depth = core.length - 1; depth >= 0; --depth, state = state.from)
    result[core[depth].place] = state.choice;
  if (sum(result, (choice) => choice.loss) > upper) return { picks, exact };
  return { picks: result, exact };
}

if (typeof module !== "undefined") module.exports = { solve, byteRange, hull, allowedChoices };
