import { path } from "../api";
import { GroupActions } from "../actions";
import { count, counted, duration, mib, mibOf, percent } from "../format";
import { useLive } from "../live";
import type { Group, Vgpu } from "../models";
import { isOperator } from "../session";
import { At, Bar, Facts, Failure, GpuLink, GroupLink, GroupState, Heading, Loading, NodeLink, Panel, Until } from "../ui/parts";
import { Plots } from "../ui/plot";
import { type Column, DataTable } from "../ui/table";
import { Tasks } from "./tasks";

/** Configured and achieved ratio side by side; the mark in the bar is what is configured. */
export function Ratio({ configured, achieved, policy }: { configured: number; achieved: number; policy: string }) {
  return (
    <span class="measure">
      <span class="num">
        {percent(achieved)} <span class="muted">of</span> {percent(configured)} <span class="muted">{policy}</span>
      </span>
      <Bar value={achieved} mark={configured} />
    </span>
  );
}

function Quota({ used, quota }: { used: number; quota: number }) {
  const full = quota > 0 && used / quota >= 0.95;
  return (
    <span class="measure">
      <span class="num">
        {mibOf(used, quota)}
      </span>
      <Bar value={used} max={quota} tone={used > quota ? "bad" : full ? "warn" : ""} />
    </span>
  );
}

export function GroupsPage() {
  const columns: Column<Group>[] = [
    {
      label: "Group",
      sort: "group",
      head: true,
      render: (group) => (
        <>
          <GroupLink id={group.id} name={group.group} />
          <span class="second">{group.program || "no program yet"}</span>
        </>
      ),
    },
    {
      label: "State",
      sort: "state",
      render: (group) => (
        <>
          <GroupState state={group.state} />
          {group.expires_s !== null && (
            <span class="second">
              expires <Until at={group.expires_s} />
            </span>
          )}
        </>
      ),
    },
    { label: "Owner", sort: "owner", render: (group) => <span class="break">{group.owner || "not known"}</span> },
    {
      label: "vGPUs",
      sort: "vgpus",
      num: true,
      render: (group) => (
        <>
          {count(group.vgpus)}
          <span class="second">on {counted(group.nodes.length, "node")}</span>
        </>
      ),
    },
    { label: "Memory used", sort: "used_mib", render: (group) => <Quota used={group.used_mib} quota={group.gmem_mib * group.vgpus} /> },
    { label: "Ratio achieved", sort: "achieved_percent", render: (group) => <Ratio configured={group.ratio_percent} achieved={group.achieved_percent} policy={group.policy} /> },
    { label: "Tasks", sort: "sessions", num: true, render: (group) => count(group.sessions) },
  ];
  if (isOperator.value) {
    columns.push({
      label: "Actions",
      wide: true,
      render: (group) => (
        <span class="row-actions">
          <GroupActions group={group} />
        </span>
      ),
    });
  }
  return (
    <>
      <Heading title="Groups" sub="vGPUs that belong together: what one program, or programs with one ORION_GROUP_ID, were given." />
      <DataTable<Group>
        label="Groups"
        list="/groups"
        columns={columns}
        rowKey={(group) => group.id}
        defaultSort="group"
        search="Search groups"
        filters={[
          {
            name: "state",
            label: "State",
            options: [
              ["", "All"],
              ["active", "Active"],
              ["reserved", "Reserved"],
              ["idle", "Idle"],
            ],
          },
        ]}
        empty="Nothing is given out. A program gets its vGPUs when it first uses CUDA."
      />
    </>
  );
}

export function GroupPage({ parts: [id] }: { parts: string[] }) {
  const { data: group, failure } = useLive<Group>(path`/groups/${id}`);
  return (
    <>
      <Heading title={group?.group ?? id} parent={["#/groups", "Groups"]} sub={group && <GroupState state={group.state} />}>
        {group && <GroupActions group={group} />}
      </Heading>
      {failure && <Failure failure={failure} />}
      {!group && !failure && <Loading />}
      {group && (
        <>
          <Facts
            facts={[
              ["Owner", group.owner || "not known"],
              ["Program", group.program || "none yet"],
              ["Since", <At at={group.since_s} />],
              ["Kept", keptText(group)],
              ["vGPUs", `${count(group.vgpus)}, each ${mib(group.gmem_mib)}`],
              ["Memory used", <Quota used={group.used_mib} quota={group.gmem_mib * group.vgpus} />],
              ["Ratio", <Ratio configured={group.ratio_percent} achieved={group.achieved_percent} policy={group.policy} />],
              ["Id", <span class="code">{group.id}</span>],
            ]}
          />
          <Panel title="vGPUs">
            <GroupVgpus fixed={{ group: id }} empty="This group has no vGPU." />
          </Panel>
          <Panel title="The last hour">
            <Plots scope={`group/${id}`} />
          </Panel>
          <Panel title="Tasks">
            <Tasks fixed={{ group: id }} empty="No task runs in this group." />
          </Panel>
        </>
      )}
    </>
  );
}

function keptText(group: Group) {
  if (group.expires_s !== null) {
    return (
      <>
        expires <Until at={group.expires_s} />
      </>
    );
  }
  const shared = group.shared ? ", shared by its tasks" : "";
  return (group.reserved ? "also while idle" : "while a task uses it") + shared;
}

export function VgpusPage() {
  return (
    <>
      <Heading title="vGPUs" sub="Slices of GPUs that are given out. Throttled: how long launches were held back to keep to the ratio." />
      <GroupVgpus empty="No vGPU is given out." embedded={false} />
    </>
  );
}

interface GroupVgpusProps {
  fixed?: Record<string, string>;
  empty: string;
  embedded?: boolean;
  select?: (vgpu: Vgpu) => boolean;
}

export function GroupVgpus({ fixed = {}, empty, embedded = true, select }: GroupVgpusProps) {
  const columns: Column<Vgpu>[] = [
    {
      label: "vGPU",
      sort: "id",
      head: true,
      render: (vgpu) => (
        <>
          {fixed.group ? vgpu.id : <GroupLink id={vgpu.group} name={vgpu.id} />}
          <span class="second">{vgpu.vgpu || "nobody has attached yet"}</span>
        </>
      ),
    },
    {
      label: "GPU",
      sort: "node",
      render: (vgpu) => (
        <>
          {fixed.node ? <GpuLink node={vgpu.node} ordinal={vgpu.ordinal} short /> : <NodeLink name={vgpu.node} />}
          {!fixed.node && (
            <span class="second">
              <GpuLink node={vgpu.node} ordinal={vgpu.ordinal} short />
            </span>
          )}
        </>
      ),
    },
    { label: "Memory used", sort: "used_mib", render: (vgpu) => <Quota used={vgpu.used_mib} quota={vgpu.quota_mib} /> },
    { label: "Ratio achieved", sort: "achieved_percent", render: (vgpu) => <Ratio configured={vgpu.ratio_percent} achieved={vgpu.achieved_percent} policy={vgpu.policy} /> },
    { label: "Throttled", sort: "throttled_ms", num: true, render: (vgpu) => duration(vgpu.throttled_ms / 1000) },
    { label: "Launches", sort: "launches", num: true, render: (vgpu) => count(vgpu.launches) },
    { label: "Tasks", sort: "sessions", num: true, render: (vgpu) => count(vgpu.sessions) },
  ];
  return (
    <DataTable<Vgpu>
      embedded={embedded}
      label="vGPUs"
      list="/vgpus"
      select={select}
      fixed={fixed}
      columns={columns}
      rowKey={(vgpu) => vgpu.id}
      defaultSort={fixed.node ? "ordinal" : "id"}
      search={embedded ? undefined : "Search vGPUs"}
      empty={empty}
    />
  );
}
