import type { ComponentChildren } from "preact";
import type { Page } from "../api";
import { count, counted, mib, percent } from "../format";
import { useLive } from "../live";
import type { Event, Summary } from "../models";
import { href } from "../route";
import { Icon } from "../ui/icons";
import { Ago, At, Bar, Failure, Heading, Level, Loading, Panel, UseBar } from "../ui/parts";
import { Plots } from "../ui/plot";

export function Overview() {
  const { data: summary, failure } = useLive<Summary>("/summary");
  return (
    <>
      <Heading
        title="Overview"
        sub={
          summary && (
            <>
              {counted(summary.groups, "group")} on {counted(summary.nodes, "node")}; the controller has run since <At at={summary.since_s} />
            </>
          )
        }
      />
      {failure && <Failure failure={failure} />}
      {!summary && !failure && <Loading />}
      {summary && <Tiles summary={summary} />}
      <Panel title="The last hour">
        <Plots scope="pool" />
      </Panel>
      <Newest />
    </>
  );
}

function Tiles({ summary: s }: { summary: Summary }) {
  return (
    <ul class="tiles" aria-label="The pool in numbers">
      <Tile name="Nodes" link={href("nodes")} value={count(s.nodes)}>
        <span class="tile-states">
          <State icon="check" tone="good" text={`${count(s.nodes_ready)} ready`} />
          {s.nodes_draining > 0 && <State icon="pause" tone="warn" text={`${count(s.nodes_draining)} draining`} />}
          {s.nodes_lost > 0 && <State icon="cross" tone="bad" text={`${count(s.nodes_lost)} lost`} />}
        </span>
      </Tile>
      <Tile name="Mean utilisation" link={href("gpus")} value={s.utilization_percent === null ? "–" : percent(s.utilization_percent)} bar={<Bar value={s.utilization_percent ?? 0} />}>
        of {counted(s.gpus, "GPU")}
      </Tile>
      <Tile name="Memory given" link={href("groups")} value={mib(s.memory_given_mib)} bar={<UseBar used={s.memory_used_mib} given={s.memory_given_mib} max={s.memory_mib} />}>
        of {mib(s.memory_mib)}; {mib(s.memory_used_mib)} used
      </Tile>
      <Tile name="Ratio given" link={href("groups")} value={percent(s.ratio_percent ? (100 * s.ratio_given_percent) / s.ratio_percent : null)} bar={<Bar value={s.ratio_given_percent} max={s.ratio_percent} />}>
        {count(s.ratio_given_percent / 100)} of {counted(Math.round(s.ratio_percent / 100), "GPU")}
      </Tile>
      <Tile name="vGPUs given" link={href("vgpus")} value={count(s.vgpus)} bar={<Bar value={s.vgpus} max={s.vgpus + s.vgpus_free} />}>
        {count(s.vgpus_free)} more would fit
      </Tile>
      <Tile name="GPUs" link={href("gpus")} value={count(s.gpus)}>
        in {counted(s.nodes, "node")}
      </Tile>
      <Tile name="Tasks" link={href("tasks")} value={count(s.sessions)}>
        in {counted(s.groups, "group")}
      </Tile>
      <Tile name="Queue" link={href("queue")} value={count(s.queue)}>
        {s.queue === 0 ? "nobody waits" : s.queue === 1 ? "request waits" : "requests wait"}
      </Tile>
    </ul>
  );
}

function State({ icon, tone, text }: { icon: "check" | "pause" | "cross"; tone: string; text: string }) {
  return (
    <span class={`state state-${tone}`}>
      <Icon name={icon} />
      {text}
    </span>
  );
}

function Tile({ name, value, link, bar, children }: { name: string; value: string; link: string; bar?: ComponentChildren; children: ComponentChildren }) {
  return (
    <li class="tile">
      <a class="tile-name" href={link}>
        {name}
      </a>
      <span class="tile-value num">{value}</span>
      {bar}
      <span class="tile-note">{children}</span>
    </li>
  );
}

function Newest() {
  const { data } = useLive<Page<Event>>("/events?limit=6&sort=-id");
  return (
    <Panel title="Newest events" aside={<a href={href("events")}>All events</a>}>
      {data && data.items.length === 0 && <p class="empty">Nothing has happened yet.</p>}
      <ul class="feed">
        {data?.items.map((event) => (
          <li key={event.id}>
            <Level level={event.level} />
            <span class="feed-text">
              <strong>{event.subject}</strong> {event.message}
            </span>
            <span class="muted">
              <Ago at={event.at_s} />
            </span>
          </li>
        ))}
      </ul>
    </Panel>
  );
}
