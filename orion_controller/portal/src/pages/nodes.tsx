import { useState } from "preact/hooks";
import { path } from "../api";
import { NodeActions } from "../actions";
import { count, counted, mib, mibOf } from "../format";
import { useByNode, useLive } from "../live";
import type { Gpu, Node, Vgpu } from "../models";
import { isOperator } from "../session";
import { GpuBar } from "../ui/gpubar";
import { Ago, At, Badge, Facts, Failure, GpuLink, Heading, Loading, NodeLink, NodeState, Panel, Temperature, UseBar, Utilization } from "../ui/parts";
import { Plots } from "../ui/plot";
import { type Column, DataTable } from "../ui/table";
import { GroupVgpus } from "./groups";
import { Tasks } from "./tasks";

const TEMPERATURE_EVERY_MS = 10_000;

/** Of the hottest GPU. */
function hottest(gpus: Gpu[] | undefined): number | null {
  const known = (gpus ?? []).flatMap((gpu) => gpu.temperature_c ?? []);
  return known.length > 0 ? Math.max(...known) : null;
}

export function NodesPage() {
  const [names, setNames] = useState<string[]>([]);
  const gpus = useByNode<Gpu>("gpus", names, TEMPERATURE_EVERY_MS);
  const columns: Column<Node>[] = [
    {
      label: "Node",
      sort: "name",
      head: true,
      render: (node) => (
        <>
          <NodeLink name={node.name} />
          <span class="second">{node.address}</span>
        </>
      ),
    },
    {
      label: "State",
      sort: "state",
      render: (node) => (
        <>
          <NodeState state={node.state} />
          {node.state === "lost" && (
            <span class="second">
              last seen <Ago at={node.last_heartbeat_s} />
            </span>
          )}
        </>
      ),
    },
    {
      label: "GPUs",
      sort: "gpus",
      num: true,
      render: (node) => count(node.gpus),
    },
    { label: "vGPUs", sort: "vgpus", num: true, render: (node) => count(node.vgpus) },
    { label: "Tasks", sort: "sessions", num: true, render: (node) => count(node.sessions) },
    { label: "Utilisation", sort: "utilization_percent", render: (node) => <Utilization value={node.utilization_percent} /> },
    { label: "Memory", sort: "memory_given_mib", render: (node) => <NodeMemory node={node} /> },
    { label: "Hottest", num: true, render: (node) => <Temperature value={node.state === "lost" ? null : hottest(gpus.get(node.name))} /> },
  ];
  if (isOperator.value) columns.push({ label: "Actions", wide: true, render: (node) => <NodeActions node={node} /> });
  return (
    <>
      <Heading title="Nodes" sub="The machines with GPUs. A draining node gets no new vGPUs; what runs there goes on." />
      <DataTable<Node>
        label="Nodes"
        list="/nodes"
        columns={columns}
        rowKey={(node) => node.name}
        defaultSort="name"
        search="Search nodes"
        filters={[
          {
            name: "state",
            label: "State",
            options: [
              ["", "All"],
              ["ready", "Ready"],
              ["draining", "Draining"],
              ["lost", "Lost"],
            ],
          },
        ]}
        empty="No node has registered yet. Start orion-server with --controller on a machine with GPUs."
        onRows={(rows) => {
          const next = rows.map((node) => node.name);
          setNames((old) => (old.join("\n") === next.join("\n") ? old : next));
        }}
      />
    </>
  );
}

function NodeMemory({ node }: { node: Node }) {
  return (
    <span class="measure measure-wide">
      <span class="num">
        {mibOf(node.memory_given_mib, node.memory_mib)} <span class="muted">given</span>
        {node.memory_given_mib > 0 && <span class="muted">, {mib(node.memory_used_mib)} used</span>}
      </span>
      <UseBar used={node.memory_used_mib} given={node.memory_given_mib} max={node.memory_mib} />
    </span>
  );
}

export function NodePage({ parts: [name] }: { parts: string[] }) {
  const { data: node, failure } = useLive<Node>(path`/nodes/${name}`);
  return (
    <>
      <Heading title={name} parent={["#/nodes", "Nodes"]} sub={node && <NodeState state={node.state} />}>
        {node && <NodeActions node={node} />}
      </Heading>
      {failure && <Failure failure={failure} />}
      {!node && !failure && <Loading />}
      {node && (
        <>
          <Facts
            facts={[
              ["Address", node.address],
              ["Heartbeat", <Ago at={node.last_heartbeat_s} />],
              ["Registered", <At at={node.since_s} />],
              ["Version", node.version],
              ["Driver", node.driver || "not known"],
              ["Kind", node.device_kind],
              ["Utilisation", <Utilization value={node.utilization_percent} />],
              ["Memory", <NodeMemory node={node} />],
            ]}
          />
          <Panel title="GPUs" aside={<span class="muted">{counted(node.gpus, "GPU")}</span>}>
            <NodeGpus name={name} />
          </Panel>
          <Panel title="The last hour">
            <Plots scope={`node/${name}`} />
          </Panel>
          <Panel title="vGPUs">
            <GroupVgpus fixed={{ node: name }} empty="No vGPU is given out here." />
          </Panel>
          <Panel title="Tasks">
            <Tasks fixed={{ node: name }} empty="No task runs here." />
          </Panel>
        </>
      )}
    </>
  );
}

function NodeGpus({ name }: { name: string }) {
  const vgpus = useByNode<Vgpu>("vgpus", [name], 4000).get(name);
  return (
    <DataTable<Gpu>
      embedded
      label={`GPUs of ${name}`}
      list="/gpus"
      fixed={{ node: name }}
      defaultSort="ordinal"
      columns={gpuColumns((gpu) => vgpus?.filter((vgpu) => vgpu.ordinal === gpu.ordinal), false)}
      rowKey={(gpu) => gpu.uuid}
      empty="This node reports no GPU."
    />
  );
}

export function gpuColumns(vgpusOf: (gpu: Gpu) => Vgpu[] | undefined, withNode: boolean): Column<Gpu>[] {
  return [
    {
      label: "GPU",
      sort: withNode ? "node" : "ordinal",
      head: true,
      render: (gpu) => (
        <>
          <GpuLink node={gpu.node} ordinal={gpu.ordinal} short={!withNode} />
          <span class="second">{gpu.name}</span>
          {gpu.health && (
            <span class="second">
              <Badge tone="bad" icon="warning">
                {gpu.health}
              </Badge>
            </span>
          )}
        </>
      ),
    },
    { label: "vGPUs", sort: "vgpus", num: true, render: (gpu) => `${count(gpu.vgpus)} / ${count(gpu.max_vgpus)}` },
    { label: "Utilisation", sort: "utilization_percent", render: (gpu) => <Utilization value={gpu.utilization_percent} /> },
    { label: "Memory", sort: "given_mib", render: (gpu) => <GpuBar gpu={gpu} vgpus={vgpusOf(gpu)} /> },
    { label: "Ratio given", sort: "ratio_given_percent", num: true, render: (gpu) => `${count(gpu.ratio_given_percent)} / ${count(gpu.ratio_percent)}\u00a0%` },
    { label: "Temp.", sort: "temperature_c", num: true, render: (gpu) => <Temperature value={gpu.temperature_c} /> },
    { label: "Power", sort: "power_w", num: true, render: (gpu) => (gpu.power_w === null ? <Temperature value={null} /> : `${count(gpu.power_w)}\u00a0W`) },
  ];
}
