// Numbers and times as people read them. Sizes come in MiB, times in Unix seconds.
const NBSP = "\u00a0";
const whole = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });
const one = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 1 });

export function count(n: number): string {
  return whole.format(n);
}

/** "1 node", "3 nodes". */
export function counted(n: number, noun: string): string {
  return `${whole.format(n)}${NBSP}${noun}${n === 1 ? "" : "s"}`;
}

export function mib(n: number): string {
  if (n >= 1024 * 1024) return `${one.format(n / 1024 / 1024)}${NBSP}TiB`;
  if (n >= 1024) return `${one.format(n / 1024)}${NBSP}GiB`;
  return `${whole.format(n)}${NBSP}MiB`;
}

/** Without rounding: what somebody typed must be seen as it will be. */
export function mibExact(n: number): string {
  const rounded = mib(n);
  const unit = n >= 1024 * 1024 ? 1024 * 1024 : n >= 1024 ? 1024 : 1;
  return (n / unit) * 10 === Math.round((n / unit) * 10) ? rounded : `${whole.format(n)}${NBSP}MiB`;
}

/** "12.5 of 80 GiB": both in the unit of the whole, unless the part is too small to be seen in it. */
export function mibOf(part: number, whole: number): string {
  const all = mib(whole);
  const unit = all.slice(all.indexOf(NBSP));
  const some = part === 0 ? `0${unit}` : mib(part);
  return some.endsWith(unit) ? `${some.slice(0, -unit.length)} of ${all}` : `${some} of ${all}`;
}

export function percent(n: number | null): string {
  return n === null ? "not known" : `${whole.format(n)}${NBSP}%`;
}

export function share(part: number, all: number): number {
  return all > 0 ? Math.min(100, Math.max(0, (100 * part) / all)) : 0;
}

/** "0.4 s", "12 s", "3 min 5 s", "2 h 10 min", "3 d 4 h". */
export function duration(s: number): string {
  if (s < 10) return `${one.format(Math.max(0, s))}${NBSP}s`;
  if (s < 60) return `${Math.floor(s)}${NBSP}s`;
  const units: [number, string][] = [
    [86400, "d"],
    [3600, "h"],
    [60, "min"],
    [1, "s"],
  ];
  const first = units.findIndex(([size]) => s >= size);
  const [size, unit] = units[first];
  const [nextSize, nextUnit] = units[first + 1];
  const rest = Math.floor((s % size) / nextSize);
  return `${Math.floor(s / size)}${NBSP}${unit}${rest > 0 ? ` ${rest}${NBSP}${nextUnit}` : ""}`;
}

export function clockTime(s: number, withSeconds = true): string {
  return new Date(s * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: withSeconds ? "2-digit" : undefined });
}

export function dateTime(s: number): string {
  return new Date(s * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
}
