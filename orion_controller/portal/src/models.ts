// Generated from orion_controller/api/models.py by gen_types.py; do not edit.

export interface Summary {
  nodes: number;
  nodes_ready: number;
  nodes_draining: number;
  nodes_lost: number;
  gpus: number;
  vgpus: number;
  vgpus_free: number;
  memory_mib: number;
  memory_given_mib: number;
  memory_used_mib: number;
  ratio_given_percent: number;
  ratio_percent: number;
  utilization_percent: number | null;
  sessions: number;
  groups: number;
  queue: number;
  controller: string;
  leader: boolean;
  version: string;
  since_s: number;
}

export interface Gpu {
  node: string;
  ordinal: number;
  uuid: string;
  name: string;
  total_mib: number;
  capacity_mib: number;
  given_mib: number;
  used_mib: number;
  ratio_given_percent: number;
  ratio_percent: number;
  vgpus: number;
  max_vgpus: number;
  utilization_percent: number | null;
  temperature_c: number | null;
  power_w: number | null;
  health: string;
}

export interface Node {
  name: string;
  address: string;
  state: "ready" | "draining" | "lost";
  version: string;
  driver: string;
  device_kind: string;
  gpus: number;
  vgpus: number;
  sessions: number;
  memory_mib: number;
  memory_given_mib: number;
  memory_used_mib: number;
  utilization_percent: number | null;
  last_heartbeat_s: number;
  since_s: number;
}

export interface Vgpu {
  id: string;
  vgpu: string;
  node: string;
  ordinal: number;
  group: string;
  quota_mib: number;
  used_mib: number;
  ratio_percent: number;
  policy: "hard" | "elastic";
  achieved_percent: number;
  throttled_ms: number;
  launches: number;
  sessions: number;
}

export interface Group {
  id: string;
  group: string;
  state: "reserved" | "active" | "idle";
  shared: boolean;
  reserved: boolean;
  vgpus: number;
  nodes: string[];
  gmem_mib: number;
  ratio_percent: number;
  policy: "hard" | "elastic";
  used_mib: number;
  achieved_percent: number;
  sessions: number;
  program: string;
  owner: string;
  since_s: number;
  expires_s: number | null;
}

export interface Session {
  id: string;
  node: string;
  group: string;
  group_name: string;
  pid: number;
  uid: number;
  host: string;
  program: string;
  transport: string;
  since_s: number;
}

export interface Waiting {
  position: number;
  group: string;
  vgpus: number;
  gmem_mib: number;
  ratio_percent: number;
  owner: string;
  program: string;
  since_s: number;
  reason: string;
}

export interface Event {
  id: number;
  at_s: number;
  level: "info" | "warning" | "error";
  kind: string;
  subject: string;
  message: string;
  user: string;
}

export interface Limits {
  group: string;
  vgpus: number | null;
  gmem_mib: number | null;
  ratio_percent: number | null;
}

export interface LimitsBody {
  vgpus?: number | null;
  gmem_mib?: number | null;
  ratio_percent?: number | null;
}

export interface Series {
  name: string;
  unit: string;
  values: (number | null)[];
}

export interface History {
  scope: string;
  start_s: number;
  step_s: number;
  series: Series[];
}

export interface PatchGroup {
  gmem_mib?: number | null;
  ratio_percent?: number | null;
  policy?: "hard" | "elastic" | null;
  shrink?: "refuse" | "block";
}

export interface PatchNode {
  draining: boolean;
}

export interface Reserve {
  group: string;
  vgpus?: number;
  gmem_mib?: number;
  ratio_percent?: number;
  node?: string;
  cross_node?: boolean;
  rule?: "" | "local-first" | "binpack" | "spread";
  ttl_s?: number;
}

export interface Login {
  user: string;
  password: string;
}

export interface LoggedIn {
  user: string;
  role: "viewer" | "operator";
  token: string;
  expires_s: number;
}

export interface Me {
  user: string;
  role: "viewer" | "operator";
}

export interface ApiError {
  code: string;
  message: string;
  hint: string;
}
