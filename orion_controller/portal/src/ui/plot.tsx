// Plots of the last hour. Series of one unit share a plot; each has a line style of its own besides its colour, and every
// plot has a sentence and a table that say the same.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { withQuery } from "../api";
import { clockTime, count, mib, percent } from "../format";
import { useLive } from "../live";
import type { History, Series } from "../models";
import { paint } from "../theme";
import { Failure, Loading } from "./parts";

const EVERY_MS = 10_000;
const HEIGHT = 190;
const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3]];
const TABLE_ROWS = 12;
const plain = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 2 });
const MAX_LINES = DASHES.length;

const TITLES: Record<string, string> = { "%": "Utilisation", MiB: "Memory", W: "Power", "°C": "Temperature", C: "Temperature" };
/** By what is left of a name without its unit. */
const NAMES: Record<string, string> = {
  memory_given: "given",
  memory_used: "used",
  ratio: "configured ratio",
  sessions: "tasks",
  utilization: "utilisation",
  vgpus: "vGPUs",
};

interface Drawing {
  title: string;
  unit: string;
  names: string[];
  data: uPlot.AlignedData;
  format: (value: number | null | undefined) => string;
  axisUnit: string;
}

function nameOf(series: Series): string {
  const name = series.name.replace(/_(mib|percent|c|w)$/, "");
  return NAMES[name] ?? name.replace(/_/g, " ");
}

function unitOf(series: Series): string {
  if (series.unit === "percent") return "%";
  if (series.unit === "count" || series.unit === "1") return "";
  return series.unit;
}

/** One plot for each unit, in the order in which the units come. Numbers without a unit that are of different sizes do
 * not share one: beside a thousand vGPUs a queue of three is a flat line. */
export function drawings(history: History): Drawing[] {
  const byUnit = new Map<string, Series[]>();
  for (const series of history.series) {
    const key = series.name === "vgpus" ? "vgpus" : unitOf(series);
    const group = byUnit.get(key) ?? [];
    // The larger line first: its area must not hide the smaller one's.
    const isWhole = series.name === "memory_given";
    if (group.length < MAX_LINES) byUnit.set(key, isWhole ? [series, ...group] : [...group, series]);
  }
  return [...byUnit].map(([key, group]) => {
    const unit = key === "vgpus" ? "" : key;
    const times = group[0].values.map((_, i) => history.start_s + i * history.step_s);
    // In MiB the lines of the grid would fall on odd numbers.
    const largest = Math.max(...group.flatMap((series) => series.values.map((value) => value ?? 0)));
    const step = unit !== "MiB" ? 0 : largest >= 2 * 1024 * 1024 ? 2 : largest >= 2 * 1024 ? 1 : 0;
    const scale = 1024 ** step;
    const axisUnit = unit === "MiB" ? ["MiB", "GiB", "TiB"][step] : unit;
    const values = group.map((series) => times.map((_, i) => (series.values[i] == null ? null : series.values[i]! / scale)));
    const format = (value: number | null | undefined): string => {
      if (value == null) return "not known";
      if (unit === "%") return percent(value);
      if (unit === "MiB") return mib(value * scale);
      return unit ? `${count(value)}\u00a0${unit}` : count(value);
    };
    const names = group.map(nameOf);
    return { title: unit === "" ? capital(names.join(" and ")) : (TITLES[unit] ?? unit), unit, names, data: [times, ...values], format, axisUnit };
  });
}

function capital(text: string): string {
  return /^vGPU/.test(text) ? text : text.charAt(0).toUpperCase() + text.slice(1);
}

export function Plots({ scope }: { scope: string }) {
  const { data, failure } = useLive<History>(withQuery("/history", { scope }), EVERY_MS);
  if (failure) return <Failure failure={failure} />;
  if (!data) return <Loading />;
  const all = drawings(data);
  if (all.length === 0 || all[0].data[0].length < 2) return <p class="empty">Nothing has been recorded yet: the first minute is missing.</p>;
  return (
    <div class={all.length > 3 ? "plots plots-many" : "plots"}>
      {all.map((drawing) => (
        <Plot key={drawing.unit + drawing.title} drawing={drawing} sync={scope} />
      ))}
    </div>
  );
}

function summaryOf({ names, data, format }: Drawing): string {
  return names
    .map((name, i) => {
      const values = (data[i + 1] as (number | null)[]).filter((value): value is number => value !== null);
      if (values.length === 0) return `${capital(name)}: not known.`;
      const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
      return `${capital(name)}: now ${format(values[values.length - 1])}, mean ${format(mean)}, highest ${format(Math.max(...values))}.`;
    })
    .join(" ");
}

function Plot({ drawing, sync }: { drawing: Drawing; sync: string }) {
  const { title, unit, names, data, format, axisUnit } = drawing;
  const figure = useRef<HTMLElement>(null);
  const area = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const [hovered, setHovered] = useState<number | null>(null);
  const last = data[0].length - 1;
  const at = hovered !== null && hovered <= last ? hovered : last;

  // The plot is made once; the unit of its axis changes with the size of the numbers.
  const unitNow = useRef(axisUnit);
  unitNow.current = axisUnit;

  useEffect(() => {
    const holder = area.current!;
    const colours = coloursOf(figure.current!);
    const options: uPlot.Options = {
      width: Math.max(200, holder.clientWidth),
      height: HEIGHT,
      padding: [8, 18, 0, 0],
      legend: { show: false },
      cursor: { y: false, points: { size: 7 }, drag: { x: false, y: false }, sync: { key: sync } },
      scales: { y: { range: (_, __, max) => [0, unit === "%" ? 100 : niceTop(max)] } },
      axes: [
        { ...axis(colours), size: 28, space: 56, values: (_, times) => times.map((time) => clockTime(time, false)) },
        { ...axis(colours), size: 64, space: 36, values: (_, values) => values.map((value) => `${plain.format(value)}\u00a0${unitNow.current}`.trim()) },
      ],
      series: [
        {},
        ...names.map((_, i) => ({
          stroke: colours.series[i],
          width: 2,
          dash: DASHES[i],
          fill: i === 0 ? colours.fill : undefined,
          points: { show: false },
          spanGaps: false,
        })),
      ],
      hooks: { setCursor: [(self) => setHovered(self.cursor.idx ?? null)] },
    };
    plot.current = new uPlot(options, data, holder);
    const resized = new ResizeObserver(() => plot.current?.setSize({ width: Math.max(200, holder.clientWidth), height: HEIGHT }));
    resized.observe(holder);
    return () => {
      resized.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, [paint.value, names.join(), unit, sync]);
  useEffect(() => plot.current?.setData(data), [data]);

  const summary = useMemo(() => summaryOf(drawing), [drawing]);
  return (
    <figure class="plot" ref={figure}>
      <figcaption>
        <span class="plot-title">{title}</span>
        <span class="plot-time num">{hovered === null ? "now" : clockTime(data[0][at])}</span>
      </figcaption>
      <ul class="legend">
        {names.map((name, i) => (
          <li key={name}>
            <svg class={`swatch series-${i + 1}`} viewBox="0 0 24 8" aria-hidden="true">
              <path d="M1 4h22" stroke-dasharray={DASHES[i].join(" ")} />
            </svg>
            {name} <strong class="num">{format((data[i + 1] as (number | null)[])[at])}</strong>
          </li>
        ))}
      </ul>
      <div class="plot-area" ref={area} role="img" aria-label={`${title}, the last hour. ${summary}`} />
      <details class="plot-table">
        <summary>As a table</summary>
        <table>
          <caption class="hidden">{title}, the last hour</caption>
          <thead>
            <tr>
              <th scope="col">Time</th>
              {names.map((name) => (
                <th scope="col" class="cell-num" key={name}>
                  {capital(name)}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {sampled(last).map((i) => (
              <tr key={i}>
                <th scope="row" class="num">
                  {clockTime(data[0][i], false)}
                </th>
                {names.map((name, line) => (
                  <td class="cell-num" key={name}>
                    {format((data[line + 1] as (number | null)[])[i])}
                  </td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </details>
    </figure>
  );
}

/** Indices of a table's rows, the newest first. */
function sampled(last: number): number[] {
  const step = Math.max(1, Math.round(last / TABLE_ROWS));
  const rows = [];
  for (let i = last; i >= 0 && rows.length <= TABLE_ROWS; i -= step) rows.push(i);
  return rows;
}

function niceTop(max: number | null): number {
  if (!max || max <= 0) return 1;
  const padded = max * 1.1;
  const power = 10 ** Math.floor(Math.log10(padded));
  return (([1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].find((step) => step * power >= padded) ?? 10) * power);
}

function axis(colours: Colours): uPlot.Axis {
  return {
    stroke: colours.text,
    font: '12px system-ui, sans-serif',
    grid: { stroke: colours.grid, width: 1 },
    ticks: { show: false },
  };
}

interface Colours {
  text: string;
  grid: string;
  fill: string;
  series: string[];
}

/** A canvas knows no style sheet: what the style sheet says is read from an element. */
function coloursOf(element: HTMLElement): Colours {
  const probe = document.createElement("span");
  element.append(probe);
  const read = (name: string): string => {
    probe.className = name;
    return getComputedStyle(probe).color;
  };
  const colours = {
    text: read("plot-text"),
    grid: read("plot-grid"),
    fill: read("plot-fill"),
    series: DASHES.map((_, i) => read(`series-${i + 1}`)),
  };
  probe.remove();
  return colours;
}
