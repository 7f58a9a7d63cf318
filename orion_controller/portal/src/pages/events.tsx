import type { Event } from "../models";
import { At, Heading, Level } from "../ui/parts";
import { type Column, DataTable, type Filter } from "../ui/table";

const COLUMNS: Record<string, Column<Event>> = {
  time: { label: "Time", sort: "id", time: true, render: (event) => <At at={event.at_s} /> },
  level: { label: "Level", sort: "level", render: (event) => <Level level={event.level} /> },
  message: { label: "What happened", sort: "subject", head: true, render: (event) => (
      <span class="break plain">
        <strong>{event.subject}</strong> {event.message}
      </span>
    ) },
  kind: { label: "Kind", sort: "kind", render: (event) => <span class="code">{event.kind}</span> },
  user: { label: "By", sort: "user", render: (event) => event.user || <span class="muted">by itself</span> },
};

const LEVELS: Filter = {
  name: "state",
  label: "Level",
  options: [
    ["", "All"],
    ["info", "Info"],
    ["warning", "Warning"],
    ["error", "Error"],
  ],
};

function EventTable({ label, list, columns, filters, empty }: { label: string; list: string; columns: string[]; filters: Filter[]; empty: string }) {
  return (
    <DataTable<Event>
      label={label}
      list={list}
      columns={columns.map((name) => COLUMNS[name])}
      rowKey={(event) => String(event.id)}
      defaultSort="-id"
      search={`Search ${label.toLowerCase()}`}
      filters={filters}
      empty={empty}
    />
  );
}

export function EventsPage() {
  return (
    <>
      <Heading title="Events" sub="What happened in the pool, the newest first." />
      <EventTable label="Events" list="/events" columns={["time", "level", "message", "kind"]} filters={[LEVELS]} empty="Nothing has happened yet." />
    </>
  );
}

export function AuditPage() {
  return (
    <>
      <Heading title="Audit trail" sub="Who changed what, and who logged in." />
      <EventTable label="Audit trail" list="/audit" columns={["time", "user", "message", "kind"]} filters={[]} empty="Nobody has changed anything yet." />
    </>
  );
}
