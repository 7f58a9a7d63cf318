import { useState } from "preact/hooks";
import { type Page, withQuery } from "../api";
import { count, mib } from "../format";
import { useByNode, useLive } from "../live";
import type { Gpu, Vgpu } from "../models";
import { GpuBar } from "../ui/gpubar";
import { Badge, Facts, Failure, Heading, Loading, NodeLink, Panel, Temperature, Utilization } from "../ui/parts";
import { Plots } from "../ui/plot";
import { DataTable } from "../ui/table";
import { GroupVgpus } from "./groups";
import { gpuColumns } from "./nodes";

const SEGMENTS_EVERY_MS = 6000;
/** Sorted by node, a page's GPUs are on few nodes; otherwise on so many that their vGPUs are not worth the questions. */
const MAX_NODES = 16;

export function GpusPage() {
  const [nodes, setNodes] = useState<string[]>([]);
  const vgpus = useByNode<Vgpu>("vgpus", nodes, SEGMENTS_EVERY_MS);
  return (
    <>
      <Heading title="GPUs" sub="What of each GPU is given out: a segment for each vGPU, filled as far as its memory is used." />
      <DataTable<Gpu>
        label="GPUs"
        list="/gpus"
        columns={gpuColumns((gpu) => vgpus.get(gpu.node)?.filter((vgpu) => vgpu.ordinal === gpu.ordinal), true)}
        rowKey={(gpu) => `${gpu.node}/${gpu.ordinal}`}
        defaultSort="node"
        search="Search GPUs"
        empty="No node has registered a GPU yet."
        onRows={(rows) => {
          const found = [...new Set(rows.map((gpu) => gpu.node))];
          const next = found.length > MAX_NODES ? [] : found;
          setNodes((old) => (old.join("\n") === next.join("\n") ? old : next));
        }}
      />
    </>
  );
}

export function GpuPage({ parts: [node, ordinal] }: { parts: string[] }) {
  const { data, failure } = useLive<Page<Gpu>>(withQuery("/gpus", { node, limit: 1000 }));
  const vgpus = useByNode<Vgpu>("vgpus", [node], 4000).get(node);
  const gpu = data?.items.find((one) => one.ordinal === Number(ordinal));
  return (
    <>
      <Heading title={`GPU ${ordinal} of ${node}`} parent={["#/gpus", "GPUs"]} sub={gpu?.name} />
      {failure && <Failure failure={failure} />}
      {!data && !failure && <Loading />}
      {data && !gpu && <p class="empty">This node has no GPU {ordinal}.</p>}
      {gpu && (
        <>
          <Facts
            facts={[
              ["Node", <NodeLink name={gpu.node} />],
              ["Health", gpu.health ? <Badge tone="bad" icon="warning">{gpu.health}</Badge> : <Badge tone="good" icon="check">Well</Badge>],
              ["Utilisation", <Utilization value={gpu.utilization_percent} />],
              ["Temperature", <Temperature value={gpu.temperature_c} />],
              ["Power", gpu.power_w === null ? "not known" : `${count(gpu.power_w)}\u00a0W`],
              ["Memory", `${mib(gpu.total_mib)}, ${mib(gpu.capacity_mib)} for vGPUs`],
              ["Ratio given", `${count(gpu.ratio_given_percent)} of ${count(gpu.ratio_percent)}\u00a0%`],
              ["UUID", <span class="code">{gpu.uuid}</span>],
            ]}
          />
          <Panel title="What is given">
            <GpuBar gpu={gpu} vgpus={vgpus?.filter((vgpu) => vgpu.ordinal === gpu.ordinal)} tall />
          </Panel>
          <Panel title="The last hour">
            <Plots scope={`gpu/${node}/${ordinal}`} />
          </Panel>
          <Panel title="vGPUs">
            <GroupVgpus fixed={{ node }} select={(vgpu) => vgpu.ordinal === gpu.ordinal} empty="No vGPU is given out here." />
          </Panel>
        </>
      )}
    </>
  );
}
