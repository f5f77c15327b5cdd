// Parts of the votes as lines with their intervals.
import { make, svg } from "./dom.js";

const percent = (value) => `${(100 * value).toFixed(0)}%`;

export function drawShares(place, results) {
  const lines = [["A wins", results.a_wins], ["ties", results.ties], ["B wins", results.b_wins], ["A of those decided", results.decided]];
  place.replaceChildren(...lines.map(([name, share]) => line(name, share)));
}

function line(name, share) {
  const row = make("div", null, { class: "share" });
  const figures = share.of === 0 ? "no votes" : `${share.count} of ${share.of}: ${percent(share.value)} (${percent(share.low)} to ${percent(share.high)})`;
  const picture = svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
  picture.append(svg("rect", { class: "track", x: 0, y: 4, width: 100, height: 2 }));
  if (share.of > 0)
    picture.append(svg("rect", { class: "span", x: 100 * share.low, y: 1.5, width: Math.max(100 * (share.high - share.low), 0.5), height: 7 }),
      svg("rect", { class: "point", x: 100 * share.value - 0.4, y: 0, width: 0.8, height: 10 }));
  row.append(make("span", name), picture, make("span", figures));
  return row;
}
