import { SessionActions } from "../actions";
import { count, mib, percent } from "../format";
import type { Session, Waiting } from "../models";
import { isOperator } from "../session";
import { Ago, GroupLink, Heading, NodeLink } from "../ui/parts";
import { type Column, DataTable } from "../ui/table";

export function TasksPage() {
  return (
    <>
      <Heading title="Tasks" sub="The processes that use vGPUs now. A process has a session on each node where it has a vGPU." />
      <Tasks empty="No task runs." embedded={false} />
    </>
  );
}

export function Tasks({ fixed = {}, empty, embedded = true }: { fixed?: Record<string, string>; empty: string; embedded?: boolean }) {
  const columns: Column<Session>[] = [
    {
      label: "Program",
      sort: "program",
      head: true,
      render: (session) => (
        <>
          {session.program || "not known"}
          <span class="second">
            process {session.pid}, user {session.uid}
          </span>
        </>
      ),
    },
    { label: "Host", sort: "host", render: (session) => <span class="break">{session.host}</span> },
    { label: "Since", sort: "since_s", time: true, render: (session) => <Ago at={session.since_s} /> },
    { label: "Transport", sort: "transport", render: (session) => session.transport },
  ];
  if (!fixed.group) columns.splice(1, 0, { label: "Group", sort: "group_name", render: (session) => <span class="break"><GroupLink id={session.group} name={session.group_name} /></span> });
  if (!fixed.node) columns.splice(-2, 0, { label: "Node", sort: "node", render: (session) => <NodeLink name={session.node} /> });
  if (isOperator.value) columns.push({ label: "Actions", wide: true, render: (session) => <SessionActions session={session} /> });
  return (
    <DataTable<Session>
      embedded={embedded}
      label="Tasks"
      list="/sessions"
      fixed={fixed}
      columns={columns}
      rowKey={(session) => session.id}
      defaultSort="-since_s"
      search={embedded ? undefined : "Search tasks"}
      empty={empty}
    />
  );
}

export function QueuePage() {
  const columns: Column<Waiting>[] = [
    { label: "Place", sort: "position", num: true, render: (waiting) => count(waiting.position) },
    {
      label: "Group",
      sort: "group",
      head: true,
      render: (waiting) => (
        <>
          {waiting.group || "a group of its own"}
          <span class="second">{waiting.program}</span>
        </>
      ),
    },
    { label: "Owner", sort: "owner", render: (waiting) => <span class="break">{waiting.owner || "not known"}</span> },
    { label: "vGPUs", sort: "vgpus", num: true, render: (waiting) => count(waiting.vgpus) },
    { label: "Memory each", sort: "gmem_mib", num: true, render: (waiting) => mib(waiting.gmem_mib) },
    { label: "Ratio", sort: "ratio_percent", num: true, render: (waiting) => percent(waiting.ratio_percent) },
    { label: "Waiting since", sort: "since_s", time: true, render: (waiting) => <Ago at={waiting.since_s} /> },
    { label: "What it waits for", render: (waiting) => waiting.reason },
  ];
  return (
    <>
      <Heading title="Queue" sub="Requests for which there is no room now, in the order in which they are served." />
      <DataTable<Waiting> label="Queue" list="/queue" columns={columns} rowKey={(waiting) => `${waiting.position}/${waiting.group}/${waiting.owner}`} defaultSort="position" search="Search the queue" empty="Nobody waits: there is room for what was asked." />
    </>
  );
}
