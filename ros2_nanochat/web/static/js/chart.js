// Small charts in SVG: bars (one a turn) and lines (in time).

import { svg } from './dom.js';

const WIDTH = 240;
const HEIGHT = 40;

/** Bars from oldest to newest, each with a title. */
export function bars(values, titles, most = 40) {
  const shown = values.slice(-most);
  const names = titles.slice(-most);
  const top = Math.max(...shown, 1e-9);
  const step = WIDTH / Math.max(shown.length, 16);
  return frame(shown.map((value, n) => {
    const height = Math.max(1, (HEIGHT - 2) * (value / top));
    return svg('rect', {
      class: 'chart-bar', x: n * step, y: HEIGHT - height, width: Math.max(1, step - 2), height, rx: 1,
    }, svg('title', {}, names[n]));
  }));
}

/** Marks from oldest to newest, each in the lane of its answer: how answers took turns. */
export function lanes(answers, most = 60) {
  const shown = answers.slice(-most);
  const names = [...new Set(answers)];
  const height = HEIGHT / names.length;
  const step = WIDTH / Math.max(shown.length, 16);
  return frame(shown.map((answer, n) => svg('rect', {
    class: 'chart-bar', x: n * step, y: height * names.indexOf(answer) + 1, width: step, height: Math.max(1, height - 2),
  }, svg('title', {}, answer))));
}

/** A line through points [time, value]. `top` is the upper end, which otherwise follows the values, as the lower does. */
export function line(points, top = 0) {
  if (points.length < 2) return frame([]);
  const first = points[0][0];
  const span = Math.max(points.at(-1)[0] - first, 1e-9);
  const values = points.map(([, value]) => value);
  const high = top || Math.max(...values, 1);
  const low = Math.min(...values, 0);
  const scale = Math.max(high, -low); // first, as the difference of two huge numbers may be infinite
  const places = points.map(([time, value]) => [
    (WIDTH * share((time - first) / span)).toFixed(1),
    (HEIGHT - 1.5 - (HEIGHT - 3) * share((value / scale - low / scale) / (high / scale - low / scale))).toFixed(1),
  ]);
  const path = places.map(([x, y], n) => `${n ? 'L' : 'M'}${x} ${y}`).join('');
  return frame([
    svg('path', { class: 'chart-area', d: `${path}L${WIDTH} ${HEIGHT}L0 ${HEIGHT}Z` }),
    svg('path', { class: 'chart-line', d: path }),
  ]);
}

/** Within the chart: clocks jump, and a figure may be above its limit. */
function share(value) {
  return Math.min(1, Math.max(0, value));
}

function frame(children) {
  return svg('svg', {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', 'aria-hidden': 'true',
  }, svg('line', { class: 'chart-base', x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }), ...children);
}
