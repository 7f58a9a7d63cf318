// The memory of a GPU: a segment for each vGPU, as wide as its quota, filled as far as it is used.
import { counted, mib, mibOf } from "../format";
import type { Gpu, Vgpu } from "../models";
import { UseBar } from "./parts";

export function GpuBar({ gpu, vgpus, tall = false }: { gpu: Gpu; vgpus?: Vgpu[]; tall?: boolean }) {
  return (
    <span class="measure measure-wide">
      <span class="num">
        {mibOf(gpu.given_mib, gpu.capacity_mib)} <span class="muted">given</span>
        {gpu.given_mib > 0 && <span class="muted">, {mib(gpu.used_mib)} used</span>}
      </span>
      {vgpus ? <Segments gpu={gpu} vgpus={vgpus} tall={tall} /> : <UseBar used={gpu.used_mib} given={gpu.given_mib} max={gpu.capacity_mib} />}
    </span>
  );
}

function Segments({ gpu, vgpus, tall }: { gpu: Gpu; vgpus: Vgpu[]; tall: boolean }) {
  const whole = Math.max(gpu.capacity_mib, vgpus.reduce((sum, vgpu) => sum + vgpu.quota_mib, 0), 1);
  const label = `${counted(vgpus.length, "vGPU")}: ${vgpus.map((vgpu) => `${vgpu.group} ${mib(vgpu.used_mib)} of ${mib(vgpu.quota_mib)}`).join(", ") || "none"}`;
  return (
    <span class={tall ? "segments segments-tall" : "segments"} role="img" aria-label={label}>
      {vgpus.map((vgpu) => (
        <span class="segment" key={vgpu.id} style={{ width: `${(100 * vgpu.quota_mib) / whole}%` }} title={`${vgpu.group}: ${mib(vgpu.used_mib)} used of ${mib(vgpu.quota_mib)}`}>
          <span class="segment-fill" style={{ width: `${Math.min(100, (100 * vgpu.used_mib) / Math.max(1, vgpu.quota_mib))}%` }} />
        </span>
      ))}
    </span>
  );
}
