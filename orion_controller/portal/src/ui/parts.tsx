// The small parts that pages are made of.
import type { ComponentChildren } from "preact";
import type { ApiFailure } from "../api";
import { clock } from "../live";
import type { Event, Group, Node } from "../models";
import { clockTime, dateTime, duration, percent, share } from "../format";
import { href } from "../route";
import { Icon, type IconName } from "./icons";

type Tone = "good" | "warn" | "bad" | "info" | "plain";

/** A state: a word, a shape and a colour, so that none of them has to be seen. */
export function Badge({ tone, icon, children }: { tone: Tone; icon: IconName; children: ComponentChildren }) {
  return (
    <span class={`badge badge-${tone}`}>
      <Icon name={icon} />
      {children}
    </span>
  );
}

export function NodeState({ state }: { state: Node["state"] }) {
  if (state === "ready") return <Badge tone="good" icon="check">Ready</Badge>;
  if (state === "draining") return <Badge tone="warn" icon="pause">Draining</Badge>;
  return <Badge tone="bad" icon="cross">Lost</Badge>;
}

export function GroupState({ state }: { state: Group["state"] }) {
  if (state === "active") return <Badge tone="good" icon="check">Active</Badge>;
  if (state === "reserved") return <Badge tone="info" icon="clock">Reserved</Badge>;
  return <Badge tone="plain" icon="pause">Idle</Badge>;
}

export function Level({ level }: { level: Event["level"] }) {
  if (level === "info") return <Badge tone="plain" icon="info">Info</Badge>;
  if (level === "warning") return <Badge tone="warn" icon="warning">Warning</Badge>;
  return <Badge tone="bad" icon="cross">Error</Badge>;
}

/** A bar for a share; the number stands beside it in text. `mark`: a line at a second share. */
export function Bar({ value, max = 100, mark, tone = "" }: { value: number; max?: number; mark?: number; tone?: "" | "warn" | "bad" | "quiet" }) {
  return (
    <span class={`bar ${tone && `bar-${tone}`}`} aria-hidden="true">
      <span class="bar-fill" style={{ width: `${share(value, max)}%` }} />
      {mark !== undefined && <span class="bar-mark" style={{ left: `${share(mark, max)}%` }} />}
    </span>
  );
}

/** Two amounts of one whole in a bar: what is given (light), and of that what is used (full). */
export function UseBar({ used, given, max }: { used: number; given: number; max: number }) {
  return (
    <span class="bar" aria-hidden="true">
      <span class="bar-given" style={{ width: `${share(given, max)}%` }} />
      <span class="bar-fill" style={{ width: `${share(used, max)}%` }} />
    </span>
  );
}

export function Utilization({ value }: { value: number | null }) {
  if (value === null) return <Unknown />;
  return (
    <span class="measure">
      <span class="num">{percent(value)}</span>
      <Bar value={value} />
    </span>
  );
}

export function Temperature({ value }: { value: number | null | undefined }) {
  if (value === null || value === undefined) return <Unknown />;
  const hot = value >= 85;
  return (
    <span class={hot ? "num hot" : "num"}>
      {value}&nbsp;°C{hot && <Badge tone="bad" icon="warning">hot</Badge>}
    </span>
  );
}

export function Unknown() {
  return (
    <span class="muted">
      <span aria-hidden="true">–</span>
      <span class="hidden">not known</span>
    </span>
  );
}

/** How long ago, counting on. */
export function Ago({ at }: { at: number }) {
  const s = Math.max(0, Math.floor(clock.value - at));
  return (
    <time dateTime={new Date(at * 1000).toISOString()} title={dateTime(at)}>
      {s < 2 ? "just now" : `${duration(s)} ago`}
    </time>
  );
}

export function Until({ at }: { at: number }) {
  const s = Math.floor(at - clock.value);
  return (
    <time dateTime={new Date(at * 1000).toISOString()} title={dateTime(at)}>
      {s <= 0 ? "now" : `in ${duration(s)}`}
    </time>
  );
}

export function At({ at }: { at: number }) {
  const today = new Date(at * 1000).toDateString() === new Date(clock.value * 1000).toDateString();
  return (
    <time dateTime={new Date(at * 1000).toISOString()} title={dateTime(at)}>
      {today ? clockTime(at) : dateTime(at)}
    </time>
  );
}

export function NodeLink({ name }: { name: string }) {
  return <a href={href("nodes", name)}>{name}</a>;
}

export function GpuLink({ node, ordinal, short = false }: { node: string; ordinal: number; short?: boolean }) {
  return <a href={href("gpus", node, ordinal)}>{short ? `GPU\u00a0${ordinal}` : `${node}/${ordinal}`}</a>;
}

export function GroupLink({ id, name }: { id: string; name?: string }) {
  return <a href={href("groups", id)}>{name || id}</a>;
}

export function Failure({ failure }: { failure: ApiFailure }) {
  return (
    <div class="note note-bad" role="alert">
      <Icon name="warning" />
      <div>
        <strong>{failure.message}</strong>
        {failure.hint && <p>{failure.hint}</p>}
      </div>
    </div>
  );
}

export function Loading() {
  return (
    <p class="loading" role="status">
      Loading…
    </p>
  );
}

export function Heading({ title, sub, parent, children }: { title: string; sub?: ComponentChildren; parent?: [string, string]; children?: ComponentChildren }) {
  return (
    <header class="heading">
      <div class="heading-text">
        {parent && (
          <nav class="crumb" aria-label="Breadcrumb">
            <a href={parent[0]}>{parent[1]}</a> <span aria-hidden="true">/</span>
          </nav>
        )}
        <h1 id="title" tabIndex={-1}>
          {title}
        </h1>
        {sub && <p class="sub">{sub}</p>}
      </div>
      {children && <div class="actions">{children}</div>}
    </header>
  );
}

/** Facts of one thing: names and values. */
export function Facts({ facts }: { facts: [string, ComponentChildren][] }) {
  return (
    <dl class="facts">
      {facts.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

export function Panel({ title, children, aside }: { title: string; children: ComponentChildren; aside?: ComponentChildren }) {
  const id = `panel-${title.toLowerCase().replace(/\W+/g, "-")}`;
  return (
    <section class="panel" aria-labelledby={id}>
      <div class="panel-head">
        <h2 id={id}>{title}</h2>
        {aside}
      </div>
      {children}
    </section>
  );
}
